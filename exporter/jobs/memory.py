"""What is remembered of one VM between scrapes, whatever becomes of the connection. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exporter.jobs.events import Events
from exporter.jobs.tracker import JobTracker
from exporter.metrics import Scope
from exporter.model import Job, owners
from exporter.qmp import Process, schema


class VmMemory:
    """The jobs and the events of one VM."""

    def __init__(self) -> None:
        self.jobs = JobTracker()
        self.events = Events()
        self._process = Process()
        #: `chain.Walk.names` of the answer that the events' devices are known from.
        self._names: tuple[str, ...] = ()
        self._records: Mapping[Scope, Sequence[Any]] = {}
        #: The jobs that `_records` has counters of: device, id, type.
        self._jobs: list[tuple[str, str, str]] = []

    def connected(self, process: Process, now: float) -> None:
        """Take note of a new connection: it may lead to another QEMU."""
        before, self._process = self._process, process
        if not (process.pid and process == before):
            self.events.forget_nodes()
            self._names = ()
        self.jobs.connected(process, now)

    def ask(self) -> None:
        """Take note that what is asked from here on is asked after all events so far."""
        self.jobs.ask()
        self.events.ask()

    def know(self, entries: Sequence[schema.BlockStats], names: tuple[str, ...]) -> None:
        """Take the devices and nodes of query-blockstats; `names` are those of `chain.Walk`.

        Raises:
            ProtocolError: two entries cannot be told apart.
        """
        if names is not self._names and names != self._names:
            self.events.know(owners(entries))
            self._names = names

    def take(self, name: str, data: bytes, now: float) -> tuple[str, str]:
        """Take an event; return the id and the new status of a job that JOB_STATUS_CHANGE names.

        Raises:
            msgspec.DecodeError, UnicodeError, RecursionError: it does not follow QAPI.
        """
        self.events.take(name, data)
        job_id, status = self.jobs.take(name, data, now)
        if status in ("created", "null"):
            self.events.job_errors.forget(job_id)
        return job_id, status

    def records(self, jobs: Sequence[Job]) -> Mapping[Scope, Sequence[Any]]:
        """Return what is remembered; the same object until something happens.

        `jobs` are those that QEMU has.
        """
        names = [(job.device, job.job_id, job.job_type) for job in jobs]
        if self.events.changed or self.jobs.outcomes.changed or names != self._jobs:
            self._jobs = names
            self._records = {**self.events.records(jobs), **self.jobs.outcomes.records()}
        return self._records
