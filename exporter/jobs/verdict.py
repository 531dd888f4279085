"""How a job ended: a table from its known state and what was then observed to the verdict.

If QEMU's events do not decide, the backing chain does (`evidence`). There is a row for each pair
that can occur. A new way for a job to end is a new row.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

#: The results, in the order in which they are counted.
COMPLETED, FAILED, CANCELLED, UNVERIFIED, VANISHED = RESULTS = (
    "completed", "failed", "cancelled", "unverified", "vanished",
)  # fmt: skip


#: The error that QEMU sets for a job that was cancelled: strerror(ECANCELED).
_CANCELED = "Operation canceled"


class State(Enum):
    """The known state of a job whose end has not been counted."""

    #: It was created, and there is no sign that it ran.
    CREATED = auto()
    #: A block job whose own events decide: stream, backup, mirror.
    RUNNING = auto()
    #: A commit that was never ready, and so not of the active layer.
    MIDDLE = auto()
    #: A commit that was or may have been ready: cancelling it then sends the event of a success.
    ACTIVE = auto()
    #: These two, started by this program: no other job has such an id.
    OUR_MIDDLE = auto()
    OURS = auto()
    #: Not a block job: it sends only JOB_STATUS_CHANGE. Or a job of a type that is not known yet.
    PLAIN = auto()
    #: Not a block job, and it will not succeed: only query-jobs shows whether it was cancelled.
    ABORTING = auto()
    #: Not a block job, and only its last status was received.
    LATE = auto()

    # Commits that have ended, and whose chain will decide.

    #: An event reported its end without an error.
    SAID = auto()
    #: The same, and then the connection was lost: ends of other jobs may have been missed.
    CUT_OFF = auto()
    #: The same, or found `concluded` without an error after a lost connection; started by this program.
    KEPT = auto()
    #: No longer listed, and its end was not reported.
    GONE = auto()


class Seen(Enum):
    """What was observed when a job ended."""

    # The end, as QEMU reports it.

    #: BLOCK_JOB_COMPLETED with an error, or `concluded` with one.
    ERROR = auto()
    #: BLOCK_JOB_CANCELLED, or `concluded` with the error of a job that was cancelled.
    CANCELED = auto()
    #: BLOCK_JOB_COMPLETED without an error.
    SUCCESS = auto()
    #: Listed as `concluded`, without an error; no event was received.
    CONCLUDED = auto()
    #: `concluded` and then `null`, and no query listed it in between.
    DISMISSED = auto()
    #: No longer listed, or another job has its id, or there is another QEMU.
    MISSING = auto()

    # The chain of a commit that has ended.

    #: Its top is still there.
    TOP = auto()
    #: Its top is gone, and its base is the root.
    PIVOT = auto()
    #: Its top is gone, and new layers are above its base.
    COVERED = auto()
    #: No query listed its top, and no node of the VM has a backing file: whatever it was, it is gone.
    FLAT = auto()
    #: Its top is gone, but another job that has ended since may have removed it.
    RIVAL = auto()
    #: Neither its top nor the expected result is there: the chain was changed again.
    STRANGE = auto()
    #: There is no chain, or no earlier chain to compare it with.
    UNREADABLE = auto()


#: A result; or the state in which a job waits for its chain; or None for a job that never ran.
Verdict = str | State | None

TABLE: Mapping[tuple[State, Seen], Verdict] = {
    (State.CREATED, Seen.DISMISSED): None,
    (State.CREATED, Seen.MISSING): None,
    (State.RUNNING, Seen.ERROR): FAILED,
    (State.RUNNING, Seen.CANCELED): CANCELLED,
    (State.RUNNING, Seen.SUCCESS): COMPLETED,
    (State.RUNNING, Seen.CONCLUDED): COMPLETED,
    (State.RUNNING, Seen.MISSING): VANISHED,
    (State.MIDDLE, Seen.ERROR): FAILED,
    (State.MIDDLE, Seen.CANCELED): CANCELLED,
    (State.MIDDLE, Seen.SUCCESS): COMPLETED,
    # After a lost connection it may be another commit with the same id.
    (State.MIDDLE, Seen.CONCLUDED): UNVERIFIED,
    (State.MIDDLE, Seen.MISSING): State.GONE,
    (State.ACTIVE, Seen.ERROR): FAILED,
    (State.ACTIVE, Seen.CANCELED): CANCELLED,
    (State.ACTIVE, Seen.SUCCESS): State.SAID,
    (State.ACTIVE, Seen.CONCLUDED): UNVERIFIED,
    (State.ACTIVE, Seen.MISSING): State.GONE,
    (State.OUR_MIDDLE, Seen.ERROR): FAILED,
    (State.OUR_MIDDLE, Seen.CANCELED): CANCELLED,
    (State.OUR_MIDDLE, Seen.SUCCESS): COMPLETED,
    (State.OUR_MIDDLE, Seen.CONCLUDED): COMPLETED,
    (State.OUR_MIDDLE, Seen.MISSING): State.GONE,
    (State.OURS, Seen.ERROR): FAILED,
    (State.OURS, Seen.CANCELED): CANCELLED,
    (State.OURS, Seen.SUCCESS): State.SAID,
    (State.OURS, Seen.CONCLUDED): State.KEPT,
    (State.OURS, Seen.MISSING): State.GONE,
    (State.PLAIN, Seen.ERROR): FAILED,
    (State.PLAIN, Seen.CANCELED): CANCELLED,
    (State.PLAIN, Seen.SUCCESS): COMPLETED,
    (State.PLAIN, Seen.CONCLUDED): COMPLETED,
    (State.PLAIN, Seen.DISMISSED): COMPLETED,
    (State.PLAIN, Seen.MISSING): VANISHED,
    (State.ABORTING, Seen.ERROR): FAILED,
    (State.ABORTING, Seen.CANCELED): CANCELLED,
    (State.ABORTING, Seen.SUCCESS): UNVERIFIED,
    (State.ABORTING, Seen.CONCLUDED): UNVERIFIED,
    (State.ABORTING, Seen.DISMISSED): UNVERIFIED,
    (State.ABORTING, Seen.MISSING): VANISHED,
    (State.LATE, Seen.DISMISSED): UNVERIFIED,
    (State.LATE, Seen.MISSING): VANISHED,
    (State.SAID, Seen.TOP): CANCELLED,
    (State.SAID, Seen.PIVOT): COMPLETED,
    (State.SAID, Seen.COVERED): COMPLETED,
    (State.SAID, Seen.FLAT): COMPLETED,
    (State.SAID, Seen.RIVAL): UNVERIFIED,
    (State.SAID, Seen.STRANGE): UNVERIFIED,
    (State.SAID, Seen.UNREADABLE): UNVERIFIED,
    # A top that is still there was not merged. One that is gone may have been removed by a job whose
    # events were missed.
    (State.CUT_OFF, Seen.TOP): CANCELLED,
    (State.CUT_OFF, Seen.PIVOT): UNVERIFIED,
    (State.CUT_OFF, Seen.COVERED): UNVERIFIED,
    (State.CUT_OFF, Seen.RIVAL): UNVERIFIED,
    (State.CUT_OFF, Seen.STRANGE): UNVERIFIED,
    (State.CUT_OFF, Seen.UNREADABLE): UNVERIFIED,
    # A layer above the base may be the target of a mirror.
    (State.KEPT, Seen.TOP): CANCELLED,
    (State.KEPT, Seen.PIVOT): COMPLETED,
    (State.KEPT, Seen.COVERED): UNVERIFIED,
    (State.KEPT, Seen.RIVAL): UNVERIFIED,
    (State.KEPT, Seen.STRANGE): UNVERIFIED,
    (State.KEPT, Seen.UNREADABLE): UNVERIFIED,
    (State.GONE, Seen.TOP): VANISHED,
    (State.GONE, Seen.PIVOT): UNVERIFIED,
    (State.GONE, Seen.COVERED): UNVERIFIED,
    (State.GONE, Seen.RIVAL): UNVERIFIED,
    (State.GONE, Seen.STRANGE): VANISHED,
    (State.GONE, Seen.UNREADABLE): VANISHED,
}  # fmt: skip


def of_error(error: str) -> Seen:
    """Return whether the error of a `concluded` job means that it failed or was cancelled."""
    return Seen.CANCELED if error == _CANCELED else Seen.ERROR


def verdict(state: State, seen: Seen) -> Verdict:
    """Return the verdict on a job in `state` of which `seen` was observed."""
    return TABLE[state, seen]


def result(state: State, seen: Seen) -> str:
    """Return the result of a commit that waited for its chain."""
    found = TABLE[state, seen]
    assert isinstance(found, str)
    return found
