"""Outcomes of jobs on real QEMU, judged by QEMU's own events: cases that are known, and a short run by a seed.

`make truth` is the long run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.lab import Lab
from tests.truth.disk import Disk
from tests.truth.driver import drive
from tests.truth.fleet import Profile
from tests.truth.judge import RIGHT, judge
from tests.truth.layout import furnish
from tests.truth.machine import Machine, template
from tests.truth.quiet import told_wrongly
from tests.truth.record import Job, Record, Verdict
from tests.truth.report import Report
from tests.truth.watcher import Watcher
from tests.truth.work import SLOW, Pace, Work

SEED = 20261128
SHORT = Profile("dense", 2, Pace(0.7, 0.4), (0.1, 2.0), (9.0, 14.0), chaos=True, quiet_every=8.0)


class Watched:
    """A VM and a storage daemon that an exporter watches."""

    def __init__(self, lab: Lab) -> None:
        self.record = Record(seed=SEED)
        self.watcher = Watcher(lab.folder, self.record, "dense")
        made = template(lab.folder)
        self.vm = Machine(lab.folder, self.record, "dense1", 1, made)
        self.daemon = Machine(lab.folder, self.record, "dense2", 1, made)
        lab.keep(self.vm)
        lab.keep(self.daemon)
        (self.drives, (self.virtio,), (self.scsi,), (self.loose,)) = furnish(self.vm)
        ((self.exported,), _) = furnish(self.daemon, daemon=True)
        self.watcher.start()
        self.scrape()

    def work(self, *disks: Disk) -> Work:
        """Return a pair of hands that never wait."""
        return Work(disks[0].machine, list(disks), random.Random(SEED), Pace(0.0, 0.0))

    def scrape(self) -> None:
        self.watcher.fresh()

    def wrong(self, since: int) -> str:
        """Return all that is wrong of the jobs from one on, each with its story."""
        self.scrape()
        verdicts = self.watcher.verdicts()
        report = Report(self._record(verdicts))
        jobs = [id(job) for job in self.record.jobs[since:]]
        bad = [each for each in report.bad if not each.pair.job or id(each.pair.job) in jobs]
        lines = [line for each in bad for line in report.story(each)]
        began = min((job.created for job in self.record.jobs[since:]), default=math.inf)
        for machine in (self.vm, self.daemon):
            mine = [each for each in verdicts if each.vm == machine.name]
            lines += told_wrongly(self.watcher, machine, mine, self.record, began)
        return "\n".join([*lines, *self.record.problems])

    def marks(self, *jobs: Job | None) -> list[str]:
        """Return how these are judged."""
        now = self._record(self.watcher.verdicts())
        by_job = {id(each.pair.job): each.mark for each in judge(now, "dense")}
        return [by_job[id(job)] for job in jobs]

    def _record(self, verdicts: list[Verdict]) -> Record:
        return Record(**{**vars(self.record), "verdicts": verdicts})


@pytest.fixture(scope="module")
def watched(shared_lab: Lab) -> Iterator[Watched]:
    made = Watched(shared_lab)
    yield made
    made.vm.end("quit")
    made.daemon.end("quit")
    made.watcher.end()


@pytest.fixture
def judged(watched: Watched) -> Iterator[None]:
    """See that nothing is wrong with any job that a test started."""
    since = len(watched.record.jobs)
    yield
    if wrong := watched.wrong(since):
        pytest.fail(wrong, pytrace=False)


@pytest.mark.usefixtures("judged")
class TestKnownCases:
    """Each of these was said wrongly once."""

    def test_a_cancelled_commit_whose_top_left_by_a_mirror(self, watched: Watched) -> None:
        disk = watched.drives[0]
        work = watched.work(disk)
        disk.grow(work.rng)
        work.commit(disk, "cancel", at_once=True, when_ready=watched.scrape, job_id="dense1-c1")
        mirror(work, disk)

    def test_a_cancelled_commit_whose_top_was_merged_from_the_middle(
        self, watched: Watched
    ) -> None:
        disk = watched.virtio
        work = watched.work(disk)
        top, base = disk.layers()
        work.commit(disk, "cancel", at_once=True, when_ready=watched.scrape, job_id="dense1-c2")
        disk.grow(work.rng)
        merge(work, disk, top, base)

    def test_a_second_commit_that_did_what_the_first_one_did_not(self, watched: Watched) -> None:
        disk = watched.drives[1]
        work = watched.work(disk)
        for same in (False, True):
            disk.grow(work.rng)
            work.commit(disk, "cancel", at_once=True, when_ready=watched.scrape, job_id="dense1-c3")
            second = "dense1-c3" if same else "dense1-c4"
            work.commit(disk, "complete", at_once=True, job_id=second)

    def test_a_completed_commit_whose_base_was_merged_further_down(self, watched: Watched) -> None:
        disk = watched.scsi
        work = watched.work(disk)
        disk.grow(work.rng)
        disk.grow(work.rng)
        _, middle, base = disk.layers()
        work.commit(
            disk, "complete", base=middle, at_once=True, when_ready=watched.scrape,
            job_id="dense1-c5",
        )  # fmt: skip
        disk.grow(work.rng)
        merge(work, disk, middle, base)

    @pytest.mark.parametrize("how", ["complete", "cancel"])
    def test_commits_that_end_at_once_when_they_are_ready(self, watched: Watched, how: str) -> None:
        """Nobody may have seen their layers, so some may be unverified; none may be wrong."""
        disk = watched.drives[0]
        work = watched.work(disk)
        for _ in range(6):
            disk.grow(work.rng)
            work.commit(disk, how, at_once=True)

    @pytest.mark.parametrize("where", ["exported", "loose"])
    def test_commits_of_nodes_under_no_device(self, watched: Watched, where: str) -> None:
        disk: Disk = getattr(watched, where)
        work = watched.work(disk)
        disk.grow(work.rng)
        _, middle, base = disk.layers()
        merge(work, disk, middle, base)
        work.commit(disk, "cancel", at_once=True, when_ready=watched.scrape)
        watched.scrape()
        work.commit(disk, "complete", at_once=True, when_ready=watched.scrape)

    def test_commits_of_an_export_are_told(self, watched: Watched) -> None:
        """Its new root shows how they ended."""
        disk = watched.exported
        work = watched.work(disk)
        disk.grow(work.rng)
        watched.scrape()
        cancelled = work.commit(disk, "cancel", at_once=True, when_ready=watched.scrape)
        watched.scrape()
        completed = work.commit(disk, "complete", at_once=True, when_ready=watched.scrape)
        watched.scrape()
        assert watched.marks(cancelled, completed) == [RIGHT, RIGHT]

    def test_two_jobs_of_one_id(self, watched: Watched) -> None:
        """The API tells of the newer one, also while QEMU still lists it."""
        disk = watched.drives[0]
        work = watched.work(disk)
        for keep in (False, True):
            disk.grow(work.rng)
            work.commit(disk, "complete", at_once=True, when_ready=watched.scrape, job_id="")
            more: dict[str, Any] = {"auto_dismiss": False} if keep else {}
            job = backup(work, disk, "", speed=SLOW, **more)
            work.ask(job, "cancel")
            work.concluded(job)
            wrong = watched.wrong(watched.record.jobs.index(job))
            work.ended(job)
            if wrong:
                pytest.fail(wrong, pytrace=False)

    def test_a_cancelled_job_that_is_no_block_job(self, watched: Watched) -> None:
        disk = watched.virtio
        work = watched.work(disk)
        for number in range(4):
            file = watched.vm.file("created")
            options = {
                "driver": "file",
                "filename": file,
                "size": 96 << 20,
                "preallocation": "full",
            }
            job = work.start(
                disk, "blockdev-create", "create", job_id=f"dense1-r{number}", options=options
            )
            assert job
            work.ask(job, "cancel")
            work.ended(job)

    def test_commits_of_two_disks_that_nobody_listed(self, watched: Watched) -> None:
        """The one that was cancelled is not one of the other disk."""
        first, second = watched.drives
        work = watched.work(first, second)
        first.grow(work.rng)
        second.grow(work.rng)
        watched.scrape()
        with watched.watcher.held():
            work.commit(second, "complete", at_once=True, job_id="dense1-y1")
            work.commit(first, "cancel", at_once=True, job_id="dense1-x0")

    def test_an_id_that_is_the_name_of_another_disk(self, watched: Watched) -> None:
        first, second = watched.drives
        work = watched.work(first, second)
        with watched.watcher.held():
            work.ended(backup(work, second, first.label))


def test_random_jobs_of_a_seed_are_told_rightly(lab: Lab) -> None:
    """Nothing is wrong, lost or about no job; how many are weak is chance."""
    report = Report(drive(lab.folder, (SHORT,), SEED, 15.0))
    if not report.well:
        pytest.fail("\n".join(report.lines()), pytrace=False)
    assert report.whole() > 20
    caught, changed = report.flagged["dense"]
    assert caught >= 0.95 * changed


def backup(work: Work, disk: Disk, job_id: str, **more: Any) -> Job:
    """Back a drive up under an id."""
    job = work.start(
        disk, "drive-backup", "backup", job_id=job_id, device=disk.target(), sync="full",
        target=work.machine.file("backup"), format="qcow2", **more,
    )  # fmt: skip
    assert job
    return job


def mirror(work: Work, disk: Disk) -> None:
    """Have a disk go over to a copy of its top."""
    job = work.start(
        disk, "drive-mirror", "mirror", job_id=work.machine.unique("m"), device=disk.target(),
        target=work.machine.file("mirror"), format="qcow2", sync="top",
        node_name=work.machine.unique("n"),
    )  # fmt: skip
    assert job
    assert work.ready(job)
    work.ask(job, "complete")
    work.ended(job)


def merge(work: Work, disk: Disk, top: str, base: str) -> None:
    """Merge a layer of the middle."""
    job = work.start(
        disk, "block-commit", "commit", job_id=work.machine.unique("c"), device=disk.target(),
        top_node=top, base_node=base,
    )  # fmt: skip
    assert job
    work.ended(job)
