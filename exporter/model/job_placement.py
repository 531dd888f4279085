"""Finds the device and layers that a block job works on, in QEMU's graph of the block layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from exporter.model import chain as chains
from exporter.model.device_names import device_names
from exporter.qmp import schema


@dataclass(frozen=True, slots=True)
class Merge:
    """The nodes that a commit of an active layer works on, in the graph of one instant."""

    #: The nodes' names, from the topmost layer that is merged down to the one that remains.
    nodes: Sequence[str]
    #: Whether anything uses them: only then can a pivot be observed.
    used: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job works: the device, and its layers from top down to base."""

    device: str = ""
    top: str = ""
    base: str = ""
    #: Only for a commit of an active layer, whether of a device or of nodes under none.
    merge: Merge | None = None


def place_job(
    job_id: str, graph: schema.Graph | None, entries: Sequence[schema.BlockStats]
) -> Place | None:
    """Find where a block job works, by the graph or, without one, by the job's id.

    Return None for a job that the graph does not have: it has ended since it was reported.

    The job's edges (`main node`, `source`, `target`, `intermediate node`, `base`) lead to nodes;
    the device is the one whose root is nearest above one of them.
    """
    if graph is None:
        return Place(job_id) if any(entry.device == job_id for entry in entries) else Place()
    if not any(node.type == "block-job" and node.name == job_id for node in graph.nodes):
        return None
    kinds = {node.id: node for node in graph.nodes}
    below: dict[int, list[int]] = {}
    roots: dict[str, int] = {}
    #: Node id -> the name of the job's edge to it.
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
    # The target of a mirror or backup may also be a disk of this VM.
    ends = {child for child, name in touched.items() if name != "target"}
    distances = [
        (distance, index)
        for index, entry in enumerate(entries)
        for backend in (entry.device, entry.qdev)
        if backend
        and backend in roots
        and (distance := _nearest(roots[backend], ends, below)[0]) >= 0
    ]
    merge = _merge(touched, kinds, below, graph.edges)
    if not distances:
        return Place(merge=merge)
    nearest = min(distances)[1]
    ids = {node.name: node.id for node in graph.nodes if node.type == "block-driver"}
    chain = chains.of_nodes(entries[nearest])
    layers = [ids.get(node.node_name, -1) for node in chain.layers]
    # A job that works on a filter works on the layer below it.
    filtered = {
        ids[f.node.node_name]: layers[f.depth]
        for f in chain.filters
        if f.depth < len(layers) and f.node.node_name in ids
    }
    worked = {filtered.get(node, node) for node in _worked(touched, layers, below)}
    numbers = [str(index) for index, layer in enumerate(layers) if layer in worked]
    if "base" in touched.values() and len(numbers) < 2:
        numbers = []  # the job is ending: its other edges are already gone
    return Place(
        device_names(entries)[nearest],
        numbers[0] if numbers else "",
        numbers[-1] if len(numbers) > 1 else "",
        merge and _without_filters(merge, ids, filtered),
    )


def users(graph: schema.Graph, merge: Merge) -> tuple[bool, bool]:
    """Return whether anything but a job uses the top of a commit, and its base.

    The layers of the commit itself do not count as users of its base.
    """
    kinds = {node.id: node for node in graph.nodes}
    ids = {node.name: node.id for node in graph.nodes if node.type == "block-driver"}
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for edge in graph.edges:
        if edge.parent in kinds and kinds[edge.parent].type != "block-job":
            above.setdefault(edge.child, []).append(edge.parent)
            below.setdefault(edge.parent, []).append(edge.child)
    top, base = (ids.get(merge.nodes[index], -1) for index in (0, -1))
    own, level = {top}, [top]
    while level:
        level = [child for node in level for child in below.get(node, ()) if child not in own]
        own.update(level)
    return bool(above.get(top)), any(parent not in own for parent in above.get(base, ()))


def _merge(
    touched: Mapping[int, str],
    kinds: Mapping[int, schema.GraphNode],
    below: Mapping[int, Sequence[int]],
    edges: Sequence[schema.GraphEdge],
) -> Merge | None:
    """Return what a job merges, None unless its `source` is above its `target`: it is not a mirror's.

    Its main node is a filter, used by everything that used the source before.
    """
    nodes = {name: child for child, name in touched.items()}
    if not {"main node", "source", "target"} <= nodes.keys():
        return None
    source, target = nodes["source"], nodes["target"]
    came_from: dict[int, int] = {}
    level = [source]
    while level and target not in came_from:
        found = {child: node for node in level for child in below.get(node, ())}
        level = [child for child in found if child not in came_from]
        came_from |= {child: found[child] for child in level}
    if target not in came_from:
        return None
    path = [target]
    while path[-1] != source:
        path.append(came_from[path[-1]])
    used = any(
        edge.child == nodes["main node"] and kinds[edge.parent].type != "block-job"
        for edge in edges
        if edge.parent in kinds
    )
    return Merge([kinds[node].name for node in reversed(path)], used)


def _without_filters(merge: Merge, ids: Mapping[str, int], filtered: Mapping[int, int]) -> Merge:
    """Return a commit with layers only: a filter stands for the layer below it."""
    names = {number: name for name, number in ids.items()}
    layers = (names[filtered.get(ids[name], ids[name])] for name in merge.nodes)
    return Merge(list(dict.fromkeys(layers)), merge.used)


def _worked(
    touched: Mapping[int, str], layers: Sequence[int], below: Mapping[int, Sequence[int]]
) -> AbstractSet[int]:
    """Return those nodes with an edge from the job that it reads, writes or removes.

    Its main node is a filter right above the layer that is read; except for an intermediate commit,
    the only job with a `base`: there it is the active layer, which the job does not change.
    """
    worked = {child for child, name in touched.items() if name != "main node"}
    if "base" not in touched.values():
        for main in touched.keys() - worked:
            worked |= _nearest(main, set(layers), below)[1]
    return worked


def _nearest(
    start: int, wanted: AbstractSet[int], below: Mapping[int, Sequence[int]]
) -> tuple[int, AbstractSet[int]]:
    """Return how many edges below a node the nearest of `wanted` are, and these: -1 if there are none."""
    level, seen, distance = {start}, {start}, 0
    while level:
        if found := level & wanted:
            return distance, found
        level = {child for node in level for child in below.get(node, ())} - seen
        seen |= level
        distance += 1
    return -1, frozenset()
