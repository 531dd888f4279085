"""The connection is cut at every byte: nothing is done twice, and nothing is said that is not so."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.api import Answer
from tests.e2e.cutting import Fleet, Machine, Plan
from tests.e2e.lab import laboratory, tool, wait_until

#: How many VMs share the bytes of one exchange: each unknown outcome takes the exporter a second.
_VMS = 12

Point = tuple[str, int]
TO_QEMU, FROM_QEMU = "sent", "answered"
COMMIT = b'{"execute":"block-commit"'
COMPLETE = b'{"execute":"job-complete"'


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """An exporter and its VMs, for all that is cut."""
    with laboratory() as lab:
        yield Fleet(lab, _VMS)


def at_point(point: Point) -> dict[str, Any]:
    """Return where a plan cuts the connection."""
    return {point[0]: point[1]}


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


def test_a_commit_that_is_cut_at_any_byte_is_started_once_or_not_at_all(fleet: Fleet) -> None:
    """What is called done is done, and the same id never starts a second job, then or later."""
    asked: list[tuple[Machine, str]] = []

    def probe(at: Machine, point: Point) -> tuple[str, bool]:
        job_id, before = at.new_id(), at.proxy.count("block-commit")
        asked.append((at, job_id))
        plan = at.proxy.arm(COMMIT, **at_point(point))
        answer = at.commit(job_id)
        assert plan.reached.is_set(), answer
        again = at.commit(job_id)
        assert (again.status, again.body["replayed"]) == (200, True)
        # It has looked at the VM: QEMU has read all that was sent before.
        began = at.started(job_id)
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
    assert_true(results)
    assert {at.vm.name: at.proxy.count("block-commit") for at in fleet.machines} == sent
    assert {job_id: at.started(job_id) for at, job_id in asked} == began


def test_a_complete_that_is_cut_at_any_byte_pivots_or_can_be_asked_for_again(
    fleet: Fleet,
) -> None:
    """What is called done is done, and what did not reach QEMU stands in no one's way."""

    def probe(at: Machine, point: Point) -> tuple[str, bool]:
        job_id, before = ready(at), at.proxy.count("job-complete")
        plan = at.proxy.arm(COMPLETE, **at_point(point))
        answer = at.change(job_id, "complete")
        assert plan.reached.is_set(), answer
        if verdict(answer) == "done":
            wait_until(lambda: at.active() == at.files[1], "the pivot")
        pivoted = at.active() == at.files[1]
        again = at.change(job_id, "complete")
        wait_until(lambda: at.active() == at.files[1], "the pivot")
        # QEMU may drop a whole command, if the end of the connection comes right behind it; and it
        # may do it when it was looked at already.
        done = again.status != 202
        if done:
            assert again.status in (404, 409), again
            assert at.proxy.count("job-complete") == before + 1
        else:
            assert not pivoted
        renew(at, job_id)
        return verdict(answer), done

    first = fleet.machines[0]
    job_id = ready(first)
    plan = first.proxy.arm(COMPLETE)
    assert first.change(job_id, "complete").status == 202
    wait_until(lambda: first.active() == first.files[1], "the pivot")
    renew(first, job_id)
    results = fleet.each(every_byte(plan), probe)

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


def held(at: Machine, *, paused: bool = False) -> str:
    """Start a commit that goes on for long, and hold it if need be."""
    job_id = at.new_id()
    at.vm.hmp('qemu-io disk0 "write -q 0 1M"')
    answer = at.commit(job_id, speed=1)
    assert answer.status == 202, answer
    wait_until(lambda: at.state(job_id) == "running", "the job runs")
    if paused:
        at.vm.run("job-pause", {"id": job_id})
        wait_until(lambda: at.state(job_id) == "paused", "the job is paused")
    return job_id


def is_paused(at: Machine, job_id: str) -> bool:
    return at.state(job_id) == "paused"


def is_resumed(at: Machine, job_id: str) -> bool:
    return at.state(job_id) in ("running", "ready")


def is_gone(at: Machine, job_id: str) -> bool:
    return at.state(job_id) in ("", "aborting", "concluded")


def has_speed(at: Machine, job_id: str) -> bool:
    job = at.vm.job(job_id)
    return job is not None and job["speed"] == 4096


#: Verb -> what its command begins with, what is asked for, and whether QEMU did it.
CHANGES: dict[str, tuple[bytes, dict[str, object], Callable[[Machine, str], bool]]] = {
    "pause": (b'{"execute":"job-pause"', {}, is_paused),
    "resume": (b'{"execute":"job-resume"', {}, is_resumed),
    "cancel": (b'{"execute":"block-job-cancel"', {"force": True}, is_gone),
    "speed": (b'{"execute":"block-job-set-speed"', {"speed_bytes_per_second": 4096}, has_speed),
}


@pytest.mark.parametrize("verb", CHANGES)
def test_a_change_of_a_job_that_is_cut_is_only_called_done_when_it_is(
    fleet: Fleet, verb: str
) -> None:
    """Pause, resume, cancel and speed: QEMU's other monitor says what came of it."""
    marker, body, is_done = CHANGES[verb]

    def probe(at: Machine, point: Point) -> tuple[str, bool]:
        job_id = held(at, paused=verb == "resume")
        plan = at.proxy.arm(marker, **at_point(point))
        answer = at.change(job_id, verb, **body)
        assert plan.reached.is_set(), answer
        if verdict(answer) == "done":
            wait_until(lambda: is_done(at, job_id), f"{verb} is done")
        done = is_done(at, job_id)
        at.end(job_id)
        return verdict(answer), done

    first = fleet.machines[0]
    job_id = held(first, paused=verb == "resume")
    plan = first.proxy.arm(marker)
    assert first.change(job_id, verb, **body).status == 202
    first.end(job_id)

    assert_true(fleet.each(some_bytes(plan), probe))


SNAPSHOT = b'{"execute":"blockdev-snapshot-sync"'


def new_file(at: Machine) -> Path:
    """Return a name for a layer that none has."""
    at.jobs += 1
    return at.lab.folder / f"{at.vm.name}-{at.jobs:04}.qcow2"


def snapshot(at: Machine, file: Path) -> Answer:
    return at.user.snapshot(at.vm.name, "disk0", file)


def test_a_snapshot_that_is_cut_at_any_byte_is_taken_once_however_often_it_is_asked_for(
    fleet: Fleet,
) -> None:
    """The same request finds the layer, or its own file and uses it, then and after a restart."""

    def probe(at: Machine, point: Point) -> tuple[str, bool]:
        file, before = new_file(at), at.proxy.count("blockdev-snapshot-sync")
        plan = at.proxy.arm(SNAPSHOT, **at_point(point))
        answer = snapshot(at, file)
        assert plan.reached.is_set(), answer
        inode = file.stat().st_ino
        sent = at.proxy.count("blockdev-snapshot-sync")
        again = snapshot(at, file)
        # It has looked at the VM: QEMU has read all that was sent before.
        used = bool(again.body.get("replayed"))
        assert again.status == (200 if used else 201), again
        assert at.active() == str(file)
        assert file.stat().st_ino == inode
        if used:
            assert at.proxy.count("blockdev-snapshot-sync") == sent <= before + 1
        at.files.insert(0, str(file))
        return verdict(answer), used

    first = fleet.machines[0]
    file = new_file(first)
    plan = first.proxy.arm(SNAPSHOT)
    assert snapshot(first, file).status == 201
    first.files.insert(0, str(file))
    results = fleet.each(some_bytes(plan), probe)
    fleet.restart()
    chains = [at.user.layers(at.vm.name, "disk0") for at in fleet.machines]
    told = [snapshot(at, Path(at.files[0])) for at in fleet.machines if "-0" in at.files[0]]

    assert_true(results)
    assert ("unknown", False) in results
    assert chains == [at.files for at in fleet.machines]
    assert {(answer.status, answer.body["replayed"]) for answer in told} == {(200, True)}


def test_a_snapshot_that_did_not_reach_qemu_can_be_asked_for_after_a_restart(fleet: Fleet) -> None:
    """What was made for it is used, and by nobody else."""
    at, other = fleet.machines[:2]
    file = new_file(at)
    at.proxy.arm(SNAPSHOT, sent=1)
    assert verdict(snapshot(at, file)) == "unknown"
    inode = file.stat().st_ino
    fleet.restart()
    foreign = snapshot(other, file)
    tried = at.user.snapshot(at.vm.name, "disk0", file, dry_run=True)
    taken = snapshot(at, file)
    at.files.insert(0, str(file))

    assert (foreign.status, foreign.problem) == (409, "file-exists")
    assert (tried.status, tried.body["replayed"]) == (200, False)
    assert (taken.status, taken.body["replayed"]) == (201, False)
    assert (at.active(), file.stat().st_ino) == (str(file), inode)


@pytest.mark.parametrize("written", [True, False])
def test_a_layer_of_a_qemu_that_died_is_used_again_only_where_no_guest_wrote_to_it(
    fleet: Fleet, written: bool
) -> None:
    """The snapshot was taken and not told of, and the next QEMU is started on the disk below it."""
    at = fleet.machines[2]
    file = new_file(at)
    at.proxy.arm(SNAPSHOT, answered=0, then=at.vm.kill)
    assert verdict(snapshot(at, file)) == "unknown"
    if written:
        subprocess.run([tool("qemu-io"), "-c", "write -q -P 7 0 64k", str(file)], check=True)
    content, inode = file.read_bytes(), file.stat().st_ino
    at.restart()
    again = snapshot(at, file)
    if again.problem == "another-vm":
        # By that request the exporter has learnt that another QEMU is there now.
        again = snapshot(at, file)
    if not written:
        at.files.insert(0, str(file))

    assert (again.status, again.problem) == ((409, "file-exists") if written else (201, ""))
    assert ("is not empty any more" in again.body.get("detail", "")) is written
    assert at.active() == at.files[0]
    assert (file.read_bytes(), file.stat().st_ino) == (content, inode)


def test_a_connection_that_is_cut_before_the_command_leaves_the_id_free(fleet: Fleet) -> None:
    """A look that is cut is made again or refused, and then nothing was sent and nothing recorded."""

    def probe(at: Machine, point: Point) -> tuple[int, int]:
        job_id, before = at.new_id(), at.proxy.count("block-commit")
        plan = at.proxy.arm(b'{"execute":"query-status"', **at_point(point))
        answer = at.commit(job_id)
        assert plan.reached.is_set(), answer
        sent = at.proxy.count("block-commit") - before
        if answer.status == 503:
            assert (answer.problem, at.started(job_id)) == ("vm-down", 0)
            after = at.commit(job_id)
            assert (after.status, after.body["replayed"]) == (202, False)
        else:
            assert answer.status == 202, answer
        assert at.started(job_id) == 1
        at.end(job_id)
        return answer.status, sent

    first = fleet.machines[0]
    job_id = first.new_id()
    plan = first.proxy.arm(b'{"execute":"query-status"')
    assert first.commit(job_id).status == 202
    first.end(job_id)
    asked = [(TO_QEMU, count) for count in range(0, len(plan.command) + 1, 7)]
    # Right behind the last byte, the command may have left already.
    told = [(FROM_QEMU, count) for count in range(0, plan.answer_bytes, 97)]
    results = Counter(fleet.each([*asked, *told], probe))

    assert results.keys() <= {(202, 1), (503, 0)}
    assert results[202, 1] > 0
