"""Replies -> Snapshot. Pure: no I/O, no clock, no state."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import msgspec

from exporter import chain as chains
from exporter import qapi
from exporter.chain import Chain, Walk
from exporter.errors import ProtocolError
from exporter.filename import (
    DEVICE_DRIVERS,
    data_file,
    is_on_device,
    local_path,
    public,
    public_text,
    throttle_group,
)
from exporter.graph import Place
from exporter.identity import device_names, key
from exporter.model import Bitmap, Counters, Device, Interval, Job, Node, Space, Throttle

_replace = msgspec.structs.replace
_LIMIT_NAMES = qapi.Limits.__struct_fields__
#: JobType values that query-block-jobs lists; one that is missing there has just ended or begun.
BLOCK_JOB_TYPES = frozenset({"commit", "stream", "mirror", "backup"})
_INCUS_NODE = re.compile(r"^(incus|lxd)_")


@dataclass(frozen=True, slots=True)
class Topology:
    """What query-block said, and what was found out with it."""

    #: By `identity.key`.
    blocks: Mapping[str, qapi.BlockInfo] = field(default_factory=dict)
    #: Throttle group -> its limits.
    limits: Mapping[str, qapi.Limits] = field(default_factory=dict)
    #: The devices whose root node has no driver any more, and that node's name.
    closed: AbstractSet[tuple[str, str]] = frozenset()
    #: Of the data files that headers name, those that QEMU has open.
    data_files: AbstractSet[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of query-blockstats, and where in its next answers their counters will be."""

    found: tuple[Device, ...] = ()
    #: `chain.Walk.names` of the answer that they were found in.
    names: tuple[str, ...] = ()
    #: Where in `chain.Walk.nodes` each node stands that counts.
    positions: tuple[int, ...] = ()
    #: The image file of each of these nodes, empty where it has none of its own.
    files: tuple[str, ...] = ()


def devices(
    entries: Sequence[qapi.BlockStats],
    topology: Topology | None,
    expected_depth: Callable[[str], int],
) -> Devices:
    """Return the devices of query-blockstats, with what `topology` knows of each.

    Raises:
        ProtocolError: two entries cannot be told apart.
    """
    walk = chains.walk(entries)
    # Below a filter a node stands twice, as two objects; either tells the same.
    position = {id(node): index for index, node in enumerate(walk.nodes)}
    found = []
    positions: list[int] = []
    files: list[str] = []
    for name, entry in zip(device_names(entries), entries, strict=True):
        info = topology.blocks.get(key(entry)) if topology else None
        closed = topology is not None and (key(entry), entry.node_name) in topology.closed
        chain = chains.joined(entry, info) if info else None
        if chain is None:
            chain = chains.of_nodes(entry)
            info = info if closed else None
        nodes, sources, of_nodes = _nodes(chain, topology.data_files if topology else frozenset())
        positions += (position[id(source)] for source in sources)
        files += of_nodes
        device = Device(
            device=name,
            qdev=entry.qdev,
            nodes=nodes,
            # A node without a driver does not tell what it is backed by. [bdrv_cow_child]
            backing_depth=len(chain.layers) - 1 if chain.layers and not closed else None,
            expected_backing_depth=expected_depth(name),
        )
        found.append(_device(device, info, chain, topology) if info and topology else device)
    return Devices(tuple(found), walk.names, tuple(positions), tuple(files))


def count(
    known: Devices,
    entries: Sequence[qapi.BlockStats],
    walk: Walk,
    storage: Mapping[str, Space] | None = None,
) -> Counters:
    """Return the counters of the devices `known`, from an answer with the same names.

    `storage` tells the space that is left, by the path of an image file.
    """
    nodes = [walk.nodes[position] for position in known.positions]
    return Counters(entries, nodes, [storage.get(file) for file in known.files] if storage else ())


def intervals(entry: qapi.BlockStats) -> tuple[Interval, ...]:
    """Return the interval statistics of a device."""
    # QEMU takes one length twice, and keeps two equal statistics of it.
    by_length = {timed.interval_length: timed for timed in entry.stats.timed_stats}
    return tuple(Interval(str(length), timed) for length, timed in by_length.items())


def free_nodes(
    nodes: Sequence[qapi.BlockNode], entries: Sequence[qapi.BlockStats]
) -> tuple[tuple[Node, ...], Sequence[qapi.BlockNode]]:
    """Return the nodes of `query-nodes: true` that no device of `entries` uses, and their counters.

    Raises:
        ProtocolError: two nodes have one name.
    """
    used: set[str] = set()
    waiting: list[qapi.BlockNode] = list(entries)
    while waiting:
        entry = waiting.pop()
        if entry.node_name in used:
            continue
        used.add(entry.node_name)
        waiting += [child for child in (entry.parent, entry.backing) if child is not None]
    free = [node for node in nodes if node.node_name not in used]
    if len({node.node_name for node in free}) != len(free):
        raise ProtocolError("query-blockstats has two nodes of one name")
    found = tuple(
        Node(
            layer="",
            role="format" if node.parent is not None else "protocol",
            node_name=node.node_name,
        )
        for node in free
    )
    return found, free


def jobs(
    block_jobs: Sequence[qapi.BlockJob],
    other_jobs: Sequence[qapi.JobInfo],
    places: Mapping[tuple[str, str], Place],
) -> tuple[Job, ...]:
    """Return every job; `places` is keyed by id and type.

    Raises:
        ProtocolError: two jobs have one id.
    """
    found = {}
    for job in block_jobs:
        place = places.get((job.device, job.type), Place())
        if job.device in found:
            raise ProtocolError(f"query-block-jobs has two jobs with id {job.device!r}")
        found[job.device] = Job(
            place.device, job.device, job.type, job, place.top, place.base, public_text(job.error)
        )
    for other in other_jobs:
        total = other.total_progress
        if other.id not in found:
            plain = qapi.BlockJob(device=other.id, type=other.type)
            plain.status = other.status  # type: ignore[attr-defined]  # a leaf of the table
            found[other.id] = Job(
                "",
                other.id,
                other.type,
                plain,
                error=public_text(other.error),
                progress_ratio=other.current_progress / total if total > 0 else None,
            )
    return tuple(found.values())


def other_jobs(jobs: Sequence[qapi.JobInfo], ids: AbstractSet[str]) -> list[qapi.JobInfo]:
    """Return the jobs of query-jobs that are no block jobs; `ids` are those of block jobs."""
    return [job for job in jobs if job.id not in ids and job.type not in BLOCK_JOB_TYPES]


def image_files(blocks: Mapping[str, qapi.BlockInfo]) -> frozenset[str]:
    """Return the path of every image file; QEMU may stat others too to answer query-block."""
    return frozenset(
        path
        for info in blocks.values()
        for image in chains.images(info)
        for path in (local_path(image.filename), _data_file(image, None))
        if path
    )


def header_data_files(blocks: Mapping[str, qapi.BlockInfo]) -> frozenset[str]:
    """Return the data files that headers name; QEMU may have been given others."""
    return frozenset(
        data.data_file
        for info in blocks.values()
        for image in chains.images(info)
        if (data := _data(image)) is not None and data.data_file
    )


def throttle_groups(blocks: Mapping[str, qapi.BlockInfo]) -> frozenset[str]:
    """Return the groups of throttle filters, whose limits query-block does not tell."""
    return frozenset(
        group
        for info in blocks.values()
        for image in chains.images(info)
        if image.format == "throttle" and (group := throttle_group(image.filename))
    )


def manager(package: str, entries: Sequence[qapi.BlockStats]) -> str:
    """Return who runs this VM, as far as its names tell: libvirt, proxmox, incus or nothing."""
    if "pve" in package:
        return "proxmox"
    nodes = [node.node_name for entry in entries for node in chains.of_nodes(entry).layers]
    if any(name.startswith("libvirt-") for name in nodes):
        return "libvirt"
    return "incus" if any(_INCUS_NODE.match(name) for name in nodes) else ""


def _counted(bitmap: qapi.Bitmap) -> qapi.Bitmap:
    # Of one that was not saved QEMU knows nothing, and says 0.
    return _replace(bitmap, count=None) if getattr(bitmap, "inconsistent", None) else bitmap


def _word(value: bool | None) -> str:
    return "" if value is None else "true" if value else "false"


def _device(device: Device, info: qapi.BlockInfo, chain: Chain, topology: Topology) -> Device:
    """Return `device` with what query-block knows of the device."""
    inserted = info.inserted
    known = _replace(
        device,
        block=info,
        inserted=inserted is not None,
        removable=_word(info.removable),
        node_name=chain.layers[0].node_name if chain.layers else "",
    )
    if inserted is None:
        return known
    active = chain.images[0] if chain.images else inserted.image
    node_name = known.node_name if chain.layers else inserted.node_name
    throttle = _throttle(inserted, info, topology)
    cache = inserted.cache
    return _replace(
        known,
        node_name=node_name,
        driver=active.format,
        file=public(active.filename),
        read_only=_word(inserted.ro),
        cache_writeback=_word(cache.writeback if cache else None),
        cache_direct=_word(cache.direct if cache else None),
        cache_no_flush=_word(cache.no_flush if cache else None),
        detect_zeroes=inserted.detect_zeroes,
        throttle=throttle,
        throttle_group=throttle.throttle_group if throttle else "",
        bitmaps=tuple(
            # Of the root node, which may be a filter with bitmaps of its own.
            Bitmap(bitmap.name, inserted.node_name or node_name, _counted(bitmap))
            for bitmap in inserted.dirty_bitmaps or info.dirty_bitmaps
            if bitmap.name
        ),
    )


def _nodes(
    chain: Chain, data_files: AbstractSet[str]
) -> tuple[tuple[Node, ...], Sequence[qapi.BlockNode], Sequence[str]]:
    """Return the nodes of a chain, the entries of those that count, and whose storage these use.

    That is the path of a file, empty where it is not known or has none of its own.
    """
    nodes: list[Node] = []
    sources: list[qapi.BlockNode] = []
    files: list[str] = []
    for index, layer in enumerate(chain.layers):
        image = _measured(layer, chain.images[index]) if chain.images else None
        data = _data_file(image, data_files) if image else None
        nodes.append(_format_node(str(index), layer, image))
        sources.append(layer)
        files.append((local_path(image.filename) if data is None else data) or "" if image else "")
        if (protocol := chains.protocol_of(layer)) is not None:
            nodes.append(_protocol_node(str(index), protocol, image, data))
            sources.append(protocol)
            files.append("")
    nodes += [
        Node(
            layer="",
            role="filter",
            node_name=each.node.node_name,
            has_info=True,
            driver=each.image.format,
        )
        for each in chain.filters
        if each.image is not None and each.image.format in chains.LASTING_FILTERS
    ]
    return tuple(nodes), sources, files


def _format_node(layer: str, entry: qapi.BlockNode, image: qapi.Image | None) -> Node:
    if image is None:
        return Node(layer=layer, role="format", node_name=entry.node_name)
    data = image.format_specific.data if image.format_specific else None
    return Node(
        layer=layer,
        role="format",
        node_name=entry.node_name,
        image=image,
        internal_snapshots=None if image.snapshots is None else len(image.snapshots),
        has_info=True,
        driver=image.format,
        file=public(image.filename),
        backing_file=public(image.backing_filename),
        backing_format=image.backing_filename_format,
        encrypted=_word(image.encrypted),
        compat=(data and data.compat) or "",
    )


def _protocol_node(
    layer: str, entry: qapi.BlockNode, image: qapi.Image | None, data: str | None
) -> Node:
    return Node(
        layer=layer,
        role="protocol",
        node_name=entry.node_name,
        has_info=None if image is None else True,
        driver=entry.driver_specific.driver if entry.driver_specific else "",
        file=(public(image.filename) if data is None else data) if image else "",
    )


def _data(image: qapi.Image) -> qapi.FormatData | None:
    return image.format_specific.data if image.format_specific else None


def _data_file(image: qapi.Image, opened: AbstractSet[str] | None) -> str | None:
    """Return the path of the file where the guest's data is, if that is not the image's own.

    It is empty where it is not known: a qcow2 shows the name that is in its header, though QEMU may
    have been given another file. `opened` are the names of which that is known; None takes any.
    """
    data = _data(image)
    if data is None:
        return None
    if data.data_file is not None or data.data_file_raw is not None:
        if named := data_file(image.filename):
            return named
        header = data.data_file or ""
        return header if opened is None or header in opened else ""
    names = {extent.filename for extent in data.extents} - {image.filename}
    if not names:
        return None
    return (local_path(names.pop()) or "") if len(data.extents) == 1 else ""


def _measured(layer: qapi.BlockNode, image: qapi.Image) -> qapi.Image:
    """Return an image without the size that is none: a block device has always 0 blocks.

    QEMU adds up what the files of an image take. [bdrv_get_allocated_file_size]
    """
    file = chains.protocol_of(layer) or layer
    if file.driver_specific is not None:
        known = file.driver_specific.driver not in DEVICE_DRIVERS
    else:
        # A quorum has several files; QEMU before 4.2 does not tell the driver.
        known = not is_on_device(image.filename)
    return image if known else _replace(image, actual_size=None)


def _throttle(inserted: qapi.Inserted, info: qapi.BlockInfo, topology: Topology) -> Throttle | None:
    """Return the limits of the device itself, else those of a throttle filter above its chain."""
    if inserted.group or any(getattr(inserted, name) for name in _LIMIT_NAMES):
        return Throttle(inserted.group, inserted)
    for image in chains.images(info):
        if image.format == "throttle" and (group := throttle_group(image.filename)):
            limits = topology.limits.get(group)
            return None if limits is None else Throttle(group, limits)
    return None
