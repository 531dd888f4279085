"""The door to a monitor: the session, what may be read and what may be written."""

from __future__ import annotations

from exporter.qmp import commands, peer, queries, schema, sockdiag, socket_file
from exporter.qmp.client import CommandStats, PendingReplies
from exporter.qmp.commands import Command, DiskName, LayerName, Qemu
from exporter.qmp.limits import SessionLimits
from exporter.qmp.peer import Process
from exporter.qmp.queries import Query, Request
from exporter.qmp.schema import BlockInfo, BlockJob, BlockNode, BlockStats, Image, NodeStats, Stats
from exporter.qmp.session import Session
from exporter.qmp.socket_file import SocketFile

__all__ = [
    "BlockInfo",
    "BlockJob",
    "BlockNode",
    "BlockStats",
    "Command",
    "CommandStats",
    "DiskName",
    "Image",
    "LayerName",
    "NodeStats",
    "PendingReplies",
    "Process",
    "Qemu",
    "Query",
    "Request",
    "Session",
    "SessionLimits",
    "SocketFile",
    "Stats",
    "commands",
    "peer",
    "queries",
    "schema",
    "sockdiag",
    "socket_file",
]
