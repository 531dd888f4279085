"""A fleet of simulated monitors in a process of its own, for more VMs than a machine can hold.

    python -m bench.fakes FOLDER COUNT REPLIES

listens on COUNT sockets `FOLDER/vm0000.sock` and on, and answers each command as REPLIES (JSON:
command -> the line that a real QEMU answered with) says. It prints a line when it is ready, and
does as little as it can: it is not what is measured.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

_COMMAND = re.compile(
    rb'\{"execute": ?"([^"]+)"(?:, ?"arguments": ?\{[^}]*\})?(, ?"id": ?[^}]+)?\}'
)
_UNKNOWN = b'{"error":{"class":"CommandNotFound","desc":"not recorded"}}\r\n'


class Monitor(asyncio.Protocol):
    """One connection."""

    def __init__(self, replies: dict[bytes, bytes]) -> None:
        self._replies = replies
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._replies[b"greeting"])

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        answers = []
        for name, id_ in _COMMAND.findall(data):
            answer = self._replies.get(name, _UNKNOWN)
            answers.append(answer[:-3] + id_ + b"}\r\n" if id_ else answer)
        self._transport.write(b"".join(answers))


async def serve(folder: Path, count: int, replies: dict[bytes, bytes]) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    for index in range(count):
        await loop.create_unix_server(lambda: Monitor(replies), str(folder / f"vm{index:04}.sock"))
    print("ready", flush=True)
    await loop.create_future()


def main() -> None:
    folder, count, path = sys.argv[1:]
    recorded = json.loads(Path(path).read_text("utf-8"))
    replies = {name.encode(): line.encode() + b"\r\n" for name, line in recorded.items()}
    asyncio.run(serve(Path(folder), int(count), replies))


if __name__ == "__main__":
    main()
