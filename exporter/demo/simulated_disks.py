"""Simulated disks and jobs, described as QEMU 7.2 would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from exporter.demo.scenarios import DISK_BYTES

#: Size of an empty qcow2 image.
_EMPTY_BYTES = 200 * 1024
_LATENCY_NS = 400_000
_OPERATIONS = ("rd", "wr", "flush", "unmap")
_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")

Record = dict[str, object]


@dataclass(slots=True)
class Layer:
    """An image, with its format node and the node of its file."""

    node_name: str
    storage_name: str
    file: str
    allocated_bytes: int = _EMPTY_BYTES
    highest_offset: int = 0


@dataclass(slots=True)
class Disk:
    """A disk with its layers, the active one first, and the guest's I/O so far."""

    device: str
    qdev: str
    layers: list[Layer]
    #: rd, wr, flush -> operations per second.
    rates: dict[str, float]
    bytes_per_operation: int
    operations: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_OPERATIONS, 0.0))

    def work(self, seconds: float) -> None:
        """Simulate the guest's reads and writes for some seconds."""
        for name, rate in self.rates.items():
            self.operations[name] += rate * seconds

    def write(self, size_bytes: int) -> None:
        """Simulate writes of the guest to the active layer."""
        self.operations["wr"] += size_bytes // self.bytes_per_operation
        self.layers[0].allocated_bytes += size_bytes
        self.layers[0].highest_offset = size_bytes

    def pivot(self) -> None:
        """Drop the active layer; its data is now in the layer below."""
        top = self.layers.pop(0)
        base = self.layers[0]
        base.allocated_bytes = max(base.allocated_bytes, top.allocated_bytes)
        base.highest_offset = max(base.highest_offset, top.highest_offset)

    def stats(self) -> Record:
        """Return BlockDeviceStats of the guest's I/O."""
        stats = _no_stats() | {"account_invalid": True, "account_failed": True}
        for name, count in self.operations.items():
            stats[f"{name}_operations"] = int(count)
            stats[f"{name}_total_time_ns"] = int(count) * _LATENCY_NS
            if name != "flush":
                stats[f"{name}_bytes"] = int(count) * self.bytes_per_operation
        return stats | {
            "wr_highest_offset": self.layers[0].highest_offset,
            "idle_time_ns": _LATENCY_NS,
        }

    def block_stats(self) -> Record:
        """Return this disk's entry in query-blockstats."""
        backing = None
        for layer in reversed(self.layers):
            node: Record = {
                "node-name": layer.node_name,
                "stats": _no_stats() | {"wr_highest_offset": layer.highest_offset},
                "parent": _storage_stats(layer),
            }
            backing = node | ({"backing": backing} if backing else {})
        assert backing is not None
        return backing | {"device": self.device, "qdev": self.qdev, "stats": self.stats()}

    def block_info(self) -> Record:
        """Return this disk's entry in query-block."""
        active, below = self.layers[0], self.layers[1:]
        inserted: Record = {
            **dict.fromkeys(_LIMITS, 0),
            "node-name": active.node_name,
            "file": active.file,
            "drv": "qcow2",
            "ro": False,
            "encrypted": False,
            "detect_zeroes": "off",
            "write_threshold": 0,
            "backing_file_depth": len(below),
            "cache": {"writeback": True, "direct": False, "no-flush": False},
            "image": _image(self.layers),
        }
        if below:
            inserted["backing_file"] = below[0].file
        return {
            "device": self.device,
            "qdev": self.qdev,
            "type": "unknown",
            "removable": False,
            "locked": False,
            "io-status": "ok",
            "inserted": inserted,
        }


@dataclass(slots=True)
class Job:
    """The commit of a disk's active layer into the one below."""

    job_id: str
    length: int
    speed: int
    offset: float = 0.0
    status: str = "created"

    def event_data(self) -> Record:
        """Return the data of its BLOCK_JOB_READY and BLOCK_JOB_COMPLETED."""
        return {
            "device": self.job_id,
            "type": "commit",
            "len": self.length,
            "offset": int(self.offset),
            "speed": self.speed,
        }

    def block_job(self) -> Record:
        """Return its entry in query-block-jobs."""
        return self.event_data() | {
            "auto-finalize": True,
            "auto-dismiss": True,
            "io-status": "ok",
            "busy": False,
            "paused": False,
            "ready": self.status == "ready",
            "status": self.status,
        }

    def job(self) -> Record:
        """Return its entry in query-jobs."""
        return {
            "id": self.job_id,
            "type": "commit",
            "status": self.status,
            "current-progress": int(self.offset),
            "total-progress": self.length,
        }


def graph(disks: Sequence[Disk], job: Job | None) -> Record:
    """Return the reply to x-debug-query-block-graph; a job works on the first disk."""
    nodes: list[Record] = []
    edges: list[Record] = []

    def add_node(kind: str, name: str) -> int:
        nodes.append({"id": len(nodes) + 1, "type": kind, "name": name})
        return len(nodes)

    def add_edge(parent: int, child: int, name: str) -> None:
        edges.append(
            {"parent": parent, "child": child, "name": name, "perm": [], "shared-perm": []}
        )

    images: dict[str, int] = {}
    for disk in disks:
        above, name = add_node("block-backend", disk.device or disk.qdev), "root"
        for layer in disk.layers:
            image = images[layer.node_name] = add_node("block-driver", layer.node_name)
            add_edge(above, image, name)
            add_edge(image, add_node("block-driver", layer.storage_name), "file")
            above, name = image, "backing"
    if job:
        top, base = (images[layer.node_name] for layer in disks[0].layers[:2])
        node = add_node("block-job", job.job_id)
        for child, name in ((top, "main node"), (top, "source"), (base, "target")):
            add_edge(node, child, name)
    return {"nodes": nodes, "edges": edges}


def _no_stats() -> Record:
    counts = ("operations", "merged", "total_time_ns", "bytes")
    stats: Record = {f"{name}_{what}": 0 for name in _OPERATIONS for what in counts}
    del stats["flush_bytes"], stats["flush_merged"]
    for name in _OPERATIONS:
        stats |= {f"failed_{name}_operations": 0, f"invalid_{name}_operations": 0}
    return stats | {
        "wr_highest_offset": 0,
        "account_invalid": False,
        "account_failed": False,
        "timed_stats": [],
    }


def _storage_stats(layer: Layer) -> Record:
    return {
        "node-name": layer.storage_name,
        "stats": _no_stats() | {"wr_highest_offset": layer.allocated_bytes},
        "driver-specific": {
            "driver": "file",
            "discard-nb-ok": 0,
            "discard-nb-failed": 0,
            "discard-bytes-ok": 0,
        },
    }


def _image(layers: Sequence[Layer]) -> Record:
    layer, below = layers[0], layers[1:]
    image: Record = {
        "filename": layer.file,
        "format": "qcow2",
        "virtual-size": DISK_BYTES,
        "actual-size": layer.allocated_bytes,
        "cluster-size": 65536,
        "dirty-flag": False,
        "format-specific": {
            "type": "qcow2",
            "data": {
                "compat": "1.1",
                "compression-type": "zlib",
                "lazy-refcounts": False,
                "refcount-bits": 16,
                "corrupt": False,
                "extended-l2": False,
            },
        },
    }
    if below:
        image |= {
            "backing-filename": below[0].file,
            "full-backing-filename": below[0].file,
            "backing-filename-format": "qcow2",
            "backing-image": _image(below),
        }
    return image
