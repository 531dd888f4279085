"""What must be so before a VM is changed: each a pure look at one snapshot, made a moment ago.

A guard raises `Refused`, which names the problem and the job that stands in the way.
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

#: RunState in which the disks belong to another QEMU, or must stay as they are.
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
#: MigrationStatus of a VM that goes nowhere; one that went is known by its RunState.
_AT_HOME = frozenset({"", "none", "completed", "failed", "cancelled"})
#: Most neighbours that a refusal names.
_TOLD = 5


@dataclass(frozen=True, slots=True)
class Found:
    """A device of a snapshot, and what QEMU calls it."""

    device: Device
    disk: DiskName
    layers: tuple[Node, ...]
    filters: tuple[chain.Filter, ...] = ()

    @property
    def top_disk(self) -> DiskName:
        """What a new layer goes on top of: below a filter, which would else be below the layer."""
        active = self.layers[0].node_name
        return self.disk if active in ("", self.disk.root_node) else DiskName("", active)

    def image(self, layer: int) -> LayerName:
        """Return how QEMU calls a layer."""
        node = self.layers[layer]
        return LayerName(node.node_name, node.image.filename if node.image else "")

    def base(self, layer: int) -> LayerName:
        """Return how QEMU calls a layer that another is merged into.

        A filter between the two stays: QEMU merges through it, and leaves out what is in between.
        """
        above = next((each.node.node_name for each in self.filters if each.depth == layer), "")
        image = self.image(layer)
        return LayerName(above or image.node_name, image.filename)


@dataclass(frozen=True, slots=True)
class Range:
    """The layers that a commit works on."""

    top: int
    base: int


def steady(snapshot: VmState, qemu: Qemu) -> None:
    """The disks are the VM's own, and it is not on its way elsewhere."""
    if snapshot.status in _UNTOUCHABLE:
        raise Refused("wrong-vm-state", f"{snapshot.vm} is in the state {snapshot.status}")
    # While it is copied it runs as ever; what is changed then, the other side does not know of.
    if qemu.migration not in _AT_HOME:
        raise Refused("wrong-vm-state", f"{snapshot.vm} is being migrated: {qemu.migration}")
    if qemu.may_be_inactive:
        raise Refused(
            "wrong-vm-state",
            f"{snapshot.vm} arrived by a migration with late-block-activate and has not run since:"
            " its disks may still belong to the other QEMU. Let it run first (cont)",
        )


def unmanaged(snapshot: VmState, *, allow_managed: bool) -> None:
    """No other program keeps account of the disks."""
    if snapshot.manager and not allow_managed:
        manager = snapshot.manager
        raise Refused("managed-vm", f"{snapshot.vm} is managed by {manager}", manager=manager)


def storage(snapshot: VmState) -> list[str]:
    """The storage answers; return what could not be seen of it."""
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
    """There is such a device, with a medium, and its chain is known."""
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
    """No job works on the device."""
    for job in snapshot.jobs:
        # One that has ended and was not dismissed holds nothing any more.
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
    """The layers are known, and may be merged or added to."""
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
    """The layers are there, in order, and there is something to commit."""
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
    """No other disk reads a layer that is written to or removed.

    `others` are the devices of all VMs, as far as they are known. `identities` tell which file it
    is: by the VM and the path that its QEMU calls it, by what that has open, or by the path, as it
    leads from here. `opened` tells all that a VM has open, where that can be seen.
    """
    chosen = found.layers[layers.top : layers.base + 1]
    touched = {key for node in chosen for key in _keys(snapshot.vm, node, identities)}
    certain = [identities.get((snapshot.vm, _path(node))) for node in chosen]
    for vm, other in others:
        if vm == snapshot.vm and other.device == found.device.device:
            continue
        is_told = vm != snapshot.vm and vm in opened and None not in certain
        if is_told and not opened[vm] & set(certain):
            continue  # names tell less: each process has files of its own of some
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
    """All neighbours said which layers they have; return what they did not, where that is allowed.

    `unseen` are sentences about them.
    """
    if unseen and not allowed:
        more = f", and {len(unseen) - _TOLD} more" if len(unseen) > _TOLD else ""
        raise Refused("unseen-neighbours", "; ".join(unseen[:_TOLD]) + more)
    return unseen


def unsaid(snapshot: VmState) -> str:
    """Return why nobody knows which layers the disks of a VM have, "" where that is known."""
    if not snapshot.up:
        # Of a socket that nobody listens on, there is no QEMU.
        gone = snapshot.reason in ("no_socket", "refused")
        return "" if gone else f"does not answer ({snapshot.reason})"
    nodes = [node for each in snapshot.devices for node in each.nodes if node.role == "format"]
    blind = any(node.image is None for node in nodes)
    return "does not report the files of all its disks" if blind else ""


def _keys(vm: str, node: Node, identities: Mapping[Any, object]) -> Iterator[object]:
    """Yield what a layer is known by: two that have one of these in common are one."""
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
    """QEMU has such a block job; `known` is what is known of one that it has no more."""
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
    # It may be a file name as QEMU has it.
    raise Refused(
        "unknown-layer", f"{which}: {found.device.device} has no layer {redact_filename(name)!r}"
    )
