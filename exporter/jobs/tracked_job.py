"""The tracked state of one job."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from exporter.jobs.evidence import Span
from exporter.jobs.verdict import State
from exporter.model import BLOCK_JOB_TYPES, Merge, Place

#: JobStatus of a job that has not ended.
LIVE = frozenset({"created", "running", "paused", "ready", "standby"})


#: JobStatus of a job that waits to be completed.
READY = frozenset({"ready", "standby"})


class Step(IntEnum):
    """How far a job has come, by the events received."""

    NAMED = 0
    STARTED = 1
    #: It is failing, or was cancelled.
    ABORTED = 2


class Heard(Enum):
    """Whether events of a job may have been missed."""

    #: None was missed since it was last known not to be ready.
    WHOLE = 1
    #: Some may have been: it may already have been ready.
    PART = 2
    #: It is known from before the connection was lost, and has not been listed since.
    STALE = 3


class Lister(Enum):
    """Which query has listed a job."""

    NONE = 0
    BLOCK_JOBS = 1
    #: Only query-jobs: it is not a block job.
    JOBS = 2


@dataclass(slots=True)
class TrackedJob:
    """The state of a job, from events and queries."""

    first_seen: float
    last_progress: float
    #: Its number in the order in which jobs were first seen; an id may be used again.
    serial: int = 0
    type: str = ""
    progress: int = -1
    ready_at: float | None = None
    #: Where it works, and the layers of its device when a query last listed it.
    place: Place | None = None
    span: Span | None = None
    #: The same for nodes under no device.
    bare: Merge | None = None
    step: Step = Step.NAMED
    sight: Heard = Heard.PART
    lister: Lister = Lister.NONE
    #: Whether an event has reported `concluded`.
    concluded: bool = False
    #: Whether this program started it.
    ours: bool = False
    ended: bool = False

    @property
    def state(self) -> State:
        """Its state in the table of verdicts."""
        if self.step is Step.NAMED and self.lister is Lister.NONE:
            late = self.concluded and self.sight is not Heard.WHOLE
            return State.LATE if late else State.CREATED
        if self.type == "commit":
            if not self.may_have_been_ready:
                return State.OUR_MIDDLE if self.ours else State.MIDDLE
            return State.OURS if self.ours else State.ACTIVE
        if self.type in BLOCK_JOB_TYPES:
            return State.RUNNING
        return State.ABORTING if self.step is Step.ABORTED else State.PLAIN

    @property
    def may_have_been_ready(self) -> bool:
        """Whether it may have waited to be completed: a commit of the active layer does."""
        if self.ready_at is not None:
            return True
        if self.place is not None and self.place.top:
            return self.place.top == "0"
        return self.sight is not Heard.WHOLE

    def hear(self, status: str, now: float) -> None:
        """Process a status from JOB_STATUS_CHANGE, other than `created` and `null`."""
        if status == "aborting":
            if self.step is Step.STARTED or self.sight is not Heard.WHOLE:
                self.step = Step.ABORTED
        elif status == "concluded":
            self.concluded = True
            if self.state is State.CREATED:
                self.ended = True  # its transaction was refused: it never ran
        else:
            self.step = max(self.step, Step.STARTED)
            if status in READY:
                self.ready_at = self.ready_at or now

    def list(self, type: str, status: str, progress: int, now: float) -> None:
        """Process its entry in the reply to a query."""
        if progress != self.progress:
            self.progress, self.last_progress = progress, now
        self.type = type
        if self.sight is Heard.STALE:
            self.sight = Heard.PART
        if status != "created":
            self.step = max(self.step, Step.STARTED)

    def is_not(self, type: str, status: str, progress: int) -> bool:
        """Whether an entry in the reply to a query is another job with the same id."""
        return (
            (bool(self.type) and self.type != type)
            or (self.ended and status in LIVE)
            or (self.sight is Heard.STALE and progress < self.progress)
        )
