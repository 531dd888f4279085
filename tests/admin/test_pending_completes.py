"""Jobs that were told to complete: how long nothing may cross that."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter.admin.pending_completes import PendingCompletes
from exporter.admin.timing import Timing
from exporter.collect.scrape_target import ScrapeTarget
from tests.reach import Reach
from tests.snapshots import job, vm

READY = job("j", status="ready", ready=True)


@pytest.fixture
def member(sockets: Path) -> ScrapeTarget:
    """A target whose job `j` was told to complete, by `sent`."""
    (sockets / "vm.sock").touch()
    return Reach(sockets, None).member()


@pytest.fixture
def timing() -> Timing:
    """How long a job that was told to complete may rest."""
    return Timing()


@pytest.fixture
def sent(member: ScrapeTarget, timing: Timing) -> PendingCompletes:
    """What was sent."""
    made = PendingCompletes(timing)
    made.begin(member, READY)
    return made


def test_a_complete_is_under_way_while_the_job_does_not_rest(
    member: ScrapeTarget, sent: PendingCompletes, timing: Timing
) -> None:
    """However long that takes: QEMU drains the disk first, and pauses the job for it."""
    timing.completing_seconds = -1.0
    states: list[dict[str, Any]] = [
        {"busy": True},
        {"busy": False, "paused": True},
        {"busy": False, "ready": False},
    ]
    for is_so in states:
        sent.update(member, vm(jobs=(job("j", **{"status": "ready", "ready": True, **is_so}),)))
        assert sent.is_under_way(member, "j"), is_so

    assert sent.is_under_way(member, "j")
    assert not sent.is_under_way(member, "another")


def test_a_job_that_rests_a_moment_later_has_not_taken_it(
    member: ScrapeTarget, sent: PendingCompletes, timing: Timing
) -> None:
    """Right after it was sent QEMU may not have begun."""
    resting = vm(jobs=(job("j", status="ready", ready=True, busy=False),))
    sent.update(member, resting)
    before = sent.is_under_way(member, "j")
    timing.completing_seconds = -1.0
    sent.update(member, resting)

    assert (before, sent.is_under_way(member, "j")) == (True, False)


def test_it_is_over_when_the_job_is_gone_or_another_one(
    member: ScrapeTarget, sent: PendingCompletes
) -> None:
    """An id may be used again."""
    sent.update(member, vm())
    gone = sent.is_under_way(member, "j")
    sent.begin(member, READY)
    sent.update(
        member, vm(jobs=(msgspec.structs.replace(READY, first_seen_timestamp_seconds=9.0),))
    )

    assert (gone, sent.is_under_way(member, "j")) == (False, False)


def test_what_was_not_sent_after_all_is_not_under_way(
    member: ScrapeTarget, sent: PendingCompletes
) -> None:
    """It may be asked for again."""
    sent.withdraw(member, "j")

    assert not sent.is_under_way(member, "j")


async def test_a_vm_that_is_gone_leaves_nothing_behind(sockets: Path) -> None:
    """VMs come and go for as long as the exporter runs."""
    (sockets / "vm.sock").touch()
    reach = Reach(sockets, None)
    sent = PendingCompletes(Timing())
    sent.begin(reach.member(), READY)
    (sockets / "vm.sock").unlink()
    reach.fleet.discover()
    await reach.close()
    gc.collect()

    assert not sent._sent
