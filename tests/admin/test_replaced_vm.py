"""Another process takes the path of a living VM's socket over: nothing of the first passes for the second.

Both are of this process here: nothing but the file of the socket tells them apart.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exporter.admin.lease import lease
from exporter.collect.scrape_target import Collected
from exporter.errors import OutcomeUnknown, Refused, TargetError
from exporter.expose.families import join
from exporter.model.state import VmState
from exporter.qmp.queries import BLOCKSTATS, STATUS
from tests.admin.test_lease import COMMAND, SPEED
from tests.conftest import series
from tests.disks import Disk, block_job, graph, plug, start
from tests.fakeqmp import FakeQmp, dying, until
from tests.reach import USER, Reach, commit, refused, run

TAKEN_OVER = "another process has taken the path of the socket over"


@dataclass
class Pair:
    """A VM, and one that will take its path over."""

    first: FakeQmp
    second: FakeQmp

    def take_over(self, *_: object) -> None:
        """Have the path lead to the second; the first keeps what is connected to it."""
        if os.path.exists(self.second.path):
            os.rename(self.second.path, self.first.path)


@pytest.fixture
async def pair(sockets: Path) -> AsyncIterator[Pair]:
    """Two VMs, whose disks have other layers."""
    async with (
        FakeQmp(str(sockets / "vm.sock")) as first,
        FakeQmp(str(sockets / "next")) as second,
    ):
        for server, name in ((first, "one"), (second, "two")):
            run(server, 7, 2, disk=Disk(nodes=(f"{name}-top", f"{name}-base")))
            server.replies["query-name"] = {"return": {"name": name}}
            server.replies[SPEED] = {"return": {}}
        yield Pair(first, second)


@pytest.fixture(params=["persistent", "per-scrape"])
async def fleet(
    request: pytest.FixtureRequest, sockets: Path, tmp_path: Path
) -> AsyncIterator[Reach]:
    """The fleet of the folder."""
    made = Reach(sockets, tmp_path / "state", connection=request.param, timeout_seconds=20.0)
    yield made
    await made.close()


@pytest.fixture
async def persistent(sockets: Path, tmp_path: Path) -> AsyncIterator[Reach]:
    """The same, with connections that stay."""
    made = Reach(sockets, tmp_path / "state", timeout_seconds=20.0)
    yield made
    await made.close()


async def seen(fleet: Reach) -> VmState:
    """Scrape the VM."""
    return (await fleet.look()).snapshot


def layers(snapshot: VmState) -> list[str]:
    """Return the nodes of the disk."""
    return [
        node.node_name
        for device in snapshot.devices
        for node in device.nodes
        if node.role == "format"
    ]


def is_second(snapshot: VmState) -> bool:
    """Whether all that is told is of the second VM."""
    return snapshot.up and snapshot.name == "two" and layers(snapshot) == ["two-top", "two-base"]


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the lines that say that the path was taken over."""
    return [record for record in caplog.records if record.message == TAKEN_OVER]


async def test_the_next_scrape_sees_the_one_that_the_path_leads_to(
    pair: Pair, fleet: Reach, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is alive, and is asked nothing more."""
    caplog.set_level(logging.INFO)
    assert (await seen(fleet)).name == "one"
    asked = len(pair.first.received)
    pair.take_over()

    assert is_second(await seen(fleet))
    assert is_second(await seen(fleet))
    assert len(pair.first.received) == asked
    assert len(told(caplog)) == 1
    await until(lambda: not pair.first.serves)


async def test_who_lost_a_path_while_connected_is_a_warning(
    pair: Pair, persistent: Reach, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs on, out of sight: its process is named."""
    await seen(persistent)
    pair.take_over()
    await seen(persistent)
    [record] = told(caplog)

    assert record.levelno == logging.WARNING
    assert record.__dict__["pid_before"] == os.getpid()
    assert record.__dict__["vm"] == "vm"


async def test_a_vm_that_hangs_does_not_hide_the_one_after_it(
    pair: Pair, persistent: Reach
) -> None:
    """It owes an answer; the other one owes none."""
    await seen(persistent)
    pair.first.answering.clear()
    with pytest.raises(TargetError):
        await persistent.member()._vm._session.ask(STATUS, BLOCKSTATS, timeout_seconds=0.01)
    pair.take_over()

    assert is_second(await seen(persistent))


async def test_a_look_that_hangs_does_not_hide_the_one_after_it(
    pair: Pair, persistent: Reach
) -> None:
    """A scrape waits for a look to end, but not for that of another VM."""
    member = persistent.member()
    await seen(persistent)
    pair.first.answering.clear()
    place = graph("merge", "disk0", ("one-top", "one-base"))
    start(pair.first, block_job("merge", ready=True, status="ready"), place)
    ready = {"type": "commit", "device": "merge", "len": 1, "offset": 1, "speed": 0}
    await pair.first.event("BLOCK_JOB_READY", **ready)
    await until(lambda: member._vm._session.owes_answers)
    pair.take_over()

    assert is_second(await seen(persistent))


async def test_a_vm_that_has_not_greeted_does_not_hide_the_one_after_it(
    pair: Pair, persistent: Reach
) -> None:
    """A connection waits for its greeting, which is of no use any more."""
    pair.first.greeting = None
    member = persistent.member()
    assert (await member._vm.collect(0.05)).reason == "greeting_timeout"
    pair.take_over()

    assert is_second(await seen(persistent))


@pytest.mark.parametrize(
    "command", ["query-status", "query-block-jobs", "query-name", "query-block", "query-jobs"]
)
async def test_answers_of_the_first_are_dropped_when_the_path_has_changed_meanwhile(
    pair: Pair, fleet: Reach, command: str
) -> None:
    """Whichever answer it was that came too late, also one that a VM is up without."""
    usual = pair.first.replies[command]

    def take_over(arguments: Mapping[str, Any]) -> Any:
        pair.take_over()
        return usual(arguments) if callable(usual) else usual

    pair.first.replies[command] = take_over

    assert is_second(await seen(fleet))


async def test_a_vm_that_dies_in_a_scrape_is_followed_to_its_heir(pair: Pair, fleet: Reach) -> None:
    """The path leads to one that answers."""
    pair.first.replies["query-blockstats"] = dying(pair.first, first=pair.take_over)

    assert is_second(await seen(fleet))


async def test_a_path_that_is_taken_over_again_and_again_is_down(
    sockets: Path, persistent: Reach
) -> None:
    """A scrape does not follow for ever."""
    async with FakeQmp(str(sockets / "vm.sock")) as server:
        plug(server, Disk())
        usual = server.replies["query-blockstats"]
        servers: list[asyncio.Server] = []

        def again(_: Mapping[str, Any]) -> Any:
            # The same path, another file, the same server behind it.
            os.link(server.path, sockets / f"held-{len(servers)}")
            os.rename(sockets / f"next-{len(servers)}", server.path)
            servers.append(waiting.pop(0))
            return usual

        waiting = [
            await asyncio.start_unix_server(server._client, str(sockets / f"next-{number}"))
            for number in range(5)
        ]
        server.replies["query-blockstats"] = again
        server._serving = asyncio.Semaphore(9)  # type: ignore[assignment]
        snapshot = await seen(persistent)
        for each in (*servers, *waiting):
            each.close()

    assert (snapshot.up, snapshot.reason) == (False, "no_socket")
    assert len(servers) == 3


async def test_events_of_the_first_do_not_count_once_the_path_leads_elsewhere(
    pair: Pair, persistent: Reach
) -> None:
    """They would be the second one's I/O errors."""
    error = {"device": "disk0", "operation": "write", "action": "report"}
    await seen(persistent)
    await pair.first.event("BLOCK_IO_ERROR", **error)
    events = persistent.member()._vm._memory.events
    await until(lambda: events.changed)
    pair.take_over()
    await pair.first.event("BLOCK_IO_ERROR", **error)
    await pair.first.event("BLOCK_IO_ERROR", **error)
    await asyncio.sleep(0.05)
    lines = text(await persistent.look())

    assert list(series(lines, "qemu_vm_events_total", event="BLOCK_IO_ERROR").values()) == ["1"]


def text(collected: Collected) -> str:
    """The lines of a VM."""
    return join([collected.blobs], openmetrics=False).decode()


async def test_a_job_of_the_first_is_not_one_of_the_second(pair: Pair, fleet: Reach) -> None:
    """It has the same id, type and disk, and its own time of being seen first; the other is lost."""
    for server, nodes in (
        (pair.first, ("one-top", "one-base")),
        (pair.second, ("two-top", "two-base")),
    ):
        start(server, block_job("merge", offset=50), graph("merge", "disk0", nodes))
    [before] = (await seen(fleet)).jobs
    pair.take_over()
    collected = await fleet.look()
    [after] = collected.snapshot.jobs
    lines = text(collected)

    assert after.first_seen_timestamp_seconds != before.first_seen_timestamp_seconds
    assert list(series(lines, "qemu_block_jobs_vanished_total").values()) == ["1"]


async def test_a_job_of_the_first_says_nothing_of_the_disks_of_the_second(
    pair: Pair, fleet: Reach
) -> None:
    """Its end is not read from chains that it never worked on."""
    start(
        pair.first,
        block_job("merge", ready=True, status="ready"),
        graph("merge", "disk0", ("one-top", "one-base")),
    )
    await seen(fleet)
    plug(pair.second, Disk(nodes=("one-base",)))  # as if the pivot had been made
    pair.take_over()
    lines = text(await fleet.look())

    assert list(series(lines, "qemu_block_jobs_completed_total").values()) == ["0"]
    assert list(series(lines, "qemu_block_jobs_vanished_total").values()) == ["1"]


async def test_what_is_told_of_the_storage_of_the_first_is_not_told_of_the_second(
    pair: Pair, persistent: Reach
) -> None:
    """Until it is known."""
    assert (await seen(persistent)).storage_responding is True
    pair.take_over()
    del pair.second.replies["query-block"]

    assert (await seen(persistent)).storage_responding is None


async def test_a_scrape_does_not_join_a_sweep_that_saw_the_first(pair: Pair, fleet: Reach) -> None:
    """However young that is."""
    [before] = await fleet.fleet.scrape(20.0)
    pair.take_over()
    [after] = await fleet.fleet.scrape(20.0)
    [same] = await fleet.fleet.scrape(20.0)

    assert before.snapshot.name == "one"
    assert is_second(after.snapshot)
    assert same is after


async def test_a_scrape_does_not_join_a_sweep_that_saw_the_first_though_a_probe_saw_the_second(
    pair: Pair, fleet: Reach
) -> None:
    """The session is with the second by then, and the sweep is as young as before."""
    await fleet.fleet.scrape(20.0)
    pair.take_over()
    assert is_second(await seen(fleet))
    [after] = await fleet.fleet.scrape(20.0)

    assert is_second(after.snapshot)


async def test_a_named_target_whose_file_is_gone_stays_up(pair: Pair, persistent: Reach) -> None:
    """A path that leads nowhere leads to no other VM."""
    persistent.rename("vm", pair.first.path)
    await seen(persistent)
    os.unlink(pair.first.path)

    assert (await seen(persistent)).name == "one"
    assert pair.first.connections == 1


async def test_a_link_that_leads_elsewhere_is_another_vm(
    pair: Pair, sockets: Path, fleet: Reach
) -> None:
    """The path is the same, and so is each file."""
    link = sockets / "link"
    link.symlink_to(pair.first.path)
    fleet.rename("vm", str(link))
    assert (await seen(fleet)).name == "one"
    link.unlink()
    link.symlink_to(pair.second.path)

    assert is_second(await seen(fleet))


# Actions.


async def test_an_action_that_finds_another_vm_is_refused_and_then_meets_it(
    pair: Pair, fleet: Reach
) -> None:
    """Nothing is sent to either, until it is asked for again."""
    await seen(fleet)
    pair.take_over()
    problem, detail = await refused(fleet.commit())

    assert (problem, detail) == (
        "another-vm",
        "vm: another process has taken the path of its socket over",
    )
    assert pair.first.changes == pair.second.changes == []
    assert (await fleet.commit()).job is not None
    assert [name for name, _ in pair.second.changes] == ["block-commit"]
    assert pair.first.changes == []


async def test_a_vm_that_was_busy_before_is_no_other_vm(pair: Pair, fleet: Reach) -> None:
    """Which process it is was not known as long as nobody could connect to it."""
    reader, writer = await asyncio.open_unix_connection(pair.first.path)
    await reader.readline()
    assert (await fleet.member()._vm.collect(0.2)).reason == "busy"
    writer.close()
    await until(lambda: not pair.first.serves)
    await fleet.commit()

    assert [name for name, _ in pair.first.changes] == ["block-commit"]


async def test_an_action_after_a_scrape_goes_to_the_one_that_was_seen(
    pair: Pair, fleet: Reach
) -> None:
    """It was shown."""
    await seen(fleet)
    pair.take_over()
    await seen(fleet)
    await fleet.commit()

    assert [name for name, _ in pair.second.changes] == ["block-commit"]
    assert pair.first.changes == []


@pytest.mark.parametrize("command", ["query-block", "query-migrate", "query-commands"])
async def test_a_path_that_changes_while_an_action_looks_refuses_it(
    pair: Pair, fleet: Reach, command: str
) -> None:
    """Whatever was checked was checked at the first."""
    await seen(fleet)
    usual = pair.first.replies.get(command, {"return": {}})

    def take_over(arguments: Mapping[str, Any]) -> Any:
        pair.take_over()
        return usual(arguments) if callable(usual) else usual

    pair.first.replies[command] = take_over
    problem, _ = await refused(fleet.commit())

    assert problem == "another-vm"
    assert pair.first.changes == pair.second.changes == []


async def test_a_vm_whose_socket_is_removed_is_not_changed(pair: Pair, persistent: Reach) -> None:
    """It is seen through the session that is open; what a dry run says is true."""
    persistent.rename("vm", pair.first.path)
    await seen(persistent)
    os.unlink(pair.first.path)
    for dry_run in (True, False):
        problem, detail = await refused(
            persistent.actions.commit(USER, "vm", commit(), dry_run=dry_run)
        )
        assert problem == "another-vm"
        assert detail == "vm: its socket was removed: the path may lead to any other VM next"
    assert (await seen(persistent)).up
    assert pair.first.changes == []


@pytest.mark.parametrize("how", ["taken over", "removed"])
async def test_a_command_does_not_leave_when_the_path_has_changed_at_the_last_moment(
    pair: Pair, fleet: Reach, how: str
) -> None:
    """After all guards; what is removed will be whatever binds it next."""
    member = fleet.member()
    async with lease(member, fleet.timing) as mine:
        await mine.look(allow_managed=False)
        if how == "removed":
            os.unlink(pair.first.path)
        else:
            pair.take_over()
        with pytest.raises(Refused) as caught:
            await mine.send(COMMAND)

    assert caught.value.problem == "another-vm"
    assert pair.first.changes == pair.second.changes == []


@pytest.mark.parametrize("between", ["at once", "after a gap"])
async def test_what_a_lost_command_did_is_not_looked_up_at_another_vm(
    pair: Pair, fleet: Reach, between: str
) -> None:
    """It may well look as if it had been done."""
    fleet.timing.lookup_pause_seconds, fleet.timing.lookup_seconds = 0.05, 0.5
    loop = asyncio.get_running_loop()

    def leave() -> None:
        if between == "at once":
            pair.take_over()
        else:
            os.unlink(pair.first.path)
            loop.call_later(0.1, pair.take_over)

    pair.first.replies[SPEED] = dying(pair.first, first=leave)
    async with lease(fleet.member(), fleet.timing) as mine:
        await mine.look(allow_managed=False)
        with pytest.raises(OutcomeUnknown):
            await mine.send(COMMAND, lambda snapshot: snapshot.name == "two")

    assert pair.second.changes == []


async def test_what_is_said_after_an_action_is_not_said_of_another_vm(
    pair: Pair, fleet: Reach
) -> None:
    """It was done; the job that the other one has with this id is not that of the request."""
    usual: Callable[..., Any] = pair.first.replies["block-commit"]  # type: ignore[assignment]

    def commit_and_lose(arguments: Mapping[str, Any]) -> Any:
        answer = usual(arguments)
        pair.take_over()
        return answer

    start(pair.second, block_job("qbe-1"), graph("qbe-1", "disk0", ("two-top", "two-base")))
    pair.first.replies["block-commit"] = commit_and_lose
    done = await fleet.commit()

    assert (done.dry_run, done.job) == (False, None)
    assert pair.second.received == []
