"""Which verdict of the exporter is about which job: by VM, id, type, time and error, never by the result.

Of jobs with one id, one that an event decides is counted at that event, or when an exporter that was
stopped goes on; a commit of the active layer is counted later, when its chain has been seen. What is
left after the first are the second, in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tests.truth.oracle import NEVER_RAN, truth
from tests.truth.record import PLAIN, Job, Record, Span, Verdict

#: Longest that an exporter on a busy machine takes to count what an event told it.
_AT_ONCE_SECONDS = 0.75
#: How far the clocks of two threads may be apart.
_CLOCK_SECONDS = 0.1


@dataclass
class Pair:
    """A job and what was said of it; a false end has no job, a job that was not counted no verdict."""

    job: Job | None
    verdict: Verdict | None


def match(record: Record, exporter: str) -> list[Pair]:
    """Return all that QEMU did and all that one exporter, over all its processes, said of it."""
    vms = {span.name for span in record.lives if _watched(span.name, exporter)}
    jobs: dict[tuple[str, str, str], list[Job]] = defaultdict(list)
    verdicts: dict[tuple[str, str, str], list[Verdict]] = defaultdict(list)
    for job in record.jobs:
        if job.vm in vms and truth(job) != NEVER_RAN:
            jobs[job.vm, job.id, _kind(job.type)].append(job)
    for verdict in record.verdicts:
        if verdict.vm in vms:
            verdicts[verdict.vm, verdict.id, _kind(verdict.type)].append(verdict)
    runs = [each for each in record.exporters if each.name == exporter]
    stops = [each for each in record.stops if each.name == exporter]
    found: list[Pair] = []
    for key in sorted(jobs.keys() | verdicts.keys()):
        found += _of_one_id(jobs[key], verdicts[key], runs, stops)
    return found


def _watched(vm: str, exporter: str) -> bool:
    return vm.startswith(exporter)


def _kind(type: str) -> str:
    """Return what tells apart jobs of one id: one that is no block job may have no type."""
    return "" if type in PLAIN else type


def _of_one_id(
    jobs: list[Job], verdicts: list[Verdict], runs: Sequence[Span], stops: Sequence[Span]
) -> list[Pair]:
    jobs = sorted(jobs, key=lambda job: job.ended or job.gone or job.created)
    verdicts = sorted(verdicts, key=lambda verdict: verdict.said)
    pairs: list[Pair] = []

    def take(job: Job, verdict: Verdict) -> None:
        pairs.append(Pair(job, verdict))
        jobs.remove(job)
        verdicts.remove(verdict)

    for job in [each for each in jobs if each.ended and not (each.active and each.ready)]:
        due = _resumed(job.ended, stops)
        near = [v for v in verdicts if -_CLOCK_SECONDS <= v.said - due <= _AT_ONCE_SECONDS]
        near = [v for v in near if not v.error or not job.error or v.error == job.error]
        if near:
            take(job, near[0])
    for verdict in list(verdicts):
        since, until = _process(verdict, runs)
        may = [job for job in jobs if _may_be(job, verdict, since, until)]
        before = [job for job in may if not job.ended or job.ended <= verdict.said + _CLOCK_SECONDS]
        # One that was said to have ended while it lived is matched too, so that this is seen.
        if chosen := (before or may):
            take(_oldest_that_is_due(chosen, verdict), verdict)
    return [*pairs, *(Pair(None, each) for each in verdicts), *(Pair(each, None) for each in jobs)]


def _oldest_that_is_due(jobs: list[Job], verdict: Verdict) -> Job:
    """Return the first that fits: those with the verdict's error before those with none."""
    same = [job for job in jobs if verdict.error and job.error == verdict.error]
    return (same or jobs)[0]


def _may_be(job: Job, verdict: Verdict, since: float, until: float) -> bool:
    """Whether the process that said it can have seen the job, and the job had begun."""
    gone = job.gone or job.ended
    return (
        job.created <= verdict.said + _CLOCK_SECONDS
        and (not gone or gone >= since)
        and job.created <= until
    )


def _process(verdict: Verdict, runs: Sequence[Span]) -> tuple[float, float]:
    for run in runs:
        if run.began <= verdict.said and (not run.ended or verdict.said <= run.ended):
            return run.began, run.ended or float("inf")
    return 0.0, float("inf")


def _resumed(at: float, stops: Sequence[Span]) -> float:
    """Return when an exporter could hear of something that happened."""
    for stop in stops:
        if stop.began - _CLOCK_SECONDS <= at <= stop.ended:
            return stop.ended
    return at
