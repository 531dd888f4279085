"""One VM's QMP session, built on qemu.qmp: the only door to a monitor socket.

A session is read-only by construction: `ask` sends `queries` and nothing else, and `execute`,
which is for `admin.lease`, one of `commands`. Queries leave in one write and are answered in order, so
they carry no ids; an answer that comes after its asker has given up is dropped, and until then
nothing more is asked.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from exporter.concurrency import LoopPacer
from exporter.errors import (
    OutcomeUnknown,
    ProtocolError,
    Rejected,
    Replaced,
    TargetError,
    TargetTimeout,
    Unreachable,
)
from exporter.qmp import connections, peer, socket_file
from exporter.qmp.client import Client, CommandStats, PendingReplies
from exporter.qmp.commands import WRITE_COMMANDS, Command
from exporter.qmp.library import NotQmp
from exporter.qmp.limits import SessionLimits
from exporter.qmp.peer import Process
from exporter.qmp.queries import Query
from exporter.qmp.socket_file import SocketFile

#: No descriptor is left to this process, or to this host.
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})


class Session:
    """The connection to one monitor socket, made and kept as needed."""

    def __init__(
        self,
        path: str,
        tally: CommandStats,
        on_event: Callable[[str, bytes], None],
        pace: LoopPacer | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        """Connect to nothing yet. `on_event` gets each event's name and its data as JSON."""
        self.path = path
        #: (major, minor, micro) of the greeting.
        self.version: tuple[int, ...] = ()
        self.package = ""
        self._tally = tally
        self._on_event = on_event
        self._pace = pace or LoopPacer()
        self._limits = limits or SessionLimits()
        self._client: Client | None = None
        self._greeting: asyncio.Task[None] | None = None
        self._was_silent = False
        #: The socket that was connected to last, or tried.
        self.file: SocketFile | None = None
        #: The process at the other end, 0 where that cannot be seen.
        self.peer_pid = 0
        #: Our end of the connection that waits for its greeting, by its number.
        self._own = 0
        #: Whether what answered on this socket did not speak QMP.
        self._is_odd = False
        #: How many connections there were: another QEMU may be behind each.
        self.generation = 0

    @property
    def connected(self) -> bool:
        """Whether queries can be asked."""
        return self._client is not None and self._client.running

    @property
    def owes_answers(self) -> bool:
        """Whether an earlier query is still unanswered."""
        return self.connected and bool(self._client and self._client.awaited)

    @property
    def open(self) -> bool:
        """Whether there is a connection, greeted or not, that nobody has ended."""
        return self.connected or (self._greeting is not None and not self._greeting.done())

    @property
    def replaced(self) -> bool:
        """Whether the path leads to another socket than the one that was connected to last."""
        return socket_file.leads_elsewhere(self.path, self.file)

    @property
    def process(self) -> Process:
        """Who is at the other end; known before the first event of a connection comes."""
        return Process(self.peer_pid, *_greeted(self._client), self.file)

    def check(self, *, must_exist: bool = False) -> None:
        """See that the path leads to the socket that was connected to, or (else) at least to no other.

        Raises:
            Replaced: it does not.
        """
        if self.replaced:
            raise Replaced("another process has taken the path of its socket over")
        if must_exist and socket_file.look(self.path) is None:
            raise Replaced("its socket was removed: the path may lead to any other VM next")

    async def connect(self, timeout_seconds: float, *, keep_waiting: bool) -> None:
        """Connect and be greeted, if that has not happened yet.

        With `keep_waiting` a connection that is not greeted in time is kept: a later call costs
        nothing until the greeting comes. Without, it is dropped.

        Raises:
            Unreachable: it cannot be connected to, with the reason.
        """
        if self.connected:
            return
        if self._greeting is None or self._greeting.done():
            # What was waited for came and went again since the last scrape.
            await self.close()
            self._head_for(socket_file.look(self.path))
            if not keep_waiting and peer.is_stopped(self.peer_pid):
                # A connection that is dropped stays in its backlog, and keeps others out.
                raise Unreachable("stopped", "its process is stopped")
            await self._until_free(0.0 if keep_waiting else timeout_seconds)
            sock = await self._socket()
            self.generation += 1
            self._client = Client(self._tally, self._on_event, self._pace, self._limits)
            self._greeting = asyncio.create_task(self._greet(self._client, sock))
            await self._await_greeting(timeout_seconds, keep_waiting)
        if not self._greeting.done():
            error = self._silence()
            # To sit in the backlog of a monitor that another client uses is to take it over
            # when that client reconnects.
            if not keep_waiting or error.reason == "busy":
                await self.close()
            raise error
        greeting, self._greeting = self._greeting, None
        if greeting.exception() is not None:
            await self.close()
        greeting.result()

    async def ask(self, *queries: Query[Any], timeout_seconds: float) -> PendingReplies:
        """Ask all queries in one write and wait for all answers.

        Raises:
            Replaced: the path leads to another socket by now; the answers are dropped.
            TargetTimeout: not all came in time; the rest is dropped when it comes.
            ProtocolError: the VM hung up, or does not speak QMP.
        """
        client = self._client
        if client is None or not self.connected:
            raise ProtocolError("hung up")
        if client.awaited:
            raise self.overdue()
        answers = PendingReplies(queries, client.abort)
        if not queries:
            return answers
        client.ask(answers)
        complete = await _complete(answers, timeout_seconds)
        self.check()
        if not complete:
            raise self.overdue()
        return answers

    async def execute(self, command: Command, timeout_seconds: float) -> None:
        """Send one command that changes something, and wait for its answer.

        Raises:
            Replaced: the path does not lead to the VM that was connected to; nothing was sent.
            TargetError: it was not sent.
            Rejected: QEMU answered with an error.
            OutcomeUnknown: it was sent, or a part of it, and no answer came.
        """
        client = self._client
        if client is None or not self.connected:
            raise ProtocolError("hung up")
        if client.awaited:
            raise self.overdue()
        answers = PendingReplies((command,), client.abort)
        # Nothing may come between this look and the write.
        self.check(must_exist=True)
        client.ask(answers, WRITE_COMMANDS)
        try:
            if not await _complete(answers, timeout_seconds):
                raise OutcomeUnknown(f"no answer to {command.name} in time", late=True)
            error = answers.error(command)
            if error is None:
                answers.get(command)
        except TargetError as lost:
            raise OutcomeUnknown(f"no answer to {command.name}: the VM {lost}") from None
        if error is not None:
            raise Rejected(error.desc)

    def overdue(self) -> TargetTimeout:
        """Return the error for a VM that has a session and does not answer."""
        if peer.is_stopped(self.peer_pid):
            return TargetTimeout("its process is stopped", "stopped")
        waiting = self._client.awaited[0][0].name if self._client and self._client.awaited else ""
        return TargetTimeout(f"does not answer {waiting}")

    async def leave(self) -> None:
        """Drop the connection, or have it dropped as soon as the answers that it owes are there.

        Until then nothing more is asked: commands would pile up in a VM that hangs.
        """
        if self.owes_answers and self._client is not None:
            self._client.leaving = True
        else:
            await self.close()

    async def close(self) -> None:
        """Drop the connection, whatever its state."""
        greeting, self._greeting = self._greeting, None
        client, self._client = self._client, None
        if greeting is not None:
            greeting.cancel()
            await asyncio.wait((greeting,))
            if not greeting.cancelled():
                greeting.exception()
        if client is not None:
            await client.close()

    async def forget(self) -> None:
        """Drop the connection, and all that is known of the socket."""
        await self.close()
        self._head_for(None)

    def _head_for(self, file: SocketFile | None) -> None:
        """Forget what is known of a socket that had the path before."""
        if file != self.file:
            self.file = file
            self.peer_pid = 0
            self._was_silent = self._is_odd = False

    async def _greet(self, client: Client, sock: socket.socket) -> None:
        try:
            await client.greet(sock)
        except NotQmp:
            self._is_odd = True
            raise
        self.version, self.package = _greeted(client)
        if not self.version:
            self._is_odd = True
            raise ProtocolError("sent a greeting without a version")
        self._is_odd = False
        # So libvirt's proxy greets, and no QEMU: their packages say more than the version again.
        client.one_at_a_time = self.package == f"qemu-{'.'.join(map(str, self.version))}"

    async def _socket(self) -> socket.socket:
        sock = None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            self._head_for(socket_file.connect(sock, self.path))
            self.peer_pid = peer.pid(sock)
            self._own = os.fstat(sock.fileno()).st_ino
        except OSError as error:
            if sock is not None:
                sock.close()
            if isinstance(error, BlockingIOError):
                raise await self._queue_is_full() from None
            raise _refusal(error) from None
        return sock

    async def _queue_is_full(self) -> Unreachable:
        """Return why nobody is accepted any more."""
        listener = connections.listener(self.path, self.file)
        if not self.peer_pid and listener is not None:
            loop = asyncio.get_running_loop()
            self.peer_pid = await loop.run_in_executor(None, peer.holder, listener.inode)
        if peer.is_stopped(self.peer_pid):
            return Unreachable("stopped", "its process is stopped")
        if (
            listener is not None
            and not any(listener.waiting)
            and not connections.is_served(self.path, self.file)
        ):
            return Unreachable("greeting_timeout", "accepts nobody")
        return Unreachable("busy", "too many clients wait for this socket")

    async def _until_free(self, timeout_seconds: float) -> None:
        """Wait for another client to leave, without a word to QEMU.

        A client that connects meanwhile stays in QEMU's short backlog until then, even after
        leaving, and keeps others out of it.
        """
        deadline = time.monotonic() + min(timeout_seconds, self._limits.busy_patience_seconds)
        is_sure = False
        while connections.is_served(self.path, self.file):
            if peer.is_stopped(self.peer_pid):
                raise Unreachable("stopped", "its process is stopped")
            # What was looked up for another VM may be of before a client left: we, for one.
            if is_sure and time.monotonic() >= deadline:
                raise Unreachable("busy", "another client uses this socket")
            await asyncio.sleep(self._limits.busy_check_seconds)
            is_sure = True

    async def _await_greeting(self, timeout_seconds: float, keep_waiting: bool) -> None:
        assert self._greeting is not None
        patience = min(timeout_seconds, self._limits.greeting_patience_seconds)
        await asyncio.wait((self._greeting,), timeout=patience)
        # To connect to a large fleet takes longer: the greeting may lie there unread.
        await asyncio.sleep(0)
        if self._greeting.done():
            self._was_silent = False
            return
        rest = timeout_seconds - patience
        match self._silence().reason:
            case "stopped":
                rest = 0
            case "busy":
                # A tool that connects for each question is gone in a moment.
                rest = 0 if keep_waiting else min(rest, self._limits.busy_patience_seconds)
        if self._was_silent and not keep_waiting:
            rest = 0  # it cost an earlier scrape its time already
        await asyncio.wait((self._greeting,), timeout=rest)
        self._was_silent = not self._greeting.done()

    def _silence(self) -> TargetError:
        if peer.is_stopped(self.peer_pid):
            return Unreachable("stopped", "its process is stopped")
        if connections.has_another_client(self.path, self.file, self._own):
            return Unreachable("busy", "another client uses this socket")
        if self._is_odd:
            # It has not seen, or does not care, that its first client left.
            return ProtocolError("does not speak QMP")
        return Unreachable("greeting_timeout", "does not greet")


async def _complete(answers: PendingReplies, timeout_seconds: float) -> bool:
    """Wait for answers, and return whether all came in time."""
    # A timeout of asyncio's costs three times as much.
    alarm = asyncio.get_running_loop().call_later(timeout_seconds, answers.expire)
    try:
        await answers.done
    finally:
        alarm.cancel()
    return answers.complete


def _greeted(client: Client | None) -> tuple[tuple[int, ...], str]:
    """Return the version, empty where there is none, and the package of a greeting."""
    version = client.greeted_version if client else {}
    qemu: Any = version.get("qemu")
    try:
        numbers = tuple(int(qemu[part]) for part in ("major", "minor", "micro"))
    except (KeyError, TypeError, ValueError, OverflowError):
        numbers = ()
    return numbers, str(version.get("package", ""))


def _refusal(error: OSError) -> Unreachable:
    text = (os.strerror(error.errno) if error.errno else str(error)).lower()
    if error.errno in _NO_DESCRIPTOR:
        return Unreachable("internal", f"no descriptor left: {text}")
    if isinstance(error, PermissionError):
        return Unreachable("permission", f"cannot be opened: {text}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return Unreachable("no_socket", f"is not there: {text}")
    return Unreachable("refused", f"nobody listens: {text}")
