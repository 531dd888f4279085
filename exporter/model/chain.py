"""The backing chain of a device, joined from two queries, if they agree.

query-blockstats has the nodes with their names, query-block the images with their files; only
their order joins them. Filters are not layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from exporter.qmp import BlockInfo, BlockNode, BlockStats, Image, NodeStats, Stats

#: Drivers of filters that are part of a VM's configuration, rather than of a job.
LASTING_FILTERS = frozenset({"throttle", "copy-on-read", "preallocate", "compress", "replication"})
#: Drivers of filters, for replies whose structure does not show which node is a filter.
_FILTERS = LASTING_FILTERS | {
    "mirror_top",
    "commit_top",
    "copy-before-write",
    "backup-top",
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter above or within a chain."""

    node: BlockNode
    #: The number of layers above it.
    depth: int
    image: Image | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """The nodes from the device down: layers, `0` the active one, and the filters on the way."""

    #: The name of the device's root node: a filter, or the active layer.
    root_name: str
    layers: tuple[BlockNode, ...]
    filters: tuple[Filter, ...]
    #: The image of each layer by query-block; empty if it reported no images.
    images: tuple[Image, ...] = ()
    #: The nodes right below the root other than its backing file, if QEMU names them.
    children: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Walk:
    """All names and nodes of query-blockstats, in its order."""

    #: Changes whenever anything in a chain is replaced, or a device is added or removed.
    names: tuple[str, ...]
    nodes: Sequence[BlockNode]


def walk(entries: Sequence[BlockStats]) -> Walk:
    """Walk all devices with their nodes. Runs in each scrape: kept in one plain loop for speed."""
    names: list[str] = []
    nodes: list[BlockNode] = []
    for entry in entries:
        names += (entry.device, entry.qdev)
        layer: BlockNode | None = entry
        while layer is not None:
            node: BlockNode | None = layer
            while node is not None:
                names.append(node.node_name)
                nodes.append(node)
                node = node.parent
            layer = layer.backing
    return Walk(tuple(names), nodes)


def of_nodes(entry: BlockStats) -> Chain:
    """Return the chain of an entry of query-blockstats, along its `backing`."""
    return _chain(entry, _nodes(entry), ())


def joined(entry: BlockStats, info: BlockInfo) -> Chain | None:
    """Return the chain of a device with its images; None if the two replies disagree.

    Both queries list the same nodes in the same order, including filters, which QEMU's own
    structure identifies. Two commands of one batch are not atomic, though: around a pivot one
    may report the old chain and the other the new one.
    [bdrv_query_bds_stats, bdrv_block_device_info]
    """
    nodes, listed = _nodes(entry), tuple(images(info))
    if info.inserted is None:
        return None if nodes else _chain(entry, nodes, ())
    root = info.inserted.node_name
    if root and entry.node_name and root != entry.node_name:
        return None
    if len(nodes) == len(listed):
        found = _chain(entry, nodes, listed)
        below = zip(found.layers[:-1], found.images, strict=False)
        # The driver is not the node's: the replies are from different moments.
        if any(image.format in _FILTERS for _, image in below):
            return None
        children = (c.node_name for c in info.inserted.children if c.child != "backing")
        return replace(found, children=tuple(children))
    # A filter that came or went between the two commands does no harm if its driver is known.
    plain, layers = of_nodes(entry), tuple(i for i in listed if i.format not in _FILTERS)
    if len(plain.layers) != len(layers):
        return None
    return Chain(plain.root_name, plain.layers, plain.filters, layers)


def is_closed(entry: BlockStats, info: BlockInfo) -> bool:
    """Whether a device's node has no driver: QEMU closes the driver of an image found corrupt.

    query-block then has no `inserted`, as for a drive without a medium. [qcow2_signal_corruption]
    """
    return info.inserted is None and _has_node(entry)


def protocol_of(layer: BlockNode) -> BlockNode | None:
    """Return the node that holds the data of a layer: the last `parent` below it."""
    node = layer.parent
    while node is not None and node.parent is not None:
        node = node.parent
    return node


def images(info: BlockInfo) -> Iterator[Image]:
    """Yield the images of an entry of query-block, filters included."""
    image = info.inserted.image if info.inserted else None
    while image is not None:
        yield image
        image = image.backing_image


def without_counters(info: BlockInfo) -> BlockStats:
    """Return an entry of query-block as one of query-blockstats, for a VM that lacks the latter."""
    inserted = info.inserted
    entry = BlockStats(
        stats=Stats(),
        device=info.device,
        qdev=info.qdev,
        node_name=inserted.node_name if inserted else "",
        inserted=inserted is not None,
    )
    node: BlockNode = entry
    # A QEMU that old has no filters above chains.
    for _ in list(images(info))[1:]:
        node.backing = BlockNode(stats=NodeStats())
        node = node.backing
    return entry


def _has_node(entry: BlockStats) -> bool:
    return bool(entry.node_name or entry.parent or entry.backing or entry.inserted)


def _nodes(entry: BlockStats) -> tuple[BlockNode, ...]:
    nodes: list[BlockNode] = []
    seen: set[str] = set()
    node: BlockNode | None = entry if _has_node(entry) else None
    while node is not None and (not node.node_name or node.node_name not in seen):
        seen.add(node.node_name)
        nodes.append(node)
        node = node.backing
    return tuple(nodes)


def _chain(entry: BlockStats, nodes: Sequence[BlockNode], listed: Sequence[Image]) -> Chain:
    layers: list[BlockNode] = []
    filters: list[Filter] = []
    of_layers: list[Image] = []
    for node, image in zip_longest(nodes, listed):
        if _is_filter(node, image):
            filters.append(Filter(node, len(layers), image))
        else:
            layers.append(node)
            if image is not None:
                of_layers.append(image)
    return Chain(entry.node_name, tuple(layers), tuple(filters), tuple(of_layers))


def _is_filter(node: BlockNode, image: Image | None) -> bool:
    """Whether a node is a filter: it lists the same subtree as `parent` and as `backing`.

    Before QEMU 2.9 nodes may have no names to compare, and before 5.2 a filter may have no `parent`:
    then the driver decides.
    """
    if node.backing is None:
        return False
    if node.parent is not None and node.parent.node_name:
        return node.parent.node_name == node.backing.node_name
    return image is not None and image.format in _FILTERS
