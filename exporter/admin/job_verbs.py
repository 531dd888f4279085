"""What users can do to a job: one row per verb, and the preconditions.

Preconditions are pure functions of one snapshot, taken a moment ago, and raise `Refused`.
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

#: States in which a job can be paused, and in which a paused job can be resumed. [job.c, JobVerbTable]
_PAUSABLE = frozenset({"running", "ready", "created"})
_RESUMABLE = _PAUSABLE | {"paused", "standby"}
#: States in which a completed job waits to be finalized or dismissed.
_AFTER_COMPLETE = frozenset({"pending", "concluded"})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobVerb(Generic[R]):
    """One thing that users can do to a job. All that this room knows about a verb is in its row."""

    request: type[R]
    #: Raises `Refused` if the job is not in a state for it.
    precondition: Callable[[VmState, Job, R], None]
    #: Builds the command; None if this QEMU has none for it.
    command: Callable[[Qemu, str, R], Command | None]
    #: Whether it is seen to have been done, if no reply came.
    postcondition: Callable[[Seen, R], bool]
    #: Whether QEMU waits for the storage before it replies.
    drains: bool = False
    #: Given the JobStatus, whether it is refused while a complete is under way: QEMU calls the job
    #: ready for a while longer.
    crosses_complete: Callable[[str], bool] = lambda _: False
    #: Whether it is the complete that others must not cross.
    completes: bool = False
    #: Whether QEMU forgets the job, so that its outcome must be recorded first.
    forgets: bool = False

    @property
    def name(self) -> str:
        """Its name in paths, grants and messages."""
        return self.request.verb

    def build(self, qemu: Qemu, job: Job, request: R) -> Command:
        """Build the command for a job.

        Raises:
            Refused: this QEMU has none.
        """
        if (found := self.command(qemu, job.job_id, request)) is None:
            raise Refused("not-supported", f"this QEMU cannot {self.name} a job")
        return found

    def effect(self, job: Job, request: R, ends: Mapping[str, End], since_seconds: float) -> Effect:
        """Return a predicate: whether a snapshot shows that it was done to `job`, as it was before."""
        return lambda now: self.postcondition(
            postconditions.seen(now, job, ends, since_seconds), request
        )


def status(each: Job) -> str:
    """Return the JobStatus of a job, empty if its QEMU is too old to report one."""
    return getattr(each.job, "status", None) or ""


def rests(each: Job) -> bool:
    """Whether it is ready and idle: a completing job is paused and busy until it is gone."""
    return _is(each, "ready") and not _is(each, "paused") and not _is(each, "busy")


def may_complete(snapshot: VmState, each: Job, _: object) -> None:
    """Require that QEMU itself reports it as ready."""
    if not _is_ready(each):
        raise _refused("not-ready", snapshot, each, "is not ready")
    if status(each) not in ("", "ready"):
        raise _refused("wrong-job-state", snapshot, each, "is ready but not running")


def may_cancel(snapshot: VmState, each: Job, request: verbs.Cancel) -> None:
    """Require that it has not ended, and an explicit `force` if it is ready."""
    if status(each) in ("concluded", "aborting", "null"):
        raise _refused("wrong-job-state", snapshot, each, "has ended")
    if _is_ready(each) and isinstance(request.force, UnsetType):
        known = present.job(snapshot.vm, each)
        detail = f"{each.job_type} {each.job_id} is ready: set force to true or false"
        raise Refused("force-required", detail, known)


def may_pause(snapshot: VmState, each: Job, _: object) -> None:
    """Require that it is running."""
    if _is(each, "paused") or status(each) not in ("", *_PAUSABLE):
        raise _refused("wrong-job-state", snapshot, each, "is not running")


def may_resume(snapshot: VmState, each: Job, _: object) -> None:
    """Require that it is paused. QEMU also reports a job as paused that it is just completing."""
    if not _is(each, "paused") or status(each) not in ("", *_RESUMABLE):
        raise _refused("wrong-job-state", snapshot, each, "is not paused")


def may_finalize(snapshot: VmState, each: Job, _: object) -> None:
    """Require that it waits to be finalized."""
    if status(each) != "pending":
        raise _refused("wrong-job-state", snapshot, each, "is not pending")


def may_dismiss(snapshot: VmState, each: Job, _: object) -> None:
    """Require that it has ended."""
    if status(each) != "concluded":
        raise _refused("wrong-job-state", snapshot, each, "has not ended")


def may_be_tuned(snapshot: VmState, each: Job, _: object) -> None:
    """Require that it has not ended."""
    if status(each) in ("concluded", "aborting", "pending", "waiting", "null"):
        raise _refused("wrong-job-state", snapshot, each, "has ended")


def _by_name(qemu: Qemu, job_id: str, request: JobRequest) -> Command | None:
    """Build QEMU's command of the same name: `job-pause`, or else `block-job-pause`."""
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
    """Whether QEMU reports it as ready; QEMU before 2.2 does so only by an event."""
    ready: bool | None = getattr(each.job, "ready", None)
    return each.ready_timestamp_seconds is not None if ready is None else ready
