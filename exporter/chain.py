"""The backing chain of a device as two queries tell it, and whether they agree.

query-blockstats has the nodes with their names, query-block the images with their files; only
their order joins them. Filters are no layers: they are taken out of both before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from exporter.qapi import BlockInfo, BlockNode, BlockStats, Image, NodeStats, Stats

#: Filters that somebody put there to stay.
LASTING_FILTERS = frozenset({"throttle", "copy-on-read", "preallocate", "compress"})
#: Filters that a job or a debugger puts there.
FILTERS = LASTING_FILTERS | {
    "mirror_top",
    "commit_top",
    "copy-before-write",
    "backup-top",
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "snapshot-access",
}


@dataclass(frozen=True, slots=True)
class Chain:
    """The nodes from the device down: filters on the way, then layers, `0` the active one."""

    filters: tuple[BlockNode, ...]
    layers: tuple[BlockNode, ...]

    @property
    def root_name(self) -> str:
        """The name of the node that the device stands on."""
        return next((node.node_name for node in (*self.filters, *self.layers)), "")


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
    """Walk an entry of query-blockstats down its `backing`.

    A filter lists the same subtree as `parent` and as `backing`; it has no driver there to be
    known by.
    """
    filters: list[BlockNode] = []
    layers: list[BlockNode] = []
    seen: set[str] = set()
    node: BlockNode | None = entry if _has_node(entry) else None
    while node is not None and (not node.node_name or node.node_name not in seen):
        seen.add(node.node_name)
        (filters if _is_filter(node) else layers).append(node)
        node = node.backing
    return Chain(tuple(filters), tuple(layers))


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


def layer_images(info: BlockInfo) -> tuple[Image, ...]:
    """Return the images of an entry of query-block, one for each layer."""
    return tuple(image for image in images(info) if image.format not in FILTERS)


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
    for _ in layer_images(info)[1:]:
        node.backing = BlockNode(stats=NodeStats())
        node = node.backing
    return entry


def agree(chain: Chain, info: BlockInfo) -> bool:
    """Whether both queries saw the same chain.

    Two commands of one batch are not atomic: around a pivot one may tell the old chain and the
    other the new one.
    """
    if info.inserted is None:
        return not chain.layers
    told, root = info.inserted.node_name, chain.root_name
    return len(layer_images(info)) == len(chain.layers) and (not told or not root or told == root)


def _has_node(entry: BlockStats) -> bool:
    return bool(entry.node_name or entry.parent or entry.backing or entry.inserted)


def _is_filter(node: BlockNode) -> bool:
    return (
        node.parent is not None
        and node.backing is not None
        and bool(node.parent.node_name)
        and node.parent.node_name == node.backing.node_name
    )
