"""Nodes whose driver QEMU closed because their image was found corrupt.

query-block crashes QEMU with SIGSEGV if such a node is below one that derives its file name from
it: a filter, a raw node, a quorum. Below an overlay it fails for all disks of the VM. At the root
of a device it is harmless. query-blockstats and the graph are always harmless.
[bdrv_refresh_filename, bdrv_query_image_info; seen in 7.2 and 10.0]
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from exporter.qmp import schema

#: Most nodes that are remembered: more than any VM has disks.
_LIMIT = 4096


class _ImageCorrupted(msgspec.Struct, rename="kebab"):
    """BLOCK_IMAGE_CORRUPTED; QEMU closes the driver only if it is fatal."""

    fatal: bool = False
    node_name: str = ""


_DECODER = msgspec.json.Decoder(_ImageCorrupted)


class Corruption:
    """The nodes of one QEMU that no longer have a driver."""

    def __init__(self) -> None:
        self._nodes: set[str] = set()

    def note(self, event: str, data: bytes) -> None:
        """Process an event.

        Raises:
            msgspec.DecodeError: it does not match QAPI.
        """
        if event == "BLOCK_IMAGE_CORRUPTED" and len(self._nodes) < _LIMIT:
            corrupted = _DECODER.decode(data)
            if corrupted.fatal:
                self._nodes.add(corrupted.node_name)

    def forget(self) -> None:
        """Forget all nodes: there may be another QEMU now."""
        self._nodes.clear()

    def below_root(self, entries: Sequence[schema.BlockStats]) -> frozenset[str]:
        """Return the nodes that are not at the root of a device, and may be below another node.

        query-blockstats does not list the children of a quorum: only the graph does.
        """
        return frozenset(self._nodes - {entry.node_name for entry in entries})

    def hidden(self, nodes: frozenset[str], graph: schema.Graph | None) -> str:
        """Return the first of `nodes` that is below another node, "" if none is.

        Without a graph, any of them may be. A node that is not in the graph is forgotten.
        """
        if graph is None:
            return min(nodes, default="")
        drivers = {node.id: node.name for node in graph.nodes if node.type == "block-driver"}
        self._nodes -= nodes - set(drivers.values())
        below = {
            drivers[edge.child]
            for edge in graph.edges
            if edge.parent in drivers and edge.child in drivers
        }
        return min(nodes & below, default="")
