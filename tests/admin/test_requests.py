"""What users ask for: which checks it passes, what leaves this process, and what is said of it.

Commits have tests of their own.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter import api
from exporter.api import verbs
from exporter.errors import LayerLost, OutcomeUnknown, Refused, Rejected
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp, dying, until
from tests.reach import USER, Reach, begin, end, files, gone, grant, refused, run

VERBS: Mapping[api.Verb, api.JobRequest] = {
    "complete": verbs.Complete(),
    "cancel": verbs.Cancel(force=True),
    "pause": verbs.Pause(),
    "resume": verbs.Resume(),
    "finalize": verbs.Finalize(),
    "dismiss": verbs.Dismiss(),
    "speed": verbs.SetSpeed(speed_bytes_per_second=5),
}
#: A job that each verb may be done to.
STATE: Mapping[api.Verb, dict[str, Any]] = {
    "complete": {"status": "ready", "ready": True},
    "cancel": {"status": "ready", "ready": True},
    "pause": {},
    "resume": {"status": "paused", "paused": True},
    "finalize": {"status": "pending"},
    "dismiss": {"status": "concluded"},
    "speed": {},
}


# Which checks, and in which order.


async def test_a_vm_that_there_is_not_is_refused(fake: FakeQmp, reach: Reach) -> None:
    """By the name that was asked for."""
    assert await refused(reach.commit(vm="none")) == ("unknown-vm", "there is no VM 'none'")


async def test_a_vm_that_has_just_come_is_found(fake: FakeQmp, reach: Reach, sockets: Path) -> None:
    """It need not have been scraped before."""
    reach.fleet.discover()
    async with FakeQmp(str(sockets / "new.sock")) as new:
        run(new, 7, 2, disk=Disk(nodes=("t", "b")))
        await reach.commit(vm="new")

    assert len(new.changes) == 1


@pytest.mark.parametrize("status", ["setup", "active", "postcopy-active", "cancelling"])
async def test_the_disks_of_a_vm_that_is_being_migrated_are_left_alone(
    fake: FakeQmp, reach: Reach, granted: Path, status: str
) -> None:
    """It runs as ever meanwhile, so it is asked each time."""
    ready: dict[str, Any] = {"status": "ready", "ready": True}
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


async def test_it_is_asked_whether_a_vm_is_being_migrated_just_before_it_is_changed(
    fake: FakeQmp, reach: Reach
) -> None:
    """What it can do is asked once a connection, and this each time."""
    await reach.commit()
    await reach.actions.change(USER, "vm", "qbe-1", verbs.Pause())
    asked = [
        name
        for name in fake.commands
        if name in ("query-migrate", "query-commands", "block-commit", "job-pause")
    ]

    assert asked == [
        "query-migrate",
        "query-commands",
        "block-commit",
        "query-migrate",
        "job-pause",
    ]


async def test_a_vm_that_does_not_answer_is_refused(reach: Reach, sockets: Path) -> None:
    """The reason is the one that its metrics have."""
    async with FakeQmp(str(sockets / "vm.sock")):
        reach.fleet.discover()

    problem, detail = await refused(reach.commit())
    assert (problem, detail.partition(":")[0]) == ("vm-down", "vm")
    assert "refused" in detail or "no_socket" in detail


# Grants.


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
    assert "same_files" in detail
    assert (fake.changes, files(granted)) == ([], [])


# QEMU's own refusals. [qemu-facts.md, section 7]


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
            await reach.actions.change(USER, "vm", "disk0", VERBS[verb])
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
    done = await reach.actions.change(USER, "vm", "j", VERBS[verb])
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
        done = await reach.actions.change(USER, "vm", "j", VERBS[verb], dry_run=True)

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
    await reach.actions.change(USER, "vm", "disk0", VERBS[verb])

    assert fake.changes == [sent]


@pytest.mark.parametrize("verb", ["finalize", "dismiss"])
async def test_what_a_qemu_has_no_command_for_is_not_supported(
    fake: FakeQmp, reach: Reach, verb: api.Verb
) -> None:
    """It has no such state either, but who knows what it says."""
    run(fake, 2, 11)
    begin(fake, "disk0", **STATE[verb])

    assert await refused(reach.actions.change(USER, "vm", "disk0", VERBS[verb])) == (
        "not-supported",
        f"this QEMU cannot {verb} a job",
    )


async def test_qemu_2_0_completes_what_an_event_called_ready(fake: FakeQmp, reach: Reach) -> None:
    """It has no member for it, and 100 % is not ready."""
    run(fake, 2, 0)
    old: dict[str, Any] = {"status": None, "ready": None, "offset": 100}
    begin(fake, "disk0", **old)

    def ask() -> Any:
        return reach.actions.change(USER, "vm", "disk0", verbs.Complete())

    await reach.look()
    assert (await refused(ask()))[0] == "not-ready"
    await fake.event("BLOCK_JOB_READY", device="disk0", type="commit", len=100, offset=100, speed=0)
    await reach.look()
    await ask()

    assert fake.changes == [("block-job-complete", {"device": "disk0"})]


async def test_a_job_that_there_is_not_is_refused(fake: FakeQmp, reach: Reach) -> None:
    """It may have ended already."""
    asked = reach.actions.change(USER, "vm", "j", verbs.Pause())

    assert await refused(asked) == ("unknown-job", "vm has no block job 'j'")
    assert fake.changes == []


async def test_a_job_that_has_ended_is_refused_with_how_it_ended(
    fake: FakeQmp, reach: Reach
) -> None:
    """Somebody else was faster."""
    begin(fake, "j", kind="mirror")
    await reach.look()
    await fake.event("BLOCK_JOB_CANCELLED", device="j", type="mirror", len=100, offset=50, speed=0)
    await fake.event("JOB_STATUS_CHANGE", id="j", status="null")
    gone(fake)
    await reach.look()
    with pytest.raises(Refused) as caught:
        await reach.actions.change(USER, "vm", "j", verbs.Complete())
    job = caught.value.more["job"]

    assert (caught.value.problem, str(caught.value)) == (
        "unknown-job",
        "vm no longer has a block job 'j'",
    )
    assert isinstance(job, api.Job)
    assert (job.job_id, job.outcome) == ("j", "cancelled")


@pytest.mark.parametrize("verb", VERBS)
async def test_only_what_makes_qemu_wait_for_the_storage_minds_it(
    fake: FakeQmp, reach: Reach, verb: api.Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is paused or limited may be just what helps."""
    begin(fake, "j", **STATE[verb])
    real = type(reach.member()._vm).look

    async def hangs(self: Any, timeout_seconds: float) -> Any:
        return msgspec.structs.replace(await real(self, timeout_seconds), storage_responding=False)

    monkeypatch.setattr("exporter.collect.vm.Vm.look", hangs)
    asked = reach.actions.change(USER, "vm", "j", VERBS[verb])
    if verb in ("complete", "cancel", "finalize"):
        assert (await refused(asked))[0] == "storage-hangs"
        return

    assert (await asked).command == SENT[verb][0]


async def test_a_job_of_a_vm_without_devices_is_completed(fake: FakeQmp, reach: Reach) -> None:
    """As in the storage daemon, whose jobs work on nodes: there are no files to look at."""
    plug(fake)
    begin(fake, "j", **STATE["complete"])
    done = await reach.actions.change(USER, "vm", "j", verbs.Complete())

    assert fake.changes == [("job-complete", {"id": "j"})]
    assert done.warnings == [
        "image files are not visible to the exporter: whether their storage answers is unknown"
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
    done = await reach.actions.change(USER, "vm", "disk0", verbs.Pause())

    assert done.job is not None
    assert (done.job.status, done.job.outcome) == ("running", None)


# Asked for before.


async def complete(reach: Reach) -> api.Done:
    """Complete the job."""
    return await reach.actions.change(USER, "vm", "qbe-1", verbs.Complete())


READY: dict[str, Any] = {"status": "ready", "ready": True}


@pytest.mark.parametrize("verb", ["complete", "cancel", "pause"])
async def test_what_would_cross_a_complete_that_was_sent_is_refused(
    fake: FakeQmp, reach: Reach, verb: api.Verb
) -> None:
    """QEMU calls the job ready for some time afterwards."""
    begin(fake, **READY)
    await complete(reach)
    with pytest.raises(Refused) as caught:
        await reach.actions.change(USER, "vm", "qbe-1", VERBS[verb])

    assert (caught.value.problem, str(caught.value)) == (
        "already-asked",
        "qbe-1 has already been asked to complete",
    )
    assert isinstance(caught.value.more["job"], api.Job)
    assert [name for name, _ in fake.changes] == ["job-complete"]


@pytest.mark.parametrize("verb", ["resume", "finalize", "dismiss", "speed"])
async def test_a_job_that_was_completed_can_be_helped_to_its_end(
    fake: FakeQmp, reach: Reach, verb: api.Verb
) -> None:
    """It was paused by an error, or waits for who started it to finalize or dismiss it."""
    begin(fake, "foreign", **READY)
    await reach.actions.change(USER, "vm", "foreign", verbs.Complete())
    begin(fake, "foreign", **STATE[verb])
    await reach.actions.change(USER, "vm", "foreign", VERBS[verb])

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
        await reach.actions.change(USER, "vm", "qbe-1", VERBS["speed"])

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
    await reach.actions.change(USER, "vm", "qbe-1", verbs.Dismiss())

    assert [(each["outcome"], each["error"]) for each in on_disk] == [
        ("failed", "No space left on device")
    ]


async def test_what_ended_unseen_is_not_dismissed_before_it_is_known_how(
    fake: FakeQmp, reach: Reach
) -> None:
    """A commit is judged by the chain of the next look."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    asked = reach.actions.change(USER, "vm", "qbe-1", verbs.Dismiss())

    assert await refused(asked) == (
        "wrong-job-state",
        "the outcome of qbe-1 is not known yet: try again",
    )
    await reach.actions.change(USER, "vm", "qbe-1", verbs.Dismiss())
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


async def test_a_layer_whose_file_qemu_removes_is_not_told_as_a_success(
    fake: FakeQmp, reach: Reach, granted: Path
) -> None:
    """So it does on top of snapshot=on, where that could not be seen before; nor is it again."""
    file = granted / "new.qcow2"

    def take(arguments: Mapping[str, Any]) -> dict[str, Any]:
        Path(arguments["snapshot-file"]).unlink()
        plug(
            fake,
            Disk(
                nodes=("new", "top", "base"),
                files=(str(file), "/images/top.qcow2", "/images/base.qcow2"),
            ),
        )
        return {"return": {}}

    fake.replies["blockdev-snapshot-sync"] = take
    with pytest.raises(LayerLost, match="is the active layer, but its file was removed"):
        await snapshot(reach, file)
    with pytest.raises(LayerLost, match="is layer 0 of disk0, and was removed"):
        await snapshot(reach, file)

    assert [name for name, _ in fake.changes] == ["blockdev-snapshot-sync"]
    assert files(granted) == []


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
    fake: FakeQmp, reach: Reach, granted: Path
) -> None:
    """QEMU may be writing to it; if it refuses to take it the next time, it stays as well."""
    reach.timing.lookup_pause_seconds = 0.0
    fake.replies["blockdev-snapshot-sync"] = dying(fake)
    with pytest.raises(OutcomeUnknown):
        await snapshot(reach, granted / "new.qcow2")
    left = files(granted)
    fake.replies["blockdev-snapshot-sync"] = {"error": {"class": "GenericError", "desc": "locked"}}
    with pytest.raises(Rejected):
        await snapshot(reach, granted / "new.qcow2")

    assert left == files(granted) == ["new.qcow2"]


async def test_a_layer_that_is_there_is_told_whatever_the_disk_is_doing(
    fake: FakeQmp, reach: Reach, granted: Path
) -> None:
    """The same request again is no second one: it stands in the way of nothing."""
    file = granted / "new.qcow2"
    first = await snapshot(reach, file)
    plug(fake, Disk(nodes=("new", "top", "base"), files=(str(file), "/top", "/base")))
    begin(fake, "j")
    again = await snapshot(reach, file)
    tried = await snapshot(reach, file, dry_run=True)
    other = await refused(snapshot(reach, granted / "other.qcow2"))

    assert (first.replayed, again.replayed, tried.replayed) == (False, True, True)
    assert (again.command, again.arguments, again.dry_run, tried.dry_run) == (None, {}, False, True)
    assert other[0] == "device-busy"
    assert len(fake.changes) == 1


async def test_a_snapshot_that_cannot_be_recorded_is_not_sent(
    fake: FakeQmp, reach: Reach, granted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash nobody would know of it."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    problem, detail = await refused(snapshot(reach, granted / "new.qcow2"))

    assert (problem, "No space left" in detail) == ("not-recorded", True)
    assert (fake.changes, files(granted)) == ([], [])


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
            " or disagrees with query-blockstats"
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


# At once.


async def test_requests_to_one_vm_are_done_one_after_the_other(fake: FakeQmp, reach: Reach) -> None:
    """The second sees what the first one did."""
    results = await asyncio.gather(
        *(reach.commit(f"qbe-{number}") for number in range(5)), return_exceptions=True
    )
    done = [each for each in results if isinstance(each, api.Done)]
    problems = [each.problem for each in results if isinstance(each, Refused)]

    assert (len(done), problems) == (1, ["device-busy"] * 4)
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
        await reach.actions.change(USER, "two", "qbe-1", verbs.Pause())
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
    fake: FakeQmp, reach: Reach
) -> None:
    """Nothing is sent later."""
    reach.timing.lease_wait_seconds = 0.01
    async with reach.member().exclusive():
        problem, detail = await refused(reach.commit())

    assert (problem, "0.01 s" in detail) == ("vm-down", True)

    assert fake.received == []
