"""Events find their disk: what a guest of a real QEMU runs into while its chain is a new one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.jobs.events import NAMES
from tests.conftest import series
from tests.e2e.faults import ONCE, file_node
from tests.e2e.lab import MIB, Exporter, Lab, Qemu, tool, wait_until
from tests.e2e.reading import value
from tests.e2e.test_targets import WRITER

IO_ERRORS = "qemu_block_io_errors_total"
#: A disk by -blockdev stands beside the one that is written to: there is a choice.
OTHER = {"driver": "null-co", "node-name": "other", "size": MIB}


def guest(lab: Lab, fault: dict[str, Any], above: dict[str, Any] | None = None) -> Qemu:
    """Start a VM, paused, whose guest writes to a disk by -blockdev, which may fail.

    `above` is a node that is put on the disk's own, which is named `disk`.
    """
    image = lab.folder / "guest.raw"
    image.write_bytes(WRITER.ljust(MIB, b"\0"))
    nodes = [
        {"driver": "raw", "node-name": "disk", "file": file_node(image, fault)},
        *([above] if above else []),
        OTHER,
    ]
    given = [part for node in nodes for part in ("-blockdev", json.dumps(node))]
    plugged = []
    for device, node in (("other", "other"), ("boot", above["node-name"] if above else "disk")):
        options = f"virtio-blk-pci,id={device},drive={node},werror=stop,rerror=stop"
        plugged += ["-device", options + (",bootindex=0" if device == "boot" else "")]
    group = ["-object", "throttle-group,id=group,x-iops-total=10000"]
    return lab.qemu("vm", *group, *given, *plugged, machine="pc")


def nothing(_lab: Lab, _vm: Qemu) -> None:
    """The chain is the one that the last scrape saw."""


def back_up(lab: Lab, vm: Qemu) -> None:
    """Begin a backup: its filter is the disk's root from then on."""
    target = {"driver": "null-co", "node-name": "target", "size": MIB}
    vm.run("blockdev-add", target)
    vm.run("blockdev-backup", {"device": "disk", "target": "target", "sync": "none", "job-id": "b"})


def snapshot(lab: Lab, vm: Qemu) -> None:
    """Put an overlay on the disk, to which the first write fails."""
    overlay = lab.folder / "overlay.qcow2"
    create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-F",
        "raw",
        "-b",
        "guest.raw",
        str(overlay),
        "1M",
    ]
    subprocess.run([tool("qemu-img"), *create], check=True)
    node = {"driver": "qcow2", "node-name": "overlay", "backing": None}
    vm.run("blockdev-add", {**node, "file": file_node(overlay, ONCE)})
    vm.run("blockdev-snapshot", {"node": "disk", "overlay": "overlay"})


THROTTLE = {"driver": "throttle", "node-name": "held", "throttle-group": "group", "file": "disk"}


@pytest.mark.parametrize(
    ("fault", "above", "change"),
    [
        (ONCE, None, nothing),
        (ONCE, THROTTLE, nothing),
        (ONCE, None, back_up),
        ({}, None, snapshot),
    ],
    ids=["plain", "throttle", "backup", "snapshot"],
)
def test_an_io_error_of_a_disk_by_blockdev_is_counted_for_it(
    lab: Lab,
    fault: dict[str, Any],
    above: dict[str, Any] | None,
    change: Callable[[Lab, Qemu], None],
) -> None:
    """By whichever node is its root at that moment, though no scrape has seen it; and once."""
    vm = guest(lab, fault, above)
    exporter = lab.exporter()
    labels = {"operation": "write", "action": "stop"}
    assert value(exporter.metrics(), IO_ERRORS, device="boot", **labels) == 0
    change(lab, vm)
    vm.run("cont")
    wait_until(lambda: vm.run("query-status")["status"] == "io-error", "the guest writes")

    exporter.until(lambda text: value(text, IO_ERRORS, device="boot", **labels) == 1)
    text = exporter.fresh()
    assert sum(map(float, series(text, IO_ERRORS).values())) == 1
    assert value(text, IO_ERRORS, device="boot", **labels) == 1
    assert value(text, "qemu_block_device_io_status", device="boot", status="failed") == 1


def test_a_threshold_of_a_new_layer_is_counted_for_its_disk(lab: Lab) -> None:
    """The event names the node alone, in every version."""
    vm = guest(lab, {})
    exporter = lab.exporter()
    exporter.metrics()
    snapshot(lab, vm)
    vm.run("block-set-write-threshold", {"node-name": "overlay", "write-threshold": 1})
    assert vm.hmp('qemu-io -d boot/virtio-backend "aio_write 0 64k"') == ""

    exporter.until(
        lambda text: value(text, "qemu_block_write_thresholds_exceeded_total", device="boot") == 1
    )


def test_the_child_of_a_quorum_belongs_to_its_disk(lab: Lab) -> None:
    """The statistics do not have it, and the graph does."""
    children = []
    for number in range(3):
        image = lab.folder / f"{number}.raw"
        image.write_bytes(bytes(MIB))
        node = {"driver": "raw", "node-name": f"child{number}", "file": file_node(image, {})}
        children += ["-blockdev", json.dumps(node)]
    names = [f"child{number}" for number in range(3)]
    quorum = {"driver": "quorum", "node-name": "voting", "vote-threshold": 2, "children": names}
    plugged = ["-device", "virtio-blk-pci,id=boot,drive=voting"]
    vm = lab.qemu("vm", *children, "-blockdev", json.dumps(quorum), *plugged, machine="pc")
    exporter = lab.exporter()
    exporter.metrics()
    vm.run("block-set-write-threshold", {"node-name": "child1", "write-threshold": 1})
    assert vm.hmp('qemu-io -d boot/virtio-backend "aio_write 0 64k"') == ""

    exporter.until(
        lambda text: value(text, "qemu_block_write_thresholds_exceeded_total", device="boot") == 1
    )


def retrying(lab: Lab) -> Qemu:
    """Start a VM with a backup that goes on trying to write to a target that fails."""
    image = lab.folder / "disk.raw"
    image.write_bytes(b"x" * MIB)
    failing = {"event": "none", "iotype": "write", "errno": 5, "immediately": True}
    target = lab.folder / "target.raw"
    target.write_bytes(bytes(MIB))
    nodes = [
        {"driver": "raw", "node-name": "disk", "file": file_node(image, {})},
        {"driver": "raw", "node-name": "target", "file": file_node(target, failing)},
    ]
    given = [part for node in nodes for part in ("-blockdev", json.dumps(node))]
    plugged = ["-device", "virtio-blk-pci,id=boot,drive=disk"]
    return lab.qemu("vm", *given, *plugged, machine="pc")


def test_a_job_that_tries_again_for_ever_is_seen_by_its_errors(lab: Lab) -> None:
    """QEMU calls it running and its I/O status ok; the errors are those of the job alone."""
    vm = retrying(lab)
    exporter = lab.exporter()
    exporter.metrics()
    backup = {"device": "disk", "target": "target", "sync": "full", "job-id": "copy"}
    vm.run("blockdev-backup", {**backup, "on-target-error": "ignore"})
    of_job = {"device": "boot", "job_id": "copy", "job_type": "backup", "operation": "write"}

    def errors(text: str) -> float:
        return value(text, "qemu_block_job_errors_total", action="ignore", **of_job) or 0

    first = errors(exporter.until(errors))
    text = exporter.until(lambda text: errors(text) > first)
    assert value(text, "qemu_block_job_errors_total", action="stop", **of_job) == 0
    assert value(text, "qemu_block_job_status", job_id="copy", status="running") == 1
    assert value(text, "qemu_block_job_io_status", job_id="copy", status="ok") == 1

    vm.run("block-job-cancel", {"device": "copy", "force": True})
    wait_until(lambda: vm.job("copy") is None, "the job is gone")
    exporter.until(lambda text: not series(text, "qemu_block_job_errors_total"))
    vm.run("blockdev-backup", {**backup, "sync": "none"})
    text = exporter.until(lambda text: series(text, "qemu_block_job_errors_total"))
    assert errors(text) == 0


def test_every_event_of_this_qemu_has_a_name(lab: Lab, tmp_path: Path) -> None:
    """As QEMU's own description of its monitor says."""
    schema = lab.qemu("vm").run("query-qmp-schema")

    assert {each["name"] for each in schema if each["meta-type"] == "event"} <= NAMES


def test_an_exporter_that_begins_later_shows_the_disk_at_0(lab: Lab) -> None:
    """No event is kept for it; a counter that is not there would hide the next one."""
    vm = guest(lab, {**ONCE, "once": True})
    vm.run("cont")
    wait_until(lambda: vm.run("query-status")["status"] == "io-error", "the guest writes")
    exporter: Exporter = lab.exporter()

    assert set(series(exporter.metrics(), IO_ERRORS).values()) == {"0"}


@pytest.mark.parametrize("account", [True, False])
def test_the_time_of_failed_requests_counts_unless_the_disk_leaves_it_out(
    lab: Lab, account: bool
) -> None:
    """What a mean latency divides by: where all fail, nothing is completed."""
    image = lab.folder / "guest.raw"
    image.write_bytes(WRITER.ljust(MIB, b"\0"))
    refusing = {"event": "none", "iotype": "read", "errno": 5}
    disk = {"driver": "raw", "node-name": "disk", "file": file_node(image, refusing)}
    options = "virtio-blk-pci,id=boot,drive=disk,rerror=report"
    options += f",account-failed={'on' if account else 'off'}"
    vm = lab.qemu("vm", "-blockdev", json.dumps(disk), "-device", options, machine="pc")
    vm.run("cont")
    exporter = lab.exporter()
    text = exporter.until(lambda text: value(text, "qemu_block_reads_failed_total", device="boot"))

    assert value(text, "qemu_block_reads_completed_total", device="boot") == 0
    assert bool(value(text, "qemu_block_read_time_seconds_total", device="boot")) is account
