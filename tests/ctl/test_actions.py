"""The commands that change something: sent once, told in words, and ended with an exit code."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from aiohttp import web

from exporter.api.types import Done, Job, Problem
from exporter.api.verbs import JobId
from exporter.ctl.actions import made_job_id
from tests.fakeapi import FakeApi, device, ended, job, problem, ready, vm
from tests.shell import FAST, Shell


def lines(text: str) -> list[dict[str, object]]:
    """Return each line of JSON."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", ["disk0", "/machine/peripheral/a", "ä" * 2000, "--", "", "a b\n"])
def test_an_id_that_is_made_is_an_id(name: str) -> None:
    """Whatever the disk is called; and no two are equal."""
    made = made_job_id(name)

    assert msgspec.convert(made, JobId) == made
    assert len(made) <= 63
    assert made_job_id(name) != made


async def test_a_commit_says_its_id_before_it_is_sent(shell: Shell, api: FakeApi) -> None:
    """So that it can be sent again."""
    assert await shell("commit", "web", "disk0") == 0

    method, path, body = api.asked[0]
    assert (method, path) == ("POST", "/api/v1/admin/vms/web/block-jobs")
    assert shell.err == f"job {body['job_id']}\n"
    assert shell.out == f"accepted: commit of disk0 of web (job {body['job_id']})\n"
    assert body == {"action": "commit", "device": "disk0", "job_id": body["job_id"]}


async def test_a_commit_is_what_the_flags_say(shell: Shell, api: FakeApi) -> None:
    """All of them."""
    code = await shell(
        "commit", "web", "disk0", "--job-id=qbe-x", "--top=#block1", "--base=/images/2.qcow2",
        "--speed=1000", "--dry-run",
    )  # fmt: skip

    assert (code, shell.err) == (0, "")
    assert shell.out.startswith("dry run: commit of disk0 of web (job qbe-x) would be accepted")
    assert api.asked[0][2] == {
        "action": "commit", "device": "disk0", "job_id": "qbe-x", "top": "#block1",
        "base": "/images/2.qcow2", "speed_bytes_per_second": 1000,
    }  # fmt: skip
    assert not api.lives


async def test_an_old_qemu_names_the_job_itself(shell: Shell, api: FakeApi) -> None:
    """By its disk; any name that is answered is waited for."""
    api.life = [job(), ended("completed")]

    assert await shell("commit", "web", "disk0", "--no-job-id", "--wait", FAST) == 0
    assert api.asked[0][2] == {"action": "commit", "device": "disk0"}
    assert api.asked[-1][1].endswith("/block-jobs/named-by-qemu")

    api.posts = [None]
    assert await shell("commit", "web", "disk0", "--no-job-id", FAST) == 4
    assert "there is no job disk0" in shell.err
    assert "again" not in shell.err


async def test_a_dry_run_waits_for_nothing(shell: Shell, api: FakeApi) -> None:
    """There is no job."""
    assert await shell("commit", "web", "disk0", "--dry-run", "--complete-when-ready") == 0
    assert await shell("complete", "web", "qbe-1", "--dry-run", "--when-ready") == 0
    assert len(api.asked) == 2


async def test_what_could_not_be_checked_is_said(shell: Shell, api: FakeApi) -> None:
    """Beside the result."""
    api.warnings = ["the chain is not known\x1b[2J"]

    assert await shell("pause", "web", "qbe-1") == 0
    assert shell.err == "warning: the chain is not known\\x1b[2J\n"


async def test_a_replay_is_no_second_job(shell: Shell, api: FakeApi) -> None:
    """It says how the first one is."""
    api.replay, api.lives = True, {"qbe-x": [ended("completed", "qbe-x")]}

    assert await shell("commit", "web", "disk0", "--job-id=qbe-x") == 0
    assert shell.out == (
        "accepted before: commit of disk0 of web (job qbe-x); nothing was sent now;"
        " job qbe-x (commit of disk0 of web) is completed\n"
    )
    assert await shell("commit", "web", "disk0", "--job-id=qbe-x", "--wait") == 0


@pytest.mark.parametrize(
    ("command", "path", "body"),
    [
        (["complete", "web", "j/1"], "block-jobs/j%2F1/complete", {}),
        (["cancel", "web", "j"], "block-jobs/j/cancel", {}),
        (["cancel", "web", "j", "--force"], "block-jobs/j/cancel", {"force": True}),
        (["cancel", "web", "j", "--no-force"], "block-jobs/j/cancel", {"force": False}),
        (["pause", "web", "j"], "block-jobs/j/pause", {}),
        (["resume", "web", "j"], "block-jobs/j/resume", {}),
        (["finalize", "web", "j"], "block-jobs/j/finalize", {}),
        (["dismiss", "web", "j"], "block-jobs/j/dismiss", {}),
        (["speed", "web", "j", "0"], "block-jobs/j/speed", {"speed_bytes_per_second": 0}),
        (["snapshot", "web", "d", "/x.qcow2"], "snapshots",
         {"device": "d", "file": "/x.qcow2", "format": "qcow2"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
async def test_each_command_is_one_request(
    command: list[str], path: str, body: object, shell: Shell, api: FakeApi
) -> None:
    """Accepted is 0, and JSON is what the API says."""
    assert await shell(*command) == 0
    assert shell.out.startswith(f"accepted: {command[0]} of ")
    assert await shell(*command, "--json") == 0
    assert msgspec.json.decode(shell.out, type=Done).action == command[0]
    assert api.asked == [("POST", f"/api/v1/admin/vms/web/{path}", body)] * 2


# Refused.


async def test_a_refusal_is_words_and_code_1(shell: Shell, api: FakeApi) -> None:
    """With the job in the way, and the next step; never JSON."""
    api.posts = [problem("not-ready", 409, job=job())]

    assert await shell("complete", "web", "qbe-1") == 1
    assert shell.out == ""
    assert shell.err == (
        "refused: It is not-ready: all about not-ready\n"
        "job qbe-1 (commit of disk0 of web) is running at 25%\n"
        f"wait for it: qemu-block-exporter complete --url={api.url} --when-ready web qbe-1\n"
    )


async def test_a_refusal_in_json_is_the_problem(shell: Shell, api: FakeApi) -> None:
    """Also one of somebody else."""
    api.posts = [problem("not-granted", 403), web.Response(status=401, text="Unauthorized")]

    assert await shell("pause", "web", "j", "--json") == 1
    assert msgspec.json.decode(shell.out, type=Problem) == problem("not-granted", 403)
    assert await shell("pause", "web", "j", "--json") == 1
    assert msgspec.json.decode(shell.out, type=Problem).status == 401
    assert shell.err == ""


async def test_an_exporter_that_is_not_there_is_code_1(shell: Shell, api: FakeApi) -> None:
    """Nothing was sent."""
    await api.stop()

    assert await shell("cancel", "web", "j") == 1
    assert shell.err == (
        f"cannot reach the exporter: {api.url}: Connection refused\n"
        "is it running, and is --url its address, with http or https?\n"
    )


# No answer.


async def test_a_commit_without_an_answer_is_looked_up(shell: Shell, api: FakeApi) -> None:
    """It is there: that is as good as an answer, and --wait goes on."""
    api.posts = [problem("outcome-unknown", 502, outcome="unknown")]
    api.gets = [problem("unknown-job", 404), problem("vm-down", 503)]
    api.lives = {"qbe-x": [job("qbe-x"), ready("qbe-x")]}

    assert await shell("commit", "web", "disk0", "--job-id=qbe-x", "--wait", FAST) == 0
    assert "no reply came: It is outcome-unknown: all about outcome-unknown\n" in shell.err
    assert shell.out.startswith("checked: job qbe-x (commit of disk0 of web) is running at 25%\n")
    assert shell.out.splitlines()[1].startswith("ready: ")
    assert api.verbs() == ["block-jobs"]


async def test_a_commit_that_is_not_found_is_code_4(shell: Shell, api: FakeApi) -> None:
    """It can be sent again, by its id; the program does not."""
    api.posts = [None]

    assert await shell("commit", "web", "disk0", "--wait", FAST) == 4
    job_id = api.asked[0][2]["job_id"]
    assert f"there is no job {job_id}" in shell.err
    assert f"--job-id={job_id} does not start a second job" in shell.err
    assert (shell.out, len(api.verbs())) == ("", 1)


async def test_a_commit_of_another_disk_is_not_ours(shell: Shell, api: FakeApi) -> None:
    """An id that was given twice."""
    api.posts, api.lives = [None], {"qbe-x": [job("qbe-x", device="other")]}

    assert await shell("commit", "web", "disk0", "--job-id=qbe-x", FAST) == 4


async def test_a_record_that_knows_nothing_is_no_success(shell: Shell, api: FakeApi) -> None:
    """It was written before the command left."""
    api.posts, api.lives = [None], {"qbe-x": [ended("unknown", "qbe-x")]}

    assert await shell("commit", "web", "disk0", "--job-id=qbe-x", FAST, "--json") == 4
    assert msgspec.json.decode(shell.out, type=Job).outcome == "unknown"


async def test_a_record_of_what_was_asked_is_no_success(shell: Shell, api: FakeApi) -> None:
    """Nor is one of a job that QEMU was never seen to have."""
    api.posts = [None]
    api.lives = {"qbe-x": [job("qbe-x", status=None, busy=None, ready=None, paused=None)]}

    assert await shell("commit", "web", "disk0", "--job-id=qbe-x", FAST) == 4
    assert "checked: job qbe-x (commit of disk0 of web) is on record; it is not" in shell.err


async def test_json_of_no_answer_is_what_is_known(shell: Shell, api: FakeApi) -> None:
    """The problem, where no job is found."""
    api.posts = [problem("outcome-unknown", 504, outcome="unknown")]

    assert await shell("commit", "web", "disk0", "--json", FAST) == 4
    assert msgspec.json.decode(shell.out, type=Problem).outcome == "unknown"


@pytest.mark.parametrize(
    ("command", "life", "code"),
    [
        ("complete", [job(), ended("completed")], 0),
        ("complete", [ready()], 4),
        ("cancel", [job(), ended("cancelled")], 0),
        ("cancel", [job()], 4),
        ("pause", [job(paused=True)], 0),
        ("pause", [job()], 4),
        ("resume", [job()], 0),
        ("resume", [job(paused=True)], 4),
        ("finalize", [ended("completed")], 0),
        ("dismiss", [ended("completed")], 0),
        ("dismiss", [job(status="concluded")], 4),
        ("complete", [], 4),
    ],
)
async def test_what_came_true_is_no_mystery(
    command: str, life: list[Job], code: int, shell: Shell, api: FakeApi
) -> None:
    """What did not may still come: 4."""
    api.posts, api.lives = [None], {"qbe-1": life}

    assert await shell(command, "web", "qbe-1", FAST) == code
    assert len(api.verbs()) == 1
    assert "no reply came: " in shell.err


async def test_a_speed_that_is_set_is_no_mystery(shell: Shell, api: FakeApi) -> None:
    """The job shows it."""
    api.lives = {"qbe-1": [job(speed_limit_bytes_per_second=7)]}
    api.posts = [None, None]

    assert await shell("speed", "web", "qbe-1", "7", FAST) == 0
    assert await shell("speed", "web", "qbe-1", "8", FAST) == 4


async def test_a_snapshot_without_an_answer_is_looked_up(shell: Shell, api: FakeApi) -> None:
    """The disk is on it, or not."""
    api.posts, api.vms = [None, None, None], []

    assert await shell("snapshot", "web", "disk0", "/images/0.qcow2", FAST) == 4
    api.vms = [vm()]
    assert await shell("snapshot", "web", "disk0", "/images/0.qcow2", FAST) == 0
    assert "checked: disk0 is on /images/0.qcow2 now" in shell.err
    api.vms = [vm(devices=[device("cd", 0), device()])]
    assert await shell("snapshot", "web", "disk0", "/images/9.qcow2", FAST) == 4
    assert "disk0 is not on /images/9.qcow2; repeating the command" in shell.err
    assert "see qemu-block-exporter chain" in shell.err


async def test_a_dry_run_without_an_answer_changed_nothing(shell: Shell, api: FakeApi) -> None:
    """Code 1, and nothing to look up."""
    api.posts = [None]

    assert await shell("commit", "web", "disk0", "--dry-run") == 1
    assert api.polls() == 0


# Waiting.


async def test_wait_ends_at_ready_with_the_next_step(shell: Shell, api: FakeApi) -> None:
    """Which is to complete it."""
    api.life = [job(), ready(paused=True, status="standby"), ready()]

    assert await shell("commit", "web", "disk0", "--job-id=qbe-x", "--wait", FAST) == 0
    assert shell.out.splitlines()[1] == (
        f"ready: complete it with qemu-block-exporter complete --url={api.url} web qbe-x"
    )
    assert api.verbs() == ["block-jobs"]


async def test_wait_ends_at_pending_too(shell: Shell, api: FakeApi) -> None:
    """It waits for somebody as well."""
    api.life = [job(status="pending")]

    assert await shell("commit", "web", "disk0", "--job-id=qbe-x", "--wait", FAST) == 0
    assert "pending: finalize it with qemu-block-exporter finalize" in shell.out


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("completed", 0), ("failed", 3), ("cancelled", 3), ("vanished", 3), ("unverified", 4),
     ("unknown", 4)],
)  # fmt: skip
async def test_wait_tells_how_a_job_ended(
    outcome: str, code: int, shell: Shell, api: FakeApi
) -> None:
    """By its exit code and in words."""
    api.life = [job(), ended(outcome, error="why")]

    assert await shell("commit", "web", "disk0", "--job-id=qbe-x", "--wait", FAST) == code
    assert re.search(r"^job qbe-x \(commit of disk0 of web\) .*: why$", shell.out, re.MULTILINE)


async def test_complete_when_ready_sees_it_through(shell: Shell, api: FakeApi) -> None:
    """In JSON lines that decode into types of the API."""
    api.life = [job(), job(offset_bytes=5), ready()]
    api.completed = [ready(status="running"), ended("completed")]

    assert await shell("commit", "web", "disk0", "--complete-when-ready", "--json", FAST) == 0
    told = lines(shell.out)
    assert [each.get("action") or each["outcome"] or each["status"] for each in told] == [
        "commit", "running", "running", "ready", "complete", "running", "completed",
    ]  # fmt: skip
    for each in told:
        msgspec.convert(each, Done if "action" in each else Job)


async def test_a_job_that_ends_by_itself_is_not_completed(shell: Shell, api: FakeApi) -> None:
    """A commit below the active layer is never ready."""
    api.life = [job(), ended("completed")]

    assert await shell("commit", "web", "disk0", "--complete-when-ready", FAST) == 0
    assert api.verbs() == ["block-jobs"]


async def test_complete_waits_for_the_outcome_where_asked_to(shell: Shell, api: FakeApi) -> None:
    """It is over when it has ended, not while it is still ready."""
    api.lives, api.completed = {"qbe-1": [ready()]}, [ready(), ready(), ended("failed")]

    assert await shell("complete", "web", "qbe-1", "--wait", FAST) == 3


async def test_complete_waits_for_ready_where_asked_to(shell: Shell, api: FakeApi) -> None:
    """And not longer than that with its request."""
    api.lives = {"qbe-1": [job(), ready()]}

    assert await shell("complete", "web", "qbe-1", "--when-ready", FAST) == 0
    assert api.verbs() == ["complete"]


async def test_complete_is_tried_again_while_it_cannot_be_sent(shell: Shell, api: FakeApi) -> None:
    """A VM that is busy for a moment must not end a night's work; the same is said once."""
    api.lives = {"qbe-1": [ready()]}
    api.posts = [problem("storage-hangs", 503)] * 3

    assert await shell("complete", "web", "qbe-1", "--when-ready", FAST) == 0
    assert shell.err.count("retrying: It is storage-hangs: all about storage-hangs") == 1
    assert api.verbs() == ["complete"] * 4


@pytest.mark.parametrize("name", ["already-asked", "unknown-job"])
async def test_a_job_that_somebody_else_completes_is_waited_for(
    name: str, shell: Shell, api: FakeApi
) -> None:
    """Its outcome is what was asked for."""
    api.lives = {"qbe-1": [ready(), ready(), ended("completed")]}
    api.posts = [problem(name, 409)]

    assert await shell("complete", "web", "qbe-1", "--when-ready", FAST) == 0


async def test_a_completion_that_is_refused_is_code_1(shell: Shell, api: FakeApi) -> None:
    """The job goes on."""
    api.posts = [problem("not-granted", 403)]
    api.lives = {"qbe-1": [ready()]}

    assert await shell("complete", "web", "qbe-1", "--when-ready", FAST) == 1


async def test_a_completion_without_an_answer_is_code_4(shell: Shell, api: FakeApi) -> None:
    """And is not sent again."""
    api.posts = [None]
    api.lives = {"qbe-1": [ready()]}

    assert await shell("complete", "web", "qbe-1", "--when-ready", FAST) == 4
    assert api.verbs() == ["complete"]
