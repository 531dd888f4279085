"""What may be done to a job: one row for each verb, and what must be so before.

The preconditions are pure looks at one snapshot, made a moment ago, and raise `Refused`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import UnsetType

from exporter.admin import postconditions, present
from exporter.admin.postconditions import Effect, Seen
from exporter.api import JobRequest, verbs
from exporter.errors import Refused
from exporter.jobs import End
from exporter.model import Job, VmState
from exporter.qmp import Command, Qemu, commands

R = TypeVar("R", bound=JobRequest)

#: Where a job can be paused, and where one that is can go on. [job.c, JobVerbTable]
_PAUSABLE = frozenset({"running", "ready", "created"})
_RESUMABLE = _PAUSABLE | {"paused", "standby"}
#: Where a job that has already been asked to complete waits to be finalized or dismissed.
_AFTER_COMPLETE = frozenset({"pending", "concluded"})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobVerb(Generic[R]):
    """One thing that may be done to a job. Everything in this room that knows a verb asks its row."""

    request: type[R]
    #: Raises `Refused` where the job must not be changed so.
    precondition: Callable[[VmState, Job, R], None]
    #: Returns what is sent; None where this QEMU has no command for it.
    command: Callable[[Qemu, str, R], Command | None]
    #: Whether it is seen to have been done, should no answer come.
    postcondition: Callable[[Seen, R], bool]
    #: Whether QEMU waits for the storage before it answers.
    drains: bool = False
    #: Whether a job that was told to complete must not be told this, by its JobStatus: QEMU calls it
    #: ready for some time afterwards.
    crosses_complete: Callable[[str], bool] = lambda _: False
    #: Whether it is a complete itself, which others must not cross.
    completes: bool = False
    #: Whether QEMU forgets the job, so that how it ended must be on record before.
    forgets: bool = False

    @property
    def name(self) -> str:
        """The word for it in paths, grants and messages."""
        return self.request.verb

    def build(self, qemu: Qemu, job: Job, request: R) -> Command:
        """Return the command that changes a job so.

        Raises:
            Refused: this QEMU has none.
        """
        if (found := self.command(qemu, job.job_id, request)) is None:
            raise Refused("not-supported", f"this QEMU cannot {self.name} a job")
        return found

    def effect(self, job: Job, request: R, ends: Mapping[str, End], since_seconds: float) -> Effect:
        """Return what tells a snapshot in which it was done, of the job as it was before."""
        return lambda now: self.postcondition(
            postconditions.seen(now, job, ends, since_seconds), request
        )


def status(each: Job) -> str:
    """Return the JobStatus of a job, empty where its QEMU has no such word."""
    return getattr(each.job, "status", None) or ""


def rests(each: Job) -> bool:
    """It is ready and does nothing: one that completes is paused and busy until it is gone."""
    return _is(each, "ready") and not _is(each, "paused") and not _is(each, "busy")


def may_complete(snapshot: VmState, each: Job, _: object) -> None:
    """QEMU itself says that it is ready."""
    if not _is_ready(each):
        raise _refused("not-ready", snapshot, each, "is not ready")
    if status(each) not in ("", "ready"):
        raise _refused("wrong-job-state", snapshot, each, "is ready but not running")


def may_cancel(snapshot: VmState, each: Job, request: verbs.Cancel) -> None:
    """It has not ended, and of one that is ready it was said how."""
    if status(each) in ("concluded", "aborting", "null"):
        raise _refused("wrong-job-state", snapshot, each, "has ended")
    if _is_ready(each) and isinstance(request.force, UnsetType):
        known = present.job(snapshot.vm, each)
        detail = f"{each.job_type} {each.job_id} is ready: set force to true or false"
        raise Refused("force-required", detail, known)


def may_pause(snapshot: VmState, each: Job, _: object) -> None:
    """It runs."""
    if _is(each, "paused") or status(each) not in ("", *_PAUSABLE):
        raise _refused("wrong-job-state", snapshot, each, "is not running")


def may_resume(snapshot: VmState, each: Job, _: object) -> None:
    """It is paused; QEMU itself holds one that it has just completed, and says the same of it."""
    if not _is(each, "paused") or status(each) not in ("", *_RESUMABLE):
        raise _refused("wrong-job-state", snapshot, each, "is not paused")


def may_finalize(snapshot: VmState, each: Job, _: object) -> None:
    """It waits to be finalized."""
    if status(each) != "pending":
        raise _refused("wrong-job-state", snapshot, each, "is not pending")


def may_dismiss(snapshot: VmState, each: Job, _: object) -> None:
    """It has ended."""
    if status(each) != "concluded":
        raise _refused("wrong-job-state", snapshot, each, "has not ended")


def may_be_tuned(snapshot: VmState, each: Job, _: object) -> None:
    """It has not ended."""
    if status(each) in ("concluded", "aborting", "pending", "waiting", "null"):
        raise _refused("wrong-job-state", snapshot, each, "has ended")


def _by_name(qemu: Qemu, job_id: str, request: JobRequest) -> Command | None:
    """Return QEMU's command of the same name: `job-pause`, or else `block-job-pause`."""
    return commands.change(qemu, request.verb, job_id)


def _is_before_the_end(status: str) -> bool:
    return status not in _AFTER_COMPLETE


_ROWS: tuple[JobVerb[Any], ...] = (
    JobVerb(
        request=verbs.Complete,
        precondition=may_complete,
        command=_by_name,
        postcondition=postconditions.completed,
        drains=True,
        crosses_complete=lambda _: True,
        completes=True,
    ),
    JobVerb(
        request=verbs.Cancel,
        precondition=may_cancel,
        command=lambda _, job_id, asked: commands.cancel(job_id, force=bool(asked.force)),
        postcondition=postconditions.cancelled,
        drains=True,
        crosses_complete=_is_before_the_end,
    ),
    JobVerb(
        request=verbs.Pause,
        precondition=may_pause,
        command=_by_name,
        postcondition=postconditions.paused,
        crosses_complete=_is_before_the_end,
    ),
    JobVerb(
        request=verbs.Resume,
        precondition=may_resume,
        command=_by_name,
        postcondition=postconditions.resumed,
    ),
    JobVerb(
        request=verbs.SetSpeed,
        precondition=may_be_tuned,
        command=lambda _, job_id, asked: commands.set_speed(job_id, asked.speed_bytes_per_second),
        postcondition=postconditions.limited,
    ),
    JobVerb(
        request=verbs.Finalize,
        precondition=may_finalize,
        command=_by_name,
        postcondition=postconditions.completed,
        drains=True,
    ),
    JobVerb(
        request=verbs.Dismiss,
        precondition=may_dismiss,
        command=_by_name,
        postcondition=postconditions.gone,
        forgets=True,
    ),
)
#: The row of each request that changes a job.
JOB_VERBS: Mapping[type[JobRequest], JobVerb[Any]] = {row.request: row for row in _ROWS}


def _refused(problem: str, snapshot: VmState, each: Job, what: str) -> Refused:
    state = status(each) or ("ready" if _is_ready(each) else "running")
    known = present.job(snapshot.vm, each)
    return Refused(problem, f"{each.job_type} {each.job_id} {what}: it is {state}", known)


def _is(each: Job, flag: str) -> bool:
    return bool(getattr(each.job, flag, None))


def _is_ready(each: Job) -> bool:
    """Whether QEMU says so: before 2.2 it does by an event alone."""
    ready: bool | None = getattr(each.job, "ready", None)
    return each.ready_timestamp_seconds is not None if ready is None else ready
