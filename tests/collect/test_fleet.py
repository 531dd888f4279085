"""The fleet: one sweep for all who ask, and no VM that costs another one anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.collect import fleet as fleet_module
from exporter.collect.fleet import Fleet
from exporter.collect.scrape_target import Collected
from exporter.config.settings import Config, Group, Settings, Target
from exporter.expose.families import join
from exporter.storage.file_stat import FileStat
from exporter.storage.prober import Storage
from tests.conftest import series
from tests.disks import Disk, block_job, plug
from tests.fakeqmp import FakeQmp, until

PATIENCE = 20.0
Start = Callable[..., Awaitable[FakeQmp]]


class Clock:
    """The time of the fleet."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the seconds since the machine was started."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that is set by hand."""
    clock = Clock()
    monkeypatch.setattr(fleet_module, "time", clock)
    return clock


@pytest.fixture
async def start(sockets: Path) -> AsyncIterator[Start]:
    """Starts VMs of a name."""
    servers = []

    async def vm(name: str = "a") -> FakeQmp:
        server = FakeQmp(str(sockets / f"{name}.sock"))
        plug(server, Disk())
        servers.append(await server.__aenter__())
        return server

    yield vm
    for server in servers:
        await server.__aexit__()


@pytest.fixture
async def fleet(sockets: Path) -> AsyncIterator[Fleet]:
    """The fleet of the folder of sockets."""
    fleet = Fleet(config(sockets), Storage(lambda path: FileStat(visible=True)))
    yield fleet
    await fleet.close()


def config(sockets: Path, **settings: Any) -> Config:
    """All sockets of a folder."""
    each = Settings(**settings)
    return Config(groups=(Group(name="g", settings=each, sockets=(str(sockets / "*.sock"),)),))


def reasons(collected: list[Collected]) -> dict[str, str | None]:
    """Each VM with why it is down."""
    return {each.snapshot.vm: each.snapshot.reason for each in collected}


async def test_every_vm_is_collected_at_once(start: Start, fleet: Fleet) -> None:
    """The slowest takes as long as all."""
    for number in range(5):
        await start(f"vm{number}")
    collected = await fleet.scrape(PATIENCE)

    assert reasons(collected) == {f"vm{number}": None for number in range(5)}
    lines = join([each.blobs for each in collected], openmetrics=False).decode()
    assert len(series(lines, "qemu_vm_up")) == 5


async def test_a_target_that_is_gone_leaves_a_line_in_the_log(
    start: Start, fleet: Fleet, sockets: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its series end with it, and nothing else tells of a VM that runs out of sight."""
    caplog.set_level(logging.INFO)
    await start("a")
    await start("b")
    await fleet.scrape(PATIENCE)
    (sockets / "a.sock").unlink()
    clock.now += 1
    assert reasons(await fleet.scrape(PATIENCE)) == {"b": None}
    fleet.reconfigure(config(sockets, timeout_seconds=7.0))
    fleet.discover()
    gone = [r.__dict__ for r in caplog.records if r.message == "vm is no longer a target"]

    assert [(each["vm"], each["socket"]) for each in gone] == [("a", str(sockets / "a.sock"))]


async def test_50_scrapes_at_once_make_one_sweep(start: Start, fleet: Fleet) -> None:
    """Each VM is asked once, however many replicas Prometheus has."""
    vm = await start()
    answers = await asyncio.gather(*(fleet.scrape(PATIENCE) for _ in range(50)))

    assert vm.commands.count("query-blockstats") == 1
    assert [reasons(answer) for answer in answers] == [{"a": None}] * 50


async def test_a_sweep_that_nobody_can_join_any_more_is_let_go(
    start: Start, sockets: Path
) -> None:
    """What a fleet said is much; the process is told how many targets have left by then."""
    swept: list[int] = []
    storage = Storage(lambda path: FileStat(visible=True))
    fleet = Fleet(config(sockets), storage, swept.append, join_seconds=0.01)
    for number in range(9):
        await start(f"vm{number}")
    await fleet.scrape(PATIENCE)
    await until(lambda: swept)
    (sockets / "vm0.sock").unlink()
    await fleet.scrape(PATIENCE)
    await until(lambda: len(swept) == 2)

    assert swept == [0, 1]
    assert fleet._sweep is None
    assert all(member._collecting is None for member in fleet.members.values())
    await fleet.close()


async def test_a_scrape_joins_a_sweep_that_is_under_a_second_old(
    start: Start, fleet: Fleet, clock: Clock
) -> None:
    """Finished or not."""
    vm = await start()
    first = await fleet.scrape(PATIENCE)
    clock.now += 0.999
    second = await fleet.scrape(PATIENCE)

    assert vm.commands.count("query-blockstats") == 1
    assert second == first


async def test_an_older_sweep_is_not_joined(start: Start, fleet: Fleet, clock: Clock) -> None:
    """Its values are of another time."""
    vm = await start()
    await fleet.scrape(PATIENCE)
    clock.now += 1.0
    await fleet.scrape(PATIENCE)

    assert vm.commands.count("query-blockstats") == 2


async def test_a_scrape_waits_for_an_older_sweep_and_then_makes_its_own(
    start: Start, fleet: Fleet, clock: Clock
) -> None:
    """A VM is asked by one sweep at a time; those who waited share the next."""
    vm = await start()
    vm.answering.clear()
    first = asyncio.create_task(fleet.scrape(PATIENCE))
    await until(lambda: vm.received)
    clock.now += 1.0
    sweep = fleet._begin
    sweeps: list[object] = []
    fleet._begin = lambda: sweeps.append(sweep())  # type: ignore[method-assign]
    later = [asyncio.create_task(fleet.scrape(PATIENCE)) for _ in range(10)]
    await asyncio.sleep(0.02)
    assert not any(scrape.done() for scrape in (first, *later))
    vm.answering.set()
    answers = [await first, *[await scrape for scrape in later]]

    assert [reasons(answer) for answer in answers] == [{"a": None}] * 11
    assert len(sweeps) == 1
    assert vm.commands.count("query-blockstats") == 2


async def test_a_vm_that_is_pending_at_a_scrapes_deadline_is_timeout_in_that_answer_only(
    start: Start, fleet: Fleet
) -> None:
    """Another scrape with more time, of the same sweep, gets the VM."""
    await start("quick")
    slow = await start("slow")
    slow.answering.clear()
    patient = asyncio.create_task(fleet.scrape(PATIENCE))
    await until(lambda: slow.received and fleet._sweep and fleet._sweep._done)
    hurried = await fleet.scrape(0.05)
    slow.answering.set()

    assert reasons(hurried) == {"quick": None, "slow": "timeout"}
    assert reasons(await patient) == {"quick": None, "slow": None}
    assert slow.commands.count("query-blockstats") == 1
    lines = join([each.blobs for each in hurried], openmetrics=False).decode()
    assert series(lines, "qemu_vm_up") == {
        'qemu_vm_up{vm="quick"}': "1",
        'qemu_vm_up{vm="slow"}': "0",
    }
    assert not series(lines, "qemu_block_read_bytes_total", vm="slow")


async def test_a_scrape_that_cannot_wait_for_an_older_sweep_answers_with_what_it_has(
    start: Start, fleet: Fleet, clock: Clock
) -> None:
    """One VM that hangs does not cost the others their series."""
    await start("quick")
    slow = await start("slow")
    slow.answering.clear()
    first = asyncio.create_task(fleet.scrape(PATIENCE))
    assert fleet._sweep is None
    await until(lambda: fleet._sweep and fleet._sweep._done)
    clock.now += 1.0
    second = await fleet.scrape(0.0)
    clock.now += 0.1
    third = await fleet.scrape(0.0)
    slow.answering.set()
    await first

    assert reasons(second) == {"quick": None, "slow": "timeout"}
    # Values of then would pass for values of now.
    assert reasons(third) == {"quick": "timeout", "slow": "timeout"}


async def test_a_vm_that_hangs_costs_the_next_scrapes_nothing(
    start: Start, sockets: Path, clock: Clock
) -> None:
    """While it owes an answer it is not waited for."""
    fleet = Fleet(
        config(sockets, timeout_seconds=2.0), Storage(lambda path: FileStat(visible=True))
    )
    await start("quick")
    slow = await start("slow")
    await fleet.scrape(PATIENCE)
    slow.answering.clear()
    clock.now += 1
    assert reasons(await fleet.scrape(PATIENCE)) == {"quick": None, "slow": "timeout"}
    for _ in range(5):
        clock.now += 1
        assert reasons(await fleet.scrape(PATIENCE)) == {"quick": None, "slow": "timeout"}
    slow.answering.set()
    await until(lambda: not fleet.members["slow"]._vm._session.owes_answers)
    clock.now += 1

    assert reasons(await fleet.scrape(PATIENCE)) == {"quick": None, "slow": None}
    assert slow.commands.count("query-blockstats") == 3
    await fleet.close()


async def test_a_line_of_over_16_mib_costs_its_vm_alone(start: Start, fleet: Fleet) -> None:
    """As does whatever else a VM says that is no QMP."""
    await start("good")
    liar = await start("liar")
    liar.replies["query-blockstats"] = b"x" * (17 << 20)

    assert reasons(await fleet.scrape(PATIENCE)) == {"good": None, "liar": "protocol"}


async def test_an_unexpected_exception_costs_its_vm_alone(
    start: Start, fleet: Fleet, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    """It is logged as the defect that it is, and the VM is asked again."""
    await start("good")
    await start("bad")
    fleet.discover()
    whole = fleet.members["bad"]._vm._gather

    async def broken(deadline: float) -> object:
        raise ZeroDivisionError("division by zero")

    fleet.members["bad"]._vm._gather = broken  # type: ignore[method-assign,assignment]
    assert reasons(await fleet.scrape(PATIENCE)) == {"good": None, "bad": "internal"}
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.message == "vm not collected: a defect of this program, please report it"
    assert record.__dict__["err"] == "ZeroDivisionError: division by zero"
    assert record.__dict__["vm"] == "bad"
    fleet.members["bad"]._vm._gather = whole  # type: ignore[method-assign]
    clock.now += 1

    assert reasons(await fleet.scrape(PATIENCE)) == {"good": None, "bad": None}


async def test_a_vm_that_appears_is_in_the_next_sweep(
    start: Start, fleet: Fleet, clock: Clock
) -> None:
    """Nothing has to be reloaded."""
    await start("a")
    assert set(reasons(await fleet.scrape(PATIENCE))) == {"a"}
    await start("b")
    clock.now += 1

    assert set(reasons(await fleet.scrape(PATIENCE))) == {"a", "b"}


async def test_a_vm_whose_socket_is_gone_has_no_series(
    start: Start, fleet: Fleet, clock: Clock, sockets: Path
) -> None:
    """And is left."""
    vm = await start("a")
    await fleet.scrape(PATIENCE)
    (sockets / "a.sock").unlink()
    clock.now += 1

    assert await fleet.scrape(PATIENCE) == []
    await until(lambda: not vm.serves)


async def test_1000_targets_that_come_and_go_leave_nothing_behind(
    fleet: Fleet, sockets: Path, clock: Clock
) -> None:
    """No task, no session, no descriptor."""
    await fleet.scrape(PATIENCE)
    tasks, descriptors = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        async with contextlib.AsyncExitStack() as vms:
            for number in range(100):
                await vms.enter_async_context(FakeQmp(str(sockets / f"vm{number}.sock")))
            clock.now += 1
            collected = await fleet.scrape(PATIENCE)
            assert reasons(collected) == {f"vm{number}": None for number in range(100)}
            for number in range(100):
                (sockets / f"vm{number}.sock").unlink()
            clock.now += 1
            assert await fleet.scrape(PATIENCE) == []

    await until(lambda: not fleet._leaving and len(asyncio.all_tasks()) == tasks)
    assert not fleet.members
    assert len(asyncio.all_tasks()) == tasks
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_sessions_of_targets_that_are_gone_are_closed(
    fleet: Fleet, start: Start, sockets: Path, clock: Clock
) -> None:
    """Whatever they were doing: served, waiting for a greeting, owing an answer."""
    tasks = len(asyncio.all_tasks())
    good, mute, stuck = await start("good"), await start("mute"), await start("stuck")
    mute.greeting = None
    stuck.answering.clear()
    await fleet.scrape(0.3)
    for name in ("good", "mute", "stuck"):
        (sockets / f"{name}.sock").unlink()
    fleet.discover()
    await until(lambda: not fleet._leaving and not good.serves and not mute.serves)
    stuck.answering.set()
    await until(lambda: not stuck.serves)
    assert fleet._sweeping is not None
    await asyncio.wait((fleet._sweeping,))

    assert len(asyncio.all_tasks()) == tasks


async def test_one_vm_can_be_probed_alone(start: Start, fleet: Fleet) -> None:
    """Without a word to the others."""
    await start("a")
    other = await start("b")
    collected = await fleet.probe("a", PATIENCE)

    assert (collected.snapshot.vm, collected.snapshot.up) == ("a", True)
    assert other.received == []


async def test_a_probe_joins_a_scrape_that_asks_the_vm(start: Start, fleet: Fleet) -> None:
    """A VM is asked by one at a time."""
    vm = await start("a")
    vm.answering.clear()
    scraping = asyncio.create_task(fleet.scrape(PATIENCE))
    await until(lambda: vm.received)
    probing = asyncio.create_task(fleet.probe("a", PATIENCE))
    await asyncio.sleep(0.01)
    vm.answering.set()

    assert (await probing).snapshot.up
    assert reasons(await scraping) == {"a": None}
    assert vm.commands.count("query-blockstats") == 1


async def test_a_probe_that_runs_out_of_time_is_timeout(start: Start, fleet: Fleet) -> None:
    """And does not end what another scrape waits for."""
    vm = await start("a")
    vm.answering.clear()
    probing = asyncio.create_task(fleet.probe("a", 0.05))
    scraping = asyncio.create_task(fleet.scrape(PATIENCE))
    assert (await probing).snapshot.reason == "timeout"
    vm.answering.set()

    assert reasons(await scraping) == {"a": None}


async def test_a_probe_whose_vm_goes_away_is_answered(
    start: Start, fleet: Fleet, sockets: Path
) -> None:
    """The request that asked is not cut off."""
    vm = await start("a")
    vm.answering.clear()
    probing = asyncio.create_task(fleet.probe("a", PATIENCE))
    await until(lambda: vm.received)
    (sockets / "a.sock").unlink()
    fleet.discover()

    assert (await probing).snapshot.up is False
    vm.answering.set()


async def test_a_probe_of_an_unknown_vm_is_a_key_error(fleet: Fleet) -> None:
    """A path is no name."""
    with pytest.raises(KeyError):
        await fleet.probe("/run/vm.sock", PATIENCE)


async def test_a_client_that_leaves_does_not_end_the_sweep(start: Start, fleet: Fleet) -> None:
    """Prometheus hangs up when its own time is over; others still wait."""
    vm = await start("a")
    vm.answering.clear()
    leaving = asyncio.create_task(fleet.scrape(PATIENCE))
    staying = asyncio.create_task(fleet.scrape(PATIENCE))
    await until(lambda: vm.received)
    leaving.cancel()
    await asyncio.wait((leaving,))
    vm.answering.set()

    assert reasons(await staying) == {"a": None}


async def test_other_settings_make_a_new_member(start: Start, fleet: Fleet, sockets: Path) -> None:
    """And leave the old one's connection."""
    vm = await start("a")
    await fleet.scrape(PATIENCE)
    member = fleet.members["a"]
    fleet.reconfigure(config(sockets))
    fleet.discover()
    assert fleet.members["a"] is member
    fleet.reconfigure(config(sockets, connection="per-scrape"))
    fleet.discover()

    assert fleet.members["a"] is not member
    await until(lambda: not vm.serves)


async def test_a_target_of_the_config_stays_as_down(sockets: Path, clock: Clock) -> None:
    """It was meant to be there."""
    target = Target(vm="a", socket=str(sockets / "gone"))
    fleet = Fleet(Config(groups=(Group(name="g", settings=Settings(), targets=(target,)),)))

    assert reasons(await fleet.scrape(PATIENCE)) == {"a": "no_socket"}
    await fleet.close()


async def test_a_closed_fleet_has_left_every_socket(start: Start, fleet: Fleet) -> None:
    """Also while a sweep runs."""
    tasks = len(asyncio.all_tasks())
    quick, slow = await start("quick"), await start("slow")
    await fleet.scrape(PATIENCE)
    quick.answering.clear()
    quick.received.clear()
    scraping = asyncio.create_task(fleet.probe("quick", PATIENCE))
    await until(lambda: quick.received)
    await fleet.close()
    quick.answering.set()
    await until(lambda: not quick.serves and not slow.serves)

    assert (await scraping).snapshot.up is False
    assert len(asyncio.all_tasks()) == tasks


async def test_the_fleet_tells_of_itself(start: Start, fleet: Fleet, sockets: Path) -> None:
    """Targets, those that are up, conflicts, commands and refusals."""
    await start("a")
    bad = await start("b")
    del bad.replies["query-status"]
    (sockets / "c.sock").touch()
    collected = await fleet.scrape(PATIENCE)
    fleet.reload_successful = False
    lines = join([fleet.self_metrics(collected)], openmetrics=False).decode()

    for line in (
        "qemu_exporter_targets 3",
        "qemu_exporter_targets_up 2",
        "qemu_exporter_target_conflicts 0",
        "qemu_exporter_config_last_reload_successful 0",
        'qemu_exporter_qmp_commands_total{command="query-blockstats"} 2',
        'qemu_exporter_qmp_errors_total{command="query-status",class="CommandNotFound"} 1',
    ):
        assert line in lines.splitlines()


def test_a_scrape_has_as_long_as_the_most_patient_group() -> None:
    """A group may have more time than the flags say, also after a reload."""

    def config(*seconds: float) -> Config:
        return Config(
            groups=tuple(
                Group(name=str(each), settings=Settings(timeout_seconds=each), sockets=("/x/*",))
                for each in seconds
            )
        )

    fleet = Fleet(config(5.0, 20.0))
    assert fleet.longest_seconds == 20.0
    fleet.reconfigure(config(5.0))

    assert fleet.longest_seconds == 5.0


async def test_text_is_rendered_only_for_those_who_ask_for_it(start: Start, fleet: Fleet) -> None:
    """A page of the API, and an action that looks at other VMs, cost no line of text."""
    await start("a")
    await start("b")
    state = await fleet.scrape(PATIENCE)
    assert reasons(state) == {"a": None, "b": None}
    assert not any(collected.rendered for collected in state)
    text = await fleet.scrape(PATIENCE, text=True)

    assert text == state
    assert all(collected.rendered for collected in text)


async def test_each_vm_of_a_scrape_is_rendered_as_its_answers_come(
    start: Start, fleet: Fleet
) -> None:
    """And not when the last of them has answered: then all would be rendered at once."""
    await start("quick")
    slow = await start("slow")
    slow.answering.clear()
    scrape = asyncio.create_task(fleet.scrape(PATIENCE, text=True))
    await until(lambda: slow.received and fleet._sweep and fleet._sweep._done)
    assert fleet._sweep is not None
    [(_, member, collected)] = fleet._sweep._done
    assert (member.name, collected.rendered) == ("quick", True)
    slow.answering.set()

    assert reasons(await scrape) == {"quick": None, "slow": None}


async def test_a_vm_whose_numbers_cannot_be_rendered_is_down_in_text(
    start: Start, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """It alone: no QEMU has a number of more than 64 bits."""
    await start("good")
    liar = await start("liar")
    liar.replies["query-block-jobs"] = {"return": [block_job("j", offset=1 << 64)]}
    collected = await fleet.scrape(PATIENCE, text=True)

    assert reasons(collected) == {"good": None, "liar": "protocol"}
    [record] = [record for record in caplog.records if record.message == "vm is down"]
    assert record.__dict__["vm"] == "liar"
