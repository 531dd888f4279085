"""What real QEMU and a storage daemon serve to others, and what their counters say of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.conftest import series
from tests.e2e.lab import MIB, Exporter, Lab, Qemu, blockdev, plug, tool
from tests.e2e.reading import labels_of, value

_NAME = "qemu_block_export_info"


def written(image: str) -> None:
    """Write a MiB through an export."""
    command = [tool("qemu-io"), "-f", "raw", "-c", f"write -q 0 {MIB}", image]
    subprocess.run(command, check=True)


def exports(text: str, vm: str) -> list[dict[str, str]]:
    """Return the exports of a VM, without its name."""
    return [
        {name: each for name, each in labels.items() if name != "vm"}
        for labels in labels_of(text, _NAME, vm=vm)
    ]


def serve(vm: Qemu, socket: Path, node: str) -> None:
    """Serve a node by NBD as `backup`."""
    vm.run("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(socket)}}})
    export = {"type": "nbd", "id": "backup", "node-name": node, "name": "x", "writable": True}
    vm.run("block-export-add", export)


def until_served(exporter: Exporter, vm: str) -> str:
    return exporter.until(lambda text: exports(text, vm))


def test_an_export_of_a_vm_is_shown_and_its_io_is_in_no_counter(lab: Lab) -> None:
    """QEMU tells when it ends, and not when it begins."""
    images, socket = lab.chain("disk", 2), lab.folder / "nbd"
    vm = lab.qemu("vm", *blockdev("disk0", *images), machine="pc")
    exporter = lab.exporter("--collector.topology.max-age=1")
    assert exports(exporter.fresh(), "vm") == []

    vm.run("blockdev-add", {"driver": "null-co", "node-name": "free", "size": MIB})
    serve(vm, socket, "free")
    text = until_served(exporter, "vm")
    assert exports(text, "vm") == [{"export": "backup", "type": "nbd", "node_name": "free"}]
    written(f"nbd+unix:///x?socket={socket}")
    assert value(exporter.fresh(), "qemu_block_written_bytes_total", device="disk0") == 0

    vm.run("block-export-del", {"id": "backup"})
    exporter.until(lambda text: not exports(text, "vm"))


def test_a_storage_daemon_shows_its_exports_without_a_device_to_ask_about(lab: Lab) -> None:
    """query-block is never asked there."""
    image, socket = lab.image("image"), lab.folder / "nbd"
    file = {"driver": "file", "filename": str(image)}
    node = {"driver": "qcow2", "node-name": "disk", "file": file}
    lab.storage_daemon(
        "daemon",
        *("--blockdev", json.dumps(node)),
        *("--nbd-server", f"addr.type=unix,addr.path={socket}"),
        *("--export", "type=nbd,id=exp,node-name=disk,name=x,writable=on"),
    )
    exporter = lab.exporter()
    text = exporter.fresh()
    assert exports(text, "daemon") == [{"export": "exp", "type": "nbd", "node_name": "disk"}]
    written(f"nbd+unix:///x?socket={socket}")
    text = exporter.fresh()
    assert not series(text, "qemu_block_written_bytes_total")
    offset = "qemu_block_node_write_highest_offset_bytes"
    assert (value(text, offset, device="", node_name="disk") or 0) >= MIB


def test_a_firmware_disk_is_named_by_its_path(lab: Lab) -> None:
    """libvirt's VMs with UEFI have two."""
    flash = lab.folder / "flash.raw"
    flash.write_bytes(bytes(MIB))
    file = {"driver": "file", "filename": str(flash)}
    node = {"driver": "raw", "node-name": "vars", "file": file}
    disk = {"driver": "null-co", "node-name": "n", "size": MIB}
    lab.qemu(
        "vm",
        *("-blockdev", json.dumps(node), "-blockdev", json.dumps(disk), *plug("disk0", "n")),
        machine="pc,pflash0=vars",
    )
    text = lab.exporter().fresh()
    devices = {labels["device"] for labels in labels_of(text, "qemu_block_device_info")}
    assert devices == {"disk0", "system.flash0"}
