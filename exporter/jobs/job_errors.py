"""Counts the I/O errors of one VM's jobs: BLOCK_JOB_ERROR, by job.

A job with on-error=ignore retries forever, with thousands of errors per second, while QEMU reports
it as running or ready and its I/O status as ok.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from exporter.model import BLOCK_JOB_TYPES, Job, JobError

#: IoOperationType and BlockErrorAction.
_OPERATIONS = ("read", "write")
_ACTIONS = ("ignore", "report", "stop")
OTHER = "other"
#: A count of 0 for every operation and action that QEMU has.
NO_ERRORS = {(operation, action): 0 for operation in _OPERATIONS for action in _ACTIONS}
#: Most jobs of one VM with error counters of their own.
_JOBS_LIMIT = 1000


def words(operation: str, action: str) -> tuple[str, str]:
    """Return the operation and action of an event; a word that QAPI does not have becomes `other`."""
    return (
        operation if operation in _OPERATIONS else OTHER,
        action if action in _ACTIONS else OTHER,
    )


class JobErrors:
    """Counts the errors of each job; a job without errors has counters at 0."""

    def __init__(self) -> None:
        #: Job id -> (operation, action) -> errors.
        self._counts: dict[str, dict[tuple[str, str], int]] = {}
        #: Ids of jobs with errors since `records`: perhaps no reply has listed them yet.
        self._new: set[str] = set()

    def count(self, job_id: str, operation: str, action: str) -> None:
        """Count an error of a job."""
        counts = self._counts.get(job_id)
        if counts is None:
            if len(self._counts) >= _JOBS_LIMIT:
                return
            counts = self._counts[job_id] = Counter()
        counts[operation, action] += 1
        self._new.add(job_id)

    def forget(self, job_id: str) -> None:
        """Forget the job with this id: it is gone, or another job has the id now."""
        self._counts.pop(job_id, None)

    def clear(self) -> None:
        """Forget all jobs: they belonged to another QEMU."""
        self._counts.clear()

    def records(self, jobs: Sequence[Job]) -> list[JobError]:
        """Return the counters of the jobs that QEMU has, and forget those of all others."""
        there = self._new.union(job.job_id for job in jobs)
        self._counts = {job_id: n for job_id, n in self._counts.items() if job_id in there}
        self._new.clear()
        return [
            JobError(job.device, job.job_id, job.job_type, *key, count)
            for job in jobs
            if job.job_type in BLOCK_JOB_TYPES
            for key, count in sorted((NO_ERRORS | self._counts.get(job.job_id, {})).items())
        ]
