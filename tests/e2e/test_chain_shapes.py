"""Chains of every shape on real QEMU: filters wherever a user or a job puts them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.api import admin
from tests.e2e.lab import MIB, Disk, Lab, Memory, Qemu, plug, tool, wait_until
from tests.e2e.reading import info, labels_of, value
from tests.e2e.witness import Content, raw

#: The groups of all throttle filters here.
GROUP = ("-object", "throttle-group,id=group,x-bps-write=1073741824")


def node(driver: str, name: str, file: Any, **more: object) -> list[str]:
    """Return the arguments for a node."""
    return ["-blockdev", json.dumps({"driver": driver, "node-name": name, "file": file, **more})]


def file_of(image: Path) -> dict[str, str]:
    """Return the node that holds an image."""
    return {"driver": "file", "filename": str(image)}


def throttled(name: str, file: Any) -> list[str]:
    """Return the arguments for a throttle filter."""
    return node("throttle", name, file, **{"throttle-group": "group"})


def at_the_root(image: Path) -> list[str]:
    return [*node("qcow2", "layer", file_of(image)), *throttled("root", "layer")]


def two_at_the_root(image: Path) -> list[str]:
    below = [*node("qcow2", "layer", file_of(image)), *throttled("lower", "layer")]
    return [*below, *node("copy-on-read", "root", "lower")]


def unknown_at_the_root(image: Path) -> list[str]:
    """A filter that is not on any list here."""
    above = {"driver": "blkreplay", "node-name": "root", "image": "layer"}
    return [*node("qcow2", "layer", file_of(image)), "-blockdev", json.dumps(above)]


def compressing(image: Path) -> list[str]:
    return [*node("qcow2", "layer", file_of(image)), *node("compress", "root", "layer")]


def below_the_format(image: Path) -> list[str]:
    return [*throttled("lower", file_of(image)), *node("qcow2", "root", "lower")]


def debugged_below_the_format(image: Path) -> list[str]:
    return node("qcow2", "root", {"driver": "blkdebug", "image": file_of(image)})


SHAPES = (
    at_the_root,
    two_at_the_root,
    compressing,
    below_the_format,
    debugged_below_the_format,
)


def start(lab: Lab, shape: Callable[[Path], list[str]]) -> tuple[Qemu, Path]:
    """Start a VM with a disk of this shape."""
    base = lab.image("base")
    return lab.qemu("vm", *GROUP, *shape(base), *plug("disk0", "root"), machine="pc"), base


def backing_nodes(vm: Qemu) -> list[str]:
    """Return the nodes of the disk from its root down, by query-blockstats."""
    found, entry = [], vm.run("query-blockstats")[0]
    while entry:
        found.append(entry["node-name"])
        entry = entry.get("backing")
    return found


def known(text: str, file: Path, layer: str) -> None:
    """The disk has all that query-block knows."""
    of = {"device": "disk0", "layer": layer, "role": "format"}
    assert value(text, "qemu_block_device_inserted", device="disk0") == 1
    assert value(text, "qemu_block_device_io_status", device="disk0", status="ok") == 1
    assert info(text, "qemu_block_node_info", **of)["file"] in (str(file), "blkdebug:")
    assert value(text, "qemu_block_node_virtual_size_bytes", **of) == 64 * MIB
    assert (value(text, "qemu_block_node_storage_available_bytes", **of) or 0) > 0


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_disk_below_filters_is_seen_and_snapshotted_and_committed(
    lab: Lab, shape: Callable[[Path], list[str]]
) -> None:
    """It has every series that it has without, and ends as it was, with all bytes."""
    vm, base = start(lab, shape)
    user, overlay = admin(lab), lab.folder / "overlay.qcow2"
    content = Content(Disk(vm, "disk0"), lab.folder, bytes(64 * MIB))
    before = backing_nodes(vm)
    known(user.exporter.fresh(), base, "0")

    content.write(0, MIB)
    assert user.snapshot("vm", "disk0", overlay).status == 201
    content.write(MIB // 2, MIB)
    text = user.exporter.fresh()
    known(text, overlay, "0")
    known(text, base, "1")

    assert user.commit("vm", "disk0", job_id="qbe-merge").status == 202
    user.until("vm", "qbe-merge", ready=True, device="disk0", top=0, base=1)
    assert user.change("vm", "qbe-merge", "complete").status == 202
    user.until("vm", "qbe-merge", outcome="completed")
    assert backing_nodes(vm) == before
    known(user.exporter.fresh(), base, "0")
    content.write(3 * MIB, MIB)
    vm.quit()
    assert raw(base) == content.expected


@pytest.mark.parametrize("driver", ["throttle", "copy-on-read"])
def test_a_filter_below_a_users_own_overlay_stays_when_that_is_committed(
    lab: Lab, driver: str
) -> None:
    """A snapshot over a throttled disk puts the filter between two layers."""
    base = lab.image("base")
    more = {"throttle-group": "group"} if driver == "throttle" else {}
    above = node(driver, "root", "layer", **more)
    below = node("qcow2", "layer", file_of(base))
    vm = lab.qemu("vm", *GROUP, *below, *above, *plug("disk0", "root"), machine="pc")
    content = Content(Disk(vm, "disk0"), lab.folder, bytes(64 * MIB))
    content.write(0, MIB)
    overlay = lab.folder / "overlay.qcow2"
    names = {"node-name": "root", "snapshot-node-name": "ov"}
    vm.run("blockdev-snapshot-sync", {**names, "snapshot-file": str(overlay)})
    content.write(MIB // 2, MIB)
    user = admin(lab)

    text = user.exporter.fresh()
    known(text, overlay, "0")
    known(text, base, "1")
    assert value(text, "qemu_block_device_backing_depth", device="disk0") == 1
    assert value(text, "qemu_block_device_info", device="disk0", node_name="ov") == 1
    limit = value(text, "qemu_block_throttle_write_bytes_per_second", device="disk0")
    assert limit == (1 << 30 if driver == "throttle" else None)

    second = lab.folder / "second.qcow2"
    assert user.snapshot("vm", "disk0", second).status == 201
    content.write(2 * MIB, MIB)
    answer = user.commit("vm", "disk0", job_id="qbe-mid", top=str(overlay))
    assert answer.body["arguments"]["base-node"] == "root", answer
    user.until("vm", "qbe-mid", outcome="completed")
    assert backing_nodes(vm)[1:] == ["root", "layer"]
    # Until it is dismissed, its node is no root node to QEMU.
    user.exporter.until(lambda _: vm.run("query-jobs") == [])

    assert user.commit("vm", "disk0", job_id="qbe-merge").status == 202
    user.until("vm", "qbe-merge", ready=True, device="disk0", top=0, base=1)
    assert user.change("vm", "qbe-merge", "complete").status == 202
    user.until("vm", "qbe-merge", outcome="completed")
    assert backing_nodes(vm) == ["root", "layer"]
    known(user.exporter.fresh(), base, "0")
    vm.quit()
    assert raw(base) == content.expected


def test_a_disk_keeps_its_state_while_a_job_has_a_filter_with_a_name(lab: Lab) -> None:
    """The filter of an intermediate commit stands in the middle, that of a mirror at the root."""
    images = lab.chain("chain", 3)
    arguments: list[str] = []
    below: object = None
    for layer, image in reversed(list(enumerate(images))):
        arguments += node("qcow2", f"l{layer}", file_of(image), backing=below)
        below = f"l{layer}"
    vm = lab.qemu("vm", *arguments, *plug("disk0", "l0"), machine="pc")
    exporter = lab.exporter()
    slow = {"speed": 1, "job-id": "slow"}
    vm.run(
        "block-commit",
        {"device": "l0", "top-node": "l1", "base-node": "l2", "filter-node-name": "cf", **slow},
    )
    assert backing_nodes(vm) == ["l0", "cf", "l1", "l2"]
    text = exporter.fresh()
    for layer, image in enumerate(images):
        known(text, image, str(layer))
    assert not labels_of(text, "qemu_block_node_info", role="filter")
    vm.run("block-job-cancel", {"device": "slow"})
    wait_until(lambda: vm.job("slow") is None, "the commit is gone")

    vm.run("blockdev-add", {"driver": "null-co", "node-name": "null", "size": 64 * MIB})
    mirror = {"device": "l0", "target": "null", "sync": "full", "filter-node-name": "mf"}
    vm.run("blockdev-mirror", {**mirror, **slow})
    assert backing_nodes(vm)[:2] == ["mf", "l0"]
    text = exporter.fresh()
    for layer, image in enumerate(images):
        known(text, image, str(layer))
    assert value(text, "qemu_block_device_info", device="disk0", node_name="l0") == 1


def test_a_filter_that_no_list_knows_costs_a_disk_no_series(lab: Lab) -> None:
    """What is a filter is what QEMU's own structure says."""
    vm, base = start(lab, unknown_at_the_root)
    assert backing_nodes(vm) == ["root", "layer"]

    known(lab.exporter().fresh(), base, "0")


def created(lab: Lab, name: str, format: str, options: str, size: int = 64 * MIB) -> Path:
    """Create an image with options of its format."""
    path = lab.folder / name
    command = [tool("qemu-img"), "create", "-q", "-f", format, "-o", options, str(path), str(size)]
    subprocess.run(command, check=True)
    return path


def protocol(text: str, device: str) -> str:
    """Return the file of the node that holds the bytes of a disk."""
    return info(text, "qemu_block_node_info", device=device, role="protocol")["file"]


def available(text: str, device: str) -> float | None:
    """Return what the storage of a disk has left."""
    return value(text, "qemu_block_node_storage_available_bytes", device=device, role="format")


def test_the_storage_of_a_disk_is_that_of_its_data_file(lab: Lab) -> None:
    """That is where the guest's bytes go; the name is told where QEMU has it open, else not."""
    small = lab.keep(Memory(lab.folder / "small", mib=16)).folder
    meta = created(lab, "meta.qcow2", "qcow2", f"data_file={small}/data.raw", 8 * MIB)
    json_meta = created(lab, "json.qcow2", "qcow2", f"data_file={small}/json.raw", 8 * MIB)
    other = created(lab, "other.qcow2", "qcow2", f"data_file={lab.folder}/stale.raw", 8 * MIB)
    (small / "given.raw").write_bytes(bytes(MIB))
    flat = created(lab, "flat.vmdk", "vmdk", "subformat=monolithicFlat", 8 * MIB)
    given = {"data-file": file_of(small / "given.raw")}
    vm = lab.qemu(
        "vm",
        *("-blockdev", json.dumps({"driver": "qcow2", "node-name": "m", "file": file_of(meta)})),
        *node("qcow2", "o", file_of(other), **given),
        *node("vmdk", "v", file_of(flat)),
        *node("qcow2", "j", file_of(json_meta), discard="unmap", **{"lazy-refcounts": True}),
        *plug("header", "m"),
        *plug("given", "o"),
        *plug("flat", "v"),
        *plug("options", "j"),
        machine="pc",
    )
    (small / "filler").write_bytes(bytes(4 * MIB))
    text = lab.exporter().fresh()
    room = os.statvfs(small)

    assert protocol(text, "header") == f"{small}/data.raw"
    assert available(text, "header") == room.f_bavail * room.f_frsize
    assert protocol(text, "options") == f"{small}/json.raw"
    assert available(text, "options") == room.f_bavail * room.f_frsize
    # The name in the header is another one: neither that nor the metadata's is right.
    assert protocol(text, "given") in ("", f"{small}/given.raw")
    assert available(text, "given") in (None, room.f_bavail * room.f_frsize)
    assert protocol(text, "flat") == f"{lab.folder}/flat-flat.vmdk"
    assert value(text, "qemu_block_node_info", device="header", role="format", file=str(meta)) == 1
    assert vm.exit_code is None


def test_the_allocated_size_of_a_block_device_is_absent(lab: Lab) -> None:
    """It has 0 blocks, whatever was written; an empty sparse file has 0 too, and that is true."""
    image = lab.image("image")
    sparse = lab.folder / "sparse.raw"
    sparse.touch()
    os.truncate(sparse, MIB)
    loop = lab.keep(Loop(image))
    user = lab.exporter()
    device = {"driver": "host_device", "filename": loop.path}
    below = [*throttled("t", device), *node("qcow2", "below", "t")]
    quorum = {"driver": "quorum", "node-name": "q", "vote-threshold": 1}
    quorum["children"] = [{"driver": "raw", "file": {**device, "locking": "off"}}] * 2
    lab.qemu(
        "vm",
        *GROUP,
        *below,
        *node("raw", "s", file_of(sparse)),
        *plug("device", "below"),
        *plug("sparse", "s"),
        machine="pc",
    )
    lab.qemu(
        "two",
        "-blockdev",
        json.dumps({**quorum, "read-only": True}),
        *plug("both", "q"),
        machine="pc",
    )
    text = user.fresh()

    allocated = "qemu_block_node_allocated_bytes"
    assert value(text, "qemu_block_node_virtual_size_bytes", device="device") == 64 * MIB
    assert value(text, allocated, device="device") is None
    assert value(text, allocated, device="both") is None
    assert value(text, allocated, device="sparse") == 0
    shown = json.loads(user.get("/api/v1/vms/vm"))["devices"]
    assert {d["device"]: d["layers"][0]["allocated_bytes"] for d in shown} == {
        "device": None,
        "sparse": 0,
    }


class Loop:
    """A block device on an image."""

    def __init__(self, image: Path) -> None:
        command = [tool("losetup"), "--find", "--show", str(image)]
        self.path = subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.strip()

    def close(self) -> None:
        subprocess.run([tool("losetup"), "--detach", self.path], check=True)
