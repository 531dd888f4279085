"""A QMP server for faults and for replay: it greets, answers from a table, and misbehaves on order.

It is asyncio and lives in the test's own loop. Real QEMU is in `tests/e2e`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from exporter.qmp.commands import WRITE_COMMANDS

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "fake"},
        "capabilities": ["oob"],
    }
}
#: A reply object, or raw bytes to send as they are.
Answer = Mapping[str, Any] | bytes
#: An answer, or a function of the arguments that returns one.
Reply = Answer | Callable[[Mapping[str, Any]], Answer]

SAFE_SET: Mapping[str, Reply] = {
    "query-status": {"return": {"running": True, "status": "running"}},
    "query-blockstats": {"return": []},
    "query-block-jobs": {"return": []},
    "query-block": {"return": []},
    "query-jobs": {"return": []},
    "query-name": {"return": {"name": "fake"}},
    "query-uuid": {"return": {"UUID": "00000000-0000-0000-0000-000000000000"}},
}


async def until(condition: Callable[[], object]) -> None:
    """Wait for what comes by itself."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def dying(fake: FakeQmp, *, first: Callable[[], object] = lambda: None) -> Reply:
    """Return what a VM that hangs up answers: nothing. `first` is done before."""

    def die(_: Mapping[str, Any]) -> bytes:
        first()
        fake.hang_up()
        return b""

    return die


def speak(fake: FakeQmp, *version: int) -> None:
    """Have a VM greet as this QEMU, and take the commands that it has to change something."""
    verbs = ["cancel", "set-speed"]
    verbs += ["complete", "pause", "resume"] if version < (11,) else []
    verbs += ["finalize", "dismiss"] if (2, 12) <= version < (11,) else []
    names = ["block-commit", "blockdev-snapshot-sync", *(f"block-job-{verb}" for verb in verbs)]
    if version >= (3, 0):
        names += [f"job-{verb}" for verb in ("complete", "pause", "resume", "finalize", "dismiss")]
        names += ["block-latency-histogram-set"]
    qemu = dict(zip(("major", "minor", "micro"), (*version, 0, 0), strict=False))
    fake.greeting = {"QMP": {**GREETING["QMP"], "version": {"qemu": qemu, "package": ""}}}
    for name in WRITE_COMMANDS:
        fake.replies.pop(name, None)
    fake.replies |= {name: {"return": {}} for name in names}
    known = [{"name": name} for name in [*fake.replies, "query-commands"]]
    fake.replies["query-commands"] = {"return": known}


class FakeQmp:
    """One monitor socket. Like QEMU it serves one client at a time, the next wait ungreeted."""

    def __init__(self, path: str, replies: Mapping[str, Reply] | None = None) -> None:
        self.path = path
        self.greeting: Mapping[str, Any] | bytes | None = GREETING
        #: Answers by command; what is not here is CommandNotFound.
        self.replies = dict(SAFE_SET if replies is None else replies)
        #: Commands that were received, in order, with their arguments.
        self.received: list[tuple[str, Mapping[str, Any]]] = []
        #: Cleared: answers are held back, as by a main loop that hangs.
        self.answering = asyncio.Event()
        self.answering.set()
        #: How many bytes are written at once; 0 for all.
        self.piece_bytes = 0
        #: After how many bytes of a connection it is closed; None for never.
        self.close_after_bytes: int | None = None
        self.connections = 0
        self._sent_bytes = 0
        self._serving = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> FakeQmp:
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        # Its file stays when it is closed, like that of a QEMU that died: start_unix_server would
        # remove it from Python 3.13 on.
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.path)
        self._server = await asyncio.start_server(self._client, sock=listening, limit=1 << 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.hang_up()
        await asyncio.sleep(0)

    @property
    def commands(self) -> list[str]:
        """The names of the commands received, without the negotiation."""
        return [name for name, _ in self.received if name != "qmp_capabilities"]

    @property
    def changes(self) -> list[tuple[str, Mapping[str, Any]]]:
        """What was received that changes something, with its arguments."""
        return [each for each in self.received if each[0] in WRITE_COMMANDS]

    @property
    def serves(self) -> bool:
        """Whether a client is connected."""
        return self._writer is not None

    def hang_up(self) -> None:
        """Close the connection of the present client."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def event(self, name: str, **data: object) -> None:
        """Send an event to the present client."""
        stamp = {"seconds": 1, "microseconds": 2}
        await self.send({"timestamp": stamp, "event": name, "data": data})

    async def send(self, message: Mapping[str, Any] | bytes) -> None:
        """Send a message, or bytes as they are, to the present client."""
        assert self._writer is not None
        wire = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n"
        if self.close_after_bytes is not None:
            wire = wire[: max(0, self.close_after_bytes - self._sent_bytes)]
        self._sent_bytes += len(wire)
        step = self.piece_bytes or len(wire) or 1
        for start in range(0, len(wire), step):
            self._writer.write(wire[start : start + step])
            await self._writer.drain()
            if self.piece_bytes:
                await asyncio.sleep(0)
        if self._sent_bytes == self.close_after_bytes:
            self._writer.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._serving:
            self.connections += 1
            self._writer = writer
            self._sent_bytes = 0
            try:
                if self.greeting is not None:
                    await self.send(self.greeting)
                await self._talk(reader)
            except (ConnectionError, asyncio.CancelledError):
                pass
            finally:
                self._writer = None
                writer.close()

    async def _talk(self, reader: asyncio.StreamReader) -> None:
        decoder, text = json.JSONDecoder(), ""
        while data := await reader.read(1 << 16):
            text += data.decode()
            while text := text.lstrip():
                try:
                    request, end = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[end:]
                await self._answer(request)

    async def _answer(self, request: Mapping[str, Any]) -> None:
        name, arguments = request["execute"], request.get("arguments", {})
        self.received.append((name, arguments))
        await self.answering.wait()
        if name == "qmp_capabilities":
            reply: Reply = self.replies.get(name, {"return": {}})
        else:
            error = {"class": "CommandNotFound", "desc": f"The command {name} has not been found"}
            reply = self.replies.get(name, {"error": error})
        message = reply(arguments) if callable(reply) else reply
        if not isinstance(message, bytes) and "id" in request:
            message = {**message, "id": request["id"]}
        await self.send(message)
