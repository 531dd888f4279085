"""Every query that is shipped sees the first event of its kind, in a real Prometheus.

One of each comes between two scrapes, and no second one: as a VM's that an I/O error has stopped.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from tests.conftest import samples
from tests.dashboards import filled
from tests.deploy.test_first_events import Asked, counted, shipped
from tests.disks import Disk, block_job, graph, plug
from tests.disks import start as start_job
from tests.e2e.lab import Lab, wait_until
from tests.e2e.prometheus import JOB, Prometheus
from tests.fakeqmp import FakeQmp

#: Counters of which something has happened, each for the first time.
HAPPENED = {
    "qemu_block_io_errors_total",
    "qemu_block_write_thresholds_exceeded_total",
    "qemu_block_images_corrupted_total",
    "qemu_block_job_errors_total",
    "qemu_block_jobs_completed_total",
    "qemu_block_jobs_failed_total",
    "qemu_block_jobs_cancelled_total",
    "qemu_vm_events_total",
    "qemu_exporter_qmp_errors_total",
}
QUERIES = [each for each in shipped() if counted(each.expr) & HAPPENED]


class Speaker(threading.Thread):
    """A fake VM in a loop of its own."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.fake = FakeQmp(path)
        plug(self.fake, Disk("disk0", ("top", "base")))
        self.fake.replies["query-block-exports"] = {"return": []}
        start_job(self.fake, block_job("copy", "mirror"), graph("copy", "disk0", ("top", "base")))
        self.start()
        self.do(self.fake.__aenter__())

    def run(self) -> None:
        self.loop.run_forever()

    def do(self, what: Coroutine[Any, Any, Any]) -> None:
        """Have something done in the loop."""
        asyncio.run_coroutine_threadsafe(what, self.loop).result(20)

    def close(self) -> None:
        self.do(self.fake.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join()
        self.loop.close()


async def happen(fake: FakeQmp) -> None:
    """Send one event of each kind, and refuse a query."""
    for action in ("stop", "ignore"):
        error = {"operation": "write", "action": action, "node-name": "top"}
        await fake.event("BLOCK_IO_ERROR", device="disk0", reason="No space left", **error)
    await fake.event("BLOCK_WRITE_THRESHOLD", **{"node-name": "top"})
    await fake.event("BLOCK_IMAGE_CORRUPTED", device="disk0", msg="bad", fatal=False)
    await fake.event("BLOCK_JOB_ERROR", device="copy", operation="write", action="ignore")
    done = {"type": "backup", "len": 1, "offset": 1, "speed": 0}
    for job, name, more in (
        ("a", "BLOCK_JOB_COMPLETED", {}),
        ("b", "BLOCK_JOB_COMPLETED", {"error": "No space left on device"}),
        ("c", "BLOCK_JOB_CANCELLED", {}),
    ):
        for status in ("created", "running"):
            await fake.event("JOB_STATUS_CHANGE", id=job, status=status)
        await fake.event(name, device=job, **done, **more)
        for status in ("concluded", "null"):
            await fake.event("JOB_STATUS_CHANGE", id=job, status=status)
    fake.replies["query-jobs"] = {"error": {"class": "GenericError", "desc": "no"}}
    await fake.event("JOB_STATUS_CHANGE", id="other", status="created")


class Watched(NamedTuple):
    """A Prometheus that saw everything happen since a time."""

    prometheus: Prometheus
    since: float

    def values(self, expr: str) -> list[float]:
        """Return what an expression gave at every moment."""
        span = {"start": str(self.since), "end": str(time.time()), "step": "1"}
        found = self.prometheus.api("query_range", query=expr, **span)["result"]
        return [float(value) for each in found for _, value in each["values"]]


@contextmanager
def speaking(path: str) -> Iterator[Speaker]:
    speaker = Speaker(path)
    try:
        yield speaker
    finally:
        speaker.close()


@pytest.fixture(scope="module")
def watched(shared_lab: Lab) -> Iterator[Watched]:
    """A Prometheus that has scraped before, and a few times after."""
    lab = shared_lab
    with speaking(str(lab.folder / "vm.sock")) as vm:
        exporter = lab.exporter()
        since = time.time()
        target = {JOB: exporter.url.removeprefix("http://")}
        judge: Prometheus = lab.keep(Prometheus(lab.folder, target))
        wait_until(lambda: judge.has_scraped(4), "four scrapes")
        before = samples(exporter.fresh())
        vm.do(happen(vm.fake))
        wait_until(lambda: judge.query("qemu_block_images_corrupted_total == 1"), "it is seen")
        seen = int(judge.query("count_over_time(up[1h])")[JOB])
        wait_until(lambda: judge.has_scraped(seen + 3), "three scrapes more")
        after = samples(exporter.fresh())
        for name in HAPPENED:
            assert [s for s, n in after.items() if s.startswith(name + "{") and n != "0"], name
            assert not [s for s, n in before.items() if s.startswith(name + "{") and n != "0"], name
        yield Watched(judge, since)


def expression(asked: Asked) -> str:
    """Return a query as somebody would send it: what stands in a text, for this VM."""
    text = asked.expr
    if asked.where.endswith(".md"):
        text = text.strip().replace('vm="web1"', 'vm="vm"')
        if "`" in text:
            text = next(each for each in text.split("`")[1::2] if counted(each))
    return filled(text, __rate_interval="1m")


@pytest.mark.parametrize("asked", QUERIES, ids=lambda asked: f"{asked.where} {asked.expr[:40]}")
def test_a_query_sees_the_first_event(watched: Watched, asked: Asked) -> None:
    """And says so by more than 0, at one moment at least."""
    assert max(watched.values(expression(asked)), default=0) > 0


def test_there_is_a_query_for_each_counter() -> None:
    """Those of events are asked for somewhere."""
    assert set().union(*(counted(each.expr) for each in QUERIES)) >= HAPPENED
