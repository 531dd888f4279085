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
from exporter.filename import local_path, public, public_text, throttle_group
from exporter.graph import Place
from exporter.identity import device_names, key
from exporter.model import Bitmap, Counters, Device, ImageFile, Interval, Job, Node, Throttle

_replace = msgspec.structs.replace
_LIMIT_NAMES = qapi.Limits.__struct_fields__
#: JobType values that query-block-jobs lists; one that is missing there has just ended or begun.
BLOCK_JOB_TYPES = frozenset({"commit", "stream", "mirror", "backup"})
#: Formats of one file each, but for the data file that a qcow2 may have.
_ONE_FILE_FORMATS = frozenset(
    {
        "file",
        "host_cdrom",
        "host_device",
        "luks",
        "qcow",
        "qcow2",
        "qed",
        "raw",
        "vdi",
        "vhdx",
        "vpc",
    }
)
_INCUS_NODE = re.compile(r"^(incus|lxd)_")


@dataclass(frozen=True, slots=True)
class Topology:
    """What query-block said, and what was found out with it."""

    #: By `identity.key`.
    blocks: Mapping[str, qapi.BlockInfo] = field(default_factory=dict)
    #: Throttle group -> its limits.
    limits: Mapping[str, qapi.Limits] = field(default_factory=dict)


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
        chain = chains.of_nodes(entry)
        info = topology.blocks.get(key(entry)) if topology else None
        if info is not None and not chains.agree(chain, info):
            info = None
        nodes, sources = _nodes(chain, info)
        positions += (position[id(source)] for source in sources)
        files += (_file(node) for node in nodes if node.counts)
        device = Device(
            device=name,
            qdev=entry.qdev,
            nodes=nodes,
            backing_depth=len(chain.layers) - 1 if chain.layers else None,
            expected_backing_depth=expected_depth(name),
        )
        found.append(_device(device, info, chain, topology) if info and topology else device)
    return Devices(tuple(found), walk.names, tuple(positions), tuple(files))


def _file(node: Node) -> str:
    return (local_path(node.image.filename) or "") if node.image else ""


def count(
    known: Devices,
    entries: Sequence[qapi.BlockStats],
    walk: Walk,
    files: Mapping[str, ImageFile] | None = None,
) -> Counters:
    """Return the counters of the devices `known`, from an answer with the same names.

    `files` tells what is seen of an image file, by its path.
    """
    nodes = [walk.nodes[position] for position in known.positions]
    return Counters(entries, nodes, [files.get(file) for file in known.files] if files else ())


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
        if (path := local_path(image.filename))
    )


def names_all_files(blocks: Mapping[str, qapi.BlockInfo]) -> bool:
    """Whether `image_files` are all that QEMU has open for these devices, as far as formats tell.

    A quorum has children, a vmdk may have extents, and a qcow2 a data file, which have no names
    there.
    """
    return all(
        image.format in _ONE_FILE_FORMATS
        and local_path(image.filename) is not None
        and not (image.format_specific and _data_file(image.format_specific))
        for info in blocks.values()
        for image in chains.images(info)
    )


def _data_file(specific: qapi.FormatSpecific) -> str | None:
    return specific.data.data_file if specific.data else None


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


def _word(value: bool | None) -> str:
    return "" if value is None else "true" if value else "false"


def _device(device: Device, info: qapi.BlockInfo, chain: Chain, topology: Topology) -> Device:
    """Return `device` with what query-block knows of the device."""
    inserted = info.inserted
    known = _replace(
        device, block=info, inserted=inserted is not None, removable=_word(info.removable)
    )
    if inserted is None:
        return known
    active = next(iter(chains.layer_images(info)), inserted.image)
    node_name = chain.layers[0].node_name if chain.layers else inserted.node_name
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
            Bitmap(bitmap.name, node_name, bitmap)
            for bitmap in inserted.dirty_bitmaps or info.dirty_bitmaps
            if bitmap.name
        ),
    )


def _nodes(
    chain: Chain, info: qapi.BlockInfo | None
) -> tuple[tuple[Node, ...], Sequence[qapi.BlockNode]]:
    """Return the nodes of a chain, and the entries of those that count."""
    images = chains.layer_images(info) if info else ()
    nodes: list[Node] = []
    sources: list[qapi.BlockNode] = []
    for index, layer in enumerate(chain.layers):
        image = images[index] if images else None
        nodes.append(_format_node(str(index), layer, image))
        sources.append(layer)
        if (protocol := chains.protocol_of(layer)) is not None:
            nodes.append(_protocol_node(str(index), protocol, image))
            sources.append(protocol)
    filters = [i for i in chains.images(info) if i.format in chains.FILTERS] if info else []
    nodes += [
        Node(layer="", role="filter", node_name=n.node_name, has_info=True, driver=image.format)
        for n, image in zip(chain.filters, filters, strict=False)
        if image.format in chains.LASTING_FILTERS
    ]
    return tuple(nodes), sources


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


def _protocol_node(layer: str, entry: qapi.BlockNode, image: qapi.Image | None) -> Node:
    return Node(
        layer=layer,
        role="protocol",
        node_name=entry.node_name,
        has_info=None if image is None else True,
        driver=entry.driver_specific.driver if entry.driver_specific else "",
        file=public(image.filename) if image else "",
    )


def _throttle(inserted: qapi.Inserted, info: qapi.BlockInfo, topology: Topology) -> Throttle | None:
    """Return the limits of the device itself, else those of a throttle filter above its chain."""
    if inserted.group or any(getattr(inserted, name) for name in _LIMIT_NAMES):
        return Throttle(inserted.group, inserted)
    for image in chains.images(info):
        if image.format == "throttle" and (group := throttle_group(image.filename)):
            limits = topology.limits.get(group)
            return None if limits is None else Throttle(group, limits)
    return None
