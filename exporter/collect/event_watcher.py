"""What becomes of one VM between two scrapes: its events, and what is remembered of them.

Between scrapes a look is taken where an event says that something will soon not be there to be
seen any more: a job has begun, whose disk and layers the graph has for as long as it lives; a
commit has ended, whose chain shows how until that changes again; a job that is not a block job has
failed, and query-jobs says why until it is dismissed. A look asks a part of what a scrape asks, in
the same way, and never beside one. Each is due to an event, and there are only so many of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from exporter.errors import TargetError
from exporter.jobs import Events, JobTracker
from exporter.metrics import Scope
from exporter.model import Job, Place, owners, place_job
from exporter.qmp import Process, Session, schema

#: Most looks between two scrapes.
LOOKS_LIMIT = 100
#: Far more than QEMU can have; a reply that is nothing but devices would block this process.
DEVICES_LIMIT = 4096


class EventWatcher:
    """The memory of one VM, whatever becomes of the connection."""

    def __init__(self, session: Session, look: Callable[[], Awaitable[None]]) -> None:
        """Remember nothing yet. `look` asks what a look asks, and may raise TargetError."""
        self.jobs = JobTracker()
        self.events = Events()
        #: (id, type) of each block job -> where it works; asked once, kept while the job lives.
        self.places: dict[tuple[str, str], Place] = {}
        self._session = session
        self._look = look
        self._process = Process()
        #: `chain.Walk.names` of the answer that the events' devices are known from.
        self._names: tuple[str, ...] = ()
        self._records: Mapping[Scope, Sequence[Any]] = {}
        #: Of the jobs that `_records` has counters of: device, id, type.
        self._jobs: list[tuple[str, str, str]] = []
        self._looking: asyncio.Task[None] | None = None
        self._looks = 0
        self._scraping = False

    def follow(self) -> None:
        """Have what is remembered belong to this connection, whatever of it comes first."""
        generation = self._session.generation
        if generation != self.jobs.generation:
            was, self._process = self._process, self._session.process
            if not (self._process.pid and self._process == was):
                self.events.forget_nodes()
                self._names = ()
            self.jobs.connected(generation, self._process, time.time())

    def ask(self) -> None:
        """Take note that what is asked from here on is asked after all events so far."""
        self.follow()
        self.jobs.ask()
        self.events.ask()

    def know(self, entries: Sequence[schema.BlockStats], names: tuple[str, ...]) -> None:
        """Take the devices and nodes of query-blockstats; `names` are those of `chain.Walk`."""
        if names is not self._names and names != self._names:
            self.events.know(owners(entries))
            self._names = names

    def take(self, name: str, data: bytes) -> str:
        """Take an event; return the status that JOB_STATUS_CHANGE tells.

        Raises:
            msgspec.DecodeError, UnicodeError, RecursionError: it is not what QAPI says.
        """
        self.follow()
        self.events.take(name, data)
        job_id, status = self.jobs.take(name, data, time.time())
        if status in ("created", "null"):
            self.events.job_errors.forget(job_id)
        if status == "created" and self.places:
            # An id may be used again, for another disk.
            self.places = {key: place for key, place in self.places.items() if key[0] != job_id}
        self._look_soon()
        return status

    def unplaced(self, jobs: Sequence[schema.BlockJob]) -> list[tuple[str, str]]:
        """Return the jobs whose place is not known; that of any other job is forgotten."""
        keys = [(job.device, job.type) for job in jobs]
        self.places = {key: self.places[key] for key in keys if key in self.places}
        return [key for key in keys if key not in self.places]

    def place(
        self,
        jobs: Sequence[tuple[str, str]],
        graph: schema.Graph | None,
        entries: Sequence[schema.BlockStats],
    ) -> None:
        """Find out where jobs work; without a graph that is on record for those started here."""
        for key in jobs:
            place = self.jobs.place(key[0]) if graph is None else None
            place = place or place_job(key[0], graph, entries)
            if place is not None:
                self.places[key] = place

    def placed(self, jobs: list[schema.BlockJob]) -> list[schema.BlockJob]:
        """Return the jobs without those that ended since they were told of."""
        return [job for job in jobs if (job.device, job.type) in self.places]

    def records(self, jobs: Sequence[Job]) -> Mapping[Scope, Sequence[Any]]:
        """Return what is remembered; the same object until something happens.

        `jobs` are those that QEMU has.
        """
        names = [(job.device, job.job_id, job.job_type) for job in jobs]
        if self.events.changed or self.jobs.outcomes.changed or names != self._jobs:
            self._jobs = names
            self._records = {**self.events.records(jobs), **self.jobs.outcomes.records()}
        return self._records

    async def begin(self, timeout_seconds: float) -> None:
        """Let a look end before a scrape asks: a session has one question at a time."""
        self._scraping, self._looks = True, 0
        if self._looking is not None:
            await asyncio.wait((self._looking,), timeout=timeout_seconds)

    def end(self) -> None:
        """A scrape has asked all that it wanted to."""
        self._scraping = False
        self._look_soon()

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))

    def _look_soon(self) -> None:
        if not self.jobs.wanted or self._scraping or self._looking is not None:
            return
        connected = self._session.connected and not self._session.owes_answers
        if connected and self._looks < LOOKS_LIMIT:
            self._looks += 1
            self._looking = asyncio.create_task(self._take_look())

    async def _take_look(self) -> None:
        try:
            await self._look()
        except TargetError:
            pass  # the next scrape says what is wrong with it
        finally:
            self._looking = None
        # Something may have happened while these answers were on their way.
        self._look_soon()
