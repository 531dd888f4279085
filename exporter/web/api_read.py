"""The part of the HTTP API that reads: VMs, their disks and layers, and block jobs."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from exporter import api
from exporter.admin import JobRecords, present
from exporter.api import PROBLEMS, openapi
from exporter.collect import Collected, Fleet
from exporter.errors import Refused
from exporter.jobs import End
from exporter.web.responses import answer

#: How long a scrape waits after the VMs' own timeout, so that each VM can report why it is down.
GRACE_SECONDS = 0.25


class ReadApi:
    """The handlers of `ROUTES` that change nothing."""

    def __init__(
        self,
        fleet: Fleet,
        ledger: JobRecords | None,
        prefix: str,
    ) -> None:
        """`ledger` has the jobs that users started here, if they may."""
        self._fleet = fleet
        self._job_records = ledger
        self._prefix = prefix

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handler of each route, by its name."""
        return {
            "openapi": self.openapi,
            "problem": self.problem,
            "vms": self.vms,
            "vm": self.vm,
            "all_jobs": self.all_jobs,
            "jobs": self.jobs,
            "job": self.job,
        }

    async def openapi(self, request: web.Request) -> web.Response:
        """Describe the API."""
        return answer(openapi.description(self._prefix))

    async def problem(self, request: web.Request) -> web.Response:
        """Tell what a problem means."""
        name = request.match_info["name"]
        if (kind := PROBLEMS.get(name)) is None:
            raise Refused("not-found", f"there is no problem {name!r}")
        return web.Response(text=f"{kind.title} ({kind.status})\n\n{kind.text}\n")

    async def vms(self, request: web.Request) -> web.Response:
        """Every VM."""
        collected = await self._fleet.scrape(self._longest_seconds)
        found = sorted((each.snapshot for each in collected), key=lambda each: each.vm)
        return answer(api.VmList([present.summary(snapshot) for snapshot in found]))

    async def vm(self, request: web.Request) -> web.Response:
        """One VM."""
        collected = await self._probe(request)
        live = {job.job_id for job in collected.snapshot.jobs}
        jobs = [job for job in self._jobs(collected) if job.job_id in live]
        return answer(present.vm(collected.snapshot, jobs))

    async def all_jobs(self, request: web.Request) -> web.Response:
        """The jobs of all VMs."""
        collected = await self._fleet.scrape(self._longest_seconds)
        found = sorted(collected, key=lambda each: each.snapshot.vm)
        jobs = [job for each in found for job in self._jobs(each)]
        here = {each.snapshot.vm for each in found}
        gone = set(self._job_records.vms()) - here if self._job_records else set()
        return answer(api.JobList([*jobs, *(job for vm in sorted(gone) for job in self._past(vm))]))

    async def jobs(self, request: web.Request) -> web.Response:
        """The jobs of one VM."""
        collected = await self._probe(request)
        if not collected.snapshot.up:
            raise _down(collected)
        return answer(api.JobList(self._jobs(collected)))

    async def job(self, request: web.Request) -> web.Response:
        """One job, live or ended."""
        vm, job_id = request.match_info["vm"], request.match_info["job_id"]
        try:
            collected = await self._probe(request)
        except Refused:
            # What became of a job is known for longer than there is the VM.
            past = {job.job_id: job for job in self._past(vm)}
            if job_id not in past:
                raise
            return answer(past[job_id])
        for job in self._jobs(collected):
            if job.job_id == job_id:
                return answer(job)
        if end := self._ends(vm).get(job_id):
            return answer(present.ended(vm, job_id, end))
        if not collected.snapshot.up:
            raise _down(collected)
        raise Refused("unknown-job", f"{vm} has no block job {job_id!r}")

    @property
    def _longest_seconds(self) -> float:
        """How long all VMs together may take: as long as the slowest group of them."""
        return self._fleet.longest_seconds + GRACE_SECONDS

    async def _probe(self, request: web.Request) -> Collected:
        vm = request.match_info["vm"]
        try:
            return await self._fleet.probe(vm, self._longest_seconds)
        except KeyError:
            raise Refused("unknown-vm", f"there is no VM {vm!r}") from None

    def _past(self, vm: str) -> list[api.Job]:
        """Return the jobs of a VM that are on record."""
        return (
            [present.recorded(entry) for entry in self._job_records.of(vm)]
            if self._job_records
            else []
        )

    def _ends(self, vm: str) -> Mapping[str, End]:
        member = self._fleet.members.get(vm)
        return member.ends if member else {}

    def _jobs(self, collected: Collected) -> list[api.Job]:
        """Return the jobs that QEMU has, and those started here that it has no more."""
        vm = collected.snapshot.vm
        ends = self._ends(vm)
        entries = {e.job_id: e for e in self._job_records.of(vm)} if self._job_records else {}
        found = []
        for job in collected.snapshot.jobs:
            entry = entries.pop(job.job_id, None)
            end = (entry.end if entry else None) or ends.get(job.job_id)
            found.append(present.job(vm, job, end))
        for entry in entries.values():
            end = ends.get(entry.job_id) if entry.outcome is None else None
            found.append(present.ended(vm, entry.job_id, end) if end else present.recorded(entry))
        return found


def _down(collected: Collected) -> Refused:
    return Refused("vm-down", f"{collected.snapshot.vm}: {collected.snapshot.reason}")
