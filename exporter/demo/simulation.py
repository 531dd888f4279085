"""Monitor sockets of simulated virtual machines, which speak QMP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from exporter.demo.scenarios import SCENARIOS, Scenario
from exporter.demo.simulated_disks import Record
from exporter.demo.simulated_vm import VERSION, SimulatedVm

_TICK_SECONDS = 0.25
#: Longest request: real ones are far shorter.
_REQUEST_LIMIT_BYTES = 64 * 1024


class SimulatedMonitor:
    """One VM's monitor socket. Like QEMU, it serves one client; the next waits for its greeting."""

    def __init__(self, vm: SimulatedVm, socket: Path) -> None:
        """`socket` is created by `async with`."""
        self.name = vm.name
        self.scenario = vm.scenario
        self._vm = vm
        self._socket = socket
        self._turn = asyncio.Lock()
        #: The client that receives events.
        self._client: asyncio.StreamWriter | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, self._socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations)

    async def run(self, say: Callable[[str], None]) -> None:
        """Advance the VM in real time, until cancelled."""
        then = time.monotonic()
        while True:
            for file in self._vm.files():
                file.touch()  # the exporter probes the storage of files that it can see
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            events, news = self._vm.advance(now - then)
            then = now
            for event in events:
                if self._client is not None:
                    self._client.write(_wire(event | {"timestamp": _timestamp()}))
            for text in news:
                say(f"{self.name}: {text}")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.current_task()
        assert conversation is not None
        self._conversations.add(conversation)
        # The client leaves or this server is closed: nothing else is left to do.
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            async with self._turn:
                await self._talk(reader, writer)
        self._conversations.discard(conversation)
        writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_wire({"QMP": {"version": VERSION, "capabilities": []}}))
        try:
            async for request in _requests(reader):
                reply = self._reply(request, writer)
                if isinstance(request, dict) and "id" in request:
                    reply["id"] = request["id"]
                writer.write(_wire(reply))
                await writer.drain()
        finally:
            self._client = None

    def _reply(self, request: object, writer: asyncio.StreamWriter) -> Record:
        command = request.get("execute") if isinstance(request, dict) else None
        if not isinstance(command, str):
            return _error("GenericError", "QMP input lacks member 'execute'")
        negotiates = command == "qmp_capabilities"
        if negotiates and self._client is not None:
            description = "Capabilities negotiation is already complete, command ignored"
            return _error("CommandNotFound", description)
        if not negotiates and self._client is None:
            description = "Expecting capabilities negotiation with 'qmp_capabilities'"
            return _error("CommandNotFound", description)
        self._client = writer
        return {"return": {}} if negotiates else self._vm.answer(command)


@asynccontextmanager
async def simulated_vms(
    folder: Path, scenarios: Sequence[Scenario] = SCENARIOS
) -> AsyncIterator[list[SimulatedMonitor]]:
    """Serve the monitor sockets of simulated virtual machines in `folder`, within a context."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(SimulatedMonitor(vm, folder / f"{vm.name}.sock"))
            for vm in (SimulatedVm(scenario, folder) for scenario in scenarios)
        ]


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[object]:
    """Yield the requests from a stream; they need no separator."""
    decoder, text = json.JSONDecoder(), ""
    while len(text) < _REQUEST_LIMIT_BYTES:
        data = await reader.read(_REQUEST_LIMIT_BYTES)
        if not data:
            return
        text += data.decode("utf-8", "replace")
        while text := text.lstrip():
            try:
                request, end = decoder.raw_decode(text)
            except ValueError:
                break  # the rest is still to come
            text = text[end:]
            yield request


def _error(kind: str, description: str) -> Record:
    return {"error": {"class": kind, "desc": description}}


def _timestamp() -> Record:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return {"seconds": seconds, "microseconds": nanoseconds // 1000}


def _wire(message: Record) -> bytes:
    return json.dumps(message).encode() + b"\r\n"
