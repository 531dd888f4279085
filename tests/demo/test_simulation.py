"""Simulated virtual machines: they speak QMP as QEMU does, and live through their scenario."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.collect.fleet import Fleet
from exporter.config.settings import Settings, load
from exporter.demo.scenarios import MIB, SCENARIOS, Scenario
from exporter.demo.simulated_vm import SimulatedVm
from exporter.demo.simulation import SimulatedMonitor, simulated_vms
from exporter.expose import exposition
from exporter.qmp import queries
from tests.conftest import series

RECORDED = Path(__file__).parent.parent / "recordings" / "7.2"
PATIENCE_SECONDS = 20.0

DRIVE = Scenario("drive", False, 4 * MIB, MIB, 3.0)
LIBVIRT = Scenario("libvirt", True, 4 * MIB, MIB, 3.0)
FORGOTTEN = Scenario("forgotten", False, 4 * MIB, MIB, None)
IN_A_MOMENT = Scenario("moment", False, MIB, 100 * MIB, 0.1)


def vm_of(scenario: Scenario) -> SimulatedVm:
    """Return a VM whose first commit has begun."""
    vm = SimulatedVm(scenario, Path("/srv/vms"))
    while not ask(vm, "query-block-jobs"):
        vm.advance(0.5)
    return vm


def ask(vm: SimulatedVm, command: str) -> Any:
    """Return what a query returns."""
    return vm.answer(command)["return"]


def recorded(command: str, step: str = "a09-commit-running") -> Any:
    """Return what QEMU 7.2 returned to a query."""
    return json.loads((RECORDED / step / f"{command}.json").read_text())["return"]


def fields(value: Any, path: str = "") -> Iterator[str]:
    """Yield every field with its type; the layers of a chain count as one."""
    if isinstance(value, dict):
        for name, child in value.items():
            below = path if path.endswith(f".{name}") else f"{path}.{name}"
            yield from fields(child, below)
    else:
        yield f"{path}: {type(value).__name__}"


def disk(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the entry of one disk."""
    return next(e for e in entries if name in (e["device"], *e.get("qdev", "").split("/")))


@pytest.mark.parametrize("command", ["query-blockstats", "query-block"])
@pytest.mark.parametrize(
    ("scenario", "ours", "theirs"),
    [(DRIVE, "disk0", "disk0"), (LIBVIRT, "virtio-disk0", "virtio-disk1")],
)
def test_a_simulated_disk_has_every_field_that_qemu_has(
    command: str, scenario: Scenario, ours: str, theirs: str
) -> None:
    """No more, no fewer, of the same types, at every depth of the chain."""
    vm = SimulatedVm(scenario, Path("/srv/vms"))
    vm.advance(0.5)
    simulated, real = ask(vm, command), recorded(command, "a07-writes-on-snapshot")

    assert set(fields(disk(simulated, ours))) == set(fields(disk(real, theirs)))


@pytest.mark.parametrize("command", ["query-block-jobs", "query-jobs"])
def test_a_simulated_commit_has_every_field_that_qemu_has(command: str) -> None:
    """No more, no fewer, of the same types."""
    (simulated,) = ask(vm_of(DRIVE), command)

    assert set(fields(simulated)) == set(fields(recorded(command)[0]))


@pytest.mark.parametrize("command", ["query-status", "query-name", "query-uuid"])
def test_a_simulated_vm_says_of_itself_what_qemu_says(command: str) -> None:
    """The small queries have QEMU's fields too."""
    simulated = ask(vm_of(DRIVE), command)

    assert set(fields(simulated)) == set(fields(recorded(command, "a02-running")))


def test_every_query_of_the_exporter_is_answered() -> None:
    """Each answer is one that the exporter's own decoder takes; qom-get is for throttle filters."""
    asked = [each for each in vars(queries).values() if isinstance(each, queries.Query)]
    vm = vm_of(LIBVIRT)
    for query in asked:
        query.decoder.decode(json.dumps(vm.answer(query.name)))

    answered = {query.name for query in asked if "return" in vm.answer(query.name)}
    assert queries.READ_COMMANDS - answered <= {"qom-get", "qmp_capabilities"}


def test_a_command_that_is_no_query_is_not_found() -> None:
    """In QEMU's own words."""
    assert vm_of(DRIVE).answer("block-commit") == {
        "error": {
            "class": "CommandNotFound",
            "desc": "The command block-commit has not been found",
        }
    }


@pytest.mark.parametrize("scenario", [DRIVE, LIBVIRT])
def test_a_round_goes_from_snapshot_to_commit_to_ready_to_pivot(scenario: Scenario) -> None:
    """The offset grows to the end, the job waits, and the disk is back on the layer below."""
    vm = SimulatedVm(scenario, Path("/srv/vms"))

    def root() -> str:
        return str(ask(vm, "query-block")[0]["inserted"]["node-name"])

    overlay = root()
    states: list[Any] = []
    offsets: list[Any] = []
    events: list[Any] = []
    while "COMPLETED" not in str(events):
        told: list[Any] = vm.advance(0.5)[0]
        events += [e["data"].get("status", e["event"]) for e in told]
        for job in ask(vm, "query-block-jobs"):
            states.append(job["status"])
            offsets.append(job["offset"])

    assert states == sorted(states, key=["running", "ready"].index)
    assert offsets == sorted(offsets)
    assert len(set(offsets)) > 5
    assert offsets[-1] == 4 * MIB
    assert events == [
        *("created", "running", "ready", "BLOCK_JOB_READY"),
        *("waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"),
    ]
    assert root() != overlay
    assert ask(vm, "query-block-jobs") == ask(vm, "query-jobs") == []


def test_a_round_is_followed_by_the_next() -> None:
    """There is always something to see, and the chain does not grow for ever."""
    vm = SimulatedVm(DRIVE, Path("/srv/vms"))
    depths = set()
    completed = 0
    for _ in range(200):
        completed += str(vm.advance(0.5)).count("BLOCK_JOB_COMPLETED")
        depths.add(ask(vm, "query-block")[0]["inserted"]["backing_file_depth"])

    assert completed > 2
    assert depths == {2, 3}


def test_a_forgotten_commit_stays_ready() -> None:
    """Nobody completes it."""
    vm = vm_of(FORGOTTEN)
    for _ in range(1000):
        vm.advance(1.0)

    assert [job["status"] for job in ask(vm, "query-block-jobs")] == ["ready"]


def test_the_guest_of_a_simulated_vm_reads_and_writes() -> None:
    """The counters of both disks move and never fall."""
    vm = SimulatedVm(DRIVE, Path("/srv/vms"))
    before = [e["stats"] for e in ask(vm, "query-blockstats")]
    vm.advance(10)
    after = [e["stats"] for e in ask(vm, "query-blockstats")]

    for counter in ("rd_bytes", "wr_bytes", "rd_operations", "flush_operations"):
        for old, new in zip(before, after, strict=True):
            assert new[counter] > old[counter]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_scenarios_of_the_demo_can_be_simulated(scenario: Scenario) -> None:
    """Each gets its commit to ready, under a name that says what it is."""
    vm = vm_of(scenario)
    while ask(vm, "query-block-jobs")[0]["status"] != "ready":
        vm.advance(1.0)

    assert ask(vm, "query-name")["name"].startswith("simulated-")


class Client:
    """A bare connection to a monitor socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()
        await asyncio.sleep(0)

    @classmethod
    async def of(cls, monitor: SimulatedMonitor, folder: Path) -> Client:
        """Connect."""
        return cls(*await asyncio.open_unix_connection(folder / f"{monitor.name}.sock"))

    def send(self, text: str) -> None:
        """Send as it is."""
        self._writer.write(text.encode())

    async def hear(self) -> dict[str, Any]:
        """Return the next message."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            message: dict[str, Any] = json.loads(await self._reader.readline())
            return message


async def test_a_monitor_negotiates_as_qemu_does(sockets: Path) -> None:
    """Greeting, nothing before the negotiation, no second one, answers in order, ids returned."""
    async with (
        simulated_vms(sockets, [DRIVE]) as (monitor,),
        await Client.of(monitor, sockets) as client,
    ):
        client.send('{"execute":"query-name"}{"execute":"qmp_capabilities"}')
        client.send('{"execute":"qmp_capabilities"}\n[]{"execute":"query-name","id":7}')
        said = [await client.hear() for _ in range(6)]

    assert said[0]["QMP"]["version"]["package"].startswith("simulated")
    assert "Expecting capabilities" in said[1]["error"]["desc"]
    assert said[2] == {"return": {}}
    assert "already complete" in said[3]["error"]["desc"]
    assert said[4]["error"]["class"] == "GenericError"
    assert said[5] == {"return": {"name": "simulated-drive"}, "id": 7}


async def test_a_second_client_waits_for_the_first_to_leave(sockets: Path) -> None:
    """As with QEMU it is connected, and not greeted."""
    async with simulated_vms(sockets, [DRIVE]) as (monitor,):
        async with await Client.of(monitor, sockets) as first:
            await first.hear()
            second = await Client.of(monitor, sockets)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await second.hear()
        async with second:
            assert "QMP" in await second.hear()


async def test_a_client_that_never_ends_its_command_is_hung_up_on(sockets: Path) -> None:
    """Nothing is kept without a bound."""
    async with (
        simulated_vms(sockets, [DRIVE]) as (monitor,),
        await Client.of(monitor, sockets) as client,
    ):
        await client.hear()
        client.send('{"execute":"' + "x" * 100_000)
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises((ConnectionError, ValueError)):
                await client.hear()


async def test_events_come_as_the_job_goes_on(sockets: Path) -> None:
    """In real time, with a timestamp, and with news for the demo's user."""
    news: list[str] = []
    async with simulated_vms(sockets, [IN_A_MOMENT]) as (monitor,):
        running = asyncio.create_task(monitor.run(news.append))
        async with await Client.of(monitor, sockets) as client:
            await client.hear()
            client.send('{"execute":"qmp_capabilities"}')
            heard = [await client.hear()]
            while heard[-1].get("event") != "BLOCK_JOB_COMPLETED":
                heard.append(await client.hear())
        running.cancel()

    assert "BLOCK_JOB_READY" in [message.get("event") for message in heard]
    assert heard[-1]["timestamp"]["seconds"] > 0
    assert news[0].startswith("simulated-moment: snapshot")
    assert any("ready" in line for line in news)


async def test_the_exporter_collects_simulated_vms(sockets: Path) -> None:
    """Up, with both styles of disk, and the commit is found on its disk and layers."""
    async with simulated_vms(sockets, [DRIVE, LIBVIRT]) as monitors:
        for monitor in monitors:
            while not ask(monitor._vm, "query-block-jobs"):
                monitor._vm.advance(0.5)
        fleet = Fleet(load(None, Settings(), (f"{sockets}/*.sock",)))
        try:
            collected = await fleet.scrape(PATIENCE_SECONDS)
        finally:
            await fleet.close()
    text = exposition.body([c.blobs for c in collected], openmetrics=False, process=False).decode()

    assert set(series(text, "qemu_vm_up").values()) == {"1"}
    for vm, device in (("simulated-drive", "disk0"), ("simulated-libvirt", "virtio-disk0")):
        assert series(text, "qemu_block_device_backing_depth", vm=vm, device=device)
        assert series(text, "qemu_block_job_info", vm=vm, device=device, top="0", base="1")
        assert series(text, "qemu_block_job_offset_bytes", vm=vm, device=device)
