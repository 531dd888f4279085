"""Many queries in one write, each answer of its own type.

Answers come in the order of the queries, so these carry no ids. virt-qemu-qmp-proxy of libvirt takes
no second query before it has answered the first, and so gets them one by one. Only what is on the
list of the caller is sent: queries, and for `Session.execute` alone the commands that change a VM.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from exporter.concurrency import LoopPacer
from exporter.errors import CommandRefused, ProtocolError, TargetError
from exporter.qmp import queries
from exporter.qmp.library import LineClient
from exporter.qmp.limits import SessionLimits
from exporter.qmp.queries import CommandError, Request

T = TypeVar("T")

#: How QEMU begins an answer that is not an error.
_ANSWER = b'{"return"'


@dataclass(slots=True)
class CommandStats:
    """What all sessions sent and were refused, since the start of the program."""

    commands: Counter[str] = field(default_factory=Counter)
    #: (command, error class) -> replies.
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)


class PendingReplies:
    """The answers to one batch of queries, each decoded when it is read."""

    def __init__(self, queries: Iterable[Request[Any]], hang_up: Callable[[], None]) -> None:
        """`hang_up` is called when an answer is not JSON: what follows it cannot be trusted."""
        self.queries = tuple(queries)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers: dict[Request[Any], object] = {}
        self._errors = 0
        self._hang_up = hang_up

    def get(self, query: Request[T]) -> T | None:
        """Return the answer to `query`, None where this QEMU does not know the command.

        Raises:
            ProtocolError: what came is not an answer, or QEMU refused the query.
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
        """Resume the waiter with the answers that have come."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: TargetError) -> None:
        """Raise an error in the waiter: no more answers will come."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # marked as retrieved: the waiter may have given up

    def _decoded(self, query: Request[Any], line: bytes) -> object:
        try:
            answer = query.decoder.decode(line).return_
        except (msgspec.ValidationError, RecursionError) as error:
            # Still one whole line: it costs this answer, not the session.
            return _not_understood(query, error)
        except (msgspec.DecodeError, UnicodeError):
            self._hang_up()
            return ProtocolError("sent something that is not JSON")
        return _not_understood(query, "not an answer") if answer is msgspec.UNSET else answer


class Client(LineClient):
    """One session: what is asked, in order, and what is answered."""

    def __init__(
        self,
        tally: CommandStats,
        on_event: Callable[[str, bytes], None],
        pace: LoopPacer,
        limits: SessionLimits,
    ) -> None:
        super().__init__()
        self._limits = limits
        self.awaited: deque[tuple[Request[Any], PendingReplies]] = deque()
        #: Whether to hang up when the last answer is there.
        self.leaving = False
        #: Whether a query may leave only when the one before it is answered.
        self.one_at_a_time = False
        self._unsent: deque[bytes] = deque()
        self._events = 0
        self._events_since = time.monotonic()
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
        self._events, self._events_since = 0, time.monotonic()
        wires = [query.wire for query in answers.queries]
        if self.one_at_a_time:
            self._unsent.extend(wires[1:])
            del wires[1:]
        self.send_line(b"".join(wires))

    def take_early_event(self) -> None:
        """Count it."""
        self._count_event()

    def note_negotiation(self) -> None:
        """Count qmp_capabilities."""
        self._tally.commands["qmp_capabilities"] += 1

    def ended(self, error: ProtocolError) -> None:
        """Let all who wait for answers have the error."""
        while self.awaited:
            self.awaited.popleft()[1].fail(error)

    def take_line(self, line: bytes) -> None:
        """Take an answer or an event."""
        query, answers = self.awaited[0] if self.awaited else (None, None)
        # Nearly all lines are answers, which wait undecoded for whoever asked.
        answer: object = line
        if query is None or not line.startswith(_ANSWER):
            answer = self._read(query, line)
            if answer is None:
                return
        if query is None or answers is None:
            raise ProtocolError("sent an answer that was not asked for")
        self.awaited.popleft()
        if isinstance(answer, CommandError):
            self._tally.errors[query.name, answer.known_class] += 1
        answers.put(query, answer)
        if answers.complete:
            self._pace.release(answers.done)
        if self.leaving and (self._unsent or not self.awaited):
            self.abort()
        elif self._unsent:
            self.send_line(self._unsent.popleft())

    def _read(self, query: Request[Any] | None, line: bytes) -> object:
        """Return what a line answers, None if it was an event."""
        try:
            message = queries.UNASKED.decode(line)
        except (msgspec.ValidationError, RecursionError) as error:
            return _not_understood(query, error)
        except (msgspec.DecodeError, UnicodeError):
            raise ProtocolError("sent something that is not JSON") from None
        if message.event:
            data = bytes(message.data)
            if data.startswith(b'"'):  # libvirt's proxy has the data as text in JSON
                data = msgspec.json.decode(data, type=str).encode()
            self._take_event(message.event, data)
            return None
        if message.error:
            return message.error
        if message.return_ is msgspec.UNSET:
            return _not_understood(query, "neither an answer nor an event")
        return line

    def _take_event(self, name: str, data: bytes) -> None:
        self._count_event()
        self._on_event(name, data)

    def _count_event(self) -> None:
        self._events += 1
        most, seconds = self._limits.events, self._limits.events_seconds
        if self._events > most:
            now = time.monotonic()
            if now - self._events_since < seconds:
                raise ProtocolError(f"sent {most} events within {seconds:g} s")
            self._events, self._events_since = 0, now


def _not_understood(query: Request[Any] | None, error: object) -> ProtocolError:
    return ProtocolError(f"answered {query.name if query else 'nothing'} badly: {error}")
