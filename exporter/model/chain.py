"""The backing chain of a device as two queries tell it, and whether they agree.

query-blockstats has the nodes with their names, query-block the images with their files; only
their order joins them. Filters are not layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from exporter.qmp import BlockInfo, BlockNode, BlockStats, Image, NodeStats, Stats

#: Drivers of filters that somebody put there to stay.
LASTING_FILTERS = frozenset({"throttle", "copy-on-read", "preallocate", "compress", "replication"})
#: Drivers of filters, for answers whose structure does not show which node is one.
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
    #: How many layers are above it.
    depth: int
    image: Image | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """The nodes from the device down: layers, `0` the active one, and the filters on the way."""

    #: The name of the node that the device stands on, a filter or the active layer.
    root_name: str
    layers: tuple[BlockNode, ...]
    filters: tuple[Filter, ...]
    #: The image of each layer by query-block; none where it told of no images.
    images: tuple[Image, ...] = ()
    #: The nodes right below the root that are not its backing file, where QEMU names them.
    children: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Walk:
    """All that query-blockstats told of, in the order in which it was told."""

    #: What changes when anything in a chain is replaced, or a device comes or goes.
    names: tuple[str, ...]
    nodes: Sequence[BlockNode]


def walk(entries: Sequence[BlockStats]) -> Walk:
    """Walk all devices with their nodes; done in each scrape, and so without a detour."""
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
    """Walk an entry of query-blockstats down its `backing`."""
    return _chain(entry, _nodes(entry), ())


def joined(entry: BlockStats, info: BlockInfo) -> Chain | None:
    """Return the chain of a device with its images; None where the two answers tell of others.

    Both queries list the same nodes in the same order, filters included, of which QEMU's own
    structure says which they are. Two commands of one batch are not atomic, though: around a pivot
    one may tell the old chain and the other the new one.
    [bdrv_query_bds_stats, bdrv_block_device_info]
    """
    nodes, told = _nodes(entry), tuple(images(info))
    if info.inserted is None:
        return None if nodes else _chain(entry, nodes, ())
    root = info.inserted.node_name
    if root and entry.node_name and root != entry.node_name:
        return None
    if len(nodes) == len(told):
        found = _chain(entry, nodes, told)
        below = zip(found.layers[:-1], found.images, strict=False)
        # Another driver than the node has: the answers are of different moments.
        if any(image.format in _FILTERS for _, image in below):
            return None
        children = (c.node_name for c in info.inserted.children if c.child != "backing")
        return replace(found, children=tuple(children))
    # A filter that came or went between the two commands costs nothing where its driver is known.
    plain, layers = of_nodes(entry), tuple(i for i in told if i.format not in _FILTERS)
    if len(plain.layers) != len(layers):
        return None
    return Chain(plain.root_name, plain.layers, plain.filters, layers)


def is_closed(entry: BlockStats, info: BlockInfo) -> bool:
    """Whether a device has a node without a driver: QEMU closes that of an image found corrupt.

    query-block then has no `inserted`, as of a drive without a medium. [qcow2_signal_corruption]
    """
    return info.inserted is None and _has_node(entry)


def protocol_of(layer: BlockNode) -> BlockNode | None:
    """Return the node that holds the bytes of a layer: the last `parent` below it."""
    node = layer.parent
    while node is not None and node.parent is not None:
        node = node.parent
    return node


def images(info: BlockInfo) -> Iterator[Image]:
    """Walk the images of an entry of query-block, filters among them."""
    image = info.inserted.image if info.inserted else None
    while image is not None:
        yield image
        image = image.backing_image


def without_counters(info: BlockInfo) -> BlockStats:
    """Return an entry of query-block as one of query-blockstats, where that is not to be had."""
    inserted = info.inserted
    entry = BlockStats(
        stats=Stats(),
        device=info.device,
        qdev=info.qdev,
        node_name=inserted.node_name if inserted else "",
        inserted=inserted is not None,
    )
    node: BlockNode = entry
    # Of a QEMU as old as that, no filter stands above a chain.
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


def _chain(entry: BlockStats, nodes: Sequence[BlockNode], told: Sequence[Image]) -> Chain:
    layers: list[BlockNode] = []
    filters: list[Filter] = []
    of_layers: list[Image] = []
    for node, image in zip_longest(nodes, told):
        if _is_filter(node, image):
            filters.append(Filter(node, len(layers), image))
        else:
            layers.append(node)
            if image is not None:
                of_layers.append(image)
    return Chain(entry.node_name, tuple(layers), tuple(filters), tuple(of_layers))


def _is_filter(node: BlockNode, image: Image | None) -> bool:
    """Whether a node filters another: it lists the same subtree as `parent` and as `backing`.

    Before QEMU 2.9 nodes may have no name to tell, and before 5.2 a filter may have no `parent`.
    """
    if node.backing is None:
        return False
    if node.parent is not None and node.parent.node_name:
        return node.parent.node_name == node.backing.node_name
    return image is not None and image.format in _FILTERS
