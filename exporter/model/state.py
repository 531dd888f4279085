"""One VM at one instant, as it is exposed.

Attributes that a label of the table (`metrics`) is named after hold the text of that label; what
is not known is None and gives no sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from msgspec import Struct

from exporter.metrics import Scope
from exporter.qmp import schema


class FrozenStruct(Struct, frozen=True, gc=False):
    """What cannot be in a cycle, so that the collector of cycles need not look at it."""


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
    #: Whether query-blockstats lists it; not so the children of a quorum.
    listed: bool = True

    @property
    def counts(self) -> bool:
        """Whether query-blockstats has counters of it."""
        return self.listed and self.role != "filter"


class FileName(Enum):
    """What the name that QEMU tells of an image is worth."""

    #: It leads to the very file that QEMU has open.
    OWN = "leads to the image"
    #: So it does, from the directory that QEMU is in, and from no other.
    RELATIVE = "is relative to the directory that QEMU is in"
    #: `/dev/fdset/N`: it means something to that process alone.
    FDSET = "means something to its QEMU alone, which was handed a descriptor"
    #: Removed since it was opened, by QEMU itself for `snapshot=on`.
    REMOVED = "leads to no file any more: the image was removed, or QEMU keeps it without a name"
    OTHER = "leads to another file than the one that QEMU has open"
    UNSEEN = "cannot be seen from here"


class ImageFile(FrozenStruct, frozen=True):
    """What is seen on this host of the file of an image."""

    #: Of its file system, or of the block device.
    size_bytes: int | None = None
    available_bytes: int | None = None
    #: 1 where anybody on its host finds it by its name, 0 where not.
    name_valid: int | None = None
    name: FileName = FileName.UNSEEN
    #: As `sight.Sight.identity` of the file that QEMU has open.
    identity: tuple[int, ...] | None = None


class Interval(FrozenStruct, frozen=True):
    """Statistics of the last `interval_seconds`."""

    interval_seconds: str
    timed: schema.TimedStats


class Throttle(FrozenStruct, frozen=True):
    """The limits of a device, of its own or of a throttle filter above it."""

    throttle_group: str
    limits: schema.Limits


class Bitmap(FrozenStruct, frozen=True):
    """A dirty bitmap on the active layer."""

    bitmap: str
    node_name: str
    state: schema.Bitmap


class Device(FrozenStruct, frozen=True, kw_only=True):
    """A disk or drive of the guest, without what it counts."""

    device: str
    nodes: tuple[Node, ...]
    backing_depth: int | None
    expected_backing_depth: int | None
    #: query-block's word; None where it is not known or too old, like all below.
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
    #: As this process saw it.
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
    """The last job of its kind that ended so."""

    device: str
    job_type: str
    result: str
    timestamp_seconds: float


class LastError(FrozenStruct, frozen=True):
    """Why the last job of its kind that failed did."""

    device: str
    job_type: str
    error: str


class IoErrors(FrozenStruct, frozen=True):
    """How often the guest met an error of one kind."""

    device: str
    operation: str
    action: str
    count: int


class DeviceEvents(FrozenStruct, frozen=True):
    """What else a device had."""

    device: str
    write_thresholds_exceeded: int
    images_corrupted: int
    #: None before the first: few devices have a quorum, and nothing cheap says which.
    quorum_errors: int | None = None


class JobError(FrozenStruct, frozen=True):
    """How often a block job met an error of one kind."""

    device: str
    job_id: str
    job_type: str
    operation: str
    action: str
    count: int


class VmEvents(FrozenStruct, frozen=True):
    """How often an event came."""

    event: str
    count: int


class Counters(FrozenStruct, frozen=True):
    """What each scrape brings anew: entries of query-blockstats, and what is seen of the files."""

    #: One of each device.
    devices: Sequence[schema.BlockStats] = ()
    #: One of each format and protocol node of each device; filters count nothing.
    nodes: Sequence[schema.BlockNode] = ()
    #: Of each of `nodes`, None where it is not known.
    files: Sequence[ImageFile | None] = ()
    #: One of each node under no device.
    free_nodes: Sequence[schema.BlockNode] = ()


class VmState(FrozenStruct, frozen=True, kw_only=True):
    """One VM at one instant; down, it has a `reason` and nothing of what QEMU knows."""

    vm: str
    up: bool
    reason: str | None = None
    duration_seconds: float | None = None
    last_seen_timestamp_seconds: float | None = None
    topology_timestamp_seconds: float | None = None
    storage_responding: bool | None = None
    #: Why it does not, or why QEMU was not asked for its images, empty where it was.
    storage_error: str = ""
    #: Whether query-block would end this QEMU, and so was not asked.
    would_crash: bool = False
    running: bool | None = None
    status: str | None = None
    name: str = ""
    uuid: str = ""
    qemu_version: str = ""
    manager: str = ""
    socket: str = ""
    #: The same object in every snapshot until query-block tells of something else.
    devices: tuple[Device, ...] = ()
    #: Nodes under no device.
    free_nodes: tuple[Node, ...] = ()
    counters: Counters = Counters()
    exports: tuple[Export, ...] = ()
    jobs: tuple[Job, ...] = ()
    #: What is remembered from scrape to scrape; the same object until something happens.
    remembered: Mapping[Scope, Sequence[FrozenStruct]] | None = None


class Exporter(FrozenStruct, frozen=True, kw_only=True):
    """The program at one instant."""

    version: str
    python_version: str
    targets: int
    targets_up: int
    target_conflicts: int
    reload_successful: bool
    #: command -> commands sent.
    commands: Mapping[str, int]
    #: (command, class) -> error replies.
    errors: Mapping[tuple[str, str], int]
    #: (action, result) -> requests, and what is done unasked.
    actions: Mapping[tuple[str, str], int] = {}
