"""What is done to disks by chance: each operation starts and ends one job, or changes a disk without one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from tests.e2e.lab import QmpError
from tests.truth import sequences
from tests.truth.disk import Disk
from tests.truth.machine import SIZE
from tests.truth.record import Job
from tests.truth.recorder import Plan
from tests.truth.work import SLOW, Work

#: ENOSPC, EIO, EACCES
_ERRORS = (28, 5, 13)


def _target(work: Work, *, bad: bool = False) -> str:
    """Make a node to copy to; nothing can be written to a bad one."""
    file = work.machine.file("target")
    with open(file, "wb") as image:
        image.truncate(SIZE)
    name = work.machine.unique("t")
    below: dict[str, Any] = {"driver": "file", "filename": file}
    if bad:
        errno = work.rng.choice(_ERRORS)
        rule = {"event": "none", "iotype": "write", "errno": errno, "immediately": False}
        below = {"driver": "blkdebug", "image": below, "inject-error": [rule]}
    work.machine.send("blockdev-add", {"driver": "raw", "node-name": name, "file": below})
    return name


def _drop(work: Work, name: str) -> None:
    work.machine.try_("blockdev-del", node_name=name)


def _run_to_its_end(work: Work, job: Job, more: dict[str, Any]) -> None:
    """Let a job end by itself or cancel it; pause, finalize and dismiss where that was chosen."""
    if work.chance(0.15) and work.machine.try_("job-pause", id=job.id):
        work.step()
        work.machine.try_("job-resume", id=job.id)
    if "speed" in more:
        work.step()
        if work.chance(0.7):
            work.ask(job, "cancel")
        else:
            work.speed(job, 0)
    if more.get("auto_finalize") is False:
        work.until(lambda: job.status == "pending" or bool(job.ended or job.gone))
        if job.status == "pending":
            work.step()
            if work.chance(0.3):
                work.ask(job, "cancel")
            else:
                work.machine.try_("job-finalize", id=job.id)
    work.concluded(job)
    if more.get("auto_dismiss") is False and work.chance(0.4):
        work.kept.append(job)
    else:
        work.ended(job)


def _manners(work: Work) -> dict[str, Any]:
    """Choose how a job is to run."""
    more: dict[str, Any] = {}
    if work.chance(0.4):
        more["speed"] = SLOW
    if work.chance(0.15):
        more["auto_finalize"] = False
    if work.chance(0.3):
        more["auto_dismiss"] = False
    return more


def backup(work: Work, disk: Disk) -> None:
    """Back a disk up: to its end, cancelled, or to a target that fails."""
    bad = work.chance(0.2)
    name = _target(work, bad=bad)
    more = _manners(work)
    if work.chance(0.5):
        disk.write(work.rng)
    sync = work.rng.choice(("full", "top", "none" if work.chance(0.2) else "full"))
    if sync == "none":
        more = {"speed": SLOW}
    job = work.start(
        disk, "blockdev-backup", "backup", device=disk.target(), target=name, sync=sync,
        on_target_error="report", **more,
    )  # fmt: skip
    if job:
        if sync == "none":
            work.step()
            work.ask(job, "cancel")
            work.ended(job)
        else:
            _run_to_its_end(work, job, more)
    if job is None or job.gone:
        _drop(work, name)


def drive_backup(work: Work, disk: Disk) -> None:
    """Back a drive up to a file that QEMU makes."""
    more = _manners(work)
    file = work.machine.file("backup")
    job = work.start(
        disk, "drive-backup", "backup", device=disk.target(), target=file, format="qcow2",
        sync="full", **more,
    )  # fmt: skip
    if job:
        _run_to_its_end(work, job, more)
        if job.gone and os.path.exists(file):
            os.unlink(file)


def mirror(work: Work, disk: Disk) -> None:
    """Copy a disk; go over to the copy, or cancel when ready, or before."""
    file = work.machine.file("mirror")
    name = work.machine.unique("n")
    how = work.rng.choice(("complete", "complete", "cancel", "force", "early", "fail"))
    more: dict[str, Any] = {"speed": SLOW} if how == "early" else {}
    if how == "fail":
        target = _target(work, bad=True)
        job = work.start(
            disk, "blockdev-mirror", "mirror", device=disk.target(), target=target, sync="full",
            on_target_error="report", **more,
        )  # fmt: skip
        if job:
            if work.ready(job):
                work.ask(job, "cancel")
            work.ended(job)
        _drop(work, target)
        return
    job = work.start(
        disk, "drive-mirror", "mirror", device=disk.target(), target=file, format="qcow2",
        sync=work.rng.choice(("full", "top")), node_name=name, **more,
    )  # fmt: skip
    if job:
        _end_mirror(work, job, how)
        if disk.layers()[:1] != [name]:
            os.unlink(file)


def _end_mirror(work: Work, job: Job, how: str) -> None:
    if how == "early":
        work.step()
        work.ask(job, "cancel", force=work.chance(0.5))
    elif work.ready(job):
        work.step()
        work.ask(job, "complete" if how == "complete" else "cancel", force=how == "force")
    work.ended(job)


def stream(work: Work, disk: Disk) -> None:
    """Fill the active layer from those below it."""
    layers = disk.layers()
    if len(layers) < 2:
        disk.grow(work.rng, bad=work.chance(0.1))
        return
    more = _manners(work)
    if len(layers) > 2 and work.chance(0.4):
        more["base_node"] = layers[-1]
    job = work.start(
        disk, "block-stream", "stream", device=disk.target(), on_error="report", **more
    )
    if job:
        _run_to_its_end(work, job, more)


def active_commit(work: Work, disk: Disk) -> None:
    """Snapshot and merge back, as one does for a backup."""
    if len(disk.layers()) < 2 or work.chance(0.6):
        disk.grow(work.rng, bad=work.chance(0.06))
        work.step()
    if work.chance(0.3):
        disk.write(work.rng)
    layers = disk.layers()
    base = layers[-1] if len(layers) < 3 or work.chance(0.5) else work.rng.choice(layers[1:])
    how = work.rng.choice(("complete",) * 6 + ("cancel",) * 3 + ("early",))
    more: dict[str, Any] = {"auto_dismiss": False} if work.chance(0.15) else {}
    work.commit(disk, how, base=base, at_once=work.chance(0.08), **more)


def intermediate_commit(work: Work, disk: Disk) -> None:
    """Merge a layer in the middle."""
    layers = disk.layers()
    while len(layers) < 3:
        disk.grow(work.rng)
        layers = disk.layers()
    top = work.rng.randrange(1, len(layers) - 1)
    more = _manners(work)
    job = work.start(
        disk, "block-commit", "commit", device=disk.target(), top_node=layers[top],
        base_node=layers[work.rng.randrange(top + 1, len(layers))], **more,
    )  # fmt: skip
    if job:
        _run_to_its_end(work, job, more)


def grow(work: Work, disk: Disk) -> None:
    """Take a snapshot."""
    if len(disk.layers()) < 5:
        disk.grow(work.rng, bad=work.chance(0.06))


def create(work: Work, disk: Disk) -> None:
    """Create an image: to its end, cancelled, or in vain."""
    file = work.machine.file("created")
    how = work.rng.choice(("good", "good", "cancel", "fail"))
    options: dict[str, Any] = {"driver": "file", "filename": file, "size": SIZE}
    if how == "fail":
        options["filename"] = f"{work.machine.folder}/no/such/folder"
    elif how == "cancel":
        options |= {"preallocation": "full", "size": 12 * SIZE}
    job = work.start(disk, "blockdev-create", "create", options=options)
    if job is None:
        return
    if how == "cancel":
        work.ask(job, "cancel")
    work.concluded(job)
    work.step()
    work.ended(job)
    if os.path.exists(file):
        os.unlink(file)


def saved_state(work: Work, disk: Disk) -> None:
    """Save the VM's state into a disk, and delete it."""
    if disk.kind != "blockdev" or disk.unplugged:
        return
    root, tag = disk.root(), work.machine.unique("tag")
    for command in ("snapshot-save", "snapshot-delete"):
        arguments: dict[str, Any] = {"tag": tag, "devices": [root]}
        arguments |= {"vmstate": root} if command == "snapshot-save" else {}
        job = work.start(disk, command, command, job_id=work.machine.unique("s"), **arguments)
        if job is None:
            return
        work.concluded(job)
        work.step()
        work.ended(job)


def internal_snapshot(work: Work, disk: Disk) -> None:
    """Take a snapshot inside the image, which is no job."""
    if disk.attached and not disk.unplugged:
        with work.machine.refusable():
            work.machine.run(
                "blockdev-snapshot-internal-sync", device=disk.target(),
                name=work.machine.unique("i"),
            )  # fmt: skip


def transaction(work: Work, disk: Disk) -> None:
    """Back two disks up at once: both are completed, or none."""
    if len(work.disks) < 2:
        return
    plans: list[Plan] = []
    actions: list[dict[str, Any]] = []
    targets: list[str] = []
    fails = work.chance(0.4)
    for number, each in enumerate(work.disks[:2]):
        plan, job_id = Plan("backup", each.label), work.machine.unique("g")
        work.machine.recorder.plan(job_id, plan)
        plans.append(plan)
        targets.append(_target(work, bad=fails and number == 1))
        data: dict[str, Any] = {
            "job-id": job_id, "device": each.target(), "target": targets[-1], "sync": "full",
            "on-target-error": "report", "speed": 16 * SLOW if number == 0 else 0,
        }  # fmt: skip
        actions.append({"type": "blockdev-backup", "data": data})
    properties = {"completion-mode": "grouped" if work.chance(0.7) else "individual"}
    work.machine.say("transaction of two backups")
    with work.machine.refusable():
        work.machine.run("transaction", actions=actions, properties=properties)
        jobs = [work.begun(plan) for plan in plans]
        if not fails and work.chance(0.4):
            work.step()
            work.ask(jobs[0], "cancel")
        for job in jobs:
            work.ended(job)
    for target in targets:
        _drop(work, target)


def refused(work: Work, disk: Disk) -> None:
    """Send a command that QEMU refuses after it has created the job."""
    layers = disk.layers()
    work.start(
        disk, "block-stream", "stream", job_id=work.machine.unique("x"), device=disk.target(),
        base_node=layers[0],
    )  # fmt: skip


def unplug(work: Work, disk: Disk) -> None:
    """Unplug a SCSI disk, by chance in the middle of a job, and plug another one on its layers."""
    if disk.kind != "blockdev" or disk.qdev != disk.label or disk.unplugged:
        return
    machine, job = work.machine, None
    if work.chance(0.7):
        name = _target(work)
        job = work.start(
            disk, "blockdev-backup", "backup", device=disk.target(), target=name, sync="full",
            speed=SLOW,
        )  # fmt: skip
        work.step()
    root, top = disk.root(), disk.layers()[0]
    machine.say(f"{disk.label}: unplugged")
    if job:
        job.moved = True
    machine.run("device_del", id=disk.qdev)
    work.step()
    label = machine.unique("s")
    for attempt in (_throttled(work, root) if work.chance(0.4) else root, root, top):
        try:
            machine.run("device_add", driver="scsi-hd", id=label, drive=attempt, share_rw=True)
            break
        except QmpError as error:
            machine.say(f"refused: {error}")
            time.sleep(0.05)
    else:
        disk.unplugged = True
    disk.label = disk.qdev = label
    machine.say(f"{label}: plugged")
    if job:
        work.ask(job, "cancel")
        work.ended(job)
        _drop(work, name)


def _throttled(work: Work, root: str) -> str:
    """Put a filter above a chain."""
    name, group = work.machine.unique("f"), work.machine.unique("tg")
    work.machine.run("object-add", qom_type="throttle-group", id=group)
    spec = {"driver": "throttle", "node-name": name, "throttle-group": group, "file": root}
    work.machine.send("blockdev-add", spec)
    return name


def medium(work: Work, disk: Disk) -> None:
    """Change the medium of the CD drive."""
    machine = work.machine
    with machine.refusable():
        file = machine.overlay()
        machine.run("blockdev-change-medium", id="cd", filename=file, format="qcow2")
        machine.run("eject", id="cd", force=True)
        os.unlink(file)


_Operation = Callable[[Work, Disk], None]
#: Operation -> how often, of disks with a device and of nodes under none.
OPERATIONS: dict[_Operation, tuple[int, int]] = {
    active_commit: (24, 24),
    intermediate_commit: (6, 6),
    backup: (16, 10),
    drive_backup: (6, 0),
    mirror: (10, 0),
    stream: (9, 4),
    create: (8, 10),
    grow: (6, 4),
    saved_state: (2, 0),
    internal_snapshot: (1, 0),
    transaction: (3, 0),
    refused: (2, 2),
    unplug: (5, 0),
    medium: (1, 0),
    sequences.cancel_then_mirror: (1, 0),
    sequences.cancel_then_merge_below: (1, 1),
    sequences.cancel_then_complete: (1, 1),
    sequences.complete_then_merge_below: (1, 1),
    sequences.complete_then_backup: (1, 0),
    sequences.two_disks: (1, 0),
}
