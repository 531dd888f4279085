"""Right, wrong and weak: what the exporter said of each job, against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.truth.matching import Pair, match
from tests.truth.oracle import ALIVE, UNKNOWN, truth
from tests.truth.record import WEAK, Job, Record, Span, Verdict
from tests.truth.sight import NONE, PART, WHOLE, Sights

ACTIVE, EXPORTED = "commit, active", "commit, active, exported"
RIGHT, WRONG, WEAKLY, LOST, FALSE_END, UNJUDGED = (
    "right", "wrong", "weak", "lost", "false end", "not judged",
)  # fmt: skip


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


def judge(record: Record, exporter: str) -> list[Judged]:
    """Judge all that one exporter said, and all that it did not."""
    sights = Sights(record, exporter)
    stops = [each for each in record.stops if each.name == exporter]
    return [_judged(pair, sights, stops) for pair in match(record, exporter, sights)]


def kind_of(job: Job | None, verdict: Verdict | None) -> str:
    """Return the row of the report that a job belongs to."""
    if job is None:
        assert verdict is not None
        return verdict.type or "no block job"
    if job.type != "commit":
        return job.type
    if not job.active:
        return "commit, intermediate"
    if job.device:
        return ACTIVE
    # Where no device and no export uses the nodes, QEMU's graph is the same after both ends.
    return EXPORTED if job.exported else "commit, active, unused"


def _judged(pair: Pair, sights: Sights, stops: Sequence[Span]) -> Judged:
    job, verdict = pair.job, pair.verdict
    kind = kind_of(job, verdict)
    if job is None:
        return Judged(pair, kind, NONE, "no job", FALSE_END, "an end of a job that there was not")
    right, sight = truth(job), sights.of(job) if pair.home else NONE
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
