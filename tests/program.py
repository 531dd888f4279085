"""The exporter as a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import aiohttp

COMMAND = (sys.executable, "-m", "exporter")


class Exporter:
    """A running exporter: what it says, and a way to ask it."""

    def __init__(self, process: asyncio.subprocess.Process, client: aiohttp.ClientSession) -> None:
        self.process = process
        self.log: list[str] = []
        self.address = ""
        self._client = client

    async def get(self, path: str) -> tuple[int, str]:
        """Return the status and the body of a page."""
        async with self._client.get(f"http://{self.address}{path}") as answer:
            return answer.status, await answer.text()

    async def read_log(self) -> None:
        """Read what the process says until its end."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode())
            if found := re.search(
                r"listening.* (?:address=|\"address\": \")([\d.:]+)", self.log[-1]
            ):
                self.address = found[1]


@asynccontextmanager
async def exporter(
    *flags: str, command: Sequence[str] = COMMAND, env: Mapping[str, str] | None = None
) -> AsyncIterator[Exporter]:
    """Run an exporter on a port of its own, until it is left."""
    process = await asyncio.create_subprocess_exec(
        *command,
        "--web.listen-address=127.0.0.1:0",
        *flags,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as client:
        running = Exporter(process, client)
        reading = asyncio.create_task(running.read_log())
        try:
            async with asyncio.timeout(60):
                while not running.address and not reading.done():
                    await asyncio.sleep(0.01)
            yield running
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            await reading
