"""Which verdict of the exporter is about which job: by VM, id, type, time and error, never by the result.

Of jobs with one id, one that an event decides is counted at that event, or when an exporter that was
stopped goes on; a commit of the active layer is counted later, when its chain has been seen. These are
matched after the others, in order, so that as little as possible is late, lost or about nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.truth.oracle import NEVER_RAN, truth
from tests.truth.record import PLAIN, Job, Record, Span, Verdict
from tests.truth.sight import ALIVE_SIGHT, LAST, NONE, PART, WHOLE, Sights

#: Longest that an exporter on a busy machine takes to count what an event told it.
_AT_ONCE_SECONDS = 0.75
#: QEMU and the exporter have one clock, which may be set a little meanwhile.
_CLOCK_SECONDS = 0.01
#: What it costs to believe in an end of no job, and in a job that was not counted, by its sight.
_FALSE_END = 1000.0
_SKIPPED = {WHOLE: 50.0, PART: 15.0, LAST: 5.0, NONE: 1.0, ALIVE_SIGHT: 1.0}


@dataclass
class Pair:
    """A job and what was said of it; a false end has no job, a job that was not counted no verdict."""

    job: Job | None
    verdict: Verdict | None
    #: The process of the exporter that said it, or ought to have, ran when the job ended: a job that was
    #: not dismissed is told of by the next process too.
    home: bool = True


def match(record: Record, exporter: str, sights: Sights) -> list[Pair]:
    """Return all that QEMU did, and all that each process of an exporter said of it."""
    vms = {span.name for span in record.lives if _watched(span.name, exporter)}
    jobs: dict[tuple[str, str, str], list[Job]] = defaultdict(list)
    verdicts: dict[tuple[str, str, str], list[Verdict]] = defaultdict(list)
    for job in record.jobs:
        if job.vm in vms and truth(job) != NEVER_RAN:
            jobs[job.vm, job.id, _kind(job.type)].append(job)
    for verdict in record.verdicts:
        if verdict.vm in vms:
            verdicts[verdict.vm, verdict.id, _kind(verdict.type)].append(verdict)
    stops = [each for each in record.stops if each.name == exporter]
    runs = [each for each in record.exporters if each.name == exporter]
    found: list[Pair] = []
    for key in sorted(jobs.keys() | verdicts.keys()):
        homes = {id(job): _home(job, runs) for job in jobs[key]}
        for run in runs:
            pairs = _of_one_id(
                [job for job in jobs[key] if _overlap(job, run)],
                [each for each in verdicts[key] if run.began <= each.said <= _end(run)],
                stops,
                sights,
            )
            for pair in pairs:
                pair.home = pair.job is None or homes[id(pair.job)] is run
            found += [pair for pair in pairs if pair.home or pair.verdict]
        found += [Pair(job, None) for job in jobs[key] if homes[id(job)] is None]
    return found


def _end(run: Span) -> float:
    return run.ended or math.inf


def _overlap(job: Job, run: Span) -> bool:
    """Whether a process can have seen a job, if only as one that is concluded and not dismissed."""
    return job.created <= _end(run) and (job.gone or math.inf) >= run.began


def _home(job: Job, runs: Sequence[Span]) -> Span | None:
    """Return the process that ran when a job ended, or else the last that can have seen it."""
    if job.ended:
        return next((run for run in runs if run.began <= job.ended <= _end(run)), None)
    return next((run for run in reversed(runs) if _overlap(job, run)), None)


def _watched(vm: str, exporter: str) -> bool:
    return vm.startswith(exporter)


def _kind(type: str) -> str:
    """Return what tells apart jobs of one id: one that is no block job may have no type."""
    return "" if type in PLAIN else type


def _of_one_id(
    jobs: list[Job], verdicts: list[Verdict], stops: Sequence[Span], sights: Sights
) -> list[Pair]:
    jobs = sorted(jobs, key=lambda job: job.ended or job.gone or job.created)
    verdicts = sorted(verdicts, key=lambda verdict: verdict.said)
    pairs: list[Pair] = []
    for _, n, m in sorted(_at_once(jobs, verdicts, stops)):
        job, verdict = jobs[n], verdicts[m]
        if not any(each.job is job or each.verdict is verdict for each in pairs):
            pairs.append(Pair(job, verdict))
    taken = {id(part) for pair in pairs for part in (pair.job, pair.verdict)}
    jobs = [each for each in jobs if id(each) not in taken]
    verdicts = [each for each in verdicts if id(each) not in taken]
    return [*pairs, *_aligned(jobs, verdicts, sights)]


def _at_once(
    jobs: Sequence[Job], verdicts: Sequence[Verdict], stops: Sequence[Span]
) -> Iterator[tuple[float, int, int]]:
    """Yield how long a verdict came after the event of a job, for each that may be about it."""
    for n, job in enumerate(jobs):
        if not job.ended or _waits_for_its_chain(job):
            continue
        due = _resumed(job.ended, stops)
        for m, verdict in enumerate(verdicts):
            late = verdict.said - due
            if -_CLOCK_SECONDS <= late <= _AT_ONCE_SECONDS and verdict.error in ("", job.error):
                yield abs(late), n, m


def _waits_for_its_chain(job: Job) -> bool:
    return bool(job.active and job.ready and job.event == "BLOCK_JOB_COMPLETED" and not job.error)


def _aligned(jobs: Sequence[Job], verdicts: Sequence[Verdict], sights: Sights) -> list[Pair]:
    """Return the cheapest pairs of which no two cross."""
    skips = [_SKIPPED[sights.of(job)] for job in jobs]
    # Cost and last step of each way through so many jobs and so many verdicts.
    costs: list[list[tuple[float, str]]] = [[(0.0, "")]]
    for m in range(1, len(verdicts) + 1):
        costs[0].append((m * _FALSE_END, "verdict"))
    for n, job in enumerate(jobs, 1):
        row = [(costs[n - 1][0][0] + skips[n - 1], "job")]
        for m, verdict in enumerate(verdicts, 1):
            row.append(
                min(
                    (costs[n - 1][m - 1][0] + _cost(job, verdict, sights), "both"),
                    (costs[n - 1][m][0] + skips[n - 1], "job"),
                    (row[m - 1][0] + _FALSE_END, "verdict"),
                )
            )
        costs.append(row)
    found: list[Pair] = []
    n, m = len(jobs), len(verdicts)
    while n or m:
        step = costs[n][m][1]
        taken = Pair(jobs[n - 1] if step != "verdict" else None,
                     verdicts[m - 1] if step != "job" else None)  # fmt: skip
        n, m = n - (taken.job is not None), m - (taken.verdict is not None)
        found.append(taken)
    return found


def _cost(job: Job, verdict: Verdict, sights: Sights) -> float:
    """Return how unlikely it is that a verdict is about a job."""
    gone = job.gone or math.inf
    if verdict.said < job.created - _CLOCK_SECONDS:
        return math.inf
    cost = 10.0 if gone < sights.since(job, verdict.said) else 0.0
    cost += math.sqrt(max(0.0, verdict.said - (job.ended or job.created)))
    if job.ended and verdict.said < job.ended - _CLOCK_SECONDS:
        cost += 40  # said while it lived
    if verdict.device and verdict.device != job.device:
        cost += 20
    if verdict.error != job.error:
        cost += 30
    return cost


def _resumed(at: float, stops: Sequence[Span]) -> float:
    """Return when an exporter could hear of something that happened."""
    for stop in stops:
        if stop.began - _CLOCK_SECONDS <= at <= stop.ended:
            return stop.ended
    return at
