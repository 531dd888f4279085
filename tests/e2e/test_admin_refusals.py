"""What the admin API does not do, on real QEMU: it says why, leaves a line, and nothing has changed."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from exporter.admin import atomic_file
from exporter.api.verbs import VERBS
from tests.e2e.api import ALL, PROBLEM, Admin, Answer, admin, grant, hash_of
from tests.e2e.lab import (
    HASTY,
    MIB,
    ROOT,
    Lab,
    Mount,
    Qemu,
    as_user,
    blockdev,
    drive,
    laboratory,
    plug,
    wait_until,
)
from tests.e2e.reading import value
from tests.e2e.witness import audited, counted, files, records, state

#: What a request asks for, and whether it only tries.
Ask = Callable[[bool], Answer]
#: Slow enough to be there until somebody ends it.
SLOW: dict[str, Any] = {"speed": 1}
THEIRS = "theirs"
#: What has to be said along with some verbs.
BODIES: dict[str, dict[str, Any]] = {"speed": {"speed_bytes_per_second": 0}}
OF_JOBS = tuple(verb for verb in VERBS if verb not in ("commit", "snapshot"))


class Stage:
    """VMs and an exporter, and what is the same before and after each request."""

    def __init__(self, lab: Lab, user: Admin) -> None:
        self.lab = lab
        self.user = user
        self.vm = lab.vms["vm"]
        self.granted = lab.folder / "granted"

    def by(self, name: str) -> Admin:
        """Return another user."""
        return Admin(self.user.exporter, name)

    def commit(self, device: str, *, vm: str = "vm", by: str = ALL, **more: object) -> Ask:
        return lambda dry_run: self.by(by).commit(vm, device, dry_run=dry_run, **more)

    def snapshot(self, device: str, file: object, *, vm: str = "vm", by: str = ALL) -> Ask:
        path = Path(str(file))
        return lambda dry_run: self.by(by).snapshot(vm, device, path, dry_run=dry_run)

    def change(self, job_id: str, verb: str, *, vm: str = "vm", by: str = ALL, **body: Any) -> Ask:
        body = {**BODIES.get(verb, {}), **body}
        return lambda dry_run: self.by(by).change(vm, job_id, verb, dry_run=dry_run, **body)

    def refused(
        self,
        ask: Ask,
        action: str,
        status: int,
        problem: str,
        *,
        vm: str = "vm",
        by: str = ALL,
        job: str = "",
    ) -> str:
        """See that a request is refused, tried or meant, and nothing else comes of it."""
        exporter = self.user.exporter
        told = {"action": action, "result": "refused", "user": by, "vm": vm, "problem": problem}
        before = self.everything()
        lines, count = len(audited(exporter)), counted(exporter, action, "refused") or 0

        tried, meant = ask(True), ask(False)
        assert (meant.status, meant.problem, meant.kind) == (status, problem, PROBLEM), meant.body
        assert meant.body["status"] == status
        assert meant.body["vm"] == vm
        assert meant.body.get("job", {}).get("job_id", "") == job
        assert (tried.status, tried.body | {"job": None}) == (status, meant.body | {"job": None})
        new = audited(exporter)[lines:]
        assert [each.items() & told.items() for each in new] == [told.items()] * 2, new
        assert counted(exporter, action, "refused") == count + 2
        assert self.everything() == before
        return str(meant.body["detail"])

    @contextmanager
    def job(self, command: str, device: str = "disk0", **more: object) -> Iterator[None]:
        """Have another client run a job."""
        told = {name.replace("_", "-"): each for name, each in more.items()}
        if command == "drive-backup":
            told |= {"target": str(self.lab.folder / "backup.qcow2"), "sync": "full"}
        self.vm.run(command, {"device": device, "job-id": THEIRS, **told})
        try:
            yield
        finally:
            self.end(THEIRS)

    def end(self, job_id: str) -> None:
        """End a job, whatever it does, and have nothing left of it."""
        job = self.vm.job(job_id)
        if job is not None and job["status"] != "concluded":
            self.vm.run("block-job-cancel", {"device": job_id, "force": True})
        if job is not None and not job["auto-dismiss"] and not job_id.startswith("qbe-"):
            self.until(job_id, "concluded")
            self.vm.run("job-dismiss", {"id": job_id})

        def gone() -> bool:
            self.user.get("/vms/vm")
            return self.vm.job(job_id) is None

        wait_until(gone, f"{job_id} is gone")
        wait_until(lambda: self.is_settled(job_id), f"that {job_id} is gone is on record")
        (self.lab.folder / "backup.qcow2").unlink(missing_ok=True)

    def is_settled(self, job_id: str) -> bool:
        """Whether the exporter has no more to write of a job."""
        record = records(self.lab).get(("vm", job_id))
        return record is None or bool(record["dismissed"])

    def until(self, job_id: str, status: str) -> None:
        wait_until(lambda: self.vm.job(job_id)["status"] == status, f"{job_id} is {status}")

    def everything(self) -> Any:
        # What came of earlier jobs may be recorded just now.
        there = {path for path in files(self.lab) if not re.search(atomic_file.UNFINISHED, path)}
        return {name: state(vm) for name, vm in self.lab.vms.items()} | {"": there}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """VMs with disks that must not be touched, and users who may do little."""
    with laboratory() as lab:
        yield Stage(lab, prepared(lab))


def prepared(lab: Lab) -> Admin:
    """Start everything, and have the exporter know every VM."""
    common, lent = lab.image("common"), lab.chain("lent", 2)
    lab.qemu(
        "vm",
        *drive("disk0", lab.chain("disk0", 3)[0]),
        *blockdev("virtio-disk1", *lab.chain("disk1", 3)),
        *drive("single", lab.chain("single", 1)[0]),
        *drive("fixed", lab.chain("fixed", 2)[0], "readonly=on"),
        *plug("virtio-fixed", "fixed"),
        *drive("linked", lab.chain("linked", 3)[0]),
        *drive("twin", lab.image("twin", backing=common)),
        *drive("other-twin", lab.image("other-twin", backing=common)),
        *drive("lent", lent[0]),
        *["-drive", "if=none,id=cd0,media=cdrom", "-device", "ide-cd,drive=cd0"],
        machine="pc",
    )
    lab.qemu("neighbour", *drive("disk0", lab.image("borrower", backing=lent[1])))
    nodes = blockdev("virtio-disk0", *lab.chain("managed", 2), name="libvirt")
    lab.qemu("managed", *nodes, machine="pc")
    lab.qemu("arriving", *drive("disk0", lab.chain("arriving", 2)[0]), "-incoming", "defer")
    granted = lab.folder / "granted"
    granted.mkdir()
    (lab.folder / "granted-not").mkdir()
    (lab.folder / "link").symlink_to(granted)
    (granted / "out").symlink_to(lab.folder)
    (granted / "dangling.qcow2").symlink_to(granted / "nothing")
    (granted / "there.qcow2").write_text("what somebody keeps")
    every = [*OF_JOBS, "commit"]
    user = admin(
        lab,
        grant(directories=[str(granted)]),
        grant(users=["bold"], allow_managed=True),
        grant(users=["watcher"], verbs=["pause"], vms=["neighbour"]),
        grant(users=["starter"], verbs=["commit"], vms=["v?"]),
        grant(users=["stranger"], verbs=every, vms=["VM", "vm?", "neighbour"]),
        flags=[HASTY],
        config={"expected_backing_depth": [{"device": "linked", "depth": 1}]},
    )
    user.exporter.metrics()
    return user


@pytest.mark.parametrize(
    ("device", "layers", "status", "problem"),
    [
        ("nothing", {}, 404, "unknown-device"),
        ("/machine/peripheral/virtio-disk1/virtio-backend", {}, 404, "unknown-device"),
        ("single", {}, 409, "nothing-to-commit"),
        ("disk0", {"top": "disk0-2", "base": "disk0-1"}, 409, "nothing-to-commit"),
        ("disk0", {"top": "disk0-1", "base": "disk0-1"}, 409, "nothing-to-commit"),
        ("disk0", {"base": "disk0-0"}, 409, "nothing-to-commit"),
        ("disk0", {"top": "disk0-2"}, 409, "nothing-to-commit"),
        ("disk0", {"top": "single-0"}, 404, "unknown-layer"),
        ("disk0", {"base": "nothing"}, 404, "unknown-layer"),
        ("fixed", {}, 409, "wrong-device-state"),
        ("cd0", {}, 409, "wrong-device-state"),
        ("linked", {}, 409, "shared-layer"),
        ("twin", {}, 409, "shared-layer"),
        ("lent", {}, 409, "shared-layer"),
    ],
)
def test_a_commit_of_what_must_not_be_committed(
    stage: Stage, device: str, layers: dict[str, str], status: int, problem: str
) -> None:
    """No such device or layer, nothing to merge, or a layer that is not this disk's alone."""
    named = {which: str(stage.lab.folder / f"{name}.qcow2") for which, name in layers.items()}
    stage.refused(stage.commit(device, **named), "commit", status, problem)


@pytest.mark.parametrize(
    ("layers", "status", "problem"),
    [
        ({"top": "1"}, 404, "unknown-layer"),
        ({"top": "virtio-disk1-3"}, 404, "unknown-layer"),
        ({"base": "VIRTIO-DISK1-2"}, 404, "unknown-layer"),
        ({"top": "virtio-disk1-2", "base": "virtio-disk1-1"}, 409, "nothing-to-commit"),
        ({"top": "virtio-disk1-1", "base": "virtio-disk1-1"}, 409, "nothing-to-commit"),
    ],
)
def test_a_commit_of_nodes_that_are_no_such_layers(
    stage: Stage, layers: dict[str, str], status: int, problem: str
) -> None:
    """A layer has a name and never a number, and the top is above the base."""
    stage.refused(stage.commit("virtio-disk1", **layers), "commit", status, problem)


@pytest.mark.parametrize(
    "job_id",
    ["merge", "qbe-", "QBE-merge", "qbe-a b", "qbe-a/b", "qbe-a\n", "qbe-ä", "qbe-" + "a" * 60, ""],
)
def test_a_job_id_that_is_none(stage: Stage, job_id: str) -> None:
    """QEMU's rule for ids, and the prefix by which jobs of this program are known."""
    stage.refused(stage.commit("disk0", job_id=job_id), "commit", 400, "bad-request")


def test_a_commit_above_the_layers_that_a_disk_has_by_right(stage: Stage) -> None:
    """A base that is none of them is named, and then there is nothing to refuse."""
    base = str(stage.lab.folder / "linked-1.qcow2")
    answer = stage.commit("linked", base=base)(True)
    assert (answer.status, answer.body["warnings"]) == (200, [])


@pytest.mark.parametrize("verb", OF_JOBS)
@pytest.mark.parametrize("job_id", ["qbe-nothing", "disk0", "qbe-a%0A", "%2e%2e"])
def test_a_word_about_a_job_that_is_not_there(stage: Stage, verb: str, job_id: str) -> None:
    """Whatever it looks like, it is looked up and not found."""
    stage.refused(stage.change(job_id, verb), verb, 404, "unknown-job")


@pytest.mark.parametrize("verb", VERBS)
def test_a_word_about_a_vm_that_is_not_there(stage: Stage, verb: str) -> None:
    """Every verb says so."""
    ask = asked(stage, verb, vm="nobody")
    stage.refused(ask, verb, 404, "unknown-vm", vm="nobody")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("user", ["watcher", "stranger"])
def test_a_user_without_a_grant_for_this_vm(stage: Stage, verb: str, user: str) -> None:
    """A grant for another VM, or for a name that is only much the same, is none; nor is one to look."""
    detail = stage.refused(asked(stage, verb, by=user), verb, 403, "not-granted", by=user)
    assert detail == f"no grant permits '{user}' to {verb} on 'vm'"
    assert stage.by(user).get("/vms/vm").status == 200


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "commit"])
def test_a_user_without_a_grant_for_this_verb(stage: Stage, verb: str) -> None:
    """Who may start a commit may not complete it, nor anything else."""
    assert stage.commit("disk0", by="starter")(True).status == 200
    stage.refused(asked(stage, verb, by="starter"), verb, 403, "not-granted", by="starter")


def test_a_user_without_a_grant_does_not_learn_which_vms_there_are(stage: Stage) -> None:
    """The answer is the same for one that is there and one that is not."""
    ask = asked(stage, "commit", vm="nobody", by="watcher")
    stage.refused(ask, "commit", 403, "not-granted", vm="nobody", by="watcher")


@pytest.mark.parametrize("token", ["root:wrong", "root:", "nobody:nobodynobody", ":", ""])
@pytest.mark.parametrize("verb", ["commit", "complete", "snapshot"])
def test_who_has_no_password_is_nobody(stage: Stage, verb: str, token: str) -> None:
    """And leaves a line all the same."""
    before, count = stage.everything(), counted(stage.user.exporter, verb, "refused")
    lines = len(audited(stage.user.exporter))
    encoded = base64.b64encode(token.encode()).decode()
    headers = {"Authorization": f"Basic {encoded}"} if token else {}
    nobody = Admin(stage.user.exporter, "")
    path = {
        "commit": "block-jobs",
        "complete": "block-jobs/qbe-a/complete",
        "snapshot": "snapshots",
    }

    answer = nobody.send("POST", f"/api/v1/admin/vms/vm/{path[verb]}", {}, headers)
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Basic")
    (line,) = audited(stage.user.exporter)[lines:]
    assert line.items() >= {"action": verb, "result": "refused", "user": "", "vm": "vm"}.items()
    assert line["status"] == "401"
    assert counted(stage.user.exporter, verb, "refused") == (count or 0) + 1
    assert stage.everything() == before


@pytest.mark.parametrize("verb", ["commit", "snapshot"])
def test_a_vm_that_libvirt_runs(stage: Stage, verb: str) -> None:
    """Unless the grant says that it may be changed behind its manager's back."""
    ask = asked(stage, verb, vm="managed", device="virtio-disk0")
    detail = stage.refused(ask, verb, 403, "managed-vm", vm="managed")
    assert detail == "managed is managed by libvirt"


def test_a_job_of_a_vm_that_libvirt_runs(stage: Stage) -> None:
    """Its jobs are its manager's too, but for who may do so; then all is as with any other VM."""
    bold, vm = stage.by("bold"), stage.lab.vms["managed"]
    more: dict[str, Any] = {"job_id": "qbe-bold", "speed_bytes_per_second": 1}
    assert bold.commit("managed", "virtio-disk0", dry_run=True, **more).status == 200
    assert bold.commit("managed", "virtio-disk0", **more).status == 202
    for verb in OF_JOBS:
        ask = stage.change("qbe-bold", verb, vm="managed")
        stage.refused(ask, verb, 403, "managed-vm", vm="managed")

    assert bold.change("managed", "qbe-bold", "cancel").status == 202
    bold.until("managed", "qbe-bold", status=None, outcome="cancelled")
    record = ("managed", "qbe-bold")
    wait_until(lambda: records(stage.lab)[record]["dismissed"], "that is on record")
    assert vm.run("query-jobs") == []


@pytest.mark.parametrize("verb", ["commit", "snapshot"])
def test_a_vm_that_is_about_to_arrive(stage: Stage, verb: str) -> None:
    """Its disks belong to the QEMU that it comes from."""
    ask = asked(stage, verb, vm="arriving")
    detail = stage.refused(ask, verb, 409, "wrong-vm-state", vm="arriving")
    assert detail == "arriving is in the state inmigrate"


def test_a_vm_that_is_stopped(stage: Stage) -> None:
    """Nothing is sent that it would do later."""
    vm, before = stage.lab.vms["neighbour"], stage.everything()
    with vm.stopped():
        for verb in VERBS:
            for dry_run in (True, False):
                answer = asked(stage, verb, vm="neighbour")(dry_run)
                assert (answer.status, answer.problem, answer.kind) == (503, "vm-down", PROBLEM)
                assert answer.body["detail"].startswith("neighbour: stopped")
    stage.user.exporter.until(lambda text: value(text, "qemu_vm_up", vm="neighbour"))
    for verb in VERBS:
        lines = audited(stage.user.exporter, action=verb, vm="neighbour", problem="vm-down")
        assert len(lines) == 2
    assert stage.everything() == before


@pytest.mark.parametrize("device", ["single", "disk0"])
@pytest.mark.parametrize("verb", ["commit", "snapshot"])
def test_a_device_on_which_a_job_of_another_client_works(
    stage: Stage, verb: str, device: str
) -> None:
    """One job at a time, whoever started it."""
    with stage.job("drive-backup", device, **SLOW):
        ask = asked(stage, verb, device=device)
        stage.refused(ask, verb, 409, "device-busy", job=THEIRS)


@pytest.mark.parametrize("device", ["disk0", "virtio-disk1"])
def test_a_device_on_which_a_commit_works_that_was_started_here(stage: Stage, device: str) -> None:
    """Neither a second commit nor a snapshot, while it copies and when it is ready."""
    mine = f"qbe-{device}"
    answer = stage.user.commit("vm", device, job_id=mine, speed_bytes_per_second=1)
    assert answer.status == 202
    for verb in ("commit", "snapshot"):
        stage.refused(asked(stage, verb, device=device), verb, 409, "device-busy", job=mine)
    stage.user.change("vm", mine, "speed", speed_bytes_per_second=0)
    stage.until(mine, "ready")
    for verb in ("commit", "snapshot"):
        stage.refused(asked(stage, verb, device=device), verb, 409, "device-busy", job=mine)

    other = stage.commit(device, job_id=mine, speed_bytes_per_second=2)
    stage.refused(other, "commit", 409, "job-id-taken", job=mine)
    stage.refused(stage.commit("linked", job_id=mine), "commit", 409, "job-id-taken", job=mine)
    stage.end(mine)
    stage.refused(other, "commit", 409, "job-id-taken", job=mine)


def test_an_id_that_a_job_of_another_client_has(stage: Stage) -> None:
    """It is not ours, though it looks like it."""
    arguments = {"device": "single", "job-id": "qbe-theirs", "sync": "full", **SLOW}
    target = stage.lab.folder / "theirs.qcow2"
    stage.vm.run("drive-backup", {**arguments, "target": str(target)})
    ask = stage.commit("disk0", job_id="qbe-theirs")
    stage.refused(ask, "commit", 409, "job-id-taken", job="qbe-theirs")
    assert ("vm", "qbe-theirs") not in records(stage.lab)
    stage.end("qbe-theirs")
    target.unlink()


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("block-commit", SLOW),
        ("block-commit", {**SLOW, "top": "disk0-1"}),
        ("drive-backup", SLOW),
    ],
)
def test_a_job_that_is_not_ready_is_not_completed(
    stage: Stage, command: str, more: dict[str, Any]
) -> None:
    """Nor one that never will be; nor is it another job than it was."""
    if "top" in more:
        more = {**more, "top": str(stage.lab.folder / f"{more['top']}.qcow2")}
    with stage.job(command, **more):
        ask = stage.change(THEIRS, "complete")
        stage.refused(ask, "complete", 409, "not-ready", job=THEIRS)
        assert stage.user.change("vm", THEIRS, "pause").status == 202
        detail = stage.refused(ask, "complete", 409, "not-ready", job=THEIRS)
        assert detail.startswith(f"{command.partition('-')[2]} {THEIRS} is not ready: it is ")


def test_what_a_running_job_cannot_do(stage: Stage) -> None:
    """It cannot go on, as it was never held, nor be paused twice, finalized or dismissed."""
    with stage.job("block-commit", **SLOW):
        for verb in ("resume", "finalize", "dismiss"):
            ask = stage.change(THEIRS, verb)
            stage.refused(ask, verb, 409, "wrong-job-state", job=THEIRS)
        assert stage.user.change("vm", THEIRS, "pause").status == 202
        ask = stage.change(THEIRS, "pause")
        stage.refused(ask, "pause", 409, "wrong-job-state", job=THEIRS)


def test_what_a_ready_job_cannot_do(stage: Stage) -> None:
    """It is not cancelled before it was said how, and not completed while it is paused."""
    with stage.job("block-commit"):
        stage.until(THEIRS, "ready")
        ask = stage.change(THEIRS, "cancel")
        stage.refused(ask, "cancel", 409, "force-required", job=THEIRS)
        for verb in ("resume", "finalize", "dismiss"):
            ask = stage.change(THEIRS, verb)
            stage.refused(ask, verb, 409, "wrong-job-state", job=THEIRS)

        assert stage.user.change("vm", THEIRS, "pause").status == 202
        stage.until(THEIRS, "standby")
        for verb in ("complete", "pause"):
            ask = stage.change(THEIRS, verb)
            stage.refused(ask, verb, 409, "wrong-job-state", job=THEIRS)
        ask = stage.change(THEIRS, "cancel")
        stage.refused(ask, "cancel", 409, "force-required", job=THEIRS)


def test_a_job_is_completed_once(stage: Stage) -> None:
    """While it waits to be finalized it can still be cancelled, and then has not pivoted."""
    before = state(stage.vm)[2]
    with stage.job("block-commit", auto_finalize=False):
        stage.until(THEIRS, "ready")
        assert stage.user.change("vm", THEIRS, "complete").status == 202
        stage.until(THEIRS, "pending")
        ask = stage.change(THEIRS, "complete")
        stage.refused(ask, "complete", 409, "already-asked", job=THEIRS)
        for verb in ("pause", "resume", "speed", "dismiss"):
            ask = stage.change(THEIRS, verb)
            stage.refused(ask, verb, 409, "wrong-job-state", job=THEIRS)

        assert stage.user.change("vm", THEIRS, "cancel").status == 202
        wait_until(lambda: stage.vm.job(THEIRS) is None, "the job is gone")
        assert state(stage.vm)[2] == before


def test_what_a_job_that_has_ended_cannot_do(stage: Stage) -> None:
    """It can only be dismissed."""
    with stage.job("block-commit", auto_dismiss=False):
        stage.until(THEIRS, "ready")
        assert stage.user.change("vm", THEIRS, "cancel", force=True).status == 202
        stage.until(THEIRS, "concluded")
        for verb in ("pause", "resume", "finalize", "speed", "cancel"):
            ask = stage.change(THEIRS, verb)
            stage.refused(ask, verb, 409, "wrong-job-state", job=THEIRS)
        ask = stage.change(THEIRS, "complete")
        stage.refused(ask, "complete", 409, "not-ready", job=THEIRS)


@pytest.mark.parametrize(
    ("file", "status", "problem"),
    [
        ("../new.qcow2", 422, "bad-file"),
        ("../granted/new.qcow2", 422, "bad-file"),
        ("../../new.qcow2", 422, "bad-file"),
        ("none/new.qcow2", 422, "bad-file"),
        ("there.qcow2/new.qcow2", 422, "bad-file"),
        ("dangling.qcow2/new.qcow2", 422, "bad-file"),
        ("new\n.qcow2", 422, "bad-file"),
        ("new\0.qcow2", 422, "bad-file"),
        ("n" * 256, 422, "bad-file"),
        ("out/new.qcow2", 403, "not-granted"),
        ("out/granted-not/new.qcow2", 403, "not-granted"),
        ("there.qcow2", 409, "file-exists"),
        ("dangling.qcow2", 409, "file-exists"),
        ("out", 409, "file-exists"),
    ],
)
def test_a_snapshot_in_a_file_that_must_not_be_made(
    stage: Stage, file: str, status: int, problem: str
) -> None:
    """Outside of the granted directory, by whatever way; or where something is."""
    ask = asked(stage, "snapshot", file=f"{stage.granted}/{file}")
    stage.refused(ask, "snapshot", status, problem)
    assert (stage.granted / "there.qcow2").read_text() == "what somebody keeps"


@pytest.mark.parametrize(
    "folder", ["", "/granted-not", "/gone", "/granted-not/gone", "/vm.sock", "/state", "/link"]
)
def test_a_snapshot_in_a_directory_that_is_not_granted(stage: Stage, folder: str) -> None:
    """One beside it, whatever its name is like; whether there is such a one is told to nobody."""
    there = f"{stage.lab.folder}{folder}"
    ask = asked(stage, "snapshot", file=f"{there}/new.qcow2")
    detail = stage.refused(ask, "snapshot", 403, "not-granted")
    assert detail == f"no grant names the directory {there}"


@pytest.mark.parametrize("file", ["new.qcow2", "granted/new.qcow2", "./new.qcow2", "json:{}"])
def test_a_snapshot_in_a_file_that_is_no_path(stage: Stage, file: str) -> None:
    """Relative to what, nobody knows."""
    stage.refused(asked(stage, "snapshot", file=file), "snapshot", 400, "bad-request")


@pytest.mark.parametrize(
    ("device", "status", "problem"),
    [
        ("nothing", 404, "unknown-device"),
        ("fixed", 409, "wrong-device-state"),
        ("cd0", 409, "wrong-device-state"),
    ],
)
def test_a_snapshot_of_what_can_have_none(
    stage: Stage, device: str, status: int, problem: str
) -> None:
    """No such device, one that is read-only, one without a medium."""
    stage.refused(asked(stage, "snapshot", device=device), "snapshot", status, problem)


def test_a_request_that_cannot_be_recorded_is_not_sent(stage: Stage) -> None:
    """After a crash nobody would know of it."""
    folder = stage.lab.folder / "state"
    before = stage.everything()
    away = folder.rename(stage.lab.folder / "away")
    answer = stage.commit("disk0", job_id="qbe-unrecorded")(False)
    away.rename(folder)

    assert (answer.status, answer.problem, answer.kind) == (503, "not-recorded", PROBLEM)
    assert audited(stage.user.exporter, problem="not-recorded", vm="vm", action="commit")
    assert stage.everything() == before
    assert stage.user.get("/vms/vm/block-jobs/qbe-unrecorded").status == 404


def asked(
    stage: Stage,
    verb: str,
    *,
    vm: str = "vm",
    by: str = ALL,
    device: str = "disk0",
    file: str = "",
) -> Ask:
    """Return a request that would be accepted, of who may do everything to any VM."""
    if verb == "commit":
        return stage.commit(device, vm=vm, by=by)
    if verb == "snapshot":
        path = file or stage.granted / "new.qcow2"
        return stage.snapshot(device, path, vm=vm, by=by)
    return stage.change("qbe-nothing", verb, vm=vm, by=by)


# What QEMU says no to.


def rejected(lab: Lab, user: Admin, ask: Callable[[], Answer], action: str) -> str:
    """See that QEMU has refused, and that nothing else came of it."""
    vm = lab.vms["vm"]
    before = state(vm), files(lab)

    answer = ask()
    assert (answer.status, answer.problem) == (422, "refused-by-qemu"), answer.body
    assert answer.kind == PROBLEM
    assert (state(vm), files(lab)) == before
    (line,) = audited(user.exporter, action=action, result="rejected")
    assert line["answer"] == line["detail"] == answer.body["detail"]
    assert counted(user.exporter, action, "rejected") == 1
    assert records(lab) == {}
    return str(answer.body["detail"])


def test_a_commit_into_a_base_that_another_qemu_holds_is_rejected_by_qemu(lab: Lab) -> None:
    """One that the exporter does not know of: QEMU's own lock is the last guard."""
    top, base = lab.chain("disk", 2)
    vm = lab.qemu("vm", *drive("disk0", top))
    other = lab.qemu("other", *drive("disk0", lab.image("other", backing=base)))
    other.socket.unlink()
    user = admin(lab)

    commit = partial(user.commit, "vm", "disk0", job_id="qbe-merge")
    assert commit(dry_run=True).status == 200
    assert "lock" in rejected(lab, user, commit, "commit")
    other.quit()
    assert commit().status == 202
    wait_until(lambda: vm.job("qbe-merge")["ready"], "the job is ready")


def test_a_snapshot_in_a_directory_that_qemu_may_not_enter_is_rejected_by_qemu(lab: Lab) -> None:
    """The file that was made for it is removed."""
    private = lab.folder / "private"
    private.mkdir(mode=0o700)
    lab.qemu("vm", *drive("disk0", lab.image("disk")), *as_user("nobody"))
    user = admin(lab, grant(directories=[str(private)]))

    snapshot = partial(user.snapshot, "vm", "disk0", private / "new.qcow2")
    assert snapshot(dry_run=True).status == 200
    assert "Permission denied" in rejected(lab, user, snapshot, "snapshot")
    assert list(private.iterdir()) == []


@pytest.mark.parametrize("same_files", [True, False])
@pytest.mark.parametrize("there", ["another", "none"])
def test_a_snapshot_in_a_directory_that_is_another_where_qemu_is(
    lab: Lab, there: str, same_files: bool
) -> None:
    """A container's QEMU would open another file, or none, whatever a grant says; a try says so."""
    shared = lab.folder / "shared"
    shared.mkdir()
    image = lab.image("disk")
    folder = shared / "below" if there == "none" else shared
    folder.mkdir(exist_ok=True)
    script = f'mount -t tmpfs none {shared}; exec "$@"'
    command = lab.qemu_command("vm", *drive("disk0", image))
    vm = lab.keep(Qemu(lab.folder, "vm", ["unshare", "-m", "sh", "-c", script, "sh", *command]))
    user = admin(lab, grant(directories=[str(shared)], same_files=same_files))
    before = state(vm), files(lab)

    for dry_run in (True, False):
        answer = user.snapshot("vm", "disk0", folder / "new.qcow2", dry_run=dry_run)
        assert (answer.status, answer.problem) == (422, "bad-file"), answer.body
    assert (state(vm), files(lab)) == before
    assert len(audited(user.exporter, action="snapshot", problem="bad-file")) == 2


def test_a_snapshot_over_a_link_that_leads_elsewhere_where_qemu_is(lab: Lab) -> None:
    """The link is the same file to both, and the directory that it leads to is not."""
    shared, link = lab.folder / "shared", lab.folder / "link"
    shared.mkdir()
    link.symlink_to(shared)
    script = f'mount -t tmpfs none {shared}; exec "$@"'
    command = lab.qemu_command("vm", *drive("disk0", lab.image("disk")))
    vm = lab.keep(Qemu(lab.folder, "vm", ["unshare", "-m", "sh", "-c", script, "sh", *command]))
    user = admin(lab, grant(directories=[str(link)], same_files=True))
    before = state(vm), files(lab)

    for dry_run in (True, False):
        answer = user.snapshot("vm", "disk0", link / "new.qcow2", dry_run=dry_run)
        assert (answer.status, answer.problem) == (422, "bad-file"), answer.body
        assert "is a different file to QEMU" in answer.body["detail"]
    assert (state(vm), files(lab)) == before


def test_a_snapshot_of_a_qemu_that_may_not_be_looked_into_needs_a_grant_that_vouches(
    lab: Lab,
) -> None:
    """Whether it has the same files nobody can tell: the exporter does not guess."""
    # Nor can it see that a mount of another test, which may hang, holds none: the VM has none such.
    script = (
        "awk '/ - fuse/ {print $5}' /proc/self/mountinfo | xargs -r -n 1 umount -c -l; exec \"$@\""
    )
    command = lab.qemu_command("vm", *drive("disk0", lab.image("disk")))
    apart = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"]
    vm = lab.start("vm", [*apart, *command])
    user = admin(
        lab,
        grant(directories=[str(lab.folder)]),
        grant(users=["sure"], directories=[str(lab.folder)], same_files=True),
        before=["setpriv", "--bounding-set=-sys_ptrace"],
    )
    sure = Admin(user.exporter, "sure")
    file = lab.folder / "new.qcow2"
    before = state(vm), files(lab)

    for dry_run in (True, False):
        answer = user.snapshot("vm", "disk0", file, dry_run=dry_run)
        assert (answer.status, answer.problem) == (422, "bad-file"), answer.body
        assert "same_files" in answer.body["detail"]
    assert (state(vm), files(lab)) == before
    assert len(audited(user.exporter, action="snapshot", problem="bad-file", user="root")) == 2

    assert sure.snapshot("vm", "disk0", file, dry_run=True).status == 200
    assert sure.snapshot("vm", "disk0", file).status == 201
    assert vm.run("query-block")[0]["inserted"]["file"] == str(file)


def test_what_no_grant_allows_alone_two_do_not_allow_together(lab: Lab) -> None:
    """One names the directory, and the other lets VMs be changed that a manager runs."""
    nodes = blockdev("virtio-disk0", *lab.chain("managed", 1), name="libvirt")
    managed = lab.qemu("managed", *nodes, machine="pc")
    vm = lab.qemu("vm", *drive("disk0", lab.image("disk")))
    mine, lent = lab.folder / "mine", lab.folder / "lent"
    mine.mkdir()
    lent.mkdir()
    user = admin(
        lab, grant(directories=[str(mine)]), grant(directories=[str(lent)], allow_managed=True)
    )
    before = state(managed), files(lab)

    for dry_run in (True, False):
        answer = user.snapshot("managed", "virtio-disk0", mine / "new.qcow2", dry_run=dry_run)
        assert (answer.status, answer.problem) == (403, "not-granted"), answer.body
        assert answer.body["detail"] == f"no grant names the directory {mine}"
    assert (state(managed), files(lab)) == before

    assert user.snapshot("vm", "disk0", mine / "new.qcow2").status == 201
    assert user.snapshot("managed", "virtio-disk0", lent / "new.qcow2").status == 201
    assert vm.run("query-block")[0]["inserted"]["file"] == str(mine / "new.qcow2")
    (disk,) = managed.run("query-block")
    assert disk["inserted"]["file"] == str(lent / "new.qcow2")


# Storage that hangs.


def test_nothing_is_sent_that_would_wait_for_storage_that_hangs(lab: Lab) -> None:
    """A VM whose disks hang still runs, and answers its own monitor after each request."""
    mount = lab.keep(Mount(lab.folder))
    disks = []
    for name in ("disk0", "disk1"):
        base = lab.image(f"behind/{name}-base")
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base)]
        subprocess.run([*create, str(lab.folder / "behind" / f"{name}.qcow2")], check=True)
        disks += drive(name, mount.folder / f"{name}.qcow2")
    vm = lab.qemu("vm", *disks)
    user = admin(lab)
    wait_until(
        lambda: user.commit("vm", "disk0", job_id="qbe-ready").status == 202, "the storage answers"
    )
    user.until("vm", "qbe-ready", ready=True)
    before = state(vm), set(records(lab))
    requests = {
        "commit": partial(user.commit, "vm", "disk1", job_id="qbe-other"),
        "snapshot": partial(user.snapshot, "vm", "disk1", lab.folder / "new.qcow2"),
        "complete": partial(user.change, "vm", "qbe-ready", "complete"),
        "cancel": partial(user.change, "vm", "qbe-ready", "cancel", force=True),
    }
    with mount.stopped():
        for ask in requests.values():
            for dry_run in (True, False):
                answer = ask(dry_run=dry_run)
                assert (answer.status, answer.problem) == (503, "storage-hangs"), answer.body
                assert answer.kind == PROBLEM
                assert vm.run("query-status")["running"] is True
    assert (state(vm), set(records(lab))) == before
    assert not (lab.folder / "new.qcow2").exists()
    for action in requests:
        assert len(audited(user.exporter, action=action, problem="storage-hangs")) == 2
        assert counted(user.exporter, action, "refused") == 2

    wait_until(lambda: requests["complete"](dry_run=True).status == 200, "the storage answers")
    wait_until(lambda: requests["complete"]().status == 202, "the storage answers")
    user.until("vm", "qbe-ready", outcome="completed")


def test_a_snapshot_in_a_directory_that_hangs_is_not_tried(lab: Lab) -> None:
    """The disks are elsewhere and answer: neither QEMU nor the exporter reaches for the directory."""
    mount = lab.keep(Mount(lab.folder))
    vm = lab.qemu("vm", *drive("disk0", lab.image("disk")))
    user = admin(lab, grant(directories=[str(mount.folder)]))
    snapshot = partial(user.snapshot, "vm", "disk0", mount.folder / "new.qcow2")
    wait_until(lambda: snapshot(dry_run=True).status == 200, "the storage answers")
    before = state(vm)
    with mount.stopped():
        for dry_run in (True, False):
            answer = snapshot(dry_run=dry_run)
            assert (answer.status, answer.problem) == (503, "storage-hangs"), answer.body
        assert state(vm) == before
        assert user.get("/vms/vm").body["up"] is True

    wait_until(lambda: snapshot(dry_run=True).status == 200, "the storage answers")
    assert not (mount.folder / "new.qcow2").exists()


def test_a_granted_directory_that_hangs_is_in_the_way_of_no_other(lab: Lab) -> None:
    """Which one is meant is known by its name: the other is not asked whether it leads there."""
    mount = lab.keep(Mount(lab.folder))
    calm = lab.folder / "calm"
    calm.mkdir()
    vm = lab.qemu("vm", *drive("disk0", lab.image("disk")))
    user = admin(lab, grant(directories=[str(mount.folder), str(calm)]))
    with mount.stopped():
        for dry_run, status in ((True, 200), (False, 201)):
            answer = user.snapshot("vm", "disk0", calm / "new.qcow2", dry_run=dry_run)
            assert (answer.status, answer.kind) == (status, "application/json"), answer.body
        outside = user.snapshot("vm", "disk0", lab.folder / "new.qcow2")
        assert (outside.status, outside.problem) == (403, "not-granted")

    assert vm.run("query-block")[0]["inserted"]["file"] == str(calm / "new.qcow2")


def test_a_layer_is_shared_with_a_vm_that_nobody_has_looked_at_yet(lab: Lab) -> None:
    """The first request after a start, and a VM that came since.

    One that does not answer may share a layer only if it has its file open.
    """
    (top, base), (own, own_base) = lab.chain("disk", 2), lab.chain("own", 2)
    vm = lab.qemu("vm", *drive("disk0", top), *drive("disk1", own))
    user = admin(lab)
    lab.qemu("other", *drive("disk0", lab.image("other", backing=base)))
    before = state(vm)

    answer = user.commit("vm", "disk0")
    assert (answer.status, answer.problem) == (409, "shared-layer")
    assert answer.body["detail"] == f"{base} is layer 1 of disk0 of other too"
    assert state(vm) == before
    assert user.commit("vm", "disk1", dry_run=True).body["warnings"] == []

    with lab.qemu("silent", *drive("disk0", lab.image("alone"))).stopped():
        answer = user.commit("vm", "disk1", dry_run=True)
    assert (answer.status, answer.body["warnings"]) == (200, [])
    with lab.qemu("reader", *drive("disk0", lab.image("clone", backing=own_base))).stopped():
        answer = user.commit("vm", "disk1", dry_run=True)
        allowed = user.commit("vm", "disk1", dry_run=True, unseen_neighbours="allow")
    told = "reader does not answer (stopped): it may share a layer"
    assert (answer.status, answer.problem, answer.body["detail"]) == (
        409,
        "unseen-neighbours",
        told,
    )
    assert (allowed.status, allowed.body["warnings"]) == (200, [told])


# A VM on its way.


def test_a_vm_that_is_being_migrated_is_left_alone(lab: Lab) -> None:
    """It runs meanwhile, and the other side opens its disks as they are; if it stays, all goes on."""
    top, base = lab.chain("disk", 2)
    memory = lab.folder / "memory"
    memory.write_bytes(os.urandom(4 * MIB))
    filled = f"loader,file={memory},addr={4 * MIB},force-raw=on"
    disks = [*drive("disk0", top), *drive("disk1", lab.chain("more", 2)[0]), "-device", filled]
    vm = lab.qemu("vm", *disks, machine="pc")
    there = lab.qemu("there", *disks, "-incoming", f"unix:{lab.folder}/way", machine="pc")
    there.socket.unlink()
    user = admin(lab)
    assert user.commit("vm", "disk0", job_id="qbe-ready").status == 202
    user.until("vm", "qbe-ready", ready=True)
    requests = {
        "commit": partial(user.commit, "vm", "disk1", job_id="qbe-more"),
        "snapshot": partial(user.snapshot, "vm", "disk1", lab.folder / "new.qcow2"),
        "complete": partial(user.change, "vm", "qbe-ready", "complete"),
    }

    # It goes on while the other side reads nothing: there is more memory to copy than a socket holds.
    there.stop()
    vm.run("migrate", {"uri": f"unix:{lab.folder}/way"})
    wait_until(lambda: vm.run("query-migrate")["status"] == "active", "the migration")
    before = state(vm), files(lab), set(records(lab))
    for ask in requests.values():
        for dry_run in (True, False):
            answer = ask(dry_run=dry_run)
            assert (answer.status, answer.problem) == (409, "wrong-vm-state"), answer.body
            assert answer.body["detail"] == "vm is being migrated: active"
    assert (state(vm), files(lab), set(records(lab))) == before
    assert vm.run("query-migrate")["status"] == "active"

    vm.run("migrate_cancel")
    wait_until(lambda: vm.run("query-migrate")["status"] == "cancelled", "the migration ends")
    there.signal(signal.SIGCONT)
    there.wait()
    assert requests["complete"]().status == 202
    user.until("vm", "qbe-ready", outcome="completed")
    assert user.layers("vm", "disk0") == [str(base)]
    assert requests["snapshot"]().status == 201
    assert requests["commit"]().status == 202


def test_a_vm_that_has_arrived_and_not_run_yet_is_left_alone(lab: Lab) -> None:
    """Its disks are not active: they are still the other QEMU's."""
    disks = drive("disk0", lab.chain("disk", 2)[0])
    late = {"capabilities": [{"capability": "late-block-activate", "state": True}]}
    source = lab.qemu("source", *disks, machine="pc")
    vm = lab.qemu("vm", *disks, "-incoming", "defer", machine="pc")
    for each in (source, vm):
        each.run("migrate-set-capabilities", late)
    vm.run("migrate-incoming", {"uri": f"unix:{lab.folder}/way"})
    source.run("migrate", {"uri": f"unix:{lab.folder}/way"})
    wait_until(lambda: vm.run("query-status")["status"] in ("paused", "prelaunch"), "the arrival")
    source.quit()
    user = admin(lab)
    new = lab.folder / "new.qcow2"
    before = state(vm), files(lab)
    for dry_run in (True, False):
        answers = [
            user.snapshot("vm", "disk0", new, dry_run=dry_run),
            user.commit("vm", "disk0", dry_run=dry_run),
        ]
        for answer in answers:
            assert answer.status == 409, answer.body
            assert answer.problem in ("wrong-vm-state", "wrong-device-state")
    assert (state(vm), files(lab)) == before

    vm.run("cont")
    user.exporter.until(lambda text: value(text, "qemu_vm_running", vm="vm") == 1)
    assert user.snapshot("vm", "disk0", new).status == 201


def test_nothing_is_done_blindly(lab: Lab) -> None:
    """Where query-block is never asked, nobody knows which files a chain has and who shares them."""
    vm = lab.qemu("vm", *drive("disk0", lab.chain("disk", 2)[0]))
    user = admin(lab, flags=["--collector.topology=never"])
    before = state(vm), files(lab), set(records(lab))

    for dry_run in (True, False):
        for answer in (
            user.commit("vm", "disk0", dry_run=dry_run),
            user.snapshot("vm", "disk0", lab.folder / "new.qcow2", dry_run=dry_run),
        ):
            assert (answer.status, answer.problem) == (409, "wrong-device-state"), answer.body
            assert answer.body["detail"].startswith("the files of disk0 are not known: ")
    assert (state(vm), files(lab), set(records(lab))) == before


# What is refused at start, or as a whole.


def test_without_the_flag_nothing_is_changed(lab: Lab) -> None:
    """Users and grants alone do not enable it."""
    vm = lab.qemu("vm", *drive("disk0", lab.chain("disk", 2)[0]))
    admin(lab).exporter.close()
    exporter = lab.exporter(
        f"--web.config.file={lab.folder / 'web.json'}",
        f"--config.file={lab.folder / 'config.json'}",
    )
    user = Admin(exporter)
    exporter.authorization = f"Basic {base64.b64encode(b'root:rootroot').decode()}"
    before = state(vm), files(lab)
    requests = [
        partial(user.commit, "vm", "disk0"),
        partial(user.snapshot, "vm", "disk0", lab.folder / "new.qcow2"),
        *(partial(user.change, "vm", "qbe-a", verb, **BODIES.get(verb, {})) for verb in OF_JOBS),
    ]

    for ask in requests:
        for dry_run in (True, False):
            answer = ask(dry_run=dry_run)
            assert (answer.status, answer.problem) == (403, "admin-api-disabled")
            assert answer.kind == PROBLEM
    lines = audited(exporter, problem="admin-api-disabled", user="root", vm="vm")
    assert len(lines) == 2 * len(VERBS)
    assert {line["action"] for line in lines} == set(VERBS)
    assert (state(vm), files(lab)) == before
    assert user.get("/vms/vm").status == 200


USERS = {"basic_auth_users": {ALL: hash_of(ALL)}}
GRANT = {"users": ["root"], "verbs": ["commit"], "vms": ["*"]}


@pytest.mark.parametrize(
    ("web", "grants", "folder", "said"),
    [
        (None, [], "state", "--web.enable-admin-api: "),
        (USERS, [GRANT, {**GRANT, "users": ["rot"]}], "state", "admin.grants[1]: user 'rot'"),
        (USERS, [GRANT], "file", "--admin.state-directory: "),
        (USERS, [GRANT], "frozen", "--admin.state-directory: "),
        (USERS, [GRANT], "broken", "--admin.state-directory: "),
        (USERS, [GRANT], "foreign", "--admin.state-directory: "),
    ],
)
def test_an_exporter_that_could_not_keep_its_word_does_not_start(
    lab: Lab, web: object, grants: list[object], folder: str, said: str
) -> None:
    """It says why in one line, and leaves with code 1."""
    (lab.folder / "file").write_text("no directory")
    for name, content in {"broken": '{"vm": "vm", ', "foreign": "{}"}.items():
        (lab.folder / name).mkdir()
        (lab.folder / name / "vm@qbe-a.json").write_text(content)
    (lab.folder / "frozen").symlink_to("/proc/self")
    (lab.folder / "web.json").write_text(json.dumps(web))
    (lab.folder / "config.json").write_text(json.dumps({"admin": {"grants": grants}}))
    before = files(lab)
    flags = [
        *([f"--web.config.file={lab.folder / 'web.json'}"] if web is not None else []),
        f"--config.file={lab.folder / 'config.json'}",
        f"--admin.state-directory={lab.folder / folder}",
        "--web.listen-address=127.0.0.1:0",
        "--web.enable-admin-api",
    ]

    command = [sys.executable, "-m", "exporter", *flags]
    ended = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=40
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("qemu-block-exporter: ")
    assert said in ended.stderr
    assert files(lab) == before
