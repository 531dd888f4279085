"""What shows that a command took effect, and what may look like it and does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from exporter import api
from exporter.admin import postconditions
from exporter.admin.job_verbs import JOB_VERBS
from exporter.api import verbs
from exporter.jobs.outcomes import End
from exporter.jobs.verdict import RESULTS
from exporter.model.state import Device, Job, VmState
from exporter.qmp import schema
from tests.disks import block_job

SINCE = 1000.0


def job(job_id: str = "qbe-a", **more: Any) -> Job:
    """A job of a snapshot."""
    told = msgspec.convert(block_job(job_id, **more), schema.BlockJob)
    return Job("disk0", job_id, "commit", told)


def now(*jobs: Job, file: str = "/base") -> VmState:
    """The VM after the connection was lost."""
    device = Device(device="disk0", nodes=(), backing_depth=0, expected_backing_depth=0, file=file)
    return VmState(vm="vm", up=True, devices=(device,), jobs=jobs, duration_seconds=0.0)


def ended(result: str, at: float = SINCE, job_id: str = "qbe-a") -> dict[str, End]:
    """The jobs that are known to have ended."""
    return {job_id: End("commit", "disk0", result, at, "")}


def is_done(
    request: api.JobRequest,
    *jobs: Job,
    before: Job | None = None,
    ends: dict[str, End] | None = None,
) -> bool:
    """Return whether a snapshot shows that a job was changed."""
    verb = JOB_VERBS[type(request)]
    effect = verb.effect(before or job(), request, ends or {}, SINCE)
    return effect(now(*jobs))


# A job that was started.


@pytest.mark.parametrize("status", ["created", "running", "ready", "paused", "concluded"])
def test_a_job_that_is_there_was_started(status: str) -> None:
    """Whatever became of it since."""
    assert postconditions.started("qbe-a", {}, SINCE)(now(job("qbe-b"), job(status=status)))


@pytest.mark.parametrize("result", RESULTS)
def test_a_job_that_has_ended_since_was_started(result: str) -> None:
    """However it ended."""
    assert postconditions.started("qbe-a", ended(result), SINCE)(now())


@pytest.mark.parametrize(
    "ends", [{}, ended("completed", SINCE - 0.001), ended("completed", job_id="qbe-b")]
)
def test_a_job_that_nobody_saw_was_not_started(ends: dict[str, End]) -> None:
    """One that ended before, or has another id, is another one."""
    assert not postconditions.started("qbe-a", ends, SINCE)(now(job("qbe-b")))


# A new layer.


@pytest.mark.parametrize(
    ("file", "device", "expected"),
    [("/new", "disk0", True), ("/new", "disk1", False), ("/base", "disk0", False)],
)
def test_a_layer_is_there_when_the_active_one_of_this_device_is_in_its_file(
    file: str, device: str, expected: bool
) -> None:
    """And not of another device, or another file."""
    assert postconditions.has_layer(device, "/new")(now(file=file)) is expected


def test_a_layer_is_there_whatever_other_devices_have() -> None:
    """It is one of several disks."""
    other = Device(device="disk1", nodes=(), backing_depth=0, expected_backing_depth=0, file="/x")
    after = now(file="/new")
    after = msgspec.structs.replace(after, devices=(other, *after.devices))

    assert postconditions.has_layer("disk0", "/new")(after)


# A job that was changed.


ASKED: Mapping[str, api.JobRequest] = {each.verb: each.example() for each in api.JOB_REQUESTS}


@pytest.mark.parametrize("verb", ["complete", "finalize"])
@pytest.mark.parametrize("result", RESULTS)
def test_a_job_is_completed_when_it_is_known_to_have_ended_so(verb: str, result: str) -> None:
    """That it is gone says nothing: it may have failed, or been cancelled."""
    asked = ASKED[verb]

    assert is_done(asked, ends=ended(result)) is (result == "completed")
    assert not is_done(asked, ends=ended(result, SINCE - 0.001))
    assert not is_done(asked)


@pytest.mark.parametrize("status", ["ready", "running", "standby", "pending", "concluded"])
def test_a_job_that_is_still_there_is_not_known_to_be_completed(status: str) -> None:
    """Neither one that is ready nor one that has ended in a way that is not known."""
    assert not is_done(verbs.Complete(), job(status=status, ready=True))


@pytest.mark.parametrize("result", RESULTS)
def test_a_job_is_cancelled_when_it_is_known_to_have_ended_so(result: str) -> None:
    """One that completed first was not."""
    assert is_done(verbs.Cancel(), ends=ended(result)) is (result == "cancelled")


@pytest.mark.parametrize(
    ("verb", "after", "expected"),
    [
        ("cancel", {"status": "aborting"}, True),
        ("cancel", {"status": "running"}, False),
        ("cancel", {"status": "concluded"}, False),
        ("pause", {"status": "paused", "paused": True}, True),
        ("pause", {"status": "standby", "paused": True}, True),
        ("pause", {"status": "running"}, False),
        ("resume", {"status": "running"}, True),
        ("resume", {"status": "ready"}, True),
        ("resume", {"status": "paused", "paused": True}, False),
        ("dismiss", {"status": "concluded"}, False),
    ],
)
def test_a_job_shows_what_was_done_to_it(verb: str, after: dict[str, Any], expected: bool) -> None:
    """By its state after the command."""
    assert is_done(ASKED[verb], job(**after)) is expected


@pytest.mark.parametrize("verb", sorted(ASKED.keys() - {"dismiss"}))
def test_a_job_that_is_gone_shows_nothing_by_that(verb: str) -> None:
    """It may have ended by itself."""
    limited = job("qbe-b", speed=verbs.SetSpeed.example().speed_bytes_per_second)

    assert not is_done(ASKED[verb], limited)


def test_a_job_that_is_gone_was_dismissed() -> None:
    """One that has ended stays until then."""
    assert is_done(verbs.Dismiss(), job("qbe-b"))


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(0, 5, True), (0, 0, False), (5, 5, False), (5, 7, False)]
)
def test_a_speed_is_set_when_it_is_another_than_before(
    before: int, after: int, expected: bool
) -> None:
    """That it is what it was before says nothing."""
    request = verbs.SetSpeed(speed_bytes_per_second=5)

    assert is_done(request, job(speed=after), before=job(speed=before)) is expected


def test_what_nothing_shows_is_never_known() -> None:
    """Then no answer stays no answer."""
    seen = postconditions.seen(now(), job(), ended("completed"), SINCE)

    assert not postconditions.unknowable(seen, verbs.Pause())
