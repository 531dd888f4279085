"""What may be done to a job: for each verb, what must be so before, and the command.

The guards are pure looks at one snapshot, made a moment ago, and raise `Refused`.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UnsetType

from exporter import api
from exporter.admin import present
from exporter.errors import Refused
from exporter.model import Job, VmState
from exporter.qmp import Command, Qemu, commands

#: Where a job can be paused, and where one that is can go on. [job.c, JobVerbTable]
_PAUSABLE = frozenset({"running", "ready", "created"})
_RESUMABLE = _PAUSABLE | {"paused", "standby"}


def guard(snapshot: VmState, each: Job, verb: api.Verb, request: api.Request) -> None:
    """See that a job may be changed so.

    Raises:
        Refused: it may not.
    """
    if isinstance(request, api.Cancel):
        force = None if isinstance(request.force, UnsetType) else request.force
        may_cancel(snapshot, each, force=force)
    else:
        GUARDS[verb](snapshot, each)


def command(qemu: Qemu, each: Job, verb: api.Verb, request: api.Request) -> Command:
    """Return what changes a job so.

    Raises:
        Refused: this QEMU has nothing for it.
    """
    if isinstance(request, api.Cancel):
        return commands.cancel(each.job_id, force=bool(request.force))
    if isinstance(request, api.SetSpeed):
        return commands.set_speed(each.job_id, request.speed_bytes_per_second)
    if (found := commands.change(qemu, verb, each.job_id)) is None:
        raise Refused("not-supported", f"this QEMU cannot {verb} a job")
    return found


def status(each: Job) -> str:
    """Return the JobStatus of a job, empty where its QEMU has no such word."""
    return getattr(each.job, "status", None) or ""


def rests(each: Job) -> bool:
    """It is ready and does nothing: one that completes is paused and busy until it is gone."""
    return _is(each, "ready") and not _is(each, "paused") and not _is(each, "busy")


def may_complete(snapshot: VmState, each: Job) -> None:
    """QEMU itself says that it is ready."""
    if not _is_ready(each):
        raise _refused("not-ready", snapshot, each, "is not ready")
    if status(each) not in ("", "ready"):
        raise _refused("wrong-job-state", snapshot, each, "is ready and does not run")


def may_cancel(snapshot: VmState, each: Job, *, force: bool | None) -> None:
    """It has not ended, and of one that is ready it was said how."""
    if status(each) in ("concluded", "aborting", "null"):
        raise _refused("wrong-job-state", snapshot, each, "has ended")
    if _is_ready(each) and force is None:
        known = present.job(snapshot.vm, each)
        detail = f"{each.job_type} {each.job_id} is ready, and force is not said"
        raise Refused("force-required", detail, known)


def may_pause(snapshot: VmState, each: Job) -> None:
    """It runs."""
    if _is(each, "paused") or status(each) not in ("", *_PAUSABLE):
        raise _refused("wrong-job-state", snapshot, each, "does not run")


def may_resume(snapshot: VmState, each: Job) -> None:
    """It is paused; QEMU itself holds one that it has just completed, and says the same of it."""
    if not _is(each, "paused") or status(each) not in ("", *_RESUMABLE):
        raise _refused("wrong-job-state", snapshot, each, "is not paused")


def may_finalize(snapshot: VmState, each: Job) -> None:
    """It waits to be finalized."""
    if status(each) != "pending":
        raise _refused("wrong-job-state", snapshot, each, "is not pending")


def may_dismiss(snapshot: VmState, each: Job) -> None:
    """It has ended."""
    if status(each) != "concluded":
        raise _refused("wrong-job-state", snapshot, each, "has not ended")


def may_set_speed(snapshot: VmState, each: Job) -> None:
    """It has not ended."""
    if status(each) in ("concluded", "aborting", "pending", "waiting", "null"):
        raise _refused("wrong-job-state", snapshot, each, "has ended")


#: Verb -> its guard; that of `cancel` takes `force` too.
GUARDS: dict[str, Callable[[VmState, Job], None]] = {
    "complete": may_complete,
    "pause": may_pause,
    "resume": may_resume,
    "finalize": may_finalize,
    "dismiss": may_dismiss,
    "speed": may_set_speed,
}


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
