"""The report of a run: rates by type and sight, and the whole story of each outcome that is wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tests.truth.judge import (
    ACTIVE,
    EXPORTED,
    FALSE_END,
    LOST,
    RIGHT,
    UNJUDGED,
    WEAKLY,
    WRONG,
    Judged,
    judge,
)
from tests.truth.mutation import flagged
from tests.truth.oracle import NEVER_RAN, truth
from tests.truth.record import Record
from tests.truth.sight import SIGHTS, WHOLE

_MARKS = (RIGHT, WRONG, WEAKLY, LOST, FALSE_END, UNJUDGED)
_BAD = (WRONG, LOST, FALSE_END)
#: So much of what happened to a VM before a job and after its verdict belongs to the story.
_BEFORE_SECONDS, _AFTER_SECONDS = 6.0, 2.0
_STORIES_LIMIT = 25
#: Lines that concern each job: scrapes, and what became of exporters.
_OF_ALL = ("exporter ", "dense: ", "calm: ", "life ", "ends ", "transaction")


class Report:
    """What is to be said of a run."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.exporters = sorted({each.name for each in record.exporters})
        self.judged = {name: judge(record, name) for name in self.exporters}
        self.flagged = {name: flagged(record, name) for name in self.exporters}

    @property
    def bad(self) -> list[Judged]:
        """Return what was wrong, lost or counted without a job."""
        return [each for all_ in self.judged.values() for each in all_ if each.mark in _BAD]

    @property
    def weak(self) -> list[Judged]:
        """Return the ends that were seen whole and not told."""
        return [each for all_ in self.judged.values() for each in all_ if each.mark == WEAKLY]

    @property
    def well(self) -> bool:
        """Whether nothing was wrong."""
        return not self.bad and not self.record.problems

    def whole(self) -> int:
        """Return how many jobs were seen whole and judged."""
        return sum(
            each.sight == WHOLE and each.mark != UNJUDGED
            for all_ in self.judged.values()
            for each in all_
        )

    def lines(self) -> Iterator[str]:
        """Yield the report."""
        record = self.record
        yield f"seed {record.seed}"
        for name in self.exporters:
            yield from self._of_one(name)
        yield ""
        yield "checks: " + ", ".join(f"{what} {n}" for what, n in sorted(record.checks.items()))
        ends = Counter(span.how for span in record.lives)
        yield f"lives of VMs: {len(record.lives)} " + str(dict(ends))
        yield f"lives of exporters: {len(record.exporters)}, stopped {len(record.stops)} times"
        never = sum(truth(job) == NEVER_RAN for job in record.jobs)
        yield f"jobs: {len(record.jobs)}, of which {never} never ran"
        for (mark, kind, why), times in self._reasons().most_common():
            yield f"{mark.upper()} ({times}x): {kind}: {why}"
        for problem in Counter(record.problems).most_common(40):
            yield f"PROBLEM ({problem[1]}x): {problem[0]}"
        for each in self.bad[:_STORIES_LIMIT]:
            yield from self.story(each)
        weak = [e for e in self.weak if not e.stopped and e.kind in (ACTIVE, EXPORTED)]
        for each in weak[:5]:
            yield from self.story(each)
        yield ""
        yield self.total()

    def total(self) -> str:
        """Return the last line."""
        counts = Counter(each.mark for all_ in self.judged.values() for each in all_)
        marks = ", ".join(f"{counts[mark]} {mark}" for mark in _MARKS)
        return (
            f"total: {self.whole()} jobs seen whole; {marks}; {len(self.record.problems)} problems"
        )

    def story(self, judged: Judged) -> Iterator[str]:
        """Yield all that is known of a job."""
        job, verdict = judged.pair.job, judged.pair.verdict
        yield ""
        yield f"{judged.mark.upper()}: {judged.kind}, sight {judged.sight}: {judged.why}"
        yield f"  job     {job}"
        yield f"  verdict {verdict}"
        vm = job.vm if job else verdict.vm if verdict else ""
        began = job.created if job else verdict.said if verdict else 0.0
        ended = max(verdict.said if verdict else 0.0, job.gone or job.ended if job else 0.0, began)
        since, until = began - _BEFORE_SECONDS, ended + _AFTER_SECONDS
        lines = [(line.at, line.what) for line in self.record.around(vm, since, until)]
        lines += [
            (
                each.said,
                f"        exporter: {each.id} {each.type} of {each.device!r}: {each.result}",
            )
            for each in self.record.verdicts
            if each.vm == vm and since <= each.said <= until
        ]
        ours = {job.device, job.id} if job else {verdict.id} if verdict else set()
        ours |= {
            each.id
            for each in self.record.jobs
            if job and job.device and (each.vm, each.device) == (job.vm, job.device)
            and since <= each.created <= until
        }  # fmt: skip
        words = {word for word in ours if word} | (
            {"loose ", "export "} if job and not job.device else set()
        )
        for at, what in sorted(lines):
            # What a VM's other disks did meanwhile does not belong to it.
            if what.startswith(_OF_ALL) or any(word in f"{what} " for word in words):
                yield f"  {at:.3f} {what}"

    def _reasons(self) -> Counter[tuple[str, str, str]]:
        """Return what was wrong, without the names of devices and errors."""
        return Counter(
            (each.mark, each.kind, re.sub(r"\w+-\w+(-\w+)?|'[^']*'|[0-9.]+", "X", each.why))
            for each in self.bad
        )

    def _of_one(self, name: str) -> Iterator[str]:
        judged = self.judged[name]
        rows = sorted({each.kind for each in judged})
        sights = [s for s in SIGHTS if any(each.sight == s for each in judged)]
        yield ""
        yield f"{name}: right / wrong / weak / lost / false end / not judged, by sight"
        table = [["type", *sights]]
        for row in rows:
            cells = [
                self._cell([e for e in judged if (e.kind, e.sight) == (row, s)]) for s in sights
            ]
            table.append([row, *cells])
        widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
        for line in table:
            yield "  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))
        for row in (ACTIVE, EXPORTED):
            known = [e for e in judged if (e.kind, e.sight) == (row, WHOLE) and e.mark != UNJUDGED]
            weak = [e for e in known if e.mark == WEAKLY]
            stopped = sum(e.stopped for e in weak)
            share = 100 * len(weak) / len(known) if known else 0.0
            yield (
                f"  weak, of {row}: {len(weak)} of {len(known)} ({share:.1f} %), "
                f"{stopped} of them while the exporter was stopped"
            )
        devices = Counter(
            "no device"
            if not e.pair.job.device
            else "right"
            if e.pair.verdict.device
            else "not known"
            for e in judged
            if e.pair.job and e.pair.verdict and e.sight == WHOLE
        )
        yield f"  devices of ended jobs: {dict(devices)}"
        types = sum(e.pair.verdict is not None and not e.pair.verdict.type for e in judged)
        yield f"  ended jobs whose type is not known: {types}"
        caught, changed = self.flagged[name]
        share = 100 * caught / changed if changed else 100.0
        yield f"  swapped outcomes that the judge flags: {caught} of {changed} ({share:.1f} %)"

    @staticmethod
    def _cell(judged: Sequence[Judged]) -> str:
        counts = Counter(each.mark for each in judged)
        return " / ".join(str(counts[mark]) for mark in _MARKS) if judged else "-"
