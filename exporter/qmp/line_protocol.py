"""A socket as lines: what is read goes through one buffer that all connections share.

A stream reader has a buffer for each connection and a task that wakes for each line. With a
thousand VMs that is some 90 MiB, and as much time again as decoding the lines takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from exporter.errors import ProtocolError

#: The longest line that is read.
LINE_LIMIT_BYTES = 16 * 1024 * 1024
#: Filled and emptied within one turn of the event loop, so that all connections can share it.
_BUFFER = memoryview(bytearray(256 * 1024))


class LineProtocol(asyncio.BufferedProtocol):
    """Takes a connection over from a stream, and calls `on_line` with each line of it."""

    def __init__(
        self,
        on_line: Callable[[bytes], None],
        transport: asyncio.WriteTransport,
        limit_bytes: int = LINE_LIMIT_BYTES,
    ) -> None:
        #: Done when the connection ends: with nothing, or with what went wrong.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_line = on_line
        self._limit_bytes = limit_bytes
        # Any event loop's: not all of them derive theirs from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._before = cast(asyncio.Protocol, self._transport.get_protocol())
        #: What has come of a line whose end has not.
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0

    async def take_over(self, reader: asyncio.StreamReader) -> None:
        """Read what `reader` has read already, and from now on in its place."""
        self._transport.pause_reading()
        try:
            while True:
                # Returns at once what is there, and else waits for what cannot come.
                async with asyncio.timeout(0):
                    data = await reader.read(len(_BUFFER))
                if not data:
                    self._end(None)
                    return
                self._feed(data)
        except TimeoutError:
            pass
        self._transport.set_protocol(self)
        self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._feed(bytes(_BUFFER[:nbytes]))

    def eof_received(self) -> bool:
        self._end(None)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._end(None)
        # Whoever closes the stream waits for this.
        self._before.connection_lost(error)

    def pause_writing(self) -> None:
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self._before.resume_writing()

    def _feed(self, data: bytes) -> None:
        if self.ended.done():
            return
        *whole, rest = data.split(b"\n")
        try:
            for line in whole:
                self._on_line(self._completed(line))
            self._keep(rest)
        except ProtocolError as error:
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
            if self._pieces_bytes > self._limit_bytes:
                raise ProtocolError(f"sent a line of more than {self._limit_bytes} bytes")

    def _end(self, error: ProtocolError | None) -> None:
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)
