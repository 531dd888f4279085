"""Disks on which something goes wrong, as blkdebug makes it go wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.lab import drive, plug

#: The first write fails, and all others do not.
ONCE = {"event": "none", "iotype": "write", "errno": 5, "once": True}


def by_drive(device: str, overlay: Path, base: dict[str, Any]) -> list[str]:
    """Return the arguments for a disk by -drive: an overlay on a base that is given as a node."""
    below = dotted({"backing": {"driver": "qcow2", "file": base}})
    return [*drive(device, overlay, *below), *plug(f"front-{device}", device)]


def by_blockdev(device: str, overlay: Path, base: dict[str, Any]) -> list[str]:
    """Return the arguments for the same by -blockdev; the nodes are DEVICE-1 and DEVICE-0."""
    below = {"driver": "qcow2", "node-name": f"{device}-1", "file": base}
    above = {"driver": "qcow2", "node-name": f"{device}-0", "file": file_node(overlay, {})}
    nodes = [below, {**above, "backing": f"{device}-1"}]
    given = [part for node in nodes for part in ("-blockdev", json.dumps(node))]
    return [*given, *plug(device, f"{device}-0")]


def file_node(image: Path, fault: dict[str, Any]) -> dict[str, Any]:
    """Return a node for a file, with blkdebug before it if something is wrong with it."""
    node = {"driver": "file", "filename": str(image)}
    return {"driver": "blkdebug", "image": node, "inject-error": [fault]} if fault else node


def dotted(tree: Any, prefix: str = "") -> Iterator[str]:
    """Write a tree as -drive takes it: an option for each leaf."""
    if isinstance(tree, dict | list):
        for name, inner in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from dotted(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        text = {"True": "on", "False": "off"}.get(str(tree), tree)
        yield f"{prefix}={text}"
