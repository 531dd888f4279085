"""Which device and layers a block job works on, from QEMU's own graph of the block layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from exporter import chain as chains
from exporter import qapi
from exporter.identity import device_names


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job works: the device, and its layers from top down to base."""

    device: str = ""
    top: str = ""
    base: str = ""


def place_job(
    job_id: str, graph: qapi.Graph | None, entries: Sequence[qapi.BlockStats]
) -> Place | None:
    """Find the device that a block job works on, by the graph or else by the job's id.

    Return None for a job that the graph does not have: it has ended since it was told of.

    The job's edges (`main node`, `source`, `target`, `intermediate node`, `base`) end at nodes;
    the device is the one whose root is nearest above one of them.
    """
    if graph is None:
        return Place(job_id) if any(entry.device == job_id for entry in entries) else Place()
    if not any(node.type == "block-job" and node.name == job_id for node in graph.nodes):
        return None
    kinds = {node.id: node for node in graph.nodes}
    below: dict[int, list[int]] = {}
    roots: dict[str, int] = {}
    #: node id -> the name of the job's edge to it
    touched: dict[int, str] = {}
    for edge in graph.edges:
        parent = kinds.get(edge.parent)
        if parent is None:
            continue
        if parent.type == "block-driver":
            below.setdefault(edge.parent, []).append(edge.child)
        elif parent.type == "block-backend":
            roots[parent.name] = edge.child
        elif parent.name == job_id:
            touched[edge.child] = edge.name
    # The target of a mirror or backup may be a disk of this VM as well.
    ends = {child for child, name in touched.items() if name != "target"}
    distances = [
        (distance, index)
        for index, entry in enumerate(entries)
        for backend in (entry.device, entry.qdev)
        if backend
        and backend in roots
        and (distance := _nearest(roots[backend], ends, below)[0]) >= 0
    ]
    if not distances:
        return Place()
    nearest = min(distances)[1]
    ids = {node.name: node.id for node in graph.nodes if node.type == "block-driver"}
    chain = chains.of_nodes(entries[nearest])
    layers = [ids.get(node.node_name, -1) for node in chain.layers]
    # What works on a filter works on the layer that it filters.
    filtered = {
        ids[f.node.node_name]: layers[f.depth]
        for f in chain.filters
        if f.depth < len(layers) and f.node.node_name in ids
    }
    worked = {filtered.get(node, node) for node in _worked(touched, layers, below)}
    numbers = [str(index) for index, layer in enumerate(layers) if layer in worked]
    return Place(
        device_names(entries)[nearest],
        numbers[0] if numbers else "",
        numbers[-1] if len(numbers) > 1 else "",
    )


def _worked(
    touched: Mapping[int, str], layers: Sequence[int], below: Mapping[int, Sequence[int]]
) -> AbstractSet[int]:
    """Return the nodes that a job reads, writes or removes, of those that it has edges to.

    Its main node is a filter right above the layer that is read; but that of an intermediate
    commit, the only job with a `base`, is the active layer, which it leaves alone.
    """
    worked = {child for child, name in touched.items() if name != "main node"}
    if "base" not in touched.values():
        for main in touched.keys() - worked:
            worked |= _nearest(main, set(layers), below)[1]
    return worked


def _nearest(
    start: int, wanted: AbstractSet[int], below: Mapping[int, Sequence[int]]
) -> tuple[int, AbstractSet[int]]:
    """Return the nearest of `wanted` under a node, and how many edges away: -1 where none is."""
    level, seen, distance = {start}, {start}, 0
    while level:
        if found := level & wanted:
            return distance, found
        level = {child for node in level for child in below.get(node, ())} - seen
        seen |= level
        distance += 1
    return -1, frozenset()
