"""Which device a block event is about.

QEMU before 10.0 names the device only for a drive (`device`). For a disk of -blockdev the event
names the root node, which may be a job's filter or a layer, and changes with every snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from exporter.model.device_names import device_names
from exporter.qmp import schema

_NAME_LIMIT = 255


class Subject(NamedTuple):
    """The names by which a block event refers to its device; each may be empty.

    They are remembered, so names that are longer than any of QEMU's are left out. QEMU's node names
    have at most 31 characters.
    """

    #: The name of a drive (`device`), empty for -blockdev.
    device: str = ""
    #: The path of the device model (`qom-path`, since QEMU 10.0).
    qdev: str = ""
    node_name: str = ""

    @classmethod
    def of(cls, device: str, qdev: str, node_name: str) -> Subject:
        """Return a subject without the names that are too long to be QEMU's."""
        names = (name if len(name) <= _NAME_LIMIT else "" for name in (device, qdev, node_name))
        return cls(*names)


@dataclass(frozen=True, slots=True)
class Owners:
    """The devices by the names that events use for them, from the last query-blockstats."""

    #: Every device that may be counted; with "" for events of an unknown device, unless QEMU names
    #: every device in its events.
    devices: tuple[str, ...] = ()
    by_qdev: Mapping[str, str] = field(default_factory=dict)
    #: By the name of every node: layers, filters of jobs, protocol nodes.
    by_node: Mapping[str, str] = field(default_factory=dict)

    def device(self, subject: Subject) -> str | None:
        """Return the `device` label for the subject of an event, None if it is not known."""
        if subject.device:
            return subject.device
        if subject.qdev in self.by_qdev:
            return self.by_qdev[subject.qdev]
        return self.by_node.get(subject.node_name)


def owners(entries: Sequence[schema.BlockStats]) -> Owners:
    """Return the devices of query-blockstats by their paths and nodes.

    A node that is the root of one device and below another belongs to the former; a layer that two
    devices share belongs to the first.

    Raises:
        ProtocolError: two devices have the same name.
    """
    names = device_names(entries)
    by_node = {
        entry.node_name: name
        for entry, name in zip(reversed(entries), reversed(names), strict=True)
        if entry.node_name
    }
    for entry, name in zip(entries, names, strict=True):
        # Below a filter query-blockstats has each node twice, as `parent` and as `backing`.
        waiting: list[schema.BlockNode] = [entry]
        seen: set[str] = set()
        while waiting:
            node = waiting.pop()
            if node.node_name:
                if node.node_name in seen:
                    continue
                seen.add(node.node_name)
                by_node.setdefault(node.node_name, name)
            waiting += [child for child in (node.parent, node.backing) if child is not None]
    unnamed = any(not entry.device for entry in entries)
    return Owners(
        (*names, "") if unnamed else tuple(names),
        {entry.qdev: name for entry, name in zip(entries, names, strict=True) if entry.qdev},
        by_node,
    )


def of_graph(graph: schema.Graph, entries: Sequence[schema.BlockStats]) -> Owners:
    """Return the devices by those of their nodes that only the graph has: children of a quorum."""
    nodes = {node.id: node for node in graph.nodes}
    below: dict[int, list[int]] = {}
    for edge in graph.edges:
        below.setdefault(edge.parent, []).append(edge.child)
    backends = {node.name: node.id for node in graph.nodes if node.type == "block-backend"}
    by_node: dict[str, str] = {}
    for entry, name in zip(entries, device_names(entries), strict=True):
        waiting = [backends[each] for each in (entry.device, entry.qdev) if each in backends]
        seen = set(waiting)
        while waiting:
            for child in below.get(waiting.pop(), ()):
                node = nodes.get(child)
                if node is None or child in seen or node.type != "block-driver":
                    continue
                seen.add(child)
                waiting.append(child)
                by_node.setdefault(node.name, name)
    return Owners(by_node=by_node)
