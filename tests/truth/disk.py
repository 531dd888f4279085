"""A disk of a VM and its layers, as QEMU's graph has them.

Every layer is a node that was named here, so that filters and protocols are told from it by name.
"""

from __future__ import annotations

import json
import os
import random
from contextlib import suppress
from typing import Any

from tests.e2e.lab import QmpError
from tests.truth.machine import Machine, node


class Disk:
    """A disk behind a device, or a chain of nodes under none."""

    def __init__(
        self, machine: Machine, label: str, kind: str, top: str, made: list[tuple[str, str]]
    ) -> None:
        self.machine = machine
        #: What the label `device` must be, empty under no device.
        self.label = label
        #: `drive`, `blockdev`, `export` or `loose`.
        self.kind = kind
        #: The top of a chain that nothing is attached to.
        self.top = top
        #: Nodes that may be taken away when nobody uses them.
        self._spare = list(made)
        #: Unplugged: the label is no more.
        self.unplugged = False
        self.qdev = ""

    @property
    def attached(self) -> bool:
        """Whether a device is on it."""
        return self.kind in ("drive", "blockdev")

    def root(self) -> str:
        """Return the node at its root, empty where it has none."""
        if self.kind == "loose":
            return self.top
        if self.kind == "export":
            exports = self.machine.run("query-block-exports")
            return str(exports[0]["node-name"]) if exports else ""
        for entry in self.machine.run("query-block"):
            if self.label == entry["device"] or f"/{self.label}/" in f"/{entry.get('qdev', '')}/":
                return str(entry.get("inserted", {}).get("node-name", ""))
        return ""

    def layers(self) -> list[str]:
        """Return the nodes of its layers, the active one first."""
        return chain(self.machine, self.root())

    def target(self) -> str:
        """Return what a command takes for its `device`."""
        return self.label if self.kind == "drive" else self.root()

    def write(self, rng: random.Random) -> None:
        """Write as a guest does."""
        if not self.attached:
            return
        backend = self.label if self.kind == "drive" else f"-d {self.qdev}"
        offset, size = rng.randrange(100) * 65536, rng.choice((1, 4, 8)) * 65536
        self.machine.hmp(f'qemu-io {backend} "write -P {rng.randrange(255)} {offset} {size}"')

    def grow(self, rng: random.Random, *, bad: bool = False) -> None:
        """Put a layer on top; of a bad one a sector cannot be read, once."""
        self.tidy()  # a top that was committed still stands on its base, and keeps others off it
        name = self.machine.unique("n")
        if self.kind == "drive" and not bad and rng.random() < 0.6:
            file = self.machine.file("top")
            self.machine.run(
                "blockdev-snapshot-sync", device=self.label, snapshot_file=file,
                snapshot_node_name=name, format="qcow2",
            )  # fmt: skip
            self.write(rng)
        else:
            file = self.machine.overlay()
            self.machine.send("blockdev-add", node(name, file, bad=bad))
            self.machine.run("blockdev-snapshot", node=self.root(), overlay=name)
        self._spare.append((name, file))
        self.top = name
        self.machine.say(f"{self.called}: layer {name} on top")

    def pivoted(self, top: str) -> bool | None:
        """Return whether a commit's top is gone from the chain, None where that cannot be seen."""
        if self.kind == "loose" or self.unplugged:
            return None
        layers = self.layers()
        self.machine.say(f"{self.called}: the chain is {' '.join(layers)}")
        return top not in layers

    def settle(self, top: str, base: str, result: str) -> None:
        """Take note of how a commit of a chain without a device ended."""
        if self.kind == "loose" and result == "completed" and self.top == top:
            self.top = base

    def tidy(self) -> None:
        """Take away the nodes that are in no chain any more."""
        used = set(self.layers())
        for name, file in reversed(list(self._spare)):  # from the top down
            if name in used:
                continue
            try:
                self.machine.run("blockdev-del", node_name=name)
            except QmpError as error:
                self.machine.say(f"refused: {error}")
                if "in use" in str(error):
                    continue
            self._spare.remove((name, file))
            _unlink(file)

    @property
    def called(self) -> str:
        """What it is called in stories."""
        return self.label or f"{self.kind} {self.top}"


def chain(machine: Machine, root: str) -> list[str]:
    """Return the layers from a node down."""
    graph = machine.run("x-debug-query-block-graph")
    names = {each["id"]: str(each["name"]) for each in graph["nodes"]}
    below: dict[int, dict[str, int]] = {}
    for edge in graph["edges"]:
        below.setdefault(edge["parent"], {})[edge["name"]] = edge["child"]
    at = next((each["id"] for each in graph["nodes"]
               if each["name"] == root and each["type"] == "block-driver"), None)  # fmt: skip
    found: list[str] = []
    while at is not None:
        if names[at].startswith(f"{machine.name}-n"):
            found.append(names[at])
        children = below.get(at, {})
        at = children.get("backing", children.get("file"))
    return found


def files(entry: dict[str, Any]) -> list[str | None]:
    """Return the files of the layers that an entry of query-block has, without filters.

    None stands for one below blkdebug, which QEMU does not name as a file.
    """
    found: list[str | None] = []
    image = entry.get("inserted", {}).get("image")
    while image:
        if image["format"] == "qcow2":
            found.append(_plain(str(image["filename"])))
        image = image.get("backing-image")
    return found


def _plain(name: str) -> str | None:
    """Return the file of a name that QEMU has to tell as a whole tree."""
    if "blkdebug" in name.partition('"backing"')[0] or '"driver": "blkdebug"' in name:
        return None
    if name.startswith("json:"):
        below = json.loads(name.removeprefix("json:"))
        while "filename" not in below:
            below = below["file"]
        name = below["filename"]
    return name


def _unlink(file: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(file)
