"""Disks of the demo's virtual machines: their files, QEMU arguments, snapshots and commits.

There are two ways to give QEMU a disk, and monitoring meets both: `-drive`, where QEMU names the
disk and the names of its nodes change; and `-blockdev` with `-device`, where the command line names
each node, and only the device's id identifies the disk.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from abc import ABC, abstractmethod
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from exporter.demo.scenarios import CHAIN_LAYERS, DISK_BYTES, Scenario
from exporter.errors import ExporterError


class QemuFailed(ExporterError):
    """QEMU or qemu-img cannot be run, or a command failed."""


class Monitor(Protocol):
    """The part of a VM that a disk uses."""

    async def execute(self, command: str, arguments: Mapping[str, object]) -> Any:
        """Run a QMP command."""


class Disk(ABC):
    """A disk with its layers, the active one first."""

    #: The `device` label, the name for `qemu-io` and the id of its block job.
    device: str
    qemu_io_name: str
    job_id: str

    def __init__(self, layers: Sequence[Path]) -> None:
        self.layers = list(layers)

    async def create(self) -> None:
        """Create the images, from the base up."""
        backing = None
        for layer in reversed(self.layers):
            await create_image(layer, backing)
            backing = layer

    @abstractmethod
    def arguments(self) -> list[str]:
        """Return what QEMU's command line has about this disk."""

    async def snapshot(self, monitor: Monitor, overlay: Path) -> None:
        """Add a new layer on top."""
        await self._snapshot(monitor, overlay)
        self.layers.insert(0, overlay)

    @abstractmethod
    async def commit(self, monitor: Monitor, speed_bytes_per_second: int) -> None:
        """Begin to merge the active layer into the one below."""

    async def drop_overlay(self, monitor: Monitor) -> None:
        """Remove the layer that a commit has merged."""
        await self._release(monitor)
        self.layers.pop(0).unlink()

    @abstractmethod
    async def _snapshot(self, monitor: Monitor, overlay: Path) -> None: ...

    @abstractmethod
    async def _release(self, monitor: Monitor) -> None: ...


class Drive(Disk):
    """A disk by `-drive`."""

    def __init__(self, device: str, layers: Sequence[Path]) -> None:
        super().__init__(layers)
        self.device = self.qemu_io_name = self.job_id = device

    def arguments(self) -> list[str]:
        """Return what QEMU's command line has about this disk."""
        file = str(self.layers[0]).replace(",", ",,")
        return ["-drive", f"file={file},format=qcow2,if=virtio,id={self.device}"]

    async def commit(self, monitor: Monitor, speed_bytes_per_second: int) -> None:
        """Begin to merge the active layer into the one below."""
        arguments = {
            "device": self.device,
            "base": str(self.layers[1]),
            "speed": speed_bytes_per_second,
        }
        await monitor.execute("block-commit", arguments)

    async def _snapshot(self, monitor: Monitor, overlay: Path) -> None:
        arguments = {"device": self.device, "snapshot-file": str(overlay), "format": "qcow2"}
        await monitor.execute("blockdev-snapshot-sync", arguments)

    async def _release(self, monitor: Monitor) -> None:
        pass  # QEMU opened it, and closes it


class Blockdev(Disk):
    """A disk by `-blockdev` and `-device`, with node names and job ids like libvirt's."""

    def __init__(self, device: str, layers: Sequence[Path], numbers: Iterator[int]) -> None:
        """`numbers` gives each layer of the VM a number of its own."""
        super().__init__(layers)
        self.device = device
        self.qemu_io_name = f"-d {device}/virtio-backend"
        self._numbers = numbers
        #: In the order of `layers`.
        self._nodes = [f"libvirt-{next(numbers)}" for _ in layers]
        self.job_id = ""

    def arguments(self) -> list[str]:
        """Return what QEMU's command line has about this disk."""
        backing, arguments = None, []
        for node, file in reversed(list(zip(self._nodes, self.layers, strict=True))):
            for blockdev in _blockdevs(node, file, backing, read_only=node != self._nodes[0]):
                arguments += ["-blockdev", json.dumps(blockdev)]
            backing = f"{node}-format"
        return [
            *arguments,
            "-device",
            f"virtio-blk-pci,drive={self._nodes[0]}-format,id={self.device}",
        ]

    async def commit(self, monitor: Monitor, speed_bytes_per_second: int) -> None:
        """Begin to merge the active layer into the one below."""
        arguments = {
            "job-id": self.job_id,
            "device": f"{self._nodes[0]}-format",
            "base-node": f"{self._nodes[1]}-format",
            "speed": speed_bytes_per_second,
        }
        await monitor.execute("block-commit", arguments)

    async def _snapshot(self, monitor: Monitor, overlay: Path) -> None:
        await create_image(overlay, self.layers[0])
        node = f"libvirt-{next(self._numbers)}"
        for blockdev in _blockdevs(node, overlay, None, read_only=False):
            await monitor.execute("blockdev-add", blockdev)
        below = f"{self._nodes[0]}-format"
        await monitor.execute("blockdev-snapshot", {"node": below, "overlay": f"{node}-format"})
        self._nodes.insert(0, node)
        self.job_id = f"commit-vda-{node}-format"

    async def _release(self, monitor: Monitor) -> None:
        node = self._nodes.pop(0)
        for kind in ("format", "storage"):
            await monitor.execute("blockdev-del", {"node-name": f"{node}-{kind}"})


def disks_of(scenario: Scenario, stem: Path) -> tuple[Disk, Disk]:
    """Return the disk with a backing chain and the one without; their files begin with `stem`."""
    names = ["root"] + [f"root-{number}" for number in range(1, CHAIN_LAYERS)]
    chain = [stem.with_name(f"{stem.name}-{name}.qcow2") for name in reversed(names)]
    data = [stem.with_name(f"{stem.name}-data.qcow2")]
    if not scenario.libvirt:
        return Drive(scenario.chain_device, chain), Drive(scenario.data_device, data)
    numbers = itertools.count(1)
    return (
        Blockdev(scenario.chain_device, chain, numbers),
        Blockdev(scenario.data_device, data, numbers),
    )


def cannot_run(program: str, error: OSError) -> QemuFailed:
    """Return the error for a program that cannot be run."""
    missing = isinstance(error, FileNotFoundError)
    return QemuFailed(f"{program}: {'not found in PATH' if missing else error.strerror}")


async def create_image(path: Path, backing: Path | None) -> None:
    """Create an empty qcow2 image.

    Raises:
        QemuFailed: qemu-img cannot be run, or failed.
    """
    below = ["-b", str(backing), "-F", "qcow2"] if backing else []
    try:
        process = await asyncio.create_subprocess_exec(
            *("qemu-img", "create", "-q", "-f", "qcow2", *below, str(path), str(DISK_BYTES)),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            # Ctrl-C must reach only the demo.
            start_new_session=True,
        )
    except OSError as error:
        raise cannot_run("qemu-img", error) from error
    try:
        _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise QemuFailed(errors.decode(errors="replace").strip() or "qemu-img failed")


def _blockdevs(
    node: str, file: Path, backing: str | None, *, read_only: bool
) -> Iterator[dict[str, object]]:
    yield {
        "driver": "file",
        "node-name": f"{node}-storage",
        "filename": str(file),
        "auto-read-only": True,
        "discard": "unmap",
    }
    yield {
        "driver": "qcow2",
        "node-name": f"{node}-format",
        "file": f"{node}-storage",
        "backing": backing,
        "read-only": read_only,
    }
