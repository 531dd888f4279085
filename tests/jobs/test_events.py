"""Events are counted by their names and by the device that they are about, whatever a VM sends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from exporter.jobs.events import NAMES, Events
from exporter.metrics.types import Scope
from exporter.model.event_devices import Owners, of_graph, owners
from exporter.model.state import DeviceEvents, IoErrors, Job, JobError, VmEvents
from exporter.qmp import schema
from tests.disks import Disk

QDEV = "/machine/peripheral/vda/virtio-backend"
VDA = Disk(device="", qdev=QDEV, nodes=("top", "base"))
DISK0 = Disk(device="disk0", nodes=("other",))


def entries(*disks: Disk | dict[str, Any]) -> list[schema.BlockStats]:
    """Return query-blockstats of these disks."""
    told = [disk.stats() if isinstance(disk, Disk) else disk for disk in disks]
    return msgspec.convert(told, list[schema.BlockStats])


def filtered(disk: Disk, name: str) -> dict[str, Any]:
    """Return the entry of a disk with the filter of a job as its root."""
    entry = disk.stats()
    names: dict[str, str] = {each: entry.pop(each) for each in ("device", "qdev") if each in entry}
    return {"stats": {}, "node-name": name, "parent": entry, "backing": entry, **names}


def known(*disks: Disk | dict[str, Any]) -> Events:
    """Return the events of a VM whose devices are known."""
    events = Events()
    events.know(owners(entries(*(disks or (VDA, DISK0)))))
    return events


def take(events: Events, name: str, **data: object) -> None:
    """Take an event."""
    wire = {each.replace("_", "-"): value for each, value in data.items()}
    events.take(name, json.dumps(wire).encode())


def scrape(events: Events, *disks: Disk | dict[str, Any], more: Owners | None = None) -> None:
    """Let a scrape ask, be answered, and find what waited."""
    events.ask()
    events.know(owners(entries(*disks)))
    if events.find():
        events.give_up(more or Owners())


def counted(records: Sequence[Any]) -> list[Any]:
    """Return the records of what was counted, without those that are at 0."""
    return [
        each for each in records if any(n for n in msgspec.structs.astuple(each) if type(n) is int)
    ]


def io_errors(events: Events) -> list[IoErrors]:
    """Return the I/O errors that were counted."""
    return counted(events.records(())[Scope.IO_ERROR])


@pytest.mark.parametrize(
    ("about", "device"),
    [
        ({"device": "disk0", "node_name": "n"}, "disk0"),
        ({"device": "", "node_name": "top"}, "vda"),
        ({"device": "", "node_name": "base"}, "vda"),
        ({"device": "", "node_name": "base-file"}, "vda"),
        ({"device": "", "node_name": "new", "qom_path": QDEV}, "vda"),
        ({"device": "x" * 10_000}, ""),
        ({}, ""),
    ],
)
def test_an_io_error_is_counted_for_its_device(about: dict[str, Any], device: str) -> None:
    """By QEMU's name of it, its path, or any node of it; else for no device."""
    events = known()
    for _ in range(2):
        take(events, "BLOCK_IO_ERROR", operation="write", action="stop", **about)

    assert io_errors(events) == [IoErrors(device, "write", "stop", 2)]


@pytest.mark.parametrize(
    ("later", "node_name"),
    [
        (Disk("", ("new", "top", "base"), QDEV), "new"),
        (filtered(VDA, "#block302"), "#block302"),
        (filtered(VDA, "#block302"), "top"),
    ],
)
def test_an_event_of_a_node_that_is_new_waits_for_the_device_that_has_it(
    later: Any, node_name: str
) -> None:
    """A new layer or a job's filter; it is counted in the scrape that finds it, once."""
    events = Events()
    scrape(events, VDA, DISK0)
    take(events, "BLOCK_IO_ERROR", node_name=node_name, operation="write", action="stop")
    scrape(events, later, DISK0)
    assert io_errors(events) == [IoErrors("vda", "write", "stop", 1)]
    scrape(events, later, DISK0)

    assert io_errors(events) == [IoErrors("vda", "write", "stop", 1)]


def test_an_event_before_the_first_scrape_waits_for_it() -> None:
    """Whatever names the device."""
    events = Events()
    take(events, "BLOCK_IO_ERROR", node_name="top", operation="write", action="stop")
    take(events, "BLOCK_IO_ERROR", node_name="new", qom_path=QDEV, operation="read", action="stop")
    scrape(events, VDA, DISK0)

    assert io_errors(events) == [
        IoErrors("vda", "read", "stop", 1), IoErrors("vda", "write", "stop", 1),
    ]  # fmt: skip


def test_an_event_that_came_while_a_scrape_asked_waits_for_the_next_one() -> None:
    """The answers may be of before."""
    events = known()
    events.ask()
    take(events, "BLOCK_IO_ERROR", node_name="new", operation="write", action="stop")
    events.know(owners(entries(VDA, DISK0)))

    assert not events.find()
    assert io_errors(events) == []
    scrape(events, Disk("", ("new", "top", "base"), QDEV), DISK0)
    assert io_errors(events) == [IoErrors("vda", "write", "stop", 1)]


def test_an_event_outlives_a_scrape_that_failed() -> None:
    """A VM that did not answer is asked again."""
    events = known()
    take(events, "BLOCK_IO_ERROR", node_name="new", operation="write", action="stop")
    events.ask()
    take(events, "BLOCK_IO_ERROR", node_name="new", operation="write", action="stop")
    scrape(events, Disk("", ("new", "top", "base"), QDEV), DISK0)

    assert io_errors(events) == [IoErrors("vda", "write", "stop", 2)]


def test_an_event_of_a_node_that_no_device_has_is_counted_for_none() -> None:
    """The filter of a job that has ended since; from the scrape on that could have found it."""
    events = known()
    take(events, "BLOCK_IO_ERROR", node_name="#block9", operation="write", action="stop")
    assert io_errors(events) == []
    scrape(events, VDA, DISK0)

    assert io_errors(events) == [IoErrors("", "write", "stop", 1)]


def test_the_graph_has_nodes_that_the_statistics_leave_out() -> None:
    """Children of a quorum, and the metadata below an external data file."""
    graph = msgspec.convert(
        {
            "nodes": [
                {"id": 1, "type": "block-backend", "name": QDEV},
                {"id": 2, "type": "block-driver", "name": "top"},
                {"id": 3, "type": "block-driver", "name": "child"},
                {"id": 4, "type": "block-job", "name": "job"},
                {"id": 5, "type": "block-driver", "name": "target"},
            ],
            "edges": [
                {"parent": 1, "child": 2, "name": "root"},
                {"parent": 2, "child": 3, "name": "children.0"},
                {"parent": 3, "child": 2, "name": "cycle"},
                {"parent": 4, "child": 2, "name": "source"},
                {"parent": 4, "child": 5, "name": "target"},
            ],
        },
        schema.Graph,
    )
    events = known()
    for node in ("child", "target"):
        take(events, "BLOCK_WRITE_THRESHOLD", node_name=node)
    scrape(events, VDA, DISK0, more=of_graph(graph, entries(VDA, DISK0)))

    assert counted(events.records(())[Scope.DEVICE_EVENT]) == [
        DeviceEvents("", 1, 0),
        DeviceEvents("vda", 1, 0),
    ]


def test_a_node_that_is_a_root_is_its_own_devices() -> None:
    """Though another device has it as a layer, and stands first."""
    shared = Disk("upper", ("overlay", "base"))
    found = owners(entries(shared, Disk("lower", ("base",))))

    assert found.by_node["base"] == "lower"
    assert found.by_node["overlay"] == "upper"


def test_filters_above_filters_are_walked_once() -> None:
    """Each has what is below it twice; 40 of them would be walked for years."""
    node = msgspec.convert({"stats": {}, "node-name": "base"}, schema.BlockNode)
    for number in range(40):
        above = schema.BlockNode(stats=schema.NodeStats(), node_name=f"f{number}")
        above.parent = above.backing = node
        node = above
    root = msgspec.convert({"stats": {}, "device": "disk0", "node-name": "root"}, schema.BlockStats)
    root.parent = root.backing = node

    assert len(owners([root]).by_node) == 42


def test_another_qemu_has_other_nodes() -> None:
    """What waits is counted for no device, and no node of before is taken for one of now."""
    events = known()
    take(events, "BLOCK_IO_ERROR", node_name="new", operation="write", action="stop")
    events.forget_nodes()
    assert io_errors(events) == [IoErrors("", "write", "stop", 1)]
    take(events, "BLOCK_IO_ERROR", node_name="top", operation="read", action="stop")
    scrape(events, Disk("other", ("top",)))

    assert io_errors(events) == [
        IoErrors("", "write", "stop", 1), IoErrors("other", "read", "stop", 1),
    ]  # fmt: skip


def test_what_is_counted_of_a_device_begins_at_0() -> None:
    """So that `increase` sees the first event; a device that is gone keeps what was counted."""
    records = known(DISK0).records(())

    kinds = [(each.operation, each.action, each.count) for each in records[Scope.IO_ERROR]]
    assert kinds == [
        (operation, action, 0)
        for operation in ("read", "write")
        for action in ("ignore", "report", "stop")
    ]
    assert records[Scope.DEVICE_EVENT] == [DeviceEvents("disk0", 0, 0)]
    events = known(DISK0, Disk("disk1", ("n",)))
    take(events, "BLOCK_WRITE_THRESHOLD", node_name="n")
    scrape(events, Disk("disk2", ("m",)))
    assert events.records(())[Scope.DEVICE_EVENT] == [
        DeviceEvents("disk1", 1, 0),
        DeviceEvents("disk2", 0, 0),
    ]


def test_events_of_no_device_begin_at_0_where_there_may_be_any() -> None:
    """QEMU names each drive, but no disk that was given by -blockdev."""

    def devices(*disks: Disk) -> list[str]:
        return [each.device for each in known(*disks).records(())[Scope.DEVICE_EVENT]]

    assert devices(DISK0) == ["disk0"]
    assert devices(VDA) == ["", "vda"]


def test_records_change_when_devices_come_and_go() -> None:
    """And not otherwise."""
    events = known()
    events.records(())
    events.know(owners(entries(Disk("", ("new",), QDEV), DISK0)))
    assert not events.changed
    events.know(owners(entries(VDA)))

    assert events.changed


def test_thresholds_and_corruption_are_counted() -> None:
    """Of the device that has the node."""
    events = known()
    take(events, "BLOCK_WRITE_THRESHOLD", node_name="top", amount_exceeded=1, write_threshold=2)
    take(events, "BLOCK_IMAGE_CORRUPTED", device="disk0", msg="bad", fatal=True)

    assert counted(events.records(())[Scope.DEVICE_EVENT]) == [
        DeviceEvents("disk0", 0, 1),
        DeviceEvents("vda", 1, 0),
    ]


def test_the_errors_of_a_quorum_are_counted_from_the_first() -> None:
    """Nothing says before which devices have one."""
    events = known()
    take(events, "QUORUM_REPORT_BAD", type="read", node_name="base", sector_num=0, sectors_count=8)

    assert events.records(())[Scope.DEVICE_EVENT] == [
        DeviceEvents("", 0, 0, None),
        DeviceEvents("disk0", 0, 0, None),
        DeviceEvents("vda", 0, 0, 1),
    ]


def test_every_event_is_counted_by_its_name() -> None:
    """One that is no event of QEMU's is `other`."""
    events = Events()
    for name in ("STOP", "RESUME", "STOP", "x" * 100_000, "stop", "SCLP_CPI_INFO_AVAILABLE"):
        take(events, name)

    assert events.records(())[Scope.VM_EVENT] == [
        VmEvents("RESUME", 1),
        VmEvents("SCLP_CPI_INFO_AVAILABLE", 1),
        VmEvents("STOP", 2),
        VmEvents("other", 2),
    ]


def job(job_id: str, job_type: str = "mirror") -> Job:
    """Return a job of disk0."""
    return Job("disk0", job_id, job_type, schema.BlockJob(device=job_id, type=job_type))


def test_the_errors_of_a_job_begin_at_0_with_it() -> None:
    """Of block jobs: no other job tells of any."""
    records = Events().records((job("j"), job("snap", "snapshot-save")))[Scope.JOB_ERROR]

    assert [(each.job_id, each.operation, each.action, each.count) for each in records] == [
        ("j", operation, action, 0)
        for operation in ("read", "write")
        for action in ("ignore", "report", "stop")
    ]


def test_the_errors_of_a_job_are_counted_for_it_alone() -> None:
    """Also those that came before any answer listed it."""
    events = Events()
    for _ in range(3):
        take(events, "BLOCK_JOB_ERROR", device="j", operation="write", action="ignore")
    take(events, "BLOCK_JOB_ERROR", device="k", operation="look", action="on")
    assert counted(events.records(())[Scope.JOB_ERROR]) == []

    assert counted(events.records((job("j"), job("k")))[Scope.JOB_ERROR]) == [
        JobError("disk0", "j", "mirror", "write", "ignore", 3),
        JobError("disk0", "k", "mirror", "other", "other", 1),
    ]


def test_a_later_job_of_the_same_id_begins_at_0() -> None:
    """Whether an event told of it, or answers had neither of them in between."""
    events = Events()
    for again in (lambda: events.job_errors.forget("j"), lambda: events.records(())):
        take(events, "BLOCK_JOB_ERROR", device="j", operation="write", action="ignore")
        assert counted(events.records((job("j"),))[Scope.JOB_ERROR])
        again()
        assert not counted(events.records((job("j"),))[Scope.JOB_ERROR])


def test_a_vm_that_lies_fills_no_memory() -> None:
    """100,000 names of everything; none is lost."""
    events = Events()
    for number in range(100_000):
        word = f"x{number}"
        take(events, "BLOCK_IO_ERROR", device=word, operation=word, action=word)
        take(events, "BLOCK_IO_ERROR", node_name=word, operation="read", action="stop")
        take(events, "BLOCK_WRITE_THRESHOLD", node_name=word)
        take(events, "BLOCK_IMAGE_CORRUPTED", device=word)
        take(events, "BLOCK_JOB_ERROR", device=word, operation=word, action=word)
        take(events, word)
    waiting = len(events._since)
    scrape(events)
    records = events.records([job(f"x{number}") for number in range(100)])

    assert waiting < 2000
    assert sum(each.count for each in records[Scope.IO_ERROR]) == 200_000
    assert sum(each.write_thresholds_exceeded for each in records[Scope.DEVICE_EVENT]) == 100_000
    assert sum(each.images_corrupted for each in records[Scope.DEVICE_EVENT]) == 100_000
    assert sum(len(counted(each)) for each in records.values()) < 10_000 + len(NAMES)


@pytest.mark.parametrize("data", [b"", b"7", b'{"device": 7}', b'{"device": "\xff"}'])
@pytest.mark.parametrize("name", ["BLOCK_IO_ERROR", "BLOCK_JOB_ERROR"])
def test_an_event_that_is_not_understood_raises_what_is_caught(name: str, data: bytes) -> None:
    """It is counted as an event all the same."""
    events = Events()
    with pytest.raises((msgspec.DecodeError, UnicodeError)):
        events.take(name, data)

    assert events.records(())[Scope.VM_EVENT] == [VmEvents(name, 1)]
