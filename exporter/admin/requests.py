"""What users may ask for, and the guards that each request passes.

Each goes the same way: the grant, the VM alone and looked at anew, the guards, the record, the
command, and a look at what came of it.
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
from exporter.admin.lease import lease, target
from exporter.admin.pending_completes import PendingCompletes
from exporter.admin.snapshot_records import SnapshotRecords
from exporter.collect import Fleet, ScrapeTarget
from exporter.concurrency import run_blocking
from exporter.errors import ActionError, LayerLost, OutcomeUnknown, Refused, Rejected
from exporter.model import Job
from exporter.qmp import commands

#: What would cross a complete that was sent: QEMU calls the job ready for some time afterwards.
_CROSSING = frozenset({"cancel", "pause"})
#: Where a job that was asked to complete waits to be finalized or dismissed.
_AFTER_COMPLETE = frozenset({"pending", "concluded"})


class AdminRequests:
    """The requests of users, over one fleet and the accounts of what was asked for."""

    def __init__(self, fleet: Fleet, ledger: JobRecords, snapshots: SnapshotRecords) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._snapshots = snapshots
        self._commits = Commits(fleet, ledger)
        self._pivots = PendingCompletes()

    async def commit(
        self, user: str, vm: str, request: api.Commit, *, dry_run: bool = False
    ) -> api.Done:
        """Start a commit.

        Raises:
            ActionError: it was not started, or nobody knows.
        """
        permission = self._permission(user, "commit", vm)
        return await self._commits.start(user, vm, request, permission=permission, dry_run=dry_run)

    async def change(
        self,
        user: str,
        vm: str,
        job_id: str,
        verb: api.Verb,
        request: api.Request,
        *,
        dry_run: bool = False,
    ) -> api.Done:
        """Complete, cancel, pause, resume, finalize, dismiss a job, or limit its speed.

        Raises:
            ActionError: it was not done, or nobody knows.
        """
        permission = self._permission(user, verb, vm)
        async with lease(target(self._fleet, vm)) as mine:
            snapshot, qemu = await mine.look(allow_managed=permission.allow_managed)
            self._pivots.update(mine.member, snapshot)
            job = preconditions.job(snapshot, job_id, mine.job(snapshot, job_id))
            known = present.job(vm, job)
            waits = known.status in _AFTER_COMPLETE
            crosses = verb == "complete" or (verb in _CROSSING and not waits)
            if crosses and self._pivots.is_under_way(mine.member, job_id):
                raise Refused("already-asked", f"{job_id} was asked to complete", known)
            job_verbs.guard(snapshot, job, verb, request)
            command = job_verbs.command(qemu, job, verb, request)
            # These let QEMU wait for the storage.
            drains = verb in ("complete", "cancel", "finalize")
            warnings = preconditions.storage(snapshot) if drains else []
            passed = results.checked(
                mine, snapshot, verb, command, job.device or None, job_id, warnings
            )
            if dry_run:
                return passed
            if verb == "dismiss":
                await self._record_before_dismissal(mine.member, job)
            if verb == "complete":
                self._pivots.begin(mine.member, job)
            effect = postconditions.changed(verb, job, request, mine.member.ends, time.time())
            try:
                await mine.send(command, effect)
            except ActionError as error:
                # Whoever sees that it did not arrive must be able to ask again. To tell a commit
                # twice is harmless; of a mirror with `replaces` QEMU may die. [mirror_complete]
                arrived = isinstance(error, OutcomeUnknown) and job.job_type != "commit"
                if verb == "complete" and not arrived:
                    self._pivots.withdraw(mine.member, job_id)
                raise
            return await results.after(mine, passed)

    async def snapshot(
        self, user: str, vm: str, request: api.Snapshot, *, dry_run: bool = False
    ) -> api.Done:
        """Put a new layer on a device.

        Raises:
            ActionError: it was not done, or nobody knows.
        """
        permission = self._permission(user, "snapshot", vm)
        async with lease(target(self._fleet, vm)) as mine:
            snapshot, qemu = await mine.look(allow_managed=permission.allow_managed)
            found = preconditions.device(snapshot, request.device)
            where = overlay_file.granted(request.file, permission.of(snapshot), qemu.pid)
            await mine.reach(os.path.dirname(request.file), *where.directories)
            name = self._snapshots.node_name(vm, request)
            command = commands.snapshot(found.top_disk, request.file, request.format, name)
            passed = results.checked(mine, snapshot, "snapshot", command, request.device, None, [])
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
                # So QEMU does with a layer on top of `snapshot=on`, where that was not seen before.
                raise LayerLost(f"{request.file} is the active layer, and has no name any more")
            return await results.after(mine, passed)

    def _permission(self, user: str, verb: str, vm: str) -> Permission:
        return grants.permission(self._fleet.discovery.config.admin.grants, user, verb, vm)

    async def _record_before_dismissal(self, member: ScrapeTarget, job: Job) -> None:
        entry = self._ledger.get(member.name, job.job_id)
        if entry is None or entry.outcome:
            return
        if (end := member.ends.get(job.job_id)) is None:
            raise Refused("wrong-job-state", f"how {job.job_id} ended is not known yet: try again")
        await run_blocking(self._ledger.put, entry.with_end(end))
