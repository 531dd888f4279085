"""What may be done to a job: each guard alone, in every state."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from exporter import api
from exporter.admin import job_verbs
from exporter.errors import Refused
from tests.snapshots import STATUSES, job, refused, vm

#: Verb -> JobStatus in which QEMU takes it. [JobVerbTable]
TAKEN = {
    "pause": {"created", "running", "ready", ""},
    "finalize": {"pending"},
    "dismiss": {"concluded"},
    "speed": {"created", "running", "paused", "ready", "standby", ""},
    "cancel": set(STATUSES) - {"aborting", "concluded", "null"},
}
SAID = {
    "pause": "does not run",
    "finalize": "is not pending",
    "dismiss": "has not ended",
    "speed": "has ended",
    "cancel": "has ended",
}


def guard_of(verb: str) -> Any:
    """Return the guard of a verb."""
    if verb == "cancel":
        return lambda snapshot, each: job_verbs.may_cancel(snapshot, each, force=None)
    return job_verbs.GUARDS[verb]


@pytest.mark.parametrize("verb", TAKEN)
@pytest.mark.parametrize("status", STATUSES)
def test_a_verb_is_taken_in_some_states_and_no_others(verb: str, status: str) -> None:
    """The refusal names the state, and has the job with it."""
    each = job(status=status)
    if status in TAKEN[verb]:
        guard_of(verb)(vm(), each)
        return

    assert refused(guard_of(verb), vm(), each) == (
        "wrong-job-state",
        f"commit disk0 {SAID[verb]}: it is {status or 'running'}",
    )


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("ready", [True, False, None])
def test_only_what_qemu_calls_ready_is_completed(status: str, ready: bool | None) -> None:
    """Not what is at 100 %, and not what is ready and rests."""
    each = job(status=status, ready=ready, offset=100)
    if ready and status in ("ready", ""):
        job_verbs.may_complete(vm(), each)
        return
    problem = "wrong-job-state" if ready else "not-ready"
    what = "is ready and does not run" if ready else "is not ready"

    assert refused(job_verbs.may_complete, vm(), each) == (
        problem,
        f"commit disk0 {what}: it is {status or ('ready' if ready else 'running')}",
    )


def test_an_old_qemu_says_by_an_event_that_a_job_is_ready() -> None:
    """QEMU before 2.2 has no such member; one that denies it is believed."""
    heard = msgspec.structs.replace(job(status="", ready=None), ready_timestamp_seconds=1.0)
    denied = msgspec.structs.replace(job(status="", ready=False), ready_timestamp_seconds=1.0)

    job_verbs.may_complete(vm(), heard)
    assert refused(job_verbs.may_cancel, vm(), heard, force=None)[0] == "force-required"
    assert refused(job_verbs.may_complete, vm(), denied)[0] == "not-ready"


@pytest.mark.parametrize("force", [True, False])
def test_how_a_ready_job_is_cancelled_is_said_aloud(force: bool) -> None:
    """Of one that is not ready it need not be."""
    ready = job(status="ready", ready=True)

    assert refused(job_verbs.may_cancel, vm(), ready, force=None) == (
        "force-required",
        "commit disk0 is ready, and force is not said",
    )
    job_verbs.may_cancel(vm(), ready, force=force)
    job_verbs.may_cancel(vm(), job(), force=force)


def test_a_job_is_paused_once_and_resumed_once() -> None:
    """QEMU 5.2 calls a paused job `running`: the flag counts."""
    paused = job(paused=True)

    assert refused(job_verbs.may_pause, vm(), paused)[0] == "wrong-job-state"
    job_verbs.may_resume(vm(), paused)
    assert refused(job_verbs.may_resume, vm(), job()) == (
        "wrong-job-state",
        "commit disk0 is not paused: it is running",
    )


def test_a_refusal_has_the_job_that_it_is_about() -> None:
    """So that who asked sees its state without asking again."""
    with pytest.raises(Refused) as caught:
        job_verbs.may_complete(vm(), job("j", offset=25))

    assert isinstance(caught.value.more["job"], api.Job)
    assert (caught.value.more["job"].offset_bytes, caught.value.more["job"].length_bytes) == (
        25,
        100,
    )


def test_every_verb_has_a_guard() -> None:
    """A new one is guarded, or this fails."""
    of_devices = {"commit", "snapshot", "cancel"}

    assert job_verbs.GUARDS.keys() | of_devices == set(api.VERBS)
