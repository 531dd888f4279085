"""Snapshots as the guards of requests see them, and what they are refused with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from exporter.api.problems import PROBLEMS
from exporter.errors import Refused
from exporter.model.state import Counters, Device, Job, Node, VmState
from exporter.qmp import schema
from tests.disks import block_job

CHAIN = ("top", "mid", "base")
#: Every JobStatus, and none: a QEMU before 2.12 has no such word.
STATUSES = (
    "created", "running", "paused", "ready", "standby", "waiting", "pending", "aborting",
    "concluded", "null", "",
)  # fmt: skip


def node(layer: int, name: str, file: str | None = None, **image: object) -> Node:
    """A layer, whose file is that of its name where nothing else is said."""
    path = f"/images/{name}.qcow2" if file is None else file
    told = msgspec.convert({"filename": path, "format": "qcow2", **image}, schema.Image)
    return Node(layer=str(layer), role="format", node_name=name, image=told, file=path)


def disk(*layers: str | Node, name: str = "disk0", **more: Any) -> Device:
    """A device on a chain."""
    nodes = tuple(
        each if isinstance(each, Node) else node(depth, each)
        for depth, each in enumerate(layers or CHAIN)
    )
    more = {"backing_depth": len(nodes) - 1, "expected_backing_depth": 0, **more}
    return Device(device=name, nodes=nodes, **more)


def job(job_id: str = "disk0", kind: str = "commit", device: str = "disk0", **more: Any) -> Job:
    """A block job; `status` "" is that of a QEMU that has none."""
    told: Any = msgspec.convert(block_job(job_id, kind, **more), schema.BlockJob)
    if more.get("status") == "":
        told.status = None
    return Job(device, job_id, kind, told)


def vm(*devices: Device, entries: Sequence[schema.BlockStats] = (), **more: Any) -> VmState:
    """A VM that is up."""
    chosen = devices or (disk(),)
    told = entries or [
        schema.BlockStats(stats=schema.Stats(), device=each.device, node_name=_root(each))
        for each in chosen
    ]
    more = {"storage_responding": True, "status": "running", **more}
    return VmState(vm="vm", up=True, devices=chosen, counters=Counters(told), **more)


def _root(each: Device) -> str:
    return each.nodes[0].node_name if each.nodes else ""


def refused(guard: Any, *args: Any, **more: Any) -> tuple[str, str]:
    """Return the problem and the detail that a guard refuses with."""
    with pytest.raises(Refused) as caught:
        guard(*args, **more)
    assert caught.value.problem in PROBLEMS
    return caught.value.problem, str(caught.value)
