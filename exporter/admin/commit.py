"""Commits that users request. However often a job id is requested, it starts one job."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from exporter import api
from exporter.admin import (
    image_names,
    postconditions,
    preconditions,
    present,
    results,
    shared_layers,
)
from exporter.admin.grants import Permission
from exporter.admin.job_records import JobRecord, JobRecords
from exporter.admin.lease import VmLease, lease, target
from exporter.admin.postconditions import Effect
from exporter.admin.preconditions import Found, Range
from exporter.admin.timing import Timing
from exporter.collect import Fleet, ScrapeTarget
from exporter.concurrency import run_blocking
from exporter.errors import Refused, Rejected
from exporter.model import Place, VmState
from exporter.qmp import Command, Qemu, commands

log = logging.getLogger(__name__)


class Commits:
    """Starts commits in one fleet and records them."""

    def __init__(self, fleet: Fleet, ledger: JobRecords, timing: Timing) -> None:
        self._fleet = fleet
        self._job_records = ledger
        self._timing = timing

    async def start(
        self,
        user: str,
        vm: str,
        request: api.Commit,
        *,
        permission: Permission,
        dry_run: bool,
    ) -> api.Done:
        """Start a commit, or return what became of the same request before.

        The VM itself is looked at first and its neighbours last: a wrong request costs other VMs
        nothing.

        Raises:
            ActionError: it was not started, or the outcome is unknown.
        """
        job_id = request.job_id or _new_id(request.device)
        wanted = msgspec.to_builtins(
            msgspec.structs.replace(request, job_id=UNSET, unseen_neighbours=UNSET)
        )
        entry = self._job_records.get(vm, job_id)
        try:
            member = target(self._fleet, vm)
        except Refused:
            if entry is None:
                raise
            return _replayed(entry, present.recorded(entry), wanted, dry_run=dry_run)
        unseen: Mapping[ScrapeTarget, str] = {}
        if entry is None and (others := shared_layers.of(self._fleet, vm)):
            # Released while other VMs are asked: two commits would wait for each other.
            async with lease(member, self._timing) as mine:
                # The same request may have been carried out since; it is then answered below.
                if self._job_records.get(vm, job_id) is None:
                    await _checked(mine, request, permission)
            unseen = await shared_layers.see(others)
        async with lease(member, self._timing) as mine:
            if now := self._job_records.get(vm, job_id):
                return _replayed(now, await _now(mine, now), wanted, dry_run=dry_run)
            if entry is not None:
                raise Refused(
                    "already-asked", f"an earlier request for {job_id} was just refused: try again"
                )
            snapshot, qemu, found, layers = await _checked(mine, request, permission)
            unsure = shared_layers.unproven(unseen, mine, found, layers)
            unsure += await shared_layers.compared(self._fleet, mine, snapshot, found, layers)
            allowed = _may_be_unseen(request, permission)
            warnings = [
                *preconditions.storage(snapshot),
                *preconditions.seen(unsure, allowed=allowed),
            ]
            job_id = _usable_id(snapshot, qemu, request, job_id)
            command = _command(qemu, found, layers, job_id, request)
            passed = results.checked(
                mine, snapshot, request.verb, command, request.device, job_id, warnings
            )
            if dry_run:
                return passed
            entry = JobRecord(
                vm=vm,
                job_id=job_id,
                job_type="commit",
                device=request.device,
                user=user,
                request=wanted,
                requested_timestamp_seconds=time.time(),
                kept_by_qemu=qemu.keeps_ended_jobs,
                chain=[node.node_name for node in found.layers],
                top=layers.top,
                base=layers.base,
            )
            since = entry.requested_timestamp_seconds
            effect = postconditions.started(job_id, mine.member.ends, since)
            if qemu.version >= commands.JOB_ID_VERSION:
                await self._send_on_record(mine, command, effect, entry)
            else:
                # Its jobs are named after their devices: a record would be taken for that of the
                # next job.
                await mine.send(command, effect)
            return await results.after(mine, passed)

    async def _send_on_record(
        self, mine: VmLease, command: Command, effect: Effect, entry: JobRecord
    ) -> None:
        """Send a command, and record it before and after."""
        await run_blocking(self._job_records.put, entry)
        mine.member.adopt(
            entry.job_id, Place(entry.device, str(entry.top), str(entry.base)), entry.chain
        )
        try:
            await mine.send(command, effect)
        except (Refused, Rejected):
            mine.member.disown(entry.job_id)
            await run_blocking(self._job_records.remove, entry)
            raise
        try:
            await run_blocking(self._job_records.put, msgspec.structs.replace(entry, started=True))
        except Refused as error:
            # It runs, and is recorded as requested: the reconciler will see that it was started.
            log.warning(
                "not recorded", extra={"vm": entry.vm, "job_id": entry.job_id, "err": str(error)}
            )


async def _checked(
    mine: VmLease, request: api.Commit, permission: Permission
) -> tuple[VmState, Qemu, Found, Range]:
    """Check that the present state of the VM and its disk allows the commit.

    Raises:
        Refused: it does not, or the VM does not answer.
    """
    snapshot, qemu = await mine.look(allow_managed=permission.allow_managed)
    preconditions.storage(snapshot)
    found = preconditions.device(snapshot, request.device)
    preconditions.idle(snapshot, request.device)
    preconditions.writable(found)
    layers = preconditions.commit_range(found, request)
    image_names.may_be_merged(snapshot, found, layers)
    return snapshot, qemu, found, layers


def _may_be_unseen(request: api.Commit, permission: Permission) -> bool:
    if isinstance(request.unseen_neighbours, UnsetType):
        return permission.allow_unseen_neighbours
    return request.unseen_neighbours == "allow"


def _new_id(device: str) -> str:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in device)
    return f"{api.JOB_ID_PREFIX}{safe[:32]}-{secrets.token_hex(8)}"


def _usable_id(snapshot: VmState, qemu: Qemu, request: api.Commit, job_id: str) -> str:
    if qemu.version < commands.JOB_ID_VERSION:
        if request.job_id:
            raise Refused(
                "not-supported", "QEMU before 2.7 names the job after its device: omit job_id"
            )
        return request.device
    for job in snapshot.jobs:
        if job.job_id == job_id:
            known = present.job(snapshot.vm, job)
            raise Refused("job-id-taken", f"{snapshot.vm} already has a job {job_id}", known)
    return job_id


def _command(qemu: Qemu, found: Found, layers: Range, job_id: str, request: api.Commit) -> Command:
    command = commands.commit(
        qemu,
        found.disk,
        job_id,
        found.image(layers.top),
        found.base(layers.base),
        active=layers.top == 0,
        speed=request.speed_bytes_per_second or None,
    )
    if "" in command.arguments.values():
        raise Refused("wrong-device-state", f"the images of {request.device} are unknown")
    return command


async def _now(mine: VmLease, entry: JobRecord) -> api.Job:
    """Return the job of a record as it is now, or as recorded if the record says more."""
    snapshot = await mine.look_again()
    told = mine.job(snapshot, entry.job_id, entry.end) if snapshot else None
    known = told is not None and (told.status is not None or entry.outcome is None)
    return told if told is not None and known else present.recorded(entry)


def _replayed(entry: JobRecord, job: api.Job, wanted: dict[str, Any], *, dry_run: bool) -> api.Done:
    """Return the result of a repeated request: the state of the job, or its outcome."""
    if entry.request != wanted:
        raise Refused("job-id-taken", f"{entry.job_id} belongs to another request", job)
    return api.Done(
        vm=entry.vm,
        action="commit",
        device=entry.device,
        job_id=entry.job_id,
        dry_run=dry_run,
        replayed=True,
        command=None,
        arguments={},
        warnings=[],
        job=job,
    )
