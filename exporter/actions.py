"""What users may ask for, and the guards that each request passes.

Each goes the same way: the grant, the VM alone and looked at anew, the guards, the record, the
command, and a look at what came of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from exporter import api, commands, effects, guards, overlay, view
from exporter.apart import apart
from exporter.commands import Command, Qemu
from exporter.config import Grant
from exporter.errors import ActionError, OutcomeUnknown, Refused, Rejected
from exporter.filename import local_path, public
from exporter.ledger import Entry, Ledger
from exporter.member import Member
from exporter.model import Device, Job, Snapshot
from exporter.scrape import Fleet
from exporter.turn import Turn, turn

log = logging.getLogger(__name__)

#: A job that was told to complete is no longer at rest by then, unless it was not told after all.
_COMPLETING_SECONDS = 5.0
#: What would cross a complete that was sent: QEMU calls the job ready for some time afterwards.
_CROSSING = frozenset({"cancel", "pause"})
#: Where a job that was asked to complete waits to be finalized or dismissed.
_AFTER_COMPLETE = frozenset({"pending", "concluded"})


@dataclass(frozen=True, slots=True)
class Permission:
    """The grants that let one user do one thing to one VM."""

    grants: tuple[Grant, ...]

    @property
    def allow_managed(self) -> bool:
        return any(grant.allow_managed for grant in self.grants)

    def of(self, snapshot: Snapshot) -> tuple[Grant, ...]:
        """Return those that hold of the VM as it is; what none allows alone, two do not either."""
        return tuple(g for g in self.grants if g.allow_managed or not snapshot.manager)


class Actions:
    """The requests of users, over one fleet and one account."""

    def __init__(self, fleet: Fleet, ledger: Ledger) -> None:
        self._fleet = fleet
        self._ledger = ledger
        #: Jobs that a complete was sent for: (VM, id) -> when it was first seen, and when that was
        #: sent, by the monotonic clock.
        self._completing: dict[tuple[str, str], tuple[float | None, float]] = {}

    async def commit(
        self, user: str, vm: str, request: api.Commit, *, dry_run: bool = False
    ) -> api.Done:
        """Start a commit.

        Raises:
            ActionError: it was not started, or nobody knows.
        """
        permission = self._permission(user, "commit", vm)
        job_id = request.job_id or _new_id(request.device)
        wanted = msgspec.to_builtins(msgspec.structs.replace(request, job_id=UNSET))
        if vm not in self._fleet.members:
            self._fleet.discover()
        if (entry := self._ledger.get(vm, job_id)) and vm not in self._fleet.members:
            return await _replayed(None, entry, wanted, dry_run=dry_run)
        member = self._member(vm)
        unseen = [] if entry else await self._see_others(vm)
        async with turn(member) as mine:
            if entry := self._ledger.get(vm, job_id):
                return await _replayed(mine, entry, wanted, dry_run=dry_run)
            snapshot, qemu = await mine.look(allow_managed=permission.allow_managed)
            warnings = [*guards.storage(snapshot), *unseen]
            found, layers = await self._commit_checked(mine, snapshot, request, warnings)
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
            done = _checked(mine, snapshot, "commit", command, request.device, job_id, warnings)
            if dry_run:
                return done
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
            return await _after(mine, done)

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
        async with turn(self._member(vm)) as mine:
            snapshot, qemu = await mine.look(allow_managed=permission.allow_managed)
            self._forget_completed(snapshot)
            job = guards.job(snapshot, job_id)
            known = view.job(vm, job)
            waits = known.status in _AFTER_COMPLETE
            crosses = verb == "complete" or (verb in _CROSSING and not waits)
            if crosses and (vm, job_id) in self._completing:
                raise Refused("already-asked", f"{job_id} was asked to complete", known)
            command = _command(snapshot, qemu, job, verb, request)
            # These let QEMU wait for the storage.
            drains = verb in ("complete", "cancel", "finalize")
            warnings = guards.storage(snapshot) if drains else []
            done = _checked(mine, snapshot, verb, command, job.device or None, job_id, warnings)
            if dry_run:
                return done
            if verb == "dismiss":
                await self._record_before_dismissal(mine.member, job)
            if verb == "complete":
                self._completing[vm, job_id] = (job.first_seen_timestamp_seconds, time.monotonic())
            effect = effects.changed(verb, job, request, mine.member.ends, time.time())
            try:
                await mine.send(command, effect)
            except ActionError as error:
                # Whoever sees that it did not arrive must be able to ask again. To tell a commit
                # twice is harmless; of a mirror with `replaces` QEMU may die. [mirror_complete]
                arrived = isinstance(error, OutcomeUnknown) and job.job_type != "commit"
                if verb == "complete" and not arrived:
                    del self._completing[vm, job_id]
                raise
            return await _after(mine, done)

    async def snapshot(
        self, user: str, vm: str, request: api.Snapshot, *, dry_run: bool = False
    ) -> api.Done:
        """Put a new layer on a device.

        Raises:
            ActionError: it was not done, or nobody knows.
        """
        permission = self._permission(user, "snapshot", vm)
        async with turn(self._member(vm)) as mine:
            snapshot, qemu = await mine.look(allow_managed=permission.allow_managed)
            found = guards.device(snapshot, request.device)
            guards.idle(snapshot, request.device)
            guards.writable(found)
            warnings = guards.storage(snapshot)
            active = found.layers[0].image
            assert active is not None  # else it is not writable
            node_name = f"{api.JOB_ID_PREFIX}{secrets.token_hex(8)}"
            command = commands.snapshot(found.top_disk, request.file, request.format, node_name)
            done = _checked(mine, snapshot, "snapshot", command, request.device, None, warnings)
            where = overlay.granted(request.file, permission.of(snapshot), qemu.pid)
            await mine.reach(os.path.dirname(request.file), *where.directories)
            await apart(overlay.check, request.file, where)
            if dry_run:
                return done
            made = await apart(overlay.make, request.file, where, active)
            try:
                await mine.send(command, effects.has_layer(request.device, request.file))
            except (Refused, Rejected):
                await apart(made.remove)
                raise
            return await _after(mine, done)

    def _permission(self, user: str, verb: str, vm: str) -> Permission:
        every = self._fleet.discovery.config.admin.grants
        grants = [grant for grant in every if grant.permits(user, verb, vm)]
        if not grants:
            raise Refused("not-granted", f"no grant lets {user!r} {verb} on {vm!r}")
        return Permission(tuple(grants))

    def _member(self, vm: str) -> Member:
        if vm not in self._fleet.members:
            self._fleet.discover()
        if (member := self._fleet.members.get(vm)) is None:
            raise Refused("unknown-vm", f"there is no VM {vm!r}")
        return member

    async def _see_others(self, vm: str) -> list[str]:
        """Look at the other VMs; return which may share a layer and did not say."""
        # Not by a sweep: one that is joined does not know what a VM got since it began.
        self._fleet.discover()
        looking = {m.start(): m for m in self._fleet.members.values() if m.name != vm}
        if looking:
            # Each ends by its VM's own timeout: one that is only slow may have the same layers.
            await asyncio.wait(looking)
        said = {
            member.name: guards.unsaid(member.outcome(look).snapshot)
            for look, member in looking.items()
        }
        return [f"{vm} {why}: it may share a layer" for vm, why in sorted(said.items()) if why]

    async def _commit_checked(
        self, mine: Turn, snapshot: Snapshot, request: api.Commit, warnings: list[str]
    ) -> tuple[guards.Found, guards.Range]:
        """Pass the guards of a commit; what could not be compared is added to `warnings`."""
        found = guards.device(snapshot, request.device)
        guards.idle(snapshot, request.device)
        guards.writable(found)
        layers = guards.commit_range(found, request)
        others: list[tuple[str, Device]] = [
            (member.name, device)
            for member in self._fleet.members.values()
            for device in (snapshot.devices if member.name == snapshot.vm else member.known_devices)
        ]
        guards.unshared(snapshot, found, layers, others, {})
        paths = {
            path
            for _, device in others
            for node in device.nodes
            if node.image and (path := local_path(node.image.filename)) and path.startswith("/")
        }
        try:
            identities = await mine.identities(paths)
        except Refused as error:
            warnings.append(f"layers of other disks were compared by name alone: {error}")
        else:
            guards.unshared(snapshot, found, layers, others, identities)
        return found, layers

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

    async def _record_before_dismissal(self, member: Member, job: Job) -> None:
        entry = self._ledger.get(member.name, job.job_id)
        if entry is None or entry.outcome:
            return
        if (end := member.ends.get(job.job_id)) is None:
            raise Refused("wrong-job-state", f"how {job.job_id} ended is not known yet: try again")
        await apart(self._ledger.put, entry.with_end(end))

    def _forget_completed(self, snapshot: Snapshot) -> None:
        """Forget what was sent for jobs that are gone, or that have not taken it."""
        listed = {job.job_id: job for job in snapshot.jobs}
        since = time.monotonic() - _COMPLETING_SECONDS
        for key, (first_seen, sent) in list(self._completing.items()):
            if key[0] != snapshot.vm:
                continue
            job = listed.get(key[1])
            same = job is not None and job.first_seen_timestamp_seconds == first_seen
            if job is None or not same or (sent < since and guards.rests(job)):
                del self._completing[key]


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


def _command(
    snapshot: Snapshot, qemu: Qemu, job: Job, verb: api.Verb, request: api.Request
) -> Command:
    """See whether a job may be changed so, and return the command."""
    if isinstance(request, api.Cancel):
        force = None if isinstance(request.force, UnsetType) else request.force
        guards.may_cancel(snapshot, job, force=force)
        return commands.cancel(job.job_id, force=bool(force))
    guards.OF_JOBS[verb](snapshot, job)
    if isinstance(request, api.SetSpeed):
        return commands.set_speed(job.job_id, request.speed_bytes_per_second)
    command = commands.change(qemu, verb, job.job_id)
    if command is None:
        raise Refused("not-supported", f"this QEMU cannot {verb} a job")
    return command


def _checked(
    mine: Turn,
    snapshot: Snapshot,
    verb: api.Verb,
    command: Command,
    device: str | None,
    job_id: str | None,
    warnings: Sequence[str],
) -> api.Done:
    """Return what is said of a request that passed: of a dry run, that is all."""
    arguments = {
        name: public(value) if isinstance(value, str) else value
        for name, value in command.arguments.items()
    }
    return api.Done(
        vm=mine.member.name,
        action=verb,
        device=device,
        job_id=job_id,
        dry_run=True,
        replayed=False,
        command=command.name,
        arguments=arguments,
        warnings=list(warnings),
        job=mine.job(snapshot, job_id),
    )


async def _after(mine: Turn, done: api.Done) -> api.Done:
    """Return what is said of what was sent: the job as it is now, if that can be seen."""
    snapshot = await mine.look_again()
    job = mine.job(snapshot, done.job_id) if snapshot else None
    return msgspec.structs.replace(done, dry_run=False, job=job)


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
