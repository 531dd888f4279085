"""What users ask for: which checks it passes, what leaves this process, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter import api
from exporter.api import Commit
from exporter.config import Admin, Config, Group, Settings
from exporter.errors import OutcomeUnknown, Refused, Rejected
from exporter.storage import Sight
from exporter.turn import Turn
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp, dying, until
from tests.reach import USER, Reach, begin, end, gone, grant, run

SECRET = "SECRETPW"
URL = f"http://user:{SECRET}@host"
#: Names that hold a credential, of an active layer and its base.
SECRET_FILES = (
    (f"{URL}/top.qcow2?token={SECRET}", f"{URL}/base.qcow2"),
    (f'json:{{"driver": "rbd", "image": "t", "key-secret": "{SECRET}"}}', f"rbd:p/b:key={SECRET}"),
)
VERBS: Mapping[api.Verb, api.Request] = {
    "complete": api.Complete(),
    "cancel": api.Cancel(force=True),
    "pause": api.Pause(),
    "resume": api.Resume(),
    "finalize": api.Finalize(),
    "dismiss": api.Dismiss(),
    "speed": api.SetSpeed(speed_bytes_per_second=5),
}
#: A job that each verb may be done to.
STATE: Mapping[api.Verb, dict[str, object]] = {
    "complete": {"status": "ready", "ready": True},
    "cancel": {"status": "ready", "ready": True},
    "pause": {},
    "resume": {"status": "paused", "paused": True},
    "finalize": {"status": "pending"},
    "dismiss": {"status": "concluded"},
    "speed": {},
}


def commit(**more: Any) -> Commit:
    """A request."""
    return Commit(action="commit", device="disk0", **more)


async def refused(asked: Any) -> tuple[str, str]:
    """Return the problem and the detail that a request is refused with."""
    with pytest.raises(Refused) as caught:
        await asked
    return caught.value.problem, str(caught.value)


# A commit.


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


async def test_a_disk_without_a_name_is_committed_by_its_node(
    fake: FakeQmp, reach: Reach
) -> None:
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
            " or tells another chain than query-blockstats"
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
        "the images of disk0 are not known",
    )
    assert fake.changes == []


async def test_an_old_qemu_takes_no_id(fake: FakeQmp, reach: Reach) -> None:
    """Before 2.7 a job is named by its device: a retry cannot be told from another request."""
    run(fake, 2, 6)

    assert await refused(reach.commit()) == (
        "not-supported",
        "this QEMU names a job by its device: give no job_id",
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
    reach.sight = Sight(visible=False)
    done = await reach.commit()

    assert done.warnings == [
        "image files cannot be seen from here: nobody knows whether their storage answers"
    ]
    assert len(fake.changes) == 1


# Which checks, and in which order.


async def test_who_has_no_grant_learns_nothing(fake: FakeQmp, reach: Reach) -> None:
    """Not even whether there is such a VM; the VM is not asked."""
    for vm in ("vm", "none"):
        asked = reach.actions.commit("bob", vm, commit())
        assert await refused(asked) == ("not-granted", f"no grant lets 'bob' commit on {vm!r}")
    assert fake.received == []


async def test_a_vm_that_there_is_not_is_refused(fake: FakeQmp, reach: Reach) -> None:
    """By the name that was asked for."""
    assert await refused(reach.commit(vm="none")) == ("unknown-vm", "there is no VM 'none'")


async def test_a_vm_that_has_just_come_is_found(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """It need not have been scraped before."""
    reach.fleet.discover()
    async with FakeQmp(str(sockets / "new.sock")) as new:
        run(new, 7, 2, disk=Disk(nodes=("t", "b")))
        await reach.commit(vm="new")

    assert len(new.changes) == 1


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
    reach.sight = Sight(visible=True)
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


@pytest.mark.parametrize("status", ["setup", "active", "postcopy-active", "cancelling"])
async def test_the_disks_of_a_vm_that_is_being_migrated_are_left_alone(
    fake: FakeQmp, reach: Reach, granted: Path, status: str
) -> None:
    """It runs as ever meanwhile, so it is asked each time."""
    ready = {"status": "ready", "ready": True}
    idle = fake.replies["query-block-jobs"]
    fake.replies["query-migrate"] = {"return": {"status": status, "ram": {"total": 1}}}
    problems = [await refused(reach.commit()), await refused(snapshot(reach, granted / "new"))]
    begin(fake, **ready)
    problems.append(await refused(complete(reach)))
    assert problems == [("wrong-vm-state", f"vm is being migrated: {status}")] * 3
    assert (fake.changes, reach.on_disk(), files(granted)) == ([], [], [])
    fake.replies["query-migrate"] = {"return": {"status": "cancelled"}}
    await complete(reach)
    fake.replies["query-block-jobs"] = idle

    assert (await reach.commit()).command == "block-commit"


async def test_the_same_request_is_answered_while_its_vm_is_being_migrated(
    fake: FakeQmp, reach: Reach
) -> None:
    """It changes nothing."""
    await reach.commit()
    fake.replies["query-migrate"] = {"return": {"status": "active"}}
    again = await reach.commit()

    assert (again.replayed, again.job.status) == (True, "running")


async def test_it_is_asked_whether_a_vm_is_being_migrated_just_before_it_is_changed(
    fake: FakeQmp, reach: Reach
) -> None:
    """What it can do is asked once a connection, and this each time."""
    await reach.commit()
    await reach.actions.change(USER, "vm", "qbe-1", "pause", api.Pause())
    asked = [
        name
        for name in fake.commands
        if name in ("query-migrate", "query-commands", "block-commit", "job-pause")
    ]

    assert asked == ["query-migrate", "query-commands", "block-commit", "query-migrate", "job-pause"]


async def test_a_layer_of_another_vm_is_not_written_to(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """As far as scrapes know its disks, also after it went down."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "base")))
        await reach.look("other")
    await reach.look("other")

    assert await refused(reach.commit()) == (
        "shared-layer",
        "/images/base.qcow2 is layer 1 of disk0 of other too",
    )
    assert fake.changes == []


async def test_a_disk_that_another_vm_got_since_it_was_looked_at_is_seen(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """All VMs are looked at anew, for each commit, however short ago they were scraped."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        await reach.fleet.scrape(20.0)
        assert (await reach.actions.commit(USER, "vm", commit(), dry_run=True)).warnings == []
        plug(other, Disk("hot", nodes=("x", "base")))

        assert await refused(reach.commit()) == (
            "shared-layer",
            "/images/base.qcow2 is layer 1 of hot of other too",
        )
    assert fake.changes == []


async def test_one_file_that_two_vms_know_by_two_names_is_not_written_to(
    fake: FakeQmp, reach: Reach, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage tells which file a name leads to."""
    monkeypatch.setattr("exporter.storage._RECENT_SECONDS", 0.0)
    reach.sight = Sight(visible=True, identity=(8, 1, 5))
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "y"), files=("/links/x", "/links/y")))

        assert await refused(reach.commit()) == (
            "shared-layer",
            "/links/x is layer 0 of disk0 of other too",
        )
        reach.sight = Sight(visible=True)
        assert (await reach.commit()).command == "block-commit"


async def test_a_vm_that_has_come_since_the_last_scrape_is_looked_at(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """Its socket is looked for, however short ago that was done."""
    await reach.fleet.scrape(20.0)
    async with FakeQmp(str(sockets / "new.sock")) as new:
        plug(new, Disk(nodes=("x", "base")))

        assert await refused(reach.commit()) == (
            "shared-layer",
            "/images/base.qcow2 is layer 1 of disk0 of new too",
        )


async def test_a_vm_that_is_only_slow_is_waited_for(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """On a busy host too its layers are not written to."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "base")))
        other.answering.clear()
        committing = asyncio.create_task(reach.commit())
        await until(lambda: other.received)
        asyncio.get_running_loop().call_later(1.1, other.answering.set)

        assert (await refused(committing))[0] == "shared-layer"
    assert fake.changes == []


async def test_a_vm_that_is_silent_is_waited_for_as_long_as_it_may_take_to_answer(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """It is named as any that does not answer."""
    hasty = Group(
        name="hasty", settings=Settings(timeout_seconds=0.05), sockets=(f"{sockets}/other.sock",)
    )
    patient = Group(name="patient", settings=Settings(), sockets=(f"{sockets}/vm.sock",))
    reach.fleet.reconfigure(Config(groups=(hasty, patient), admin=Admin(grants=(grant(),))))
    async with FakeQmp(str(sockets / "other.sock")) as other:
        other.greeting = None
        done = await reach.commit()

    assert done.warnings == ["other does not answer (greeting_timeout): it may share a layer"]


async def test_a_vm_whose_files_are_not_known_may_share_a_layer(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """It answers, and yet nobody can compare."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "y")))
        other.replies["query-block"] = {"error": {"class": "GenericError", "desc": "no"}}
        done = await reach.commit()

    assert done.warnings == [
        "other does not tell the files of all its disks: it may share a layer"
    ]


async def test_files_that_cannot_be_looked_at_are_compared_by_name_alone(
    fake: FakeQmp, reach: Reach, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is said; a name that is the same is refused as ever."""

    async def see(self: Turn, paths: Collection[str]) -> Any:
        assert "/mnt/y" in paths
        raise Refused("storage-hangs", "/mnt hangs")

    monkeypatch.setattr(Turn, "identities", see)
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "y"), files=("/mnt/x", "/mnt/y")))
        done = await reach.actions.commit(USER, "vm", commit(), dry_run=True)
        plug(other, Disk(nodes=("z", "base")))
        problem, _ = await refused(reach.commit())

    assert done.warnings == ["layers of other disks were compared by name alone: /mnt hangs"]
    assert problem == "shared-layer"


async def test_a_vm_that_does_not_answer_may_share_a_layer(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """It is named; of a socket that nobody listens on there is no QEMU."""
    async with FakeQmp(str(sockets / "gone.sock")):
        pass
    async with FakeQmp(str(sockets / "odd.sock")) as odd, FakeQmp(str(sockets / "b.sock")) as b:
        odd.replies["query-status"] = b.replies["query-status"] = b"x\r\n"
        done = await reach.commit()

    assert done.warnings == [
        "b does not answer (protocol): it may share a layer",
        "odd does not answer (protocol): it may share a layer",
    ]
    assert done.job.status == "running"


async def test_a_vm_that_does_not_answer_is_refused(reach: Reach, sockets: Path) -> None:
    """The reason is the one that its metrics have."""
    async with FakeQmp(str(sockets / "vm.sock")):
        reach.fleet.discover()

    problem, detail = await refused(reach.commit())
    assert (problem, detail.partition(":")[0]) == ("vm-down", "vm")
    assert "refused" in detail or "no_socket" in detail


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


# Grants.


async def test_a_grant_is_of_users_verbs_and_patterns_of_vms(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """Shell patterns, as everywhere in the configuration."""
    reach.grant(
        grant("alice", "bob", verbs=("commit",), vms=("web-*", "db[12]")),
        grant("carol", verbs=("pause",)),
    )
    asked = [
        ("alice", "commit", "web-1"), ("bob", "commit", "db2"), ("carol", "pause", "db9"),
        ("alice", "commit", "db3"), ("alice", "pause", "web-1"), ("carol", "commit", "web-1"),
        ("Alice", "commit", "web-1"), ("alice", "commit", "WEB-1"), ("", "commit", "web-1"),
    ]  # fmt: skip
    problems = []
    for user, verb, vm in asked:
        request = commit() if verb == "commit" else api.Pause()
        done = (
            reach.actions.commit(user, vm, request)
            if isinstance(request, Commit)
            else reach.actions.change(user, vm, "j", "pause", request)
        )
        problems.append((await refused(done))[0])

    assert problems == ["unknown-vm"] * 3 + ["not-granted"] * 6


async def test_only_grants_that_match_allow_managed_vms(fake: FakeQmp, reach: Reach) -> None:
    """What another grant of the same user allows elsewhere does not count; one that matches does."""
    plug(fake, Disk(nodes=("libvirt-2-format", "libvirt-1-format")))
    elsewhere = [
        grant(vms=("other",), allow_managed=True),
        grant(verbs=("pause",), allow_managed=True),
        grant("bob", allow_managed=True),
    ]
    reach.grant(grant(), *elsewhere)
    assert (await refused(reach.commit()))[0] == "managed-vm"
    reach.grant(grant(), grant(vms=("v*",), allow_managed=True))

    assert (await reach.commit()).command == "block-commit"


async def test_only_grants_that_match_give_directories(
    fake: FakeQmp, reach: Reach, tmp_path: Path
) -> None:
    """Several of them add up."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()

    def of(name: str, **more: Any) -> Any:
        return grant(directories=(str(tmp_path / name),), same_files=True, **more)

    reach.grant(of("a"), of("b"), of("c", vms=("other",)), grant("alice"))
    for name in ("a", "b"):
        request = api.Snapshot(device="disk0", file=str(tmp_path / name / "x.qcow2"))
        await reach.actions.snapshot(USER, "vm", request)
    request = api.Snapshot(device="disk0", file=str(tmp_path / "c/x.qcow2"))

    assert await refused(reach.actions.snapshot(USER, "vm", request)) == (
        "not-granted",
        f"no grant names the directory {tmp_path / 'c'}",
    )
    assert len(fake.changes) == 2


async def test_what_no_grant_allows_alone_two_do_not_either(
    fake: FakeQmp, reach: Reach, tmp_path: Path
) -> None:
    """One allows managed VMs and the other the directory: neither a file there on such a VM."""
    (tmp_path / "a").mkdir()
    plug(fake, Disk(nodes=("libvirt-2-format", "libvirt-1-format")))
    here = {"directories": (str(tmp_path / "a"),), "same_files": True}
    bold = {"directories": (str(tmp_path / "b"),), "allow_managed": True}
    reach.grant(grant(**here), grant(**bold))

    assert await refused(snapshot(reach, tmp_path / "a/x")) == (
        "not-granted",
        f"no grant names the directory {tmp_path / 'a'}",
    )
    assert (fake.changes, files(tmp_path / "a")) == ([], [])
    reach.grant(grant(**here, allow_managed=True))
    assert (await snapshot(reach, tmp_path / "a/x")).command == "blockdev-snapshot-sync"


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_file_that_nobody_knows_to_be_the_same_to_qemu_is_not_made(
    fake: FakeQmp, reach: Reach, granted: Path, dry_run: bool
) -> None:
    """Who answers here is no QEMU; the grant of another directory says nothing of this one."""
    elsewhere = grant(directories=(str(granted.parent / "elsewhere"),), same_files=True)
    reach.grant(grant(directories=(str(granted),)), elsewhere)
    problem, detail = await refused(snapshot(reach, granted / "new", dry_run=dry_run))

    assert (problem, detail.partition(":")[0]) == ("bad-file", str(granted))
    assert detail.endswith("a grant may say so (same_files)")
    assert (fake.changes, files(granted)) == ([], [])


async def test_a_grant_that_is_gone_is_gone_at_once(fake: FakeQmp, reach: Reach) -> None:
    """As soon as the configuration was read again."""
    await reach.commit()
    reach.grant()

    assert (await refused(reach.commit()))[0] == "not-granted"


# The same request again.


async def test_the_same_request_again_is_answered_with_the_job(
    fake: FakeQmp, reach: Reach
) -> None:
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
async def test_an_id_is_of_one_request(
    fake: FakeQmp, reach: Reach, more: dict[str, Any]
) -> None:
    """Even where another one would do the same; the job of the first is told."""
    await reach.commit()
    with pytest.raises(Refused) as caught:
        await reach.commit(**more)

    assert (caught.value.problem, str(caught.value)) == (
        "job-id-taken",
        "qbe-1 is of another request",
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


IN_STATE = "Job 'disk0' in state '{}' cannot accept command verb '{}'"
JOB_REFUSALS: list[tuple[api.Verb, str, str]] = [
    ("complete", "GenericError", "Job not found"),
    ("complete", "DeviceNotActive", "Block job 'disk0' not found"),
    ("complete", "GenericError", IN_STATE.format("paused", "complete")),
    ("cancel", "DeviceNotActive", "Block job 'disk0' not found"),
    ("pause", "GenericError", "Job is already paused"),
    ("resume", "GenericError", "Can't resume a job that was not paused"),
    ("finalize", "GenericError", IN_STATE.format("running", "finalize")),
    ("dismiss", "GenericError", IN_STATE.format("running", "dismiss")),
    ("speed", "GenericError", "Parameter 'speed' expects a non-negative value"),
]


@pytest.mark.parametrize(("verb", "kind", "text"), JOB_REFUSALS)
async def test_what_qemu_refuses_to_do_to_a_job_is_told_in_its_words(
    fake: FakeQmp, reach: Reach, verb: api.Verb, kind: str, text: str
) -> None:
    """And may be asked for again."""
    begin(fake, "disk0", **STATE[verb])
    name = {"cancel": "block-job-cancel", "speed": "block-job-set-speed"}.get(verb, f"job-{verb}")
    fake.replies[name] = {"error": {"class": kind, "desc": text}}
    for _ in range(2):
        with pytest.raises(Rejected) as caught:
            await reach.actions.change(USER, "vm", "disk0", verb, VERBS[verb])
        assert str(caught.value) == text

    assert len(fake.changes) == 2


# Jobs.

SENT: Mapping[api.Verb, tuple[str, dict[str, object]]] = {
    "complete": ("job-complete", {"id": "j"}),
    "cancel": ("block-job-cancel", {"device": "j", "force": True}),
    "pause": ("job-pause", {"id": "j"}),
    "resume": ("job-resume", {"id": "j"}),
    "finalize": ("job-finalize", {"id": "j"}),
    "dismiss": ("job-dismiss", {"id": "j"}),
    "speed": ("block-job-set-speed", {"device": "j", "speed": 5}),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("version", [(3, 0), (7, 2), (11, 0)])
async def test_a_job_is_changed_by_the_command_of_its_verb(
    fake: FakeQmp, reach: Reach, verb: api.Verb, version: tuple[int, ...]
) -> None:
    """The `job-` forms where query-commands has them; on whatever job, whoever started it."""
    run(fake, *version)
    begin(fake, "j", **STATE[verb])
    done = await reach.actions.change(USER, "vm", "j", verb, VERBS[verb])
    command, arguments = SENT[verb]

    assert fake.changes == [(command, arguments)]
    assert (done.action, done.job_id, done.command, done.arguments) == (
        verb, "j", command, arguments,
    )  # fmt: skip
    assert (done.dry_run, done.replayed) == (False, False)


@pytest.mark.parametrize("verb", VERBS)
async def test_nothing_is_sent_to_a_job_on_a_dry_run(
    fake: FakeQmp, reach: Reach, verb: api.Verb
) -> None:
    """And a complete that was tried is not one that was asked for."""
    begin(fake, "j", **STATE[verb])
    for _ in range(2):
        done = await reach.actions.change(USER, "vm", "j", verb, VERBS[verb], dry_run=True)

    assert fake.changes == []
    assert (done.dry_run, done.command) == (True, SENT[verb][0])
    assert done.job is not None
    assert done.job.job_id == "j"


@pytest.mark.parametrize(
    ("version", "verb", "sent"),
    [
        ((2, 0), "complete", ("block-job-complete", {"device": "disk0"})),
        ((2, 0), "pause", ("block-job-pause", {"device": "disk0"})),
        ((2, 0), "cancel", ("block-job-cancel", {"device": "disk0", "force": True})),
        ((2, 12), "finalize", ("block-job-finalize", {"device": "disk0"})),
        ((2, 12), "dismiss", ("block-job-dismiss", {"device": "disk0"})),
    ],
)
async def test_an_old_qemu_has_the_older_forms(
    fake: FakeQmp, reach: Reach, version: tuple[int, ...], verb: api.Verb, sent: object
) -> None:
    """Their argument is `device`, which is the id."""
    run(fake, *version)
    begin(fake, "disk0", **STATE[verb])
    await reach.actions.change(USER, "vm", "disk0", verb, VERBS[verb])

    assert fake.changes == [sent]


@pytest.mark.parametrize("verb", ["finalize", "dismiss"])
async def test_what_a_qemu_has_no_command_for_is_not_supported(
    fake: FakeQmp, reach: Reach, verb: api.Verb
) -> None:
    """It has no such state either, but who knows what it says."""
    run(fake, 2, 11)
    begin(fake, "disk0", **STATE[verb])

    assert await refused(reach.actions.change(USER, "vm", "disk0", verb, VERBS[verb])) == (
        "not-supported",
        f"this QEMU cannot {verb} a job",
    )


async def test_qemu_2_0_completes_what_an_event_called_ready(
    fake: FakeQmp, reach: Reach
) -> None:
    """It has no member for it, and 100 % is not ready."""
    run(fake, 2, 0)
    old = {"status": None, "ready": None, "offset": 100}
    begin(fake, "disk0", **old)
    asked = ("vm", "disk0", "complete", api.Complete())
    await reach.look()
    assert (await refused(reach.actions.change(USER, *asked)))[0] == "not-ready"
    await fake.event("BLOCK_JOB_READY", device="disk0", type="commit", len=100, offset=100, speed=0)
    await reach.look()
    await reach.actions.change(USER, *asked)

    assert fake.changes == [("block-job-complete", {"device": "disk0"})]


async def test_a_job_that_there_is_not_is_refused(fake: FakeQmp, reach: Reach) -> None:
    """It may have ended already."""
    asked = reach.actions.change(USER, "vm", "j", "pause", api.Pause())

    assert await refused(asked) == ("unknown-job", "vm has no block job 'j'")
    assert fake.changes == []


@pytest.mark.parametrize("verb", VERBS)
async def test_only_what_makes_qemu_wait_for_the_storage_minds_it(
    fake: FakeQmp, reach: Reach, verb: api.Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is paused or limited may be just what helps."""
    begin(fake, "j", **STATE[verb])
    real = type(reach.member()._vm).look

    async def hangs(self: Any, timeout_seconds: float) -> Any:
        return msgspec.structs.replace(
            await real(self, timeout_seconds), storage_responding=False
        )

    monkeypatch.setattr("exporter.vm.Vm.look", hangs)
    asked = reach.actions.change(USER, "vm", "j", verb, VERBS[verb])
    if verb in ("complete", "cancel", "finalize"):
        assert (await refused(asked))[0] == "storage-hangs"
        return

    assert (await asked).command == SENT[verb][0]


async def test_a_job_of_a_vm_without_devices_is_completed(fake: FakeQmp, reach: Reach) -> None:
    """As in the storage daemon, whose jobs work on nodes: there are no files to look at."""
    plug(fake)
    begin(fake, "j", **STATE["complete"])
    done = await reach.actions.change(USER, "vm", "j", "complete", api.Complete())

    assert fake.changes == [("job-complete", {"id": "j"})]
    assert done.warnings == [
        "image files cannot be seen from here: nobody knows whether their storage answers"
    ]


async def test_the_end_of_an_earlier_job_is_not_said_of_the_one_that_has_its_id(
    fake: FakeQmp, reach: Reach
) -> None:
    """A device's name is an id that is used again and again."""
    begin(fake, "disk0", kind="mirror")
    await reach.look()
    await fake.event("BLOCK_JOB_COMPLETED", device="disk0", type="mirror", len=1, offset=1, speed=0)
    await fake.event("JOB_STATUS_CHANGE", id="disk0", status="null")
    gone(fake)
    await reach.look()
    assert reach.member().ends["disk0"].result == "completed"
    begin(fake, "disk0")
    done = await reach.actions.change(USER, "vm", "disk0", "pause", api.Pause())

    assert done.job is not None
    assert (done.job.status, done.job.outcome) == ("running", None)


# Asked for before.


async def complete(reach: Reach) -> api.Done:
    """Complete the job."""
    return await reach.actions.change(USER, "vm", "qbe-1", "complete", api.Complete())


READY = {"status": "ready", "ready": True}


@pytest.mark.parametrize("verb", ["complete", "cancel", "pause"])
async def test_what_would_cross_a_complete_that_was_sent_is_refused(
    fake: FakeQmp, reach: Reach, verb: api.Verb
) -> None:
    """QEMU calls the job ready for some time afterwards."""
    begin(fake, **READY)
    await complete(reach)
    with pytest.raises(Refused) as caught:
        await reach.actions.change(USER, "vm", "qbe-1", verb, VERBS[verb])

    assert (caught.value.problem, str(caught.value)) == (
        "already-asked",
        "qbe-1 was asked to complete",
    )
    assert isinstance(caught.value.more["job"], api.Job)
    assert [name for name, _ in fake.changes] == ["job-complete"]


@pytest.mark.parametrize("verb", ["resume", "finalize", "dismiss", "speed"])
async def test_a_job_that_was_completed_can_be_helped_to_its_end(
    fake: FakeQmp, reach: Reach, verb: api.Verb
) -> None:
    """It was paused by an error, or waits for who started it to finalize or dismiss it."""
    begin(fake, "foreign", **READY)
    await reach.actions.change(USER, "vm", "foreign", "complete", api.Complete())
    begin(fake, "foreign", **STATE[verb])
    await reach.actions.change(USER, "vm", "foreign", verb, VERBS[verb])

    assert [name for name, _ in fake.changes] == ["job-complete", SENT[verb][0]]


async def test_another_job_of_the_same_id_may_be_completed(fake: FakeQmp, reach: Reach) -> None:
    """The one before it was gone in between."""
    begin(fake, **READY)
    await complete(reach)
    gone(fake)
    assert (await refused(complete(reach)))[0] == "unknown-job"
    begin(fake, **READY)
    await complete(reach)

    assert [name for name, _ in fake.changes] == ["job-complete"] * 2


async def test_what_qemu_refuses_to_another_verb_is_no_word_about_the_complete(
    fake: FakeQmp, reach: Reach
) -> None:
    """It was sent, and stays so."""
    begin(fake, **READY)
    await complete(reach)
    fake.replies["block-job-set-speed"] = {"error": {"class": "GenericError", "desc": "no"}}
    with pytest.raises(Rejected):
        await reach.actions.change(USER, "vm", "qbe-1", "speed", VERBS["speed"])

    assert (await refused(complete(reach)))[0] == "already-asked"


# Dismissing.


async def test_what_was_started_here_is_dismissed_after_its_outcome_was_recorded(
    fake: FakeQmp, reach: Reach
) -> None:
    """By a user who is faster than this program."""
    await reach.commit()
    end(fake, "qbe-1", error="No space left on device")
    on_disk = []

    def dismiss(_: Mapping[str, Any]) -> dict[str, Any]:
        on_disk.extend(reach.on_disk())
        gone(fake)
        return {"return": {}}

    fake.replies["job-dismiss"] = dismiss
    await reach.actions.change(USER, "vm", "qbe-1", "dismiss", api.Dismiss())

    assert [(each["outcome"], each["error"]) for each in on_disk] == [
        ("failed", "No space left on device")
    ]


async def test_what_ended_unseen_is_not_dismissed_before_it_is_known_how(
    fake: FakeQmp, reach: Reach
) -> None:
    """A commit is judged by the chain of the next look."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    asked = reach.actions.change(USER, "vm", "qbe-1", "dismiss", api.Dismiss())

    assert await refused(asked) == (
        "wrong-job-state",
        "how qbe-1 ended is not known yet: try again",
    )
    await reach.actions.change(USER, "vm", "qbe-1", "dismiss", api.Dismiss())
    assert reach.entry("qbe-1").outcome == "completed"
    assert [name for name, _ in fake.changes] == ["block-commit", "job-dismiss"]


# Snapshots.


@pytest.fixture
def granted(reach: Reach, tmp_path: Path) -> Path:
    """A directory that may be used."""
    folder = tmp_path / "granted"
    folder.mkdir()
    reach.grant(grant(directories=(str(folder),), same_files=True))
    return folder


def files(folder: Path) -> list[str]:
    """Return the names of what is in a directory."""
    return sorted(os.listdir(folder))


async def snapshot(reach: Reach, file: Path, **more: Any) -> api.Done:
    """Put a layer on the disk."""
    request = api.Snapshot(device="disk0", file=str(file))
    return await reach.actions.snapshot(USER, "vm", request, **more)


async def test_a_snapshot_is_a_file_made_here_that_qemu_is_told_to_use(
    fake: FakeQmp, reach: Reach, granted: Path
) -> None:
    """What it is like see test_overlay."""
    seen = []

    def take(arguments: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(Path(arguments["snapshot-file"]).read_bytes()[:4])
        return {"return": {}}

    fake.replies["blockdev-snapshot-sync"] = take
    file = granted / "new.qcow2"
    done = await snapshot(reach, file)
    sent = {
        "device": "disk0", "snapshot-file": str(file), "format": "qcow2", "mode": "existing",
    }  # fmt: skip

    assert seen == [b"QFI\xfb"]
    assert fake.changes == [("blockdev-snapshot-sync", sent)]
    assert (done.command, done.arguments, done.job_id, done.job) == (
        "blockdev-snapshot-sync", sent, None, None,
    )  # fmt: skip


async def test_a_disk_without_a_name_gets_a_node_with_one(
    fake: FakeQmp, reach: Reach, granted: Path
) -> None:
    """QEMU asks for it there."""
    run(fake, 10, 0, disk=Disk("", qdev="/machine/peripheral/disk0/virtio-backend"))
    await snapshot(reach, granted / "new.qcow2")
    arguments = dict(fake.changes[0][1])
    name = arguments.pop("snapshot-node-name")

    assert name.startswith("qbe-")
    assert len(name) <= 31
    assert arguments["node-name"] == "top"
    assert "device" not in arguments


async def test_a_snapshot_that_is_tried_makes_no_file(
    fake: FakeQmp, reach: Reach, granted: Path
) -> None:
    """It is said whether it could be made."""
    done = await snapshot(reach, granted / "new.qcow2", dry_run=True)
    (granted / "old.qcow2").touch()

    assert (done.dry_run, fake.changes) == (True, [])
    assert files(granted) == ["old.qcow2"]
    assert (await refused(snapshot(reach, granted / "old.qcow2", dry_run=True)))[0] == (
        "file-exists"
    )


async def test_the_file_of_a_snapshot_that_qemu_refused_is_removed(
    fake: FakeQmp, reach: Reach, granted: Path
) -> None:
    """Nothing came of it."""
    text = "Device 'cd0' has no medium"
    fake.replies["blockdev-snapshot-sync"] = {"error": {"class": "GenericError", "desc": text}}
    with pytest.raises(Rejected) as caught:
        await snapshot(reach, granted / "new.qcow2")

    assert str(caught.value) == text
    assert files(granted) == []


async def test_the_file_of_a_snapshot_that_nobody_knows_of_stays(
    fake: FakeQmp, reach: Reach, granted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU may be writing to it."""
    monkeypatch.setattr("exporter.turn._LOOKUP_PAUSE_SECONDS", 0.0)
    fake.replies["blockdev-snapshot-sync"] = dying(fake)
    with pytest.raises(OutcomeUnknown):
        await snapshot(reach, granted / "new.qcow2")

    assert files(granted) == ["new.qcow2"]


async def test_a_snapshot_needs_the_image_that_it_is_put_on(
    fake: FakeQmp, sockets: Path, granted: Path
) -> None:
    """The new one is as large, and says what is below it."""
    reach = Reach(sockets, granted / "state", topology="never")
    reach.grant(grant(directories=(str(granted),), same_files=True))

    assert await refused(snapshot(reach, granted / "new.qcow2")) == (
        "wrong-device-state",
        (
            "the files of disk0 are not known: query-block was not asked (--collector.topology),"
            " or tells another chain than query-blockstats"
        ),
    )
    assert (fake.changes, files(granted)) == ([], ["state"])
    await reach.close()


async def test_a_snapshot_needs_a_device_that_is_idle_and_known(
    fake: FakeQmp, reach: Reach, granted: Path
) -> None:
    """Nothing is made, nothing is sent."""
    file = granted / "new.qcow2"
    problems = []

    async def step() -> None:
        problems.append((await refused(snapshot(reach, file)))[0])

    fake.replies["query-block"] = {"error": {"class": "GenericError", "desc": "no"}}
    await step()
    plug(fake, Disk())
    begin(fake, "j", kind="backup")
    del fake.replies["x-debug-query-block-graph"]
    await step()
    gone(fake)
    plug(fake)
    await step()
    plug(fake, Disk())
    begin(fake, "j")
    await step()
    gone(fake)
    plug(fake, Disk(nodes=("libvirt-1-format",)))
    await step()
    reach.grant(grant())
    await step()

    assert problems == [
        "wrong-device-state", "device-busy", "unknown-device", "device-busy", "managed-vm",
        "not-granted",
    ]  # fmt: skip
    assert (fake.changes, files(granted)) == ([], [])


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


# At once.


async def test_requests_to_one_vm_are_done_one_after_the_other(
    fake: FakeQmp, reach: Reach
) -> None:
    """The second sees what the first one did."""
    results = await asyncio.gather(
        *(reach.commit(f"qbe-{number}") for number in range(5)), return_exceptions=True
    )
    done = [each for each in results if isinstance(each, api.Done)]
    problems = [each.problem for each in results if isinstance(each, Refused)]

    assert (len(done), problems) == (1, ["device-busy"] * 4)
    assert len(fake.changes) == 1


async def test_one_request_that_is_sent_many_times_at_once_is_done_once(
    fake: FakeQmp, reach: Reach
) -> None:
    """The others are told of the same job."""
    results = await asyncio.gather(*(reach.commit() for _ in range(5)))

    assert sorted(each.replayed for each in results) == [False, True, True, True, True]
    assert len({each.job.job_id for each in results}) == 1
    assert len(fake.changes) == 1


async def test_requests_to_two_vms_do_not_wait_for_each_other(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """One VM that does not answer costs the others nothing."""
    async with FakeQmp(str(sockets / "two.sock")) as two:
        run(two, 7, 2, disk=Disk(nodes=("t", "b")))
        await reach.commit(vm="two")
        asked = len(fake.received)
        fake.answering.clear()
        slow = asyncio.create_task(reach.commit())
        await until(lambda: len(fake.received) > asked)
        await reach.actions.change(USER, "two", "qbe-1", "pause", api.Pause())
        assert not slow.done()
        fake.answering.set()
        await slow

    assert (len(fake.changes), len(two.changes)) == (1, 2)


async def test_a_scrape_waits_for_an_action_and_sees_what_it_did(
    fake: FakeQmp, reach: Reach
) -> None:
    """The VM is not down meanwhile, and is not asked in between."""
    start_it = fake.replies["block-commit"]
    assert callable(start_it)

    def hold(arguments: Mapping[str, Any]) -> Any:
        fake.answering.clear()
        return start_it(arguments)

    fake.replies["block-commit"] = hold
    acting = asyncio.create_task(reach.commit())
    await until(lambda: fake.changes)
    scraping = asyncio.create_task(reach.fleet.probe("vm", 20.0))
    await until(lambda: fake.received[-1][0] != "block-commit")  # looked at again
    fake.answering.set()
    done, collected = await asyncio.gather(acting, scraping)

    assert collected.snapshot.up
    assert fake.commands.count("query-status") == 3
    assert [job.job_id for job in collected.snapshot.jobs] == ["qbe-1"] == [done.job_id]


async def test_a_request_that_gets_no_turn_in_time_is_refused(
    fake: FakeQmp, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent later."""
    monkeypatch.setattr("exporter.turn._WAIT_SECONDS", 0.01)
    async with reach.member().alone():
        assert await refused(reach.commit()) == ("vm-down", "vm answers nobody since 0.01 s")

    assert fake.received == []
