"""Devices for the fake QMP server, told alike by query-blockstats and query-block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakeqmp import FakeQmp


@dataclass(frozen=True)
class Disk:
    """A device on a chain of qcow2 files."""

    device: str = "disk0"
    #: Node names from the active layer down to the base.
    nodes: tuple[str, ...] = ("top", "base")
    qdev: str = ""
    #: The layers' files as QEMU names them; those of the nodes' names where there are none.
    files: tuple[str, ...] = ()

    def stats(self) -> dict[str, Any]:
        """Return the entry of query-blockstats."""
        entry: dict[str, Any] = {}
        for node in reversed(self.nodes):
            file = {"node-name": f"{node}-file", "stats": {}}
            below = {"backing": entry} if entry else {}
            entry = {"node-name": node, "stats": {}, "parent": file, **below}
        return {"stats": {}, **entry, **self._name()}

    def block(self, *, flat: bool = False) -> dict[str, Any]:
        """Return the entry of query-block; a flat one has no image but the active."""
        image: dict[str, Any] = {}
        files = self.files or tuple(f"/images/{node}.qcow2" for node in self.nodes)
        for name in reversed(files[:1] if flat else files):
            below = {"backing-image": image} if image else {}
            image = {"filename": name, "format": "qcow2", "virtual-size": 1024, **below}
        inserted = {
            "file": image["filename"],
            "drv": "qcow2",
            "ro": False,
            "node-name": self.nodes[0],
            "image": image,
        }
        return {**self._name(), "removable": False, "locked": False, "inserted": inserted}

    def _name(self) -> dict[str, str]:
        return {"device": self.device, **({"qdev": self.qdev} if self.qdev else {})}


def plug(fake: FakeQmp, *disks: Disk) -> None:
    """Make these the devices of a VM."""

    def block(arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"return": [disk.block(flat=bool(arguments.get("flat"))) for disk in disks]}

    fake.replies["query-blockstats"] = {"return": [disk.stats() for disk in disks]}
    fake.replies["query-block"] = block


def block_job(device: str = "disk0", kind: str = "commit", **more: object) -> dict[str, Any]:
    """An entry of query-block-jobs; `device` is the id of the job."""
    return {
        "device": device,
        "type": kind,
        "len": 100,
        "offset": 25,
        "speed": 0,
        "busy": True,
        "paused": False,
        "ready": False,
        "status": "running",
        "io-status": "ok",
        "auto-finalize": True,
        "auto-dismiss": True,
        **more,
    }


def graph(job_id: str, device: str, nodes: tuple[str, ...]) -> dict[str, Any]:
    """x-debug-query-block-graph of one device with a commit of its whole chain."""
    drivers = [{"id": n, "type": "block-driver", "name": name} for n, name in enumerate(nodes, 10)]
    chain = [{"parent": n, "child": n + 1, "name": "backing"} for n in range(10, 9 + len(nodes))]
    return {
        "return": {
            "nodes": [
                {"id": 1, "type": "block-backend", "name": device},
                {"id": 2, "type": "block-job", "name": job_id},
                *drivers,
            ],
            "edges": [
                {"parent": 1, "child": 10, "name": "root"},
                {"parent": 2, "child": 10, "name": "source"},
                {"parent": 2, "child": 9 + len(nodes), "name": "target"},
                *chain,
            ],
        }
    }


def start(fake: FakeQmp, job: dict[str, Any], blockgraph: dict[str, Any] | None = None) -> None:
    """Make this the only job."""
    fake.replies["query-block-jobs"] = {"return": [job]}
    if blockgraph:
        fake.replies["x-debug-query-block-graph"] = blockgraph


def _throttled(group: str) -> dict[str, Any]:
    """An entry of query-block whose device has a throttle filter on top."""
    filename = json.dumps({"driver": "throttle", "throttle-group": group, "file": {}})
    info = Disk().block()
    inserted = info["inserted"]
    image = {
        "filename": f"json:{filename}",
        "format": "throttle",
        "backing-image": inserted["image"],
    }
    info["inserted"] = {**inserted, "node-name": "filter", "drv": "throttle", "image": image}
    return info


def with_filter(fake: FakeQmp, group: str) -> None:
    """Put a throttle filter on top of the disk."""
    below = Disk().stats()
    del below["device"]
    entry = {"device": "disk0", "node-name": "filter", "stats": {}}
    fake.replies["query-blockstats"] = {"return": [{**entry, "parent": below, "backing": below}]}
    fake.replies["query-block"] = {"return": [_throttled(group)]}
