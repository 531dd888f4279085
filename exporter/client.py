"""qemu.qmp without its cost per message: many queries in one write, each answer of its own type.

Answers come in the order of the queries, so these carry no ids. Nothing but queries is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from qemu.qmp import Message, QMPClient

from exporter import qapi
from exporter.errors import CommandRefused, ProtocolError, TargetError
from exporter.qapi import CommandError, Query

T = TypeVar("T")

#: The longest reply that is read.
REPLY_LIMIT_BYTES = 16 * 1024 * 1024
#: A VM that sends more between two scrapes would keep this process busy with nothing else.
EVENTS_LIMIT = 100_000

# The library logs whole messages, with the secrets in them; what went wrong is said here.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


@dataclass(slots=True)
class Tally:
    """What all sessions sent and were refused, since the start of the program."""

    commands: Counter[str] = field(default_factory=Counter)
    #: (command, error class) -> replies.
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)


class Answers:
    """The answers to one batch of queries."""

    def __init__(self, queries: Iterable[Query[Any]]) -> None:
        self.queries = tuple(queries)
        self._answers: dict[Query[Any], object] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def get(self, query: Query[T]) -> T | None:
        """Return the answer to `query`, None where this QEMU does not know the command.

        Raises:
            ProtocolError: the answer is no answer, or QEMU refused the query.
        """
        answer: Any = self._answers.get(query)
        if answer is None:
            return None  # known to be unknown, and not asked
        if isinstance(answer, ProtocolError):
            raise answer
        if not isinstance(answer, CommandError):
            return answer  # type: ignore[no-any-return]
        if answer.unknown_command:
            return None
        raise ProtocolError(f"{query.name} was refused with {answer.known_class}")

    def refused(self, query: Query[Any]) -> bool:
        """Whether QEMU answered `query` with an error."""
        return isinstance(self._answers.get(query), CommandError)

    def unknown(self) -> set[Query[Any]]:
        """Return the queries that this QEMU does not know."""
        return {
            query
            for query, answer in self._answers.items()
            if isinstance(answer, CommandError) and answer.unknown_command
        }

    def put(self, query: Query[Any], answer: object) -> None:
        self._answers[query] = answer
        if len(self._answers) == len(self.queries) and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: TargetError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever asked may have given up: that is no news then


class Client(QMPClient):
    """qemu.qmp without its per-message debug log, decoding each answer into its own type."""

    def __init__(self, tally: Tally, on_event: Callable[[str, bytes], None]) -> None:
        super().__init__(readbuflen=REPLY_LIMIT_BYTES)
        self.awaited: deque[tuple[Query[Any], Answers]] = deque()
        #: Whether to hang up when the last answer is there.
        self.leaving = False
        self._events = 0
        #: Why the connection was given up, where it was not the VM that closed it.
        self.fault: ProtocolError | None = None
        self._tally = tally
        self._on_event = on_event

    def ask(self, answers: Answers) -> None:
        for query in answers.queries:
            if query.name not in qapi.COMMANDS:
                raise CommandRefused(f"{query.name} is not a query of this program")
        for query in answers.queries:
            self._tally.commands[query.name] += 1
            self.awaited.append((query, answers))
        self._events = 0
        self._do_send(Message(b"".join(query.wire for query in answers.queries), eager=False))

    def abort(self) -> None:
        """Drop the connection without flushing: a stopped QEMU takes nothing any more."""
        if self._writer is not None:
            self._writer.transport.abort()

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        # What the library itself sends passes here; batches of queries do not.
        if msg.get("execute") != "qmp_capabilities":
            raise CommandRefused("only queries may be sent in a session")
        self._tally.commands["qmp_capabilities"] += 1
        return msg

    async def _do_recv(self) -> Message:
        try:
            line = await self._readline()
        except ValueError:
            self.fault = ProtocolError(f"sent a line of more than {REPLY_LIMIT_BYTES} bytes")
            raise self.fault from None
        if not line.endswith(b"\n"):
            raise EOFError
        # Kept as bytes: `_on_message` knows which type they are to be.
        return Message(line, eager=False)

    async def _on_message(self, msg: Message) -> None:
        line = bytes(msg)
        query, answers = self.awaited[0] if self.awaited else (None, None)
        decoder: Any = query.decoder if query else qapi.UNASKED
        answer: object
        try:
            message = decoder.decode(line)
        except (msgspec.ValidationError, RecursionError) as error:
            # Still one whole line: it costs this answer, not the session.
            message, answer = None, _not_understood(query, error)
        except (msgspec.DecodeError, UnicodeError):
            self.fault = ProtocolError("sent what is no JSON")
            raise self.fault from None
        if message is not None:
            if message.event:
                self._take_event(message.event, bytes(message.data))
                return
            answer = message.error or message.return_
            if answer is msgspec.UNSET:
                answer = _not_understood(query, "it is neither an answer nor an event")
        if query is None or answers is None:
            self.fault = ProtocolError("said something that nobody asked for")
            raise self.fault
        self.awaited.popleft()
        if isinstance(answer, CommandError):
            self._tally.errors[query.name, answer.known_class] += 1
        answers.put(query, answer)
        if self.leaving and not self.awaited:
            self.abort()

    def _take_event(self, name: str, data: bytes) -> None:
        self._events += 1
        if self._events > EVENTS_LIMIT:
            self.fault = ProtocolError(f"sent more than {EVENTS_LIMIT} events between two scrapes")
            raise self.fault
        self._on_event(name, data)

    async def _bh_disconnect(self) -> None:
        try:
            await super()._bh_disconnect()
        finally:
            error = self.fault or ProtocolError("hung up before it answered")
            while self.awaited:
                self.awaited.popleft()[1].fail(error)


def _not_understood(query: Query[Any] | None, error: object) -> ProtocolError:
    return ProtocolError(f"answered {query.name if query else 'nothing'} badly: {error}")
