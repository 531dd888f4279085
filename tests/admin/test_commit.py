"""Commits: how they are started, which checks they pass, and what the same request again is told."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter import api
from exporter.api.verbs import Commit
from exporter.errors import Refused, Rejected
from exporter.storage.file_stat import FileStat
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp, until
from tests.reach import USER, Reach, begin, commit, end, files, grant, refused, run

SECRET = "SECRETPW"
URL = f"http://user:{SECRET}@host"
#: Names that hold a credential, of an active layer and its base.
SECRET_FILES = (
    (f"{URL}/top.qcow2?token={SECRET}", f"{URL}/base.qcow2"),
    (f'json:{{"driver": "rbd", "image": "t", "key-secret": "{SECRET}"}}', f"rbd:p/b:key={SECRET}"),
)


# How it is started.


async def test_a_commit_is_started_and_said_with_its_job(fake: FakeQmp, reach: Reach) -> None:
    """What was sent is said, and how the job is right afterwards."""
    done = await reach.commit(speed_bytes_per_second=1024)
    sent = {
        "device": "disk0",
        "job-id": "qbe-1",
        "top-node": "top",
        "base-node": "base",
        "speed": 1024,
        "auto-dismiss": False,
    }

    assert fake.changes == [("block-commit", sent)]
    assert done.job is not None
    assert (done.job.status, done.job.device, done.job.top, done.job.base) == (
        "running", "disk0", 0, 1,
    )  # fmt: skip
    assert msgspec.structs.replace(done, job=None) == api.Done(
        vm="vm",
        action="commit",
        device="disk0",
        job_id="qbe-1",
        dry_run=False,
        replayed=False,
        command="block-commit",
        arguments=sent,
        warnings=[],
        job=None,
    )


async def test_a_request_is_on_record_before_the_command_leaves(
    fake: FakeQmp, reach: Reach
) -> None:
    """What the disk says when QEMU has the command, and when it has answered."""
    before = []
    start_it = fake.replies["block-commit"]
    assert callable(start_it)

    def answer(arguments: Mapping[str, Any]) -> Any:
        before.extend(reach.on_disk())
        return start_it(arguments)

    fake.replies["block-commit"] = answer
    await reach.commit(base="base")
    [was], [now] = before, reach.on_disk()
    about = {
        "vm": "vm", "job_id": "qbe-1", "job_type": "commit", "device": "disk0", "user": USER,
        "request": {"action": "commit", "device": "disk0", "base": "base"},
        "kept_by_qemu": True, "chain": ["top", "base"], "top": 0, "base": 1,
        "outcome": None, "error": "", "ended_timestamp_seconds": None, "dismissed": False,
        "seen_timestamp_seconds": 0.0,
    }  # fmt: skip

    assert was.pop("requested_timestamp_seconds") == now.pop("requested_timestamp_seconds")
    assert was == {**about, "started": False}
    assert now == {**about, "started": True}


async def test_an_id_is_made_where_none_is_given(fake: FakeQmp, reach: Reach) -> None:
    """Of the device's name as far as an id may have it, and never the same."""
    name = "a device/with:a name that is far too long for an id of QEMU's"
    plug(fake, Disk(device=name))
    fake.replies["block-commit"] = {"return": {}}
    request = Commit(action="commit", device=name)
    ids = {(await reach.actions.commit(USER, "vm", request)).job_id for _ in range(2)}

    assert len(ids) == 2
    for job_id in ids:
        assert job_id is not None
        assert job_id.startswith("qbe-a-device-with-a-name-that-is-far-")
        assert msgspec.convert(job_id, api.JobId) == job_id


async def test_a_disk_without_a_name_is_committed_by_its_node(fake: FakeQmp, reach: Reach) -> None:
    """As a `-blockdev` disk is."""
    run(fake, 10, 0, disk=Disk("", qdev="/machine/peripheral/disk0/virtio-backend"))
    done = await reach.commit()

    assert fake.changes[0][1]["device"] == "top"
    assert done.job.device == "disk0"


@pytest.mark.parametrize(
    ("version", "more", "sent"),
    [
        (
            (2, 0),
            {},
            {"device": "disk0", "top": "/images/top.qcow2", "base": "/images/base.qcow2"},
        ),
        ((2, 4), {}, {"device": "disk0", "base": "/images/base.qcow2"}),
        (
            (2, 12),
            {"job_id": "qbe-1"},
            {"device": "disk0", "job-id": "qbe-1", "base": "/images/base.qcow2"},
        ),
        (
            (3, 1),
            {"job_id": "qbe-1"},
            {"device": "disk0", "job-id": "qbe-1", "top-node": "top", "base-node": "base",
             "auto-dismiss": False},
        ),
        (
            (11, 0),
            {"job_id": "qbe-1"},
            {"device": "disk0", "job-id": "qbe-1", "top-node": "top", "base-node": "base",
             "auto-dismiss": False},
        ),
    ],
    ids=["2.0", "2.4", "2.12", "3.1", "11.0"],
)  # fmt: skip
async def test_each_qemu_is_asked_in_its_own_words(
    fake: FakeQmp, reach: Reach, version: tuple[int, ...], more: dict[str, Any], sent: object
) -> None:
    """An old one names a job by its device, and layers by their files."""
    run(fake, *version)
    done = await reach.actions.commit(USER, "vm", commit(**more))

    assert fake.changes == [("block-commit", sent)]
    assert done.job_id == more.get("job_id", "disk0")
    assert done.job is not None
    assert done.job.job_id == done.job_id
    assert [entry["job_id"] for entry in reach.on_disk()] == ([*more.values()] if more else [])


async def test_layers_of_an_old_qemu_are_told_apart_by_their_files(
    fake: FakeQmp, reach: Reach
) -> None:
    """It names no nodes."""
    run(fake, 2, 0, disk=Disk(nodes=("", "", ""), files=("/t", "/m", "/b")))
    await reach.actions.commit(USER, "vm", commit(top="/m", base="/b"))

    assert fake.changes == [("block-commit", {"device": "disk0", "top": "/m", "base": "/b"})]


async def test_layers_that_no_name_tells_apart_are_not_sent(
    fake: FakeQmp, sockets: Path, tmp_path: Path
) -> None:
    """Without node names and without query-block nobody knows what would be committed."""
    run(fake, 2, 0, disk=Disk(nodes=("", "")))
    reach = Reach(sockets, tmp_path / "state", topology="never")

    assert await refused(reach.actions.commit(USER, "vm", commit())) == (
        "wrong-device-state",
        (
            "the files of disk0 are not known: query-block was not asked (--collector.topology),"
            " or disagrees with query-blockstats"
        ),
    )
    assert fake.changes == []
    await reach.close()


async def test_a_layer_whose_file_has_no_name_is_not_sent_to_an_old_qemu(
    fake: FakeQmp, reach: Reach
) -> None:
    """It would take an empty one for its default."""
    run(fake, 2, 0, disk=Disk(nodes=("", ""), files=("/t", "")))

    assert await refused(reach.actions.commit(USER, "vm", commit())) == (
        "wrong-device-state",
        "the images of disk0 are unknown",
    )
    assert fake.changes == []


async def test_an_old_qemu_takes_no_id(fake: FakeQmp, reach: Reach) -> None:
    """Before 2.7 a job is named by its device: a retry cannot be told from another request."""
    run(fake, 2, 6)

    assert await refused(reach.commit()) == (
        "not-supported",
        "QEMU before 2.7 names the job after its device: omit job_id",
    )
    assert (fake.changes, reach.on_disk()) == ([], [])


async def test_a_dry_run_checks_everything_and_sends_nothing(fake: FakeQmp, reach: Reach) -> None:
    """It says what would be sent, leaves no record, and a later request is not a replay."""
    done = await reach.actions.commit(USER, "vm", commit(job_id="qbe-1"), dry_run=True)

    assert (done.dry_run, done.replayed, done.command, done.job) == (
        True, False, "block-commit", None,
    )  # fmt: skip
    assert done.arguments["base-node"] == "base"
    assert (fake.changes, reach.on_disk()) == ([], [])
    assert not (await reach.commit()).replayed


async def test_storage_that_cannot_be_seen_is_a_warning(fake: FakeQmp, reach: Reach) -> None:
    """The request is done all the same."""
    reach.sight = FileStat(visible=False)
    done = await reach.commit()

    assert done.warnings == [
        "image files are not visible to the exporter: whether their storage answers is unknown"
    ]
    assert len(fake.changes) == 1


# Which checks, and in which order.


async def test_the_checks_come_in_one_order(fake: FakeQmp, reach: Reach) -> None:
    """Everything is wrong at first, and one thing after the other is put right."""
    seen = []

    async def step(**more: Any) -> None:
        seen.append((await refused(reach.commit(**more)))[0])

    def vm_is(status: str) -> None:
        fake.replies["query-status"] = {"return": {"running": False, "status": status}}

    fake.replies["query-block-jobs"] = b"{}\r\n"
    reach.grant(grant("bob"))
    vm_is("inmigrate")
    plug(fake, Disk(nodes=("qemu-x", "libvirt-1-format")))
    reach.sight = FileStat(visible=True)
    await step()
    reach.grant(grant())
    await step()
    begin(fake, "other")
    await step()
    vm_is("running")
    await step()
    reach.grant(grant(allow_managed=True))
    await step(base="nope")
    plug(fake)
    await step(base="nope")
    plug(fake, Disk())
    await step(base="nope")
    begin(fake, "qbe-1", status="concluded")
    await step(base="nope")
    await step(top="base")
    await step()

    assert seen == [
        "not-granted", "vm-down", "wrong-vm-state", "managed-vm", "device-busy", "unknown-device",
        "device-busy", "unknown-layer", "nothing-to-commit", "job-id-taken",
    ]  # fmt: skip
    assert (fake.changes, reach.on_disk()) == ([], [])


async def test_the_same_request_is_answered_while_its_vm_is_being_migrated(
    fake: FakeQmp, reach: Reach
) -> None:
    """It changes nothing."""
    await reach.commit()
    fake.replies["query-migrate"] = {"return": {"status": "active"}}
    again = await reach.commit()

    assert (again.replayed, again.job.status) == (True, "running")


# What is on record.


async def test_a_request_that_cannot_be_recorded_is_not_sent(
    fake: FakeQmp, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the account is full."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)

    assert await refused(reach.commit()) == (
        "not-recorded",
        f"{reach.state}: No space left on device",
    )
    assert fake.changes == []
    assert reach.state is not None
    assert files(reach.state) == []


async def test_a_disk_that_is_full_afterwards_does_not_hide_that_a_job_runs(
    fake: FakeQmp, reach: Reach, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is on record as asked for: nobody is told that nothing was sent."""
    start_it = fake.replies["block-commit"]
    assert callable(start_it)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def answer(arguments: Mapping[str, Any]) -> Any:
        monkeypatch.setattr(os, "replace", full)
        return start_it(arguments)

    fake.replies["block-commit"] = answer
    done = await reach.commit()

    assert (done.job_id, done.job.status) == ("qbe-1", "running")
    assert [entry["started"] for entry in reach.on_disk()] == [False]
    assert "not recorded" in caplog.text


# The same request again.


async def test_the_same_request_again_is_answered_with_the_job(fake: FakeQmp, reach: Reach) -> None:
    """Nothing is sent for a second time."""
    first = await reach.commit()
    again = await reach.commit()

    assert (again.replayed, again.dry_run, again.command, again.arguments) == (
        True, False, None, {},
    )  # fmt: skip
    assert again.job == first.job
    assert len(fake.changes) == 1


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_same_request_is_known_when_the_job_is_long_gone(
    fake: FakeQmp, reach: Reach, sockets: Path, restarted: bool
) -> None:
    """Also after a restart, and while the VM is down."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    for _ in range(3):
        await reach.look()
    assert fake.commands.count("job-dismiss") == 1
    if restarted:
        await reach.close()
        reach = Reach(sockets, reach.state)
    again = await reach.commit()
    down = fake.replies.pop("query-blockstats")
    fake.replies["query-status"] = b"x\r\n"
    unseen = await reach.commit()
    fake.replies["query-blockstats"] = down
    await reach.close()

    assert again.replayed
    assert (again.job.outcome, again.job.status, again.job.device) == ("completed", None, "disk0")
    assert (unseen.replayed, unseen.job.outcome) == (True, "completed")
    assert fake.commands.count("block-commit") == 1


async def test_the_same_request_is_known_when_its_vm_is_no_target_any_more(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """And another of that id is still another; without a record there is no such VM."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    for _ in range(3):
        await reach.look()
    sent = len(fake.received)
    (sockets / "vm.sock").unlink()
    reach.fleet.discover()
    again = await reach.commit()

    assert (again.replayed, again.job.outcome, again.job.status) == (True, "completed", None)
    assert (await refused(reach.commit(base="base")))[0] == "job-id-taken"
    assert await refused(reach.commit("qbe-2")) == ("unknown-vm", "there is no VM 'vm'")
    assert len(fake.received) == sent


async def test_a_vm_that_was_not_looked_for_yet_is_no_vm_that_is_gone(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """After a restart the job is told as it is now, and not as it was last known."""
    await reach.commit()
    await reach.close()
    again = Reach(sockets, reach.state)
    done = await again.commit()
    await again.close()

    assert (done.replayed, done.job.status) == (True, "running")


async def test_others_are_not_looked_at_for_what_is_on_record(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """Nothing is sent, so nothing can be shared."""
    await reach.commit()
    async with FakeQmp(str(sockets / "other.sock")) as other:
        again = await reach.commit()

    assert (again.replayed, again.warnings, other.received) == (True, [], [])


@pytest.mark.parametrize(
    "more", [{"base": "base"}, {"speed_bytes_per_second": 1}, {"top": "top"}], ids=str
)
async def test_an_id_is_of_one_request(fake: FakeQmp, reach: Reach, more: dict[str, Any]) -> None:
    """Even where another one would do the same; the job of the first is told."""
    await reach.commit()
    with pytest.raises(Refused) as caught:
        await reach.commit(**more)

    assert (caught.value.problem, str(caught.value)) == (
        "job-id-taken",
        "qbe-1 belongs to another request",
    )
    assert isinstance(caught.value.more["job"], api.Job)
    assert caught.value.more["job"].job_id == "qbe-1"
    assert len(fake.changes) == 1


async def test_the_same_id_on_two_vms_is_two_jobs(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """An id is QEMU's."""
    async with FakeQmp(str(sockets / "two.sock")) as two:
        run(two, 7, 2, disk=Disk(nodes=("t", "b")))
        await reach.commit()
        done = await reach.commit(vm="two")

    assert not done.replayed
    assert (len(fake.changes), len(two.changes)) == (1, 1)


async def test_who_repeats_the_request_of_another_needs_the_grant_too(
    fake: FakeQmp, reach: Reach
) -> None:
    """With it he is told of the job as the first one was."""
    await reach.commit()
    asked = commit(job_id="qbe-1")
    assert (await refused(reach.actions.commit("bob", "vm", asked)))[0] == "not-granted"
    reach.grant(grant("bob"))
    again = await reach.actions.commit("bob", "vm", asked)

    assert again.replayed
    assert reach.entry("qbe-1").user == USER


async def test_a_replay_that_is_tried_is_told_as_both(fake: FakeQmp, reach: Reach) -> None:
    """A dry run of what was done."""
    await reach.commit()
    again = await reach.actions.commit(USER, "vm", commit(job_id="qbe-1"), dry_run=True)

    assert (again.replayed, again.dry_run) == (True, True)


async def test_one_request_that_is_sent_many_times_at_once_is_done_once(
    fake: FakeQmp, reach: Reach
) -> None:
    """The others are told of the same job."""
    results = await asyncio.gather(*(reach.commit() for _ in range(5)))

    assert sorted(each.replayed for each in results) == [False, True, True, True, True]
    assert len({each.job.job_id for each in results}) == 1
    assert len(fake.changes) == 1


async def test_a_request_that_waits_while_the_same_one_starts_its_job_is_told_of_it(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """Beside other VMs, which are looked at in between, as without."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        run(other, 7, 2, disk=Disk(nodes=("x", "y")))
        other.answering.clear()
        first = asyncio.create_task(reach.commit())
        await until(lambda: other.received)
        fake.answering.clear()
        seen = len(fake.received)
        other.answering.set()
        await until(lambda: len(fake.received) > seen)  # it has the VM, and no record yet
        second = asyncio.create_task(reach.commit())
        await asyncio.sleep(0)
        fake.answering.set()
        results = await asyncio.gather(first, second)

    assert [each.replayed for each in results] == [False, True]
    assert len(fake.changes) == 1


# QEMU's own refusals. [qemu-facts.md, section 7]

REFUSALS = [
    ("DeviceNotFound", "Device 'disk0' not found"),
    ("GenericError", "Invalid job ID ''"),
    ("GenericError", "cannot commit an image into itself"),
    ("GenericError", "Need a root block node"),
    ("GenericError", "Job ID 'disk0' already in use"),
    ("GenericError", "Node 'disk0' is busy: block device is in use by block job: commit"),
    ("GenericError", "Top image file /nope.qcow2 not found"),
    ("GenericError", "Base '/nope.qcow2' not found"),
    ("GenericError", "Can't find '/nope.qcow2' in the backing chain"),
    ("GenericError", "Cannot find device='' nor node-name='zz'"),
    ("GenericError", "'n-3-format' is not in this backing file chain"),
    ("GenericError", "'base-node' and 'base' are mutually exclusive"),
    ("GenericError", "Parameter 'speed' expects a non-negative value"),
    ("GenericError", "'backing-file' specified, but 'top' is the active layer"),
    ("CommandNotFound", "The command block-commit has not been found"),
]


@pytest.mark.parametrize(("kind", "text"), REFUSALS)
async def test_what_qemu_refuses_is_told_in_its_words_and_forgotten(
    fake: FakeQmp, reach: Reach, kind: str, text: str
) -> None:
    """Nothing came of it: the id may be used again."""
    works = fake.replies["block-commit"]
    fake.replies["block-commit"] = {"error": {"class": kind, "desc": text}}
    with pytest.raises(Rejected) as caught:
        await reach.commit()
    assert str(caught.value) == text
    assert (reach.on_disk(), len(fake.changes)) == ([], 1)
    fake.replies["block-commit"] = works

    assert not (await reach.commit(base="base")).replayed


# Secrets.


@pytest.mark.parametrize("files", SECRET_FILES, ids=["http", "json and rbd"])
@pytest.mark.parametrize("version", [(2, 0), (7, 2)])
async def test_a_credential_in_a_file_name_is_for_qemu_alone(
    fake: FakeQmp,
    reach: Reach,
    files: tuple[str, str],
    version: tuple[int, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An old QEMU is told the layers by their names: what is said of it has no credential."""
    caplog.set_level(logging.DEBUG)
    run(fake, *version, disk=Disk(nodes=("", "") if version < (3,) else ("t", "b"), files=files))
    done = await reach.actions.commit(USER, "vm", commit())
    sent = fake.changes[0][1]

    assert sent.get("top", files[0]) == files[0]
    assert sent.get("base", files[1]) == files[1]
    assert SECRET not in msgspec.json.encode(done).decode()
    assert done.arguments.keys() == sent.keys()
    assert SECRET not in json.dumps(reach.on_disk())
    assert SECRET not in caplog.text


@pytest.mark.parametrize("files", SECRET_FILES, ids=["http", "json and rbd"])
async def test_a_credential_that_qemu_repeats_is_not_repeated(
    fake: FakeQmp, reach: Reach, files: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its error texts quote file names."""
    caplog.set_level(logging.DEBUG)
    desc = f"Could not open '{files[1]}': No such file or directory"
    fake.replies["block-commit"] = {"error": {"class": "GenericError", "desc": desc}}
    with pytest.raises(Rejected) as caught:
        await reach.commit()

    assert str(caught.value).startswith("Could not open '")
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


async def test_a_credential_in_the_error_of_a_job_is_not_recorded(
    fake: FakeQmp, reach: Reach
) -> None:
    """Nor is it shown."""
    await reach.commit()
    end(fake, "qbe-1", error=f"Could not read {URL}/x?key={SECRET}")
    for _ in range(2):
        await reach.look()
    again = await reach.commit()

    assert again.job.outcome == "failed"
    assert again.job.error.startswith("Could not read http://host/x")
    assert SECRET not in msgspec.json.encode(again).decode()
    assert SECRET not in json.dumps(reach.on_disk())


@pytest.mark.parametrize("files", SECRET_FILES, ids=["http", "json and rbd"])
async def test_a_credential_that_is_asked_with_is_not_repeated(
    fake: FakeQmp, reach: Reach, files: tuple[str, str]
) -> None:
    """Who names a layer as QEMU does has no layer of that name."""
    plug(fake, Disk(files=files))
    problem, detail = await refused(reach.commit(base=files[1]))

    assert problem == "unknown-layer"
    assert SECRET not in detail


async def test_the_disk_of_a_commit_is_on_record_where_qemu_does_not_tell_it(
    fake: FakeQmp, reach: Reach
) -> None:
    """A QEMU before 4.0, or one that was told to refuse what is unstable."""
    await reach.commit()
    fake.replies.pop("x-debug-query-block-graph", None)
    collected = await reach.look()

    assert [(job.job_id, job.device, job.top, job.base) for job in collected.snapshot.jobs] == [
        ("qbe-1", "disk0", "0", "1")
    ]
