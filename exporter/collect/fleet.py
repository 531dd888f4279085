"""The fleet: every VM at once, one sweep for all who ask, each VM rendered as its answers come."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter

from exporter import __version__
from exporter.collect.discovery import Discovery, printable
from exporter.collect.scrape_target import Collected, Observer, ScrapeTarget
from exporter.concurrency import LoopPacer
from exporter.config import Config
from exporter.expose import FamilyBytes, render_exporter
from exporter.model import Exporter
from exporter.qmp import CommandStats, queries
from exporter.storage import Storage

log = logging.getLogger(__name__)

#: A scrape joins a sweep that began less than this long ago.
JOIN_SECONDS = 1.0
#: How many VMs are asked in one turn of the event loop.
_AT_ONCE = 32


class Sweep:
    """One round through all VMs; its answers fill in as they come."""

    def __init__(self, members: Iterable[ScrapeTarget]) -> None:
        self.started = time.monotonic()
        self.finished = asyncio.Event()
        # Those that take two rounds begin, so that the others fill the time between.
        ordered = sorted(members, key=attrgetter("is_refresh_due"), reverse=True)
        self._pending = {member.name: member for member in ordered}
        self._answered = asyncio.Event()
        if not self._pending:
            self._answered.set()
        #: Whether somebody wants text: each VM is then rendered when its answers are there.
        self.text_wanted = False
        #: Each VM that answered, with when it did.
        self._done: list[tuple[float, ScrapeTarget, Collected]] = []

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
                member.timed_out(elapsed)
                if now - at > max_age_seconds
                or (max_age_seconds < float("inf") and member.is_elsewhere(collected.socket))
                else collected
                for at, member, collected in self._done
            ),
            *(member.timed_out(elapsed) for member in self._pending.values()),
        ]

    def is_outdated(self) -> bool:
        """Whether it would show a VM whose path has been taken over since."""
        return any(member.is_elsewhere(each.socket) for _, member, each in self._done)

    def drop(self, most: int) -> bool:
        """Drop at most so many answers, and return whether there are more."""
        del self._done[-most:]
        return bool(self._done)

    def _ask(self, member: ScrapeTarget) -> None:
        def put(collecting: asyncio.Task[Collected]) -> None:
            del self._pending[member.name]
            collected = member.outcome(collecting)
            if self.text_wanted:
                _ = collected.blobs
            self._done.append((time.monotonic(), member, collected))
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
        actions: Mapping[tuple[str, str], int] | None = None,
        join_seconds: float | None = None,
    ) -> None:
        """Collect nothing yet.

        A scrape joins a sweep that began less than `join_seconds` ago (`JOIN_SECONDS`).
        `swept` is called when a sweep is forgotten, with how many targets left since the last.
        `actions` counts what was done to VMs, by action and result, and is kept up to date by others.
        """
        self.discovery = Discovery(config)
        self._join_seconds = JOIN_SECONDS if join_seconds is None else join_seconds
        #: Whether the configuration was read without an error the last time.
        self.reload_successful = True
        self._web_config_good = True
        self._discovered_at = float("-inf")
        self.members: dict[str, ScrapeTarget] = {}
        self._tally = CommandStats()
        self._pace = LoopPacer()
        self._storage = storage or Storage(pace=self._pace)
        self._swept = swept
        self._observer = observer or Observer()
        self.actions = actions if actions is not None else {}
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
        """Take note of whether the web config file is valid; it is exposed with the configuration."""
        self._web_config_good = good

    def discover(self) -> None:
        """Look for sockets that came and went."""
        self.discovery.refresh()
        self._discovered_at = time.monotonic()
        targets = self.discovery.targets
        for name, member in list(self.members.items()):
            target = targets.get(name)
            if target is not member.target and target != member.target:
                if target is None:
                    about = {"vm": name, "socket": printable(member.target.socket)}
                    log.info("vm is no longer a target", extra=about)
                del self.members[name]
                self._leave(member)
        for name, target in targets.items():
            if name not in self.members:
                member = ScrapeTarget(
                    target, self._tally, self._storage, self._pace, self._observer
                )
                self.members[name] = member
                self._observer.joined(member)

    async def scrape(self, timeout_seconds: float, *, text: bool = False) -> list[Collected]:
        """Return every VM as it is now, within `timeout_seconds`.

        With `text` each is rendered as its answers come, and not all of them at once in the end.
        """
        found = await self._scrape(time.monotonic() + timeout_seconds, timeout_seconds, text)
        if text:
            for collected in found:
                # The sweep was for those who want no text until this scrape joined it.
                if collected.snapshot.up and not collected.rendered:
                    await asyncio.sleep(0)
                    _ = collected.blobs
        return found

    async def _scrape(self, deadline: float, timeout_seconds: float, text: bool) -> list[Collected]:
        sweep = self._sweep
        if (
            sweep is None
            or time.monotonic() - sweep.started >= self._join_seconds
            or sweep.is_outdated()
        ):
            if sweep is not None and not await _set_before(sweep.finished, deadline):
                # Values of then must not pass for values of now.
                return sweep.result(max(self._join_seconds, timeout_seconds))
            # Whoever waited for the same sweep may have begun the next one already.
            if self._sweep is sweep:
                self._begin()
            sweep = self._sweep
        assert sweep is not None
        sweep.text_wanted |= text
        await _set_before(sweep.finished, deadline)
        return sweep.result()

    async def probe(self, vm: str, timeout_seconds: float, *, text: bool = False) -> Collected:
        """Collect one VM alone; with `text` it is rendered as well.

        Raises:
            KeyError: there is no such target.
        """
        # A Prometheus that probes each VM by itself would look for all sockets as often.
        if vm not in self.members or time.monotonic() - self._discovered_at > self._join_seconds:
            self.discover()
        member = self.members[vm]
        try:
            async with asyncio.timeout(timeout_seconds):
                collected = await member.collect()
        except TimeoutError:
            collected = member.timed_out(timeout_seconds)
        if text:
            _ = collected.blobs
        return collected

    def self_metrics(self, collected: Iterable[Collected]) -> FamilyBytes:
        """Return the lines of the program itself, for a scrape that found `collected`."""
        return render_exporter(
            Exporter(
                version=__version__,
                python_version=platform.python_version(),
                targets=len(self.members),
                targets_up=sum(each.snapshot.up for each in collected),
                target_conflicts=len(self.discovery.conflicts),
                reload_successful=self.reload_successful and self._web_config_good,
                # Those that are sent begin at 0, so that a rate sees their first one.
                commands=dict.fromkeys(queries.READ_COMMANDS, 0) | self._tally.commands,
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
            asyncio.get_running_loop().call_later(self._join_seconds, self._forget)

    def _forget(self) -> None:
        """Drop a sweep that is too old to be joined."""
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

    def _leave(self, member: ScrapeTarget) -> None:
        self._gone += 1
        task = asyncio.create_task(member.leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


async def _set_before(event: asyncio.Event, deadline: float) -> bool:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            await event.wait()
    except TimeoutError:
        return False
    return True
