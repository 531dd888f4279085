"""One target of the fleet: scrapes share one collection, and changes need exclusive access."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache

from exporter.collect.discovery import Target
from exporter.collect.vm import Vm
from exporter.concurrency import LoopPacer
from exporter.errors import TargetError, Unreachable
from exporter.expose import CachedLines, FamilyBytes, Plan
from exporter.jobs import End
from exporter.model import Device, ImageFile, Place, VmState
from exporter.qmp import CommandStats, SocketFile, socket_file
from exporter.storage import Storage

log = logging.getLogger(__name__)


class Collected:
    """One VM's answer: its state, and its lines of text once somebody asks for them."""

    def __init__(
        self,
        snapshot: VmState,
        render: Callable[[VmState], tuple[VmState, FamilyBytes]],
        socket: SocketFile | None = None,
    ) -> None:
        """Render nothing yet.

        `render` returns the lines, and the state that they show: that of a VM that is down where
        this state cannot be rendered.
        """
        #: The VM as it is; down once its lines turned out not to be possible.
        self.snapshot = snapshot
        #: The socket that it answered on, or was tried; None where there was none.
        self.socket = socket
        self._render = render
        self._blobs: FamilyBytes | None = None

    @property
    def rendered(self) -> bool:
        """Whether `blobs` costs nothing any more."""
        return self._blobs is not None

    @property
    def blobs(self) -> FamilyBytes:
        """The lines of each family, rendered when they are first asked for."""
        if self._blobs is None:
            self.snapshot, self._blobs = self._render(self.snapshot)
        return self._blobs


class Observer:
    """Is notified of targets and of what was found; this one ignores it."""

    def joined(self, member: ScrapeTarget) -> None:
        """A target is new."""

    def collected(self, member: ScrapeTarget, snapshot: VmState) -> None:
        """A target was asked."""


class ScrapeTarget:
    """A target with its collector and the plan that it is rendered by."""

    def __init__(
        self,
        target: Target,
        tally: CommandStats,
        storage: Storage,
        pace: LoopPacer,
        observer: Observer,
    ) -> None:
        self.target = target
        self._observer = observer
        self.name = target.vm
        self.storage = storage
        self._vm = Vm(target, tally, storage, pace)
        self._plan = _plan(target.settings.without)
        self._collecting: asyncio.Task[Collected] | None = None
        #: Held by the one scrape or action that talks to the VM.
        self._talking = asyncio.Lock()
        #: How many actions have the VM, or wait for it.
        self._actions = 0
        self._left = False
        self._devices: tuple[Device, ...] = ()
        #: The lines of the devices that were rendered last, and these devices.
        self._cached: tuple[CachedLines, tuple[Device, ...]] | None = None

    @property
    def is_refresh_due(self) -> bool:
        """Whether more will be asked than in most scrapes."""
        return self._vm.is_refresh_due

    def is_elsewhere(self, socket: SocketFile | None) -> bool:
        """Whether the path leads to another socket than this one by now."""
        return socket_file.leads_elsewhere(self.target.socket, socket)

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[Vm]:
        """Give exclusive access to the VM, to ask and to change it; scrapes wait meanwhile."""
        self._actions += 1
        try:
            async with self._talking:
                if self._left:
                    raise Unreachable("no_socket", "is no longer a target")
                try:
                    yield self._vm
                finally:
                    await self._vm.leave()
        finally:
            self._actions -= 1

    @property
    def ends(self) -> Mapping[str, End]:
        """The last jobs that ended, by id."""
        return self._vm.jobs.outcomes.ends

    @property
    def known_devices(self) -> tuple[Device, ...]:
        """The devices of the last scrape that the VM answered."""
        return self._devices

    @property
    def image_files(self) -> Mapping[str, ImageFile]:
        """What is seen of each image file, by the path that QEMU tells."""
        return self._vm.image_files

    @property
    def open_identities(self) -> frozenset[tuple[int, ...]] | None:
        """Which files its QEMU has open (`storage.FileStat.identity`); None where that is not seen."""
        return self._vm.open_identities

    @property
    def process(self) -> int:
        """Its QEMU, as far as it was connected to; 0 where that is not known."""
        return self._vm.peer[1]

    def adopt(self, job_id: str, place: Place, chain: Sequence[str]) -> None:
        """Have a commit that this program started judged by the chain of then."""
        self._vm.jobs.adopted[job_id] = (place, chain)

    def disown(self, job_id: str) -> None:
        """Take `adopt` back: it was not started after all."""
        self._vm.jobs.adopted.pop(job_id, None)

    def start(self) -> asyncio.Task[Collected]:
        """Ask the VM, or join a collection under way; cancelled if the target is left."""
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.create_task(self._collect())
        return self._collecting

    async def collect(self) -> Collected:
        """Ask the VM, or join a collection under way, and wait for its answer."""
        collecting = self.start()
        await asyncio.wait((collecting,))
        return self.outcome(collecting)

    def outcome(self, collecting: asyncio.Task[Collected]) -> Collected:
        """Return what a task of `start` found; the next call of `start` asks again."""
        if self._collecting is collecting:
            self._collecting = None
        # Cancelled: the target was left meanwhile.
        return self.timed_out(0.0) if collecting.cancelled() else collecting.result()

    def timed_out(self, elapsed_seconds: float) -> Collected:
        """Return the VM as one that did not answer in time for this scrape."""
        return Collected(self._vm.down("timeout", elapsed_seconds), self._render)

    async def leave(self) -> None:
        """Leave the socket, for good."""
        self._left = True
        if self._collecting is not None and not self._collecting.done():
            self._collecting.cancel()
            await asyncio.wait((self._collecting,))
        # Whoever is changing the VM needs an answer, and would connect again.
        async with self._talking:
            await self._vm.close()

    async def _collect(self) -> Collected:
        if self._left:
            return self.timed_out(0.0)
        try:
            if (snapshot := await self._scrape()) is None:
                return self.timed_out(self.target.settings.timeout_seconds)
            self._observer.collected(self, snapshot)
            if snapshot.up:
                self._devices = snapshot.devices
        except Exception as error:
            log.debug("not collected", exc_info=True)
            snapshot = self._failed(error)
        socket, _ = self._vm.peer
        return Collected(snapshot, self._render, socket)

    def _render(self, snapshot: VmState) -> tuple[VmState, FamilyBytes]:
        """Return the lines of a state of this VM; as down where it is not what a QEMU sends."""
        try:
            return snapshot, self._plan.render(snapshot, self._lines_of_devices(snapshot))
        except Exception as error:
            log.debug("not rendered", exc_info=True)
            snapshot = self._failed(error)
            return snapshot, self._plan.render(snapshot)

    def _lines_of_devices(self, snapshot: VmState) -> CachedLines | None:
        if not snapshot.up:
            return None
        if self._cached is None or self._cached[1] is not snapshot.devices:
            self._cached = self._plan.keep(snapshot), snapshot.devices
        return self._cached[0]

    def _failed(self, error: Exception) -> VmState:
        """Return the VM as down, and log why.

        Every exception is caught: a mistake of this program that one VM's answers bring out must
        not cost the others their scrape.
        """
        if isinstance(error, TargetError):
            # Found out while it was rendered: numbers or names that no QEMU sends.
            log.warning("vm is down", extra={"vm": self.name, "err": str(error)})
            return self._vm.down(error.reason, 0.0)
        log.error(
            "vm not collected: a defect of this program, please report it",
            extra={"vm": self.name, "err": f"{type(error).__name__}: {error}"},
        )
        return self._vm.down("internal", 0.0)

    async def _scrape(self) -> VmState | None:
        """Collect once no action has the VM; None if that takes longer than its timeout."""
        timeout_seconds = self.target.settings.timeout_seconds
        if not self._actions:
            # So it is in nearly all scrapes, and a timeout of asyncio's is dear.
            async with self._talking:
                return await self._vm.collect(timeout_seconds)
        deadline = time.monotonic() + timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._talking.acquire()
        except TimeoutError:
            return None
        try:
            return await self._vm.collect(max(0.0, deadline - time.monotonic()))
        finally:
            self._talking.release()


@cache
def _plan(without: frozenset[str]) -> Plan:
    return Plan(without)
