"""The fleet: every VM at once, one sweep for all who ask, each VM rendered as its answers come."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from operator import attrgetter

from exporter import __version__
from exporter.client import Tally
from exporter.config import Config
from exporter.discovery import Discovery, Target
from exporter.errors import TargetError, Unreachable
from exporter.graph import Place
from exporter.model import Device, Exporter, Snapshot
from exporter.outcomes import End
from exporter.pace import Pace
from exporter.render import Blobs, Kept, Plan, render_exporter
from exporter.storage import Storage
from exporter.vm import Vm

log = logging.getLogger(__name__)

#: A scrape joins a sweep that began less than this long ago.
JOIN_SECONDS = 1.0
#: How many VMs are asked in one turn of the event loop.
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Collected:
    """One VM's answer, as a snapshot and as its lines."""

    snapshot: Snapshot
    blobs: Blobs


class Observer:
    """Who is told of targets and of what was found; this one does nothing."""

    def joined(self, member: Member) -> None:
        """A target is new."""

    def collected(self, member: Member, snapshot: Snapshot) -> None:
        """A target was looked at."""


class Member:
    """A target with its collector and the plan that it is rendered by."""

    def __init__(
        self, target: Target, tally: Tally, storage: Storage, pace: Pace, observer: Observer
    ) -> None:
        self.target = target
        self._observer = observer
        self.name = target.vm
        self._vm = Vm(target, tally, storage, pace)
        self._plan = _plan(target.settings.without)
        self._collecting: asyncio.Task[Collected] | None = None
        #: Whoever talks to the VM, a scrape or an action, does so alone.
        self._talking = asyncio.Lock()
        self._left = False
        self._devices: tuple[Device, ...] | None = None
        self._kept: Kept | None = None

    @property
    def is_refresh_due(self) -> bool:
        """Whether more will be asked than in most scrapes."""
        return self._vm.is_refresh_due

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Vm]:
        """Have the VM for oneself, to look at it and to change it; scrapes wait meanwhile."""
        async with self._talking:
            if self._left:
                raise Unreachable("no_socket", "is no target any more")
            try:
                yield self._vm
            finally:
                await self._vm.leave()

    @property
    def ends(self) -> Mapping[str, End]:
        """The last jobs that ended, by id."""
        return self._vm.jobs.outcomes.ends

    @property
    def known_devices(self) -> tuple[Device, ...]:
        """The devices of the last scrape that the VM answered."""
        return self._devices or ()

    def adopt(self, job_id: str, place: Place, chain: Sequence[str]) -> None:
        """Have a commit that was started before this process judged by the chain of then."""
        self._vm.jobs.adopted[job_id] = (place, chain)

    def start(self) -> asyncio.Task[Collected]:
        """Ask the VM, or join whoever is asking it now; cancelled if the target is left."""
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.create_task(self._collect())
        return self._collecting

    async def collect(self) -> Collected:
        """Ask the VM, or join whoever is asking it now, and wait for its answer."""
        collecting = self.start()
        await asyncio.wait((collecting,))
        return self.outcome(collecting)

    def outcome(self, collecting: asyncio.Task[Collected]) -> Collected:
        """Return what a task of `start` found, and let go of it."""
        if self._collecting is collecting:
            self._collecting = None
        # Cancelled: the target was left meanwhile.
        return self.late(0.0) if collecting.cancelled() else collecting.result()

    def late(self, elapsed_seconds: float) -> Collected:
        """Return the VM as one that did not answer in time for this scrape."""
        snapshot = self._vm.down("timeout", elapsed_seconds)
        return Collected(snapshot, self._plan.render(snapshot))

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
            return self.late(0.0)
        try:
            if (snapshot := await self._look()) is None:
                return self.late(self.target.settings.timeout_seconds)
            self._observer.collected(self, snapshot)
            if not snapshot.up:
                return Collected(snapshot, self._plan.render(snapshot))
            if snapshot.devices is not self._devices:
                self._devices, self._kept = snapshot.devices, self._plan.keep(snapshot)
            return Collected(snapshot, self._plan.render(snapshot, self._kept))
        except TargetError as error:
            # Found out while it was rendered: numbers or names that no QEMU sends.
            log.warning("vm is down", extra={"vm": self.name, "err": str(error)})
            snapshot = self._vm.down(error.reason, 0.0)
            return Collected(snapshot, self._plan.render(snapshot))
        except Exception as error:
            # The one place that catches everything: a mistake of this program that one VM's
            # answers bring out must not cost the others their scrape.
            log.error(
                "vm not collected: a defect of this program, please report it",
                extra={"vm": self.name, "err": f"{type(error).__name__}: {error}"},
            )
            log.debug("the defect", exc_info=True)
            snapshot = self._vm.down("protocol", 0.0)
            return Collected(snapshot, self._plan.render(snapshot))

    async def _look(self) -> Snapshot | None:
        """Ask when nobody else talks to the VM; None if that is not soon: a sweep waits for all."""
        deadline = time.monotonic() + self.target.settings.timeout_seconds
        try:
            async with asyncio.timeout(self.target.settings.timeout_seconds):
                await self._talking.acquire()
        except TimeoutError:
            return None
        try:
            return await self._vm.collect(max(0.0, deadline - time.monotonic()))
        finally:
            self._talking.release()


class Sweep:
    """One round through all VMs; its answers fill in as they come."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.started = time.monotonic()
        self.finished = asyncio.Event()
        # Those that take two rounds begin, so that the others fill the time between.
        ordered = sorted(members, key=attrgetter("is_refresh_due"), reverse=True)
        self._pending = {member.name: member for member in ordered}
        self._answered = asyncio.Event()
        if not self._pending:
            self._answered.set()
        #: Each VM that answered, with when it did.
        self._done: list[tuple[float, Member, Collected]] = []

    async def run(self) -> None:
        """Ask every VM at once."""
        try:
            for index, member in enumerate(list(self._pending.values())):
                if index % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
                self._ask(member)
            await self._answered.wait()
        finally:
            self.finished.set()

    def result(self, max_age_seconds: float = float("inf")) -> list[Collected]:
        """Return every VM: those pending, or whose answer is older than that, as timed out."""
        now = time.monotonic()
        elapsed = now - self.started
        return [
            *(
                collected if now - at <= max_age_seconds else member.late(elapsed)
                for at, member, collected in self._done
            ),
            *(member.late(elapsed) for member in self._pending.values()),
        ]

    def drop(self, most: int) -> bool:
        """Let go of so many answers at most, and return whether there are more."""
        del self._done[-most:]
        return bool(self._done)

    def _ask(self, member: Member) -> None:
        def put(collecting: asyncio.Task[Collected]) -> None:
            del self._pending[member.name]
            self._done.append((time.monotonic(), member, member.outcome(collecting)))
            if not self._pending:
                self._answered.set()

        member.start().add_done_callback(put)


class Fleet:
    """All targets, and the sweeps through them."""

    def __init__(
        self,
        config: Config,
        storage: Storage | None = None,
        swept: Callable[[int], None] = lambda _: None,
        observer: Observer | None = None,
    ) -> None:
        """Collect nothing yet.

        `swept` is called when a sweep is forgotten, with how many targets left since the last.
        """
        self.discovery = Discovery(config)
        #: Whether the configuration was read without an error the last time.
        self.reload_successful = True
        self._web_config_good = True
        self._discovered_at = float("-inf")
        self.members: dict[str, Member] = {}
        self._tally = Tally()
        self._pace = Pace()
        self.storage = storage or Storage(pace=self._pace)
        self._swept = swept
        self._observer = observer or Observer()
        #: (action, result) -> how many; none where nothing may be changed.
        self.actions: Mapping[tuple[str, str], int] = {}
        self._gone = 0
        self._sweep: Sweep | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def discovered(self) -> bool:
        """Whether sockets have been looked for."""
        return self._discovered_at > 0

    @property
    def longest_seconds(self) -> float:
        """The longest that any target may take to answer."""
        return max(group.settings.timeout_seconds for group in self.discovery.config.groups)

    def reconfigure(self, config: Config) -> None:
        """Collect by another configuration from the next sweep on."""
        self.discovery.config = config
        self.reload_successful = True

    def note_web_config(self, good: bool) -> None:
        """Tell, with the configuration, whether the web config file is as it should be."""
        self._web_config_good = good

    def discover(self) -> None:
        """Look for sockets that came and went."""
        self.discovery.refresh()
        self._discovered_at = time.monotonic()
        targets = self.discovery.targets
        for name, member in list(self.members.items()):
            target = targets.get(name)
            if target is not member.target and target != member.target:
                del self.members[name]
                self._leave(member)
        for name, target in targets.items():
            if name not in self.members:
                member = Member(target, self._tally, self.storage, self._pace, self._observer)
                self.members[name] = member
                self._observer.joined(member)

    async def scrape(self, timeout_seconds: float) -> list[Collected]:
        """Return every VM as it is now, within `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        sweep = self._sweep
        if sweep is None or time.monotonic() - sweep.started >= JOIN_SECONDS:
            if sweep is not None and not await _set_before(sweep.finished, deadline):
                # Values of then must not pass for values of now.
                return sweep.result(max(JOIN_SECONDS, timeout_seconds))
            # Whoever waited for the same sweep may have begun the next one already.
            if self._sweep is sweep:
                self._begin()
            sweep = self._sweep
        assert sweep is not None
        await _set_before(sweep.finished, deadline)
        return sweep.result()

    async def probe(self, vm: str, timeout_seconds: float) -> Collected:
        """Collect one VM alone.

        Raises:
            KeyError: there is no such target.
        """
        # A Prometheus that probes each VM by itself would look for all sockets as often.
        if vm not in self.members or time.monotonic() - self._discovered_at > JOIN_SECONDS:
            self.discover()
        member = self.members[vm]
        try:
            async with asyncio.timeout(timeout_seconds):
                return await member.collect()
        except TimeoutError:
            return member.late(timeout_seconds)

    def own(self, collected: Iterable[Collected]) -> Blobs:
        """Return the lines of the program itself, for a scrape that found `collected`."""
        return render_exporter(
            Exporter(
                version=__version__,
                python_version=platform.python_version(),
                targets=len(self.members),
                targets_up=sum(each.snapshot.up for each in collected),
                target_conflicts=len(self.discovery.conflicts),
                reload_successful=self.reload_successful and self._web_config_good,
                commands=self._tally.commands,
                errors=self._tally.errors,
                actions=self.actions,
            )
        )

    async def close(self) -> None:
        """Leave every socket."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait((self._sweeping,))
        for member in self.members.values():
            self._leave(member)
        self.members.clear()
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _begin(self) -> None:
        self.discover()
        self._sweep = Sweep(self.members.values())
        self._sweeping = asyncio.create_task(self._sweep.run())
        self._sweeping.add_done_callback(self._after_sweep)

    def _after_sweep(self, sweeping: asyncio.Task[None]) -> None:
        if not sweeping.cancelled():
            # Until then scrapes may join it.
            asyncio.get_running_loop().call_later(JOIN_SECONDS, self._forget)

    def _forget(self) -> None:
        """Let go of a sweep that nobody can join any more."""
        if self._sweep is not None and self._sweep.finished.is_set():
            sweep, self._sweep = self._sweep, None
            self._shred(sweep)

    def _shred(self, sweep: Sweep) -> None:
        # To free all that a fleet said takes longer than others should wait.
        if sweep.drop(_AT_ONCE):
            asyncio.get_running_loop().call_soon(self._shred, sweep)
        else:
            gone, self._gone = self._gone, 0
            self._swept(gone)

    def _leave(self, member: Member) -> None:
        self._gone += 1
        task = asyncio.create_task(member.leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


@cache
def _plan(without: frozenset[str]) -> Plan:
    return Plan(without)


async def _set_before(event: asyncio.Event, deadline: float) -> bool:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            await event.wait()
    except TimeoutError:
        return False
    return True
