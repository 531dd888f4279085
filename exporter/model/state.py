"""The state of one VM at one instant, as it is exposed.

An attribute with the name of a label in the table (`metrics`) holds the text of that label. None
means not known, and gives no sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from msgspec import Struct

from exporter.metrics import Scope
from exporter.qmp import schema


class FrozenStruct(Struct, frozen=True, gc=False):
    """A struct that cannot be part of a reference cycle, and so is exempt from garbage collection."""


class Node(FrozenStruct, frozen=True, kw_only=True):
    """A block node: of a layer of a backing chain, a lasting filter, or under no device."""

    #: Depth in the backing chain, `0` the active layer; empty for filters and nodes of no device.
    layer: str
    #: `format`, `protocol` or `filter`.
    role: str
    node_name: str
    image: schema.Image | None = None
    internal_snapshots: int | None = None
    #: Whether the labels below are known.
    has_info: bool | None = None
    driver: str = ""
    file: str = ""
    backing_file: str = ""
    backing_format: str = ""
    encrypted: str = ""
    compat: str = ""
    #: Whether query-blockstats lists it; it does not list the children of a quorum.
    listed: bool = True

    @property
    def counts(self) -> bool:
        """Whether query-blockstats has counters for it."""
        return self.listed and self.role != "filter"


class FileName(Enum):
    """Where the name that QEMU reports for an image leads."""

    #: To the very file that QEMU has open.
    OWN = "leads to the image"
    #: To the image, but only from QEMU's working directory.
    RELATIVE = "is relative to the directory that QEMU is in"
    #: `/dev/fdset/N`: it is meaningful only to that process.
    FDSET = "means something to its QEMU alone, which was handed a descriptor"
    #: Removed since it was opened, by QEMU itself for `snapshot=on`.
    REMOVED = "leads to no file any more: the image was removed, or QEMU keeps it without a name"
    OTHER = "leads to another file than the one that QEMU has open"
    UNSEEN = "cannot be seen from here"


class ImageFile(FrozenStruct, frozen=True):
    """The file of an image, as seen on this host."""

    #: Size of its file system, or of the block device.
    size_bytes: int | None = None
    available_bytes: int | None = None
    #: 1 if its name leads any process on its host to it, 0 if not.
    name_valid: int | None = None
    name: FileName = FileName.UNSEEN
    #: `storage.FileStat.identity` of the file that QEMU has open.
    identity: tuple[int, ...] | None = None


class Interval(FrozenStruct, frozen=True):
    """Statistics of the last `interval_seconds`."""

    interval_seconds: str
    timed: schema.TimedStats


class Throttle(FrozenStruct, frozen=True):
    """The limits of a device: its own, or those of a throttle filter above it."""

    throttle_group: str
    limits: schema.Limits


class Bitmap(FrozenStruct, frozen=True):
    """A dirty bitmap on the active layer."""

    bitmap: str
    node_name: str
    state: schema.Bitmap


class Device(FrozenStruct, frozen=True, kw_only=True):
    """A disk or drive of the guest, without its counters."""

    device: str
    nodes: tuple[Node, ...]
    backing_depth: int | None
    expected_backing_depth: int | None
    #: Its entry in query-block; like all below, None or "" if not known or too old.
    block: schema.BlockInfo | None = None
    inserted: bool | None = None
    throttle: Throttle | None = None
    bitmaps: tuple[Bitmap, ...] = ()
    qdev: str = ""
    node_name: str = ""
    driver: str = ""
    file: str = ""
    read_only: str = ""
    removable: str = ""
    cache_writeback: str = ""
    cache_direct: str = ""
    cache_no_flush: str = ""
    detect_zeroes: str = ""
    throttle_group: str = ""


class Export(FrozenStruct, frozen=True):
    """A node that QEMU serves to others, by NBD, vhost-user-blk, FUSE or VDUSE."""

    export: str
    type: str
    node_name: str
    exists: bool = True


class Job(FrozenStruct, frozen=True):
    """A block job, or another job of query-jobs."""

    device: str
    job_id: str
    job_type: str
    job: schema.BlockJob
    #: Layers, `0` the active one.
    top: str = ""
    base: str = ""
    error: str = ""
    progress_ratio: float | None = None
    #: Times at which this process saw it.
    first_seen_timestamp_seconds: float | None = None
    last_progress_timestamp_seconds: float | None = None
    ready_timestamp_seconds: float | None = None


class JobOutcomes(FrozenStruct, frozen=True):
    """How the jobs of one type ended."""

    job_type: str
    completed: int
    failed: int
    cancelled: int
    unverified: int
    vanished: int


class Finished(FrozenStruct, frozen=True):
    """The last job of a device and type that ended with this result."""

    device: str
    job_type: str
    result: str
    timestamp_seconds: float


class LastError(FrozenStruct, frozen=True):
    """The error of the last failed job of a device and type."""

    device: str
    job_type: str
    error: str


class IoErrors(FrozenStruct, frozen=True):
    """The number of the guest's I/O errors of one kind."""

    device: str
    operation: str
    action: str
    count: int


class DeviceEvents(FrozenStruct, frozen=True):
    """The number of other events of a device."""

    device: str
    write_thresholds_exceeded: int
    images_corrupted: int
    #: None before the first: few devices have a quorum, and there is no cheap way to know which.
    quorum_errors: int | None = None


class JobError(FrozenStruct, frozen=True):
    """The number of a block job's errors of one kind."""

    device: str
    job_id: str
    job_type: str
    operation: str
    action: str
    count: int


class VmEvents(FrozenStruct, frozen=True):
    """The number of events of one name."""

    event: str
    count: int


class Counters(FrozenStruct, frozen=True):
    """What changes with each scrape: entries of query-blockstats, and image files as seen here."""

    #: One for each device.
    devices: Sequence[schema.BlockStats] = ()
    #: One for each format and protocol node of each device; filters have no counters.
    nodes: Sequence[schema.BlockNode] = ()
    #: One for each of `nodes`, None if not known.
    files: Sequence[ImageFile | None] = ()
    #: One for each node under no device.
    free_nodes: Sequence[schema.BlockNode] = ()


class VmState(FrozenStruct, frozen=True, kw_only=True):
    """One VM at one instant. A VM that is down has a `reason`, and nothing that comes from QEMU."""

    vm: str
    up: bool
    reason: str | None = None
    duration_seconds: float | None = None
    last_seen_timestamp_seconds: float | None = None
    topology_timestamp_seconds: float | None = None
    storage_responding: bool | None = None
    #: Why it does not respond, or why query-block was not sent; "" if it was.
    storage_error: str = ""
    #: Whether query-block would crash this QEMU, and so was not sent.
    would_crash: bool = False
    running: bool | None = None
    status: str | None = None
    name: str = ""
    uuid: str = ""
    qemu_version: str = ""
    manager: str = ""
    socket: str = ""
    #: The same object in every state until query-block reports a change.
    devices: tuple[Device, ...] = ()
    #: Nodes under no device.
    free_nodes: tuple[Node, ...] = ()
    counters: Counters = Counters()
    exports: tuple[Export, ...] = ()
    jobs: tuple[Job, ...] = ()
    #: Records that are kept from scrape to scrape; the same object until one changes.
    remembered: Mapping[Scope, Sequence[FrozenStruct]] | None = None


class Exporter(FrozenStruct, frozen=True, kw_only=True):
    """The program at one instant."""

    version: str
    python_version: str
    targets: int
    targets_up: int
    target_conflicts: int
    reload_successful: bool
    #: Command -> number of commands sent.
    commands: Mapping[str, int]
    #: (command, class) -> number of error replies.
    errors: Mapping[tuple[str, str], int]
    #: (action, result) -> number of requests, and of changes that the exporter makes on its own.
    actions: Mapping[tuple[str, str], int] = {}
