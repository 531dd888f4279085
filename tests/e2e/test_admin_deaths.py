"""QEMU, the exporter or its disk dies in the middle of a request: no job is started twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest

from tests.e2e.api import admin
from tests.e2e.cutting import Fleet, Machine
from tests.e2e.lab import HASTY, Lab, Memory, Mount, drive, tool, wait_until
from tests.e2e.reading import value

COMMIT = b'{"execute":"block-commit"'
DISMISS = b'{"execute":"job-dismiss"'
OTHER_SPEED = 4 << 20


@pytest.fixture
def fleet(lab: Lab) -> Fleet:
    """An exporter with one VM behind a proxy."""
    return Fleet(lab, 1)


@pytest.fixture
def one(fleet: Fleet) -> Machine:
    """The VM."""
    return fleet.machines[0]


def assert_replayed(one: Machine, job_id: str) -> None:
    """The same request is answered with what is known, and another with a refusal."""
    again, other = one.commit(job_id), one.commit(job_id, speed=OTHER_SPEED)

    assert (again.status, again.body["replayed"]) == (200, True)
    assert (other.status, other.problem) == (409, "job-id-taken")


def test_a_qemu_that_dies_right_after_the_command_gets_it_once(one: Machine) -> None:
    """Its successor does not get what it may have done already."""
    job_id = one.new_id()
    one.proxy.arm(COMMIT, answered=0, then=one.vm.kill)
    answer = one.commit(job_id)
    assert_replayed(one, job_id)
    one.restart()
    assert_replayed(one, job_id)
    one.user.until(one.vm.name, job_id, outcome="unknown")
    assert_replayed(one, job_id)

    assert (answer.status, answer.problem) == (502, "unknown-outcome")
    assert (one.started(job_id), one.proxy.count("block-commit")) == (0, 0)


def test_a_qemu_that_is_stopped_as_the_command_comes_starts_the_job_later(lab: Lab) -> None:
    """No answer in time is no refusal: the job is found as soon as QEMU goes on."""
    one = Fleet(lab, 1, HASTY).machines[0]
    job_id = one.new_id()

    def stop() -> bool:
        one.vm.stop()
        return True

    one.proxy.arm(COMMIT, sent=0, then=stop)
    answer = one.commit(job_id)
    during = one.commit(job_id)
    one.vm.signal(signal.SIGCONT)
    found = one.user.until(one.vm.name, job_id, status="running")
    assert_replayed(one, job_id)

    assert (answer.status, answer.problem) == (504, "no-answer")
    assert answer.body["outcome"] == "unknown"
    assert (during.status, during.body["replayed"]) == (200, True)
    assert found["outcome"] is None
    assert (one.started(job_id), one.proxy.count("block-commit")) == (1, 1)


def killed_at(fleet: Fleet, marker: bytes, **where: int) -> None:
    """Have the exporter killed when a command is at a byte."""
    fleet.machines[0].proxy.arm(marker, **where, then=fleet.user.exporter.crash)


def test_an_exporter_that_dies_before_the_command_arrives_never_sends_it(
    fleet: Fleet, one: Machine
) -> None:
    """Its successor knows the request, and that nobody knows what became of it."""
    job_id = one.new_id()
    killed_at(fleet, COMMIT, sent=0)
    with pytest.raises(OSError):
        one.commit(job_id)
    fleet.restart()
    assert_replayed(one, job_id)
    one.user.until(one.vm.name, job_id, outcome="unknown")
    assert_replayed(one, job_id)

    assert (one.started(job_id), one.proxy.count("block-commit")) == (0, 0)


def test_an_exporter_that_dies_before_the_answer_leaves_the_job_to_its_successor(
    fleet: Fleet, one: Machine
) -> None:
    """It finds the job, records how it ended, and lets go of it."""
    job_id = one.new_id()
    killed_at(fleet, COMMIT, answered=0)
    with pytest.raises(OSError):
        one.commit(job_id)
    fleet.restart()
    assert_replayed(one, job_id)
    one.user.until(one.vm.name, job_id, status="running")
    one.vm.run("block-job-cancel", {"device": job_id})
    ended = one.user.until(one.vm.name, job_id, outcome="cancelled", status=None)
    assert_replayed(one, job_id)

    assert ended["error"] is None
    assert (one.started(job_id), one.proxy.count("block-commit")) == (1, 1)


def completed_but_not_dismissed(fleet: Fleet) -> str:
    """Commit, and have the exporter die when the outcome is recorded and the job still there."""
    one = fleet.machines[0]
    job_id = one.new_id()
    assert one.commit(job_id, speed=0).status == 202
    wait_until(lambda: one.state(job_id) == "ready", "the job is ready")
    killed_at(fleet, DISMISS, sent=0)
    exporter = fleet.user.exporter
    assert one.change(job_id, "complete").status == 202
    wait_until(lambda: exporter.exit_code is not None, "the exporter dies")
    return job_id


def test_an_outcome_on_record_outlives_the_exporter(fleet: Fleet, one: Machine) -> None:
    """A successor that finds the job concluded knows less of it than the record."""
    job_id = completed_but_not_dismissed(fleet)
    fleet.restart()
    told = set()

    def dismissed() -> bool:
        job = one.user.job(one.vm.name, job_id)
        told.add(job["outcome"])
        return job["status"] is None

    wait_until(dismissed, "the job is dismissed")
    again = one.commit(job_id, speed=0)

    assert told == {again.body["job"]["outcome"]} == {"completed"}
    assert not one.state(job_id)


def test_an_outcome_on_record_outlives_qemu(fleet: Fleet, one: Machine) -> None:
    """That the job is gone, with the VM, does not make its outcome unknown."""
    job_id = completed_but_not_dismissed(fleet)
    one.files.pop(0)
    one.restart()
    fleet.restart()
    seen = {one.user.job(one.vm.name, job_id)["outcome"] for _ in range(6)}

    assert seen == {"completed"}


# The account cannot be written.


class Account:
    """A state directory of its own, on a small file system."""

    def __init__(self, lab: Lab) -> None:
        self.memory = lab.keep(Memory(lab.folder / "small", 1))
        self.folder = self.memory.folder / "state"

    def fill(self) -> None:
        filler = self.memory.folder / "filler"
        with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        (self.memory.folder / "filler").unlink()

    def freeze(self) -> None:
        subprocess.run([tool("mount"), "-o", "remount,ro", self.memory.folder], check=True)

    def thaw(self) -> None:
        subprocess.run([tool("mount"), "-o", "remount,rw", self.memory.folder], check=True)

    def lose(self) -> None:
        shutil.rmtree(self.folder)

    def make(self) -> None:
        self.folder.mkdir()


@pytest.fixture
def account(lab: Lab) -> Account:
    """The account of `recorded`."""
    return Account(lab)


@pytest.fixture
def recorded(lab: Lab, account: Account) -> Machine:
    """A VM whose exporter has its account there."""
    return Fleet(lab, 1, f"--admin.state-directory={account.folder}").machines[0]


@pytest.mark.parametrize(
    ("breaks", "mends"),
    [
        (Account.fill, Account.empty),
        (Account.freeze, Account.thaw),
        (Account.lose, Account.make),
    ],
    ids=["full", "read-only", "gone"],
)
def test_what_cannot_be_recorded_is_not_sent(
    account: Account,
    recorded: Machine,
    breaks: Callable[[Account], None],
    mends: Callable[[Account], None],
) -> None:
    """It is refused, and may be asked for again with the same id."""
    job_id = recorded.new_id()
    breaks(account)
    answer = recorded.commit(job_id)
    sent = recorded.proxy.count("block-commit")
    mends(account)
    again = recorded.commit(job_id)

    assert (answer.status, answer.problem, sent) == (503, "not-recorded", 0)
    assert (again.status, again.body["replayed"]) == (202, False)
    assert recorded.started(job_id) == 1


def test_a_job_that_was_started_is_no_refusal_when_the_disk_is_full_by_then(
    account: Account, recorded: Machine
) -> None:
    """The record of the request is there already; what is left to say is said later."""
    job_id = recorded.new_id()

    def fill() -> bool:
        account.fill()
        return True

    recorded.proxy.arm(COMMIT, answered=0, then=fill)
    answer = recorded.commit(job_id)
    again = recorded.commit(job_id)
    account.empty()

    assert (answer.status, answer.body["replayed"]) == (202, False)
    assert (again.status, again.body["replayed"]) == (200, True)
    assert recorded.started(job_id) == 1


def test_a_job_whose_outcome_cannot_be_recorded_stays_in_qemu(
    account: Account, recorded: Machine
) -> None:
    """It is dismissed when it is on the disk how it ended, and not before."""
    job_id = recorded.new_id()
    assert recorded.commit(job_id).status == 202
    account.fill()
    recorded.vm.run("block-job-cancel", {"device": job_id})
    wait_until(lambda: recorded.state(job_id) == "concluded", "the job ends")
    for _ in range(3):
        recorded.user.job(recorded.vm.name, job_id)
    wait_until(lambda: "not done" in recorded.user.exporter.said(), "it is tried")
    during = recorded.state(job_id), recorded.proxy.count("job-dismiss")
    account.empty()
    ended = recorded.user.until(recorded.vm.name, job_id, status=None, outcome="cancelled")

    assert during == ("concluded", 0)
    assert ended["outcome"] == "cancelled"
    assert recorded.proxy.count("job-dismiss") == 1


def test_a_dismissal_that_did_not_arrive_is_made_up_for(one: Machine) -> None:
    """A job that was started here does not stay in QEMU because a user's own word was lost."""
    job_id = one.new_id()
    assert one.commit(job_id).status == 202
    # Whoever dismisses it first, the user or the exporter by itself, is cut off.
    plan = one.proxy.arm(DISMISS, sent=0)
    one.vm.run("block-job-cancel", {"device": job_id})
    wait_until(lambda: one.state(job_id) in ("", "concluded"), "the job ends")
    one.change(job_id, "dismiss")
    wait_until(lambda: not one.state(job_id), "the job is dismissed")

    assert plan.reached.is_set()
    assert one.user.job(one.vm.name, job_id)["outcome"] == "cancelled"


def test_an_exporter_that_is_ended_in_the_middle_of_a_request_leaves_it_on_record(
    fleet: Fleet, one: Machine
) -> None:
    """SIGTERM waits a moment for the answer, and then nobody knows: nor does the audit line."""
    job_id = one.new_id()
    exporter = fleet.user.exporter
    gone = threading.Event()

    def end() -> None:
        exporter.signal(signal.SIGTERM)
        gone.wait()

    one.proxy.arm(COMMIT, answered=0, then=end)
    with pytest.raises(OSError):
        one.commit(job_id)
    code = exporter.wait()
    gone.set()
    lines = [line for line in exporter.said().splitlines() if "msg=action" in line]
    fleet.restart()
    assert_replayed(one, job_id)

    assert code == 0
    assert [("result=unknown" in line, f"job_id={job_id}" in line) for line in lines] == [
        (True, True)
    ]
    assert one.user.job(one.vm.name, job_id)["status"]
    assert (one.started(job_id), one.proxy.count("block-commit")) == (1, 1)


def test_a_directory_that_hangs_is_refused_and_in_nobodys_way(lab: Lab) -> None:
    """Nobody waits in it: neither the request nor a thread that others need."""
    vm = lab.qemu("vm", *drive("disk0", lab.image("disk0")))
    mount = lab.keep(Mount(lab.folder))
    user = admin(lab)
    file = mount.folder / "new.qcow2"
    with mount.stopped():
        answers = [user.snapshot("vm", "disk0", file, dry_run=each) for each in (True, False)]
        text = user.exporter.metrics()
    after = wait_until(
        lambda: (answer := user.snapshot("vm", "disk0", file)).status == 201 and answer, "it works"
    )

    assert [(each.status, each.problem) for each in answers] == [(503, "storage-hangs")] * 2
    assert value(text, "qemu_vm_up", vm="vm") == 1
    assert after.body["device"] == "disk0"
    assert vm.run("query-block")[0]["inserted"]["file"] == str(file)
