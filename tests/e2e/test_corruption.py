"""Images that real QEMU finds corrupt: it closes their driver, and the disk keeps what is known."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.api import admin
from tests.e2e.lab import MIB, Lab, Qemu, blockdev, tool, wait_until
from tests.e2e.reading import info, value

#: A boot sector that goes on writing the 16th sector of its disk, which is in its second cluster.
WRITER = (
    bytes.fromhex("31c08ed88ec0bb007cb80103b91000ba8000cd13ebf3").ljust(510, b"\0") + b"\x55\xaa"
)
#: Below the bits of a table's entry that say something else.
_OFFSET = 0x00FFFFFFFFFFFE00
_COPIED = 1 << 63
_ASKED = "qemu_vm_topology_timestamp_seconds"


def damaged(lab: Lab, name: str, backing: Path | None = None) -> Path:
    """Create an image that boots, and that QEMU finds corrupt when its second cluster is written."""
    plain, image = lab.folder / f"{name}.raw", lab.folder / f"{name}.qcow2"
    plain.write_bytes(WRITER.ljust(MIB, b"\0"))
    options = ["-o", "cluster_size=4096"]
    below = ["-B", str(backing), "-F", "qcow2"] if backing else []
    command = [tool("qemu-img"), "convert", "-O", "qcow2", *options, *below, str(plain), str(image)]
    subprocess.run(command, check=True)
    with image.open("r+b") as file:
        file.seek(40)  # l1_table_offset of the header
        (l1,) = struct.unpack(">Q", file.read(8))
        file.seek(l1)
        l2 = struct.unpack(">Q", file.read(8))[0] & _OFFSET
        file.seek(l2 + 8)
        file.write(struct.pack(">Q", l1 | _COPIED))
    return image


def node(driver: str, name: str, **options: Any) -> list[str]:
    """Return the arguments for a node."""
    return ["-blockdev", json.dumps({"driver": driver, "node-name": name, **options})]


def qcow2(name: str, image: Path, **more: Any) -> list[str]:
    """Return the arguments for the node of an image."""
    return node("qcow2", name, file={"driver": "file", "filename": str(image)}, **more)


def plugged(name: str) -> list[str]:
    """Return the arguments for the disk that the guest boots from; an error stops it."""
    disk = f"scsi-hd,id=disk0,drive={name},werror=stop,bootindex=0"
    return ["-device", "virtio-scsi-pci", "-device", disk]


def let_it_write(vm: Qemu) -> None:
    """Let the guest write until QEMU finds the image corrupt."""
    vm.run("cont")
    wait_until(lambda: vm.run("query-status")["status"] == "io-error", "the guest writes")


def test_a_disk_keeps_its_state_and_identity_when_qemu_closes_its_image(lab: Lab) -> None:
    """Its status is failed, also for an exporter that was not there when it happened."""
    base = lab.image("base", MIB)
    image, other = damaged(lab, "damaged", base), lab.image("other")
    nodes = [*qcow2("base", base), *qcow2("top", image, backing="base")]
    vm = lab.qemu("vm", *nodes, *plugged("top"), *blockdev("disk1", other), machine="pc")
    user = admin(lab)
    text = user.exporter.fresh()
    assert value(text, "qemu_block_device_backing_depth", device="disk0") == 1
    let_it_write(vm)
    assert "inserted" not in vm.run("query-block")[0]

    def sound(text: str) -> None:
        assert info(text, "qemu_block_device_io_status", device="disk0")["status"] == "failed"
        assert value(text, "qemu_block_device_inserted", device="disk0") == 0
        assert info(text, "qemu_block_device_info", device="disk0")["node_name"] == "top"
        # QEMU does not tell any more what it is backed by.
        assert value(text, "qemu_block_device_backing_depth", device="disk0") is None
        assert value(text, "qemu_block_device_inserted", device="disk1") == 1
        of = {"device": "disk1", "layer": "0", "role": "format"}
        assert info(text, "qemu_block_node_info", **of)["file"] == str(other)

    text = user.exporter.fresh()
    sound(text)
    assert value(text, "qemu_block_images_corrupted_total", device="disk0") == 1
    refused = user.snapshot("vm", "disk0", lab.folder / "new.qcow2")
    assert (refused.status, refused.problem) == (409, "wrong-device-state")
    assert "as corrupt" in refused.body["detail"]

    user.exporter.close()
    vm.left()
    sound(lab.exporter().fresh())


def throttled(name: str, below: str) -> list[str]:
    group = ["-object", "throttle-group,id=group"]
    return [*group, *node("throttle", name, file=below, **{"throttle-group": "group"})]


def raw(name: str, below: str) -> list[str]:
    return node("raw", name, file=below)


def copying(name: str, below: str) -> list[str]:
    return node("copy-on-read", name, file=below)


def mirrored(name: str, below: str) -> list[str]:
    """A quorum of the damaged image and of one that reads alike, of which either will do."""
    return node("quorum", name, children=[below, "second"], **{"vote-threshold": 1})


@pytest.mark.parametrize(
    "above", [throttled, raw, copying, mirrored], ids=lambda above: above.__name__
)
def test_a_vm_lives_on_when_the_image_below_another_node_is_closed(lab: Lab, above: Any) -> None:
    """query-block would end QEMU with SIGSEGV then, so that it is not asked any more."""
    image, other = damaged(lab, "damaged"), lab.image("other")
    second = lab.folder / "second.qcow2"
    second.write_bytes(image.read_bytes())
    nodes = [*qcow2("layer", image), *qcow2("second", second), *above("root", "layer")]
    vm = lab.qemu("vm", *nodes, *plugged("root"), *blockdev("disk1", other), machine="pc")
    user = admin(lab, flags=["--collector.topology.max-age=1"])
    user.exporter.fresh()
    let_it_write(vm)

    for _ in range(3):
        text = user.exporter.fresh()
        assert value(text, "qemu_vm_up") == 1
        assert value(text, "qemu_block_images_corrupted_total", device="disk0")
    assert "query-block is not asked" in user.exporter.said()
    assert user.snapshot("vm", "disk0", lab.folder / "new.qcow2").status == 409
    commit = user.commit("vm", "disk0")
    assert (commit.status, commit.problem) == (409, "wrong-vm-state")
    assert "corrupt" in commit.body["detail"]
    assert vm.exit_code is None
    assert not os.path.exists(lab.folder / "new.qcow2")

    # With the disk, the node is gone from the way, and the others are known again.
    vm.run("device_del", {"id": "disk0"})
    wait_until(lambda: len(vm.run("query-blockstats")) == 1, "the disk is gone")
    vm.run("blockdev-del", {"node-name": "root"})
    before = value(text, _ASKED) or 0
    text = user.exporter.until(lambda text: (value(text, _ASKED) or 0) > before)
    assert value(text, "qemu_block_device_inserted", device="disk1") == 1
    assert vm.exit_code is None
