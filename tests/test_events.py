"""Events are counted by their names and by the device that they are about, whatever a VM sends."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from exporter.events import NAMES, Events
from exporter.family import Scope
from exporter.model import Device, DeviceEvents, IoErrors, Node, VmEvents

QDEV = "/machine/peripheral/vda/virtio-backend"
DEVICES = (
    Device(
        device="vda",
        qdev=QDEV,
        nodes=(Node(layer="0", role="format", node_name="top"),),
        backing_depth=0,
        expected_backing_depth=0,
    ),
    Device(device="disk0", nodes=(), backing_depth=0, expected_backing_depth=0),
)


def take(events: Events, name: str, **data: object) -> None:
    """Take an event."""
    wire = {each.replace("_", "-"): value for each, value in data.items()}
    events.take(name, json.dumps(wire).encode(), DEVICES)


@pytest.mark.parametrize(
    ("about", "device"),
    [
        ({"device": "disk0", "node_name": "n"}, "disk0"),
        ({"device": "", "node_name": "top"}, "vda"),
        ({"device": "", "node_name": "new", "qom_path": QDEV}, "vda"),
        ({"device": "", "node_name": "new", "qom_path": "/machine/other"}, ""),
        ({"device": "x" * 10_000}, ""),
        ({}, ""),
    ],
)
def test_an_io_error_is_counted_for_its_device(about: dict[str, Any], device: str) -> None:
    """By QEMU's name of it, its path, or its node; else for no device."""
    events = Events()
    for _ in range(2):
        take(events, "BLOCK_IO_ERROR", operation="write", action="stop", **about)

    assert events.records()[Scope.IO_ERROR] == [IoErrors(device, "write", "stop", 2)]


def test_thresholds_and_corruption_are_counted() -> None:
    """An event that has not come to a device has no counter of it."""
    events = Events()
    take(events, "BLOCK_WRITE_THRESHOLD", node_name="top", amount_exceeded=1, write_threshold=2)
    take(events, "BLOCK_IMAGE_CORRUPTED", device="disk0", msg="bad", fatal=True)

    assert events.records()[Scope.DEVICE_EVENT] == [
        DeviceEvents("disk0", None, 1),
        DeviceEvents("vda", 1, None),
    ]


def test_every_event_is_counted_by_its_name() -> None:
    """One that is no event of QEMU's is `other`."""
    events = Events()
    for name in ("STOP", "RESUME", "STOP", "x" * 100_000, "stop"):
        take(events, name)

    assert events.records()[Scope.VM_EVENT] == [
        VmEvents("RESUME", 1),
        VmEvents("STOP", 2),
        VmEvents("other", 2),
    ]


def test_a_vm_that_lies_fills_no_memory() -> None:
    """100,000 names of everything."""
    events = Events()
    for number in range(100_000):
        word = f"x{number}"
        take(events, "BLOCK_IO_ERROR", device=word, operation=word, action=word)
        take(events, "BLOCK_WRITE_THRESHOLD", node_name=word)
        take(events, "BLOCK_IMAGE_CORRUPTED", device=word)
        take(events, word)
    records = events.records()

    assert sum(each.count for each in records[Scope.IO_ERROR]) == 100_000
    assert sum(len(each) for each in records.values()) < 5000 + len(NAMES)


@pytest.mark.parametrize("data", [b"", b"7", b'{"device": 7}', b'{"device": "\xff"}'])
def test_an_event_that_is_not_understood_raises_what_is_caught(data: bytes) -> None:
    """It is counted as an event all the same."""
    events = Events()
    with pytest.raises((msgspec.DecodeError, UnicodeError)):
        events.take("BLOCK_IO_ERROR", data, ())

    assert events.records()[Scope.VM_EVENT] == [VmEvents("BLOCK_IO_ERROR", 1)]
