"""Preconditions of a VM, its disks and layers: pure functions of one snapshot, taken a moment ago.

Those of each job verb are in `job_verbs`.

They raise `Refused`, which names the problem and the job that stands in the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from msgspec import UnsetType

from exporter import api
from exporter.admin import job_verbs, present
from exporter.errors import Refused
from exporter.model import BLOCK_JOB_TYPES, Device, Job, Node, VmState, chain
from exporter.qmp import DiskName, LayerName, Qemu
from exporter.redact import local_path, redact_filename

#: RunStates in which the disks belong to another QEMU, or must stay as they are.
_UNTOUCHABLE = frozenset(
    {
        "colo",
        "finish-migrate",
        "inmigrate",
        "internal-error",
        "postmigrate",
        "restore-vm",
        "save-vm",
    }
)
#: MigrationStatus of a VM that is not migrating; one that has left is known by its RunState.
_AT_HOME = frozenset({"", "none", "completed", "failed", "cancelled"})
#: How many other VMs a refusal names at most.
_TOLD = 5


@dataclass(frozen=True, slots=True)
class Found:
    """A device of a snapshot, with QEMU's names for it."""

    device: Device
    disk: DiskName
    layers: tuple[Node, ...]
    filters: tuple[chain.Filter, ...] = ()

    @property
    def top_disk(self) -> DiskName:
        """What a new layer goes on top of: the active layer, below any filter."""
        active = self.layers[0].node_name
        return self.disk if active in ("", self.disk.root_node) else DiskName("", active)

    def image(self, layer: int) -> LayerName:
        """Return QEMU's name for a layer."""
        node = self.layers[layer]
        return LayerName(node.node_name, node.image.filename if node.image else "")

    def base(self, layer: int) -> LayerName:
        """Return QEMU's name for the layer that others are merged into.

        A filter between the two stays: QEMU merges through it and drops the layers in between.
        """
        above = next((each.node.node_name for each in self.filters if each.depth == layer), "")
        image = self.image(layer)
        return LayerName(above or image.node_name, image.filename)


@dataclass(frozen=True, slots=True)
class Range:
    """The layers of a commit."""

    top: int
    base: int


def steady(snapshot: VmState, qemu: Qemu) -> None:
    """Require that the disks belong to this VM and that it is not being migrated."""
    if snapshot.status in _UNTOUCHABLE:
        raise Refused("wrong-vm-state", f"{snapshot.vm} is in the state {snapshot.status}")
    # It keeps running while it is copied, but the destination would not learn of the change.
    if qemu.migration not in _AT_HOME:
        raise Refused("wrong-vm-state", f"{snapshot.vm} is being migrated: {qemu.migration}")
    if qemu.may_be_inactive:
        raise Refused(
            "wrong-vm-state",
            f"{snapshot.vm} arrived by a migration with late-block-activate and has not run since:"
            " its disks may still belong to the other QEMU. Let it run first (cont)",
        )


def unmanaged(snapshot: VmState, *, allow_managed: bool) -> None:
    """Require that no other program manages the disks."""
    if snapshot.manager and not allow_managed:
        manager = snapshot.manager
        raise Refused("managed-vm", f"{snapshot.vm} is managed by {manager}", manager=manager)


def storage(snapshot: VmState) -> list[str]:
    """Require that the storage answers; return warnings about what is not visible of it."""
    if snapshot.would_crash:
        raise Refused(
            "wrong-vm-state",
            f"an image of {snapshot.vm} below another node was found corrupt: QEMU would crash if it"
            " was asked for its images",
        )
    if snapshot.storage_responding is False:
        why = f": {snapshot.storage_error}" if snapshot.storage_error else ""
        raise Refused("storage-hangs", f"storage of {snapshot.vm} does not answer{why}")
    if snapshot.storage_error:
        why = snapshot.storage_error
        raise Refused("storage-hangs", f"storage of {snapshot.vm} is not known to answer: {why}")
    if snapshot.storage_responding is None:
        return [
            "image files are not visible to the exporter: whether their storage answers is unknown"
        ]
    return []


def device(snapshot: VmState, name: str) -> Found:
    """Return a device; require that it has a medium and a known chain."""
    pairs = zip(snapshot.devices, snapshot.counters.devices, strict=True)
    each, entry = next((pair for pair in pairs if pair[0].device == name), (None, None))
    if each is None or entry is None:
        raise Refused("unknown-device", f"{snapshot.vm} has no device {name!r}")
    layers = tuple(node for node in each.nodes if node.role == "format")
    if not layers or each.inserted is False:
        corrupt = layers and each.backing_depth is None
        problem = (
            "has an image that QEMU has closed, most likely as corrupt"
            if corrupt
            else "has no medium"
        )
        raise Refused("wrong-device-state", f"{name} {problem}")
    inserted = each.block.inserted if each.block else None
    found = chain.of_nodes(entry)
    root = (inserted.node_name if inserted else "") or found.root_name
    return Found(each, DiskName(entry.device, root), layers, found.filters)


def idle(snapshot: VmState, name: str) -> None:
    """Require that no job is running on the device."""
    for job in snapshot.jobs:
        # A job that has ended but was not dismissed no longer holds the device.
        ended = (
            job_verbs.status(job) in ("concluded", "null") or job.job_type not in BLOCK_JOB_TYPES
        )
        if ended or job.device not in (name, ""):
            continue
        where = name if job.device else "an unidentified disk"
        raise Refused(
            "device-busy",
            f"{job.job_type} {job.job_id} is running on {where}",
            present.job(snapshot.vm, job),
        )


def writable(found: Found) -> None:
    """Require that the layers are known and writable."""
    name = found.device.device
    inserted = found.device.block.inserted if found.device.block else None
    if inserted is not None and inserted.active is False:
        raise Refused(
            "wrong-device-state",
            f"{name} is not active: its images belong to another QEMU until the migration has completed"
            " and the VM runs here",
        )
    if found.device.read_only == "true":
        raise Refused("wrong-device-state", f"{name} is read-only")
    for node in found.layers:
        if node.image is None:
            raise Refused(
                "wrong-device-state",
                f"the files of {name} are not known: query-block was not asked"
                " (--collector.topology), or disagrees with query-blockstats",
            )
        data = node.image.format_specific
        if data is not None and getattr(data.data, "corrupt", False):
            raise Refused("wrong-device-state", f"layer {node.layer} of {name} is corrupt")


def commit_range(found: Found, request: api.Commit) -> Range:
    """Return the layers of a commit; require that they exist, in order."""
    last = len(found.layers) - 1
    top = 0 if isinstance(request.top, UnsetType) else _layer(found, request.top, "top")
    base = last if isinstance(request.base, UnsetType) else _layer(found, request.base, "base")
    name = found.device.device
    if last == 0:
        raise Refused("nothing-to-commit", f"{name} has one layer and no backing file")
    if top >= base:
        raise Refused("nothing-to-commit", f"layer {top} of {name} is not above layer {base}")
    expected = found.device.expected_backing_depth or 0
    if base > last - expected:
        raise Refused(
            "shared-layer",
            f"expected_backing_depth of {name} is {expected}: layer {base} is one of these backing"
            " files, and must stay",
        )
    return Range(top, base)


def unshared(
    snapshot: VmState,
    found: Found,
    layers: Range,
    others: Sequence[tuple[str, Device]],
    identities: Mapping[Any, object],
    opened: Mapping[str, AbstractSet[object]],
) -> None:
    """Require that no other disk reads a layer that is written to or removed.

    `others` are the devices of all VMs, as far as known. `identities` says which file a layer is: by
    the VM and the path in its QEMU, by what that QEMU has open, or by the path as seen from here.
    `opened` has all files that a VM has open, if that is visible.
    """
    chosen = found.layers[layers.top : layers.base + 1]
    touched = {key for node in chosen for key in _keys(snapshot.vm, node, identities)}
    certain = [identities.get((snapshot.vm, _path(node))) for node in chosen]
    for vm, other in others:
        if vm == snapshot.vm and other.device == found.device.device:
            continue
        is_told = vm != snapshot.vm and vm in opened and None not in certain
        if is_told and not opened[vm] & set(certain):
            continue  # names say less: some of them mean a different file in each process
        for node in other.nodes:
            if node.role == "format" and touched.intersection(_keys(vm, node, identities)):
                raise Refused(
                    "shared-layer",
                    f"{node.file or node.node_name} is layer {node.layer} of"
                    f" {other.device} of {vm} too",
                )
    for node, identity in zip(chosen, certain, strict=True):
        for vm, files in opened.items():
            if vm != snapshot.vm and identity is not None and identity in files:
                raise Refused("shared-layer", f"{node.file or node.node_name} is open in {vm} too")


def seen(unseen: Sequence[str], *, allowed: bool) -> Sequence[str]:
    """Require that the layers of all other VMs are known; if not knowing is allowed, return warnings.

    `unseen` has a sentence about each VM whose layers are not known.
    """
    if unseen and not allowed:
        more = f", and {len(unseen) - _TOLD} more" if len(unseen) > _TOLD else ""
        raise Refused("unseen-neighbours", "; ".join(unseen[:_TOLD]) + more)
    return unseen


def unsaid(snapshot: VmState) -> str:
    """Return why the layers of the disks of a VM are unknown, "" if they are known."""
    if not snapshot.up:
        # If nobody listens on the socket, there is no QEMU.
        gone = snapshot.reason in ("no_socket", "refused")
        return "" if gone else f"does not answer ({snapshot.reason})"
    nodes = [node for each in snapshot.devices for node in each.nodes if node.role == "format"]
    blind = any(node.image is None for node in nodes)
    return "does not report the files of all its disks" if blind else ""


def _keys(vm: str, node: Node, identities: Mapping[Any, object]) -> Iterator[object]:
    """Yield the identities of a layer: two layers that share one are the same."""
    if node.node_name:
        yield vm, node.node_name
    path = _path(node)
    for key in ((vm, path), path):
        if key in identities:
            yield identities[key]
    # A name without a path is that of a driver alone. One without a root is relative to where that
    # QEMU was started, and the set of a descriptor is its own.
    if node.file and not node.file.endswith(":"):
        own = ":" not in node.file if node.file[0] != "/" else node.file.startswith("/dev/fdset/")
        yield (vm, "", node.file) if own else node.file


def _path(node: Node) -> str | None:
    return local_path(node.image.filename) if node.image else None


def job(snapshot: VmState, job_id: str, known: api.Job | None = None) -> Job:
    """Return a block job that QEMU has; `known` is what is known of one that it no longer has."""
    for each in snapshot.jobs:
        if each.job_id == job_id and each.job_type in BLOCK_JOB_TYPES:
            return each
    if known is not None and known.outcome:
        detail = f"{snapshot.vm} no longer has a block job {job_id!r}"
        raise Refused("unknown-job", detail, known)
    raise Refused("unknown-job", f"{snapshot.vm} has no block job {job_id!r}")


def _layer(found: Found, name: str, which: str) -> int:
    """Return the number of the layer that has this node name, or else this file."""
    for known in ([node.node_name for node in found.layers], [node.file for node in found.layers]):
        numbers = [index for index, each in enumerate(known) if each == name]
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            raise Refused("unknown-layer", f"{which}: {name!r} is more than one layer")
    # The name may be a file name with credentials.
    raise Refused(
        "unknown-layer", f"{which}: {found.device.device} has no layer {redact_filename(name)!r}"
    )
