"""Builds the state of a VM from QEMU's replies. Pure: no I/O, no clock, no state."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import msgspec

from exporter.errors import ProtocolError
from exporter.model import chain as chains
from exporter.model.chain import Chain, Walk
from exporter.model.device_names import device_names, join_key
from exporter.model.job_placement import Place
from exporter.model.nodes import of_chain, word
from exporter.model.state import Bitmap, Counters, Device, ImageFile, Interval, Job, Node, Throttle
from exporter.qmp import schema
from exporter.redact import redact_filename, redact_text, throttle_group

_replace = msgspec.structs.replace
_LIMIT_NAMES = schema.Limits.__struct_fields__
#: JobType values that query-block-jobs lists; a job of these that it lacks has just ended or begun.
BLOCK_JOB_TYPES = frozenset({"commit", "stream", "mirror", "backup"})
_INCUS_NODE = re.compile(r"^(incus|lxd)_")


@dataclass(frozen=True, slots=True)
class Topology:
    """What query-block reported, and what was derived from it."""

    #: By `device_names.join_key`.
    blocks: Mapping[str, schema.BlockInfo] = field(default_factory=dict)
    #: Throttle group -> its limits.
    limits: Mapping[str, schema.Limits] = field(default_factory=dict)
    #: (`join_key`, name of the root node) of devices whose root node no longer has a driver.
    closed: AbstractSet[tuple[str, str]] = frozenset()
    #: Those data files named in image headers that QEMU has open.
    data_files: AbstractSet[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of query-blockstats, and where their counters are in its next replies."""

    found: tuple[Device, ...] = ()
    #: `chain.Walk.names` of the reply that they were found in.
    names: tuple[str, ...] = ()
    #: The index in `chain.Walk.nodes` of each node that has counters.
    positions: tuple[int, ...] = ()
    #: The image of each of these nodes, and the file with its data; empty if it has none.
    files: tuple[tuple[str, str], ...] = ()


def devices(
    entries: Sequence[schema.BlockStats],
    topology: Topology | None,
    expected_depth: Callable[[str], int],
) -> Devices:
    """Return the devices of query-blockstats, with what `topology` has about each.

    Raises:
        ProtocolError: two devices have the same name.
    """
    walk = chains.walk(entries)
    # Below a filter a node is listed twice, as two equal objects.
    position = {id(node): index for index, node in enumerate(walk.nodes)}
    found = []
    positions: list[int] = []
    files: list[tuple[str, str]] = []
    for name, entry in zip(device_names(entries), entries, strict=True):
        info = topology.blocks.get(join_key(entry)) if topology else None
        closed = topology is not None and (join_key(entry), entry.node_name) in topology.closed
        chain = chains.joined(entry, info) if info else None
        if chain is None:
            chain = chains.of_nodes(entry)
            info = info if closed else None
        nodes, sources, of_nodes = of_chain(chain, topology.data_files if topology else frozenset())
        positions += (position[id(source)] for source in sources)
        files += of_nodes
        device = Device(
            device=name,
            qdev=entry.qdev,
            nodes=nodes,
            # The backing file of a node without a driver is not reported. [bdrv_cow_child]
            backing_depth=len(chain.layers) - 1 if chain.layers and not closed else None,
            expected_backing_depth=expected_depth(name),
        )
        found.append(_device(device, info, chain, topology) if info and topology else device)
    return Devices(tuple(found), walk.names, tuple(positions), tuple(files))


def count(
    known: Devices,
    entries: Sequence[schema.BlockStats],
    walk: Walk,
    files: Mapping[str, ImageFile] | None = None,
) -> Counters:
    """Return the counters of the devices `known`, from a reply with the same names.

    `files` maps the path of an image file to what is seen of it on the host.
    """
    nodes = [walk.nodes[position] for position in known.positions]
    return Counters(entries, nodes, [_file(file, files) for file in known.files] if files else ())


def _file(paths: tuple[str, str], files: Mapping[str, ImageFile]) -> ImageFile | None:
    """Return what is seen of an image: the space of its data file, and whether both names are valid."""
    image, data = (files.get(path) for path in paths)
    if paths[0] == paths[1] or image is None:
        return image or data
    space = data or ImageFile()
    unnamed = space if space.name_valid == 0 and image.name_valid != 0 else image
    return _replace(
        space, name_valid=unnamed.name_valid, name=unnamed.name, identity=image.identity
    )


def intervals(entry: schema.BlockStats) -> tuple[Interval, ...]:
    """Return the interval statistics of a device."""
    # QEMU accepts the same length twice, and then keeps two equal statistics.
    by_length = {timed.interval_length: timed for timed in entry.stats.timed_stats}
    return tuple(Interval(str(length), timed) for length, timed in by_length.items())


def free_nodes(
    nodes: Sequence[schema.BlockNode], entries: Sequence[schema.BlockStats]
) -> tuple[tuple[Node, ...], Sequence[schema.BlockNode]]:
    """Return the nodes of `query-nodes: true` that no device of `entries` uses, and their counters.

    Raises:
        ProtocolError: two nodes have the same name.
    """
    used: set[str] = set()
    waiting: list[schema.BlockNode] = list(entries)
    while waiting:
        entry = waiting.pop()
        if entry.node_name in used:
            continue
        used.add(entry.node_name)
        waiting += [child for child in (entry.parent, entry.backing) if child is not None]
    free = [node for node in nodes if node.node_name not in used]
    if len({node.node_name for node in free}) != len(free):
        raise ProtocolError("query-blockstats has two nodes of the same name")
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
    block_jobs: Sequence[schema.BlockJob],
    other_jobs: Sequence[schema.JobInfo],
    places: Mapping[tuple[str, str], Place],
) -> tuple[Job, ...]:
    """Return every job; `places` is keyed by id and type.

    Raises:
        ProtocolError: two jobs have the same id.
    """
    found = {}
    for job in block_jobs:
        place = places.get((job.device, job.type), Place())
        if job.device in found:
            raise ProtocolError(f"query-block-jobs has two jobs with id {job.device!r}")
        found[job.device] = Job(
            place.device, job.device, job.type, job, place.top, place.base, redact_text(job.error)
        )
    for other in other_jobs:
        total = other.total_progress
        if other.id not in found:
            plain = schema.BlockJob(device=other.id, type=other.type)
            plain.status = other.status  # type: ignore[attr-defined]  # a leaf of the table
            found[other.id] = Job(
                "",
                other.id,
                other.type,
                plain,
                error=redact_text(other.error),
                progress_ratio=other.current_progress / total if total > 0 else None,
            )
    return tuple(found.values())


def other_jobs(jobs: Sequence[schema.JobInfo], ids: AbstractSet[str]) -> list[schema.JobInfo]:
    """Return the jobs of query-jobs that are not block jobs; `ids` are those of block jobs."""
    return [job for job in jobs if job.id not in ids and job.type not in BLOCK_JOB_TYPES]


def throttle_groups(blocks: Mapping[str, schema.BlockInfo]) -> frozenset[str]:
    """Return the groups of throttle filters, whose limits query-block does not report."""
    return frozenset(
        group
        for info in blocks.values()
        for image in chains.images(info)
        if image.format == "throttle" and (group := throttle_group(image.filename))
    )


def manager(package: str, entries: Sequence[schema.BlockStats]) -> str:
    """Return what manages this VM, judging by names: libvirt, proxmox, incus or "" if unknown."""
    if "pve" in package:
        return "proxmox"
    nodes = [node.node_name for entry in entries for node in chains.of_nodes(entry).layers]
    if any(name.startswith("libvirt-") for name in nodes):
        return "libvirt"
    return "incus" if any(_INCUS_NODE.match(name) for name in nodes) else ""


def _counted(bitmap: schema.Bitmap) -> schema.Bitmap:
    # QEMU reports 0 for a bitmap that was not saved, whose content it does not know.
    return _replace(bitmap, count=None) if getattr(bitmap, "inconsistent", None) else bitmap


def _device(device: Device, info: schema.BlockInfo, chain: Chain, topology: Topology) -> Device:
    """Return `device` with what query-block reports about it."""
    inserted = info.inserted
    known = _replace(
        device,
        block=info,
        inserted=inserted is not None,
        removable=word(info.removable),
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
        file=redact_filename(active.filename),
        read_only=word(inserted.ro),
        cache_writeback=word(cache.writeback if cache else None),
        cache_direct=word(cache.direct if cache else None),
        cache_no_flush=word(cache.no_flush if cache else None),
        detect_zeroes=inserted.detect_zeroes,
        throttle=throttle,
        throttle_group=throttle.throttle_group if throttle else "",
        bitmaps=tuple(
            # query-block lists those of the root node, which may be a filter.
            Bitmap(bitmap.name, inserted.node_name or node_name, _counted(bitmap))
            for bitmap in inserted.dirty_bitmaps or info.dirty_bitmaps
            if bitmap.name
        ),
    )


def _throttle(
    inserted: schema.Inserted, info: schema.BlockInfo, topology: Topology
) -> Throttle | None:
    """Return the limits of the device itself, else those of a throttle filter above its chain."""
    if inserted.group or any(getattr(inserted, name) for name in _LIMIT_NAMES):
        return Throttle(inserted.group, inserted)
    for image in chains.images(info):
        if image.format == "throttle" and (group := throttle_group(image.filename)):
            limits = topology.limits.get(group)
            return None if limits is None else Throttle(group, limits)
    return None
