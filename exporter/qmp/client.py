"""qemu.qmp without its cost per message: many queries in one write, each answer of its own type.

virt-qemu-qmp-proxy of libvirt takes no second query before it has answered the first: it gets them
one by one. Answers come in the order of the queries, so these carry no ids. Only what is on the list
of the caller is sent: queries, and the commands that change a VM for `Session.execute` alone. The
library connects, greets, negotiates and ends a session; in between its reader waits, for what it
would do for each message costs five times what decoding the message does (bench/README.md).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import msgspec
from qemu.qmp import Message, QMPClient, Runstate

from exporter.concurrency import LoopPacer
from exporter.errors import CommandRefused, ProtocolError, TargetError
from exporter.qmp import queries
from exporter.qmp.line_protocol import LINE_LIMIT_BYTES, LineProtocol
from exporter.qmp.queries import CommandError, Request

T = TypeVar("T")

#: How QEMU begins an answer that is no error.
_ANSWER = b'{"return"'
#: How an event begins: one of libvirt's proxy, one of QEMU.
_EVENTS = (b'{"event"', b'{"timestamp"')
#: A VM that sends so many so fast would keep this process busy with nothing else. A job that retries
#: for ever makes QEMU send some 7,000 a second, which are read however long the next scrape takes.
EVENTS_LIMIT = 100_000
EVENTS_SECONDS = 5.0

# The library logs whole messages, with the secrets in them; what went wrong is said here.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


@dataclass(slots=True)
class CommandStats:
    """What all sessions sent and were refused, since the start of the program."""

    commands: Counter[str] = field(default_factory=Counter)
    #: (command, error class) -> replies.
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)


class PendingReplies:
    """The answers to one batch of queries, each decoded when it is read."""

    def __init__(self, queries: Iterable[Request[Any]]) -> None:
        self.queries = tuple(queries)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers: dict[Request[Any], object] = {}
        self._errors = 0
        #: Called when an answer turns out to be no JSON: what follows it cannot be trusted.
        self.hang_up: Callable[[], None] = lambda: None

    def get(self, query: Request[T]) -> T | None:
        """Return the answer to `query`, None where this QEMU does not know the command.

        Raises:
            ProtocolError: the answer is no answer, or QEMU refused the query.
        """
        answer: Any = self._answers.get(query)
        if type(answer) is bytes:
            answer = self._answers[query] = self._decoded(query, answer)
        if answer is None:
            return None  # known to be unknown, and not asked
        if isinstance(answer, ProtocolError):
            raise answer
        if not isinstance(answer, CommandError):
            return answer  # type: ignore[no-any-return]
        if answer.unknown_command:
            return None
        raise ProtocolError(f"{query.name} was refused with {answer.known_class}")

    def error(self, query: Request[Any]) -> CommandError | None:
        """Return the error that QEMU answered `query` with, if it did."""
        answer = self._answers.get(query)
        return answer if isinstance(answer, CommandError) else None

    def refused(self, query: Request[Any]) -> bool:
        """Whether QEMU answered `query` with an error."""
        return self.error(query) is not None

    def unknown(self) -> set[Request[Any]]:
        """Return the queries that this QEMU does not know."""
        if not self._errors:
            return set()
        return {
            query
            for query, answer in self._answers.items()
            if isinstance(answer, CommandError) and answer.unknown_command
        }

    @property
    def complete(self) -> bool:
        """Whether every answer has come."""
        return len(self._answers) == len(self.queries)

    def put(self, query: Request[Any], answer: object) -> None:
        """Take an answer, or the line that it is in."""
        self._errors += type(answer) is CommandError
        self._answers[query] = answer

    def expire(self) -> None:
        """Let whoever waits go on with what there is."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: TargetError) -> None:
        """Let whoever waits have an error: no more answers will come."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever asked may have given up: that is no news then

    def _decoded(self, query: Request[Any], line: bytes) -> object:
        try:
            answer = query.decoder.decode(line).return_
        except (msgspec.ValidationError, RecursionError) as error:
            # Still one whole line: it costs this answer, not the session.
            return _not_understood(query, error)
        except (msgspec.DecodeError, UnicodeError):
            self.hang_up()
            return ProtocolError("sent what is no JSON")
        return _not_understood(query, "it is no answer") if answer is msgspec.UNSET else answer


class Client(QMPClient):
    """qemu.qmp for greeting, negotiation and end; between them lines come past its streams."""

    def __init__(
        self, tally: CommandStats, on_event: Callable[[str, bytes], None], pace: LoopPacer
    ) -> None:
        super().__init__(readbuflen=LINE_LIMIT_BYTES)
        self.awaited: deque[tuple[Request[Any], PendingReplies]] = deque()
        #: Whether to hang up when the last answer is there.
        self.leaving = False
        #: Whether a query may leave only when the one before it is answered.
        self.one_at_a_time = False
        self._unsent: deque[bytes] = deque()
        self._events = 0
        self._events_since = time.monotonic()
        #: Why the connection was given up, where it was not the VM that closed it.
        self.fault: ProtocolError | None = None
        self._tally = tally
        self._on_event = on_event
        self._pace = pace

    def ask(self, answers: PendingReplies, allowed: Container[str] = queries.READ_COMMANDS) -> None:
        """Send the queries in one write, or each after the other where it has to be so."""
        for query in answers.queries:
            if query.name not in allowed:
                raise CommandRefused(f"{query.name} may not be sent here")
        for query in answers.queries:
            self._tally.commands[query.name] += 1
            self.awaited.append((query, answers))
        answers.hang_up = self.abort
        self._events, self._events_since = 0, time.monotonic()
        wires = [query.wire for query in answers.queries]
        if self.one_at_a_time:
            self._unsent.extend(wires[1:])
            del wires[1:]
        self._do_send(Message(b"".join(wires), eager=False))

    def abort(self) -> None:
        """Drop the connection without flushing: a stopped QEMU takes nothing any more."""
        if self._writer is not None:
            self._writer.transport.abort()

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        # What the library itself sends passes here; batches of queries do not.
        if msg.get("execute") != "qmp_capabilities":
            raise CommandRefused("the library may send qmp_capabilities alone")
        self._tally.commands["qmp_capabilities"] += 1
        return msg

    async def _do_recv(self) -> Message:
        if self.runstate is Runstate.RUNNING:
            await self._take_over()
        try:
            # libvirt's proxy tells a client of what came before it, and that before the greeting;
            # a QEMU that is just starting may as well. [monitor_qapi_event_emit]
            while (line := await self._readline()).startswith(_EVENTS):
                self._count_event()
        except ValueError:
            self.fault = ProtocolError(f"sent a line of more than {LINE_LIMIT_BYTES} bytes")
            raise self.fault from None
        if not line.endswith(b"\n"):
            raise EOFError
        return Message(line, eager=False)

    async def _take_over(self) -> NoReturn:
        """Read past the library's stream for the rest of the session."""
        assert self._writer is not None
        assert self._reader is not None
        lines = LineProtocol(self._take, self._writer.transport)
        try:
            await lines.take_over(self._reader)
            await lines.ended
        except ProtocolError as error:
            self.fault = error
            raise
        raise EOFError

    def _take(self, line: bytes) -> None:
        query, answers = self.awaited[0] if self.awaited else (None, None)
        # Nearly all lines are answers, which wait undecoded for whoever asked.
        answer: object = line
        if query is None or not line.startswith(_ANSWER):
            answer = self._read(query, line)
            if answer is None:
                return
        if query is None or answers is None:
            raise ProtocolError("said something that nobody asked for")
        self.awaited.popleft()
        if isinstance(answer, CommandError):
            self._tally.errors[query.name, answer.known_class] += 1
        answers.put(query, answer)
        if answers.complete:
            self._pace.release(answers.done)
        if self.leaving and (self._unsent or not self.awaited):
            self.abort()
        elif self._unsent:
            self._do_send(Message(self._unsent.popleft(), eager=False))

    def _read(self, query: Request[Any] | None, line: bytes) -> object:
        """Return what a line answers, None if it was an event."""
        try:
            message = queries.UNASKED.decode(line)
        except (msgspec.ValidationError, RecursionError) as error:
            return _not_understood(query, error)
        except (msgspec.DecodeError, UnicodeError):
            raise ProtocolError("sent what is no JSON") from None
        if message.event:
            data = bytes(message.data)
            if data.startswith(b'"'):  # libvirt's proxy has the data as text in JSON
                data = msgspec.json.decode(data, type=str).encode()
            self._take_event(message.event, data)
            return None
        if message.error:
            return message.error
        if message.return_ is msgspec.UNSET:
            return _not_understood(query, "it is neither an answer nor an event")
        return line

    def _take_event(self, name: str, data: bytes) -> None:
        self._count_event()
        self._on_event(name, data)

    def _count_event(self) -> None:
        self._events += 1
        if self._events > EVENTS_LIMIT:
            now = time.monotonic()
            if now - self._events_since < EVENTS_SECONDS:
                raise ProtocolError(f"sent {EVENTS_LIMIT} events within {EVENTS_SECONDS:g} s")
            self._events, self._events_since = 0, now

    async def _wait_disconnect(self) -> None:
        # The library leaves its tasks' exception to nobody where the one that waits is cancelled,
        # and asyncio then logs it as an error: of a VM that only went away.
        waiting = asyncio.ensure_future(super()._wait_disconnect())
        waiting.add_done_callback(_read)
        await asyncio.shield(waiting)

    async def _bh_disconnect(self) -> None:
        try:
            await super()._bh_disconnect()
        finally:
            error = self.fault or ProtocolError("hung up before it answered")
            while self.awaited:
                self.awaited.popleft()[1].fail(error)


def _read(ended: asyncio.Future[None]) -> None:
    if not ended.cancelled():
        ended.exception()


def _not_understood(query: Request[Any] | None, error: object) -> ProtocolError:
    return ProtocolError(f"answered {query.name if query else 'nothing'} badly: {error}")
