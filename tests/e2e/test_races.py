"""Collected as fast as it goes while the chains change under it: no exposition may be torn."""

from __future__ import annotations

import re
import threading
import time

import pytest

from tests.e2e.lab import PATIENCE_SECONDS, Disk, Exporter, Lab, blockdev, drive, plug, wait_until
from tests.e2e.reading import assert_never_lower, info, labels_of, value

#: What is seen while the chains change is the more, the longer that is.
SECONDS = 5.0
DISKS = ("disk0", "virtio-disk1")


class Operator:
    """Snapshots the disks, commits the overlays and removes them, over and over."""

    def __init__(self, lab: Lab, history: list[str]) -> None:
        self.rounds = 0
        self._history = history
        self.disks = [Disk(lab.vms["vm"], device) for device in DISKS]
        #: Every file that was ever the active layer -> how deep its chain was.
        self.depths = {disk.entry["inserted"]["file"]: 0 for disk in self.disks}
        self._folder = lab.folder
        self._failure: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Operator:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                for disk in self.disks:
                    self._round(disk, f"{disk.device}-{self.rounds}")
                self.rounds += 1
        except Exception as error:  # noqa: BLE001  # raised where the thread is joined
            self._failure = error

    def _round(self, disk: Disk, name: str) -> None:
        file = self._folder / f"{name}.qcow2"
        self.depths[str(file)] = 1
        legacy = bool(disk.entry["device"])
        nodes = {"node-name": disk.node_name, "snapshot-node-name": f"node-{name}"}
        which = {"device": disk.device} if legacy else nodes
        snapshot = {**which, "snapshot-file": str(file), "format": "qcow2"}
        disk.vm.run("blockdev-snapshot-sync", snapshot)
        disk.write(0, 65536)
        root = disk.device if legacy else disk.node_name
        job_id = f"merge-{name}"
        disk.vm.run("block-commit", {"device": root, "job-id": job_id})
        wait_until(lambda: disk.vm.job(job_id)["ready"], "the job is ready")
        # On a busy machine jobs would come and go unseen: the second from now began with this one.
        seen = len(self._history) + 2
        wait_until(lambda: len(self._history) >= seen or self._ended.is_set(), "it is seen")
        disk.vm.run("block-job-complete", {"device": job_id})
        wait_until(lambda: disk.vm.job(job_id) is None, "the pivot")
        file.unlink()


@pytest.fixture(scope="module")
def exporter(shared_lab: Lab) -> Exporter:
    """An exporter on a VM with a disk of each kind."""
    lab = shared_lab
    lab.qemu(
        "vm",
        *drive("disk0", lab.image("disk0")),
        *plug("front", "disk0"),
        *blockdev("virtio-disk1", lab.image("disk1")),
        machine="pc",
    )
    return lab.exporter()


@pytest.fixture(scope="module")
def operator(shared_lab: Lab, exporter: Exporter) -> Operator:
    """Somebody who was at work for some seconds, seen by `exporter.history` all the while."""
    began = time.monotonic()
    with Operator(shared_lab, exporter.history) as somebody:
        # A slow machine takes longer to show all that there is to see.
        while (seconds := time.monotonic() - began) < SECONDS or not is_all_seen(
            somebody, exporter
        ):
            assert seconds < PATIENCE_SECONDS, (somebody.rounds, depths(exporter), jobs(exporter))
            # A probe joins no sweep.
            exporter.history.append(exporter.get("/probe?target=vm"))
    return somebody


def is_all_seen(operator: Operator, exporter: Exporter) -> bool:
    """Whether each disk was seen with and without an overlay, and jobs in every round."""
    seen = len(depths(exporter)) == 2 * len(DISKS) and jobs(exporter) > operator.rounds + 1
    return operator.rounds >= 3 and seen


def depths(exporter: Exporter) -> set[tuple[str, float | None]]:
    """Return how deep each disk was."""
    return {
        (device, value(text, "qemu_block_device_backing_depth", device=device))
        for text in exporter.history
        for device in DISKS
    }


def jobs(exporter: Exporter) -> int:
    """Return how many expositions have a job."""
    return sum("qemu_block_job_info" in text for text in exporter.history)


def test_there_was_something_to_see(operator: Operator, exporter: Exporter) -> None:
    """Disks with and without an overlay, and jobs, many times."""
    assert operator.rounds >= 3
    assert depths(exporter) == {(device, depth) for device in DISKS for depth in (0, 1)}
    assert jobs(exporter) > operator.rounds


def test_the_vm_is_up_and_complete_throughout(operator: Operator, exporter: Exporter) -> None:
    """Up, and each disk with what query-block says of it."""
    for text in exporter.history:
        assert value(text, "qemu_vm_up") == 1
        assert {each["device"] for each in labels_of(text, "qemu_block_device_info")} == set(DISKS)


def test_depth_file_and_layers_are_of_one_moment(operator: Operator, exporter: Exporter) -> None:
    """Never the file of one chain with the depth of another."""
    for text in exporter.history:
        for device in DISKS:
            depth = value(text, "qemu_block_device_backing_depth", device=device)
            file = info(text, "qemu_block_device_info", device=device)["file"]
            assert operator.depths[file] == depth
            layers = labels_of(text, "qemu_block_node_info", device=device, role="format")
            assert [each["layer"] for each in layers] == ["0", "1"][: len(layers)]
            assert len(layers) == depth + 1
            assert layers[0]["file"] == file


def test_a_job_is_never_shown_without_its_disk(operator: Operator, exporter: Exporter) -> None:
    """However short it lives."""
    for text in exporter.history:
        for job in labels_of(text, "qemu_block_job_info"):
            assert re.fullmatch(rf"merge-{job['device']}-\d+", job["job_id"])
            assert (job["top"], job["base"]) == ("0", "1")


def test_no_counter_is_ever_lower(operator: Operator, exporter: Exporter) -> None:
    """Over all these snapshots and pivots."""
    assert_never_lower(exporter.history, vm="vm")


def test_nothing_of_it_is_worth_a_warning(operator: Operator, exporter: Exporter) -> None:
    """It is everyday work, the removal of an overlay that was committed included."""
    warnings = [line for line in exporter.said().splitlines() if "level=INFO" not in line]
    assert [line for line in warnings if "running as root" not in line] == []
