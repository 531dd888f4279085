"""The exports of one VM, and when they are asked for.

QEMU tells when an export ends and not when one begins, so that they are asked for on connecting,
after an end, and as often as query-block at least, also where there is no device to ask about.
"""

from __future__ import annotations

import time
from typing import Any

from exporter.collect.querier import Querier
from exporter.config import Settings
from exporter.errors import ProtocolError
from exporter.model import Export
from exporter.qmp import PendingReplies, Query, queries


class Exports:
    """What the QEMU of one connection serves to others, by its last answer."""

    def __init__(self, querier: Querier, settings: Settings) -> None:
        self._querier = querier
        self._max_age_seconds = settings.topology_max_age_seconds
        self._wanted = "export" not in settings.without
        #: Of the last answer; empty where this QEMU does not know the command.
        self.found: tuple[Export, ...] = ()
        self._due_at = float("-inf")
        #: Whether an export ended since they were asked for.
        self._happened = False

    def note(self, event: str) -> None:
        """Take an event into account."""
        if event == "BLOCK_EXPORT_DELETED":
            self._happened = True

    def due(self) -> list[Query[Any]]:
        """Return what is to be asked now."""
        if not self._wanted or not (self._happened or time.monotonic() >= self._due_at):
            return []
        # What happens while the answer is on its way is asked for again.
        self._happened = False
        self._due_at = float("-inf")
        return [queries.BLOCK_EXPORTS]

    def take(self, answers: PendingReplies) -> None:
        """Keep the answer, if it was asked for."""
        if queries.BLOCK_EXPORTS not in answers.queries:
            return
        self._due_at = time.monotonic() + self._max_age_seconds
        exports = self._querier.optional(answers, queries.BLOCK_EXPORTS) or []
        if len({export.id for export in exports}) != len(exports):
            error = ProtocolError("query-block-exports has two exports of one name")
            self._querier.say_failed(queries.BLOCK_EXPORTS.name, error)
            exports = []
        self.found = tuple(Export(found.id, found.type, found.node_name) for found in exports)
