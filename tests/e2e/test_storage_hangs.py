"""Storage that stops answering, as dead NFS does: a scrape must not stop the guest with it.

The image is on a FUSE mount whose server is held by SIGSTOP. query-block then hangs QEMU's main
loop, and with it every other monitor.
"""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.e2e.lab import HASTY, MIB, Disk, Exporter, Lab, Mount, Qemu, drive
from tests.e2e.reading import info, known_value, value

#: The timed refresh of query-block would be due in every scrape.
REFRESH = "--collector.topology.max-age=1"


@pytest.fixture
def mount(lab: Lab) -> Mount:
    """A mount that answers so far."""
    return lab.keep(Mount(lab.folder))


@pytest.fixture
def vm(lab: Lab, mount: Mount) -> Qemu:
    """A VM whose disk is there."""
    image = lab.image("behind/disk")
    return lab.qemu("vm", *drive("disk0", mount.folder / image.name))


def scrape_while_it_hangs(exporter: Exporter, vm: Qemu, mount: Mount) -> list[str]:
    """Scrape some sweeps while the storage hangs, and see that the VM answers after each."""
    with mount.stopped():
        return [fresh_and_alive(exporter, vm) for _ in range(4)]


def fresh_and_alive(exporter: Exporter, vm: Qemu) -> str:
    """Scrape, and see that the VM answers its other monitor afterwards.

    One that is stopped by query-block does not before the storage goes on.
    """
    text = exporter.fresh()
    assert vm.run("query-status")["status"] == "running"
    return text


def test_a_scrape_does_not_stop_a_vm_whose_storage_hangs(lab: Lab, vm: Qemu, mount: Mount) -> None:
    """Its other monitor answers throughout; the scrape has its counters and says why."""
    exporter = lab.exporter(REFRESH)
    disk = Disk(vm, "disk0")
    disk.write(0, MIB)
    before = exporter.until(lambda text: value(text, "qemu_vm_storage_responding") == 1)
    assert info(before, "qemu_block_device_info")["file"] == str(mount.folder / "disk.qcow2")
    again = exporter.fresh()
    stamp = "qemu_vm_topology_timestamp_seconds"
    assert known_value(before, stamp) < known_value(again, stamp), (
        "no refresh was due: nothing is tested"
    )

    for text in scrape_while_it_hangs(exporter, vm, mount):
        assert value(text, "qemu_vm_up") == 1
        assert value(text, "qemu_block_written_bytes_total") == MIB
        assert value(text, "qemu_vm_storage_responding") == 0
        assert value(text, stamp) == value(again, stamp)

    after = exporter.until(lambda text: value(text, "qemu_vm_storage_responding") == 1)
    assert known_value(after, stamp) > known_value(again, stamp)
    assert info(after, "qemu_block_device_info")["file"] == str(mount.folder / "disk.qcow2")


def test_without_the_guard_the_same_scrapes_stop_it(lab: Lab, vm: Qemu, mount: Mount) -> None:
    """So the test above can fail."""
    exporter = lab.exporter("--collector.topology=always", REFRESH, HASTY)
    exporter.until(lambda text: value(text, "qemu_vm_storage_responding") == 1)

    with mount.stopped():
        exporter.fresh()
        vm.monitor.send("query-status")
        text = exporter.fresh()
        assert not vm.monitor.has_heard

    assert info(text, "qemu_vm_scrape_error")["reason"] == "timeout"
    assert vm.monitor.answer("query-status")["status"] == "running"
    exporter.until(lambda text: value(text, "qemu_vm_up") == 1)


def test_an_exporter_that_meets_hanging_storage_does_not_stop_the_vm(
    lab: Lab, vm: Qemu, mount: Mount
) -> None:
    """On first contact it does not know the image files, and asks every such mount."""
    with mount.stopped():
        exporter = lab.exporter(REFRESH)
        for _ in range(3):
            text = fresh_and_alive(exporter, vm)
            assert value(text, "qemu_vm_up") == 1
            assert value(text, "qemu_vm_storage_responding") == 0
            assert value(text, "qemu_block_written_bytes_total") == 0
            assert "qemu_block_device_info" not in text

    text = exporter.until(lambda text: "qemu_block_device_info" in text)
    assert value(text, "qemu_vm_storage_responding") == 1


def test_a_vm_on_other_storage_is_complete_meanwhile(lab: Lab, vm: Qemu, mount: Mount) -> None:
    """One mount that hangs costs the VMs on it and no others."""
    lab.qemu("other", *drive("disk0", lab.image("other")))
    exporter = lab.exporter(REFRESH)
    exporter.until(lambda text: value(text, "qemu_vm_storage_responding", vm="vm") == 1)
    with mount.stopped():
        exporter.fresh()
        text = exporter.fresh()
        earlier = known_value(
            exporter.history[-2], "qemu_vm_topology_timestamp_seconds", vm="other"
        )
    assert value(text, "qemu_vm_storage_responding", vm="vm") == 0
    assert value(text, "qemu_vm_storage_responding", vm="other") == 1
    assert known_value(text, "qemu_vm_topology_timestamp_seconds", vm="other") > earlier


def test_the_exporter_ends_while_the_storage_hangs(lab: Lab, vm: Qemu, mount: Mount) -> None:
    """Its thread that waits for the storage keeps nobody waiting."""
    exporter = lab.exporter(REFRESH)
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
    exporter = lab.exporter(REFRESH)
    exporter.until(lambda text: value(text, "qemu_vm_storage_responding") == 1)

    *_, text = scrape_while_it_hangs(exporter, vm, mount)

    assert value(text, "qemu_vm_up") == 1
    assert value(text, "qemu_vm_storage_responding") == 0
