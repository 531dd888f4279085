"""The requests of users, and the checks that each one passes.

Each takes the same steps: grant, exclusive access to the VM and a fresh look, preconditions, record,
command, and a look at the result.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from exporter import api
from exporter.admin import (
    grants,
    image_names,
    job_verbs,
    overlay_file,
    postconditions,
    preconditions,
    present,
    results,
)
from exporter.admin.commit import Commits
from exporter.admin.grants import Permission
from exporter.admin.job_records import JobRecords
from exporter.admin.job_verbs import JOB_VERBS
from exporter.admin.lease import lease, target
from exporter.admin.pending_completes import PendingCompletes
from exporter.admin.snapshot_records import SnapshotRecords
from exporter.admin.timing import Timing
from exporter.collect import Fleet, ScrapeTarget
from exporter.concurrency import run_blocking
from exporter.errors import ActionError, LayerLost, OutcomeUnknown, Refused, Rejected
from exporter.model import Job
from exporter.qmp import commands


class AdminRequests:
    """Carries out the requests of users on one fleet, and records them."""

    def __init__(
        self, fleet: Fleet, ledger: JobRecords, snapshots: SnapshotRecords, timing: Timing
    ) -> None:
        self._fleet = fleet
        self._job_records = ledger
        self._snapshots = snapshots
        self._timing = timing
        self._commits = Commits(fleet, ledger, timing)
        self._pending_completes = PendingCompletes(timing)

    async def commit(
        self, user: str, vm: str, request: api.Commit, *, dry_run: bool = False
    ) -> api.Done:
        """Start a commit.

        Raises:
            ActionError: it was not started, or the outcome is unknown.
        """
        permission = self._permission(user, request.verb, vm)
        return await self._commits.start(user, vm, request, permission=permission, dry_run=dry_run)

    async def change(
        self, user: str, vm: str, job_id: str, request: api.JobRequest, *, dry_run: bool = False
    ) -> api.Done:
        """Do to a job what the row of the request's verb says.

        Raises:
            ActionError: it was not done, or the outcome is unknown.
        """
        verb = JOB_VERBS[type(request)]
        permission = self._permission(user, verb.name, vm)
        async with lease(target(self._fleet, vm), self._timing) as mine:
            snapshot, qemu = await mine.look(allow_managed=permission.allow_managed)
            self._pending_completes.update(mine.member, snapshot)
            job = preconditions.job(snapshot, job_id, mine.job(snapshot, job_id))
            under_way = self._pending_completes.is_under_way(mine.member, job_id)
            if under_way and verb.crosses_complete(job_verbs.status(job)):
                known = present.job(vm, job)
                raise Refused(
                    "already-asked", f"{job_id} has already been asked to complete", known
                )
            verb.precondition(snapshot, job, request)
            command = verb.build(qemu, job, request)
            warnings = preconditions.storage(snapshot) if verb.drains else []
            passed = results.checked(
                mine, snapshot, verb.name, command, job.device or None, job_id, warnings
            )
            if dry_run:
                return passed
            if verb.forgets:
                await self._record_end(mine.member, job)
            if verb.completes:
                self._pending_completes.begin(mine.member, job)
            effect = verb.effect(job, request, mine.member.ends, time.time())
            try:
                await mine.send(command, effect)
            except ActionError as error:
                # If it did not arrive, it must be possible to ask again. Completing a commit twice is
                # harmless; completing a mirror with `replaces` twice may crash QEMU. [mirror_complete]
                arrived = isinstance(error, OutcomeUnknown) and job.job_type != "commit"
                if verb.completes and not arrived:
                    self._pending_completes.withdraw(mine.member, job_id)
                raise
            return await results.after(mine, passed)

    async def snapshot(
        self, user: str, vm: str, request: api.Snapshot, *, dry_run: bool = False
    ) -> api.Done:
        """Add a new layer on top of a device.

        Raises:
            ActionError: it was not done, or the outcome is unknown.
        """
        permission = self._permission(user, request.verb, vm)
        async with lease(target(self._fleet, vm), self._timing) as mine:
            snapshot, qemu = await mine.look(allow_managed=permission.allow_managed)
            found = preconditions.device(snapshot, request.device)
            where = overlay_file.granted(request.file, permission.of(snapshot), qemu.pid)
            await mine.reach(os.path.dirname(request.file), *where.directories)
            name = self._snapshots.node_name(vm, request)
            command = commands.snapshot(found.top_disk, request.file, request.format, name)
            passed = results.checked(
                mine, snapshot, request.verb, command, request.device, None, []
            )
            if await run_blocking(self._snapshots.was_taken, vm, request, found):
                again: dict[str, Any] = {"replayed": True, "command": None, "arguments": {}}
                return msgspec.structs.replace(passed, dry_run=dry_run, **again)
            preconditions.idle(snapshot, request.device)
            preconditions.writable(found)
            image_names.may_be_backing(snapshot, found)
            passed.warnings.extend(preconditions.storage(snapshot))
            await run_blocking(self._snapshots.check, vm, request, where, found)
            if dry_run:
                return passed
            prepared = await run_blocking(
                self._snapshots.prepare, vm, request, user, name, where, found
            )
            try:
                await mine.send(command, postconditions.has_layer(request.device, request.file))
            except (Refused, Rejected):
                await run_blocking(self._snapshots.undo, prepared)
                raise
            await run_blocking(self._snapshots.note_taken, vm, request)
            if not await run_blocking(self._snapshots.is_there, vm, request):
                # QEMU removes a layer on top of `snapshot=on`, if that was not noticed before.
                raise LayerLost(f"{request.file} is the active layer, but its file was removed")
            return await results.after(mine, passed)

    def _permission(self, user: str, verb: str, vm: str) -> Permission:
        return grants.permission(self._fleet.discovery.config.admin.grants, user, verb, vm)

    async def _record_end(self, member: ScrapeTarget, job: Job) -> None:
        entry = self._job_records.get(member.name, job.job_id)
        if entry is None or entry.outcome:
            return
        if (end := member.ends.get(job.job_id)) is None:
            raise Refused(
                "wrong-job-state", f"the outcome of {job.job_id} is not known yet: try again"
            )
        await run_blocking(self._job_records.put, entry.with_end(end))
