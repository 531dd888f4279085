"""One VM: its session, what is asked of it in a scrape, and what is kept until the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from exporter.collect.connection import Connection
from exporter.collect.discovery import Target, printable
from exporter.collect.event_watcher import LOOKS_LIMIT, EventWatcher
from exporter.collect.querier import remaining_seconds
from exporter.collect.topology_cache import TopologyCache
from exporter.collect.topology_refresh import TopologyRefresh
from exporter.concurrency import LoopPacer
from exporter.errors import ProtocolError, Replaced, TargetError
from exporter.jobs import Replies, VmMemory
from exporter.model import ImageFile, Owners, VmState, of_graph
from exporter.model import chain as chains
from exporter.qmp import (
    Command,
    CommandStats,
    PendingReplies,
    Qemu,
    Query,
    Session,
    SessionLimits,
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
        self,
        target: Target,
        tally: CommandStats,
        storage: Storage,
        pace: LoopPacer | None = None,
        *,
        limits: SessionLimits | None = None,
        looks_limit: int = LOOKS_LIMIT,
    ) -> None:
        """Connect to nothing yet. `looks_limit` is how many looks are taken between two scrapes."""
        self.target = target
        self._pace = pace or LoopPacer()
        self._session = Session(target.socket, tally, self._on_event, self._pace, limits)
        self._memory = VmMemory()
        #: What is remembered of the jobs.
        self.jobs = self._memory.jobs
        self._watch = EventWatcher(self._session, self.jobs, self._look, looks_limit)
        self._topology = TopologyCache(target.vm, target.settings, storage)
        self._refresh = TopologyRefresh(target.vm, self._session, self._topology, target.settings)
        self._connection = Connection(target, self._session, self._memory)
        self._last_seen: float | None = None
        #: Why the VM was down when it was last asked, None where it was up, empty before that.
        self._reason: str | None = ""

    async def collect(self, timeout_seconds: float) -> VmState:
        """Ask everything that is due and return the VM as it is now, up or down."""
        started = time.monotonic()
        deadline = started + timeout_seconds
        try:
            # First of all: one that hangs may owe an answer that would be waited for.
            await self._leave_replaced()
            await self._watch.begin(timeout_seconds)
            replies = await self._gather_from_present(deadline)
            snapshot = self._connection.assembler.assemble(replies, time.time())
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
        replies = await self._gather(deadline)
        snapshot = self._connection.assembler.assemble(replies, time.time())
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
        """Which files QEMU has open (`storage.FileStat.identity`); None where that cannot be seen."""
        return self._topology.open_identities

    async def qemu(self, timeout_seconds: float) -> Qemu:
        """Return what this QEMU can do, and whether it is being migrated.

        Raises:
            TargetError: the VM does not answer.
        """
        connection = self._connection
        new = () if connection.commands else (queries.KNOWN_COMMANDS,)
        deadline = time.monotonic() + timeout_seconds
        answers = await self._session.ask(queries.MIGRATE, *new, timeout_seconds=timeout_seconds)
        if new:
            known = answers.get(queries.KNOWN_COMMANDS) or ()
            connection.commands = frozenset(command.name for command in known)
        status = (answers.get(queries.MIGRATE) or schema.Migration()).status
        version = self._session.version
        waits = status == "completed" and not connection.has_run and version < _ACTIVE_VERSION
        return Qemu(
            version,
            connection.commands,
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
        """Send a command that changes something; for `admin.lease` only. See `Session.execute`."""
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

    def _follow(self) -> Connection:
        """Return what belongs to the present connection; a new one replaces the one before."""
        if self._session.generation != self._connection.generation:
            connection = Connection(self.target, self._session, self._memory, self._connection)
            self._connection = connection
            self._memory.connected(self._session.process, time.time())
            if not connection.resumes:
                self._topology.forget(another=not connection.same_peer)
        return self._connection

    async def _gather_from_present(self, deadline: float) -> Replies:
        """Ask the VM that the path leads to, both when it is asked and when it has answered."""
        for _ in range(_FOLLOW_TRIES):
            try:
                replies = await self._gather(deadline)
                self._session.check()
            except TargetError as error:
                if not self._session.replaced or not remaining_seconds(deadline):
                    raise
                log.debug("asked anew", extra={"vm": self.target.vm, "err": str(error)})
                await self._leave_replaced()
            else:
                return replies
        raise Replaced("one process after the other takes the path over")

    async def _gather(self, deadline: float) -> Replies:
        """Ask all that is due."""
        connection, answers = await self._first_answers(deadline)
        querier = connection.querier
        entries = self._refresh.entries(connection, answers)
        walk = chains.walk(entries)
        block_jobs = answers.get(queries.BLOCK_JOBS) or []
        if self._refresh.matters(connection, entries) and self._topology.is_due(walk.names):
            try:
                entries, block_jobs = await self._refresh.ask(
                    connection, entries, walk.names, block_jobs, deadline
                )
            except TargetError as error:
                querier.say_failed(queries.BLOCK.name, error)
            walk = chains.walk(entries)
        # What is known now: it must not become too old while the rest is asked for.
        topology, files = self._topology.current(), self._topology.files()
        self._memory.know(entries, walk.names)
        if self._memory.events.find():
            graph = await querier.ask_optional(queries.GRAPH, deadline)
            self._memory.events.give_up(of_graph(graph, entries) if graph else Owners())
        nodes = None
        if connection.ask_nodes or not entries:
            nodes = await querier.later(answers, queries.NODESTATS, deadline)
        connection.ask_nodes = self.target.settings.nodes or not entries
        jobs = await connection.job_list.ask(answers, block_jobs, deadline)
        status = answers.get(queries.STATUS)
        connection.has_run |= status is not None and status.running
        return Replies(
            entries=entries,
            walk=walk,
            jobs=jobs,
            status=status,
            name=connection.name or "",
            uuid=connection.uuid,
            nodes=nodes,
            exports=connection.exports.found,
            topology=topology,
            topology_timestamp_seconds=self._topology.timestamp,
            files=files,
            storage_responding=self._topology.responding,
            storage_error=self._topology.storage_error,
        )

    async def _look(self) -> None:
        """Ask, between two scrapes, for what may soon not be there any more."""
        connection = self._connection
        if (
            self._session.replaced
            or self._session.generation != connection.generation
            or not connection.used
        ):
            return  # the next scrape asks it first what it is
        deadline = time.monotonic() + self.target.settings.timeout_seconds
        self._memory.ask()
        began = self.jobs.round
        asked = connection.job_list.between_scrapes()
        answers = await connection.querier.batch(asked, deadline)
        entries = self._refresh.entries(connection, answers)
        walk = chains.walk(entries)
        self._memory.know(entries, walk.names)
        self._memory.events.find()
        block_jobs = answers.get(queries.BLOCK_JOBS) or []
        replies = await connection.job_list.ask(answers, block_jobs, deadline)
        # Else a scrape did not wait for it, and knows better.
        if self.jobs.round == began:
            connection.assembler.track(replies, entries, walk, time.time())

    async def _first_answers(self, deadline: float) -> tuple[Connection, PendingReplies]:
        """Connect if need be and ask; a VM that hung up since the last scrape is tried again."""
        keep_waiting = self.target.settings.connection == "persistent"
        fresh = False
        while True:
            if not self._session.connected:
                fresh = True
                await self._pace.turn()
                await self._session.connect(remaining_seconds(deadline), keep_waiting=keep_waiting)
            connection = self._follow()
            connection.used = True
            self._memory.ask()
            try:
                answers = await connection.querier.batch(_first_queries(connection), deadline)
            except ProtocolError:
                if fresh or self._session.connected:
                    raise
                continue
            if connection.name is None:
                name = connection.querier.optional(answers, queries.NAME)
                uuid = connection.querier.optional(answers, queries.UUID)
                connection.name = name.name if name else ""
                connection.uuid = uuid.UUID if uuid else ""
            connection.exports.take(answers)
            return connection, answers

    def _on_event(self, name: str, data: bytes) -> None:
        if self._session.replaced:
            return  # of another VM than the one that has this name by now
        connection = self._follow()
        self._topology.note(name)
        connection.has_run |= name == "RESUME"
        connection.exports.note(name)
        try:
            connection.corruption.note(name, data)
            job_id, status = self._memory.take(name, data, time.time())
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            log.warning("event not understood", extra={"vm": self.target.vm, "event": name})
            return
        if status == "created":
            connection.places.forget(job_id)
        elif status == "concluded":
            # A job that is not a block job has no other event, and may have changed an image.
            self._topology.invalidate()
        self._watch.happened()

    def _say(self, reason: str | None, detail: str) -> None:
        """Log a change of state, once."""
        was, self._reason = self._reason, reason
        if reason == was:
            return
        about = {"vm": self.target.vm, "socket": printable(self.target.socket)}
        if reason:
            log.warning("vm is down", extra={**about, "reason": reason, "err": detail})
        else:
            log.info("vm is up", extra=about)


def _first_queries(connection: Connection) -> list[Query[Any]]:
    """Return what a scrape asks in its first write: the safe set, and what is due beside it."""
    asked: list[Query[Any]] = [queries.STATUS, connection.querier.blockstats, queries.BLOCK_JOBS]
    if connection.name is None:
        asked += [queries.NAME, queries.UUID]
    asked += connection.job_list.beside()
    if connection.ask_nodes:
        asked.append(queries.NODESTATS)
    return asked + connection.exports.due()
