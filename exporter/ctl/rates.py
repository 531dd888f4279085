"""The speed of jobs, from their progress at the last polls."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from exporter.api import Job

#: Number of polls that a rate spans: over a single one it jumps.
_POLLS = 10


class Rates:
    """The last positions of jobs. Times are from any clock of the caller's that never goes back."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], deque[tuple[float, int]]] = {}

    def update(self, jobs: Iterable[Job], now_seconds: float) -> None:
        """Record the present offsets of jobs, and forget jobs that are absent, ready or ended."""
        before, self._seen = self._seen, {}
        for job in jobs:
            if job.offset_bytes is None or job.ready or job.outcome is not None:
                continue
            key = job.vm, job.job_id
            points = before.get(key, deque(maxlen=_POLLS))
            if points and job.offset_bytes < points[-1][1]:
                points.clear()  # another job of the same name
            points.append((now_seconds, job.offset_bytes))
            self._seen[key] = points

    def bytes_per_second(self, job: Job) -> float | None:
        """Return the speed of a job; None before the second poll."""
        points = self._seen.get((job.vm, job.job_id))
        if points is None or len(points) < 2:
            return None
        (first_seconds, first), (last_seconds, last) = points[0], points[-1]
        seconds = last_seconds - first_seconds
        return (last - first) / seconds if seconds > 0 else None

    def seconds_left(self, job: Job) -> float | None:
        """Return how long a job still needs at its speed; None if it makes no progress."""
        rate = self.bytes_per_second(job)
        if not rate or job.offset_bytes is None or job.length_bytes is None:
            return None
        return max(job.length_bytes - job.offset_bytes, 0) / rate
