"""What the job verb that CONTRIBUTING.md adds can do; `test_newcomer` runs this where it was added."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.api import openapi
from tests.fakeqmp import FakeQmp
from tests.reach import Reach, begin, grant, run, said, serving
from tests.shell import Shell

VERB, COMMAND = "converge", "block-job-change"
ARGUMENTS = {"id": "j", "type": "mirror", "copy-mode": "write-blocking"}
PATH = "/vms/vm/block-jobs/j/converge"


def has_command(fake: FakeQmp) -> None:
    """Have this be a QEMU that knows the command."""
    listed = fake.replies["query-commands"]
    assert isinstance(listed, dict)
    listed["return"].append({"name": COMMAND})
    fake.replies[COMMAND] = {"return": {}}


async def test_who_is_granted_the_verb_changes_a_job_by_http(
    fake: FakeQmp, reach: Reach, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One command leaves, one line is in the audit trail, and it is counted."""
    run(fake, 8, 2)
    has_command(fake)
    begin(fake, "j")
    reach.grant(grant("alice", verbs=(VERB,)))
    async with serving(reach, tmp_path, "alice", "bob") as site:
        dry = await site.post(f"{PATH}?dry_run=true", {})
        refused = await site.post(PATH, {}, user="bob")
        done = await site.post(PATH, {})

    assert (dry.status, dry.body["arguments"]) == (200, ARGUMENTS)
    assert (refused.status, refused.problem) == (403, "not-granted")
    assert (done.status, done.body["action"], done.body["command"]) == (202, VERB, COMMAND)
    assert fake.changes == [(COMMAND, ARGUMENTS)]
    assert [(line["action"], line["result"]) for line in said(caplog.records)] == [
        (VERB, "dry_run"), (VERB, "refused"), (VERB, "done"),
    ]  # fmt: skip
    assert reach.counts[VERB, "done"] == 1


async def test_a_job_that_must_not_be_changed_so_is_refused(
    fake: FakeQmp, reach: Reach, tmp_path: Path
) -> None:
    """By its precondition; and a QEMU without the command by that."""
    run(fake, 7, 2)
    begin(fake, "j")
    async with serving(reach, tmp_path, "alice") as site:
        old = await site.post(PATH, {})
        begin(fake, "j", status="concluded")
        late = await site.post(PATH, {})

    assert (old.problem, late.problem) == ("not-supported", "wrong-job-state")
    assert fake.changes == []


def test_the_description_of_the_api_has_it() -> None:
    """With what it does, and all that it may be refused with."""
    paths = openapi.description("")["paths"]
    operation = paths["/api/v1/admin/vms/{vm}/block-jobs/{job_id}/converge"]["post"]

    assert operation["operationId"] == VERB
    assert operation["summary"] == "Have a mirror copy what the guest writes at once."
    assert {"200", "202", "403", "404", "409"} <= operation["responses"].keys()


async def test_operators_have_a_command_for_it(shell: Shell) -> None:
    """Which takes what all of these take."""
    assert await shell(VERB, "web", "qbe-1") == 0
    assert shell.api.verbs() == [VERB]
    assert await shell(VERB, "web", "qbe-1", "--dry-run") == 0
