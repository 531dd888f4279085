"""Which device and layers a block job works on, from QEMU's own graph of the block layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def place_job(job_id: str, graph: qapi.Graph | None, entries: Sequence[qapi.BlockStats]) -> Place:
    """Find the device that a block job works on, by the graph or else by the job's id.

    The job's edges (`main node`, `source`, `target`, `intermediate node`, `base`) end at nodes;
    the device is the one whose root is nearest above one of them.
    """
    if graph is None:
        return Place(job_id) if any(entry.device == job_id for entry in entries) else Place()
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
        and (distance := _distance(roots[backend], ends, below)) is not None
    ]
    if not distances:
        return Place()
    nearest = min(distances)[1]
    names = {kinds[child].name for child in touched if child in kinds}
    layers = [
        str(index)
        for index, node in enumerate(chains.of_nodes(entries[nearest]).layers)
        if node.node_name in names
    ]
    return Place(
        device_names(entries)[nearest],
        layers[0] if layers else "",
        layers[-1] if len(layers) > 1 else "",
    )


def _distance(root: int, ends: set[int], below: Mapping[int, Sequence[int]]) -> int | None:
    """Return how many edges lie between a root and the nearest of `ends`, None if none do."""
    level, seen, distance = {root}, {root}, 0
    while level:
        if level & ends:
            return distance
        level = {child for node in level for child in below.get(node, ())} - seen
        seen |= level
        distance += 1
    return None
