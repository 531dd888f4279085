"""Subjects measured side by side: interleaved, so that what the machine does else hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.subjects import Subject
from bench.usage import cpu_seconds

#: QEMU goes back to sleep after its last answer.
_SETTLE_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Cost:
    """What one sweep took, in seconds."""

    wall: float
    #: CPU of the subject.
    cpu: float
    #: CPU of all that was asked.
    asked_cpu: float


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of one subject in all rounds."""

    rounds: Sequence[Cost]

    def mean(self, of: Callable[[Cost], float]) -> float:
        """The mean of the middle half: every fourth scrape has more to do, and a stray one counts
        for nothing.
        """
        values = sorted(map(of, self.rounds))
        quarter = len(values) // 4
        return statistics.fmean(values[quarter : len(values) - quarter])

    def median(self, of: Callable[[Cost], float]) -> float:
        return statistics.median(map(of, self.rounds))

    def p95(self, of: Callable[[Cost], float]) -> float:
        values = sorted(map(of, self.rounds))
        return values[min(len(values) - 1, int(0.95 * len(values)))]


def wall(cost: Cost) -> float:
    return cost.wall


def cpu(cost: Cost) -> float:
    return cost.cpu


def asked_cpu(cost: Cost) -> float:
    return cost.asked_cpu


def interleave(
    subjects: Sequence[Subject], asked: Sequence[int], rounds: int, period_seconds: float
) -> Mapping[str, Costs]:
    """Have each subject sweep once a round, and return what that cost, by its name.

    A round begins every `period_seconds`: the exporter joins scrapes that are closer than a
    second, and a refresh is due in every fourth.
    """
    found: dict[str, list[Cost]] = {subject.name: [] for subject in subjects}
    begin = time.monotonic()
    for index in range(rounds):
        time.sleep(max(0.0, begin + index * period_seconds - time.monotonic()))
        # Whoever comes first finds the caches cold.
        turn = index % len(subjects)
        for subject in (*subjects[turn:], *subjects[:turn]):
            found[subject.name].append(once(subject, asked))
    return {name: Costs(costs) for name, costs in found.items()}


def once(subject: Subject, asked: Sequence[int]) -> Cost:
    """Return what one sweep costs."""
    own, others = cpu_seconds(subject.pids), cpu_seconds(asked)
    took = subject.sweep()
    time.sleep(_SETTLE_SECONDS)
    return Cost(took, cpu_seconds(subject.pids) - own, cpu_seconds(asked) - others)
