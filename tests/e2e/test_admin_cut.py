"""The connection is cut at every byte: nothing is done twice, and nothing is said that is not so."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.api import Admin, Answer, admin
from tests.e2e.cutting import Plan, Proxy
from tests.e2e.lab import Lab, Memory, Qemu, QmpError, drive, laboratory, wait_until

#: How many VMs share the bytes of one exchange: each unknown outcome takes the exporter a second.
_VMS = 12
_SPEED = 65536

TO_QEMU, FROM_QEMU = "sent", "answered"


@dataclass
class Machine:
    """A VM behind a proxy, with one disk on two layers, and a user."""

    vm: Qemu
    proxy: Proxy
    user: Admin
    lab: Lab
    #: The disk's chain, the active layer first.
    files: list[str]
    jobs: int = 0

    def new_id(self) -> str:
        """Return an id as long as every other."""
        self.jobs += 1
        return f"qbe-{self.vm.name}-{self.jobs:04}"

    def commit(self, job_id: str, speed: int = _SPEED) -> Answer:
        more = {"speed_bytes_per_second": speed} if speed else {}
        return self.user.commit(self.vm.name, "disk0", job_id=job_id, **more)

    def change(self, job_id: str, verb: str, **body: object) -> Answer:
        return self.user.change(self.vm.name, job_id, verb, **body)

    def started(self, job_id: str) -> int:
        """Return how many jobs of an id QEMU has had."""
        self.vm.run("query-status")
        return sum(
            event["event"] == "JOB_STATUS_CHANGE"
            and event["data"] == {"id": job_id, "status": "created"}
            for event in self.vm.monitor.events
        )

    def state(self, job_id: str) -> str:
        """Return the status of a job, empty where QEMU has none."""
        job = self.vm.job(job_id)
        return str(job["status"]) if job else ""

    def active(self) -> str:
        """Return the file of the active layer."""
        entry = self.vm.run("query-block")[0]
        return str(entry["inserted"]["file"])

    def end(self, job_id: str) -> None:
        """Have no job of this id."""
        # The exporter lets go of it as well.
        with contextlib.suppress(QmpError):
            self.vm.run("block-job-cancel", {"device": job_id, "force": True})
        wait_until(lambda: self.state(job_id) in ("", "concluded"), "the job ends")
        with contextlib.suppress(QmpError):
            self.vm.run("job-dismiss", {"id": job_id})
        assert self.state(job_id) == ""

    def overlay(self) -> None:
        """Put a layer on the disk."""
        self.files.insert(0, str(self.lab.folder / f"{self.vm.name}-over{len(self.files)}.qcow2"))
        new = {"device": "disk0", "snapshot-file": self.files[0], "format": "qcow2"}
        self.vm.run("blockdev-snapshot-sync", new)


def machine(lab: Lab, user: Admin, name: str) -> Machine:
    """Start a VM behind a proxy."""
    images = lab.chain(name, 2)
    vm = lab.qemu(name, *drive("disk0", images[0]))
    return Machine(vm, lab.keep(Proxy(vm)), user, lab, [str(image) for image in images])


class Fleet:
    """Some machines of one exporter."""

    def __init__(self, lab: Lab, count: int, *flags: str) -> None:
        self.lab, self._flags = lab, flags
        self.user = admin(lab, flags=flags)
        self.machines = [machine(lab, self.user, f"vm{n:02}") for n in range(count)]

    def restart(self) -> None:
        """End the exporter as a service is ended, and start another one."""
        self.user.exporter.close()
        self._start()

    def kill(self) -> None:
        self.user.exporter.kill()
        self._start()

    def each(self, points: Sequence[Any], probe: Callable[[Machine, Any], Any]) -> list[Any]:
        """Return what becomes of each point, each machine at one of them at a time."""

        def some(index: int) -> list[Any]:
            return [probe(self.machines[index], p) for p in points[index :: len(self.machines)]]

        with ThreadPoolExecutor(len(self.machines)) as pool:
            return [one for many in pool.map(some, range(len(self.machines))) for one in many]

    def _start(self) -> None:
        self.user = admin(self.lab, flags=self._flags)
        for each in self.machines:
            each.user = self.user


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """An exporter and its VMs, for all that is cut."""
    with laboratory() as lab:
        yield Fleet(lab, _VMS)


@pytest.fixture
def one(lab: Lab) -> Machine:
    """A VM behind a proxy, for one test."""
    return Fleet(lab, 1).machines[0]


Point = tuple[str, int]


def every_byte(plan: Plan) -> list[Point]:
    """Return each place in an exchange that was not cut: before each byte, and after the last."""
    return [
        *((TO_QEMU, count) for count in range(len(plan.command) + 1)),
        *((FROM_QEMU, count) for count in range(plan.answer_bytes + 1)),
    ]


def some_bytes(plan: Plan) -> list[Point]:
    """Return both ends of each direction, and some places between."""
    ends = {len(plan.command) - 1, len(plan.command)}
    asked = sorted(ends.union(range(0, len(plan.command), 9)))
    told = sorted({plan.answer_bytes - 1, plan.answer_bytes, *range(0, plan.answer_bytes, 9)})
    return [*((TO_QEMU, count) for count in asked), *((FROM_QEMU, count) for count in told)]


def verdict(answer: Answer) -> str:
    """Return what an answer says of what was asked for."""
    if answer.status in (201, 202):
        return "done"
    assert (answer.status, answer.problem) == (502, "unknown-outcome"), answer
    assert answer.body["outcome"] == "unknown"
    return "unknown"


def assert_true(results: Sequence[tuple[str, bool]]) -> None:
    """See that nothing was said to be done that was not, and that both came to pass."""
    seen = Counter(results)
    assert ("done", False) not in seen, seen
    assert seen["done", True] > 0, seen
    assert seen["unknown", False] > 0, seen


COMMIT = b'{"execute":"block-commit"'
COMPLETE = b'{"execute":"job-complete"'


def test_a_commit_that_is_cut_at_any_byte_is_started_once_or_not_at_all(fleet: Fleet) -> None:
    """What is called done is done, and the same id never starts a second job, then or later."""
    asked: list[tuple[Machine, str]] = []

    def probe(at: Machine, point: Point) -> tuple[str, bool]:
        job_id, before = at.new_id(), at.proxy.count("block-commit")
        asked.append((at, job_id))
        plan = at.proxy.arm(COMMIT, **{point[0]: point[1]})
        answer = at.commit(job_id)
        assert plan.reached.is_set(), answer
        began = at.started(job_id)
        again = at.commit(job_id)
        assert (again.status, again.body["replayed"]) == (200, True)
        at.end(job_id)
        after = at.commit(job_id)
        assert (after.status, after.body["replayed"]) == (200, True)
        assert at.started(job_id) == began <= at.proxy.count("block-commit") - before <= 1
        return verdict(answer), bool(began)

    first = fleet.machines[0]
    plan = first.proxy.arm(COMMIT)
    job_id = first.new_id()
    assert first.commit(job_id).status == 202
    first.end(job_id)
    points = every_byte(plan)
    results = fleet.each(points, probe)
    sent = {at.vm.name: at.proxy.count("block-commit") for at in fleet.machines}
    began = {job_id: at.started(job_id) for at, job_id in asked}
    fleet.restart()
    for at, job_id in asked:
        answer = at.commit(job_id)
        assert (answer.status, answer.body["replayed"]) == (200, True)

    assert len(plan.command) > 150, plan
    assert plan.answer_bytes > 150, plan
    print(Counter(results), len(plan.command), plan.answer_bytes)
    assert_true(results)
    assert {at.vm.name: at.proxy.count("block-commit") for at in fleet.machines} == sent
    assert {job_id: at.started(job_id) for at, job_id in asked} == began


def test_a_complete_that_is_cut_at_any_byte_pivots_or_can_be_asked_for_again(
    fleet: Fleet,
) -> None:
    """What is called done is done, and what did not reach QEMU stands in no one's way."""

    def probe(at: Machine, point: Point) -> tuple[str, bool]:
        job_id, before = ready(at), at.proxy.count("job-complete")
        plan = at.proxy.arm(COMPLETE, **{point[0]: point[1]})
        answer = at.change(job_id, "complete")
        assert plan.reached.is_set(), answer
        if verdict(answer) == "done":
            wait_until(lambda: at.active() == at.files[1], "the pivot")
        # QEMU may drop a whole command, if the end of the connection comes right behind it.
        pivoted = at.active() == at.files[1]
        again = at.change(job_id, "complete")
        assert again.status in ((404, 409) if pivoted else (202,)), again
        wait_until(lambda: at.active() == at.files[1], "the pivot")
        if pivoted:
            assert at.proxy.count("job-complete") == before + 1
        renew(at, job_id)
        return verdict(answer), pivoted

    first = fleet.machines[0]
    job_id = ready(first)
    plan = first.proxy.arm(COMPLETE)
    assert first.change(job_id, "complete").status == 202
    wait_until(lambda: first.active() == first.files[1], "the pivot")
    renew(first, job_id)
    results = fleet.each(every_byte(plan), probe)
    print(Counter(results), len(plan.command), plan.answer_bytes)

    assert len(plan.command) > 50, plan
    assert plan.answer_bytes > 10, plan
    assert_true(results)


def ready(at: Machine) -> str:
    """Start a commit, and wait until it can be completed."""
    job_id = at.new_id()
    answer = at.commit(job_id, speed=0)
    assert answer.status == 202, answer
    wait_until(lambda: at.state(job_id) == "ready", "the job is ready")
    return job_id


def renew(at: Machine, job_id: str) -> None:
    """Put a layer on a disk that was committed into its base."""
    at.end(job_id)
    del at.files[0]
    at.overlay()
