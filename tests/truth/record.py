"""What was seen in a run, as plain data: the jobs of QEMU, the verdicts of the exporter, and when who was there.

Every time is in seconds since the epoch, by the clock of this machine.
"""

from __future__ import annotations

import bisect
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
#: What the exporter says where it cannot know; neither is ever a success.
WEAK = frozenset({"unverified", "vanished"})
#: What is no block job: QEMU tells nothing but its state.
PLAIN = frozenset({"create", "snapshot-save", "snapshot-load", "snapshot-delete", "amend"})
#: A scrape joins a sweep that began at most this long before.
JOIN_SECONDS = 1.0


@dataclass
class Job:
    """A job of QEMU, by QEMU's own events and by what the driver did to it."""

    vm: str
    life: int
    id: str
    #: QEMU's type of it.
    type: str
    created: float
    #: The `device` label that it must have, empty for nodes under no device.
    device: str = ""
    #: A commit of the active layer.
    active: bool = False
    #: An export uses its nodes; where no device does either, nobody uses them.
    exported: bool = False
    #: The device was unplugged, or has another name, since the job began.
    moved: bool = False
    #: QEMU set it to work.
    ran: bool = False
    ready: float = 0.0
    #: When QEMU said how it ended, 0 where it never did.
    ended: float = 0.0
    #: When QEMU had it no more, 0 where the VM ended first.
    gone: float = 0.0
    #: The event that ended it: BLOCK_JOB_COMPLETED or BLOCK_JOB_CANCELLED; of others `concluded`.
    event: str = ""
    error: str = ""
    aborting: bool = False
    #: The last status that QEMU told.
    status: str = "created"
    #: The last that the driver asked of it and QEMU accepted: complete or cancel.
    asked: str = ""
    #: Whether the top of an active commit was gone from its chain right after the end.
    pivoted: bool | None = None


@dataclass
class Verdict:
    """An end that the exporter counted."""

    #: Which process of the exporter said it, and which of its accounts it went into.
    exporter: str
    account: int
    #: When it was said, and when the exporter says that it learnt of it.
    said: float
    at: float
    vm: str
    id: str
    device: str
    type: str
    result: str
    error: str = ""


@dataclass
class Scrape:
    """An answer of the exporter, and which VMs it said were up."""

    exporter: str
    began: float
    ended: float
    up: list[str]


@dataclass
class Span:
    """The life of a VM or of an exporter, or a time in which an exporter was stopped."""

    name: str
    number: int
    began: float
    ended: float = 0.0
    how: str = ""


@dataclass
class Line:
    """Something that was done or seen, for the story of a job."""

    at: float
    vm: str
    what: str


@dataclass
class Record:
    """A run. Lists are in the order of time."""

    seed: int = 0
    jobs: list[Job] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    scrapes: list[Scrape] = field(default_factory=list)
    lives: list[Span] = field(default_factory=list)
    exporters: list[Span] = field(default_factory=list)
    stops: list[Span] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    #: What was wrong with an exposition or with an answer of the API.
    problems: list[str] = field(default_factory=list)
    #: What was checked, how often, and what was not known.
    checks: dict[str, int] = field(default_factory=dict)

    def check(self, what: str, times: int = 1) -> None:
        """Count a check."""
        self.checks[what] = self.checks.get(what, 0) + times

    def say(self, at: float, vm: str, what: str) -> None:
        """Add a line to the story of a VM."""
        self.lines.append(Line(at, vm, what))

    def life(self, job: Job) -> Span:
        """Return the life of the VM in which a job was."""
        return next(s for s in self.lives if (s.name, s.number) == (job.vm, job.life))

    def around(self, vm: str, since: float, until: float) -> list[Line]:
        """Return what happened to a VM in a time."""
        lines = sorted(
            (line for line in self.lines if line.vm in (vm, "")), key=lambda each: each.at
        )
        times = [line.at for line in lines]
        return lines[bisect.bisect_left(times, since) : bisect.bisect_right(times, until)]

    def write(self, path: Path) -> None:
        """Write it down, for another judge."""
        path.write_text(json.dumps(asdict(self), indent=1), "utf-8")


_PARTS: dict[str, Any] = {
    "jobs": Job, "verdicts": Verdict, "scrapes": Scrape, "lives": Span, "exporters": Span,
    "stops": Span, "lines": Line,
}  # fmt: skip


def read(path: Path) -> Record:
    """Return what `Record.write` wrote."""
    parts = json.loads(path.read_text("utf-8"))
    made = {name: [kind(**each) for each in parts[name]] for name, kind in _PARTS.items()}
    return Record(seed=parts["seed"], problems=parts["problems"], checks=parts["checks"], **made)
