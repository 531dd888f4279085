"""A judge that is judged: outcomes that are swapped in what the exporter is believed to have said."""

from __future__ import annotations

from dataclasses import replace

from tests.truth.judge import FALSE_END, WRONG, judge
from tests.truth.record import CANCELLED, COMPLETED, FAILED, Record

#: Taken in turn: completed and cancelled are swapped, then failed and completed.
_TURNS = (
    {COMPLETED: CANCELLED, CANCELLED: COMPLETED, FAILED: COMPLETED},
    {COMPLETED: FAILED, FAILED: COMPLETED, CANCELLED: COMPLETED},
)


def swapped(record: Record) -> Record:
    """Return a record in which every outcome that is not weak is another one."""
    turn = 0
    verdicts = []
    for verdict in record.verdicts:
        if verdict.result in _TURNS[0]:
            verdicts.append(replace(verdict, result=_TURNS[turn % 2][verdict.result]))
            turn += 1
        else:
            verdicts.append(verdict)
    return replace(record, verdicts=verdicts)


def flagged(record: Record, exporter: str) -> tuple[int, int]:
    """Return how many of the swapped outcomes the judge flags, and how many there are.

    One that was flagged before it was swapped is in neither.
    """
    bad = {WRONG, FALSE_END}
    pairs = list(zip(judge(record, exporter), judge(swapped(record), exporter), strict=True))
    changed = [
        after
        for before, after in pairs
        if before.pair.verdict is not None
        and before.pair.verdict.result in _TURNS[0]
        and before.mark not in bad
    ]
    return sum(each.mark in bad for each in changed), len(changed)
