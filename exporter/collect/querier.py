"""Batches of queries over one connection; what the QEMU does not know is asked once."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from exporter.errors import ProtocolError, TargetError
from exporter.qmp import PendingReplies, Query, Request, Session, queries

log = logging.getLogger(__name__)
T = TypeVar("T")

#: The first QEMU that counts I/O at the device and not at each node.
_DEVICE_COUNTERS = (2, 5)


class Querier:
    """The queries of one connection, each batch within the deadline of its VM."""

    def __init__(self, vm: str, session: Session, version: tuple[int, ...]) -> None:
        """Know nothing yet of the QEMU that `session` is connected to."""
        self._vm = vm
        self._session = session
        #: Queries that this QEMU does not know.
        self.unknown: set[Request[Any]] = set()
        #: Optional queries whose failure was logged.
        self._failed: set[str] = set()
        self.blockstats = queries.LAYERSTATS if version < _DEVICE_COUNTERS else queries.BLOCKSTATS

    async def batch(self, asked: Sequence[Query[Any]], deadline: float) -> PendingReplies:
        """Ask in one write what this QEMU knows, and wait for the answers.

        Raises:
            TargetError: they do not come by the deadline, or are none.
        """
        known = [query for query in asked if query not in self.unknown]
        answers = await self._session.ask(*known, timeout_seconds=remaining_seconds(deadline))
        self.unknown |= answers.unknown()
        return answers

    async def later(self, answers: PendingReplies, query: Query[T], deadline: float) -> T | None:
        """Return the answer to a query that the first batch may have had already."""
        if query not in answers.queries:
            return await self.ask_optional(query, deadline)
        return self.optional(answers, query)

    async def ask_optional(self, query: Query[T], deadline: float) -> T | None:
        """Ask what the VM is up without: its failure costs its own series."""
        try:
            return self.optional(await self.batch([query], deadline), query)
        except TargetError as error:
            self.say_failed(query.name, error)
            return None

    def optional(self, answers: PendingReplies, query: Query[T]) -> T | None:
        """Return the answer to a query that the VM is up without."""
        try:
            return answers.get(query)
        except ProtocolError as error:
            self.say_failed(query.name, error)
            return None

    def say_failed(self, name: str, error: TargetError) -> None:
        """Log, once a connection, that a query was not answered."""
        if name not in self._failed:
            self._failed.add(name)
            log.warning("not answered", extra={"vm": self._vm, "err": str(error)})


def remaining_seconds(deadline: float) -> float:
    """Return how many seconds are left until a deadline of the monotonic clock."""
    return max(0.0, deadline - time.monotonic())
