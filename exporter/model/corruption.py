"""Nodes whose driver QEMU closed because their image was found corrupt.

query-block ends QEMU with SIGSEGV where such a node is below another one that would have its file
name from it: a filter, a raw node, a quorum. Below an overlay it fails for all disks of the VM. At
the root of a device it is harmless. query-blockstats and the graph are so everywhere.
[bdrv_refresh_filename, bdrv_query_image_info; seen in 7.2 and 10.0]
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from exporter.qmp import schema

#: More than any VM has disks.
_LIMIT = 4096


class _ImageCorrupted(msgspec.Struct, rename="kebab"):
    """BLOCK_IMAGE_CORRUPTED; only where it is fatal is the driver closed."""

    fatal: bool = False
    node_name: str = ""


_DECODER = msgspec.json.Decoder(_ImageCorrupted)


class Corruption:
    """The nodes of one QEMU that have no driver any more."""

    def __init__(self) -> None:
        self._nodes: set[str] = set()

    def note(self, event: str, data: bytes) -> None:
        """Take an event into account.

        Raises:
            msgspec.DecodeError: it is not what QAPI says.
        """
        if event == "BLOCK_IMAGE_CORRUPTED" and len(self._nodes) < _LIMIT:
            told = _DECODER.decode(data)
            if told.fatal:
                self._nodes.add(told.node_name)

    def forget(self) -> None:
        """Another QEMU has nodes of its own."""
        self._nodes.clear()

    def below_root(self, entries: Sequence[schema.BlockStats]) -> frozenset[str]:
        """Return the nodes that are not at the root of a device, and may be below another node.

        query-blockstats does not list the children of a quorum: only the graph tells.
        """
        return frozenset(self._nodes - {entry.node_name for entry in entries})

    def hidden(self, nodes: frozenset[str], graph: schema.Graph | None) -> str:
        """Return the first of `nodes` that is below another node, empty where none is.

        Without a graph each may be. One that the graph does not have is forgotten.
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
