"""The jobs that were told to complete, until that shows: nothing may cross it."""

from __future__ import annotations

import time

from exporter import guards
from exporter.model import Job, Snapshot

#: A job that was told to complete is no longer at rest by then, unless it was not told after all.
_COMPLETING_SECONDS = 5.0


class Pivots:
    """What was sent and has not shown yet, of all VMs."""

    def __init__(self) -> None:
        #: (VM, job id) -> when the job was first seen, and when it was told, by the monotonic clock.
        self._sent: dict[tuple[str, str], tuple[float | None, float]] = {}

    def begin(self, vm: str, job: Job) -> None:
        """Note that a job is about to be told to complete."""
        self._sent[vm, job.job_id] = (job.first_seen_timestamp_seconds, time.monotonic())

    def withdraw(self, vm: str, job_id: str) -> None:
        """Note that it was not told after all."""
        del self._sent[vm, job_id]

    def is_under_way(self, vm: str, job_id: str) -> bool:
        """Whether a job was told to complete, as far as `forget_past` was asked last."""
        return (vm, job_id) in self._sent

    def forget_past(self, snapshot: Snapshot) -> None:
        """Forget what was sent for jobs that are gone, or that have not taken it."""
        listed = {job.job_id: job for job in snapshot.jobs}
        since = time.monotonic() - _COMPLETING_SECONDS
        for key, (first_seen, sent) in list(self._sent.items()):
            if key[0] != snapshot.vm:
                continue
            job = listed.get(key[1])
            same = job is not None and job.first_seen_timestamp_seconds == first_seen
            if job is None or not same or (sent < since and guards.rests(job)):
                del self._sent[key]
