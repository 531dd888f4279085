"""Targets of every shape: no disks, many disks, deep chains, limits, bitmaps, errors, daemons."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import series
from tests.e2e.lab import (
    MIB,
    Disk,
    Exporter,
    Lab,
    Monitor,
    Qemu,
    blockdev,
    drive,
    plug,
    tool,
    wait_until,
)
from tests.e2e.reading import info, known_value, labels_of, names, value

#: What changes by a command that makes no event shows with the next timed refresh.
REFRESH = "--collector.topology.max-age=1"
DEEP = 250


def block_families(exposition: str) -> set[str]:
    return {name for name in names(exposition) if name.startswith("qemu_block_")}


def test_a_storage_daemon_shows_its_nodes_and_jobs(lab: Lab) -> None:
    """It has no guest, no devices and no query-status, and is up all the same."""
    top, base = lab.chain("daemon", 2)
    arguments = []
    for node, image in (("base", base), ("top", top)):
        below = {"backing": "base" if node == "top" else None}
        file = {"driver": "file", "filename": str(image), "node-name": f"{node}-file"}
        layer = {"driver": "qcow2", "node-name": node, "file": file, **below}
        arguments += ["--blockdev", json.dumps(layer)]
    daemon = lab.storage_daemon("daemon", *arguments)
    exporter = lab.exporter()
    text = exporter.metrics()
    assert value(text, "qemu_vm_up") == 1
    assert not {"qemu_vm_running", "qemu_vm_status", "qemu_block_device_info"} & names(text)
    highest = series(text, "qemu_block_node_write_highest_offset_bytes")
    nodes = {re.findall(r'(device|layer|role|node_name)="([^"]*)"', each)[3][1] for each in highest}
    assert nodes == {"top", "base", "top-file", "base-file"}
    assert all('device="",layer="",' in each for each in highest)

    daemon.run("block-commit", {"device": "top", "job-id": "merge"})
    text = exporter.until(lambda text: value(text, "qemu_block_job_ready", job_id="merge") == 1)
    assert value(text, "qemu_block_job_length_bytes", device="", job_type="commit") == 2 * MIB
    daemon.run("block-job-complete", {"device": "merge"})
    exporter.until(lambda text: "qemu_block_job_status" not in text)


def test_a_vm_without_a_machine_has_what_a_drive_has(lab: Lab) -> None:
    """No guest device: neither a path nor an I/O status."""
    image = lab.image("disk")
    lab.qemu("vm", *drive("disk0", image))
    text = lab.exporter().metrics()
    assert info(text, "qemu_vm_status")["status"] == "running"
    device = info(text, "qemu_block_device_info", device="disk0")
    assert (device["qdev"], device["file"], device["driver"]) == ("", str(image), "qcow2")
    assert "qemu_block_device_io_status" not in text


def test_a_vm_without_disks_is_up_and_has_no_block_series(lab: Lab) -> None:
    """Nothing is made up."""
    lab.qemu("vm")
    exporter = lab.exporter()
    for text in (exporter.metrics(), exporter.fresh()):
        assert value(text, "qemu_vm_up") == 1
        assert block_families(text) == set()


def test_sixty_four_disks_are_each_there_once(lab: Lab) -> None:
    """With counters and a file of their own."""
    images = [lab.image(f"disk{number}") for number in range(64)]
    arguments = [part for n, image in enumerate(images) for part in drive(f"disk{n}", image)]
    vm = lab.qemu("vm", *arguments)
    Disk(vm, "disk6").write(0, 4096)
    text = lab.exporter().metrics()
    devices = labels_of(text, "qemu_block_device_info")
    expected = {f"disk{number}": str(image) for number, image in enumerate(images)}
    assert {each["device"]: each["file"] for each in devices} == expected
    written = series(text, "qemu_block_written_bytes_total")
    assert len(written) == len(devices) == 64
    assert [sample for sample, each in written.items() if float(each)] == [
        'qemu_block_written_bytes_total{vm="vm",device="disk6"}'
    ]


def test_a_chain_of_250_layers_is_told_to_its_end(lab: Lab) -> None:
    """A depth of 249, and each layer once, in order."""
    images: list[Path] = []
    for number in reversed(range(DEEP)):
        path = lab.folder / f"layer{number}.qcow2"
        # Without looking at the backing files, which takes their number squared.
        below = ["-u", "-b", str(images[0]), "-F", "qcow2"] if images else []
        create = [tool("qemu-img"), "create", "-q", "-f", "qcow2", *below, str(path), "1M"]
        subprocess.run(create, check=True)
        images.insert(0, path)
    lab.qemu("vm", *drive("disk0", images[0]))
    text = lab.exporter().metrics()
    assert value(text, "qemu_block_device_backing_depth") == DEEP - 1
    layers = labels_of(text, "qemu_block_node_info", role="format")
    assert [(each["layer"], each["file"]) for each in layers] == [
        (str(number), str(image)) for number, image in enumerate(images)
    ]
    allocated = series(text, "qemu_block_node_allocated_bytes")
    assert len(allocated) == DEEP


@pytest.fixture(scope="module")
def vm(shared_lab: Lab) -> Qemu:
    """A VM with a disk for each thing that a disk may have."""
    lab = shared_lab
    limits = (
        *("bps-write=1048576", "bps-write-max=4194304", "bps-write-max-length=3"),
        *("iops-read=500", "iops-size=8192"),
    )
    image = {"driver": "file", "filename": str(lab.image("filtered"))}
    below = {"driver": "qcow2", "node-name": "below", "file": image}
    above = {"driver": "throttle", "node-name": "above", "throttle-group": "group", "file": "below"}
    return lab.qemu(
        "vm",
        *drive("limited", lab.image("limited"), *(f"throttling.{limit}" for limit in limits)),
        *(
            "-object",
            "throttle-group,id=group,x-iops-total=100,x-bps-read=5000,x-bps-read-max=9000",
        ),
        *("-blockdev", json.dumps(below), "-blockdev", json.dumps(above)),
        *plug("filtered", "above"),
        *drive("timed", lab.image("timed"), "stats-intervals.0=3600", "stats-intervals.1=86400"),
        *plug("front", "timed"),
        *blockdev("marked", lab.image("marked")),
        *("-drive", "if=none,id=cd0,media=cdrom", "-device", "ide-cd,drive=cd0,id=ide-cd0"),
        machine="pc",
    )


@pytest.fixture(scope="module")
def exporter(shared_lab: Lab, vm: Qemu) -> Exporter:
    """An exporter on that VM."""
    return shared_lab.exporter(REFRESH)


def throttle(exposition: str, device: str) -> dict[str, float]:
    """Return the throttle limits of a device."""
    prefix = "qemu_block_throttle_"
    return {
        name.removeprefix(prefix): known_value(exposition, name, device=device)
        for name in names(exposition)
        if name.startswith(prefix) and series(exposition, name, device=device)
    }


def test_limits_of_a_drive_are_shown_and_no_limit_is_not(vm: Qemu, exporter: Exporter) -> None:
    """And a change of them, with the next refresh."""
    text = exporter.metrics()
    limits = {
        "write_bytes_per_second": 1048576,
        "write_bytes_per_second_burst": 4194304,
        "write_bytes_per_second_burst_length_seconds": 3,
        "read_operations_per_second": 500,
        "operation_size_bytes": 8192,
    }
    assert throttle(text, "limited") == limits
    assert info(text, "qemu_block_device_info", device="limited")["throttle_group"] == "limited"
    assert throttle(text, "timed") == {}

    none = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd"), 0)
    vm.run("block_set_io_throttle", {"device": "limited", **none, "iops_wr": 77})
    # None are shown while query-block is older than three times its max-age, on a busy machine.
    text = exporter.until(lambda text: throttle(text, "limited") not in (limits, {}))
    assert throttle(text, "limited") == {"write_operations_per_second": 77}


def test_limits_of_a_throttle_filter_are_those_of_its_group(vm: Qemu, exporter: Exporter) -> None:
    """Which query-block does not tell; and the filter is no layer."""
    text = exporter.metrics()
    limits = {
        "total_operations_per_second": 100,
        "read_bytes_per_second": 5000,
        "read_bytes_per_second_burst": 9000,
        "read_bytes_per_second_burst_length_seconds": 1,
    }
    assert throttle(text, "filtered") == limits
    assert series(text, "qemu_block_throttle_total_operations_per_second", throttle_group="group")
    assert value(text, "qemu_block_device_backing_depth", device="filtered") == 0
    nodes = labels_of(text, "qemu_block_node_info", device="filtered")
    told = {(each["role"], each["layer"], each["node_name"], each["driver"]) for each in nodes}
    assert {("filter", "", "above", "throttle"), ("format", "0", "below", "qcow2")} <= told
    assert {each["layer"] for each in nodes if each["role"] != "filter"} == {"0"}

    path = {"path": "/objects/group", "property": "limits"}
    vm.run("qom-set", {**path, "value": {"iops-total": 200}})
    exporter.until(
        lambda text: throttle(text, "filtered").get("total_operations_per_second") == 200
    )


def test_latencies_are_qemus_own_histogram_and_intervals(vm: Qemu, exporter: Exporter) -> None:
    """Bins are counted up; the interval's lengths are labels."""
    boundaries = [1000, 10**6, 10**9]
    path = "/machine/peripheral/front/virtio-backend"
    vm.run("block-latency-histogram-set", {"id": path, "boundaries": boundaries})
    disk = Disk(vm, "timed")
    for number in range(5):
        disk.write(number * 65536, 4096)
    text = exporter.fresh()
    stats = disk.stats
    bins = stats["wr_latency_histogram"]["bins"]
    expected = {
        edge: float(sum(bins[: number + 1]))
        for number, edge in enumerate(("1e-06", "0.001", "1.0", "+Inf"))
    }
    buckets = series(text, "qemu_block_write_latency_seconds_bucket", device="timed")
    assert {
        re.findall(r'le="([^"]+)"', sample)[0]: float(each) for sample, each in buckets.items()
    } == expected
    assert expected["+Inf"] == 5
    for interval in ("3600", "86400"):
        highest = value(
            text,
            "qemu_block_interval_write_latency_max_seconds",
            device="timed",
            interval_seconds=interval,
        )
        of_qemu = next(t for t in stats["timed_stats"] if t["interval_length"] == int(interval))
        assert highest == of_qemu["max_wr_latency_ns"] / 10**9 > 0


def test_dirty_bitmaps_count_what_was_written(vm: Qemu, exporter: Exporter) -> None:
    """With their flags, on the active layer's node."""
    disk = Disk(vm, "marked")
    of = {"node": disk.node_name, "name": "backup"}
    vm.run("block-dirty-bitmap-add", {**of, "granularity": 65536, "persistent": True})
    disk.write(0, 65536 * 3)

    def bitmap(text: str, name: str) -> float | None:
        return value(text, f"qemu_block_dirty_bitmap_{name}", device="marked", bitmap="backup")

    text = exporter.until(lambda text: bitmap(text, "bytes") == 65536 * 3)
    flags = {name: bitmap(text, name) for name in ("recording", "busy", "persistent")}
    assert flags == {"recording": 1, "busy": 0, "persistent": 1}
    assert bitmap(text, "granularity_bytes") == 65536
    vm.run("block-dirty-bitmap-disable", of)
    exporter.until(lambda text: bitmap(text, "recording") == 0)
    vm.run("block-dirty-bitmap-remove", of)
    exporter.until(lambda text: "qemu_block_dirty_bitmap_" not in text)


def test_a_cdrom_may_be_empty_full_and_open(shared_lab: Lab, vm: Qemu, exporter: Exporter) -> None:
    """It has counters in each state, and a depth when there is something in it."""
    state = ("inserted", "tray_open")

    def now(text: str) -> list[float | None]:
        return [value(text, f"qemu_block_device_{name}", device="cd0") for name in state]

    text = exporter.metrics()
    assert now(text) == [0, 0]
    assert value(text, "qemu_block_reads_completed_total", device="cd0") == 0
    assert value(text, "qemu_block_device_backing_depth", device="cd0") is None
    assert info(text, "qemu_block_device_info", device="cd0")["file"] == ""

    medium = shared_lab.folder / "medium.iso"
    medium.write_bytes(bytes(MIB))
    insert = {"id": "ide-cd0", "filename": str(medium), "format": "raw"}
    vm.run("blockdev-change-medium", insert)
    text = exporter.until(lambda text: now(text) == [1, 0])
    device = info(text, "qemu_block_device_info", device="cd0")
    assert (device["file"], device["removable"], device["read_only"]) == (
        str(medium),
        "true",
        "true",
    )
    assert value(text, "qemu_block_device_backing_depth", device="cd0") == 0

    vm.run("blockdev-open-tray", {"id": "ide-cd0"})
    exporter.until(lambda text: now(text) == [1, 1])
    vm.run("blockdev-remove-medium", {"id": "ide-cd0"})
    exporter.until(lambda text: now(text) == [0, 1])


#: A boot sector that goes on writing the second sector of its disk.
WRITER = (
    bytes.fromhex("31c08ed88ec0bb007cb80103b90200ba8000cd13ebf3").ljust(510, b"\0") + b"\x55\xaa"
)


def test_a_guest_that_is_stopped_by_a_full_disk_says_so(lab: Lab) -> None:
    """Its run state and the disk's own; and both are well when it goes on."""
    image = lab.folder / "guest.raw"
    image.write_bytes(WRITER.ljust(MIB, b"\0"))
    options = {
        "if": "none",
        "id": "disk0",
        "driver": "raw",
        "file.driver": "blkdebug",
        "file.image.driver": "file",
        "file.image.filename": str(image),
        "file.inject-error.0.event": "none",
        "file.inject-error.0.iotype": "write",
        "file.inject-error.0.errno": "28",
        "file.inject-error.0.once": "on",
    }
    given = ",".join(f"{name}={each}" for name, each in options.items())
    vm = lab.qemu("vm", "-drive", given, *plug("front", "disk0"), machine="pc")
    exporter = lab.exporter()
    before = exporter.metrics()
    assert info(before, "qemu_vm_status")["status"] == "prelaunch"
    assert info(before, "qemu_block_device_io_status", device="disk0")["status"] == "ok"

    vm.run("cont")
    wait_until(lambda: vm.run("query-status")["status"] == "io-error", "the guest writes")
    text = exporter.fresh()
    assert info(text, "qemu_vm_status")["status"] == "io-error"
    assert value(text, "qemu_vm_running") == 0
    assert info(text, "qemu_block_device_io_status", device="disk0")["status"] == "nospace"

    vm.run("cont")
    wait_until(lambda: Disk(vm, "disk0").stats["wr_operations"], "the guest writes on")
    text = exporter.fresh()
    assert value(text, "qemu_vm_running") == 1
    assert info(text, "qemu_block_device_io_status", device="disk0")["status"] == "ok"


def failing_chain(lab: Lab) -> Qemu:
    """Start a VM whose base image cannot be written."""
    top, base = lab.chain("disk", 2)
    rule = {"event": "none", "iotype": "write", "errno": 5}
    image = {"driver": "file", "filename": str(base)}
    failing = {"driver": "blkdebug", "image": image, "inject-error": [rule]}
    below = {"driver": "qcow2", "node-name": "base", "file": failing}
    above = {"driver": "qcow2", "node-name": "top", "backing": "base"}
    file = {"driver": "file", "filename": str(top)}
    nodes = ["-blockdev", json.dumps(below), "-blockdev", json.dumps({**above, "file": file})]
    return lab.qemu("vm", *nodes, *plug("disk0", "top"), machine="pc")


def test_a_job_that_is_stopped_by_an_error_says_so(lab: Lab) -> None:
    """Paused, by nobody, its I/O status tells why; when it has ended it still has its disk."""
    vm = failing_chain(lab)
    exporter = lab.exporter()
    exporter.metrics()
    commit = {"device": "top", "job-id": "merge", "on-error": "stop", "auto-dismiss": False}
    vm.run("block-commit", commit)
    stopped = {"io-status": "failed", "status": "paused"}.items()
    wait_until(lambda: stopped <= vm.job("merge").items(), "the job meets the error")
    text = exporter.fresh()
    job = {"device": "disk0", "job_id": "merge"}
    assert info(text, "qemu_block_job_io_status", **job)["status"] == "failed"
    assert info(text, "qemu_block_job_status", **job)["status"] == "paused"
    assert value(text, "qemu_block_job_paused", **job) == 1

    vm.run("block-job-cancel", {"device": "merge", "force": True})
    wait_until(lambda: vm.job("merge")["status"] == "concluded", "the job ends")
    text = exporter.fresh()
    assert info(text, "qemu_block_job_status", **job)["status"] == "concluded"
    ended = info(text, "qemu_block_job_info", **job)
    assert (ended["top"], ended["base"]) == ("0", "1")


def test_a_job_that_failed_is_kept_with_its_error(lab: Lab) -> None:
    """For as long as QEMU keeps it; the chain is what it was."""
    vm = failing_chain(lab)
    exporter = lab.exporter()
    exporter.metrics()
    vm.run("block-commit", {"device": "top", "job-id": "merge", "auto-dismiss": False})
    wait_until(lambda: vm.job("merge")["status"] == "concluded", "the job fails")
    text = exporter.fresh()
    job = info(text, "qemu_block_job_info", job_id="merge")
    # Where it worked is no more to be seen: it has let go of its nodes.
    assert job["error"] == "Input/output error"
    assert info(text, "qemu_block_job_status", job_id="merge")["status"] == "concluded"
    assert value(text, "qemu_block_device_backing_depth", device="disk0") == 1
    vm.run("job-dismiss", {"id": "merge"})
    assert "qemu_block_job_status" not in exporter.fresh()


def other_job_is_shown_until_dismissed(vm: Qemu, exporter: Exporter, job_type: str) -> None:
    """Watch the only job, which is not a block job: a status and a ratio, but no byte series."""
    wait_until(lambda: vm.run("query-jobs")[0]["status"] == "concluded", "the job ends")
    text = exporter.fresh()
    job = {"job_id": "other", "job_type": job_type}
    assert info(text, "qemu_block_job_status", **job)["status"] == "concluded"
    assert value(text, "qemu_block_job_progress_ratio", **job) == 1
    assert not series(text, "qemu_block_job_offset_bytes")
    vm.run("job-dismiss", {"id": "other"})
    assert "qemu_block_job_status" not in exporter.fresh()


def test_a_job_that_creates_an_image_has_a_status_and_a_ratio(lab: Lab) -> None:
    """It is found by its event, has no byte series and is gone when it is dismissed."""
    vm = lab.qemu("vm", *blockdev("disk0", lab.image("disk")), machine="pc")
    exporter = lab.exporter()
    exporter.metrics()
    options = {"driver": "file", "filename": str(lab.folder / "new.img"), "size": MIB}
    vm.run("blockdev-create", {"job-id": "other", "options": options})
    other_job_is_shown_until_dismissed(vm, exporter, "create")


def test_a_snapshot_inside_an_image_is_counted_and_its_job_shown(lab: Lab) -> None:
    """QEMU has a job for it since 6.0; an older one has only savevm, which runs without a job."""
    vm = lab.qemu("vm", *blockdev("disk0", lab.image("disk")), machine="pc")
    if {"name": "snapshot-save"} in vm.run("query-commands"):
        exporter = lab.exporter()
        exporter.metrics()
        node = Disk(vm, "disk0").node_name
        save = {"job-id": "other", "tag": "state", "vmstate": node, "devices": [node]}
        vm.run("snapshot-save", save)
        other_job_is_shown_until_dismissed(vm, exporter, "snapshot-save")
        text = exporter.fresh()
    else:
        # A VM that is not running tells of savevm by no event.
        exporter = lab.exporter(REFRESH)
        exporter.metrics()
        assert vm.hmp("savevm state") == ""
        text = exporter.until(lambda text: snapshots_inside(text) == 1)
        assert "qemu_block_job_status" not in text
    assert snapshots_inside(text) == 1


def snapshots_inside(exposition: str) -> float | None:
    return value(exposition, "qemu_block_node_internal_snapshots", role="format")


def test_a_socket_that_is_shared_is_left_after_each_scrape(lab: Lab) -> None:
    """Another client gets its turn, and what is known outlives the connection."""
    vm = lab.qemu("vm", *blockdev("disk0", *lab.chain("disk", 2)), machine="pc")
    # Before the exporter, whose first query-block could else be of the time before it.
    vm.run("block-commit", {"device": "disk0-0", "job-id": "merge", "speed": 1})
    exporter = lab.exporter("--qmp.connection=per-scrape")
    for _ in range(3):
        vm.left()
        text = exporter.fresh()
        assert value(text, "qemu_vm_up") == 1
        assert value(text, "qemu_block_job_ready", device="disk0", job_id="merge") == 0
        other = Monitor(vm.socket)
        try:
            assert other.run("query-status")["status"] == "prelaunch"
        finally:
            other.close()
    assert value(text, "qemu_exporter_qmp_commands_total", command="query-block") == 1
    assert value(text, "qemu_exporter_qmp_commands_total", command="qmp_capabilities") == 3
