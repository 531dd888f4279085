"""What is known of one job that QEMU has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.graph import Place

#: JobStatus of a job that has not ended.
LIVE = frozenset({"created", "running", "paused", "ready", "standby"})


@dataclass(slots=True)
class Known:
    """A job, as events and queries told of it."""

    first_seen: float
    last_progress: float
    type: str = ""
    progress: int = -1
    ready_at: float | None = None
    #: Where it works, and the layers of its device when a query last listed it.
    place: Place | None = None
    chain: Sequence[str] = ()
    listed: bool = False
    #: Only query-jobs lists it.
    plain: bool = False
    started: bool = False
    aborting: bool = False
    #: `concluded`, as an event said.
    concluded: bool = False
    #: Nothing was missed since it was last known not to be ready.
    unbroken: bool = False
    #: Known from before the connection was lost, and not seen since.
    stale: bool = False
    ended: bool = False

    @property
    def may_have_been_ready(self) -> bool:
        """Whether it may have waited to be completed: a commit of the active layer does."""
        if self.ready_at is not None:
            return True
        if self.place is not None and self.place.top:
            return self.place.top == "0"
        return not self.unbroken

    def is_not(self, type: str, status: str, progress: int) -> bool:
        """Whether what a query tells is another job, which has the same id."""
        return (
            (bool(self.type) and self.type != type)
            or (self.ended and status in LIVE)
            or (self.stale and progress < self.progress)
        )
