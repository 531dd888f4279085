"""The queries that this program asks, and what QEMU may answer with; none of them changes a VM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from exporter.qmp.schema import (
    BlockExport,
    BlockInfo,
    BlockJob,
    BlockNode,
    BlockStats,
    CommandInfo,
    Graph,
    JobInfo,
    LayerStats,
    Migration,
    MigrationCapability,
    Name,
    Status,
    Tree,
    Uuid,
)

T = TypeVar("T")

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
        """Whether this QEMU has no such command, or was built without it."""
        return self.class_ == "CommandNotFound"


class Message(Tree, Generic[T]):
    """Whatever QEMU may send after the greeting: an answer or an event."""

    return_: T | UnsetType = msgspec.field(name="return", default=UNSET)
    error: CommandError | UnsetType = UNSET
    event: str = ""
    data: Raw = Raw(b"")


@dataclass(frozen=True, slots=True, eq=False)
class Request(Generic[T]):
    """One command as it is sent, and the decoder of its reply.

    It is a `Query` or a `commands.Command`: what reads can never be taken for what writes.
    `wire` is compact: QEMU reads its monitor socket one byte per system call.
    """

    name: str
    decoder: msgspec.json.Decoder[Message[T]]
    wire: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Query(Request[T]):
    """A command that reads and never writes."""


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
#: Touches no file.
BLOCK_EXPORTS = _query("query-block-exports", list[BlockExport])
NAME = _query("query-name", Name)
UUID = _query("query-uuid", Uuid)
#: Asked before a VM is changed: which commands it has.
KNOWN_COMMANDS = _query("query-commands", list[CommandInfo])
#: Asked before a VM is changed: whether its disks are about to be another QEMU's.
MIGRATE = _query("query-migrate", Migration)
#: Asked after MIGRATE where a VM came by a migration: whether its disks wait until it runs.
MIGRATE_CAPABILITIES = _query("query-migrate-capabilities", list[MigrationCapability])
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


#: Every command that reads; a session sends no other, but for `commands.WRITE_COMMANDS`.
READ_COMMANDS = frozenset(
    query.name
    for query in (STATUS, BLOCKSTATS, BLOCK_JOBS, JOBS, BLOCK, BLOCK_EXPORTS, NAME, UUID, GRAPH)
) | {
    KNOWN_COMMANDS.name,
    MIGRATE.name,
    MIGRATE_CAPABILITIES.name,
    "qom-get",
    "qmp_capabilities",
}
