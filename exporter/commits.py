"""Commits as users ask for them: of each job id one is started, however often it is asked for."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

import msgspec
from msgspec import UNSET

from exporter import api, commands, done, effects, guards, neighbours, view
from exporter.apart import apart
from exporter.commands import Command, Qemu
from exporter.errors import Refused, Rejected
from exporter.ledger import Entry, Ledger
from exporter.model import Snapshot
from exporter.scrape import Fleet
from exporter.turn import Turn, target, turn

log = logging.getLogger(__name__)


class Commits:
    """The commits of one fleet, on record in one account."""

    def __init__(self, fleet: Fleet, ledger: Ledger) -> None:
        self._fleet = fleet
        self._ledger = ledger

    async def start(
        self,
        user: str,
        vm: str,
        request: api.Commit,
        *,
        allow_managed: bool,
        dry_run: bool,
    ) -> api.Done:
        """Start a commit, or say what became of the same request before.

        Raises:
            ActionError: it was not started, or nobody knows.
        """
        job_id = request.job_id or _new_id(request.device)
        wanted = msgspec.to_builtins(msgspec.structs.replace(request, job_id=UNSET))
        if vm not in self._fleet.members:
            self._fleet.discover()
        if (entry := self._ledger.get(vm, job_id)) and vm not in self._fleet.members:
            return await _replayed(None, entry, wanted, dry_run=dry_run)
        member = target(self._fleet, vm)
        unseen = [] if entry else await neighbours.see(self._fleet, vm)
        async with turn(member) as mine:
            if entry := self._ledger.get(vm, job_id):
                return await _replayed(mine, entry, wanted, dry_run=dry_run)
            snapshot, qemu = await mine.look(allow_managed=allow_managed)
            warnings = [*guards.storage(snapshot), *unseen]
            found = guards.device(snapshot, request.device)
            guards.idle(snapshot, request.device)
            guards.writable(found)
            layers = guards.commit_range(found, request)
            warnings += await neighbours.compared(self._fleet, mine, snapshot, found, layers)
            job_id = _usable_id(snapshot, qemu, request, job_id)
            command = commands.commit(
                qemu,
                found.disk,
                job_id,
                found.image(layers.top),
                found.image(layers.base),
                active=layers.top == 0,
                speed=request.speed_bytes_per_second or None,
            )
            if "" in command.arguments.values():
                raise Refused("wrong-device-state", f"the images of {request.device} are not known")
            passed = done.checked(
                mine, snapshot, "commit", command, request.device, job_id, warnings
            )
            if dry_run:
                return passed
            entry = Entry(
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
            await self._start(
                mine, command, entry, recorded=qemu.version >= commands.JOB_ID_VERSION
            )
            return await done.after(mine, passed)

    async def _start(self, mine: Turn, command: Command, entry: Entry, *, recorded: bool) -> None:
        """Start a job; what may have left this process is on record before and afterwards."""
        if recorded:
            await apart(self._ledger.put, entry)
        effect = effects.started(entry.job_id, mine.member.ends, entry.requested_timestamp_seconds)
        try:
            await mine.send(command, effect)
        except (Refused, Rejected):
            if recorded:
                await apart(self._ledger.remove, entry)
            raise
        if recorded:
            started = msgspec.structs.replace(entry, started=True)
            try:
                await apart(self._ledger.put, started)
            except Refused as error:
                # It runs, and is on record as asked for: the keeper will see that it was started.
                log.warning(
                    "not recorded",
                    extra={"vm": entry.vm, "job_id": entry.job_id, "err": str(error)},
                )


def _new_id(device: str) -> str:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in device)
    return f"{api.JOB_ID_PREFIX}{safe[:32]}-{secrets.token_hex(8)}"


def _usable_id(snapshot: Snapshot, qemu: Qemu, request: api.Commit, job_id: str) -> str:
    if qemu.version < commands.JOB_ID_VERSION:
        if request.job_id:
            raise Refused("not-supported", "this QEMU names a job by its device: give no job_id")
        return request.device
    for job in snapshot.jobs:
        if job.job_id == job_id:
            known = view.job(snapshot.vm, job)
            raise Refused("job-id-taken", f"{snapshot.vm} has a job {job_id} already", known)
    return job_id


async def _replayed(
    mine: Turn | None, entry: Entry, wanted: dict[str, Any], *, dry_run: bool
) -> api.Done:
    """Return what is said of a request that was made before: the state, or the outcome."""
    snapshot = await mine.look_again() if mine else None
    told = mine.job(snapshot, entry.job_id, entry.end) if mine and snapshot else None
    known = told is not None and (told.status is not None or entry.outcome is None)
    job = told if told is not None and known else view.recorded(entry)
    if entry.request != wanted:
        raise Refused("job-id-taken", f"{entry.job_id} is of another request", job)
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
