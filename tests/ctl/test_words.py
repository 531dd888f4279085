"""What is said of jobs and refusals, and which command comes next."""

from __future__ import annotations

import shlex
from typing import Any, get_args

import pytest

from exporter.api.types import Done, Outcome, Problem
from exporter.ctl import words
from exporter.ctl.words import Prompt, about, done, exit_code, name, next_step, refusal
from tests.fakeapi import ended, job, problem, ready

PROMPT = Prompt(("--url=http://x",))


def answer(**more: object) -> Done:
    """A commit that was accepted."""
    facts: dict[str, Any] = {"vm": "web", "action": "commit", "device": "disk0", "job_id": "qbe-1", "dry_run": False,
             "replayed": False, "command": "block-commit", "arguments": {"device": "d"}, "warnings": [],
             "job": None}  # fmt: skip
    return Done(**{**facts, **more})


def test_a_command_can_be_pasted() -> None:
    """Into a shell, for the same exporter."""
    line = PROMPT.line("chain", "my vm", "-d")

    assert shlex.split(line) == [
        "qemu-block-exporter", "chain", "--url=http://x", "--", "my vm", "-d",
    ]  # fmt: skip


def test_a_command_holds_no_control_characters() -> None:
    """The name of a VM may."""
    assert Prompt().line("jobs", "a\x1b[2J\n") == "qemu-block-exporter jobs 'a\\x1b[2J\\n'"


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("completed", 0), ("failed", 3), ("cancelled", 3), ("vanished", 3), ("unverified", 4),
     ("unknown", 4)],
)  # fmt: skip
def test_each_outcome_has_its_exit_code(outcome: str, code: int) -> None:
    """And words of its own."""
    assert exit_code(ended(outcome)) == code
    assert about(ended(outcome)).startswith("job qbe-1 (commit of disk0 of web) ")


def test_all_outcomes_have_words() -> None:
    """Whatever the API adds."""
    assert set(words._ENDED) == set(words._EXIT_CODES) == set(get_args(Outcome))


def test_a_job_is_told_with_its_error() -> None:
    """Which is what the operator looks for."""
    assert about(job(error="No space left")).endswith("is running at 25%: No space left")
    assert about(ready()).endswith("is ready")
    assert about(ended("failed", device=None)) == "job qbe-1 (commit of web) failed"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "accepted: commit of disk0 of web (job qbe-1)"),
        ({"dry_run": True}, ("dry run: commit of disk0 of web (job qbe-1) would be accepted; nothing was"
         ' sent: block-commit {"device": "d"}')),
        ({"replayed": True, "command": None, "job": ended("failed")},
         ("accepted before: commit of disk0 of web (job qbe-1); nothing was sent now; job qbe-1"
         " (commit of disk0 of web) failed")),
        ({"action": "snapshot", "job_id": None}, "accepted: snapshot of disk0 of web"),
    ],
)  # fmt: skip
def test_what_became_of_a_request_is_one_sentence(more: dict[str, object], said: str) -> None:
    """In words that tell sent from not sent."""
    assert done(answer(**more)) == said


def test_a_refusal_has_the_job_that_stands_in_the_way() -> None:
    """In a line of its own."""
    said = refusal(problem("device-busy", 409, job=job("other")))

    assert said == (
        "refused: It is device-busy: all about device-busy\n"
        "job other (commit of disk0 of web) is running at 25%"
    )


def test_a_refusal_that_says_little_is_still_one() -> None:
    """The status at least."""
    assert refusal(problem("x", 418, title="", detail="")) == "refused: 418"
    assert refusal(problem("x", 418, title="Same", detail="Same")) == "refused: Same"


@pytest.mark.parametrize(
    ("type", "found"),
    [
        ("/api/v1/problems/not-ready", "not-ready"),
        ("/qemu/api/v1/problems/not-ready", "not-ready"),
        ("https://host/api/v1/problems/not-ready", "not-ready"),
        ("about:blank", ""),
        ("/other/not-ready", ""),
    ],
)
def test_a_problem_is_known_by_the_end_of_its_type(type: str, found: str) -> None:
    """A route prefix may stand before it."""
    assert name(Problem(type=type, title="", status=409, detail="", instance="")) == found


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        (
            "not-ready",
            409,
            "wait for it: qemu-block-exporter complete --url=http://x --when-ready web j",
        ),
        ("force-required", 409, "--no-force"),
        ("device-busy", 409, "see qemu-block-exporter jobs --url=http://x web"),
        ("unknown-device", 404, "see qemu-block-exporter chain --url=http://x web"),
        ("unknown-vm", 404, "see qemu-block-exporter vms --url=http://x"),
        ("not-granted", 403, "grants"),
        ("job-id-taken", 409, "--job-id"),
        ("unseen-neighbours", 409, "--allow-unseen-neighbours"),
        ("unauthorized", 401, "--http.config.file"),
        ("too-many", 503, "later"),
    ],
)
def test_a_refusal_has_a_next_step(kind: str, status: int, says: str) -> None:
    """Where there is one."""
    assert says in next_step(problem(kind, status), PROMPT, "web", "j")


def test_a_password_that_was_given_is_said_to_be_wrong() -> None:
    """And not that one should be given; also by a proxy that knows no problems."""
    given = Prompt(("--url=http://x", "--http.config.file=me.yml"))
    blank = Problem(type="about:blank", title="", status=401, detail="", instance="")
    for known in (problem("unauthorized", 401), blank):
        assert next_step(known, PROMPT, "web", "j").startswith("set user and password")
        assert next_step(known, given, "web", "j").startswith("wrong user or password")


@pytest.mark.parametrize(
    ("detail", "says"),
    [("Node '#block3' is busy: node is used as backing hd of '#block2'", "blockdev-del"),
     ("Device 'cd0' has no medium", "")],
)  # fmt: skip
def test_what_a_merged_layer_stands_in_the_way_of_has_a_next_step(detail: str, says: str) -> None:
    """QEMU keeps the nodes of -blockdev, and they hold those below them."""
    known = problem("refused-by-qemu", 422, detail=detail)

    assert says in next_step(known, PROMPT, "web", "j")
    assert bool(says) == bool(next_step(known, PROMPT, "web", "j"))


@pytest.mark.parametrize(
    ("detail", "says"),
    [("QEMU before 2.7 names the job after its device: omit job_id", "commit with --no-job-id"),
     ("this QEMU cannot finalize a job", "")],
)  # fmt: skip
def test_what_a_qemu_cannot_do_has_a_next_step_where_there_is_one(detail: str, says: str) -> None:
    """An old one names its jobs itself."""
    assert next_step(problem("not-supported", 422, detail=detail), PROMPT, "web", "j") == says


@pytest.mark.parametrize(
    ("status", "says"), [(401, "--http.config.file"), (404, "--url"), (429, "later"), (418, "")]
)
def test_a_refusal_of_somebody_else_goes_by_its_status(status: int, says: str) -> None:
    """The layer before the API has no names for them."""
    plain = Problem(type="about:blank", title="", status=status, detail="", instance="")

    assert says in next_step(plain, PROMPT, "web", "j")


def test_a_refusal_that_nobody_knows_has_none() -> None:
    """Better than a wrong one."""
    assert next_step(problem("something-new", 409), PROMPT, "web", "j") == ""


@pytest.mark.parametrize(
    ("manager", "tool"),
    [("libvirt", "virsh blockcommit"), ("proxmox", "qm delsnapshot"), ("incus", "incus snapshot"),
     ("somebody", "MANAGER in vms")],
)  # fmt: skip
def test_a_managed_vm_is_left_to_its_manager(manager: str, tool: str) -> None:
    """Whose tool is named."""
    refused = problem("managed-vm", 403, manager=manager)

    assert tool in next_step(refused, PROMPT, "web", None)
