"""The clients that the exporter is compared with, each in a process of its own.

    python -m bench.clients raw|json|qemu.qmp|same GLOB

connects to every socket, then for each line on standard input asks all of them the three queries
that tell of disks and jobs, at once, and prints what that took, in seconds. `same` asks what the
exporter asks instead, and every fourth time query-block.
"""

from __future__ import annotations

import asyncio
import glob
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from qemu.qmp import QMPClient

QUERIES = ("query-blockstats", "query-block", "query-block-jobs")
SAFE_SET = ("query-status", "query-blockstats", "query-block-jobs")


def _wire(names: tuple[str, ...]) -> bytes:
    return "".join(json.dumps({"execute": name}, separators=(",", ":")) for name in names).encode()


class Raw(asyncio.Protocol):
    """The floor: it counts the lines that come, and throws them away."""

    def __init__(self) -> None:
        self._lines = 0
        self._wanted = 1  # the greeting
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._lines += data.count(b"\n")
        if self._lines >= self._wanted and not self.done.done():
            self.done.set_result(None)

    def send(self, request: bytes, lines: int) -> asyncio.Future[None]:
        self._lines, self._wanted = 0, lines
        self.done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self.done


class Json(Raw):
    """The same with every reply decoded by the standard library."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self.replies: list[Any] = []

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        if data.endswith(b"\n"):
            whole = b"".join(self._pieces)
            self._pieces = []
            self.replies = [json.loads(line) for line in whole.splitlines()]
        super().data_received(data)


class Streams:
    """Plain sockets, at once."""

    def __init__(self, protocol: type[Raw]) -> None:
        self._protocol = protocol
        self._connections: list[Raw] = []

    async def connect(self, paths: list[str]) -> None:
        loop = asyncio.get_running_loop()
        for path in paths:
            _, connection = await loop.create_unix_connection(self._protocol, path)
            await connection.done
            await connection.send(b'{"execute":"qmp_capabilities"}', 1)
            self._connections.append(connection)

    async def sweep(self) -> None:
        await asyncio.gather(
            *[each.send(_wire(QUERIES), len(QUERIES)) for each in self._connections]
        )


class Same(Streams):
    """What the exporter asks, by a client that throws it away."""

    def __init__(self) -> None:
        super().__init__(Raw)
        self._sweeps = 0

    async def sweep(self) -> None:
        self._sweeps += 1
        await asyncio.gather(*[self._ask(index) for index in range(len(self._connections))])

    async def _ask(self, index: int) -> None:
        await self._connections[index].send(_wire(SAFE_SET), len(SAFE_SET))
        if (self._sweeps + index) % 4 == 0:
            await self._connections[index].send(_wire(("query-block",)), 1)


class Library:
    """qemu.qmp as it comes, its three queries of a VM at once."""

    def __init__(self) -> None:
        self._clients: list[QMPClient] = []

    async def connect(self, paths: list[str]) -> None:
        for path in paths:
            client = QMPClient()
            await client.connect(path)
            self._clients.append(client)

    async def sweep(self) -> None:
        await asyncio.gather(*[c.execute(name) for c in self._clients for name in QUERIES])


def main() -> None:
    kind, sockets = sys.argv[1:]
    made: dict[str, Callable[[], Streams | Library]] = {
        "raw": lambda: Streams(Raw),
        "json": lambda: Streams(Json),
        "qemu.qmp": Library,
        "same": Same,
    }
    asyncio.run(_serve(made[kind], sorted(glob.glob(sockets))))


async def _serve(make: Callable[[], Streams | Library], paths: list[str]) -> None:
    client = make()
    await client.connect(paths)
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        began = time.perf_counter()
        await client.sweep()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
