"""When query-block is asked: as seldom as may be, and never into storage that hangs."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.collect.discovery import Target
from exporter.collect.topology_cache import EVENTS, TopologyCache
from exporter.collect.vm import Vm
from exporter.config.settings import Settings
from exporter.model.state import FileName, VmState
from exporter.qmp.client import CommandStats
from exporter.storage.file_stat import FileStat
from exporter.storage.mounts import Mount
from exporter.storage.open_files import OpenFile, OpenFiles
from exporter.storage.prober import Storage, StorageBusy, StorageHangs
from tests.disks import Disk, block_job, plug, with_filter
from tests.fakeqmp import Answer, FakeQmp, Reply, until

REFUSED = {"error": {"class": "GenericError", "desc": "Parameter 'flat' is unexpected"}}


class Clock:
    """The time of the topology."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the seconds since the machine was started."""
        return self.now

    def time(self) -> float:
        """Return the seconds since 1970."""
        return self.now + 1e9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that is set by hand."""
    clock = Clock()
    monkeypatch.setattr("exporter.collect.topology_cache.time", clock)
    return clock


@pytest.fixture
async def fake(sockets: Path) -> AsyncIterator[FakeQmp]:
    """A VM with a disk on two layers."""
    async with FakeQmp(str(sockets / "vm.sock")) as server:
        plug(server, Disk())
        yield server


NET = Mount("/net", "0:99", "nfs4")


class Seer(Storage):
    """Storage that says what a test wants."""

    def __init__(self) -> None:
        super().__init__(lambda path: FileStat(visible=True))
        self.visible = True
        self.hangs = False
        self.busy = False
        self.network_hangs = False
        #: Whether any QEMU of the host has files on the network mount.
        self.is_used = True
        #: What was looked at by name, as the storage, by descriptor, and to see where a name leads.
        self.seen: list[frozenset[str]] = []
        self.opened: list[frozenset[str]] = []
        self.named: list[frozenset[str]] = []
        #: What a path, or a descriptor, leads to where it is no file of its own.
        self.sights: dict[str, FileStat] = {}

    async def see(self, paths: Collection[str], timeout_seconds: float) -> dict[str, FileStat]:
        """Say whether the storage answers."""
        self.seen.append(frozenset(paths))
        return self._found(paths)

    async def see_open(
        self, files: Collection[OpenFile], timeout_seconds: float, *, anew: bool = False
    ) -> dict[OpenFile, FileStat]:
        """Say whether the storage of what is open answers."""
        self.opened.append(frozenset(file.path for file in files))
        found = self._found([file.path for file in files])
        return {file: found[file.path] for file in files}

    async def see_names(
        self, names: Mapping[str, str | None], timeout_seconds: float, *, anew: bool = False
    ) -> dict[str, FileStat]:
        """Say where names lead."""
        self.named.append(frozenset(names))
        return {} if self.hangs else self._found(names)

    async def hanging(self, asked: Iterable[Mount], timeout_seconds: float) -> list[Mount]:
        """Say whether every network mount answers."""
        return [NET] if self.network_hangs else []

    async def may_be_of(self, hanging: Collection[Mount], relay: int) -> bool:
        """Say whether a QEMU has files there."""
        assert hanging == [NET]
        return self.is_used

    def _found(self, paths: Iterable[str]) -> dict[str, FileStat]:
        if self.hangs:
            raise StorageHangs("/images did not answer within 1 s")
        if self.busy:
            raise StorageBusy("not every file was looked at within 1 s")
        return {
            path: self.sights.get(path, FileStat(self.visible, 1000, 100, (8, hash(path))))
            for path in paths
        }


@pytest.fixture
def storage() -> Seer:
    """Storage that answers and can be seen."""
    return Seer()


Make = Callable[..., Vm]


def wire(message: object) -> bytes:
    """A message as QEMU writes it."""
    return json.dumps(message).encode() + b"\r\n"


@pytest.fixture
async def make(sockets: Path, storage: Seer) -> AsyncIterator[Make]:
    """Makes the collector of the VM, with settings."""
    made = []

    def vm(**settings: Any) -> Vm:
        target = Target(
            vm="vm",
            socket=str(sockets / "vm.sock"),
            group="g",
            settings=Settings(**settings),
        )
        made.append(Vm(target, CommandStats(), storage))
        return made[-1]

    yield vm
    for each in made:
        await each.close()


async def collect(vm: Vm) -> VmState:
    """Scrape once."""
    return await vm.collect(20.0)


def asked(fake: FakeQmp) -> int:
    """How often query-block has been asked."""
    return fake.commands.count("query-block")


def sizes(snapshot: VmState) -> set[tuple[int | None, int | None]]:
    """What the storage of the images has, and what of it is left."""
    images = [node.image for device in snapshot.devices for node in device.nodes if node.counts]
    found = snapshot.counters.files or [None] * len(images)
    assert all(image for image, file in zip(images, found, strict=True) if file)
    return {(file.size_bytes, file.available_bytes) for file in found if file}


async def event(fake: FakeQmp, vm: Vm, name: str) -> None:
    """Send an event and see it arrive."""
    arrived = asyncio.Event()
    note = vm._topology.note

    def noted(event: str) -> None:
        note(event)
        arrived.set()

    vm._topology.note = noted  # type: ignore[method-assign]
    await fake.event(name)
    async with asyncio.timeout(20):
        await arrived.wait()
    vm._topology.note = note  # type: ignore[method-assign]


# When it is asked.


async def test_query_block_is_asked_on_first_contact_and_not_in_the_next_scrapes(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """It stats every image file on QEMU's main loop."""
    vm = make()
    first = await collect(vm)
    clock.now += 1
    second = await collect(vm)

    assert asked(fake) == 1
    assert first.devices[0].file == second.devices[0].file == "/images/top.qcow2"
    assert first.topology_timestamp_seconds == second.topology_timestamp_seconds == 1e9 + 1000


async def test_query_block_is_asked_again_after_max_age(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """Sizes change without an event."""
    vm = make(topology_max_age_seconds=30.0)
    await collect(vm)
    clock.now += 30
    snapshot = await collect(vm)

    assert asked(fake) == 2
    assert snapshot.topology_timestamp_seconds == 1e9 + 1030


async def test_a_fleet_is_not_asked_for_query_block_all_at_once_again(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """The first time each VM waits a part of max-age that is its own, from then on all of it."""
    vm = make(topology_max_age_seconds=60.0)
    await collect(vm)
    due = vm._topology._due_at - clock.now
    clock.now += due
    await collect(vm)
    first = asked(fake)
    clock.now += 59
    await collect(vm)
    second = asked(fake)
    clock.now += 1
    await collect(vm)
    others = [TopologyCache(f"vm{i}", Settings(), Seer()) for i in range(400)]
    for other in others:
        await other.put([], (), {}, 0, 1.0, agreed=True)
    parts = Counter(int((other._due_at - clock.now) // 15) for other in others)

    assert 0 < due < 60
    assert (first, second, asked(fake)) == (2, 2, 3)
    assert set(parts) == {0, 1, 2, 3}
    assert min(parts.values()) > 50


async def test_query_block_that_answers_as_before_changes_nothing(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """What is rendered already stays, but for the time when it was last told."""
    vm = make()
    first = await collect(vm)
    clock.now += 60
    second = await collect(vm)

    assert asked(fake) == 2
    assert second.devices is first.devices
    assert second.topology_timestamp_seconds == 1e9 + 1060


async def test_query_block_is_asked_again_when_node_names_change(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """A snapshot puts a node on top; the new chain is shown in the same scrape."""
    vm = make()
    await collect(vm)
    plug(fake, Disk(nodes=("new", "top", "base")))
    snapshot = await collect(vm)

    assert asked(fake) == 2
    assert snapshot.devices[0].file == "/images/new.qcow2"
    assert snapshot.devices[0].backing_depth == 2


async def test_query_block_is_asked_again_when_a_device_is_plugged(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """Or unplugged."""
    vm = make()
    await collect(vm)
    plug(fake, Disk(), Disk("disk1", ("other",)))
    await collect(vm)
    assert asked(fake) == 2
    plug(fake, Disk("disk1", ("other",)))
    await collect(vm)

    assert asked(fake) == 3


@pytest.mark.parametrize("name", sorted(EVENTS))
async def test_query_block_is_asked_again_after_an_event(
    fake: FakeQmp, make: Make, clock: Clock, name: str
) -> None:
    """One that says that a device or an image is not what it was; once for each."""
    vm = make()
    await collect(vm)
    await event(fake, vm, name)
    await collect(vm)
    await collect(vm)

    assert asked(fake) == 2


async def test_query_block_is_asked_again_when_a_job_concluded(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """One that is no block job has no event of its own."""
    vm = make()
    await collect(vm)
    for status, times in (("running", 1), ("concluded", 2), ("null", 2)):
        vm._on_event("JOB_STATUS_CHANGE", json.dumps({"id": "j", "status": status}).encode())
        await collect(vm)
        assert asked(fake) == times


def test_the_events_are_those_of_the_design() -> None:
    """Events that come with every guest write would ask it in each scrape."""
    assert {"BLOCK_IO_ERROR", "RESUME", "DEVICE_TRAY_MOVED", "BLOCK_JOB_COMPLETED"} <= EVENTS
    assert not {"BLOCK_JOB_ERROR", "JOB_STATUS_CHANGE", "BLOCK_JOB_READY"} & EVENTS


async def test_another_event_does_not_ask_query_block(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """STOP changes no device."""
    vm = make()
    await collect(vm)
    await event(fake, vm, "STOP")
    await collect(vm)

    assert asked(fake) == 1


async def test_an_event_that_comes_right_behind_the_answer_is_not_lost(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """The answer is of before the event; the next scrape asks again."""
    vm = make()
    answer = Disk().block()
    late = b'{"event": "DEVICE_TRAY_MOVED", "data": {}}\r\n'

    def block_and_event(_: object) -> bytes:
        plug(fake, Disk())
        return wire({"return": [answer]}) + late

    fake.replies["query-block"] = block_and_event
    await collect(vm)
    await collect(vm)
    await collect(vm)

    assert asked(fake) == 2


async def test_query_block_is_asked_again_on_a_new_connection(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """It may be another QEMU, with the same node names."""
    vm = make()
    await collect(vm)
    fake.hang_up()
    await until(lambda: not vm._session.connected)
    await collect(vm)

    assert (fake.connections, asked(fake)) == (2, 2)


async def test_per_scrape_connections_do_not_ask_query_block_each_time(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """The same process is the same QEMU, until its node names change."""
    vm = make(connection="per-scrape")
    for _ in range(3):
        await collect(vm)
    assert (fake.connections, asked(fake)) == (3, 1)
    plug(fake, Disk(nodes=("new", "top", "base")))
    await collect(vm)

    assert asked(fake) == 2


async def test_another_process_on_a_shared_socket_is_asked_anew(
    fake: FakeQmp, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images may be others of the same names."""
    vm = make(connection="per-scrape")
    await collect(vm)
    monkeypatch.setattr("exporter.qmp.peer.pid", lambda sock: 4242)
    await collect(vm)

    assert asked(fake) == 2


async def test_query_block_is_never_asked_with_never(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """Not on first contact, not after an event; the counters come all the same."""
    vm = make(topology="never")
    await collect(vm)
    await event(fake, vm, "RESUME")
    clock.now += 1000
    snapshot = await collect(vm)

    assert asked(fake) == 0
    assert snapshot.up
    assert [device.device for device in snapshot.devices] == ["disk0"]
    assert snapshot.devices[0].inserted is None
    assert snapshot.topology_timestamp_seconds is None


async def test_a_vm_without_devices_is_not_asked_query_block(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """There is nothing to be told."""
    plug(fake)
    vm = make()
    await collect(vm)

    assert asked(fake) == 0


# What is kept.


async def test_what_is_older_than_three_max_ages_is_dropped(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """Old values are worse than none; the counters of the device go on."""
    vm = make(topology_max_age_seconds=10.0)
    await collect(vm)
    storage.hangs = True
    clock.now += 30
    at_three = await collect(vm)
    clock.now += 0.1
    older = await collect(vm)

    assert at_three.devices[0].file == "/images/top.qcow2"
    assert [device.device for device in older.devices] == ["disk0"]
    assert older.devices[0].inserted is None
    assert older.devices[0].nodes[0].image is None
    assert older.topology_timestamp_seconds == 1e9 + 1000


# A chain that two queries tell differently.


async def test_a_chain_that_disagrees_is_asked_again(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """A pivot came between the two commands; the second look sees both after it."""
    before, after = Disk(nodes=("top", "base")), Disk(nodes=("base",))
    looks = iter([before, after])

    def blockstats(_: object) -> dict[str, object]:
        return {"return": [next(looks).stats()]}

    plug(fake, after)
    fake.replies["query-blockstats"] = blockstats
    snapshot = await collect(make())

    assert asked(fake) == 2
    assert snapshot.devices[0].file == "/images/base.qcow2"
    assert snapshot.devices[0].backing_depth == 0


async def test_jobs_are_those_of_the_second_look(fake: FakeQmp, make: Make, clock: Clock) -> None:
    """A job whose pivot is shown is over."""
    looks = iter([Disk(nodes=("top", "base")), Disk(nodes=("base",))])
    jobs = iter([[block_job()], []])
    plug(fake, Disk(nodes=("base",)))
    fake.replies["query-blockstats"] = lambda _: {"return": [next(looks).stats()]}
    fake.replies["query-block-jobs"] = lambda _: {"return": next(jobs)}

    assert (await collect(make())).jobs == ()


async def test_a_chain_that_goes_on_disagreeing_is_not_published(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """The device has its counters and no images; to ask in each scrape would not help."""
    plug(fake, Disk(nodes=("base",)), Disk("disk1", ("x",)))
    fake.replies["query-blockstats"] = {"return": [Disk().stats(), Disk("disk1", ("x",)).stats()]}
    vm = make()
    snapshots = [await collect(vm) for _ in range(4)]

    for snapshot in snapshots:
        wrong, right = snapshot.devices
        assert wrong.inserted is None
        assert wrong.backing_depth == 1
        assert right.file == "/images/x.qcow2"
    assert asked(fake) == 6


def closed(disk: Disk) -> dict[str, object]:
    """Return what query-block tells of a disk whose node has no driver any more."""
    entry = disk.block()
    del entry["inserted"]
    return {**entry, "io-status": "failed"}


async def test_a_node_without_a_driver_is_a_state_and_not_a_race(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """Two looks in a row tell it; it is not looked at again in each scrape, nor twice each time."""
    fake.replies["query-blockstats"] = {"return": [Disk(nodes=("top",)).stats()]}
    fake.replies["query-block"] = {"return": [closed(Disk(nodes=("top",)))]}
    vm = make()
    for looks in (2, 2):
        device = (await collect(vm)).devices[0]
        assert (device.inserted, device.node_name, device.backing_depth) == (False, "top", None)
        assert getattr(device.block, "io_status", None) == "failed"
        assert asked(fake) == looks
    vm._topology.invalidate()
    assert (await collect(vm)).devices[0].inserted is False
    assert asked(fake) == 3


async def test_a_medium_that_was_just_taken_out_is_no_node_without_a_driver(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """The second look sees neither node nor medium."""
    empty = {"device": "disk0", "stats": {}}
    looks = iter([Disk(nodes=("top",)).stats(), empty])
    fake.replies["query-blockstats"] = lambda _: {"return": [next(looks)]}
    fake.replies["query-block"] = {"return": [closed(Disk(nodes=("top",)))]}
    device = (await collect(make())).devices[0]

    assert (device.inserted, device.node_name, device.nodes) == (False, "", ())
    assert asked(fake) == 2


# The flat form of QEMU 11.1.


def modern(fake: FakeQmp, version: tuple[int, int] = (11, 1)) -> None:
    """Greet as a newer QEMU."""
    qemu = {"major": version[0], "minor": version[1], "micro": 0}
    fake.greeting = {"QMP": {"version": {"qemu": qemu, "package": ""}, "capabilities": []}}


def forms(fake: FakeQmp) -> list[bool]:
    """Whether each query-block that was asked was flat."""
    return [bool(a.get("flat")) for name, a in fake.received if name == "query-block"]


async def test_a_flat_answer_is_merged_with_the_backing_images_of_the_last_full_one(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """QEMU 11.1 can leave out what does not change; the first answer is always full."""
    modern(fake)
    vm = make()
    await collect(vm)
    clock.now += 60
    await collect(vm)
    clock.now += 60
    snapshot = await collect(vm)

    assert forms(fake) == [False, True, True]
    files = [node.file for node in snapshot.devices[0].nodes if node.role == "format"]
    assert files == ["/images/top.qcow2", "/images/base.qcow2"]


async def test_a_flat_answer_will_not_do_for_a_new_chain(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """What it leaves out is not known."""
    modern(fake)
    vm = make()
    await collect(vm)
    plug(fake, Disk(nodes=("new", "top", "base")))
    await collect(vm)

    assert forms(fake) == [False, False]


async def test_a_flat_answer_will_not_do_while_a_job_runs(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """A commit writes to the layers that it leaves out."""
    modern(fake)
    fake.replies["query-block-jobs"] = {"return": [block_job()]}
    vm = make()
    await collect(vm)
    clock.now += 60
    await collect(vm)

    assert forms(fake) == [False, False]


async def test_a_flat_answer_will_not_do_under_a_filter(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """The image that it does not leave out is the filter's."""
    modern(fake)
    with_filter(fake, "tg0")
    vm = make(without=frozenset({"throttle"}))
    await collect(vm)
    clock.now += 60
    snapshot = await collect(vm)

    assert forms(fake) == [False, False]
    assert snapshot.devices[0].file == "/images/top.qcow2"


async def test_an_older_qemu_is_not_asked_for_the_flat_form(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """It would refuse the argument."""
    modern(fake, (11, 0))
    vm = make()
    await collect(vm)
    clock.now += 60
    await collect(vm)

    assert forms(fake) == [False, False]


async def test_a_qemu_that_refuses_the_flat_form_is_asked_for_the_full_one(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """In the same scrape, and from then on."""
    modern(fake)
    vm = make()
    await collect(vm)
    full = fake.replies["query-block"]
    assert callable(full)

    def refusing(arguments: Mapping[str, Any]) -> Answer:
        return REFUSED if arguments else full({})

    fake.replies["query-block"] = refusing
    clock.now += 60
    second = await collect(vm)
    clock.now += 60
    await collect(vm)

    assert second.up
    assert second.topology_timestamp_seconds == 1e9 + 1060
    assert forms(fake) == [False, True, False, False]


# Storage that does not answer.


async def test_query_block_is_not_asked_while_the_storage_hangs(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """The VM is up, its counters go on, and the storage is said not to respond."""
    vm = make()
    await collect(vm)
    storage.hangs = True
    clock.now += 60
    hanging = await collect(vm)
    await event(fake, vm, "BLOCK_IO_ERROR")
    await collect(vm)
    assert asked(fake) == 1
    assert (hanging.up, hanging.storage_responding) == (True, False)
    storage.hangs = False
    back = await collect(vm)

    assert asked(fake) == 2
    assert back.storage_responding is True


async def test_storage_that_is_busy_is_asked_again_in_the_next_scrape(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no storage that does not respond, and what is known stays."""
    vm = make()
    await collect(vm)
    storage.busy = True
    clock.now += 60
    snapshot = await collect(vm)
    assert (asked(fake), snapshot.storage_responding) == (1, True)
    assert snapshot.devices[0].file == "/images/top.qcow2"
    storage.busy = False
    await collect(vm)

    assert asked(fake) == 2
    assert not caplog.records


async def test_storage_that_gets_busy_meanwhile_costs_only_the_sizes(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """query-block has answered already."""
    block = fake.replies["query-block"]
    assert callable(block)

    def answer(arguments: Mapping[str, Any]) -> Answer:
        storage.busy = True
        return block(arguments)

    fake.replies["query-block"] = answer
    snapshot = await collect(make())

    assert snapshot.devices[0].file == "/images/top.qcow2"
    assert sizes(snapshot) == set()


@pytest.mark.parametrize("trouble", ["busy", "hangs"])
async def test_sizes_that_cannot_be_had_again_stay(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, trouble: str
) -> None:
    """Of a file that is there still."""
    vm = make(topology="always")
    await collect(vm)
    setattr(storage, trouble, True)
    clock.now += 60
    snapshot = await collect(vm)

    assert asked(fake) == 2
    assert sizes(snapshot) == {(1000, 100)}


async def test_a_refresh_looks_at_each_file_once(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """What was seen before query-block is good enough after it."""
    vm = make()
    await collect(vm)
    storage.seen.clear()
    clock.now += 60
    await collect(vm)

    assert asked(fake) == 2
    assert sorted(path for files in storage.seen for path in files) == [
        "/images/base.qcow2",
        "/images/top.qcow2",
    ]


class Qemu:
    """What the QEMU has open, in place of /proc."""

    def __init__(self, *files: OpenFile) -> None:
        self.files = list(files)
        self.same_names = True
        self.folder = "/start"
        self.reads = 0

    def read(self, process: int) -> OpenFiles:
        """Return what is open."""
        self.reads += 1
        return OpenFiles(process, tuple(self.files), self.same_names, self.folder)

    def descriptors(self, process: int) -> tuple[str, ...]:
        """Return the numbers of these."""
        return tuple(file.path for file in self.files)


def opened(number: int, name: str, *, locked: bool = True, device: str = "8:1") -> OpenFile:
    """A file that is open, by its number."""
    return OpenFile(f"fd{number}", name, str(number), Mount("/", device, "ext4"), locked)


def seen_as(storage: Seer, *files: OpenFile, names: Sequence[str] = ()) -> None:
    """Have a file be the same by its descriptor and by its name, and by other names."""
    for file in files:
        sight = FileStat(True, 1000, 100, (8, int(file.inode)))
        storage.sights |= dict.fromkeys((file.path, file.name, *names), sight)


@pytest.fixture
def qemu(storage: Seer, monkeypatch: pytest.MonkeyPatch) -> Qemu:
    """A QEMU whose files can be seen: its two images."""
    files = opened(10, "/images/top.qcow2"), opened(11, "/images/base.qcow2")
    qemu = Qemu(*files)
    seen_as(storage, *files)
    monkeypatch.setattr("exporter.storage.open_files.read", qemu.read)
    monkeypatch.setattr("exporter.qmp.peer.descriptors", qemu.descriptors)
    return qemu


async def test_a_refresh_looks_first_at_the_files_that_qemu_has_open(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, qemu: Qemu
) -> None:
    """They are more than query-block names; what hangs elsewhere is not their storage."""
    qemu.files.append(opened(12, "/images/data.raw"))
    storage.network_hangs = True
    vm = make()
    await collect(vm)
    storage.opened.clear()
    clock.now += 60
    snapshot = await collect(vm)
    assert (asked(fake), snapshot.storage_responding) == (2, True)
    assert storage.opened[0] == {"fd10", "fd11", "fd12"}
    assert storage.seen == []
    storage.named.clear()
    storage.hangs = True
    clock.now += 60
    snapshot = await collect(vm)

    assert (asked(fake), snapshot.storage_responding, storage.named) == (2, False, [])


async def test_a_file_that_qemu_opened_since_is_looked_at(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, qemu: Qemu
) -> None:
    """It has a number of its own; while the numbers are the same, no link is followed again."""
    vm = make()
    for _ in range(4):
        await collect(vm)
        clock.now += 60
    before = qemu.reads
    qemu.files.append(opened(12, "/images/child-of-a-quorum.raw"))
    await collect(vm)

    assert (before, qemu.reads) == (1, 2)
    assert "fd12" in frozenset().union(*storage.opened)


# Images that nobody finds by their names.


def names(snapshot: VmState) -> dict[str, tuple[int | None, FileName]]:
    """What the names of the images are worth."""
    nodes = [node for device in snapshot.devices for node in device.nodes if node.counts]
    files = snapshot.counters.files or [None] * len(nodes)
    each = zip(nodes, files, strict=True)
    return {node.file: (file.name_valid, file.name) for node, file in each if file}


async def test_an_image_that_is_found_by_its_name_is_told_as_such(
    fake: FakeQmp, make: Make, clock: Clock, qemu: Qemu
) -> None:
    """Of both layers."""
    assert names(await collect(make())) == {
        "/images/top.qcow2": (1, FileName.OWN),
        "/images/base.qcow2": (1, FileName.OWN),
    }


@pytest.mark.parametrize("how", ["removed", "replaced", "moved-and-replaced"])
async def test_an_image_that_was_removed_or_replaced_costs_nobody_anything(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, qemu: Qemu, how: str
) -> None:
    """It is asked for by what is open, and all that query-block tells goes on."""
    vm = make()
    await collect(vm)
    storage.sights["/images/base.qcow2"] = (
        FileStat(False, missing=True) if how == "removed" else FileStat(True, 7, 7, (9, 9))
    )
    if how == "moved-and-replaced":
        qemu.files[1] = opened(11, "/images/base.moved")
        storage.sights["fd11"] = FileStat(True, 1000, 100, (8, 11))
    for _ in range(5):
        clock.now += 60
        snapshot = await collect(vm)

    assert asked(fake) == 6
    assert snapshot.storage_responding is True
    assert names(snapshot) == {
        "/images/top.qcow2": (1, FileName.OWN),
        "/images/base.qcow2": (0, FileName.REMOVED if how == "removed" else FileName.OTHER),
    }
    assert sizes(snapshot) == {(1000, 100)}


async def test_a_descriptor_that_was_handed_over_is_the_image_that_no_name_leads_to(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, qemu: Qemu
) -> None:
    """By elimination: of the files with QEMU's lock. Its storage is known, and which file it is."""
    plug(fake, Disk(files=("/dev/fdset/1", "/images/base.qcow2")))
    qemu.files += [opened(12, "/var/lib/vars.fd", locked=False)]
    snapshot = await collect(make())
    vm_files = snapshot.counters.files

    assert names(snapshot)["/dev/fdset/1"] == (0, FileName.FDSET)
    assert sizes(snapshot) == {(1000, 100)}
    assert [file.identity for file in vm_files if file] == [(8, 10), (8, 11)]
    assert "/dev/fdset/1" not in frozenset().union(*storage.named)


@pytest.mark.parametrize(("device", "known"), [("8:1", {(1000, 100)}), ("8:2", {(None, None)})])
async def test_two_descriptors_that_were_handed_over_are_not_told_apart(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, qemu: Qemu,
    device: str, known: set[tuple[int | None, int | None]],
) -> None:  # fmt: skip
    """On one file system they have the same space; which file is which, nobody knows."""
    plug(fake, Disk(files=("/dev/fdset/1", "/dev/fdset/2")))
    qemu.files[1] = opened(11, "/images/base.qcow2", device=device)
    snapshot = await collect(make())

    assert sizes(snapshot) == known
    assert [file.identity for file in snapshot.counters.files if file] == [None, None]


@pytest.mark.parametrize("gone", [None, "/images/top.qcow2", "/images/data.raw"])
async def test_an_image_with_a_data_file_needs_both_names(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, qemu: Qemu, gone: str | None
) -> None:
    """The space is that of the data, and the file is the image."""
    block = Disk().block()
    block["inserted"]["image"]["format-specific"] = {
        "type": "qcow2", "data": {"compat": "1.1", "data-file": "/images/data.raw"},
    }  # fmt: skip
    fake.replies["query-block"] = {"return": [block]}
    qemu.files.append(opened(12, "/images/data.raw"))
    data = FileStat(True, 5000, 500, (8, 12))
    storage.sights |= {"fd12": data, "/images/data.raw": data}
    if gone:
        storage.sights[gone] = FileStat(False, missing=True)
    (top, *_) = [file for file in (await collect(make())).counters.files if file]

    assert (top.size_bytes, top.available_bytes, top.identity) == (5000, 500, (8, 10))
    assert (top.name_valid, top.name) == ((0, FileName.REMOVED) if gone else (1, FileName.OWN))


async def test_a_relative_name_is_looked_for_where_qemu_is(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, qemu: Qemu
) -> None:
    """It leads QEMU to the file, and nobody elsewhere; another one of that name does not."""
    plug(fake, Disk(files=("top.qcow2", "sub/base.qcow2")))
    qemu.files = [opened(10, "/start/top.qcow2"), opened(11, "/elsewhere/sub/base.qcow2")]
    seen_as(storage, *qemu.files)
    snapshot = await collect(make())

    assert names(snapshot) == {
        "top.qcow2": (0, FileName.RELATIVE),
        "sub/base.qcow2": (0, FileName.OTHER),
    }
    assert snapshot.storage_responding is True


async def test_a_name_is_looked_for_in_the_namespace_of_qemu(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, qemu: Qemu
) -> None:
    """Here it may lead to another file; by descriptors it is asked all the same."""
    qemu.same_names = False
    vm = make()
    await collect(vm)
    pid = vm._session.peer_pid
    there = {f"/proc/{pid}/root/images/{name}.qcow2" for name in ("top", "base")}
    assert storage.named[0] == there
    storage.sights |= {
        path: FileStat(True, 7, 7, (8, 10 + i)) for i, path in enumerate(sorted(there))
    }
    clock.now += 60
    snapshot = await collect(vm)

    assert {valid for valid, _ in names(snapshot).values()} == {1}


async def test_a_name_that_does_not_answer_is_not_known(
    fake: FakeQmp,
    make: Make,
    clock: Clock,
    storage: Seer,
    qemu: Qemu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Something is mounted over it by now; what QEMU has open answers."""

    async def nothing(*_: object, **__: object) -> dict[str, FileStat]:
        return {}

    monkeypatch.setattr(storage, "see_names", nothing)
    snapshot = await collect(make())

    assert snapshot.storage_responding is True
    assert set(names(snapshot).values()) == {(None, FileName.UNSEEN)}
    assert sizes(snapshot) == {(1000, 100)}


async def test_an_image_without_a_name_is_logged_once(
    fake: FakeQmp,
    make: Make,
    clock: Clock,
    storage: Seer,
    qemu: Qemu,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By its name, and why."""
    plug(fake, Disk(files=("/dev/fdset/1", "base.qcow2")))
    vm = make()
    for _ in range(3):
        await collect(vm)
        clock.now += 60
    said = [
        (record.__dict__["file"], record.__dict__["why"])
        for record in caplog.records
        if record.message == "image cannot be found by its name"
    ]

    assert said == [
        (
            "/dev/fdset/1",
            "its name means something to its QEMU alone, which was handed a descriptor",
        ),
        ("base.qcow2", "its name leads to another file than the one that QEMU has open"),
    ]


async def test_a_layer_that_was_merged_and_removed_meanwhile_is_not_an_image_without_a_name(
    fake: FakeQmp,
    make: Make,
    clock: Clock,
    storage: Seer,
    qemu: Qemu,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """QEMU told of it, and has closed it by the time its name leads nowhere."""
    storage.sights["/images/top.qcow2"] = FileStat(False, missing=True)
    del qemu.files[0]
    snapshot = await collect(make())

    assert [file.name_valid for file in snapshot.counters.files if file] == [None, 1]
    assert "image cannot be found by its name" not in caplog.messages


async def test_an_image_that_is_renamed_has_its_new_name_looked_for(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, qemu: Qemu
) -> None:
    """Under the same number: nothing else tells that the files have to be read again."""
    vm = make()
    await collect(vm)
    base = qemu.files[1]
    qemu.files[1] = replace(base, name="/images/moved.qcow2")
    storage.sights[base.path] = replace(storage.sights[base.path], link="/images/moved.qcow2")
    storage.sights[base.name] = FileStat(True, 1000, 100, (8, 99))
    clock.now += 60
    snapshot = await collect(vm)

    assert [file.name_valid for file in snapshot.counters.files if file] == [1, None]
    clock.now += 60
    snapshot = await collect(vm)
    assert [file.name_valid for file in snapshot.counters.files if file] == [1, 0]


async def test_a_number_that_leads_to_another_file_by_now_says_nothing_of_the_image(
    fake: FakeQmp, make: Make, storage: Seer, qemu: Qemu, caplog: pytest.LogCaptureFixture
) -> None:
    """QEMU has reopened the base under another number, and opened an overlay under the old one."""
    elsewhere = FileStat(True, 1000, 100, (8, 99), link="/images/overlay.qcow2")
    storage.sights[qemu.files[1].path] = elsewhere
    snapshot = await collect(make())

    assert [file.name_valid for file in snapshot.counters.files if file] == [1, None]
    assert "image cannot be found by its name" not in caplog.messages


async def test_layers_that_are_opened_and_closed_all_the_while_are_not_images_without_a_name(
    fake: FakeQmp,
    make: Make,
    storage: Seer,
    qemu: Qemu,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A file is reopened under another number while it is looked at: no two readings are the same."""
    base = qemu.files[1]
    busy = iter(range(100, 200))

    def read(process: int) -> OpenFiles:
        # What was the base is another file by now.
        torn = opened(next(busy), base.name)
        storage.sights[torn.path] = FileStat(True, 1000, 100, (8, int(torn.inode)))
        return OpenFiles(process, (qemu.files[0], torn))

    monkeypatch.setattr("exporter.storage.open_files.read", read)
    snapshot = await collect(make())

    assert [file.name_valid for file in snapshot.counters.files if file] == [1, None]
    assert "image cannot be found by its name" not in caplog.messages


async def test_a_layer_that_was_merged_while_another_was_opened_is_not_taken_for_that_one(
    fake: FakeQmp,
    make: Make,
    clock: Clock,
    storage: Seer,
    qemu: Qemu,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where only what else is open speaks against a name, the next query-block has to say so too."""
    vm = make()
    newer = opened(12, "/images/newer.qcow2")
    seen_as(storage, newer)
    qemu.files[0] = newer
    first = await collect(vm)
    second = await collect(vm)

    assert asked(fake) == 2
    valid = [[file.name_valid for file in each.counters.files if file] for each in (first, second)]
    assert valid == [[None, 1], [0, 1]]
    assert caplog.messages.count("image cannot be found by its name") == 1


# A QEMU whose open files cannot be seen.


async def test_a_network_mount_that_hangs_elsewhere_does_not_keep_a_refresh_away(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """The images are known by name, they answer, and their formats have no other files."""
    vm = make()
    await collect(vm)
    storage.network_hangs = True
    clock.now += 60
    snapshot = await collect(vm)

    assert (asked(fake), snapshot.storage_responding) == (2, True)


@pytest.mark.parametrize("image", ["quorum", "data-file"])
async def test_a_network_mount_that_hangs_keeps_a_refresh_away_where_not_all_files_have_names(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, image: str
) -> None:
    """A data file may be on it, or a child of a quorum; that is not told as storage that hangs."""
    block = Disk().block()
    if image == "quorum":
        block["inserted"]["image"]["format"] = "quorum"
    else:
        block["inserted"]["image"]["format-specific"] = {
            "type": "qcow2", "data": {"compat": "1.1", "data-file": "/net/data.raw"},
        }  # fmt: skip
    fake.replies["query-block"] = {"return": [block]}
    vm = make()
    await collect(vm)
    storage.network_hangs = True
    clock.now += 60
    snapshot = await collect(vm)
    assert (asked(fake), snapshot.storage_responding) == (1, True)
    assert snapshot.storage_error == (
        "/net does not answer, and nobody can see from here whether vm has files there"
    )
    storage.network_hangs = False
    snapshot = await collect(vm)

    assert (asked(fake), snapshot.storage_error) == (2, "")


async def test_a_network_mount_that_hangs_keeps_first_contact_away(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody knows yet which files the VM has, nor that its storage is what hangs."""
    vm = make()
    storage.network_hangs = True
    for _ in range(3):
        snapshot = await collect(vm)
    assert (asked(fake), snapshot.up, snapshot.storage_responding) == (0, True, None)
    assert [r.message for r in caplog.records].count("query-block is not asked") == 1
    storage.network_hangs = False
    await collect(vm)

    assert asked(fake) == 1


async def test_a_mount_on_which_no_qemu_has_a_file_keeps_nobody_away(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """Also of a QEMU behind a proxy, which is one of them."""
    storage.network_hangs, storage.is_used = True, False
    snapshot = await collect(make())

    assert (asked(fake), snapshot.storage_responding) == (1, True)


async def test_a_qemu_all_of_whose_network_mounts_answer_is_asked_whatever_its_images_are_called(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs as another user: its files are not seen, and its mounts are."""
    table = {"1": Mount("/", "8:1", "ext4"), "2": Mount("/net", NET.device, "nfs4")}
    monkeypatch.setattr("exporter.qmp.peer.is_qemu", lambda process: True)
    monkeypatch.setattr("exporter.storage.open_files.read", lambda process: None)
    monkeypatch.setattr("exporter.storage.mounts.of", lambda process: table)
    monkeypatch.setattr("exporter.storage.mounts.points", lambda: {"/mnt": NET})
    plug(fake, Disk(files=("/dev/fdset/1", "base.qcow2")))
    storage.visible = False
    vm = make()
    snapshot = await collect(vm)
    clock.now += 60
    await collect(vm)
    assert asked(fake) == 2
    assert snapshot.storage_responding is None
    assert {valid for valid, _ in names(snapshot).values()} == {0}
    # A mount of its own, to which no way leads from here, may hang unseen.
    table["3"] = Mount("/own", "0:77", "nfs4")
    clock.now += 60
    await collect(vm)

    assert asked(fake) == 2


async def test_the_canary_looks_at_every_image_before_query_block_does(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """At the backing files too."""
    vm = make()
    await collect(vm)
    storage.seen.clear()
    clock.now += 60
    await collect(vm)

    assert storage.seen[0] == {"/images/top.qcow2", "/images/base.qcow2"}


async def test_the_storage_of_the_images_is_measured(
    fake: FakeQmp, make: Make, clock: Clock
) -> None:
    """As the canary saw it."""
    snapshot = await collect(make())

    assert sizes(snapshot) == {(1000, 100)}


async def test_images_that_cannot_be_seen_turn_the_timed_refresh_off(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, caplog: pytest.LogCaptureFixture
) -> None:
    """In a container nobody knows whether the storage hangs; changes are still looked at."""
    storage.visible = False
    vm = make()
    snapshot = await collect(vm)
    clock.now += 600
    await collect(vm)
    await collect(vm)
    assert (asked(fake), snapshot.storage_responding) == (1, None)
    # With the answer, and once after the max-age.
    assert storage.seen.count(frozenset({"/images/top.qcow2", "/images/base.qcow2"})) == 2
    said = [record for record in caplog.records if "cannot be seen" in record.message]
    assert [record.__dict__["file"] for record in said] == ["/images/base.qcow2"]
    assert said[0].__dict__["why"] == "no file that can be seen"
    await event(fake, vm, "RESUME")
    await collect(vm)
    assert asked(fake) == 2
    plug(fake, Disk(nodes=("new",)))
    await collect(vm)

    assert asked(fake) == 3


async def test_images_that_come_into_sight_turn_the_timed_refresh_on_again(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """They are looked for once in a max-age, not in every scrape: a mount may have come."""
    storage.visible = False
    vm = make()
    await collect(vm)
    clock.now += 61
    await collect(vm)
    looks = len(storage.seen)
    await collect(vm)
    assert (len(storage.seen), asked(fake)) == (looks, 1)
    storage.visible = True
    clock.now += 61
    await collect(vm)

    assert asked(fake) == 2


async def test_images_that_went_out_of_sight_are_not_asked_for(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer
) -> None:
    """The look before query-block tells that nobody can tell any more."""
    vm = make()
    await collect(vm)
    storage.visible = False
    clock.now += 60
    await collect(vm)

    assert asked(fake) == 1


@pytest.mark.parametrize("trouble", ["hangs", "network_hangs", "unseen", "busy"])
async def test_always_asks_whatever_the_storage_says(
    fake: FakeQmp, make: Make, clock: Clock, storage: Seer, trouble: str
) -> None:
    """It is for those who know their storage."""
    vm = make(topology="always")
    storage.visible = trouble != "unseen"
    storage.hangs = trouble == "hangs"
    storage.busy = trouble == "busy"
    storage.network_hangs = trouble == "network_hangs"
    await collect(vm)
    clock.now += 60
    await collect(vm)

    assert asked(fake) == 2


@pytest.mark.parametrize("reply", [REFUSED, b'{"return": 7}\r\n'], ids=["refused", "wrong type"])
async def test_a_query_block_that_fails_costs_its_own_series(
    fake: FakeQmp, make: Make, clock: Clock, reply: Reply
) -> None:
    """And it is asked again in the next scrape."""
    good = fake.replies["query-block"]
    fake.replies["query-block"] = reply
    vm = make()
    snapshot = await collect(vm)
    assert (snapshot.up, snapshot.devices[0].file) == (True, "")
    fake.replies["query-block"] = good
    snapshot = await collect(vm)

    assert snapshot.up
    assert snapshot.devices[0].file == "/images/top.qcow2"
