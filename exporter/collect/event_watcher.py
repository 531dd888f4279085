"""Looks between two scrapes, each due to an event: for what the next scrape would come too late.

A look is taken where an event says that something will soon be gone: a job has begun, whose disk
and layers the graph has for as long as it lives; a commit has ended, whose chain shows how until
that changes again; a job that is not a block job has failed, and query-jobs says why until it is
dismissed. A look asks a part of what a scrape asks, in the same way, and never at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from exporter.errors import TargetError
from exporter.jobs import JobTracker
from exporter.qmp import Session

#: Most looks between two scrapes.
LOOKS_LIMIT = 100


class EventWatcher:
    """Takes looks at one VM when its events call for them."""

    def __init__(
        self,
        session: Session,
        jobs: JobTracker,
        look: Callable[[], Awaitable[None]],
        looks_limit: int = LOOKS_LIMIT,
    ) -> None:
        """`look` asks what a look asks, and may raise TargetError."""
        self._session = session
        self._jobs = jobs
        self._look = look
        self._looks_limit = looks_limit
        self._looking: asyncio.Task[None] | None = None
        self._looks = 0
        self._scraping = False

    @property
    def looking(self) -> bool:
        """Whether a look is under way."""
        return self._looking is not None

    def happened(self) -> None:
        """Take a look, soon, if the jobs call for one."""
        if not self._jobs.wanted or self._scraping or self._looking is not None:
            return
        connected = self._session.connected and not self._session.owes_answers
        if connected and self._looks < self._looks_limit:
            self._looks += 1
            self._looking = asyncio.create_task(self._take_look())

    async def begin(self, timeout_seconds: float) -> None:
        """Let a look end before a scrape asks: a session has one question at a time."""
        self._scraping, self._looks = True, 0
        if self._looking is not None:
            await asyncio.wait((self._looking,), timeout=timeout_seconds)

    def end(self) -> None:
        """Take looks again: the scrape has asked all that it wanted to."""
        self._scraping = False
        self.happened()

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))

    async def _take_look(self) -> None:
        try:
            await self._look()
        except TargetError:
            pass  # the next scrape says what is wrong with it
        finally:
            self._looking = None
        # Something may have happened while these answers were on their way.
        self.happened()
