"""The state of one VM at one instant, and how it is built from QEMU's replies. No I/O."""

from __future__ import annotations

from exporter.model import build, chain, nodes
from exporter.model.build import BLOCK_JOB_TYPES, Topology, intervals
from exporter.model.corruption import Corruption
from exporter.model.device_names import join_key
from exporter.model.event_devices import Owners, Subject, of_graph, owners
from exporter.model.job_placement import Merge, Place, place_job, users
from exporter.model.state import (
    Bitmap,
    Counters,
    Device,
    DeviceEvents,
    Export,
    Exporter,
    FileName,
    Finished,
    ImageFile,
    IoErrors,
    Job,
    JobError,
    JobOutcomes,
    LastError,
    Node,
    Throttle,
    VmEvents,
    VmState,
)

__all__ = [
    "BLOCK_JOB_TYPES",
    "Bitmap",
    "Corruption",
    "Counters",
    "Device",
    "DeviceEvents",
    "Export",
    "Exporter",
    "FileName",
    "Finished",
    "ImageFile",
    "IoErrors",
    "Job",
    "JobError",
    "JobOutcomes",
    "LastError",
    "Merge",
    "Node",
    "Owners",
    "Place",
    "Subject",
    "Throttle",
    "Topology",
    "VmEvents",
    "VmState",
    "build",
    "chain",
    "intervals",
    "join_key",
    "nodes",
    "of_graph",
    "owners",
    "place_job",
    "users",
]
