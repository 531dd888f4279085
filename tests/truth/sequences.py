"""Operations of more than one step, in which a chain changes again before anybody has seen it.

How the first of their commits ended cannot be told from the chain that the next scrape finds.
"""

from __future__ import annotations

from tests.truth.disk import Disk
from tests.truth.work import SLOW, Work


def cancel_then_mirror(work: Work, disk: Disk) -> None:
    """The top of a cancelled commit leaves the chain all the same, for the target of a mirror."""
    _grown(work, disk)
    work.commit(disk, "cancel")
    work.step()
    name = work.machine.unique("n")
    job = work.start(
        disk, "drive-mirror", "mirror", device=disk.target(), target=work.machine.file("mirror"),
        format="qcow2", sync="top", node_name=name,
    )  # fmt: skip
    if job and work.ready(job):
        work.ask(job, "complete")
    if job:
        work.ended(job)


def cancel_then_merge_below(work: Work, disk: Disk) -> None:
    """The top of a cancelled commit is merged by another one, when it is no more on top."""
    _grown(work, disk)
    top, *_, base = disk.layers()
    work.commit(disk, "cancel")
    work.step()
    disk.grow(work.rng)
    job = work.start(
        disk, "block-commit", "commit", device=disk.target(), top_node=top, base_node=base
    )
    if job:
        work.ended(job)


def cancel_then_complete(work: Work, disk: Disk) -> None:
    """A second commit of the same layers does what the first one did not."""
    _grown(work, disk)
    base = disk.layers()[-1]
    first = work.commit(disk, "cancel", base=base, at_once=work.chance(0.5))
    work.step()
    same = first.id if first and work.chance(0.3) else None
    work.commit(disk, "complete", base=base, at_once=True, job_id=same)


def complete_then_merge_below(work: Work, disk: Disk) -> None:
    """The base of a completed commit is merged further down."""
    while len(disk.layers()) < 3:
        disk.grow(work.rng)
    middle, base = disk.layers()[-2:]
    work.commit(disk, "complete", base=middle)
    work.step()
    disk.grow(work.rng)
    if middle in disk.layers():
        job = work.start(
            disk, "block-commit", "commit", device=disk.target(), top_node=middle, base_node=base
        )
        if job:
            work.ended(job)


def complete_then_backup(work: Work, disk: Disk) -> None:
    """Two jobs of different types have one id, QEMU's default or one that was given twice."""
    _grown(work, disk)
    job_id = "" if disk.kind == "drive" else work.machine.unique("twice")
    work.commit(disk, "complete", job_id=job_id)
    if disk.unplugged:
        return
    keep = {} if work.chance(0.5) else {"auto_dismiss": False}
    job = work.start(
        disk, "drive-backup", "backup", job_id=job_id, device=disk.target(), sync="full",
        target=work.machine.file("backup"), format="qcow2", speed=SLOW, **keep,
    )  # fmt: skip
    if job:
        work.ask(job, "cancel")
        if keep and work.chance(0.7):
            work.concluded(job)
            work.kept.append(job)
        else:
            work.ended(job)


def two_disks(work: Work, disk: Disk) -> None:
    """One disk's commit is completed and another one's cancelled, and no query has listed either."""
    if len(work.disks) < 2:
        return
    first, second = work.disks[0], work.disks[1]
    _grown(work, first)
    _grown(work, second)
    if work.chance(0.6):
        work.step()
    work.commit(second, "complete", at_once=True)
    work.commit(first, "cancel", at_once=True)


def _grown(work: Work, disk: Disk) -> None:
    """See that there is something to commit."""
    if len(disk.layers()) < 2 or work.chance(0.4):
        disk.grow(work.rng)
        if work.chance(0.5):
            work.step()
