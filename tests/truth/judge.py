"""Right, wrong and weak: what the exporter said of each job, against the truth."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from tests.truth.matching import Pair, match
from tests.truth.oracle import ALIVE, UNKNOWN, truth
from tests.truth.record import JOIN_SECONDS, WEAK, Job, Record, Scrape, Span, Verdict

RIGHT, WRONG, WEAKLY, LOST, FALSE_END, UNJUDGED = (
    "right", "wrong", "weak", "lost", "false end", "not judged",
)  # fmt: skip
#: Of whom the exporter was connected: all the time, from the middle of it, until so shortly after its
#: end that it may not have heard of it, never; `alive` is a job that its VM did not outlive.
WHOLE, PART, LAST, NONE, ALIVE_SIGHT = "whole", "part", "last", "none", "alive"
SIGHTS = (WHOLE, PART, LAST, NONE, ALIVE_SIGHT)
#: A connection that ended so soon after a job may have ended before its event was read.
_LAST_SECONDS = 0.3


@dataclass
class Judged:
    """A job or a verdict, and what is to be said of it."""

    pair: Pair
    kind: str
    sight: str
    truth: str
    mark: str
    why: str = ""
    #: The exporter was stopped while the job was ready or ended.
    stopped: bool = False


class Sights:
    """When the exporter was connected to a VM, as its scrapes show it."""

    def __init__(self, record: Record, exporter: str) -> None:
        self._scrapes = sorted(
            (each for each in record.scrapes if each.exporter == exporter), key=lambda s: s.ended
        )
        self._ends = [each.ended for each in self._scrapes]
        self._runs = [each for each in record.exporters if each.name == exporter]
        self._cached: dict[tuple[str, int], list[tuple[float, float]]] = {}
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
        """Whether a sweep began and ended after an instant in the life of the job's VM."""
        life = self._record.life(job)
        later = self._scrapes[bisect.bisect_left(self._ends, at) :]
        return any(
            each.began - JOIN_SECONDS >= at and job.vm in each.up
            for each in later
            if not life.ended or each.ended <= life.ended
        )

    def scraped_within(self, job: Job, since: float, until: float) -> bool:
        """Whether a sweep began and ended between two instants."""
        return any(
            each.began - JOIN_SECONDS >= since and each.ended <= until and job.vm in each.up
            for each in self._scrapes
        )

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


def judge(record: Record, exporter: str) -> list[Judged]:
    """Judge all that one exporter said, and all that it did not."""
    sights = Sights(record, exporter)
    stops = [each for each in record.stops if each.name == exporter]
    return [_judged(pair, sights, stops) for pair in match(record, exporter)]


def kind_of(job: Job | None, verdict: Verdict | None) -> str:
    """Return the row of the report that a job belongs to."""
    if job is None:
        assert verdict is not None
        return verdict.type or "no block job"
    if job.type != "commit":
        return job.type
    if job.active:
        return "commit, active" if job.device else "commit, active, no device"
    return "commit, intermediate"


def _judged(pair: Pair, sights: Sights, stops: Sequence[Span]) -> Judged:
    job, verdict = pair.job, pair.verdict
    kind = kind_of(job, verdict)
    if job is None:
        return Judged(pair, kind, NONE, "no job", FALSE_END, "an end of a job that there was not")
    right, sight = truth(job), sights.of(job)
    made = Judged(pair, kind, sight, right, UNJUDGED)
    made.stopped = any(
        stop.began <= job.ended and (job.ready or job.created) <= stop.ended for stop in stops
    )
    if verdict is None:
        _not_counted(made, job, sights)
    else:
        _counted(made, job, verdict, sights)
    return made


def _not_counted(made: Judged, job: Job, sights: Sights) -> None:
    """Judge a job that was not counted: it is lost if the exporter could know of it."""
    if not job.ended:
        return
    seen = made.sight == WHOLE or (
        made.sight == PART and sights.scraped_within(job, job.created, job.ended)
    )
    if seen and sights.scraped_after(job, job.ended):
        made.mark, made.why = LOST, "an end that was not counted"


def _counted(made: Judged, job: Job, verdict: Verdict, sights: Sights) -> None:
    wrong = _wrong(made, job, verdict)
    if wrong:
        made.mark, made.why = WRONG, wrong
    elif verdict.result in WEAK:
        # An active commit is judged by its chain, which only a scrape (or a look) shows.
        knowable = not (job.active and job.ready) or sights.scraped_after(job, job.ended)
        if made.sight == WHOLE and knowable and made.truth != UNKNOWN:
            made.mark = WEAKLY
    elif made.truth != UNKNOWN:
        made.mark = RIGHT


def _wrong(made: Judged, job: Job, verdict: Verdict) -> str:
    """Return what is wrong with a verdict, empty where nothing is."""
    if verdict.result not in WEAK and made.truth != UNKNOWN and verdict.result != made.truth:
        if made.truth == ALIVE:
            return f"said {verdict.result}, and it was alive"
        return f"said {verdict.result}, and it was {made.truth}"
    if job.ended and verdict.result not in WEAK and verdict.said < job.ended - 0.1:
        return f"said {verdict.result} {job.ended - verdict.said:.2f} s before its end"
    if verdict.type not in (job.type, ""):
        return f"said type {verdict.type}, and it was {job.type}"
    if verdict.error and job.error and verdict.error != job.error:
        return f"said error {verdict.error!r}, and it was {job.error!r}"
    if verdict.device not in (job.device, "") and not job.moved:
        return f"said device {verdict.device}, and it was {job.device or 'none'}"
    return ""
