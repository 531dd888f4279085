"""Snapshot a disk, write, commit the overlay back, complete: what a scrape shows of each step."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.lab import MIB, Disk, Exporter, Lab, blockdev, drive, plug, wait_until
from tests.e2e.reading import assert_never_lower, info, value

#: How a disk is given to QEMU -> its `device` label.
DISKS = {"drive": "disk0", "blockdev": "virtio-disk1"}
by_both = pytest.mark.parametrize("kind", DISKS)
#: Of a commit: it copies 16 MiB at once, and then nothing for minutes.
HELD_BYTES_PER_SECOND = 65536


@pytest.fixture
def exporter(lab: Lab) -> Exporter:
    """An exporter and a VM with a disk of each kind."""
    lab.qemu(
        "vm",
        *drive("disk0", lab.image("disk0")),
        *plug("virtio-disk0", "disk0"),
        *blockdev("virtio-disk1", lab.image("disk1")),
        machine="pc",
    )
    return lab.exporter()


@pytest.fixture
def disk(lab: Lab, exporter: Exporter, kind: str) -> Disk:
    """The disk that a test is about."""
    return Disk(lab.vms["vm"], DISKS[kind])


def snapshot(disk: Disk, lab: Lab, name: str = "overlay") -> str:
    """Put an overlay on a disk and return its file."""
    file = str(lab.folder / f"{name}.qcow2")
    arguments = {"snapshot-file": file, "format": "qcow2"}
    if disk.entry["device"]:
        disk.vm.run("blockdev-snapshot-sync", {"device": disk.device, **arguments})
    else:
        nodes = {"node-name": disk.node_name, "snapshot-node-name": f"node-{name}"}
        disk.vm.run("blockdev-snapshot-sync", {**nodes, **arguments})
    return file


def commit(disk: Disk, speed: int = 0) -> str:
    """Start to commit the active layer into its base and return the job's id."""
    if disk.entry["device"]:
        disk.vm.run("block-commit", {"device": disk.device, "speed": speed})
        return disk.device
    disk.vm.run("block-commit", {"device": disk.node_name, "job-id": "merge", "speed": speed})
    return "merge"


def commit_until_ready(disk: Disk, exporter: Exporter) -> str:
    """Start a commit and wait until a scrape shows it ready."""
    job = commit(disk)
    exporter.until(lambda text: value(text, "qemu_block_job_ready", job_id=job) == 1)
    return job


def depth(exposition: str, disk: Disk) -> float | None:
    return value(exposition, "qemu_block_device_backing_depth", device=disk.device)


def written(exposition: str, disk: Disk) -> float | None:
    return value(exposition, "qemu_block_written_bytes_total", device=disk.device)


def file_of(exposition: str, disk: Disk) -> str:
    return info(exposition, "qemu_block_device_info", device=disk.device)["file"]


@pytest.mark.parametrize(("kind", "hmp"), [("drive", True), ("drive", False), ("blockdev", False)])
def test_a_snapshot_makes_the_chain_deeper_and_keeps_the_counters(
    lab: Lab, exporter: Exporter, disk: Disk, hmp: bool
) -> None:
    """One layer more, its file shown, and the device's counters go on."""
    disk.write(0, 3 * MIB)
    before = exporter.metrics()
    assert (depth(before, disk), written(before, disk)) == (0, 3 * MIB)
    if hmp:
        overlay = str(lab.folder / "overlay.qcow2")
        assert disk.vm.hmp(f"snapshot_blkdev {disk.device} {overlay} qcow2") == ""
    else:
        overlay = snapshot(disk, lab)
    after = exporter.until(lambda text: depth(text, disk) == 1)
    assert file_of(after, disk) == overlay
    assert written(after, disk) == 3 * MIB
    assert_never_lower(exporter.history, device=disk.device)


@pytest.mark.parametrize("kind", ["blockdev"])
def test_each_snapshot_is_a_layer_with_a_number(lab: Lab, exporter: Exporter, disk: Disk) -> None:
    """Layer 0 is the active one and each layer below names the file that it is."""
    base = file_of(exporter.metrics(), disk)
    first, second = snapshot(disk, lab, "first"), snapshot(disk, lab, "second")
    text = exporter.until(lambda text: depth(text, disk) == 2)
    layers = {
        layer: info(text, "qemu_block_node_info", device=disk.device, layer=layer, role="format")[
            "file"
        ]
        for layer in "012"
    }
    assert layers == {"0": second, "1": first, "2": base}


@by_both
def test_writes_move_the_counter_by_exactly_the_bytes_written(
    exporter: Exporter, disk: Disk
) -> None:
    """Bytes and requests, on this disk and no other."""
    start = exporter.metrics()
    sizes = [512, 4096, 65536, 3 * MIB]
    for number, size in enumerate(sizes):
        disk.write(number * 4 * MIB, size)
    text = exporter.fresh()
    assert written(start, disk) == 0
    assert written(text, disk) == sum(sizes)
    writes = "qemu_block_writes_completed_total"
    assert value(text, writes, device=disk.device) == len(sizes)
    other = next(name for name in DISKS.values() if name != disk.device)
    assert value(text, writes, device=other) == 0


@by_both
def test_a_commit_shows_as_a_job_with_what_qemu_says_of_it(
    lab: Lab, exporter: Exporter, disk: Disk
) -> None:
    """Offset, length, status, speed limit and flags of a job that is held back by its limit."""
    snapshot(disk, lab)
    for number in range(3):
        disk.write(number * 16 * MIB, 16 * MIB)
    job_id = commit(disk, speed=HELD_BYTES_PER_SECOND)

    def still() -> Any:
        job = disk.vm.job(job_id)
        text = exporter.fresh()
        return job["offset"] and job == disk.vm.job(job_id) and (text, job)

    text, job = wait_until(still, "a scrape in which the job stands still")
    assert 0 < job["offset"] < job["len"] == 48 * MIB
    labels = {"device": disk.device, "job_id": job_id, "job_type": "commit"}
    shown = {
        "offset_bytes": job["offset"],
        "length_bytes": job["len"],
        "speed_limit_bytes_per_second": HELD_BYTES_PER_SECOND,
        "ready": 0,
        "paused": 0,
        "auto_finalize": 1,
        "auto_dismiss": 1,
    }
    assert {name: value(text, f"qemu_block_job_{name}", **labels) for name in shown} == shown
    assert info(text, "qemu_block_job_status", **labels)["status"] == job["status"] == "running"
    assert info(text, "qemu_block_job_io_status", **labels)["status"] == "ok"


@by_both
def test_a_job_is_ready_when_qemu_says_so_and_not_when_all_is_copied(
    lab: Lab, exporter: Exporter, disk: Disk
) -> None:
    """Under a speed limit all is copied long before QEMU calls the job ready."""
    snapshot(disk, lab)
    disk.write(0, 16 * MIB)
    job_id = commit(disk, speed=HELD_BYTES_PER_SECOND)

    def all_copied() -> bool:
        job = disk.vm.job(job_id)
        return bool(job["offset"] == job["len"] == 16 * MIB)

    wait_until(all_copied, "all is copied")
    text = exporter.fresh()
    assert disk.vm.job(job_id)["ready"] is False, "this test is too slow to see anything"
    offset, length = (value(text, f"qemu_block_job_{n}_bytes") for n in ("offset", "length"))
    assert offset == length == 16 * MIB
    assert value(text, "qemu_block_job_ready") == 0
    assert info(text, "qemu_block_job_status")["status"] == "running"

    disk.vm.run("block-job-set-speed", {"device": job_id, "speed": 0})
    wait_until(lambda: disk.vm.job(job_id)["ready"], "the job is ready")
    text = exporter.fresh()
    assert value(text, "qemu_block_job_ready") == 1
    assert info(text, "qemu_block_job_status")["status"] == "ready"


@pytest.mark.parametrize("kind", ["blockdev"])
def test_a_pause_shows_and_a_resume_ends_it(lab: Lab, exporter: Exporter, disk: Disk) -> None:
    """A job that a user holds is paused, whether it copies or is ready."""
    snapshot(disk, lab)
    disk.write(0, MIB)
    job_id = commit_until_ready(disk, exporter)
    disk.vm.run("block-job-pause", {"device": job_id})
    wait_until(lambda: disk.vm.job(job_id)["status"] == "standby", "the job is held")
    text = exporter.fresh()
    assert value(text, "qemu_block_job_paused") == 1
    assert info(text, "qemu_block_job_status")["status"] == "standby"
    disk.vm.run("block-job-resume", {"device": job_id})
    wait_until(lambda: disk.vm.job(job_id)["status"] == "ready", "the job goes on")
    text = exporter.fresh()
    assert value(text, "qemu_block_job_paused") == 0
    assert info(text, "qemu_block_job_status")["status"] == "ready"


@by_both
def test_the_whole_workflow_ends_on_the_base_with_its_counters_unbroken(
    lab: Lab, exporter: Exporter, disk: Disk
) -> None:
    """After the pivot the disk is on its base again, the job is gone and no counter ever fell."""
    base = file_of(exporter.metrics(), disk)
    disk.write(0, MIB)
    overlay = snapshot(disk, lab)
    disk.write(MIB, 2 * MIB)
    job_id = commit_until_ready(disk, exporter)
    disk.write(4 * MIB, 4 * MIB)
    during = exporter.fresh()
    assert (depth(during, disk), file_of(during, disk)) == (1, overlay)
    assert value(during, "qemu_block_job_length_bytes", job_id=job_id) == 6 * MIB

    disk.vm.run("block-job-complete", {"device": job_id})
    after = exporter.until(
        lambda text: depth(text, disk) == 0 and "qemu_block_job_status" not in text
    )
    assert file_of(after, disk) == base
    assert disk.entry["inserted"]["file"] == base
    assert written(after, disk) == 7 * MIB
    disk.write(0, MIB)
    assert value(exporter.fresh(), "qemu_block_jobs_completed_total", job_type="commit") == 1
    assert_never_lower(exporter.history, device=disk.device)
    for text in exporter.history:
        assert file_of(text, disk) == (overlay if depth(text, disk) else base)


@pytest.mark.parametrize("kind", ["drive"])
def test_a_job_that_is_cancelled_is_gone_and_leaves_the_chain_as_it_was(
    lab: Lab, exporter: Exporter, disk: Disk
) -> None:
    """To cancel a ready commit is not to complete it."""
    overlay = snapshot(disk, lab)
    disk.write(0, MIB)
    job_id = commit_until_ready(disk, exporter)
    disk.vm.run("block-job-cancel", {"device": job_id})
    text = exporter.until(lambda text: "qemu_block_job_status" not in text)
    assert (depth(text, disk), file_of(text, disk)) == (1, overlay)
    assert value(exporter.fresh(), "qemu_block_jobs_cancelled_total", job_type="commit") == 1
