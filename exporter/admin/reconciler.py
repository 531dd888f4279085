"""Reconciles records with QEMU after each look: records outcomes, dismisses jobs, sets histograms.

A job that was started here stays in its QEMU until its outcome is on record; then it is dismissed,
also by a later process. Where the configuration asks for latency histograms, QEMU is told to keep
them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

import msgspec

from exporter.admin import audit
from exporter.admin.audit import Audit
from exporter.admin.job_records import JobRecord, JobRecords
from exporter.admin.lease import VmLease, lease
from exporter.admin.timing import Timing
from exporter.collect import Fleet, Observer, ScrapeTarget
from exporter.concurrency import run_blocking
from exporter.config import LatencyHistograms
from exporter.errors import ActionError, Refused, Rejected
from exporter.model import Job, Place, VmState
from exporter.qmp import Command, commands

log = logging.getLogger(__name__)

#: In how many looks a job must be missing before its outcome is recorded as unknown.
_MISSES = 3
_DAY_SECONDS = 24 * 3600.0


class Reconciler(Observer):
    """Acts on one fleet without requests; `ledger` is None if users cannot start jobs."""

    def __init__(self, ledger: JobRecords | None, trail: Audit, timing: Timing) -> None:
        self._job_records = ledger
        self._trail = trail
        self._timing = timing
        #: VM -> the running task.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        #: (VM, job id) -> in how many looks it was missing.
        self._missing: dict[tuple[str, str], int] = {}
        #: (VM, device) -> when its QEMU may be asked to keep histograms again.
        self._not_before: dict[tuple[str, str], float] = {}

    def joined(self, member: ScrapeTarget) -> None:
        """Tell a new target about the jobs that an earlier process started there."""
        for entry in self._job_records.open(member.name) if self._job_records else ():
            if entry.chain and entry.top is not None:
                place = Place(entry.device, str(entry.top), str(entry.base))
                member.adopt(entry.job_id, place, entry.chain)

    def collected(self, member: ScrapeTarget, snapshot: VmState) -> None:
        """Start what is to be done, after each look at a VM."""
        if not snapshot.up or member.name in self._tasks:
            return
        entries = self._job_records.open(member.name) if self._job_records else []
        wanted = member.target.settings.latency_histograms
        if wanted is not None and (wanted.allow_managed or not snapshot.manager):
            without = self._without_histograms(snapshot)
        else:
            without = {}
        if entries or without:
            task = asyncio.create_task(self._do(member, snapshot, entries, wanted, without))
            self._tasks[member.name] = task
            task.add_done_callback(lambda _: self._tasks.pop(member.name, None))

    async def run(self, fleet: Fleet) -> None:
        """Look at the VMs that have open records, at intervals."""
        while self._job_records is not None:
            await asyncio.sleep(self._timing.look_seconds)
            for vm in self._job_records.vms():
                if self._job_records.open(vm) and (member := fleet.members.get(vm)):
                    await member.collect()

    async def close(self) -> None:
        """Wait for the running tasks."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def _do(
        self,
        member: ScrapeTarget,
        snapshot: VmState,
        entries: Sequence[JobRecord],
        wanted: LatencyHistograms | None,
        without: Mapping[str, str],
    ) -> None:
        try:
            for entry in entries:
                await self._settle(member, snapshot, entry)
            if wanted is not None:
                pause = self._timing.histogram_pause_seconds
                for device, qom in without.items():
                    self._not_before[member.name, device] = time.monotonic() + pause
                    await self._set_histograms(member, device, qom, wanted)
        except Refused as error:
            log.warning("not done", extra={"vm": member.name, "err": str(error)})

    async def _settle(self, member: ScrapeTarget, snapshot: VmState, entry: JobRecord) -> None:
        """Record what became of a job, then dismiss it."""
        assert self._job_records is not None
        now = self._job_records.get(entry.vm, entry.job_id)
        if now is None or not now.open:
            return
        job = next((job for job in snapshot.jobs if job.job_id == entry.job_id), None)
        changed = self._seen(member, now, job)
        if changed != now:
            await run_blocking(self._job_records.put, changed)
        status = getattr(job.job, "status", None) if job else None
        if changed.outcome and changed.kept_by_qemu and status == "concluded":
            await self._dismiss(member, changed)

    def _seen(self, member: ScrapeTarget, entry: JobRecord, job: Job | None) -> JobRecord:
        """Return a record updated with what is known now; a recorded outcome stays."""
        key = (entry.vm, entry.job_id)
        if entry.outcome:
            # A later process or QEMU knows less about it than the record.
            return msgspec.structs.replace(entry, dismissed=entry.dismissed or job is None)
        end = member.ends.get(entry.job_id)
        if end is not None and end.timestamp_seconds >= entry.requested_timestamp_seconds:
            self._missing.pop(key, None)
            return entry.with_end(end, dismissed=job is None)
        if job is not None:
            self._missing.pop(key, None)
            seen = entry.seen_timestamp_seconds
            if time.time() - seen > _DAY_SECONDS:
                seen = time.time()  # otherwise a job that runs for a week would be forgotten
            return msgspec.structs.replace(entry, started=True, seen_timestamp_seconds=seen)
        misses = self._missing[key] = self._missing.get(key, 0) + 1
        if misses < _MISSES:
            return entry
        del self._missing[key]
        return msgspec.structs.replace(
            entry, outcome="unknown", ended_timestamp_seconds=time.time()
        )

    async def _dismiss(self, member: ScrapeTarget, entry: JobRecord) -> None:
        assert self._job_records is not None
        async with lease(member, self._timing) as mine:
            snapshot, qemu = await mine.look(allow_managed=True)
            status = {job.job_id: getattr(job.job, "status", None) for job in snapshot.jobs}
            command = commands.change(qemu, "dismiss", entry.job_id)
            if status.get(entry.job_id) != "concluded" or command is None:
                return
            dismissed = msgspec.structs.replace(entry, dismissed=True)
            about = {"vm": entry.vm, "job_id": entry.job_id, "outcome": entry.outcome}
            if not await self._send(mine, "auto_dismiss", command, about):
                return  # it will still be there at the next look
        await run_blocking(self._job_records.put, dismissed)

    async def _set_histograms(
        self, member: ScrapeTarget, device: str, qom: str, wanted: LatencyHistograms
    ) -> None:
        async with lease(member, self._timing) as mine:
            await mine.look(allow_managed=wanted.allow_managed)
            command = commands.latency_histogram(qom, wanted.boundaries_seconds)
            about = {"vm": member.name, "device": device}
            if not await self._send(mine, "latency_histogram", command, about):
                retry = self._timing.histogram_retry_seconds
                self._not_before[member.name, device] = time.monotonic() + retry

    def _without_histograms(self, snapshot: VmState) -> Mapping[str, str]:
        """Return the devices that have a medium and no histograms, with their QOM path.

        QEMU accepts nothing else: a drive without a guest device has no I/O to measure.
        """
        now = time.monotonic()
        return {
            device.device: entry.qdev
            for device, entry in zip(snapshot.devices, snapshot.counters.devices, strict=True)
            if device.nodes
            and entry.qdev
            and entry.stats.rd_latency_histogram is None
            and self._not_before.get((snapshot.vm, device.device), now) <= now
        }

    async def _send(
        self, mine: VmLease, action: str, command: Command, about: Mapping[str, object]
    ) -> bool:
        """Send a command on the program's own account, and write an audit line."""
        began = time.monotonic()
        result, answer = audit.DONE, "ok"
        try:
            await mine.send(command)
        except Rejected as error:
            result, answer = audit.REJECTED, str(error)
        except ActionError as error:
            result = audit.REFUSED if isinstance(error, Refused) else audit.UNKNOWN
            answer = str(error)
        seconds = round(time.monotonic() - began, 6)
        said = {"command": command.name, "answer": answer, "duration_seconds": seconds}
        self._trail.record(action, result, {"user": "", **about, **said})
        return result == audit.DONE
