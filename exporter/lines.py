"""A socket as lines: what is read goes through one buffer that all connections share.

A stream reader keeps a buffer for each connection and runs a task for each line: with a thousand
VMs that is 90 MiB, and as much time again as decoding the lines takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from exporter.errors import ProtocolError

#: The longest line that is read.
LINE_LIMIT_BYTES = 16 * 1024 * 1024
#: Filled and emptied within one turn of the event loop, so that all connections can share it.
_BUFFER = memoryview(bytearray(256 * 1024))


class Lines(asyncio.BufferedProtocol):
    """Calls `on_line` with each line, then `ended` is done: with None, or with what went wrong."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_line = on_line
        #: What has come of a line whose end has not.
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.feed(bytes(_BUFFER[:nbytes]))

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        if self.ended.done():
            return
        *whole, rest = data.split(b"\n")
        try:
            for line in whole:
                self._on_line(self._completed(line))
            self._keep(rest)
        except ProtocolError as error:
            self._end(error)

    def eof_received(self) -> bool:
        self._end(None)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error)

    def _completed(self, line: bytes) -> bytes:
        if not self._pieces:
            return line
        self._keep(line)
        line = b"".join(self._pieces)
        self._pieces, self._pieces_bytes = [], 0
        return line

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self._pieces_bytes += len(piece)
            if self._pieces_bytes > LINE_LIMIT_BYTES:
                raise ProtocolError(f"sent a line of more than {LINE_LIMIT_BYTES} bytes")

    def _end(self, error: Exception | None) -> None:
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)
                self.ended.exception()  # whoever waits may have left
