"""The commands that may change a VM, each built from what was checked; only `admin.lease` sends them.

Every command that can ever leave this process is in `WRITE_COMMANDS` or in `queries.READ_COMMANDS`;
there is no way to send another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from exporter.metrics import NS
from exporter.qmp import queries
from exporter.qmp.queries import Request

#: Command -> why it may leave this process.
WRITE_COMMANDS: Mapping[str, str] = {
    "block-commit": "starts the commit that a user asked for",
    "blockdev-snapshot-sync": "puts the layer on a disk that a user asked for, in a file made for it",
    "job-complete": "lets a job that is ready pivot",
    "block-job-complete": "the same, of QEMU before 3.0",
    "block-job-cancel": "ends a job before its time",
    "job-pause": "lets a job rest",
    "block-job-pause": "the same, of QEMU before 3.0",
    "job-resume": "lets a paused job go on",
    "block-job-resume": "the same, of QEMU before 3.0",
    "job-finalize": "lets a pending job make its changes",
    "block-job-finalize": "the same, of QEMU 2.12",
    "job-dismiss": "lets go of a job that has ended, after its outcome was recorded",
    "block-job-dismiss": "the same, of QEMU 2.12",
    "block-job-set-speed": "limits the speed of a job",
    "block-latency-histogram-set": "has QEMU keep the histograms that the configuration asks for",
}
#: The first QEMU that takes node names for layers and leaves ended jobs to be dismissed.
#: [block-commit: top-node, base-node, auto-dismiss, since 3.1]
_NODE_VERSION = (3, 1)
#: The first QEMU in which a commit without `top` is one of the active layer. [block-commit, 2.4]
_ACTIVE_DEFAULT_VERSION = (2, 4)
#: The first QEMU in which a job's id is not the name of its device. [block-commit: job-id]
JOB_ID_VERSION = (2, 7)


@dataclass(frozen=True, slots=True)
class Qemu:
    """What one QEMU is and can do."""

    version: tuple[int, ...]
    #: By query-commands.
    commands: Collection[str]
    #: Its process, 0 where that cannot be seen.
    pid: int = 0
    #: MigrationStatus; empty where there was none.
    migration: str = ""
    #: Whether its disks may not be its own yet: it came by a migration that leaves them inactive
    #: until it runs, which it was not seen to do. [MigrationCapability: late-block-activate]
    may_be_inactive: bool = False

    @property
    def keeps_ended_jobs(self) -> bool:
        """Whether a job can be started so that it stays until it is dismissed."""
        return self.version >= _NODE_VERSION


@dataclass(frozen=True, slots=True)
class DiskName:
    """How QEMU calls a disk: `-drive` ones by name, others by the node that they stand on."""

    device: str
    root_node: str

    @property
    def device_or_node(self) -> str:
        """What QEMU takes as `device` where it takes the root node of a disk too."""
        return self.device or self.root_node


@dataclass(frozen=True, slots=True)
class LayerName:
    """How QEMU calls a layer."""

    node_name: str
    #: As QEMU has it, with whatever credentials; empty where it is not known.
    filename: str


@dataclass(frozen=True, slots=True, eq=False)
class Command(Request[Any]):
    """A command that may change a VM, with its arguments."""

    arguments: Mapping[str, object]


def commit(
    qemu: Qemu,
    disk: DiskName,
    job_id: str,
    top: LayerName,
    base: LayerName,
    *,
    active: bool,
    speed: int | None,
) -> Command:
    """Merge `top` into `base`; `active` where `top` is the active layer."""
    arguments: dict[str, object] = {"device": disk.device_or_node}
    if qemu.version >= JOB_ID_VERSION:
        arguments["job-id"] = job_id
    if qemu.version >= _NODE_VERSION and top.node_name and base.node_name:
        # Said by name even where they are the default: what was checked is what is done.
        arguments |= {"top-node": top.node_name, "base-node": base.node_name}
    elif not active or qemu.version < _ACTIVE_DEFAULT_VERSION:
        arguments |= {"top": top.filename, "base": base.filename}
    else:
        arguments["base"] = base.filename
    if speed is not None:
        arguments["speed"] = speed
    if qemu.keeps_ended_jobs:
        arguments["auto-dismiss"] = False
    return _command("block-commit", arguments)


def change(qemu: Qemu, verb: str, job_id: str) -> Command | None:
    """Complete, pause, resume, finalize or dismiss a job; None where this QEMU cannot."""
    for name, argument in ((f"job-{verb}", "id"), (f"block-job-{verb}", "device")):
        if name in qemu.commands:
            return _command(name, {argument: job_id})
    return None


def cancel(job_id: str, *, force: bool) -> Command:
    """End a job; `force` ends one that is ready without making its copy consistent."""
    return _command("block-job-cancel", {"device": job_id, "force": force})


def set_speed(job_id: str, bytes_per_second: int) -> Command:
    """Limit a job; 0 is no limit."""
    return _command("block-job-set-speed", {"device": job_id, "speed": bytes_per_second})


def snapshot(disk: DiskName, file: str, format: str, node_name: str) -> Command:
    """Put the image in `file`, which exists, on top of a disk, as a node named `node_name`."""
    arguments: dict[str, object] = {"snapshot-file": file, "format": format, "mode": "existing"}
    if disk.device:
        arguments["device"] = disk.device
    else:
        arguments |= {"node-name": disk.root_node, "snapshot-node-name": node_name}
    return _command("blockdev-snapshot-sync", arguments)


def latency_histogram(device: str, boundaries_seconds: Sequence[float]) -> Command:
    """Have QEMU keep latency histograms of a device of the guest, all of them, by its QOM path."""
    boundaries = [round(seconds * NS) for seconds in boundaries_seconds]
    return _command("block-latency-histogram-set", {"id": device, "boundaries": boundaries})


_ANYTHING: msgspec.json.Decoder[queries.Message[Any]] = msgspec.json.Decoder(queries.Message[Any])


def _command(name: str, arguments: Mapping[str, object]) -> Command:
    assert name in WRITE_COMMANDS
    wire = msgspec.json.encode({"execute": name, "arguments": arguments})
    return Command(name, _ANYTHING, wire, arguments)
