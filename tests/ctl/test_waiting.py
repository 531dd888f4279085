"""A job is followed through whatever happens to the exporter."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from tests.fakeapi import FakeApi, ended, job, problem, ready
from tests.shell import FAST, Shell

WAIT = ("complete", "web", "qbe-1", "--wait", FAST)


async def test_a_restart_of_the_exporter_does_not_end_the_wait(shell: Shell, api: FakeApi) -> None:
    """It is said, and so is that it answers again."""
    api.completed = [job()]
    waiting = asyncio.create_task(shell(*WAIT))
    await api.until(lambda: api.polls() > 1)
    await api.stop()
    await asyncio.sleep(0.05)
    api.lives = {"qbe-1": [ended("completed")]}
    await api.start()

    assert await asyncio.wait_for(waiting, 60) == 0
    # Where the server was closing just then, it hung up first.
    assert f"retrying: {api.url}: Connection refused\n" in shell.err
    assert shell.err.count("the exporter answers again\n") == 1
    assert shell.out.endswith("is completed\n")


@pytest.mark.parametrize(
    "trouble",
    [
        problem("vm-down", 503),
        problem("outcome-unknown", 502, outcome="unknown"),
        web.Response(status=502, text="Bad Gateway"),
        web.Response(status=404, text="404: Not Found"),
        web.Response(status=429, text="Too Many Requests"),
        web.Response(text="<h1>", content_type="text/html"),
        None,
    ],
)
async def test_a_poll_that_fails_is_tried_on(
    trouble: web.Response | None, shell: Shell, api: FakeApi
) -> None:
    """Only the API itself can say that a job is not there."""
    # A GET whose connection was cut is sent once more by aiohttp.
    api.gets = [trouble] if trouble else [None, None]

    assert await shell(*WAIT) == 0
    assert shell.err.count("retrying: ") == 1


async def test_a_job_that_is_not_seen_has_a_next_step(shell: Shell, api: FakeApi) -> None:
    """Its VM may have died: waiting goes on, and it is said once each time."""
    unseen = job(status=None, busy=None, ready=None, paused=None)
    api.completed = [unseen, unseen, job(), unseen, ended("vanished")]

    assert await shell(*WAIT) == 3
    says = f"cannot see whether QEMU has job qbe-1: see qemu-block-exporter vms --url={api.url}\n"
    assert shell.err.count(says) == 2


async def test_a_job_that_is_gone_is_code_4(shell: Shell, api: FakeApi) -> None:
    """Nobody knows how it ended."""
    api.completed = [job()]
    api.gets = [problem("unknown-job", 404)] * 3

    assert await shell(*WAIT) == 4
    assert "the outcome is unknown: job qbe-1 is gone" in shell.err


async def test_a_job_may_be_back_after_a_restart(shell: Shell, api: FakeApi) -> None:
    """An exporter that was just started has not seen its VMs yet."""
    api.gets = [problem("unknown-job", 404)] * 2

    assert await shell(*WAIT) == 0


async def test_a_vm_that_is_gone_ends_the_wait_at_once(shell: Shell, api: FakeApi) -> None:
    """With its job."""
    api.gets = [problem("unknown-vm", 404)]

    assert await shell(*WAIT) == 4
    assert "the exporter no longer has VM web" in shell.err
    assert api.polls() == 1


async def test_who_may_not_look_any_more_is_told(shell: Shell, api: FakeApi) -> None:
    """A password was changed, and the job goes on."""
    api.gets = [web.Response(status=401, text="Unauthorized")]

    assert await shell(*WAIT) == 4
    assert "job qbe-1 goes on" in shell.err


async def test_a_job_of_others_that_is_concluded_has_no_record(shell: Shell, api: FakeApi) -> None:
    """An error is one; without it nobody knows."""
    api.completed = [job(status="concluded", error="No space left")]
    assert await shell(*WAIT) == 3
    assert "is concluded at 25%: No space left" in shell.out

    api.completed = [job(status="concluded")]
    assert await shell(*WAIT) == 4
    assert "its outcome was not recorded" in shell.err


async def test_a_job_that_is_waited_for_by_its_end_waits_at_ready(
    shell: Shell, api: FakeApi
) -> None:
    """QEMU shows a job as ready for a while after it was told to complete."""
    api.completed = [ready(), ready(), ended("completed")]

    assert await shell(*WAIT) == 0
    assert api.polls() == 3
