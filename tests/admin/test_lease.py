"""A turn with a VM: a command leaves once, and what came of it is seen or is unknown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from exporter.admin.lease import VmLease, lease
from exporter.admin.timing import Timing
from exporter.collect.discovery import Target
from exporter.collect.fleet import Fleet
from exporter.collect.scrape_target import Observer, ScrapeTarget
from exporter.concurrency import LoopPacer
from exporter.config.settings import Config, Group, Settings
from exporter.errors import OutcomeUnknown, Refused, Rejected
from exporter.model.state import VmState
from exporter.qmp.client import CommandStats
from exporter.qmp.commands import set_speed
from exporter.storage.file_stat import FileStat
from exporter.storage.prober import Storage
from tests.disks import Disk, block_job, plug
from tests.fakeqmp import Answer, FakeQmp, until

SPEED = "block-job-set-speed"
COMMAND = set_speed("qbe-a", 1)
SEEN = Storage(lambda path: FileStat(visible=True))


@pytest.fixture
async def fake(sockets: Path) -> AsyncIterator[FakeQmp]:
    """A VM with a disk on two layers, that does what it is told."""
    async with FakeQmp(str(sockets / "vm.sock")) as server:
        plug(server, Disk())
        server.replies |= {SPEED: {"return": {}}, "query-commands": {"return": [{"name": SPEED}]}}
        yield server


Make = Callable[..., ScrapeTarget]


@pytest.fixture
async def make(sockets: Path) -> AsyncIterator[Make]:
    """Makes the target, with settings."""
    made = []

    def member(**settings: Any) -> ScrapeTarget:
        target = Target(
            vm="vm",
            socket=str(sockets / "vm.sock"),
            group="g",
            settings=Settings(**settings),
        )
        storage = Storage(lambda path: FileStat(visible=True))
        made.append(ScrapeTarget(target, CommandStats(), storage, LoopPacer(), Observer()))
        return made[-1]

    yield member
    for each in made:
        await each.leave()


#: Nobody waits for long.
SHORT = Timing(lookup_pause_seconds=0.0, lookup_seconds=20.0)
IMPATIENT = Timing(lease_wait_seconds=0.05)


def hang_up(fake: FakeQmp, answer: bytes = b"") -> Callable[[Mapping[str, Any]], bytes]:
    """Answer a command with so much of an answer, and hang up."""

    def reply(_: Mapping[str, Any]) -> bytes:
        asyncio.get_running_loop().call_soon(fake.hang_up)
        return answer

    return reply


async def looked(mine: VmLease) -> VmState:
    snapshot, _ = await mine.look(allow_managed=False)
    return snapshot


async def send(
    member: ScrapeTarget,
    effect: Callable[[VmState], bool] | None = None,
    timing: Timing = SHORT,
) -> None:
    """Have a turn, look, and send a command."""
    async with lease(member, timing) as mine:
        await looked(mine)
        await mine.send(COMMAND, effect)


def none_of(looks: list[VmState]) -> Callable[[VmState], bool]:
    """Return an effect that no look shows, and note each look."""

    def is_there(now: VmState) -> bool:
        looks.append(now)
        return False

    return is_there


async def test_a_command_that_is_answered_was_done(fake: FakeQmp, make: Make) -> None:
    """It is sent once, and nobody looks whether it was."""
    effects: list[VmState] = []
    await send(make(), none_of(effects))

    assert fake.commands.count(SPEED) == 1
    assert effects == []


async def test_what_qemu_refuses_is_told_without_its_secrets(fake: FakeQmp, make: Make) -> None:
    """The text of an error may quote a file name with a password in it."""
    text = "Could not open 'rbd:pool/image:key=SECRETPW'"
    fake.replies[SPEED] = {"error": {"class": "GenericError", "desc": text}}
    with pytest.raises(Rejected) as error:
        await send(make())

    assert "SECRETPW" not in str(error.value)
    assert str(error.value).startswith("Could not open")


@pytest.mark.parametrize(
    "answer", [b"", b'{"return": {}', b'{"return": {}}\r', b'{"timestamp": {'], ids=repr
)
async def test_a_command_whose_answer_is_cut_is_looked_up(
    fake: FakeQmp, make: Make, answer: bytes
) -> None:
    """It was done, if the VM shows that it was: then nobody is told of the cut."""
    fake.replies[SPEED] = hang_up(fake, answer)
    looks: list[VmState] = []

    def second(now: VmState) -> bool:
        looks.append(now)
        return len(looks) == 2

    await send(make(), second)

    assert fake.commands.count(SPEED) == 1
    assert len(looks) == 2


async def test_a_command_that_nothing_shows_is_unknown_and_not_sent_again(
    fake: FakeQmp, make: Make
) -> None:
    """It is looked for three times."""
    fake.replies[SPEED] = hang_up(fake)
    looks: list[VmState] = []
    with pytest.raises(OutcomeUnknown) as error:
        await send(make(), none_of(looks))

    assert error.value.late is False
    assert len(looks) == 3
    assert fake.commands.count(SPEED) == 1


async def test_a_vm_that_hangs_up_in_the_look_is_looked_at_again(fake: FakeQmp, make: Make) -> None:
    """A connection that is lost twice is no answer."""
    fake.replies[SPEED] = hang_up(fake)
    broken = 0

    def block_jobs(_: Mapping[str, Any]) -> Answer:
        nonlocal broken
        if fake.commands.count(SPEED) and broken < 3:
            broken += 1
            asyncio.get_running_loop().call_soon(fake.hang_up)
            return b""
        return {"return": []}

    fake.replies["query-block-jobs"] = block_jobs
    await send(make(), lambda now: True)

    assert (broken, fake.commands.count(SPEED)) == (3, 1)


async def test_a_command_without_an_effect_to_see_is_unknown_at_once(
    fake: FakeQmp, make: Make
) -> None:
    """There is nothing to look for."""
    fake.replies[SPEED] = hang_up(fake)
    member = make()
    async with lease(member, SHORT) as mine:
        await looked(mine)
        before = len(fake.commands)
        with pytest.raises(OutcomeUnknown):
            await mine.send(COMMAND)

    assert fake.commands[before:] == [SPEED]


async def test_an_answer_that_does_not_come_in_time_is_not_looked_up(
    fake: FakeQmp, make: Make
) -> None:
    """The VM would answer that after the command."""
    fake.replies[SPEED] = b""
    with pytest.raises(OutcomeUnknown) as error:
        await send(make(timeout_seconds=2.0), lambda now: True)

    assert error.value.late is True
    assert fake.commands[-1] == SPEED


@pytest.mark.parametrize("connection", ["persistent", "per-scrape"])
async def test_a_late_answer_is_dropped_and_the_vm_is_there_again(
    fake: FakeQmp, make: Make, connection: str
) -> None:
    """Until then nothing more is sent to it."""
    fake.replies[SPEED] = b""
    member = make(timeout_seconds=2.0, connection=connection)
    with pytest.raises(OutcomeUnknown):
        await send(member)
    with pytest.raises(Refused) as refusal:
        await send(member)
    sent = fake.commands.count(SPEED)
    await fake.send({"return": {}})
    fake.replies[SPEED] = {"return": {}}
    if connection == "per-scrape":
        await until(lambda: not fake.serves)
    else:
        await until(lambda: not member._vm._session.owes_answers)
    await send(member)

    assert refusal.value.problem == "vm-down"
    assert (sent, fake.commands.count(SPEED)) == (1, 2)


async def test_a_vm_that_hangs_up_before_the_command_gets_none(fake: FakeQmp, make: Make) -> None:
    """Nothing was sent: that is a refusal, and no unknown outcome."""
    member = make()
    async with lease(member, SHORT) as mine:
        await looked(mine)
        fake.hang_up()
        await until(lambda: not member._vm._session.connected)
        with pytest.raises(Refused) as refusal:
            await mine.send(COMMAND, lambda now: True)

    assert refusal.value.problem == "vm-down"
    assert SPEED not in fake.commands


async def test_an_answer_that_is_none_is_no_success(fake: FakeQmp, make: Make) -> None:
    """Whoever says something else than return or error has not said that it was done."""
    fake.replies[SPEED] = {"returned": {}}
    with pytest.raises(OutcomeUnknown):
        await send(make(), lambda now: False)

    assert fake.commands.count(SPEED) == 1


# Taking turns.


async def test_scrapes_and_turns_wait_for_each_other(fake: FakeQmp, make: Make) -> None:
    """The queries of a scrape never stand between a look and its command."""
    member = make()
    async with lease(member, SHORT) as mine:
        await looked(mine)
        scrape = member.start()
        before = len(fake.commands)
        await asyncio.sleep(0)
        await mine.send(COMMAND)
        sent = fake.commands[before:]
        assert not scrape.done()
    collected = await scrape

    assert sent == [SPEED]
    assert collected.snapshot.up


async def test_a_scrape_does_not_wait_longer_for_a_turn_than_for_the_vm(
    fake: FakeQmp, make: Make
) -> None:
    """A sweep waits for all its VMs: the others must not be late for a change of this one."""
    member = make(timeout_seconds=2.0)
    async with lease(member, SHORT):
        collected = await member.collect()
    after = await member.collect()

    assert (collected.snapshot.up, collected.snapshot.reason) == (False, "timeout")
    assert after.snapshot.up


async def test_whoever_waits_too_long_for_a_turn_is_refused_and_in_nobodys_way(
    fake: FakeQmp, make: Make
) -> None:
    """The next turn is had as if nobody had waited."""
    member = make()
    async with lease(member, SHORT):
        with pytest.raises(Refused) as refusal:
            await send(member, timing=IMPATIENT)
    await send(member)

    assert refusal.value.problem == "vm-down"
    assert fake.commands.count(SPEED) == 1


async def test_a_turn_lasts_as_long_as_it_takes(
    fake: FakeQmp, make: Make
) -> None:
    """The time to wait for a turn is not the time to have it."""
    async with lease(make(), IMPATIENT) as mine:
        await asyncio.sleep(0.1)
        await looked(mine)
        await mine.send(COMMAND)

    assert fake.commands.count(SPEED) == 1


async def test_a_turn_that_is_cancelled_is_over(fake: FakeQmp, make: Make) -> None:
    """Wherever that happens: waiting for the turn, looking, or waiting for the answer."""
    member = make()
    fake.replies[SPEED] = b""
    having = asyncio.create_task(send(member))
    waiting = asyncio.create_task(send(member))
    await until(lambda: SPEED in fake.commands)
    waiting.cancel()
    having.cancel()
    await asyncio.wait((having, waiting))
    await fake.send({"return": {}})
    fake.replies[SPEED] = {"return": {}}
    await until(lambda: not member._vm._session.owes_answers)
    await send(member)

    assert (having.cancelled(), waiting.cancelled()) == (True, True)
    assert fake.commands.count(SPEED) == 2


# A target that is left.


async def test_a_target_is_left_after_the_turn_that_somebody_has(fake: FakeQmp, make: Make) -> None:
    """A command that was sent is answered, whatever a reload does to the configuration."""
    member = make()
    async with lease(member, SHORT) as mine:
        await looked(mine)
        leaving = asyncio.create_task(member.leave())
        await asyncio.sleep(0)
        await mine.send(COMMAND)
        assert not leaving.done()
    await leaving

    assert fake.commands.count(SPEED) == 1
    await until(lambda: not fake.serves)


async def test_a_target_that_was_left_is_not_connected_to_again(fake: FakeQmp, make: Make) -> None:
    """Whoever waited for it would keep its successor out of the socket."""
    member = make()
    async with lease(member, SHORT) as mine:
        await looked(mine)
        waiting = asyncio.create_task(send(member))
        await asyncio.sleep(0)
        leaving = asyncio.create_task(member.leave())
    with pytest.raises(Refused) as refusal:
        await waiting
    await leaving
    with pytest.raises(Refused):
        await send(member)

    assert refusal.value.problem == "vm-down"
    assert fake.connections == 1
    assert SPEED not in fake.commands


async def test_a_vm_whose_change_takes_long_makes_no_other_late(sockets: Path) -> None:
    """A scrape shows the others, and the next one too."""
    group = Group(name="g", sockets=(f"{sockets}/*.sock",), settings=Settings(timeout_seconds=2.0))
    async with FakeQmp(str(sockets / "a.sock")), FakeQmp(str(sockets / "b.sock")):
        fleet = Fleet(Config(groups=(group,)), SEEN)
        fleet.discover()
        async with lease(fleet.members["a"], SHORT):
            first = await fleet.scrape(20.0)
            fleet._sweep = None
            second = await fleet.scrape(20.0)
        await fleet.close()

    for collected in (first, second):
        assert {each.snapshot.vm: each.snapshot.up for each in collected} == {
            "a": False,
            "b": True,
        }


# What is told of a job.


async def test_a_job_that_runs_has_no_outcome_of_one_before_it(fake: FakeQmp, make: Make) -> None:
    """QEMU's own ids are used again and again."""
    member = make()
    await member.collect()
    fake.replies["query-block-jobs"] = {"return": [block_job(device="disk0", kind="stream")]}
    await member.collect()
    fake.replies["query-block-jobs"] = {"return": []}
    await member.collect()
    was = member.ends["disk0"].result
    fake.replies["query-block-jobs"] = {"return": [block_job(device="disk0", kind="stream")]}
    async with lease(member, SHORT) as mine:
        snapshot = await looked(mine)
        now = mine.job(snapshot, "disk0")

    assert was == "vanished"
    assert now is not None
    assert (now.job_type, now.outcome) == ("stream", None)
    assert "disk0" not in member.ends
