"""What is done unasked: outcomes kept before jobs are let go of, and histograms set."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter.admin.job_records import JobRecords
from exporter.api.verbs import SetSpeed
from exporter.errors import OutcomeUnknown
from tests.disks import Disk, block_job, plug, start
from tests.fakeqmp import FakeQmp, dying, until
from tests.reach import HISTOGRAMS, USER, Reach, begin, end, gone, grant, run, said

#: More looks than anything here needs.
LOOKS = 4


Make = Callable[..., Reach]


@pytest.fixture
async def make(sockets: Path, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes the fleet as a new process would have it."""
    made = []

    def reach(state: Path | None = tmp_path / "state", **settings: object) -> Reach:
        made.append(Reach(sockets, state, **settings))
        return made[-1]

    yield reach
    for each in made:
        await each.close()


@pytest.fixture
async def reach(make: Make) -> Reach:
    """The fleet."""
    return make()


async def look(reach: Reach, times: int = LOOKS) -> None:
    """Scrape several times."""
    for _ in range(times):
        await reach.look()


def full(*_: object) -> None:
    """Replace a file on a disk that has no room."""
    raise OSError(28, "No space left on device")


# Outcomes.


async def test_an_outcome_is_on_the_disk_before_the_job_is_let_go_of(
    fake: FakeQmp, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced, takes its place, and its directory is synced; then the command leaves."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    trace: list[str] = []
    on_disk: list[dict[str, Any]] = []
    dismiss = fake.replies["job-dismiss"]
    assert callable(dismiss)

    def traced(name: str) -> None:
        real: Any = getattr(os, name)

        def call(*args: Any) -> None:
            real(*args)
            trace.append(name)

        monkeypatch.setattr(os, name, call)

    def answer(arguments: Mapping[str, Any]) -> Any:
        trace.append("dismiss")
        on_disk.extend(reach.on_disk())
        return dismiss(arguments)

    fake.replies["job-dismiss"] = answer
    traced("fsync")
    traced("replace")
    await look(reach)

    put = ["fsync", "replace", "fsync"]
    # That it was seen, how it ended, and that it was let go of.
    assert trace == [*put, *put, "dismiss", *put]
    assert [(each["outcome"], each["dismissed"]) for each in on_disk] == [("completed", False)]
    assert (reach.entry("qbe-1").outcome, reach.entry("qbe-1").dismissed) == ("completed", True)
    assert fake.changes[-1] == ("job-dismiss", {"id": "qbe-1"})
    assert reach.counts == {("auto_dismiss", "done"): 1}


async def test_what_is_done_unasked_leaves_a_line(
    fake: FakeQmp, reach: Reach, caplog: pytest.LogCaptureFixture
) -> None:
    """Of no user."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    await look(reach)

    assert said(caplog.records) == [
        {
            "action": "auto_dismiss", "result": "done", "user": "", "vm": "vm", "job_id": "qbe-1",
            "outcome": "completed", "command": "job-dismiss", "answer": "ok",
        }
    ]  # fmt: skip


@pytest.mark.parametrize("job_id", ["disk0", "commit-vda-libvirt-1-format", "qbe-of-another"])
async def test_a_job_that_was_not_started_here_is_never_let_go_of(
    fake: FakeQmp, reach: Reach, job_id: str
) -> None:
    """Whatever its id looks like: it has no record."""
    await reach.commit()
    await look(reach, 1)
    end(fake, job_id, "base")
    await look(reach)

    assert [name for name, _ in fake.changes] == ["block-commit"]


async def test_a_job_that_runs_is_let_be(fake: FakeQmp, reach: Reach) -> None:
    """It is seen to have been started, and nothing more."""
    await reach.commit()
    for status in ("running", "ready", "pending", "aborting"):
        begin(fake, status=status, ready=status == "ready")
        await look(reach)

    assert [name for name, _ in fake.changes] == ["block-commit"]
    assert (reach.entry("qbe-1").outcome, reach.entry("qbe-1").open) == (None, True)


async def test_a_job_that_is_gone_without_a_word_has_vanished(fake: FakeQmp, reach: Reach) -> None:
    """Somebody else let go of it, or its QEMU is another one; there is nothing to let go of."""
    await reach.commit()
    gone(fake)
    fake.hang_up()
    await look(reach)
    entry = reach.entry("qbe-1")

    assert (entry.outcome, entry.dismissed, entry.open) == ("vanished", True, False)
    assert [name for name, _ in fake.changes] == ["block-commit"]


async def test_what_nobody_saw_is_unknown_after_three_looks(
    fake: FakeQmp, reach: Reach
) -> None:
    """The command left, and no job was ever seen."""
    reach.timing.lookup_pause_seconds = 0.0
    fake.replies["block-commit"] = dying(fake)
    with pytest.raises(OutcomeUnknown):
        await reach.commit()
    seen = []
    for _ in range(LOOKS):
        await look(reach, 1)
        seen.append(reach.entry("qbe-1").outcome)

    assert seen == [None, None, "unknown", "unknown"]
    assert (reach.entry("qbe-1").started, reach.entry("qbe-1").open) == (False, False)


async def test_a_vm_that_is_down_misses_nothing(fake: FakeQmp, reach: Reach) -> None:
    """Nobody knows what it has."""
    await reach.commit()
    works, fake.replies["query-status"] = fake.replies["query-status"], b"x\r\n"
    gone(fake)
    await look(reach)
    assert reach.entry("qbe-1").outcome is None
    fake.replies["query-status"] = works
    end(fake, "qbe-1", "base")
    await look(reach)

    assert reach.entry("qbe-1").outcome == "completed"


async def test_a_job_that_this_qemu_lets_go_of_itself_is_recorded_by_its_event(
    fake: FakeQmp, reach: Reach
) -> None:
    """Before 3.1 none can be kept."""
    run(fake, 2, 12)
    await reach.commit()
    await look(reach, 1)
    await fake.event(
        "BLOCK_JOB_COMPLETED", device="qbe-1", type="commit", len=1, offset=1, speed=0,
        error="No space left on device",
    )  # fmt: skip
    gone(fake)
    await look(reach)
    entry = reach.entry("qbe-1")

    assert (entry.outcome, entry.error) == ("failed", "No space left on device")
    assert (entry.open, [name for name, _ in fake.changes]) == (False, ["block-commit"])


async def test_a_dismissal_that_qemu_refuses_is_tried_again(
    fake: FakeQmp, reach: Reach, caplog: pytest.LogCaptureFixture
) -> None:
    """And told each time."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    works = fake.replies["job-dismiss"]
    fake.replies["job-dismiss"] = {"error": {"class": "GenericError", "desc": "Job not found"}}
    await look(reach, 3)
    assert reach.entry("qbe-1").open
    assert {line["answer"] for line in said(caplog.records)} == {"Job not found"}
    fake.replies["job-dismiss"] = works
    await look(reach)

    assert reach.entry("qbe-1").dismissed
    assert reach.counts["auto_dismiss", "rejected"] >= 1
    assert reach.counts["auto_dismiss", "done"] == 1


async def test_a_dismissal_without_an_answer_is_unknown_and_looked_at_again(
    fake: FakeQmp, reach: Reach
) -> None:
    """The job may be gone or not."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    fake.replies["job-dismiss"] = dying(fake, first=lambda: gone(fake))
    await look(reach)

    assert (reach.entry("qbe-1").outcome, reach.entry("qbe-1").dismissed) == ("completed", True)
    assert reach.counts == {("auto_dismiss", "unknown"): 1}


# After a restart.


@pytest.mark.parametrize(
    ("layers", "ended", "outcome"),
    [
        (("base",), {}, "completed"),
        (("top", "base"), {}, "cancelled"),
        (("top", "base"), {"error": "Operation canceled"}, "cancelled"),
        (("top", "base"), {"error": "No space left on device"}, "failed"),
    ],
    ids=["pivot", "cancelled when ready", "cancelled", "failed"],
)
async def test_what_happened_while_this_program_was_away_is_recorded(
    fake: FakeQmp, make: Make, layers: tuple[str, ...], ended: dict[str, object], outcome: str
) -> None:
    """By the chain that is on record; then the job is let go of."""
    first = make()
    await first.commit()
    await first.close()
    end(fake, "qbe-1", *layers, **ended)
    second = make()
    await look(second)
    entry = second.entry("qbe-1")

    assert (entry.outcome, entry.dismissed) == (outcome, True)
    assert entry.error == ended.get("error", "")
    assert [name for name, _ in fake.changes] == ["block-commit", "job-dismiss"]


async def test_a_commit_of_lower_layers_that_ended_while_this_program_was_away_is_completed(
    fake: FakeQmp, make: Make
) -> None:
    """It never is ready, so that nobody can have cancelled it without an error."""
    plug(fake, Disk(nodes=("top", "mid", "base")))
    first = make()
    await first.commit(top="mid")
    await first.close()
    end(fake, "qbe-1", "top", "base")
    second = make()
    await look(second)

    assert second.entry("qbe-1").outcome == "completed"


async def test_a_job_that_still_runs_after_a_restart_is_followed_to_its_end(
    fake: FakeQmp, make: Make
) -> None:
    """As if nothing had been."""
    first = make()
    await first.commit()
    await first.close()
    second = make()
    await look(second)
    assert second.entry("qbe-1").outcome is None
    end(fake, "qbe-1", "base")
    await look(second)

    assert (second.entry("qbe-1").outcome, second.entry("qbe-1").dismissed) == ("completed", True)


async def test_a_job_whose_outcome_is_on_record_is_let_go_of_after_a_restart(
    fake: FakeQmp, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died between the two."""
    first = make()
    await first.commit()
    end(fake, "qbe-1", "base")
    monkeypatch.setattr(first.hand.keeper, "_dismiss", _nothing)
    await look(first)
    before = first.entry("qbe-1")
    assert (before.outcome, before.dismissed) == ("completed", False)
    await first.close()
    second = make()
    await look(second)

    assert second.entry("qbe-1") == msgspec.structs.replace(before, dismissed=True)
    assert fake.changes[-1][0] == "job-dismiss"


async def test_an_outcome_on_record_outlives_the_job(
    fake: FakeQmp, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died after it let go of the job, or somebody else did that: it is known how."""
    first = make()
    await first.commit()
    end(fake, "qbe-1", "base")
    monkeypatch.setattr(first.hand.keeper, "_dismiss", _nothing)
    await look(first)
    before = first.entry("qbe-1")
    await first.close()
    gone(fake)
    second = make()
    await look(second)

    assert second.entry("qbe-1") == msgspec.structs.replace(before, dismissed=True)


async def _nothing(*_: object) -> None:
    """Die before it is done."""


# Looks of its own.


async def test_vms_with_jobs_of_ours_are_looked_at_without_any_scrape(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """For as long as they have; the others are left in peace, and what is no target is no matter."""
    reach.timing.look_seconds = 0.001
    async with FakeQmp(str(sockets / "two.sock")) as two:
        await reach.commit()
        before = list(two.commands)
        assert reach.hand.ledger is not None
        lost = msgspec.structs.replace(reach.entry("qbe-1"), vm="no target")
        reach.hand.ledger.put(lost)
        end(fake, "qbe-1", "base")
        async with reach.hand.over(reach.fleet):
            await until(lambda: not reach.entry("qbe-1").open)

    assert fake.changes[-1][0] == "job-dismiss"
    assert two.commands == before
    assert reach.entry("qbe-1", "no target").open


async def test_without_an_account_nothing_is_let_go_of(
    fake: FakeQmp, make: Make
) -> None:
    """The admin API is off: whoever started the job, it is none of ours."""
    first = make()
    await first.commit()
    await first.close()
    end(fake, "qbe-1", "base")
    second = make(state=None)
    second.timing.look_seconds = 0.001
    async with second.hand.over(second.fleet) as actions:
        await look(second)
        assert actions is None

    assert [name for name, _ in fake.changes] == ["block-commit"]
    assert ("commit", "done") not in second.hand.trail.counts


# The disk of the account.


async def test_a_full_disk_costs_no_scrape_and_lets_go_of_no_job(
    fake: FakeQmp, reach: Reach, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When there is room again it is done."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        await look(reach)
        assert (await reach.look()).snapshot.up
        assert "job-dismiss" not in fake.commands
        assert "not done" in caplog.text
    await look(reach)

    assert reach.entry("qbe-1").dismissed
    assert reach.on_disk()[0]["outcome"] == "completed"


async def test_a_slow_disk_costs_scrapes_nothing(
    fake: FakeQmp, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on while it writes; the job waits, and is let go of once."""
    await reach.commit()
    end(fake, "qbe-1", "base")
    writing, written = threading.Event(), threading.Event()
    put = JobRecords.put

    def slowly(self: JobRecords, entry: Any) -> None:
        writing.set()
        written.wait(60)
        put(self, entry)

    monkeypatch.setattr(JobRecords, "put", slowly)
    while not writing.is_set():
        await reach.fleet.probe("vm", 20.0)
        await asyncio.sleep(0)
    seen = [(await reach.fleet.probe("vm", 20.0)).snapshot.up for _ in range(3)]
    assert "job-dismiss" not in fake.commands
    written.set()
    await look(reach)

    assert seen == [True] * 3
    assert fake.commands.count("job-dismiss") == 1


# Histograms.


def keeps_histograms(fake: FakeQmp, *disks: Disk) -> None:
    """Have QEMU keep histograms of a device once it is told to."""
    plug(fake, *disks)

    def put(arguments: Mapping[str, Any]) -> dict[str, Any]:
        told = [dict(disk.stats()) for disk in disks]
        for disk, entry in zip(disks, told, strict=True):
            if {disk.device, disk.qdev} & set(asked(fake)):
                bins = {"boundaries": arguments["boundaries"], "bins": [0, 0, 0]}
                entry["stats"] = {
                    f"{kind}_latency_histogram": bins for kind in ("rd", "wr", "flush")
                }
        fake.replies["query-blockstats"] = {"return": told}
        return {"return": {}}

    fake.replies["block-latency-histogram-set"] = put


def asked(fake: FakeQmp) -> list[str]:
    """Return the devices whose histograms were asked for."""
    sent = [each for name, each in fake.changes if name == "block-latency-histogram-set"]
    assert [each["boundaries"] for each in sent] == [[1_000_000, 10_000_000]] * len(sent)
    return [each["id"] for each in sent]


PATHS = tuple(f"/machine/peripheral/{name}/virtio-backend" for name in ("vda", "vdb"))
#: A `-drive` that a device of the guest stands on.
DRIVE = Disk(qdev=PATHS[0])


@pytest.mark.parametrize("admin", [True, False])
async def test_histograms_are_set_once_of_each_device(
    fake: FakeQmp, make: Make, admin: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """By its path in QEMU's tree of objects, also where the drive has a name; no user is needed."""
    keeps_histograms(fake, DRIVE, Disk("", ("a", "b"), qdev=PATHS[1]))
    reach = (
        make(latency_histograms=HISTOGRAMS) if admin else make(None, latency_histograms=HISTOGRAMS)
    )
    await look(reach)

    assert asked(fake) == [*PATHS]
    assert reach.counts == {("latency_histogram", "done"): 2}
    assert said(caplog.records) == [
        {
            "action": "latency_histogram", "result": "done", "user": "", "vm": "vm",
            "device": device, "command": "block-latency-histogram-set", "answer": "ok",
        }
        for device in ("disk0", "vdb")
    ]  # fmt: skip


async def test_a_device_that_is_plugged_in_later_gets_its_own(
    fake: FakeQmp, make: Make
) -> None:
    """And so does one that was away and has lost them, though not at once."""
    keeps_histograms(fake, DRIVE)
    reach = make(latency_histograms=HISTOGRAMS)
    reach.timing.histogram_pause_seconds = 0.0
    await look(reach)
    plug(fake)
    await look(reach, 1)
    plug(fake, DRIVE)
    await look(reach)

    assert asked(fake) == [PATHS[0]] * 2


async def test_histograms_are_not_set_unless_the_configuration_asks(
    fake: FakeQmp, reach: Reach
) -> None:
    """They cost QEMU something."""
    await look(reach)

    assert fake.changes == []


async def test_a_drive_without_a_medium_or_a_guest_gets_no_histograms(
    fake: FakeQmp, make: Make
) -> None:
    """There is nothing to measure; of the name of a drive QEMU knows nothing."""
    plug(fake, Disk())
    entries = [{"device": "cd0", "qdev": PATHS[0], "stats": {}}, Disk().stats()]
    fake.replies["query-blockstats"] = {"return": entries}
    await look(make(latency_histograms=HISTOGRAMS))

    assert asked(fake) == []


@pytest.mark.parametrize("kind", ["GenericError", "CommandNotFound"])
async def test_who_refuses_histograms_is_asked_again_much_later(
    fake: FakeQmp,
    make: Make,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A lost connection is no reason, an hour is: the QEMU may be another one by then."""
    plug(fake, DRIVE)
    fake.replies["block-latency-histogram-set"] = {"error": {"class": kind, "desc": "no"}}
    reach = make(latency_histograms=HISTOGRAMS)
    reach.timing.histogram_pause_seconds = 0.0
    await look(reach)
    fake.hang_up()
    await look(reach)
    assert asked(fake) == [PATHS[0]]
    assert reach.counts == {("latency_histogram", "rejected"): 1}
    assert [line["answer"] for line in said(caplog.records)] == ["no"]
    await reach.close()
    reach = make(latency_histograms=HISTOGRAMS)
    reach.timing.histogram_pause_seconds = reach.timing.histogram_retry_seconds = 0.0
    await look(reach, 2)

    assert asked(fake) == [PATHS[0]] * 3


MANAGED = Disk(nodes=("libvirt-2-format", "libvirt-1-format"), qdev=PATHS[0])


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_managed_vm_gets_histograms_only_where_that_is_allowed(
    fake: FakeQmp, make: Make, allowed: bool
) -> None:
    """Its manager may have set them, or not want them."""
    keeps_histograms(fake, MANAGED)
    wanted = msgspec.structs.replace(HISTOGRAMS, allow_managed=allowed)
    await look(make(latency_histograms=wanted))

    assert asked(fake) == ([PATHS[0]] if allowed else [])


async def test_a_vm_that_is_left_alone_gets_its_histograms_later(
    fake: FakeQmp, make: Make
) -> None:
    """While it comes from another host nothing is changed."""
    keeps_histograms(fake, DRIVE)
    fake.replies["query-status"] = {"return": {"running": False, "status": "inmigrate"}}
    reach = make(latency_histograms=HISTOGRAMS)
    reach.timing.histogram_pause_seconds = 0.0
    await look(reach)
    assert asked(fake) == []
    fake.replies["query-status"] = {"return": {"running": True, "status": "running"}}
    await look(reach)

    assert asked(fake) == [PATHS[0]]


async def test_what_users_ask_for_and_what_is_done_unasked_take_turns(
    fake: FakeQmp, make: Make
) -> None:
    """One VM, one command at a time: each is answered before the next one leaves."""
    keeps_histograms(fake, DRIVE)
    reach = make(latency_histograms=HISTOGRAMS)
    reach.grant(grant())
    start(fake, block_job("j"))
    speeds = itertools.count(1)
    requests = [
        reach.actions.change(USER, "vm", "j", SetSpeed(speed_bytes_per_second=next(speeds)))
        for _ in range(5)
    ]
    await asyncio.gather(*requests, look(reach))

    assert asked(fake) == [PATHS[0]]
    assert [each["speed"] for name, each in fake.changes if name == "block-job-set-speed"] == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip


async def test_the_end_of_the_program_waits_for_what_is_being_done(
    fake: FakeQmp, reach: Reach, caplog: pytest.LogCaptureFixture
) -> None:
    """A job is not let go of without a word."""
    caplog.set_level(logging.INFO)
    await reach.commit()
    end(fake, "qbe-1", "base")
    held = asyncio.Event()
    dismiss = fake.replies["job-dismiss"]
    assert callable(dismiss)

    def hold(arguments: Mapping[str, Any]) -> Any:
        held.set()
        return dismiss(arguments)

    fake.replies["job-dismiss"] = hold
    async with reach.hand.over(reach.fleet):
        while not held.is_set():
            await reach.fleet.probe("vm", 20.0)

    assert reach.entry("qbe-1").dismissed
    assert [line["result"] for line in said(caplog.records)] == ["done"]
