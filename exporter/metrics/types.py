"""The types of the table: what a metric family is, and what its samples are about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

NS = 1_000_000_000

RUN_STATES = (
    "colo", "debug", "finish-migrate", "guest-panicked", "inmigrate", "internal-error", "io-error",
    "paused", "postmigrate", "prelaunch", "restore-vm", "running", "save-vm", "shutdown",
    "suspended", "watchdog",
)  # fmt: skip
JOB_STATES = (
    "aborting", "concluded", "created", "null", "paused", "pending", "ready", "running", "standby",
    "undefined", "waiting",
)  # fmt: skip
IO_STATES = ("failed", "nospace", "ok")


class Scope(Enum):
    """What one sample is about: the prefix of its name, its labels, and its heading in METRICS.md."""

    VM = ("qemu_vm_", ("vm",), "Virtual machines")
    DEVICE = ("qemu_block_", ("vm", "device"), "Devices")
    INTERVAL = ("qemu_block_interval_", ("vm", "device", "interval_seconds"), "Interval statistics")
    THROTTLE = ("qemu_block_throttle_", ("vm", "device", "throttle_group"), "Throttle limits")
    BITMAP = (
        "qemu_block_dirty_bitmap_",
        ("vm", "device", "bitmap", "node_name"),
        "Dirty bitmaps",
    )
    NODE = ("qemu_block_node_", ("vm", "device", "layer", "role", "node_name"), "Nodes and layers")
    FILE = (
        "qemu_block_node_",
        ("vm", "device", "layer", "role", "node_name"),
        "Files of the layers, as seen on the host",
    )
    LAYER = (
        "qemu_block_node_",
        ("vm", "device", "layer", "role", "node_name"),
        "I/O of the layers, of QEMU before 2.5",
    )
    EXPORT = ("qemu_block_export_", ("vm", "export"), "Exports")
    JOB = ("qemu_block_job_", ("vm", "device", "job_id", "job_type"), "Block jobs")
    JOB_ERROR = (
        "qemu_block_job_",
        ("vm", "device", "job_id", "job_type", "operation", "action"),
        "Errors of block jobs",
    )
    OUTCOME = ("qemu_block_jobs_", ("vm", "job_type"), "Jobs that ended")
    FINISHED = (
        "qemu_block_job_",
        ("vm", "device", "job_type", "result"),
        "When jobs ended",
    )
    LAST_ERROR = ("qemu_block_job_", ("vm", "device", "job_type"), "Why jobs failed")
    IO_ERROR = ("qemu_block_", ("vm", "device", "operation", "action"), "I/O errors of guests")
    DEVICE_EVENT = ("qemu_block_", ("vm", "device"), "Events of devices")
    VM_EVENT = ("qemu_vm_", ("vm", "event"), "Events of virtual machines")
    EXPORTER = ("qemu_exporter_", (), "The exporter itself")

    def __init__(self, prefix: str, labels: tuple[str, ...], title: str) -> None:
        self.prefix = prefix
        self.labels = labels
        self.title = title


class ZeroMeaning(Enum):
    """What a 0 in QEMU's reply means."""

    VALUE = 1  #: a value like any other
    UNSET = 2  #: not set, unlimited: no sample
    UNUSED = 3  #: no sample while all such fields of the record are 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One family."""

    #: The exported name, with `_total` or `_info`.
    name: str
    scope: Scope
    #: `counter`, `gauge`, `info` or `histogram`.
    kind: str
    #: Where the value is: a path of attributes from the scope's record in `model`.
    path: tuple[str, ...]
    #: QEMU's field as HELP shows it; empty if the value is not QEMU's.
    field: str
    text: str
    #: The collector that it belongs to; empty if it is always on.
    collector: str
    divisor: int = 1
    type: type = int
    zero: ZeroMeaning = ZeroMeaning.VALUE
    #: Further labels, each an attribute of the record.
    labels: tuple[str, ...] = ()
    #: A status family has one sample for each of these, 0 or 1.
    states: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The OpenMetrics family name."""
        return self.name.removesuffix("_total").removesuffix("_info")

    @property
    def unit(self) -> str:
        """The base unit that the family name ends with, or nothing."""
        last = self.family.rpartition("_")[2]
        return last if last in {"seconds", "bytes", "ratio"} else ""

    @property
    def help(self) -> str:
        """The HELP text, which ends with QEMU's own field."""
        return f"{self.text} [{self.field}]" if self.field else self.text
