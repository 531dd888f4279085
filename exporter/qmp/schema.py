"""The shapes of QEMU's replies, as far as this program reads them.

The leaves of the replies come from the table (`metrics`): a field that no family uses is skipped
by the decoder without being built. Names are QAPI's with `_` for `-`; what QEMU did not report is
None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from exporter import metrics
from exporter.metrics import Metric

S = TypeVar("S", bound=Struct)


class Tree(Struct, gc=False):
    """What cannot be in a cycle, so that the collector of cycles need not look at it."""


def leaves(rows: Iterable[Metric], *owner: str) -> Callable[[type[S]], type[S]]:
    """Add to a struct a field for each row of the table whose value stands right under `owner`."""

    def extend(base: type[S]) -> type[S]:
        fields = [
            (
                row.path[-1],
                row.type | None,
                msgspec.field(name=row.field.rpartition(".")[2], default=None),
            )
            for row in rows
            if row.path[:-1] == owner and row.field and row.kind != "histogram"
        ]
        extended: Any = msgspec.defstruct(
            base.__name__, fields, bases=(base,), module=__name__, kw_only=True
        )
        extended.__doc__ = base.__doc__
        return extended  # type: ignore[no-any-return]

    return extend


class Histogram(Tree):
    """BlockLatencyHistogramInfo: one more bin than boundaries, which are in nanoseconds."""

    boundaries: list[int]
    bins: list[int]


@leaves(metrics.INTERVALS, "timed")
class TimedStats(Tree):
    """BlockDeviceTimedStats."""

    interval_length: int


@leaves(metrics.NODES, "stats")
class NodeStats(Tree):
    """BlockDeviceStats of a node: all else in it is 0 since QEMU 2.5."""


@leaves(metrics.IO, "stats")
class Stats(NodeStats):
    """BlockDeviceStats of a device."""

    rd_latency_histogram: Histogram | None = None
    wr_latency_histogram: Histogram | None = None
    flush_latency_histogram: Histogram | None = None
    zone_append_latency_histogram: Histogram | None = None
    timed_stats: list[TimedStats] = []


@leaves(metrics.NODES, "driver_specific")
class DriverSpecific(Tree):
    """BlockStatsSpecific."""

    driver: str


class BlockNode(Tree, rename="kebab"):
    """BlockStats of query-blockstats: a node."""

    stats: NodeStats
    node_name: str = ""
    driver_specific: DriverSpecific | None = None
    parent: BlockNode | None = None
    backing: BlockNode | None = None

    @property
    def layer_io(self) -> Stats | None:
        """The I/O of this node alone."""
        return None


class BlockStats(BlockNode, rename="kebab", kw_only=True):
    """BlockStats of query-blockstats: a device, and the node at its root."""

    stats: Stats
    device: str = ""
    qdev: str = ""
    #: No member of QAPI's: set where an entry is made from query-block.
    inserted: bool = False


class LayerNode(BlockNode, rename="kebab", kw_only=True):
    """A node of QEMU before 2.5, which counts the I/O of each."""

    stats: Stats
    parent: LayerNode | None = None
    backing: LayerNode | None = None

    @property
    def layer_io(self) -> Stats | None:
        return self.stats


class LayerStats(BlockStats, rename="kebab", kw_only=True):
    """A device of QEMU before 2.5."""

    parent: LayerNode | None = None
    backing: LayerNode | None = None

    @property
    def layer_io(self) -> Stats | None:
        return self.stats


class Extent(Tree):
    """VmdkExtentInfo."""

    filename: str = ""


@leaves(metrics.NODES, "image", "format_specific", "data")
class FormatData(Tree, rename={"data_file": "data-file", "data_file_raw": "data-file-raw"}):
    """ImageInfoSpecificQCow2, ImageInfoSpecificVmdk and their like."""

    compat: str | None = None
    #: As the header of a qcow2 has it; the data file may have been given by another name.
    data_file: str | None = None
    #: There for each qcow2 with a data file.
    data_file_raw: bool | None = None
    extents: list[Extent] = []


class FormatSpecific(Tree):
    """ImageInfoSpecific."""

    data: FormatData | None = None


@leaves(metrics.NODES, "image")
class Image(Tree, rename="kebab"):
    """ImageInfo."""

    filename: str
    format: str
    encrypted: bool = False
    backing_filename: str = ""
    backing_filename_format: str = ""
    backing_image: Image | None = None
    format_specific: FormatSpecific | None = None
    snapshots: list[Raw] | None = None


@leaves(metrics.BITMAPS, "state")
class Bitmap(Tree):
    """BlockDirtyInfo; a bitmap without a name belongs to a job."""

    name: str = ""


class Cache(Tree, rename="kebab"):
    """BlockdevCacheInfo."""

    writeback: bool
    direct: bool
    no_flush: bool


@leaves(metrics.THROTTLE, "limits")
class Limits(Tree):
    """The limits of BlockDeviceInfo, by their names there; 0 is no limit."""


class Child(Tree, rename="kebab"):
    """BlockdevChild."""

    child: str
    node_name: str = ""


@leaves(metrics.STATE, "block", "inserted")
class Inserted(
    Limits, rename={"node_name": "node-name", "dirty_bitmaps": "dirty-bitmaps"}, kw_only=True
):
    """BlockDeviceInfo."""

    file: str
    drv: str
    ro: bool
    image: Image
    node_name: str = ""
    #: Since QEMU 10.0; False while the images belong to another QEMU.
    active: bool | None = None
    detect_zeroes: str = ""
    cache: Cache | None = None
    group: str = ""
    dirty_bitmaps: list[Bitmap] = []
    #: Of the root node, since QEMU 11.1.
    children: list[Child] = []


@leaves(metrics.STATE, "block")
class BlockInfo(Tree, rename={"dirty_bitmaps": "dirty-bitmaps"}):
    """BlockInfo of query-block."""

    device: str
    qdev: str = ""
    removable: bool = False
    inserted: Inserted | None = None
    #: Where QEMU before 6.0 has them.
    dirty_bitmaps: list[Bitmap] = []


@leaves(metrics.JOBS, "job")
class BlockJob(Tree):
    """BlockJobInfo; `device` is the id of the job."""

    device: str
    type: str
    error: str = ""


class JobInfo(Tree, rename="kebab"):
    """JobInfo of query-jobs, which has the jobs that are no block jobs too."""

    id: str
    type: str
    status: str
    current_progress: int
    total_progress: int
    error: str = ""


class BlockExport(Tree, rename="kebab"):
    """BlockExportInfo of query-block-exports (QEMU 5.2): `type` is nbd, vhost-user-blk, fuse, ..."""

    id: str
    type: str
    node_name: str


class Status(Tree):
    """StatusInfo of query-status."""

    running: bool
    status: str


class Name(Tree):
    """NameInfo of query-name."""

    name: str = ""


class Uuid(Tree):
    """UuidInfo of query-uuid."""

    UUID: str


class CommandInfo(Tree):
    """CommandInfo of query-commands."""

    name: str


class Migration(Tree):
    """MigrationInfo of query-migrate; no status where there was none."""

    status: str = ""


class MigrationCapability(Tree):
    """MigrationCapabilityStatus of query-migrate-capabilities."""

    capability: str
    state: bool


class GraphNode(Tree):
    """XDbgBlockGraphNode: `type` is block-backend, block-job or block-driver."""

    id: int
    type: str
    name: str


class GraphEdge(Tree):
    """XDbgBlockGraphEdge."""

    parent: int
    child: int
    name: str


class Graph(Tree):
    """XDbgBlockGraph of x-debug-query-block-graph (QEMU 4.0)."""

    nodes: list[GraphNode]
    edges: list[GraphEdge]


def limits_of_group(limits: Mapping[str, int]) -> Limits:
    """Return ThrottleLimits (`bps-read-max`) under the names of BlockDeviceInfo (`bps_rd_max`)."""
    values: dict[str, int] = {}
    for name, value in limits.items():
        base, _, rest = name.partition("-")
        direction, _, suffix = rest.partition("-")
        short = {"total": "", "read": "_rd", "write": "_wr"}.get(direction)
        # A length of 1 is always there, and means something only beside its burst.
        if short is None:
            values[name.replace("-", "_")] = value
        elif suffix != "max-length" or limits.get(f"{base}-{direction}-max"):
            values[base + short + (suffix and "_" + suffix.replace("-", "_"))] = value
    return msgspec.convert(values, Limits)
