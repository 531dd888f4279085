"""Labels that survive: what a series is called may not depend on what runs at the moment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from exporter.errors import ProtocolError
from exporter.model.device_names import device_names
from exporter.qmp import schema
from tests.conftest import samples, series
from tests.replay import replay, steps


def entry(device: str = "", qdev: str = "") -> schema.BlockStats:
    """An entry of query-blockstats with a name and nothing else."""
    return schema.BlockStats(stats=schema.Stats(), device=device, qdev=qdev)


@pytest.mark.parametrize(
    ("device", "qdev", "name"),
    [
        ("disk0", "/machine/peripheral/x/virtio-backend", "disk0"),
        ("", "/machine/peripheral/virtio-disk0/virtio-backend", "virtio-disk0"),
        ("", "/machine/peripheral/nvme0", "nvme0"),
        ("", "scsi0-0-0-0", "scsi0-0-0-0"),
        ("", "/machine/peripheral-anon/device[1]/virtio-backend", "peripheral-anon/device[1]"),
        ("", "/machine/unattached/device[23]", "unattached/device[23]"),
        ("", "/machine/system.flash0", "system.flash0"),
        ("", "/machine/peripheral/us/us.0/legacy[0]", "peripheral/us/us.0/legacy[0]"),
    ],
)
def test_a_device_is_named_by_its_drive_or_by_its_id(device: str, qdev: str, name: str) -> None:
    """The name is never that of a node: those change with every snapshot."""
    assert device_names([entry(device, qdev)]) == [name]


def test_on_a_clash_the_drive_keeps_the_short_name_and_the_other_takes_its_path() -> None:
    """A `-drive` may have the id that a `-device` has too."""
    drive = entry("disk0")
    other = entry("", "/machine/peripheral/disk0/virtio-backend")

    assert device_names([other, drive]) == ["peripheral/disk0", "disk0"]


def test_on_a_clash_a_device_named_by_its_id_takes_its_place_among_devices() -> None:
    """QEMU tells of a SCSI disk by its id alone."""
    names = device_names([entry("disk0"), entry("", "disk0"), entry("", "scsi1")])

    assert names == ["disk0", "peripheral/disk0", "scsi1"]


def test_a_device_right_below_the_machine_is_never_without_a_name_of_its_own() -> None:
    """Its path without /machine/ may be the name of a drive, or the id of another device."""
    flash = "/machine/system.flash0"

    names = device_names([entry("", flash), entry("system.flash0"), entry("", "system.flash0")])
    assert names == [flash, "system.flash0", "peripheral/system.flash0"]


def test_devices_that_cannot_be_told_apart_are_refused() -> None:
    """Two equal series would cost the whole scrape; this costs one VM."""
    with pytest.raises(ProtocolError, match="two devices named 'disk0'"):
        device_names([entry("disk0"), entry("disk0")])


async def identities(
    version: str, names: list[str], folder: Path
) -> dict[str, dict[str, set[str]]]:
    """Return for each step and device the series of its state and layers, without values."""
    found: dict[str, dict[str, set[str]]] = {}
    async for step, _, text in replay(version, names, folder):
        found[step] = {}
        for sample in samples(text):
            name, device = sample.split("{")[0], re.search(r',device="([^"]*)"', sample)
            if device and "_job_" not in name and "_bitmap_" not in name:
                found[step].setdefault(device[1], set()).add(sample)
    return found


@pytest.mark.parametrize("version", ["7.2", "10.0"])
async def test_a_backup_does_not_change_the_identity_of_any_series(
    version: str, sockets: Path
) -> None:
    """A backup puts a filter node above the disk, and query-block then tells of that."""
    names = [step for step in steps(version, "b") if step[:3] in ("b36", "b40", "b41")]
    found = await identities(version, names, sockets)

    before, during, after = (found[step]["bk"] for step in names)
    assert before == during == after


@pytest.mark.parametrize("version", ["7.2", "10.0"])
async def test_a_named_commit_filter_does_not_change_the_identity_of_any_series(
    version: str, sockets: Path
) -> None:
    """With `filter-node-name` every layer is listed twice below the filter."""
    names = [step for step in steps(version, "a") if step[:3] in ("a17", "a18", "a19")]
    found = await identities(version, names, sockets)

    before, during, ready = (found[step]["virtio-disk1"] for step in names)
    assert before == during == ready


@pytest.mark.parametrize("version", ["7.2", "10.0"])
async def test_a_throttle_filter_is_no_layer(version: str, sockets: Path) -> None:
    """The disk below the filter is layer 0, and the filter has a node of its own."""
    async for _, _, text in replay(version, ["a02-running"], sockets):
        nodes = series(text, "qemu_block_node_info", device="virtio-thr1")
        depth = series(text, "qemu_block_device_backing_depth", device="virtio-thr1")

    layers = set(re.findall(r'layer="(\d*)",role="(\w+)"', "\n".join(nodes)))
    assert layers == {("0", "format"), ("0", "protocol"), ("", "filter")}
    assert list(depth.values()) == ["0"]


@pytest.mark.parametrize("version", ["7.2", "10.0"])
async def test_no_device_is_renamed_by_any_step(version: str, sockets: Path) -> None:
    """Snapshots, commits, pivots, mirrors and backups: the guest's disks keep their names."""
    for scenario in "ab":
        found = await identities(version, steps(version, scenario), sockets)
        assert len({frozenset(devices) for devices in found.values()}) == 1
