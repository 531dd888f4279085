"""How a job ended: what was known of it, what was observed then, and the verdict, in one table.

Where QEMU's events do not decide, the backing chain does (`evidence`). A row is here for each pair
that can come up. A new way for a job to end is a new row.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

#: The results, in the order in which they are counted.
COMPLETED, FAILED, CANCELLED, UNVERIFIED, VANISHED = RESULTS = (
    "completed", "failed", "cancelled", "unverified", "vanished",
)  # fmt: skip


#: The error that QEMU gives to a job that was cancelled: strerror(ECANCELED).
_CANCELED = "Operation canceled"


class State(Enum):
    """What is known of a job that has not been counted."""

    #: It was created, and nothing says that it ran.
    CREATED = auto()
    #: A block job whose own word decides: stream, backup, mirror.
    RUNNING = auto()
    #: A commit that was never ready, so not one of the active layer.
    MIDDLE = auto()
    #: A commit that was ready, or may have been: to cancel it then sends the event of a success.
    ACTIVE = auto()
    #: The two, started by this program: the id is its own.
    OUR_MIDDLE = auto()
    OURS = auto()
    #: Not a block job: JOB_STATUS_CHANGE is the only event of it. Or one of a type of tomorrow.
    PLAIN = auto()
    #: Not a block job, and it will not succeed: query-jobs alone says whether it was cancelled.
    ABORTING = auto()
    #: Not a block job, and only its last status was heard.
    LATE = auto()

    # Commits that have ended, and wait for the chain.

    #: Said to have ended without an error, by an event.
    SAID = auto()
    #: The same, and then the connection was lost: other ends may have gone unheard.
    CUT_OFF = auto()
    #: The same, or found `concluded` after such a time without an error; started by this program.
    KEPT = auto()
    #: Not there any more, and nothing was heard of its end.
    GONE = auto()


class Seen(Enum):
    """What was observed of a job."""

    # The end, as QEMU tells it.

    #: BLOCK_JOB_COMPLETED with an error, or `concluded` with one.
    ERROR = auto()
    #: BLOCK_JOB_CANCELLED, or `concluded` with the error of a job that was cancelled.
    CANCELED = auto()
    #: BLOCK_JOB_COMPLETED without an error.
    SUCCESS = auto()
    #: Listed as `concluded`, without an error; no event was heard.
    CONCLUDED = auto()
    #: `concluded` and then `null`, and no query listed it in between.
    DISMISSED = auto()
    #: Not listed any more, or its id or its QEMU is another's.
    MISSING = auto()

    # The chain of a commit that has ended.

    #: Its top is there.
    TOP = auto()
    #: Its top is gone, its base is the root.
    PIVOT = auto()
    #: Its top is gone, and layers that were not there before are above its base.
    COVERED = auto()
    #: No query saw its top, and no node of the VM has a layer below it: whatever it was, it is gone.
    FLAT = auto()
    #: Its top is gone, and so it might be by another job that has ended since.
    RIVAL = auto()
    #: Neither its top nor what it leaves behind is there: the chain was changed again.
    STRANGE = auto()
    #: There is no chain to look at, or none of before to compare it with.
    UNREADABLE = auto()


#: A result, the state in which it waits for its chain, or None: it never ran, so it did not end.
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
    # After a time without a connection it may be another commit that has the id.
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
    # A top that is there was not merged. One that is gone may have been by a job that nobody heard.
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
    """Return what the error of a job that is listed as `concluded` says of it."""
    return Seen.CANCELED if error == _CANCELED else Seen.ERROR


def verdict(state: State, seen: Seen) -> Verdict:
    """Return what becomes of a job in a state of which something was observed."""
    return TABLE[state, seen]


def result(state: State, seen: Seen) -> str:
    """Return how a commit that waited for its chain ended."""
    found = TABLE[state, seen]
    assert isinstance(found, str)
    return found
