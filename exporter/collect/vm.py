"""One VM: its session, what is asked of it in a scrape, and what is kept until the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from exporter.collect.discovery import Target, printable
from exporter.collect.event_watcher import EventWatcher
from exporter.collect.exports import Exports
from exporter.collect.job_list import JobList
from exporter.collect.querier import Querier, remaining_seconds
from exporter.collect.topology_cache import TopologyCache
from exporter.collect.topology_refresh import TopologyRefresh
from exporter.concurrency import LoopPacer
from exporter.errors import ProtocolError, Replaced, TargetError
from exporter.model import Counters, Device, ImageFile, Node, Owners, VmState, build, of_graph
from exporter.model import chain as chains
from exporter.qmp import (
    Command,
    CommandStats,
    PendingReplies,
    Qemu,
    Query,
    Session,
    SocketFile,
    queries,
    schema,
)
from exporter.storage import Storage

log = logging.getLogger(__name__)

#: The first QEMU that says whether an image is its own. [BlockDeviceInfo: active]
_ACTIVE_VERSION = (10, 0)
#: How many that take a path over, one after the other, are asked in one scrape.
_FOLLOW_TRIES = 3


class Vm:
    """The collector of one target. `collect` is called by one task at a time."""

    def __init__(
        self, target: Target, tally: CommandStats, storage: Storage, pace: LoopPacer | None = None
    ) -> None:
        self.target = target
        self._pace = pace or LoopPacer()
        self._session = Session(target.socket, tally, self._on_event, self._pace)
        self._watch = EventWatcher(self._session, self._look)
        #: What is remembered of the jobs.
        self.jobs = self._watch.jobs
        self._inquiry = Querier(target.vm, self._session)
        self._job_list = JobList(self._inquiry, self._watch)
        self._topology = TopologyCache(target.vm, target.settings, storage)
        self._exports = Exports(self._inquiry, target.settings)
        self._refresh = TopologyRefresh(
            target.vm, self._session, self._inquiry, self._topology, target.settings
        )
        #: The devices as query-block told of them, and what it told.
        self._devices: build.Devices | None = None
        self._devices_topology: build.Topology | None = None
        self._manager = ""
        #: That this QEMU has, none where that was not asked yet.
        self._commands: frozenset[str] = frozenset()
        self._last_seen: float | None = None
        self._was: str | None = "new"
        #: Socket and process that answered last.
        self._peer: tuple[SocketFile | None, int] = (None, 0)
        #: Whether this QEMU was seen to run.
        self._has_run = False
        self._connection_is_new()

    async def collect(self, timeout_seconds: float) -> VmState:
        """Ask everything that is due and return the VM as it is now, up or down."""
        started = time.monotonic()
        deadline = started + timeout_seconds
        try:
            # First of all: one that hangs may owe an answer that would be waited for.
            await self._leave_replaced()
            await self._watch.begin(timeout_seconds)
            snapshot = await self._ask_who_is_there(deadline)
        except TargetError as error:
            self._say(error.reason, str(error))
            snapshot = self.down(error.reason, time.monotonic() - started)
        else:
            self._say(None, "")
            self._last_seen = time.time()
            snapshot = msgspec.structs.replace(
                snapshot,
                duration_seconds=time.monotonic() - started,
                last_seen_timestamp_seconds=self._last_seen,
            )
        finally:
            await self._end()
        return snapshot

    def down(self, reason: str, duration_seconds: float) -> VmState:
        """Return the VM as one that does not answer."""
        return VmState(
            vm=self.target.vm,
            up=False,
            reason=reason,
            duration_seconds=duration_seconds,
            last_seen_timestamp_seconds=self._last_seen,
        )

    @property
    def is_refresh_due(self) -> bool:
        """Whether query-block is old enough to be asked again."""
        return self._topology.is_old

    async def look(self, timeout_seconds: float) -> VmState:
        """Ask as a scrape does, and query-block again; the connection is kept until `leave`.

        Raises:
            Replaced: the path leads to another VM than the one that was seen last.
            TargetError: the VM does not answer.
        """
        deadline, began = time.monotonic() + timeout_seconds, time.time()
        file, pid = self.peer
        self._session.check()
        self._topology.look_anew()
        await self._watch.begin(timeout_seconds)
        snapshot = await self._ask(deadline)
        self._session.check(must_exist=True)
        if (file or self.peer[0], pid or self.peer[1]) != self.peer:
            raise Replaced("another process has taken the path of its socket over")
        if not self._session.connected:
            raise ProtocolError("hung up before all was asked")
        is_due = self.target.settings.topology != "never"
        if not is_due:
            # Nothing was asked of the storage, and a command waits for it as query-block does.
            await self._topology.probe_storage(
                (), self._session.peer_pid, remaining_seconds(deadline)
            )
        error, responding = self._topology.storage_error, self._topology.responding
        if is_due and not error and snapshot.devices and (self._topology.timestamp or 0.0) < began:
            # Storage that had no time for us has none for QEMU either.
            responding = False
        return msgspec.structs.replace(
            snapshot,
            storage_responding=responding,
            storage_error=error,
            would_crash=self._topology.is_refused,
        )

    @property
    def image_files(self) -> Mapping[str, ImageFile]:
        """What is seen of each image file, by the path that QEMU tells."""
        return self._topology.image_files

    @property
    def open_identities(self) -> frozenset[tuple[int, ...]] | None:
        """Which files QEMU has open (`sight.Sight.identity`); None where that cannot be seen."""
        return self._topology.open_identities

    async def qemu(self, timeout_seconds: float) -> Qemu:
        """Return what this QEMU can do, and whether it is being migrated.

        Raises:
            TargetError: the VM does not answer.
        """
        new = () if self._commands else (queries.KNOWN_COMMANDS,)
        deadline = time.monotonic() + timeout_seconds
        answers = await self._session.ask(queries.MIGRATE, *new, timeout_seconds=timeout_seconds)
        if new:
            self._commands = frozenset(c.name for c in answers.get(queries.KNOWN_COMMANDS) or ())
        status = (answers.get(queries.MIGRATE) or schema.Migration()).status
        version = self._session.version
        waits = status == "completed" and not self._has_run and version < _ACTIVE_VERSION
        return Qemu(
            version,
            self._commands,
            self._session.peer_pid,
            status,
            may_be_inactive=waits and await self._activates_late(remaining_seconds(deadline)),
        )

    async def _activates_late(self, timeout_seconds: float) -> bool:
        asked = queries.MIGRATE_CAPABILITIES
        answers = await self._session.ask(asked, timeout_seconds=timeout_seconds)
        capabilities = answers.get(asked) or ()
        return any(each.capability == "late-block-activate" and each.state for each in capabilities)

    async def execute(self, command: Command, timeout_seconds: float) -> None:
        """Send a command that changes something; for `turn` alone. See `Session.execute`."""
        await self._session.execute(command, timeout_seconds)

    @property
    def peer(self) -> tuple[SocketFile | None, int]:
        """The socket that was connected to last, and its process."""
        return self._session.file, self._session.peer_pid

    async def leave(self) -> None:
        """End what `look` began."""
        # Until then what was begun with one VM is not gone on with at another.
        await self._leave_replaced()
        await self._end()

    async def _end(self) -> None:
        if self.target.settings.connection == "per-scrape":
            await self._session.leave()
        self._watch.end()

    async def close(self) -> None:
        """Leave the socket."""
        await self._watch.close()
        await self._session.close()

    async def _leave_replaced(self) -> None:
        """Drop what has to do with a socket that another one has taken the path from."""
        if self._session.replaced:
            log.log(
                # One that ended by itself is no news.
                logging.WARNING if self._session.open else logging.INFO,
                "another process has taken the path of the socket over",
                extra={
                    "vm": self.target.vm,
                    "socket": printable(self.target.socket),
                    "pid_before": self._session.peer_pid,
                },
            )
            await self._session.forget()

    def _connection_is_new(self) -> None:
        self._generation = self._session.generation
        self._name: str | None = None
        self._uuid = ""
        self._commands = frozenset()
        self._devices = None
        self._inquiry.connection_is_new()
        self._refresh.connection_is_new()
        self._exports.connection_is_new()
        self._job_list.connection_is_new()
        self._ask_nodes = self.target.settings.nodes

    async def _ask_who_is_there(self, deadline: float) -> VmState:
        """Ask the VM that the path leads to, when it is asked and when it has answered."""
        for _ in range(_FOLLOW_TRIES):
            try:
                snapshot = await self._ask(deadline)
                self._session.check()
            except TargetError as error:
                if not self._session.replaced or not remaining_seconds(deadline):
                    raise
                log.debug("asked anew", extra={"vm": self.target.vm, "err": str(error)})
                await self._leave_replaced()
            else:
                return snapshot
        raise Replaced("one process after the other takes the path over")

    async def _ask(self, deadline: float) -> VmState:
        answers = await self._first_answers(deadline)
        entries = self._refresh.entries(answers)
        walk = chains.walk(entries)
        block_jobs = answers.get(queries.BLOCK_JOBS) or []
        if self._refresh.matters(entries) and self._topology.is_due(walk.names):
            try:
                entries, block_jobs = await self._refresh.ask(
                    entries, walk.names, block_jobs, deadline
                )
            except TargetError as error:
                self._inquiry.say_failed(queries.BLOCK.name, error)
            walk = chains.walk(entries)
        devices, counters = self._count(entries, walk)
        if self._watch.events.find():
            graph = await self._inquiry.ask_optional(queries.GRAPH, deadline)
            self._watch.events.give_up(of_graph(graph, entries) if graph else Owners())
        nodes = None
        if self._ask_nodes or not entries:
            nodes = await self._inquiry.later(answers, queries.NODESTATS, deadline)
        self._ask_nodes = self.target.settings.nodes or not entries
        free_nodes: tuple[Node, ...] = ()
        if nodes:
            free_nodes, of_free = build.free_nodes(nodes, entries)
            counters = msgspec.structs.replace(counters, free_nodes=of_free)
        jobs = await self._job_list.take(answers, entries, block_jobs, devices, deadline)
        status = answers.get(queries.STATUS)
        self._has_run |= status is not None and status.running
        return VmState(
            vm=self.target.vm,
            up=True,
            topology_timestamp_seconds=self._topology.timestamp,
            storage_responding=self._topology.responding,
            storage_error=self._topology.storage_error,
            running=status.running if status else None,
            status=status.status if status else None,
            name=self._name or "",
            uuid=self._uuid,
            qemu_version=".".join(map(str, self._session.version)),
            manager=self._manager,
            socket=printable(self.target.socket),
            devices=devices,
            free_nodes=free_nodes,
            exports=self._exports.found,
            jobs=jobs,
            counters=counters,
            remembered=self._watch.records(jobs),
        )

    async def _look(self) -> None:
        """Ask, between two scrapes, for what may soon not be there any more."""
        if self._session.replaced or self._session.generation != self._generation:
            return  # the next scrape asks it first what it is
        deadline = time.monotonic() + self.target.settings.timeout_seconds
        self._watch.ask()
        answers = await self._inquiry.batch(self._job_list.of_look(), deadline)
        entries = self._refresh.entries(answers)
        known = self._devices
        if known is None or chains.walk(entries).names != known.names:
            known = build.devices(entries, None, self.target.settings.expected_depth)
        self._watch.know(entries, known.names)
        self._watch.events.find()
        block_jobs = answers.get(queries.BLOCK_JOBS) or []
        await self._job_list.take(answers, entries, block_jobs, known.found, deadline)

    def _count(
        self, entries: list[schema.BlockStats], walk: chains.Walk
    ) -> tuple[tuple[Device, ...], Counters]:
        """Return the devices; only their counters are new while query-block's answer is not."""
        topology = self._topology.current()
        known = self._devices
        if known is None or topology is not self._devices_topology or walk.names != known.names:
            known = build.devices(entries, topology, self.target.settings.expected_depth)
            self._devices, self._devices_topology = known, topology
            self._manager = build.manager(self._session.package, entries)
        self._watch.know(entries, known.names)
        return known.found, build.count(known, entries, walk, self._topology.files())

    async def _first_answers(self, deadline: float) -> PendingReplies:
        """Connect if need be and ask; a VM that hung up since the last scrape is tried again."""
        keep_waiting = self.target.settings.connection == "persistent"
        fresh = False
        while True:
            if not self._session.connected:
                fresh = True
                await self._pace.turn()
                await self._session.connect(remaining_seconds(deadline), keep_waiting=keep_waiting)
            if self._session.generation != self._generation:
                self._connection_is_new()
                if keep_waiting or self._peer != self.peer:
                    self._topology.forget(another=self._peer != self.peer)
                    self._watch.places = {}
                    self._has_run = False
                if not self._session.peer_pid or self._peer != self.peer:
                    self._refresh.corruption.forget()
                self._peer = self.peer
            self._watch.ask()
            safe: list[Query[Any]] = [queries.STATUS, self._inquiry.blockstats, queries.BLOCK_JOBS]
            try:
                answers = await self._inquiry.batch([*safe, *self._beside()], deadline)
            except ProtocolError:
                if fresh or self._session.connected:
                    raise
                continue
            if self._name is None:
                name = self._inquiry.optional(answers, queries.NAME)
                uuid = self._inquiry.optional(answers, queries.UUID)
                self._name, self._uuid = name.name if name else "", uuid.UUID if uuid else ""
            self._exports.take(answers)
            return answers

    def _beside(self) -> list[Query[Any]]:
        """Return what is asked for in one write with the safe set."""
        more: list[Query[Any]] = []
        if self._name is None:
            more += [queries.NAME, queries.UUID]
        more += self._job_list.beside()
        if self._ask_nodes:
            more.append(queries.NODESTATS)
        return more + self._exports.due()

    def _on_event(self, name: str, data: bytes) -> None:
        if self._session.replaced:
            return  # of another VM than the one that has this name by now
        self._topology.note(name)
        self._has_run |= name == "RESUME"
        self._exports.note(name)
        try:
            self._refresh.corruption.note(name, data)
            status = self._watch.take(name, data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            log.warning("event not understood", extra={"vm": self.target.vm, "event": name})
            return
        if status == "concluded":
            # A job that is no block job has no other event: it may have changed an image as well.
            self._topology.invalidate()

    def _say(self, reason: str | None, detail: str) -> None:
        """Log a change of state, once."""
        was, self._was = self._was, reason
        if reason == was:
            return
        about = {"vm": self.target.vm, "socket": printable(self.target.socket)}
        if reason:
            log.warning("vm is down", extra={**about, "reason": reason, "err": detail})
        else:
            log.info("vm is up", extra=about)
