"""What may be done to a job: each precondition alone, in every state."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from exporter import api
from exporter.admin import job_verbs
from exporter.admin.job_verbs import JOB_VERBS
from exporter.api import verbs
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
    "pause": "is not running",
    "finalize": "is not pending",
    "dismiss": "has not ended",
    "speed": "has ended",
    "cancel": "has ended",
}


def precondition_of(verb: str) -> Any:
    """Return the precondition of a verb, which is asked for without more."""
    row = next(row for row in JOB_VERBS.values() if row.name == verb)
    request = verbs.Cancel() if verb == "cancel" else row.request.example()
    return lambda snapshot, each: row.precondition(snapshot, each, request)


may_complete, may_cancel = precondition_of("complete"), precondition_of("cancel")
may_pause, may_resume = precondition_of("pause"), precondition_of("resume")


@pytest.mark.parametrize("verb", TAKEN)
@pytest.mark.parametrize("status", STATUSES)
def test_a_verb_is_taken_in_some_states_and_no_others(verb: str, status: str) -> None:
    """The refusal names the state, and has the job with it."""
    each = job(status=status)
    if status in TAKEN[verb]:
        precondition_of(verb)(vm(), each)
        return

    assert refused(precondition_of(verb), vm(), each) == (
        "wrong-job-state",
        f"commit disk0 {SAID[verb]}: it is {status or 'running'}",
    )


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("ready", [True, False, None])
def test_only_what_qemu_calls_ready_is_completed(status: str, ready: bool | None) -> None:
    """Not what is at 100 %, and not what is ready and rests."""
    each = job(status=status, ready=ready, offset=100)
    if ready and status in ("ready", ""):
        may_complete(vm(), each)
        return
    problem = "wrong-job-state" if ready else "not-ready"
    what = "is ready but not running" if ready else "is not ready"

    assert refused(may_complete, vm(), each) == (
        problem,
        f"commit disk0 {what}: it is {status or ('ready' if ready else 'running')}",
    )


def test_an_old_qemu_says_by_an_event_that_a_job_is_ready() -> None:
    """QEMU before 2.2 has no such member; one that denies it is believed."""
    heard = msgspec.structs.replace(job(status="", ready=None), ready_timestamp_seconds=1.0)
    denied = msgspec.structs.replace(job(status="", ready=False), ready_timestamp_seconds=1.0)

    may_complete(vm(), heard)
    assert refused(may_cancel, vm(), heard)[0] == "force-required"
    assert refused(may_complete, vm(), denied)[0] == "not-ready"


@pytest.mark.parametrize("force", [True, False])
def test_how_a_ready_job_is_cancelled_is_said_aloud(force: bool) -> None:
    """Of one that is not ready it need not be."""
    ready = job(status="ready", ready=True)

    assert refused(may_cancel, vm(), ready) == (
        "force-required",
        "commit disk0 is ready: set force to true or false",
    )
    job_verbs.may_cancel(vm(), ready, verbs.Cancel(force=force))
    job_verbs.may_cancel(vm(), job(), verbs.Cancel(force=force))


def test_a_job_is_paused_once_and_resumed_once() -> None:
    """QEMU 5.2 calls a paused job `running`: the flag counts."""
    paused = job(paused=True)

    assert refused(may_pause, vm(), paused)[0] == "wrong-job-state"
    may_resume(vm(), paused)
    assert refused(may_resume, vm(), job()) == (
        "wrong-job-state",
        "commit disk0 is not paused: it is running",
    )


@pytest.mark.parametrize("status", STATUSES)
def test_a_job_goes_on_only_where_it_could_have_been_paused(status: str) -> None:
    """What says of itself that it is paused and has ended, or waits for its end, cannot."""
    paused = job(status=status, paused=True)
    if status in {"created", "running", "paused", "ready", "standby", ""}:
        may_resume(vm(), paused)
        return

    assert refused(may_resume, vm(), paused)[0] == "wrong-job-state"


def test_a_refusal_calls_a_job_ready_where_its_qemu_has_no_word_for_its_state() -> None:
    """QEMU before 2.12 has the flag alone."""
    guard = precondition_of("finalize")

    assert refused(guard, vm(), job(status="", ready=True))[1].endswith("it is ready")
    assert refused(guard, vm(), job(status="", ready=False))[1].endswith("it is running")


def test_a_refusal_has_the_job_that_it_is_about() -> None:
    """So that who asked sees its state without asking again."""
    with pytest.raises(Refused) as caught:
        may_complete(vm(), job("j", offset=25))

    assert isinstance(caught.value.more["job"], api.Job)
    assert (caught.value.more["job"].offset_bytes, caught.value.more["job"].length_bytes) == (
        25,
        100,
    )


def test_every_verb_has_a_row() -> None:
    """What can be asked for can be done, and nothing else; a name stands for one verb."""
    names = [row.name for row in JOB_VERBS.values()]

    assert [*JOB_VERBS] == [*api.JOB_REQUESTS]
    assert (api.Commit.verb, *names, api.Snapshot.verb) == api.VERBS
    assert len(set(api.VERBS)) == len(api.VERBS)
