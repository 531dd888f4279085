"""One VM: its session, what is asked of it in a scrape, and what is kept until the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from exporter import chain as chains
from exporter import parse, qapi
from exporter.client import Answers, Tally
from exporter.commands import Command, Qemu
from exporter.discovery import Target, printable
from exporter.errors import ProtocolError, TargetError
from exporter.model import Counters, Device, Node, Snapshot
from exporter.pace import Pace
from exporter.qapi import Query
from exporter.qmp import Session
from exporter.storage import Storage
from exporter.topology import NodeNames, TopologyCache, agree, throttle_limits
from exporter.watch import DEVICES_LIMIT, Watch

log = logging.getLogger(__name__)
T = TypeVar("T")

#: The first QEMU whose query-block can leave the backing images out.
_FLAT_VERSION = (11, 1)
#: The first QEMU that counts I/O at the device and not at each node.
_DEVICE_COUNTERS = (2, 5)
#: How often a chain that two queries tell differently is asked for in one scrape.
_AGREE_TRIES = 2


class Vm:
    """The collector of one target. `collect` is called by one task at a time."""

    def __init__(
        self, target: Target, tally: Tally, storage: Storage, pace: Pace | None = None
    ) -> None:
        self.target = target
        self._tally = tally
        self._pace = pace or Pace()
        self._session = Session(target.socket, tally, self._on_event, self._pace)
        self._watch = Watch(self._session, target.settings.timeout_seconds)
        #: What is remembered of the jobs.
        self.jobs = self._watch.jobs
        self._topology = TopologyCache(target.vm, target.settings, storage)
        #: The devices as query-block told of them, and what it told.
        self._devices: parse.Devices | None = None
        self._devices_topology: parse.Topology | None = None
        self._manager = ""
        #: That this QEMU has, none where that was not asked yet.
        self._commands: frozenset[str] = frozenset()
        self._last_seen: float | None = None
        self._was: str | None = "new"
        self._peer_pid = 0
        self._connection_is_new()

    async def collect(self, timeout_seconds: float) -> Snapshot:
        """Ask everything that is due and return the VM as it is now, up or down."""
        started = time.monotonic()
        deadline = started + timeout_seconds
        try:
            await self._watch.begin(timeout_seconds)
            snapshot = await self._ask(deadline)
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
            await self.leave()
        return snapshot

    def down(self, reason: str, duration_seconds: float) -> Snapshot:
        """Return the VM as one that does not answer."""
        return Snapshot(
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

    async def look(self, timeout_seconds: float) -> Snapshot:
        """Ask as a scrape does, and query-block again; the connection is kept until `leave`.

        Raises:
            TargetError: the VM does not answer.
        """
        deadline, began = time.monotonic() + timeout_seconds, time.time()
        self._topology.outdate()
        await self._watch.begin(timeout_seconds)
        snapshot = await self._ask(deadline)
        if not self._session.connected:
            raise ProtocolError("hung up before all was asked")
        if self.target.settings.topology == "never":
            # Nothing was asked of the storage, and a command waits for it as query-block does.
            await self._topology.may_ask((), self._session.peer_pid, _left(deadline))
        elif snapshot.devices and (self._topology.timestamp or 0.0) < began:
            # Storage that had no time for us has none for QEMU either.
            return msgspec.structs.replace(snapshot, storage_responding=False)
        return msgspec.structs.replace(snapshot, storage_responding=self._topology.responding)

    async def qemu(self, timeout_seconds: float) -> Qemu:
        """Return what this QEMU can do, and whether it is being migrated.

        Raises:
            TargetError: the VM does not answer.
        """
        new = () if self._commands else (qapi.KNOWN_COMMANDS,)
        answers = await self._session.ask(qapi.MIGRATE, *new, timeout_seconds=timeout_seconds)
        if new:
            self._commands = frozenset(c.name for c in answers.get(qapi.KNOWN_COMMANDS) or ())
        status = (answers.get(qapi.MIGRATE) or qapi.Migration()).status
        return Qemu(self._session.version, self._commands, self._session.peer_pid, status)

    async def execute(self, command: Command, timeout_seconds: float) -> None:
        """Send a command that changes something; for `actions` alone. See `Session.execute`."""
        await self._session.execute(command, timeout_seconds)

    async def leave(self) -> None:
        """End what `look` began."""
        if self.target.settings.connection == "per-scrape":
            await self._session.leave()
        self._watch.end()

    async def close(self) -> None:
        """Leave the socket."""
        await self._watch.close()
        await self._session.close()

    def _connection_is_new(self) -> None:
        self._generation = self._session.generation
        self._name: str | None = None
        self._uuid = ""
        self._commands = frozenset()
        #: Queries that this QEMU does not know.
        self._unknown: set[Query[Any]] = set()
        #: Optional queries whose failure was logged.
        self._failed: set[str] = set()
        self._devices = None
        self._flat = True
        old = self._session.version < _DEVICE_COUNTERS
        self._blockstats = qapi.LAYERSTATS if old else qapi.BLOCKSTATS
        self._ask_jobs = True
        self._ask_nodes = self.target.settings.nodes

    async def _ask(self, deadline: float) -> Snapshot:
        answers = await self._first_answers(deadline)
        entries = self._entries(answers)
        walk = chains.walk(entries)
        block_jobs = answers.get(qapi.BLOCK_JOBS) or []
        if self._topology_matters(entries) and self._topology.is_due(walk.names):
            try:
                entries, block_jobs = await self._ask_topology(
                    entries, walk.names, block_jobs, deadline
                )
            except TargetError as error:
                self._say_failed(qapi.BLOCK.name, error)
            walk = chains.walk(entries)
        told = block_jobs
        if new := self._watch.unplaced(block_jobs):
            graph = await self._ask_optional(qapi.GRAPH, deadline)
            self._watch.place(new, graph, entries)
        block_jobs = self._watch.placed(block_jobs)
        nodes = await self._later(answers, qapi.NODESTATS, deadline, self._ask_nodes or not entries)
        self._ask_nodes = self.target.settings.nodes or not entries
        others = await self._other_jobs(answers, {job.device for job in told}, deadline)
        status = answers.get(qapi.STATUS)
        devices, counters = self._count(entries, walk)
        free_nodes: tuple[Node, ...] = ()
        if nodes:
            free_nodes, of_free = parse.free_nodes(nodes, entries)
            counters = msgspec.structs.replace(counters, free_nodes=of_free)
        jobs = parse.jobs(block_jobs, others or (), self._watch.places)
        readable = self._blockstats not in self._unknown
        self.jobs.poll(told, others, self._watch.places, devices, time.time(), readable=readable)
        return Snapshot(
            vm=self.target.vm,
            up=True,
            topology_timestamp_seconds=self._topology.timestamp,
            storage_responding=self._topology.responding,
            running=status.running if status else None,
            status=status.status if status else None,
            name=self._name or "",
            uuid=self._uuid,
            qemu_version=".".join(map(str, self._session.version)),
            manager=self._manager,
            socket=printable(self.target.socket),
            devices=devices,
            free_nodes=free_nodes,
            jobs=tuple(self.jobs.stamped(job) for job in jobs) if jobs else (),
            counters=counters,
            remembered=self._watch.records(),
        )

    def _count(
        self, entries: list[qapi.BlockStats], walk: chains.Walk
    ) -> tuple[tuple[Device, ...], Counters]:
        """Return the devices; only their counters are new while query-block's answer is not."""
        topology = self._topology.current()
        known = self._devices
        if known is None or topology is not self._devices_topology or walk.names != known.names:
            known = parse.devices(entries, topology, self.target.settings.expected_depth)
            self._devices, self._devices_topology = known, topology
            self._manager = parse.manager(self._session.package, entries)
        self._watch.devices = known.found
        return known.found, parse.count(known, entries, walk, self._topology.space())

    async def _first_answers(self, deadline: float) -> Answers:
        """Connect if need be and ask; a VM that hung up since the last scrape is tried again."""
        keep_waiting = self.target.settings.connection == "persistent"
        fresh = False
        while True:
            if not self._session.connected:
                fresh = True
                await self._pace.turn()
                await self._session.connect(_left(deadline), keep_waiting=keep_waiting)
            if self._session.generation != self._generation:
                self._connection_is_new()
                if keep_waiting or self._session.peer_pid != self._peer_pid:
                    self._topology.forget()
                    self._watch.places = {}
                self._peer_pid = self._session.peer_pid
            self._watch.follow()
            self.jobs.ask()
            safe: list[Query[Any]] = [qapi.STATUS, self._blockstats, qapi.BLOCK_JOBS]
            try:
                answers = await self._batch([*safe, *self._beside()], deadline)
            except ProtocolError:
                if fresh or self._session.connected:
                    raise
                continue
            if self._name is None:
                name = self._optional(answers, qapi.NAME)
                uuid = self._optional(answers, qapi.UUID)
                self._name, self._uuid = name.name if name else "", uuid.UUID if uuid else ""
            return answers

    def _beside(self) -> list[Query[Any]]:
        """Return what is asked for in one write with the safe set."""
        more: list[Query[Any]] = []
        if self._name is None:
            more += [qapi.NAME, qapi.UUID]
        if self._ask_jobs:
            more.append(qapi.JOBS)
        if self._ask_nodes:
            more.append(qapi.NODESTATS)
        return more

    async def _batch(self, queries: Sequence[Query[Any]], deadline: float) -> Answers:
        known = [query for query in queries if query not in self._unknown]
        answers = await self._session.ask(*known, timeout_seconds=_left(deadline))
        self._unknown |= answers.unknown()
        return answers

    async def _later(
        self, answers: Answers, query: Query[T], deadline: float, wanted: bool
    ) -> T | None:
        """Return the answer to a query that the first batch may have had already."""
        if not wanted:
            return None
        if query not in answers.queries:
            return await self._ask_optional(query, deadline)
        return self._optional(answers, query)

    async def _ask_optional(self, query: Query[T], deadline: float) -> T | None:
        """Ask what the VM is up without: its failure costs its own series."""
        try:
            return self._optional(await self._batch([query], deadline), query)
        except TargetError as error:
            self._say_failed(query.name, error)
            return None

    def _optional(self, answers: Answers, query: Query[T]) -> T | None:
        try:
            return answers.get(query)
        except ProtocolError as error:
            self._say_failed(query.name, error)
            return None

    def _say_failed(self, name: str, error: TargetError) -> None:
        if name not in self._failed:
            self._failed.add(name)
            log.warning("not answered", extra={"vm": self.target.vm, "err": str(error)})

    def _entries(self, answers: Answers) -> list[qapi.BlockStats]:
        if self._blockstats in self._unknown:
            return self._topology.entries()
        entries = answers.get(self._blockstats) or []
        if len(entries) > DEVICES_LIMIT:
            raise ProtocolError(f"has more than {DEVICES_LIMIT} devices")
        return entries

    def _topology_matters(self, entries: list[qapi.BlockStats]) -> bool:
        if qapi.BLOCK in self._unknown:
            return False
        return bool(entries) or self._blockstats in self._unknown

    async def _ask_topology(
        self,
        entries: list[qapi.BlockStats],
        names: NodeNames,
        block_jobs: list[qapi.BlockJob],
        deadline: float,
    ) -> tuple[list[qapi.BlockStats], list[qapi.BlockJob]]:
        """Ask query-block if the storage lets it, and return the chains and jobs as they are then."""
        process = self._session.peer_pid
        if not await self._topology.may_ask(names, process, _left(deadline)):
            return entries, block_jobs
        blocks = None
        if self._flat_will_do(names, block_jobs):
            answers = await self._batch([qapi.BLOCK_FLAT], deadline)
            if answers.refused(qapi.BLOCK_FLAT):
                self._flat = False
            elif (blocks := answers.get(qapi.BLOCK_FLAT)) is not None:
                self._topology.merge_flat(blocks)
        if blocks is None:
            blocks = (await self._batch([qapi.BLOCK], deadline)).get(qapi.BLOCK)
        agreed = blocks is not None and agree(blocks, entries)
        for _ in range(_AGREE_TRIES):
            if blocks is None or agreed:
                break
            again = await self._batch([self._blockstats, qapi.BLOCK, qapi.BLOCK_JOBS], deadline)
            entries, blocks = self._entries(again), again.get(qapi.BLOCK)
            block_jobs = again.get(qapi.BLOCK_JOBS) or []
            agreed = blocks is not None and agree(blocks, entries)
            names = chains.walk(entries).names
        if blocks is None:
            return entries, block_jobs
        if self._blockstats in self._unknown:
            entries = [chains.without_counters(info) for info in blocks]
            agreed, names = True, chains.walk(entries).names
        limits = await throttle_limits(
            blocks, self.target.settings, lambda queries: self._batch(queries, deadline)
        )
        await self._topology.put(blocks, names, limits, _left(deadline), agreed=agreed)
        return entries, block_jobs

    def _flat_will_do(self, names: NodeNames, block_jobs: list[qapi.BlockJob]) -> bool:
        # A job writes to layers that a flat answer leaves out, and a filter hides the active one.
        return (
            self._flat
            and self._session.version >= _FLAT_VERSION
            and not block_jobs
            and self._topology.known(names)
            and not self._topology.has_filters()
        )

    async def _other_jobs(
        self, answers: Answers, ids: set[str], deadline: float
    ) -> list[qapi.JobInfo] | None:
        """Return the jobs that are no block jobs (`ids`), None where there is no reason to ask."""
        wanted = self._ask_jobs or bool(self.jobs.named - ids)
        jobs = await self._later(answers, qapi.JOBS, deadline, wanted)
        self.jobs.named -= ids.union(job.id for job in jobs or ())
        others = None if jobs is None else parse.other_jobs(jobs, ids)
        self._ask_jobs = bool(others)
        return others

    def _on_event(self, name: str, data: bytes) -> None:
        self._topology.note(name)
        try:
            status = self._watch.take(name, data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            log.warning("event not understood", extra={"vm": self.target.vm, "event": name})
            return
        if status == "concluded":
            # A job that is no block job has no other event: it may have changed an image as well.
            self._topology.outdate()

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


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
