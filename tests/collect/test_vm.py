"""One VM from scrape to scrape: what is asked, what is kept, and how it goes down and comes back."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter.collect.discovery import Target
from exporter.collect.vm import Vm
from exporter.config.settings import Settings
from exporter.errors import ProtocolError
from exporter.expose.families import join
from exporter.expose.plan import Plan
from exporter.model import build
from exporter.model.chain import walk
from exporter.model.state import VmState
from exporter.qmp import queries
from exporter.qmp.client import CommandStats
from exporter.qmp.limits import SessionLimits
from exporter.storage.file_stat import FileStat
from exporter.storage.prober import Storage
from tests.conftest import series
from tests.disks import Disk, block_job, graph, plug, start, with_filter
from tests.fakeqmp import GREETING, FakeQmp, Reply, dying, speak, until

SECRET = "SECRETPW"
BAD_REPLIES: list[Reply] = [
    {"error": {"class": "GenericError", "desc": SECRET}},
    {"return": SECRET},
]
SAFE_SET = ["query-status", "query-blockstats", "query-block-jobs"]


@pytest.fixture
async def fake(sockets: Path) -> AsyncIterator[FakeQmp]:
    """A VM with a disk on two layers."""
    async with FakeQmp(str(sockets / "vm.sock")) as server:
        plug(server, Disk())
        yield server


Make = Callable[..., Vm]


@pytest.fixture
async def make(sockets: Path) -> AsyncIterator[Make]:
    """Makes the collector of the VM, with settings."""
    made = []
    storage = Storage(lambda path: FileStat(visible=True))

    def vm(
        *, limits: SessionLimits | None = None, looks_limit: int = 100, **settings: Any
    ) -> Vm:
        target = Target(
            vm="vm",
            socket=str(sockets / "vm.sock"),
            group="g",
            settings=Settings(**settings),
        )
        made.append(Vm(target, CommandStats(), storage, limits=limits, looks_limit=looks_limit))
        return made[-1]

    yield vm
    for each in made:
        await each.close()


async def collect(vm: Vm) -> VmState:
    """Scrape once, with patience."""
    return await vm.collect(20.0)


def text(snapshot: VmState) -> str:
    """The lines of a snapshot."""
    return join([Plan().render(snapshot)], openmetrics=False).decode()


def has_asked_again(fake: FakeQmp, looks: int) -> bool:
    """Whether the VM was asked for its jobs more than so many times."""
    return fake.commands.count("query-block-jobs") > looks


def job_event(job_id: str, status: str) -> dict[str, object]:
    """JOB_STATUS_CHANGE."""
    return {"event": "JOB_STATUS_CHANGE", "data": {"id": job_id, "status": status}}


# What is asked.


async def test_a_scrape_asks_the_safe_set_and_nothing_else(fake: FakeQmp, make: Make) -> None:
    """What QEMU is asked once is not asked again."""
    vm = make()
    await collect(vm)
    first = fake.commands.copy()
    fake.received.clear()
    await collect(vm)

    once = ["query-name", "query-uuid", "query-jobs", "query-block-exports", "query-block"]
    assert first == [*SAFE_SET, *once]
    assert fake.commands == SAFE_SET


async def test_what_a_qemu_can_do_is_asked_once_and_whether_it_is_migrated_each_time(
    fake: FakeQmp, make: Make
) -> None:
    """The one is so until it ends, the other may begin at any moment; neither is of a scrape."""
    vm = make()
    await collect(vm)
    speak(fake, 7, 2)
    fake.received.clear()
    told = []
    for reply in ({}, {"status": "active", "ram": {}}, {"status": "cancelled"}):
        fake.replies["query-migrate"] = {"return": reply}
        told.append(await vm.qemu(20.0))

    assert fake.commands == ["query-migrate", "query-commands", "query-migrate", "query-migrate"]
    assert [qemu.migration for qemu in told] == ["", "active", "cancelled"]
    assert [qemu.version for qemu in told] == [(7, 2, 0)] * 3
    assert all("block-commit" in qemu.commands for qemu in told)


async def test_what_a_qemu_can_do_is_asked_anew_of_the_next_one(fake: FakeQmp, make: Make) -> None:
    """Who answers after a connection was lost may be another."""
    vm = make()
    await collect(vm)
    speak(fake, 7, 2)
    before = await vm.qemu(20.0)
    fake.hang_up()
    speak(fake, 2, 0)
    await until(lambda: not fake.serves)
    while not (await collect(vm)).up:
        pass
    after = await vm.qemu(20.0)

    assert ("job-pause" in before.commands, "job-pause" in after.commands) == (True, False)
    assert (before.version, after.version) == ((7, 2, 0), (2, 0, 0))


async def test_a_vm_that_cannot_be_migrated_is_not_being_migrated(
    fake: FakeQmp, make: Make
) -> None:
    """The storage daemon has no such command."""
    vm = make()
    await collect(vm)
    speak(fake, 7, 2)

    assert "query-migrate" not in fake.replies
    assert (await vm.qemu(20.0)).migration == ""


@pytest.mark.parametrize(
    ("version", "migration", "late", "ran", "expected"),
    [
        ((7, 2), "completed", True, "", True),
        ((7, 2), "completed", True, "running", False),
        ((7, 2), "completed", True, "resumed", False),
        ((7, 2), "completed", False, "", False),
        ((7, 2), "cancelled", True, "", False),
        ((10, 0), "completed", True, "", False),
    ],
)
async def test_disks_that_came_by_a_migration_may_be_inactive_until_the_vm_runs(
    fake: FakeQmp, make: Make, version: Sequence[int], migration: str, late: bool, ran: str,
    expected: bool,
) -> None:  # fmt: skip
    """Where late-block-activate is on, and QEMU does not say which disks are active."""
    speak(fake, *version)
    paused = {"return": {"running": False, "status": "paused"}}
    running = {"return": {"running": True, "status": "running"}}
    fake.replies["query-status"] = running if ran == "running" else paused
    fake.replies["query-migrate"] = {"return": {"status": migration}}
    capability = {"capability": "late-block-activate", "state": late}
    fake.replies["query-migrate-capabilities"] = {"return": [capability]}
    vm = make()
    await collect(vm)
    fake.replies["query-status"] = paused
    if ran == "resumed":
        await fake.send({"event": "RESUME", "data": {}})
    await collect(vm)

    assert (await vm.qemu(20.0)).may_be_inactive is expected


async def test_the_safe_set_is_asked_in_one_write(fake: FakeQmp, make: Make) -> None:
    """While one answer is held back, the other queries have arrived already."""
    vm = make()
    await collect(vm)
    fake.received.clear()
    fake.replies["query-status"] = b""
    snapshot = await vm.collect(0.1)

    assert snapshot.reason == "timeout"
    assert fake.commands == SAFE_SET


async def test_name_and_uuid_are_asked_once_a_connection(fake: FakeQmp, make: Make) -> None:
    """Another QEMU may have others."""
    vm = make()
    await collect(vm)
    fake.hang_up()
    await until(lambda: not vm._session.connected)
    fake.replies["query-name"] = {"return": {"name": "other"}}
    snapshots = [await collect(vm), await collect(vm)]

    assert [snapshot.name for snapshot in snapshots] == ["other", "other"]
    assert fake.commands.count("query-name") == fake.commands.count("query-uuid") == 2


async def test_a_per_scrape_connection_is_left_after_each_scrape(fake: FakeQmp, make: Make) -> None:
    """Another tool wants the socket."""
    vm = make(connection="per-scrape")
    for _ in range(2):
        assert (await collect(vm)).up
        await until(lambda: not fake.serves)

    assert fake.connections == 2
    assert fake.commands.count("query-name") == 2


async def test_a_persistent_connection_is_kept(fake: FakeQmp, make: Make) -> None:
    """Events come only to who is there."""
    vm = make()
    for _ in range(3):
        assert (await collect(vm)).up

    assert (fake.connections, fake.serves) == (1, True)


async def test_nodes_are_asked_for_with_the_collector(fake: FakeQmp, make: Make) -> None:
    """They cost QEMU half a query-blockstats more."""
    vm = make(nodes=True)
    for _ in range(2):
        await collect(vm)

    assert fake.received.count(("query-blockstats", {"query-nodes": True})) == 2


async def test_nodes_are_asked_for_where_there_is_no_device(fake: FakeQmp, make: Make) -> None:
    """The storage daemon has nothing else to show; it has no query-status either."""
    free = {"node-name": "export0", "stats": {}}

    def blockstats(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"return": [free] if arguments.get("query-nodes") else []}

    fake.replies["query-blockstats"] = blockstats
    for unknown in ("query-status", "query-name", "query-uuid"):
        del fake.replies[unknown]
    vm = make()
    await collect(vm)
    fake.received.clear()
    snapshot = await collect(vm)

    assert [node.node_name for node in snapshot.free_nodes] == ["export0"]
    assert (snapshot.up, snapshot.running, snapshot.status) == (True, None, None)
    assert fake.commands == ["query-blockstats", "query-block-jobs", "query-blockstats"]


async def test_a_command_that_qemu_does_not_know_is_asked_once_a_connection(
    fake: FakeQmp, make: Make
) -> None:
    """Each refusal costs QEMU time and tells nothing new."""
    del fake.replies["query-status"]
    vm = make()
    for _ in range(3):
        assert (await collect(vm)).up

    assert fake.commands.count("query-status") == 1


@pytest.mark.parametrize(
    "command",
    ["query-status", "query-block-jobs", "query-name", "query-uuid", "query-jobs", "query-block"],
)
async def test_a_command_that_qemu_does_not_know_costs_its_own_series(
    fake: FakeQmp, make: Make, command: str
) -> None:
    """The device is shown all the same, in each scrape."""
    del fake.replies[command]
    vm = make()
    for _ in range(2):
        snapshot = await collect(vm)
        assert (snapshot.up, [device.device for device in snapshot.devices]) == (True, ["disk0"])


@pytest.mark.parametrize(
    "command",
    ["query-name", "query-uuid", "query-jobs", "query-block"],
)
@pytest.mark.parametrize("reply", BAD_REPLIES, ids=["refused", "wrong type"])
async def test_a_refusal_of_what_is_not_in_the_safe_set_costs_its_own_series(
    fake: FakeQmp, make: Make, command: str, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    """The VM is up with its counters; the log names the command once, never what the VM said."""
    fake.replies[command] = reply
    vm = make()
    for _ in range(2):
        snapshot = await collect(vm)
        assert (snapshot.up, [device.device for device in snapshot.devices]) == (True, ["disk0"])

    told = [r for r in caplog.records if command in str(r.__dict__.get("err", ""))]
    assert len(told) == 1
    assert SECRET not in str([record.__dict__ for record in caplog.records])


@pytest.mark.parametrize("command", SAFE_SET)
@pytest.mark.parametrize("reply", BAD_REPLIES, ids=["refused", "wrong type"])
async def test_any_other_refusal_costs_the_vm_this_scrape(
    fake: FakeQmp, make: Make, command: str, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    """It is down for `protocol`; the log names the command, never what the VM said."""
    good = fake.replies[command]
    fake.replies[command] = reply
    vm = make()
    snapshot = await collect(vm)
    fake.replies[command] = good

    assert (snapshot.up, snapshot.reason) == (False, "protocol")
    assert command in caplog.records[-1].__dict__["err"]
    assert SECRET not in str([record.__dict__ for record in caplog.records])
    assert (await collect(vm)).up
    assert fake.connections == 1


# Down and back.


async def test_a_vm_that_is_down_has_a_reason_and_no_block_series(
    fake: FakeQmp, make: Make
) -> None:
    """Never zeros, never old values; its last-seen time stays."""
    vm = make()
    seen = await collect(vm)
    fake.answering.clear()
    lines = text(await vm.collect(0.05))

    assert series(lines, "qemu_vm_up") == {'qemu_vm_up{vm="vm"}': "0"}
    assert series(lines, "qemu_vm_scrape_error", reason="timeout", vm="vm")
    assert series(lines, "qemu_vm_last_seen_timestamp_seconds") == {
        'qemu_vm_last_seen_timestamp_seconds{vm="vm"}': repr(seen.last_seen_timestamp_seconds)
    }
    assert "qemu_block" not in lines
    assert "qemu_vm_info" not in lines


async def test_a_vm_that_was_never_seen_has_no_last_seen_time(make: Make) -> None:
    """There is none."""
    lines = text(await collect(make()))

    assert series(lines, "qemu_vm_scrape_error", reason="no_socket")
    assert not series(lines, "qemu_vm_last_seen_timestamp_seconds")


async def test_a_vm_that_timed_out_is_back_within_one_scrape_of_answering(
    fake: FakeQmp, make: Make
) -> None:
    """Nothing is sent while answers are owed; then the scrape is complete again."""
    vm = make()
    healthy = await collect(vm)
    fake.received.clear()
    fake.answering.clear()
    assert (await vm.collect(0.05)).reason == "timeout"
    for _ in range(3):
        assert (await collect(vm)).reason == "timeout"
    fake.answering.set()
    await until(lambda: not vm._session.owes_answers)
    back = await collect(vm)

    assert back.up
    assert fake.commands == SAFE_SET * 2
    assert back.devices == healthy.devices
    assert fake.connections == 1


async def test_a_vm_that_restarted_is_up_in_the_first_scrape_after(
    fake: FakeQmp, make: Make
) -> None:
    """The old connection's end is found while asking; the new QEMU is asked at once."""
    vm = make()
    await collect(vm)
    fake.hang_up()

    assert (await collect(vm)).up
    assert fake.connections == 2


async def test_a_vm_that_hangs_up_on_every_connection_is_tried_once_a_scrape(
    fake: FakeQmp, make: Make
) -> None:
    """It is down for `protocol`, and not asked in a loop."""
    fake.replies["query-status"] = dying(fake)
    vm = make()
    reasons = [(await collect(vm)).reason for _ in range(3)]

    assert reasons == ["protocol"] * 3
    assert fake.connections == 3


async def test_a_vm_that_greets_late_is_up_in_the_next_scrape(fake: FakeQmp, make: Make) -> None:
    """A QEMU that opens its images greets when it is done; the one connection waits for it."""
    fake.greeting = None
    vm = make()
    assert (await vm.collect(0.05)).reason == "greeting_timeout"
    await fake.send(GREETING)
    await until(lambda: vm._session.connected)

    assert (await collect(vm)).up
    assert fake.connections == 1


async def test_a_vm_goes_down_and_up_again_with_one_log_line_each(
    fake: FakeQmp, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """A fleet that is down for a night does not fill the disk."""
    caplog.set_level(logging.INFO)
    vm = make()
    await collect(vm)
    good = fake.replies.pop("query-blockstats")
    fake.replies["query-blockstats"] = {"error": {"class": "GenericError", "desc": ""}}
    for _ in range(3):
        await collect(vm)
    fake.replies["query-blockstats"] = good
    for _ in range(2):
        await collect(vm)

    assert [record.message for record in caplog.records] == ["vm is up", "vm is down", "vm is up"]
    down = caplog.records[1].__dict__
    assert (down["vm"], down["reason"]) == ("vm", "protocol")


# Values.


async def test_large_and_negative_numbers_reach_the_exposition_exactly(
    fake: FakeQmp, make: Make
) -> None:
    """write_threshold is unsigned and arrives signed; floats would round the others."""
    entry, info = Disk().stats(), Disk().block()
    entry["stats"] = {"wr_highest_offset": 1152921504604815361, "rd_bytes": 9007199254740993}
    info["inserted"]["write_threshold"] = -1
    fake.replies["query-blockstats"] = {"return": [entry]}
    fake.replies["query-block"] = {"return": [info]}
    lines = text(await collect(make()))
    of = 'vm="vm",device="disk0"'

    assert f"qemu_block_read_bytes_total{{{of}}} 9007199254740993\n" in lines
    assert f"qemu_block_write_threshold_bytes{{{of}}} 18446744073709551615\n" in lines
    assert (
        f'qemu_block_node_write_highest_offset_bytes{{{of},layer="0",role="format",'
        'node_name="top"} 1152921504604815361\n' in lines
    )


async def test_400_layers_are_collected(fake: FakeQmp, make: Make) -> None:
    """All the way to the exposition."""
    nodes = tuple(f"n{number}" for number in range(400))
    plug(fake, Disk(nodes=nodes))
    snapshot = await collect(make())

    assert snapshot.reason is None
    assert snapshot.devices[0].backing_depth == 399
    info = series(text(snapshot), "qemu_block_node_info", role="format")
    assert len(info) == 400


async def test_100000_layers_are_an_error_of_this_vm(fake: FakeQmp, make: Make) -> None:
    """And of nothing else."""
    entry = b'{"stats":{},"node-name":"n"' + b',"backing":{"stats":{}' * 100_000
    fake.replies["query-blockstats"] = b'{"return": [' + entry + b"}" * 100_001 + b"]}\r\n"
    vm = make()
    assert (await collect(vm)).reason == "protocol"
    plug(fake, Disk())

    assert (await collect(vm)).up


async def test_two_devices_that_cannot_be_told_apart_are_a_protocol_error(
    fake: FakeQmp, make: Make
) -> None:
    """Two equal series would cost Prometheus the whole scrape."""
    plug(fake, Disk(), Disk(nodes=("other",)))

    assert (await collect(make())).reason == "protocol"


async def test_on_a_clash_of_names_the_drive_keeps_the_short_one(fake: FakeQmp, make: Make) -> None:
    """The other one takes its path; both have what query-block says of them."""
    drive = Disk("disk0", ("a",), "/machine/peripheral-anon/device[0]/virtio-backend")
    device = Disk("", ("b",), "/machine/peripheral/disk0/virtio-backend")
    plug(fake, drive, device)
    snapshot = await collect(make())

    assert {d.device: d.file for d in snapshot.devices} == {
        "disk0": "/images/a.qcow2",
        "peripheral/disk0": "/images/b.qcow2",
    }


# Jobs.


async def test_the_device_of_a_job_is_found_by_the_graph_and_asked_once(
    fake: FakeQmp, make: Make
) -> None:
    """Libvirt's job ids are no device's name."""
    plug(fake, Disk("", qdev="/machine/peripheral/vda/virtio-backend"))
    backend = "/machine/peripheral/vda/virtio-backend"
    start(fake, block_job("commit-1"), graph("commit-1", backend, ("top", "base")))
    vm = make()
    [first] = (await collect(vm)).jobs
    del fake.replies["x-debug-query-block-graph"]
    [second] = (await collect(vm)).jobs

    assert (first.device, first.top, first.base) == ("vda", "0", "1")
    assert second == first
    assert fake.commands.count("x-debug-query-block-graph") == 1


async def test_a_scrape_without_jobs_asks_no_graph(fake: FakeQmp, make: Make) -> None:
    """It is a debug command."""
    await collect(make())

    assert "x-debug-query-block-graph" not in fake.commands


@pytest.mark.parametrize(("job_id", "device"), [("disk0", "disk0"), ("commit-1", "")])
async def test_without_the_graph_a_job_is_of_the_device_whose_name_it_has(
    fake: FakeQmp, make: Make, job_id: str, device: str
) -> None:
    """QEMU before 4.0 has no graph; a job of another name is of no known device."""
    start(fake, block_job(job_id))
    [job] = (await collect(make())).jobs

    assert (job.device, job.job_id, job.job_type) == (device, job_id, "commit")


async def test_a_reused_job_id_is_looked_up_again(fake: FakeQmp, make: Make) -> None:
    """An event says that the job is a new one; it may be on another disk."""
    plug(fake, Disk("disk0", ("a", "a0")), Disk("disk1", ("b", "b0")))
    start(fake, block_job("j"), graph("j", "disk0", ("a", "a0")))
    vm = make()
    [first] = (await collect(vm)).jobs
    start(fake, block_job("j"), graph("j", "disk1", ("b", "b0")))
    [unchanged] = (await collect(vm)).jobs
    await fake.send(wire(job_event("j", "null"), job_event("j", "created")))
    await until(lambda: fake.commands.count("x-debug-query-block-graph") == 2)
    [second] = (await collect(vm)).jobs

    assert [first.device, unchanged.device, second.device] == ["disk0", "disk0", "disk1"]


async def test_a_job_that_is_gone_is_forgotten(fake: FakeQmp, make: Make) -> None:
    """The next one of its id is another job."""
    plug(fake, Disk("disk0", ("a", "a0")), Disk("disk1", ("b", "b0")))
    start(fake, block_job("j"), graph("j", "disk0", ("a", "a0")))
    vm = make()
    await collect(vm)
    fake.replies["query-block-jobs"] = {"return": []}
    assert (await collect(vm)).jobs == ()
    start(fake, block_job("j"), graph("j", "disk1", ("b", "b0")))
    [job] = (await collect(vm)).jobs

    assert job.device == "disk1"


async def test_two_jobs_of_one_id_are_a_protocol_error(fake: FakeQmp, make: Make) -> None:
    """QEMU never has them; two equal series would cost the whole scrape."""
    fake.replies["query-block-jobs"] = {"return": [block_job(), block_job()]}

    assert (await collect(make())).reason == "protocol"


def wire(*messages: object) -> bytes:
    """Messages as QEMU writes them."""
    return b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)


def other_job(job_id: str = "snap", **more: object) -> dict[str, object]:
    """A job of query-jobs that is no block job."""
    progress = {"current-progress": 1, "total-progress": 4}
    return {"id": job_id, "type": "snapshot-save", "status": "running", **progress, **more}


async def test_a_job_that_is_no_block_job_has_a_status_and_a_progress(
    fake: FakeQmp, make: Make
) -> None:
    """Only query-jobs has it; its numbers are no bytes."""
    fake.replies["query-jobs"] = {"return": [other_job()]}
    lines = text(await collect(make()))
    of = 'vm="vm",device="",job_id="snap",job_type="snapshot-save"'

    assert f"qemu_block_job_progress_ratio{{{of}}} 0.25\n" in lines
    assert f'qemu_block_job_status{{{of},status="running"}} 1\n' in lines
    assert not series(lines, "qemu_block_job_length_bytes")


async def test_a_job_without_a_length_has_no_progress(fake: FakeQmp, make: Make) -> None:
    """Nothing divided by nothing is not 0."""
    fake.replies["query-jobs"] = {"return": [{**other_job(), "total-progress": 0}]}
    [job] = (await collect(make())).jobs

    assert job.progress_ratio is None


async def test_block_jobs_are_not_shown_twice(fake: FakeQmp, make: Make) -> None:
    """query-jobs has them too; one that ended between the commands is not shown at all."""
    start(fake, block_job("disk0"))
    fake.replies["query-jobs"] = {
        "return": [other_job("disk0", type="commit"), other_job("gone", type="mirror"), other_job()]
    }
    snapshot = await collect(make())

    assert [job.job_id for job in snapshot.jobs] == ["disk0", "snap"]


async def test_other_jobs_are_asked_for_only_while_there_are_some(
    fake: FakeQmp, make: Make
) -> None:
    """On connect, while one is there, and when an event names one."""

    async def asks(vm: Vm) -> bool:
        fake.received.clear()
        await collect(vm)
        return "query-jobs" in fake.commands

    vm = make()
    assert [await asks(vm), await asks(vm)] == [True, False]
    await fake.send(job_event("snap", "created"))
    await until(lambda: vm.jobs.named)
    fake.replies["query-jobs"] = {"return": [other_job()]}
    assert [await asks(vm), await asks(vm)] == [True, True]
    fake.replies["query-jobs"] = {"return": []}
    assert [await asks(vm), await asks(vm)] == [True, False]


async def test_an_event_about_a_block_job_asks_for_no_other_jobs(fake: FakeQmp, make: Make) -> None:
    """query-block-jobs has it."""
    vm = make()
    await collect(vm)
    fake.received.clear()
    start(fake, block_job("disk0"))
    await fake.send(job_event("disk0", "created"))
    await until(lambda: "query-block-jobs" in fake.commands)
    await collect(vm)

    assert "query-jobs" not in fake.commands


async def test_a_job_that_an_event_named_is_asked_for_after_a_timeout_too(
    fake: FakeQmp, make: Make
) -> None:
    """snapshot-save stops QEMU's main loop: the scrape that should show it may well time out."""
    vm = make(looks_limit=0)
    await collect(vm)
    await fake.send(job_event("snap", "created"))
    await until(lambda: vm.jobs.named)
    fake.replies["query-jobs"] = b""
    snapshot = await vm.collect(0.1)
    assert (snapshot.up, snapshot.jobs) == (True, ())
    fake.replies["query-jobs"] = {"return": [other_job()]}
    await fake.send({"return": []})
    await until(lambda: not vm._session.owes_answers)
    snapshot = await collect(vm)

    assert [job.job_id for job in snapshot.jobs] == ["snap"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"7",
        b"[]",
        b"{}",
        b'{"id": 7, "status": "created"}',
        b'{"id": "\xff", "status": "created"}',
        b'{"id": "x", "status": "created", "y": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda data: repr(data[:50]),
)
def test_an_event_that_is_not_understood_is_logged_and_costs_nothing(
    make: Make, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """Without a word of what it said."""
    make()._on_event("JOB_STATUS_CHANGE", data)
    [record] = caplog.records

    assert (record.message, record.__dict__["event"]) == (
        "event not understood",
        "JOB_STATUS_CHANGE",
    )


# Jobs that ended, and events.


def outcomes(lines: str) -> dict[str, int]:
    """Result -> commits, of what is not 0."""
    return {
        result: int(each)
        for result in ("completed", "failed", "cancelled", "unverified", "vanished")
        for each in series(lines, f"qemu_block_jobs_{result}_total", job_type="commit").values()
        if int(each)
    }


async def commit(fake: FakeQmp, vm: Vm) -> None:
    """Have a commit that is ready, and seen."""
    start(fake, block_job(ready=True, status="ready"), graph("disk0", "disk0", ("top", "base")))
    assert series(text(await collect(vm)), "qemu_block_job_ready_timestamp_seconds")


async def test_a_commit_is_completed_when_the_chain_after_its_event_shows_it(
    fake: FakeQmp, make: Make
) -> None:
    """The counters are there from its first sight, and the device and time of its end after."""
    vm = make()
    await commit(fake, vm)
    assert len(series(text(await collect(vm)), "qemu_block_jobs_completed_total")) == 1
    fake.replies["query-block-jobs"] = {"return": []}
    plug(fake, Disk(nodes=("base",)))
    await fake.event("BLOCK_JOB_COMPLETED", device="disk0", type="commit", len=1, offset=1)
    await until(lambda: vm.jobs.outcomes.ends)
    lines = text(await collect(vm))

    assert outcomes(lines) == {"completed": 1}
    assert series(
        lines,
        "qemu_block_job_last_finished_timestamp_seconds",
        device="disk0",
        job_type="commit",
        result="completed",
    )
    assert not series(lines, "qemu_block_job_first_seen_timestamp_seconds")


async def test_counters_come_back_with_their_values(fake: FakeQmp, make: Make) -> None:
    """While a VM is down they are absent, like all of its block layer; then they go on."""
    vm = make()
    await commit(fake, vm)
    await fake.event("BLOCK_JOB_CANCELLED", device="disk0", type="commit", len=1, offset=1)
    await fake.event("BLOCK_IO_ERROR", device="disk0", operation="write", action="stop")
    await until(lambda: vm._memory.events.changed)
    fake.replies["query-block-jobs"] = {"return": []}
    before = text(await collect(vm))
    fake.answering.clear()
    down = text(await vm.collect(0.05))
    fake.answering.set()
    fake.hang_up()
    await until(lambda: not vm._session.connected)
    after = text(await collect(vm))

    assert outcomes(before) == outcomes(after) == {"cancelled": 1}
    assert not outcomes(down)
    for name in ("qemu_block_io_errors_total", "qemu_vm_events_total"):
        assert series(before, name) == series(after, name)
        assert series(before, name)
        assert not series(down, name)


async def test_without_events_a_commit_that_is_gone_is_no_success_whatever_its_chain(
    fake: FakeQmp, make: Make
) -> None:
    """It may have been cancelled, and another one completed."""
    vm = make(connection="per-scrape")
    await commit(fake, vm)
    await until(lambda: not fake.serves)
    fake.replies["query-block-jobs"] = {"return": []}
    plug(fake, Disk(nodes=("base",)))

    assert outcomes(text(await collect(vm))) == {}
    await until(lambda: not fake.serves)
    assert outcomes(text(await collect(vm))) == {"unverified": 1}


async def test_a_vm_without_jobs_and_events_has_no_line_of_them(fake: FakeQmp, make: Make) -> None:
    """Nor does a scrape make new records of what did not change."""
    vm = make()
    first = await collect(vm)
    await fake.event("STOP")
    await until(lambda: vm._memory.events.changed)
    second, third = await collect(vm), await collect(vm)

    assert not re.search("qemu_block_jobs?_|_events_", text(first))
    assert series(text(third), "qemu_vm_events_total") == {
        'qemu_vm_events_total{vm="vm",event="STOP"}': "1"
    }
    assert second.remembered is third.remembered


async def test_a_commit_that_is_ready_between_two_scrapes_is_looked_at_once(
    fake: FakeQmp, make: Make
) -> None:
    """Its top came after the one and is gone before the other: only then its end can be told."""
    vm = make()
    await collect(vm)
    plug(fake, Disk(nodes=("new", "top", "base")))
    job = block_job("j", ready=True, status="ready")
    start(fake, job, graph("j", "disk0", ("new", "top", "base")))
    fake.received.clear()
    ready = {"event": "BLOCK_JOB_READY", "data": {"device": "j", "type": "commit"}}
    ended = {"event": "BLOCK_JOB_COMPLETED", "data": {"device": "j", "type": "commit"}}
    await fake.send(wire(job_event("j", "created"), job_event("j", "ready"), ready, ready))
    await until(lambda: fake.commands)
    await until(lambda: not vm._watch.looking)
    assert fake.commands == ["x-debug-query-block-graph", "query-blockstats", "query-block-jobs"]
    start(fake, block_job("other", "stream"))
    plug(fake, Disk(nodes=("base",)))
    await fake.send(wire(ended, job_event("j", "concluded"), job_event("j", "null")))
    await until(lambda: vm.jobs.outcomes.ends)

    assert outcomes(text(await collect(vm))) == {"completed": 1}


async def test_a_commit_that_becomes_ready_right_behind_the_answers_of_a_look_is_looked_at_too(
    fake: FakeQmp, make: Make
) -> None:
    """Those were of before; a process that is busy reads both at once."""
    vm = make()
    await collect(vm)
    nodes = ("new", "top", "base")
    plug(fake, Disk(nodes=nodes))
    start(fake, block_job("j", ready=True, status="ready"), graph("j", "disk0", nodes))
    answer = fake.replies["x-debug-query-block-graph"]

    def becomes_ready(job_id: str) -> list[object]:
        data = {"device": job_id, "type": "commit"}
        of_job = [job_event(job_id, "created"), job_event(job_id, "ready")]
        return [*of_job, {"event": "BLOCK_JOB_READY", "data": data}]

    def another(_: object) -> bytes:
        start(fake, block_job("k", ready=True, status="ready"), graph("k", "disk0", nodes))
        return wire(answer, *becomes_ready("k"))

    fake.replies["x-debug-query-block-graph"] = another
    fake.received.clear()
    await fake.send(wire(*becomes_ready("j")))
    await until(lambda: fake.commands.count("x-debug-query-block-graph") == 2)
    await until(lambda: not vm._watch.looking)


async def test_looks_are_each_due_to_an_event_and_ask_nothing_that_is_unknown(
    fake: FakeQmp, make: Make
) -> None:
    """A QEMU without the graph is asked for it once, and a job that no query lists looked for once."""
    fake.replies.pop("x-debug-query-block-graph", None)
    vm = make()
    await collect(vm)
    fake.received.clear()
    for number in range(3):
        looks = fake.commands.count("query-block-jobs")
        data = {"device": f"j{number}", "type": "commit"}
        await fake.send(wire({"event": "BLOCK_JOB_READY", "data": data}))
        await until(partial(has_asked_again, fake, looks))
        await until(lambda: not vm._watch.looking)

    assert fake.commands.count("query-block-jobs") == 3
    assert fake.commands.count("x-debug-query-block-graph") == 1


async def test_there_are_only_so_many_looks_between_two_scrapes(
    fake: FakeQmp, make: Make
) -> None:
    """Whatever a VM sends; the next scrape asks anyway, and then there may be more."""
    vm = make(looks_limit=2)
    await collect(vm)

    async def looks(first: int) -> int:
        fake.received.clear()
        for number in range(first, first + 5):
            await fake.send(job_event(f"j{number}", "created"))
            await until(partial(vm.jobs._known.__contains__, f"j{number}"))
            await until(lambda: not vm._watch.looking)
        return fake.commands.count("query-block-jobs")

    assert await looks(0) == 2
    await collect(vm)
    assert await looks(5) == 2


async def test_a_scrape_waits_for_a_look(fake: FakeQmp, make: Make) -> None:
    """It is no reason to call the VM slow; the scrape sees the commit itself as well."""
    vm = make()
    await collect(vm)
    start(fake, block_job(ready=True, status="ready"), graph("disk0", "disk0", ("top", "base")))
    fake.answering.clear()
    await fake.event("BLOCK_JOB_READY", device="disk0", type="commit")
    await until(lambda: fake.commands[-1] == "x-debug-query-block-graph")
    asyncio.get_running_loop().call_later(0.1, fake.answering.set)
    snapshot = await collect(vm)

    assert (snapshot.up, [job.device for job in snapshot.jobs]) == (True, ["disk0"])
    assert fake.commands.count("x-debug-query-block-graph") == 1


# Throttle filters.


async def test_limits_of_a_throttle_filter_come_from_its_group(fake: FakeQmp, make: Make) -> None:
    """query-block does not tell them; the one qom-get that is ever sent does."""
    with_filter(fake, "tg0")
    fake.replies["qom-get"] = {"return": {"iops-total": 100, "bps-read-max": 0}}
    lines = text(await collect(make()))
    of = 'vm="vm",device="disk0",throttle_group="tg0"'

    assert f"qemu_block_throttle_total_operations_per_second{{{of}}} 100\n" in lines
    assert [a for name, a in fake.received if name == "qom-get"] == [
        {"path": "/objects/tg0", "property": "limits"}
    ]


@pytest.mark.parametrize("group", ["a/b", "../x", "", "0x", 'a"b', "a b"])
async def test_what_cannot_be_a_throttle_group_is_not_asked_for(
    fake: FakeQmp, make: Make, group: str
) -> None:
    """A name that QEMU shows must not choose which property is read."""
    with_filter(fake, group)
    snapshot = await collect(make())

    assert snapshot.up
    assert "qom-get" not in fake.commands


async def test_a_throttle_group_that_is_refused_costs_only_the_limits(
    fake: FakeQmp, make: Make
) -> None:
    """QEMU may have no such object any more."""
    with_filter(fake, "tg0")
    fake.replies["qom-get"] = {"error": {"class": "DeviceNotFound", "desc": ""}}
    snapshot = await collect(make())

    assert snapshot.up
    assert snapshot.devices[0].throttle is None


async def test_without_the_throttle_collector_no_limits_are_asked_for(
    fake: FakeQmp, make: Make
) -> None:
    """What is not shown is not asked."""
    with_filter(fake, "tg0")
    await collect(make(without=frozenset({"throttle"})))

    assert "qom-get" not in fake.commands


async def test_a_new_qemu_that_greets_between_scrapes_is_not_taken_for_the_old_one(
    fake: FakeQmp, make: Make
) -> None:
    """Its image may be another, though the nodes have the same names."""
    vm = make()
    before = await collect(vm)
    fake.greeting = None
    fake.hang_up()
    assert (await vm.collect(0.3)).reason == "greeting_timeout"
    old = fake.replies["query-block"]
    assert callable(old)
    fake.replies["query-block"] = lambda arguments: json.loads(
        json.dumps(old(arguments)).replace("/images/top", "/images/other")
    )
    await fake.send(GREETING)
    await until(lambda: vm._session.connected)
    after = await collect(vm)

    assert before.devices[0].file == "/images/top.qcow2"
    assert after.devices[0].file == "/images/other.qcow2"


async def test_a_shared_socket_is_left_as_soon_as_late_answers_are_there(
    fake: FakeQmp, make: Make
) -> None:
    """A VM that hangs is asked once, and costs the next scrapes nothing."""
    vm = make(connection="per-scrape")
    good = fake.replies["query-jobs"]
    fake.replies["query-jobs"] = b""
    for _ in range(3):
        assert (await vm.collect(2.0)).reason == "timeout"
    assert fake.commands.count("query-jobs") == 1
    fake.replies["query-jobs"] = good
    await fake.send({"return": []})
    await until(lambda: not fake.serves)

    assert (await collect(vm)).up


@pytest.mark.parametrize(
    "stats",
    [
        {"rd_bytes": 10**400},
        {"rd_bytes": -(10**30)},
        {"rd_total_time_ns": 10**400},
        {"rd_latency_histogram": {"boundaries": [1] * 2000, "bins": [1] * 2001}},
    ],
    ids=["huge", "negative", "time", "histogram"],
)
def test_numbers_that_no_qemu_sends_are_refused(stats: dict[str, object]) -> None:
    """Prometheus would drop the whole scrape for one of them."""
    wire = json.dumps({"return": [{"device": "disk0", "stats": stats}]})
    entries = queries.BLOCKSTATS.decoder.decode(wire).return_
    assert not isinstance(entries, msgspec.UnsetType)
    known = build.devices(entries, None, lambda device: 0)
    counters = build.count(known, entries, walk(entries))

    with pytest.raises(ProtocolError):
        Plan().render(VmState(vm="vm", up=True, devices=known.found, counters=counters))


async def test_events_that_go_on_and_on_are_no_flood(
    fake: FakeQmp, make: Make
) -> None:
    """A job that retries for ever: thousands a second, for as long as nobody scrapes."""
    vm = make(limits=SessionLimits(events=10, events_seconds=0.0))
    await collect(vm)
    for _ in range(100):
        await fake.event("BLOCK_JOB_ERROR", device="j", operation="write", action="ignore")
    await until(lambda: vm._memory.events._events["BLOCK_JOB_ERROR"] == 100)

    assert (await collect(vm)).up
    assert fake.connections == 1


async def test_a_flood_of_events_is_cut_off(
    fake: FakeQmp, make: Make
) -> None:
    """A VM that sends nothing but events would keep this process from all others."""
    vm = make(limits=SessionLimits(events=100))
    await collect(vm)
    for _ in range(100):
        await fake.event("STOP")
    assert (await collect(vm)).up
    assert fake.connections == 1
    for _ in range(101):
        await fake.event("STOP")
    await until(lambda: not fake.serves)

    assert (await collect(vm)).up
    assert fake.connections == 2


async def test_a_look_finds_the_disk_of_an_event_while_the_filter_is_there(
    fake: FakeQmp, make: Make
) -> None:
    """A backup that begins, meets an error of the guest and ends, all between two scrapes."""
    vm = make()
    qdev = "/machine/peripheral/vda/virtio-backend"
    disk = Disk("", ("top", "base"), qdev)
    plug(fake, disk)
    await collect(vm)
    below = disk.stats()
    root = {"stats": {}, "qdev": qdev, "device": "", "node-name": "#block9"}
    filtered = {**root, "parent": below, "backing": below}
    fake.replies["query-blockstats"] = {"return": [filtered]}
    fake.received.clear()
    about = {"device": "", "node-name": "#block9", "operation": "write", "action": "stop"}
    await fake.event("BLOCK_IO_ERROR", **about)
    await fake.event("JOB_STATUS_CHANGE", id="b", status="created")
    await fake.event("JOB_STATUS_CHANGE", id="b", status="running")
    await until(lambda: "query-blockstats" in fake.commands[-3:] and not vm._watch.looking)
    plug(fake, disk)
    found = series(text(await collect(vm)), "qemu_block_io_errors_total")

    assert {sample for sample, count in found.items() if count != "0"} == {
        'qemu_block_io_errors_total{vm="vm",device="vda",operation="write",action="stop"}'
    }
