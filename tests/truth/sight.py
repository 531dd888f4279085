"""What the exporter could see of a job: when it was connected to the VM, as its scrapes show it."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from tests.truth.record import JOIN_SECONDS, Job, Record, Span

#: Of whom the exporter was connected: all the time, from the middle of it, until so shortly after its
#: end that it may not have heard of it, never; `alive` is a job that its VM did not outlive.
WHOLE, PART, LAST, NONE, ALIVE_SIGHT = "whole", "part", "last", "none", "alive"
SIGHTS = (WHOLE, PART, LAST, NONE, ALIVE_SIGHT)
#: A connection that ended so soon after a job may have ended before its event was read.
_LAST_SECONDS = 0.3
#: How far the clocks of two threads may be apart.
_CLOCK_SECONDS = 0.1


class Sights:
    """When the exporter was connected to a VM, as its scrapes show it."""

    def __init__(self, record: Record, exporter: str) -> None:
        self._scrapes = sorted(
            (each for each in record.scrapes if each.exporter == exporter), key=lambda s: s.ended
        )
        self._ends = [each.ended for each in self._scrapes]
        self._runs = [each for each in record.exporters if each.name == exporter]
        self._cached: dict[tuple[str, int], list[tuple[float, float]]] = {}
        self._first: dict[tuple[str, int, int], float] = {}
        self._record = record

    def of(self, job: Job) -> str:
        """Return what the exporter could see of a job."""
        life = self._record.life(job)
        spans = self._connected(life)
        end = job.ended
        if not end:
            return ALIVE_SIGHT
        for began, ended in spans:
            if began <= job.created and ended >= end:
                return WHOLE if ended - end >= _LAST_SECONDS else LAST
        if any(began <= end <= ended for began, ended in spans):
            return PART
        return NONE

    def scraped_after(self, job: Job, at: float) -> bool:
        """Whether a sweep of the same process began and ended after an instant, while the VM lived."""
        life, run = self._record.life(job), self._run(at)
        if run is None:
            return False
        until = min(life.ended or float("inf"), run.ended or float("inf"))
        later = self._scrapes[bisect.bisect_left(self._ends, at) :]
        return any(
            each.began - JOIN_SECONDS >= at and each.ended <= until and job.vm in each.up
            for each in later
        )

    def scraped_within(self, job: Job, since: float, until: float) -> bool:
        """Whether a sweep began and ended between two instants."""
        return any(
            each.began - JOIN_SECONDS >= since and each.ended <= until and job.vm in each.up
            for each in self._scrapes
        )

    def since(self, job: Job, at: float) -> float:
        """Return the earliest time at which the exporter that ran at an instant can have been connected."""
        run = self._run(at)
        if run is None:
            return 0.0
        life = self._record.life(job)
        key = (life.name, life.number, run.number)
        if key not in self._first:
            until = min(run.ended or float("inf"), life.ended or float("inf"))
            seen = [
                each.began
                for each in self._scrapes
                if run.began <= each.ended <= until
                and each.ended >= life.began
                and job.vm in each.up
            ]
            self._first[key] = (seen[0] if seen else until) - JOIN_SECONDS - _CLOCK_SECONDS
        return self._first[key]

    def _run(self, at: float) -> Span | None:
        runs = (r for r in self._runs if r.began <= at and (not r.ended or at <= r.ended))
        return next(runs, None)

    def _connected(self, life: Span) -> list[tuple[float, float]]:
        key = (life.name, life.number)
        if key not in self._cached:
            self._cached[key] = list(self._spans(life))
        return self._cached[key]

    def _spans(self, life: Span) -> Sequence[tuple[float, float]]:
        """Return since when and until when, one for each process of the exporter."""
        until = life.ended or float("inf")
        found = []
        for run in self._runs:
            last = min(run.ended or float("inf"), until)
            mine = [
                each
                for each in self._scrapes
                if max(run.began, life.began) <= each.began - JOIN_SECONDS and each.ended <= last
            ]
            since: float | None = None
            for each in mine:
                up = life.name in each.up
                if up and since is None:
                    since = each.ended
                elif not up and since is not None:
                    found.append((since, each.began))
                    since = None
            if since is not None:
                found.append((since, last))
        return found
