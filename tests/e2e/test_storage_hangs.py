"""Storage that stops answering, as dead NFS does: a scrape must not stop the guest with it.

The image is on a FUSE mount whose server is held by SIGSTOP. query-block then hangs QEMU's main
loop, and with it every other monitor.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.lab import MIB, Disk, Exporter, Lab, Mount, Qemu, drive
from tests.e2e.reading import info, value

#: The timed refresh of query-block would be due in every scrape.
REFRESH = ("--collector.topology.max-age=1", "--qmp.timeout=2")
#: What an undisturbed monitor answers within.
QUICK_SECONDS = 0.05
#: What nobody would call quick, however busy the machine.
FROZEN_SECONDS = 1.0


class Pulse:
    """Asks a VM, over and over, how it is, and keeps how long each answer took."""

    def __init__(self, vm: Qemu) -> None:
        self.seconds: list[float] = []
        self._vm = vm
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @contextmanager
    def felt(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.005):
            began = time.monotonic()
            self._vm.run("query-status")
            self.seconds.append(time.monotonic() - began)


@pytest.fixture
def mount(lab: Lab) -> Mount:
    """A mount that answers so far."""
    return lab.keep(Mount(lab.folder))


@pytest.fixture
def vm(lab: Lab, mount: Mount) -> Qemu:
    """A VM whose disk is there."""
    image = lab.image("behind/disk")
    return lab.qemu("vm", *drive("disk0", mount.folder / image.name))


def scrape_while_it_hangs(exporter: Exporter, vm: Qemu, mount: Mount) -> list[float]:
    """Scrape some sweeps while the storage hangs; return how long the VM's answers took."""
    pulse = Pulse(vm)
    with pulse.felt(), mount.stopped():
        for _ in range(4):
            exporter.fresh()
    return pulse.seconds


def test_a_scrape_does_not_stop_a_vm_whose_storage_hangs(lab: Lab, vm: Qemu, mount: Mount) -> None:
    """Its other monitor answers at once, throughout; the scrape has its counters and says why."""
    exporter = lab.exporter(*REFRESH)
    disk = Disk(vm, "disk0")
    disk.write(0, MIB)
    before = exporter.metrics()
    assert value(before, "qemu_vm_storage_responding") == 1
    assert info(before, "qemu_block_device_info")["file"] == str(mount.folder / "disk.qcow2")
    again = exporter.fresh()
    stamp = "qemu_vm_topology_timestamp_seconds"
    assert value(before, stamp) < value(again, stamp), "no refresh was due: nothing is tested"

    seconds = scrape_while_it_hangs(exporter, vm, mount)

    for text in exporter.history[2:]:
        assert value(text, "qemu_vm_up") == 1
        assert value(text, "qemu_block_written_bytes_total") == MIB
        assert value(text, "qemu_vm_storage_responding") == 0
        assert value(text, stamp) == value(again, stamp)
    assert len(seconds) > 100
    assert statistics.quantiles(seconds, n=20)[-1] < QUICK_SECONDS
    assert max(seconds) < FROZEN_SECONDS / 2

    after = exporter.until(lambda text: value(text, "qemu_vm_storage_responding") == 1)
    assert value(after, stamp) > value(again, stamp)
    assert info(after, "qemu_block_device_info")["file"] == str(mount.folder / "disk.qcow2")


def test_without_the_guard_the_same_scrapes_stop_it(lab: Lab, vm: Qemu, mount: Mount) -> None:
    """So the test above can fail."""
    exporter = lab.exporter("--collector.topology=always", *REFRESH)
    exporter.metrics()

    seconds = scrape_while_it_hangs(exporter, vm, mount)

    assert max(seconds) > FROZEN_SECONDS
    assert info(exporter.history[-1], "qemu_vm_scrape_error")["reason"] == "timeout"
    exporter.until(lambda text: value(text, "qemu_vm_up") == 1)


def test_an_exporter_that_meets_hanging_storage_does_not_stop_the_vm(
    lab: Lab, vm: Qemu, mount: Mount
) -> None:
    """On first contact it does not know the image files, and asks every such mount."""
    pulse = Pulse(vm)
    with pulse.felt(), mount.stopped():
        exporter = lab.exporter(*REFRESH)
        for _ in range(3):
            text = exporter.fresh()
            assert value(text, "qemu_vm_up") == 1
            assert value(text, "qemu_vm_storage_responding") == 0
            assert value(text, "qemu_block_written_bytes_total") == 0
            assert "qemu_block_device_info" not in text
    assert statistics.quantiles(pulse.seconds, n=20)[-1] < QUICK_SECONDS
    assert max(pulse.seconds) < FROZEN_SECONDS / 2

    text = exporter.until(lambda text: "qemu_block_device_info" in text)
    assert value(text, "qemu_vm_storage_responding") == 1


def test_a_vm_on_other_storage_is_complete_meanwhile(lab: Lab, vm: Qemu, mount: Mount) -> None:
    """One mount that hangs costs the VMs on it and no others."""
    lab.qemu("other", *drive("disk0", lab.image("other")))
    exporter = lab.exporter(*REFRESH)
    exporter.metrics()
    with mount.stopped():
        exporter.fresh()
        text = exporter.fresh()
        earlier = value(exporter.history[-2], "qemu_vm_topology_timestamp_seconds", vm="other")
    assert value(text, "qemu_vm_storage_responding", vm="vm") == 0
    assert value(text, "qemu_vm_storage_responding", vm="other") == 1
    assert value(text, "qemu_vm_topology_timestamp_seconds", vm="other") > earlier


def test_the_exporter_ends_while_the_storage_hangs(lab: Lab, vm: Qemu, mount: Mount) -> None:
    """Its thread that waits for the storage keeps nobody waiting."""
    exporter = lab.exporter(*REFRESH)
    exporter.metrics()
    with mount.stopped():
        assert value(exporter.fresh(), "qemu_vm_storage_responding") == 0
        exporter.signal(signal.SIGTERM)
        assert exporter.wait() == 0


def test_a_data_file_on_storage_that_hangs_does_not_stop_the_vm(lab: Lab, mount: Mount) -> None:
    """query-block stats it too, and names only the image that it belongs to."""
    image, data = lab.folder / "front.qcow2", mount.folder / "data.raw"
    options = f"data_file={data},data_file_raw=on"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(image), "16M"]
    subprocess.run(create, check=True)
    vm = lab.qemu("vm", *drive("disk0", image))
    exporter = lab.exporter(*REFRESH)
    assert value(exporter.metrics(), "qemu_vm_storage_responding") == 1

    seconds = scrape_while_it_hangs(exporter, vm, mount)

    assert value(exporter.history[-1], "qemu_vm_up") == 1
    assert value(exporter.history[-1], "qemu_vm_storage_responding") == 0
    assert max(seconds) < FROZEN_SECONDS / 2
