"""Jobs that began, went on and ended, as events and queries tell of them: each ends once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.jobs import tracker as module
from exporter.jobs.outcomes import ENDS_LIMIT, KEYS_LIMIT, End, Outcomes
from exporter.jobs.tracked_job import LIVE, Heard, TrackedJob
from exporter.jobs.tracker import JobTracker
from exporter.jobs.verdict import RESULTS
from exporter.metrics.types import Scope
from exporter.model.job_placement import Place
from exporter.model.state import Device, Job, Node
from exporter.qmp import schema
from exporter.qmp.peer import Process
from tests.disks import block_job
from tests.replay import RECORDINGS

HERE = Process(7, (7, 2, 0))
ACTIVE = Place("disk0", "0", "1")
MIDDLE = Place("disk0", "1", "2")
CHAIN = ("top", "mid", "base")


def device(*layers: str, name: str = "disk0") -> Device:
    """A device on a chain."""
    nodes = tuple(
        Node(layer=str(depth), role="format", node_name=node) for depth, node in enumerate(layers)
    )
    return Device(device=name, nodes=nodes, backing_depth=0, expected_backing_depth=0)


def listed(job_id: str = "disk0", kind: str = "commit", **more: object) -> schema.BlockJob:
    """An entry of query-block-jobs."""
    return msgspec.convert(block_job(job_id, kind, **more), schema.BlockJob)


def other(job_id: str = "snap", status: str = "running", **more: object) -> schema.JobInfo:
    """An entry of query-jobs."""
    entry = {"id": job_id, "type": "snapshot-save", "status": status, **more}
    return msgspec.convert({**entry, "current-progress": 1, "total-progress": 4}, schema.JobInfo)


class Watched:
    """The jobs of a VM with one disk, and a clock that counts what is told."""

    def __init__(self, *layers: str, process: Process = HERE) -> None:
        self.jobs = JobTracker()
        self.now = 0.0
        self.devices: tuple[Device, ...] = (device(*(layers or CHAIN)),)
        self.connect(process)

    def connect(self, process: Process = HERE) -> None:
        self.jobs.connected(process, self.now)

    def event(self, name: str, **data: object) -> None:
        self.now += 1
        self.jobs.take(name, json.dumps(data).encode(), self.now)

    def status(self, *statuses: str, id: str = "disk0") -> None:
        for status in statuses:
            self.event("JOB_STATUS_CHANGE", id=id, status=status)

    def ended(self, kind: str = "commit", id: str = "disk0", **more: object) -> None:
        self.event("BLOCK_JOB_COMPLETED", device=id, type=kind, **more)

    def ready(self, kind: str = "commit", id: str = "disk0") -> None:
        self.status("ready", id=id)
        self.event("BLOCK_JOB_READY", device=id, type=kind)

    def answer(
        self,
        *told: schema.BlockJob,
        others: Sequence[schema.JobInfo] | None = None,
        place: Place | None = ACTIVE,
        readable: bool = True,
    ) -> None:
        """Take the answers to what was asked."""
        self.now += 1
        places = {(job.device, job.type): place for job in told if place}
        self.jobs.poll(told, others, places, self.devices, self.now, readable=readable)

    def poll(self, *told: schema.BlockJob, **more: Any) -> None:
        """Ask and take the answers."""
        self.jobs.ask()
        self.answer(*told, **more)

    def chain(self, *layers: str) -> None:
        self.devices = (device(*layers),)

    @property
    def records(self) -> Mapping[Scope, Sequence[Any]]:
        return self.jobs.outcomes.records()

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """(type, result) -> jobs, of what is not 0."""
        return {
            (record.job_type, result): count
            for record in self.records[Scope.OUTCOME]
            for result in RESULTS
            if (count := getattr(record, result))
        }

    def commit_that_is_ready(self, *, seen: bool = True) -> None:
        """Start a commit of the whole chain, and have it ready."""
        self.poll()
        self.status("created", "running")
        self.ready()
        if seen:
            self.poll(listed(ready=True, status="ready"))


@pytest.fixture
def vm() -> Watched:
    return Watched()


# By events.


@pytest.mark.parametrize("kind", ["stream", "backup", "mirror", "commit"])
def test_a_job_that_starts_and_ends_between_two_scrapes_is_counted(vm: Watched, kind: str) -> None:
    """No query saw it; a commit that never was ready is one of a layer in the middle."""
    vm.poll()
    vm.status("created", "running", "waiting", "pending")
    vm.ended(kind)
    vm.status("concluded", "null")
    vm.poll()

    assert vm.counts == {(kind, "completed"): 1}
    [finished] = vm.records[Scope.FINISHED]
    assert (finished.device, finished.result) == ("disk0", "completed")


def test_an_error_is_a_failure_and_is_told(vm: Watched) -> None:
    """Without the credentials in it, and not at any length."""
    vm.ended("mirror", error="Could not open 'http://me:PASSWORD@host/x': " + "no " * 100)

    assert vm.counts == {("mirror", "failed"): 1}
    [error] = vm.records[Scope.LAST_ERROR]
    assert error.error.startswith("Could not open 'http://host/x")
    assert len(error.error) <= 200


def test_a_job_that_was_cancelled_is_counted_so(vm: Watched) -> None:
    """BLOCK_JOB_CANCELLED."""
    vm.event("BLOCK_JOB_CANCELLED", device="disk0", type="backup", len=1, offset=0, speed=0)

    assert vm.counts == {("backup", "cancelled"): 1}


def test_the_counters_are_there_from_the_first_sight_of_a_type(vm: Watched) -> None:
    """At 0: what is born as 1 has no increase."""
    vm.poll(listed())
    [record] = vm.records[Scope.OUTCOME]

    assert (record.job_type, record.completed, record.vanished) == ("commit", 0, 0)


def test_a_job_whose_command_was_refused_did_not_end(vm: Watched) -> None:
    """It is created and gone; one of a refused transaction is cancelled without having run."""
    vm.poll()
    vm.status("created", "null")
    vm.status("created", "aborting", "concluded", "null")
    vm.poll()

    assert vm.counts == {}


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize(
    ("scenario", "counts"),
    [
        (
            "b",
            {
                ("", "completed"): 1,  # blockdev-create, whose type no event tells
                ("backup", "cancelled"): 2,
                ("backup", "completed"): 1,
                ("commit", "completed"): 2,  # of layers in the middle
                ("commit", "unverified"): 1,  # cancelled when ready, and no chain was asked for
                ("mirror", "cancelled"): 1,
                ("mirror", "completed"): 2,
                ("stream", "completed"): 1,
            },
        ),
        (
            "c",
            {
                ("commit", "cancelled"): 1,
                ("commit", "failed"): 1,
                ("mirror", "cancelled"): 1,
                ("mirror", "failed"): 2,
            },
        ),
    ],
)
def test_recorded_events_tell_what_was_done(
    vm: Watched, version: str, scenario: str, counts: dict[tuple[str, str], int]
) -> None:
    """Every event of real QEMUs; no query saw a job."""
    vm.poll()
    for line in (RECORDINGS / version / f"events-{scenario}.jsonl").read_text().splitlines():
        event = json.loads(line)["event"]
        vm.event(event["event"], **event.get("data", {}))
    vm.poll()

    assert vm.counts == counts


# Commits and their chains.


@pytest.mark.parametrize(
    ("after", "result"),
    [
        (("mid", "base"), "completed"),
        (("new", "mid", "base"), "completed"),
        (CHAIN, "cancelled"),
        (("new", *CHAIN), "cancelled"),
        (("other",), "unverified"),  # it was snapshotted and pulled since, say
    ],
)
def test_a_commit_that_was_ready_ended_as_its_chain_shows(
    vm: Watched, after: tuple[str, ...], result: str
) -> None:
    """To complete it and to cancel it send the same event."""
    vm.commit_that_is_ready()
    vm.ended()
    vm.chain(*after)
    vm.poll()

    assert vm.counts == {("commit", result): 1}


def test_a_chain_of_before_the_end_says_nothing_of_it(vm: Watched) -> None:
    """The answer was on its way when the event came: the next one is awaited."""
    vm.commit_that_is_ready()
    vm.jobs.ask()
    vm.ended()
    vm.answer()
    assert vm.counts == {}
    vm.chain("mid", "base")
    vm.poll()

    assert vm.counts == {("commit", "completed"): 1}


def test_where_the_chain_cannot_be_read_a_commit_is_unverified(vm: Watched) -> None:
    """Nor where its device is gone."""
    vm.commit_that_is_ready()
    vm.ended()
    vm.poll(readable=False)
    vm.status("concluded", "null")
    vm.commit_that_is_ready()
    vm.ended()
    vm.devices = ()
    vm.poll()

    assert vm.counts == {("commit", "unverified"): 2}


def test_a_commit_that_no_query_saw_is_completed_where_one_chain_lost_its_top(vm: Watched) -> None:
    """Of libvirt's job ids no device is known: the chain tells which it was."""
    vm.poll()
    vm.status("created", "running", id="commit-1")
    vm.ready(id="commit-1")
    vm.ended(id="commit-1")
    vm.chain("base")
    vm.poll()

    assert vm.counts == {("commit", "completed"): 1}
    assert vm.records[Scope.FINISHED][0].device == "disk0"


def test_a_commit_that_no_query_saw_is_unverified_where_no_chain_changed(vm: Watched) -> None:
    """It may have been of a layer that came and went between two scrapes."""
    vm.commit_that_is_ready(seen=False)
    vm.ended()
    vm.poll()

    assert vm.counts == {("commit", "unverified"): 1}


def test_one_chain_is_the_word_on_one_commit(vm: Watched) -> None:
    """Which of two commits it was that took the top away, nobody knows."""
    vm.commit_that_is_ready()
    vm.ended()
    vm.status("concluded", "null", "created", "running")
    vm.ready()
    vm.ended()
    vm.chain("mid", "base")
    vm.poll()

    assert vm.counts == {("commit", "unverified"): 2}


def test_a_commit_whose_pivot_shows_before_its_end_is_judged_makes_no_other_one_completed(
    vm: Watched,
) -> None:
    """The second one ended while the answers were on their way, and the chain has it already."""
    vm.commit_that_is_ready()
    vm.ended()
    vm.status("concluded", "null", "created", "running")
    vm.ready()
    vm.jobs.ask()
    vm.ended()
    vm.chain("base")
    vm.answer()
    vm.poll()

    assert vm.counts.keys() <= {("commit", "unverified"), ("commit", "completed")}
    assert vm.counts["commit", "unverified"] >= 1


@pytest.mark.parametrize("kind", ["mirror", "stream", "commit"])
@pytest.mark.parametrize("job_id", ["disk0", "x"])
def test_a_job_that_ended_since_may_have_taken_the_top_away(
    vm: Watched, kind: str, job_id: str
) -> None:
    """Of whatever type, and whatever it is called: its disk is not known."""
    vm.commit_that_is_ready()
    vm.ended()
    vm.status("concluded", "null")
    vm.status("created", "running", id=job_id)
    vm.ended(kind, id=job_id)
    vm.chain("target", "mid", "base")
    vm.poll()

    assert vm.counts["commit", "unverified"] == 1
    assert ("commit", "cancelled") not in vm.counts


@pytest.mark.parametrize(
    ("kind", "more"), [("backup", {}), ("mirror", {"error": "No space left on device"})]
)
def test_a_job_that_changes_no_chain_has_not_taken_the_top_away(
    vm: Watched, kind: str, more: dict[str, str]
) -> None:
    """A backup reads, and what fails leaves all as it was."""
    vm.commit_that_is_ready()
    vm.ended()
    vm.status("concluded", "null")
    vm.status("created", "running", id="x")
    vm.ended(kind, id="x", **more)
    vm.chain("mid", "base")
    vm.poll()

    assert vm.counts["commit", "completed"] == 1


def test_a_commit_is_not_cancelled_because_its_base_is_gone(vm: Watched) -> None:
    """It was merged further down; only a top that is there was not merged."""
    vm.commit_that_is_ready()
    vm.ended()
    vm.status("concluded", "null", "created", "running")
    vm.ended()
    vm.chain("new", "base")
    vm.poll()

    assert vm.counts.keys() <= {("commit", "unverified"), ("commit", "completed")}


def test_the_disk_of_a_commit_that_another_may_have_been_is_not_told(vm: Watched) -> None:
    """One of two disks has lost its top."""
    vm.devices = (device("a1", "a0"), device("b1", "b0", name="disk1"))
    vm.poll()
    for job_id in ("x", "y"):
        vm.status("created", "running", id=job_id)
        vm.ready(id=job_id)
        vm.ended(id=job_id)
    vm.devices = (device("a1", "a0"), device("b0", name="disk1"))
    vm.poll()

    assert vm.counts == {("commit", "unverified"): 2}
    assert [each.device for each in vm.records[Scope.FINISHED]] == [""]


def test_an_id_is_no_device_where_qemu_would_have_told_the_place(vm: Watched) -> None:
    """A backup of one disk may have the name of another; the end is counted with the next answers."""
    vm.jobs.places_told = True
    vm.poll()
    vm.status("created", "running")
    vm.ended("backup")
    assert vm.counts == {}
    vm.poll()

    assert vm.counts == {("backup", "completed"): 1}
    assert [each.device for each in vm.records[Scope.FINISHED]] == [""]


def test_an_end_is_that_of_the_newest_job_of_its_id(vm: Watched) -> None:
    """A commit is judged later than the backup that came after it ended."""
    vm.commit_that_is_ready()
    vm.ended()
    vm.status("concluded", "null", "created", "running")
    vm.event("BLOCK_JOB_CANCELLED", device="disk0", type="backup")
    vm.chain("mid", "base")
    vm.poll()

    assert vm.counts == {("commit", "completed"): 1, ("backup", "cancelled"): 1}
    end = vm.jobs.outcomes.ends["disk0"]
    assert (end.type, end.result) == ("backup", "cancelled")


def test_a_commit_in_the_middle_is_what_the_event_says(vm: Watched) -> None:
    """It is never ready, and the top stays."""
    vm.poll(listed(), place=MIDDLE)
    vm.ended()

    assert vm.counts == {("commit", "completed"): 1}


def test_a_qemu_without_node_names_shows_a_pivot_by_the_depth() -> None:
    """QEMU 2.0; it has no JOB_STATUS_CHANGE either, and uses an id again at once."""
    vm = Watched("", "", process=Process(7, (2, 0, 0)))
    for depth in (1, 0):
        vm.devices = (device("", ""),)
        vm.poll(listed(status=None), place=Place("disk0"))
        vm.event("BLOCK_JOB_READY", device="disk0", type="commit")
        vm.ended()
        vm.devices = (device(*[""] * (2 - depth)),)
        vm.poll()

    assert vm.counts == {("commit", "completed"): 1, ("commit", "cancelled"): 1}


# Once.


def test_a_job_that_is_kept_is_counted_once(vm: Watched) -> None:
    """With auto-dismiss off it is listed as `concluded` until somebody dismisses it."""
    vm.poll(listed(kind="backup"))
    vm.ended("backup")
    vm.status("concluded")
    for _ in range(3):
        vm.poll(listed(kind="backup", status="concluded"))
    vm.connect()
    vm.poll(listed(kind="backup", status="concluded"))
    vm.status("null")
    vm.poll()

    assert vm.counts == {("backup", "completed"): 1}


@pytest.mark.parametrize("dismissed", [True, False])
def test_an_answer_of_before_its_end_brings_no_job_back(vm: Watched, dismissed: bool) -> None:
    """The event came after the answer was sent, and before it was read."""
    vm.poll(listed(kind="stream"))
    vm.jobs.ask()
    vm.status("waiting", "pending")
    vm.ended("stream")
    vm.status("concluded", *(["null"] if dismissed else []))
    vm.answer(listed(kind="stream"))
    vm.poll()
    vm.poll()

    assert vm.counts == {("stream", "completed"): 1}


def test_a_job_that_began_after_the_answer_is_not_missed_in_it(vm: Watched) -> None:
    """It goes on."""
    vm.jobs.ask()
    vm.status("created", "running")
    vm.answer()
    vm.poll(listed())

    assert vm.counts == {}


def test_an_id_may_be_used_again(vm: Watched) -> None:
    """Ten jobs of one id are ten jobs."""
    for _ in range(10):
        vm.status("created", "running", "waiting", "pending")
        vm.ended("backup")
        vm.status("concluded", "null")

    assert vm.counts == {("backup", "completed"): 10}


# Without events.


def test_a_job_that_is_gone_without_a_word_has_vanished(vm: Watched) -> None:
    """So does a commit whose chain stays; it is looked at twice, for answers are not of one instant."""
    vm.poll(listed("j", "stream"), listed())
    vm.connect()
    vm.poll()
    assert vm.counts == {("stream", "vanished"): 1}
    vm.connect()
    vm.poll()

    assert vm.counts == {("stream", "vanished"): 1, ("commit", "vanished"): 1}


@pytest.mark.parametrize("place", [ACTIVE, MIDDLE])
@pytest.mark.parametrize("late", [False, True])
def test_a_commit_that_is_gone_without_a_word_may_be_what_its_chain_shows(
    vm: Watched, place: Place, late: bool
) -> None:
    """Or another one may have done it, of which nothing was heard either."""
    vm.poll(listed(), place=place)
    vm.connect()
    after = [node for node in CHAIN if node != CHAIN[int(place.top)]]
    vm.chain(*(CHAIN if late else after))
    vm.poll()
    vm.chain(*after)
    vm.poll()

    assert vm.counts == {("commit", "unverified"): 1}


@pytest.mark.parametrize(
    "after", [Process(8, (7, 2, 0)), Process(7, (8, 0, 0)), Process(0, (7, 2, 0))]
)
def test_of_another_qemu_no_chain_is_believed(vm: Watched, after: Process) -> None:
    """It was started on what was left; one that cannot be seen may be another."""
    vm.poll(listed(), listed("j", "mirror"))
    vm.connect(after)
    vm.chain("mid", "base")
    vm.poll()

    assert vm.counts == {("commit", "vanished"): 1, ("mirror", "vanished"): 1}


def test_a_commit_that_waits_for_its_chain_is_unverified_when_qemu_is_another(vm: Watched) -> None:
    """The chain of the next one is another chain."""
    vm.commit_that_is_ready()
    vm.ended()
    vm.connect(Process(8, (7, 2, 0)))
    vm.chain("mid", "base")
    vm.poll()

    assert vm.counts == {("commit", "unverified"): 1}


@pytest.mark.parametrize("process", [HERE, Process(0, (7, 2, 0))])
def test_a_connection_that_is_lost_is_no_end(process: Process) -> None:
    """The job goes on, and is the one that it was."""
    vm = Watched(process=process)
    vm.poll(listed(offset=25))
    vm.connect(process)
    vm.poll(listed(offset=30))
    [job] = [vm.jobs.stamped(Job("disk0", "disk0", "commit", listed()))]

    assert vm.counts == {}
    assert job.first_seen_timestamp_seconds == 1.0


def test_a_job_that_is_another_one_after_a_gap_is_told_by_what_went_back(vm: Watched) -> None:
    """An offset never does; the job before has vanished."""
    vm.poll(listed(kind="stream", offset=50))
    vm.connect()
    vm.poll(listed(kind="stream", offset=10))
    vm.ended("stream")

    assert vm.counts == {("stream", "vanished"): 1, ("stream", "completed"): 1}


@pytest.mark.parametrize(
    ("kind", "error", "result"),
    [
        ("backup", "No space left on device", "failed"),
        ("backup", "Operation canceled", "cancelled"),
        ("backup", "", "completed"),
        ("commit", "", "unverified"),
    ],
)
def test_a_job_that_is_found_concluded_is_what_its_error_says(
    vm: Watched, kind: str, error: str, result: str
) -> None:
    """Once; without an error nobody knows how a commit ended."""
    more = {"error": error} if error else {}
    for _ in range(2):
        vm.poll(listed(kind=kind, status="concluded", **more))

    assert vm.counts == {(kind, result): 1}


@pytest.mark.parametrize("after", [("mid", "base"), CHAIN])
@pytest.mark.parametrize("place", [ACTIVE, MIDDLE])
def test_a_commit_that_concluded_in_a_gap_is_unverified_whatever_its_chain(
    vm: Watched, place: Place, after: tuple[str, ...]
) -> None:
    """It may be another one, which has got its id; and another one may have changed the chain."""
    vm.poll(listed(ready=place is ACTIVE), place=place)
    vm.connect()
    vm.chain(*after)
    for _ in range(2):
        vm.poll(listed(status="concluded"))

    assert vm.counts == {("commit", "unverified"): 1}


# Jobs that are no block jobs.


@pytest.mark.parametrize(
    ("error", "result"),
    [("", "completed"), ("disk full", "failed"), ("Operation canceled", "cancelled")],
)
def test_the_error_of_a_job_that_is_no_block_job_is_in_query_jobs(
    vm: Watched, error: str, result: str
) -> None:
    """Until it is dismissed."""
    vm.poll()
    vm.status("created", "running", "waiting", "pending", "concluded", id="snap")
    for _ in range(2):
        vm.poll(others=[other(status="concluded", error=error)])
    vm.status("null", id="snap")
    vm.poll(others=[])

    assert vm.counts == {("snapshot-save", result): 1}


@pytest.mark.parametrize(
    ("status", "result"), [("pending", "completed"), ("aborting", "unverified")]
)
def test_a_job_that_is_no_block_job_and_no_query_saw_ended_as_its_status_says(
    vm: Watched, status: str, result: str
) -> None:
    """Of which type it was, nobody says, nor whether it was cancelled."""
    vm.poll()
    vm.status("created", "running", status, "concluded", "null", id="snap")

    assert vm.counts == {("", result): 1}


def test_a_job_that_is_no_block_job_vanishes_only_where_it_was_asked_for(vm: Watched) -> None:
    """query-jobs is not asked in each scrape."""
    vm.poll(others=[other()])
    vm.connect()
    vm.poll(others=None)
    assert vm.counts == {}
    vm.poll(others=[])

    assert vm.counts == {("snapshot-save", "vanished"): 1}


def test_the_end_of_a_job_of_which_too_little_was_heard_is_no_success(vm: Watched) -> None:
    """Whether it was `aborting` before, nobody knows."""
    vm.status("concluded", "null", id="snap")

    assert vm.counts == {("", "unverified"): 1}


# Times.


def test_a_job_tells_when_it_was_seen_and_moved_and_was_ready(vm: Watched) -> None:
    """As this process saw it."""
    vm.poll(listed(offset=0))
    vm.poll(listed(offset=0))
    vm.poll(listed(offset=5))
    vm.poll(listed(offset=5, ready=True))
    vm.poll(listed(offset=5, ready=True))
    job = vm.jobs.stamped(Job("disk0", "disk0", "commit", listed()))

    assert job.first_seen_timestamp_seconds == 1.0
    assert job.last_progress_timestamp_seconds == 3.0
    assert job.ready_timestamp_seconds == 4.0


# Bounds.


def test_100000_jobs_leave_nothing_behind(vm: Watched) -> None:
    """Each with an id of its own, seen by no query, and on a device that nobody knows."""
    vm.poll()
    for number in range(100_000):
        vm.status("created", "running", "waiting", "pending", id=f"j{number}")
        vm.ended("backup", id=f"j{number}")
        vm.status("concluded", "null", id=f"j{number}")
    vm.poll()
    vm.poll()

    assert vm.counts == {("backup", "completed"): 100_000}
    assert_is_small(vm)


def test_100000_jobs_that_never_end_are_not_all_followed(vm: Watched) -> None:
    """Nor are their types and devices; what is counted is counted."""
    vm.poll()
    for number in range(100_000):
        vm.status("created", id=f"j{number}")
        vm.ready(id=f"k{number}")
        vm.ended(f"type{number}", id=f"l{number}")
    for number in range(3):
        vm.poll(*(listed(f"{number}-{each}", f"kind{each}") for each in range(2000)))
    vm.poll()
    vm.poll()

    assert_is_small(vm)
    assert (
        sum(count for (_, result), count in vm.counts.items() if result == "completed") == 100_000
    )


def test_no_job_with_an_endless_id_is_remembered(vm: Watched) -> None:
    """Nor is one with an endless type."""
    long = "x" * 100_000
    for job_id, kind in ((long, "commit"), ("disk0", long)):
        vm.poll(listed(job_id, kind))
        with pytest.raises(msgspec.DecodeError):
            vm.ended(kind, id=job_id)
    with pytest.raises(msgspec.DecodeError):
        vm.status("created", id=long)

    assert vm.counts == {}
    assert not vm.jobs._known


def assert_is_small(vm: Watched) -> None:
    """See that nothing of it has more than its share."""
    jobs = vm.jobs
    sizes = {
        name: len(each)
        for owner in (jobs, jobs.outcomes)
        for name, each in vars(owner).items()
        if hasattr(each, "__len__")
    }
    assert max(sizes.values()) <= max(module.JOBS_LIMIT, KEYS_LIMIT), sizes
    assert sum(len(records) for records in vm.records.values()) < 200


# Whatever is told.

_ID = st.sampled_from(["disk0", "x"])
_TYPE = st.sampled_from(["commit", "stream", "mirror"])
_STATUS = st.sampled_from(
    ["created", "running", "ready", "waiting", "pending", "aborting", "concluded", "null"]
)
_LAYERS = st.sampled_from([CHAIN, ("mid", "base"), ("base",), ("new", "base"), ("",)])
_LISTED = st.builds(
    lambda job_id, kind, offset, status, error: listed(
        job_id, kind, offset=offset, status=status, ready=status == "ready", **error
    ),
    _ID,
    _TYPE,
    st.integers(0, 3),
    _STATUS,
    st.sampled_from([{}, {"error": "no"}]),
)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("status"), _ID, _STATUS),
        st.tuples(st.just("ended"), _ID, _TYPE, st.booleans()),
        st.tuples(st.just("cancelled"), _ID, _TYPE),
        st.tuples(st.just("ready"), _ID, _TYPE),
        st.tuples(
            st.just("poll"),
            st.lists(_LISTED, max_size=2, unique_by=lambda job: job.device),
            st.sampled_from([None, ACTIVE, MIDDLE, Place()]),
            _LAYERS,
        ),
        st.tuples(st.just("connect"), st.sampled_from([7, 8, 0])),
    ),
    max_size=40,
)


@given(_STEPS)
def test_no_job_is_completed_that_nobody_said_to_be(steps: list[tuple[Any, ...]]) -> None:
    """Whatever is told in whatever order: by an event, a `concluded`, or a commit's chain.

    Nor is anything counted more often than something ended or was gone.
    """
    vm = Watched()
    success: Counter[str] = Counter()
    ends = 0
    for what, *args in steps:
        if what == "status":
            vm.status(args[1], id=args[0])
            success[""] += args[1] == "null"
            ends += args[1] in ("null", "created")
        elif what == "ended":
            vm.ended(args[1], id=args[0], **({"error": "no"} if args[2] else {}))
            success[args[1]] += not args[2]
            ends += 2  # of the job before it, if its type was another
        elif what == "cancelled":
            vm.event("BLOCK_JOB_CANCELLED", device=args[0], type=args[1])
            ends += 2
        elif what == "ready":
            vm.event("BLOCK_JOB_READY", device=args[0], type=args[1])
            ends += 1
        elif what == "poll":
            told, place, layers = args
            vm.chain(*layers)
            vm.poll(*told, place=place)
            for job in told:
                success[job.type] += _said_to_be_done(job)
            ends += 4  # two that are gone or others, two that are concluded
        else:
            vm.connect(Process(args[0], (7, 2, 0)))
            ends += 2
    vm.connect(Process(9, (7, 2, 0)))
    for (kind, result), count in vm.counts.items():
        if result == "completed" and kind != "commit":
            assert count <= success[kind]
    assert sum(vm.counts.values()) <= ends + 2


def _said_to_be_done(job: Any) -> bool:
    return job.status == "concluded" and not job.error


# Jobs that were started before this process.


@pytest.mark.parametrize(
    ("place", "after", "error", "result"),
    [
        (ACTIVE, ("mid", "base"), "", "completed"),
        (ACTIVE, CHAIN, "", "cancelled"),
        (ACTIVE, CHAIN, "Operation canceled", "cancelled"),
        (ACTIVE, CHAIN, "No space left on device", "failed"),
        (ACTIVE, ("mid", "base"), "No space left on device", "failed"),
        (MIDDLE, ("top", "base"), "", "completed"),
    ],
)
def test_a_commit_that_ended_unseen_is_judged_by_the_chain_of_when_it_was_started(
    vm: Watched, place: Place, after: tuple[str, ...], error: str, result: str
) -> None:
    """It is found concluded; the chain of that very answer may be of before its end."""
    vm.jobs.adopted["qbe-1"] = (place, CHAIN)
    vm.chain(*after)
    for _ in range(2):
        vm.poll(listed("qbe-1", status="concluded", error=error), place=Place())

    assert vm.counts == {("commit", result): 1}
    assert vm.jobs.outcomes.ends["qbe-1"].result == result
    assert vm.jobs.adopted == {}


@pytest.mark.parametrize(("ours", "result"), [(True, "completed"), (False, "unverified")])
def test_a_commit_that_was_cut_off_before_its_chain_was_seen(
    vm: Watched, ours: bool, result: str
) -> None:
    """Its end was heard; then others may have ended unheard, but not of a job of this program."""
    if ours:
        vm.jobs.adopted["disk0"] = (ACTIVE, CHAIN)
    vm.commit_that_is_ready()
    vm.ended()
    vm.connect()
    vm.chain("mid", "base")
    vm.poll()

    assert vm.counts == {("commit", result): 1}


def test_a_commit_that_nobody_knows_of_stays_unverified(vm: Watched) -> None:
    """What is known of another one says nothing about it."""
    vm.jobs.adopted["qbe-2"] = (ACTIVE, CHAIN)
    vm.chain("mid", "base")
    for _ in range(2):
        vm.poll(listed("qbe-1", status="concluded"), place=Place())

    assert vm.counts == {("commit", "unverified"): 1}


def test_a_commit_whose_chain_cannot_be_read_is_unverified_though_it_was_known_before(
    vm: Watched,
) -> None:
    """Its device is gone, or names no nodes."""
    vm.jobs.adopted["qbe-1"] = (ACTIVE, CHAIN)
    vm.devices = ()
    for _ in range(2):
        vm.poll(listed("qbe-1", status="concluded"), place=Place())

    assert vm.counts == {("commit", "unverified"): 1}


def test_a_commit_that_still_runs_is_followed_as_if_it_had_begun_now(vm: Watched) -> None:
    """By the chain that it has now, where QEMU tells where it works."""
    vm.jobs.adopted["qbe-1"] = (MIDDLE, ("old", "older", "oldest"))
    vm.poll(listed("qbe-1", status="ready", ready=True))
    vm.chain("mid", "base")
    for _ in range(2):
        vm.poll(listed("qbe-1", status="concluded"), place=Place())

    assert vm.counts == {("commit", "completed"): 1}


def test_a_qemu_that_does_not_tell_where_a_job_works_is_helped_by_what_is_on_record(
    vm: Watched,
) -> None:
    """Before 4.0 there is no graph."""
    vm.jobs.adopted["qbe-1"] = (ACTIVE, CHAIN)
    vm.poll(listed("qbe-1", status="ready", ready=True), place=None)
    vm.chain("mid", "base")
    for _ in range(2):
        vm.poll(listed("qbe-1", status="concluded"), place=None)

    assert vm.counts == {("commit", "completed"): 1}
    assert vm.jobs.outcomes.ends["qbe-1"].device == "disk0"


# Ends, by id.


def test_an_end_is_remembered_by_the_id_of_the_job(vm: Watched) -> None:
    """With when it was learnt of; its error without credentials."""
    vm.poll(listed("j", "mirror"))
    vm.ended("mirror", "j", error="Could not read http://u:SECRETPW@h/x")

    assert vm.jobs.outcomes.ends == {
        "j": End("mirror", "disk0", "failed", vm.now, "Could not read http://h/x")
    }


def test_the_last_ends_are_remembered() -> None:
    """An id that ended again is as new as its last end."""
    outcomes = Outcomes()
    for number in range(ENDS_LIMIT):
        outcomes.end(f"j{number}", End("mirror", "", "completed", float(number), ""))
    outcomes.end("j0", End("commit", "", "failed", 100.0, "no"))
    outcomes.end("new", End("mirror", "", "cancelled", 101.0, ""))

    assert len(outcomes.ends) == ENDS_LIMIT
    assert [*outcomes.ends][:1] == ["j2"]
    assert [*outcomes.ends][-2:] == ["j0", "new"]
    assert outcomes.ends["j0"] == End("commit", "", "failed", 100.0, "no")


# What is known of one job.


@pytest.mark.parametrize(
    ("known", "may"),
    [
        ({"ready_at": 1.0, "place": MIDDLE, "sight": Heard.WHOLE}, True),
        ({"place": ACTIVE, "sight": Heard.WHOLE}, True),
        ({"place": MIDDLE}, False),
        ({"place": Place("disk0"), "sight": Heard.WHOLE}, False),
        ({"place": Place("disk0")}, True),
        ({"sight": Heard.WHOLE}, False),
        ({}, True),
    ],
)
def test_a_commit_may_have_been_ready_unless_it_is_known_that_it_was_not(
    known: dict[str, Any], may: bool
) -> None:
    """Only one of the active layer ever is; where neither is known, what was missed counts."""
    assert TrackedJob(0.0, 0.0, **known).may_have_been_ready is may


@pytest.mark.parametrize(
    ("known", "told", "another"),
    [
        ({"type": "commit"}, ("mirror", "running", 5), True),
        ({"type": "commit"}, ("commit", "running", 5), False),
        ({}, ("mirror", "running", 5), False),
        ({"ended": True}, ("", "concluded", 5), False),
        ({"sight": Heard.STALE, "progress": 6}, ("", "running", 5), True),
        ({"sight": Heard.STALE, "progress": 5}, ("", "running", 5), False),
        ({"progress": 6}, ("", "running", 5), False),
        *(({"ended": True}, ("", status, 5), True) for status in sorted(LIVE)),
    ],
)
def test_a_job_is_another_one_where_it_cannot_be_the_same(
    known: dict[str, Any], told: tuple[str, str, int], another: bool
) -> None:
    """Another type, alive after its end, or further back than before nobody looked."""
    assert TrackedJob(0.0, 0.0, **known).is_not(*told) is another
