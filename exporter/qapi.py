"""QAPI as far as this program speaks it: the queries it asks and the shapes of their replies.

The leaves of the replies come from the table (`metrics`): a field that no family uses is skipped
by the decoder without being built. Names are QAPI's with `_` for `-`; what QEMU did not report is
None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from exporter import metrics
from exporter.family import Metric

S = TypeVar("S", bound=Struct)
T = TypeVar("T")


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


@leaves(metrics.NODES, "image", "format_specific", "data")
class FormatData(Tree):
    """ImageInfoSpecificQCow2 and its like."""

    compat: str | None = None


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
    detect_zeroes: str = ""
    cache: Cache | None = None
    group: str = ""
    dirty_bitmaps: list[Bitmap] = []


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


#: QapiErrorClass, of all versions.
_ERROR_CLASSES = frozenset(
    {
        "CommandNotFound",
        "DeviceEncrypted",
        "DeviceNotActive",
        "DeviceNotFound",
        "GenericError",
        "KVMMissingCap",
    }
)


class CommandError(Struct, frozen=True):
    """An error reply: QEMU understood the command and refused it."""

    class_: str = msgspec.field(name="class")
    desc: str = ""

    @property
    def known_class(self) -> str:
        """The class, if it is one of QEMU's: it becomes a label and part of a log line."""
        return self.class_ if self.class_ in _ERROR_CLASSES else "unknown"

    @property
    def unknown_command(self) -> bool:
        return self.class_ == "CommandNotFound"


class Message(Tree, Generic[T]):
    """Whatever QEMU may send after the greeting: an answer or an event."""

    return_: T | UnsetType = msgspec.field(name="return", default=UNSET)
    error: CommandError | UnsetType = UNSET
    event: str = ""
    data: Raw = Raw(b"")


@dataclass(frozen=True, slots=True, eq=False)
class Query(Generic[T]):
    """One command that reads and never writes, and the decoder of the reply.

    `wire` is compact: QEMU reads its monitor socket one byte per system call.
    """

    name: str
    decoder: msgspec.json.Decoder[Message[T]]
    wire: bytes


def _query(name: str, reply: type[T], arguments: Mapping[str, object] | None = None) -> Query[T]:
    request: dict[str, object] = {"execute": name}
    if arguments:
        request["arguments"] = arguments
    message: Any = Message[reply]  # type: ignore[valid-type]
    return Query(name, msgspec.json.Decoder(message), msgspec.json.encode(request))


STATUS = _query("query-status", Status)
BLOCKSTATS = _query("query-blockstats", list[BlockStats])
#: For QEMU before 2.5.
LAYERSTATS: Query[list[BlockStats]] = _query("query-blockstats", cast(Any, list[LayerStats]))
NODESTATS = _query("query-blockstats", list[BlockNode], {"query-nodes": True})
BLOCK_JOBS = _query("query-block-jobs", list[BlockJob])
JOBS = _query("query-jobs", list[JobInfo])
BLOCK = _query("query-block", list[BlockInfo])
BLOCK_FLAT = _query("query-block", list[BlockInfo], {"flat": True})
NAME = _query("query-name", Name)
UUID = _query("query-uuid", Uuid)
#: Asked before a VM is changed: which commands it has.
KNOWN_COMMANDS = _query("query-commands", list[CommandInfo])
#: Asked before a VM is changed: whether its disks are about to be another QEMU's.
MIGRATE = _query("query-migrate", Migration)
GRAPH = _query("x-debug-query-block-graph", Graph)

#: Decodes what comes while no answer is awaited.
UNASKED: msgspec.json.Decoder[Message[Raw]] = msgspec.json.Decoder(Message[Raw])

_OBJECT_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


@lru_cache(maxsize=1024)
def throttle_limits(group: str) -> Query[dict[str, int]] | None:
    """Return the query for a throttle group's limits, None for what cannot be an object's id.

    This is the only property that is ever read by qom-get.
    """
    if not _OBJECT_ID.fullmatch(group):
        return None
    return _query("qom-get", dict[str, int], {"path": f"/objects/{group}", "property": "limits"})


#: Every command that may leave a session.
COMMANDS = frozenset(
    query.name for query in (STATUS, BLOCKSTATS, BLOCK_JOBS, JOBS, BLOCK, NAME, UUID, GRAPH)
) | {KNOWN_COMMANDS.name, MIGRATE.name, "qom-get", "qmp_capabilities"}


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
