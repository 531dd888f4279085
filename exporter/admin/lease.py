"""Exclusive access to one VM: to look at it, send one command, and look at the result.

A command is never sent twice. Where the connection is lost before QEMU answers, the VM is looked at
to see whether it was done; otherwise the outcome is unknown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from exporter import api
from exporter.admin import preconditions, present
from exporter.admin.postconditions import Effect
from exporter.admin.timing import Timing
from exporter.collect import CANARY_SECONDS, Fleet, ScrapeTarget, Vm
from exporter.errors import OutcomeUnknown, Refused, Rejected, Replaced, TargetError
from exporter.jobs import End
from exporter.model import VmState
from exporter.qmp import Command, Qemu, SocketFile
from exporter.redact import redact_text
from exporter.storage import StorageBusy, StorageHangs

#: How often to look, after a lost connection, whether the command was done.
_LOOKUP_TRIES = 3


class VmLease:
    """A period in which no other task talks to the VM."""

    def __init__(self, member: ScrapeTarget, vm: Vm, timing: Timing) -> None:
        self.member = member
        self._timing = timing
        self._vm = vm
        #: The QEMU that was looked at first: another one is never taken for it.
        self._peer: tuple[SocketFile | None, int] | None = None
        self._timeout_seconds = member.target.settings.timeout_seconds

    async def look(self, *, allow_managed: bool) -> tuple[VmState, Qemu]:
        """Return the present state of the VM, with a fresh query-block, and what its QEMU can do.

        Raises:
            Refused: it does not answer, or must not be changed.
        """
        try:
            snapshot = await self._vm.look(self._timeout_seconds)
            self._peer = self._vm.peer
            qemu = await self._vm.qemu(self._timeout_seconds)
        except TargetError as error:
            raise self._down(error) from None
        preconditions.steady(snapshot, qemu)
        preconditions.unmanaged(snapshot, allow_managed=allow_managed)
        return snapshot, qemu

    async def look_again(self) -> VmState | None:
        """Return the present state of the VM, None if it does not answer."""
        return await self._look_at_same(self._timeout_seconds)

    async def _look_at_same(self, timeout_seconds: float) -> VmState | None:
        try:
            snapshot = await self._vm.look(timeout_seconds)
        except TargetError:
            return None
        if self._peer is None:
            self._peer = self._vm.peer
        return snapshot if self._vm.peer == self._peer else None

    async def reach(self, *paths: str) -> None:
        """Check that the storage of these paths answers before anything is done there.

        Raises:
            Refused: it does not.
        """
        try:
            await self.member.storage.see(paths, CANARY_SECONDS)
        except (StorageHangs, StorageBusy) as error:
            raise Refused("storage-hangs", str(error)) from None

    async def identities(self, paths: Collection[str]) -> Mapping[str, object]:
        """Return the identity of the file at each path, as far as it is visible.

        Raises:
            Refused: the storage of one does not answer.
        """
        try:
            sights = await self.member.storage.see(paths, CANARY_SECONDS)
        except (StorageHangs, StorageBusy) as error:
            raise Refused("storage-hangs", str(error)) from None
        return {path: sight.identity for path, sight in sights.items() if sight.identity}

    async def send(self, command: Command, effect: Effect | None = None) -> None:
        """Send a command; `effect` recognizes a snapshot in which it was done.

        Raises:
            Refused: it was not sent.
            Rejected: QEMU replied with an error.
            OutcomeUnknown: no reply came, and nothing shows that it was done.
        """
        try:
            await self._vm.execute(command, self._timeout_seconds)
        except TargetError as error:
            raise self._down(error) from None
        except Rejected as error:
            raise Rejected(redact_text(str(error))) from None
        except OutcomeUnknown as error:
            if error.late or effect is None or not await self._look_up(effect):
                raise

    async def _look_up(self, effect: Effect) -> bool:
        deadline = time.monotonic() + self._timing.lookup_seconds
        looks = 0
        while looks < _LOOKUP_TRIES and (left := deadline - time.monotonic()) > 0:
            # A VM that does not answer is tried again until the deadline.
            if (snapshot := await self._look_at_same(left)) is not None:
                if effect(snapshot):
                    return True
                looks += 1
            await asyncio.sleep(self._timing.lookup_pause_seconds)
        return False

    def _down(self, error: TargetError) -> Refused:
        if isinstance(error, Replaced):
            return Refused("another-vm", f"{self.member.name}: {error}")
        return Refused("vm-down", f"{self.member.name}: {error.reason}: {error}")

    def job(
        self, snapshot: VmState, job_id: str | None, recorded: End | None = None
    ) -> api.Job | None:
        """Return a job of a snapshot, or how it ended; None if nothing is known about it."""
        if job_id is None:
            return None
        end = recorded or self.member.ends.get(job_id)
        for each in snapshot.jobs:
            if each.job_id == job_id:
                return present.job(self.member.name, each, end)
        return present.ended(self.member.name, job_id, end) if end else None


def target(fleet: Fleet, vm: str) -> ScrapeTarget:
    """Return the target of this name; if there is none, look for new sockets first.

    Raises:
        Refused: there is no such target.
    """
    if vm not in fleet.members:
        fleet.discover()
    if (member := fleet.members.get(vm)) is None:
        raise Refused("unknown-vm", f"there is no VM {vm!r}")
    return member


@asynccontextmanager
async def lease(member: ScrapeTarget, timing: Timing) -> AsyncIterator[VmLease]:
    """Wait until no other task talks to a VM, and hold it.

    Raises:
        Refused: it did not become free in time.
    """
    async with AsyncExitStack() as having:
        try:
            async with asyncio.timeout(timing.lease_wait_seconds):
                vm = await having.enter_async_context(member.exclusive())
        except TargetError as error:
            raise Refused("vm-down", f"{member.name}: {error}") from None
        except TimeoutError:
            waited = f"{timing.lease_wait_seconds:g} s"
            raise Refused(
                "vm-down", f"{member.name} has been busy for more than {waited}"
            ) from None
        yield VmLease(member, vm, timing)
