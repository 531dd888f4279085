"""Completes that were sent and do not show yet: no other command may cross them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from exporter.admin import job_verbs
from exporter.admin.timing import Timing
from exporter.collect import ScrapeTarget
from exporter.model import Job, VmState


@dataclass(frozen=True, slots=True)
class PendingComplete:
    """A complete that was sent."""

    #: That of the job: another job may get its id.
    first_seen_timestamp_seconds: float | None
    #: By the monotonic clock.
    sent_at: float


class PendingCompletes:
    """The completes of all VMs that were sent and do not show yet."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        #: Target -> job id -> complete; entries vanish with their target.
        self._sent: WeakKeyDictionary[ScrapeTarget, dict[str, PendingComplete]] = (
            WeakKeyDictionary()
        )

    def begin(self, member: ScrapeTarget, job: Job) -> None:
        """Note that a complete is about to be sent."""
        pivot = PendingComplete(job.first_seen_timestamp_seconds, time.monotonic())
        self._sent.setdefault(member, {})[job.job_id] = pivot

    def withdraw(self, member: ScrapeTarget, job_id: str) -> None:
        """Note that it was not sent after all."""
        del self._sent[member][job_id]

    def is_under_way(self, member: ScrapeTarget, job_id: str) -> bool:
        """Whether a complete was sent and did not show when `update` was last called."""
        return job_id in self._sent.get(member, {})

    def update(self, member: ScrapeTarget, snapshot: VmState) -> None:
        """Forget completes of jobs that are gone, and those that QEMU evidently did not carry out."""
        listed = {job.job_id: job for job in snapshot.jobs}
        since = time.monotonic() - self._timing.completing_seconds
        for job_id, pivot in list(self._sent.get(member, {}).items()):
            job = listed.get(job_id)
            first_seen = pivot.first_seen_timestamp_seconds
            same = job is not None and job.first_seen_timestamp_seconds == first_seen
            if job is None or not same or (pivot.sent_at < since and job_verbs.rests(job)):
                self.withdraw(member, job_id)
