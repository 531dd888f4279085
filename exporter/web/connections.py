"""Connections of clients: how many at once, and how long one may wait for its next request.

aiohttp has no cap, no deadline for headers, and closes a connection only after the client has read
what was written. asyncio's own accept loop logs a line for each attempt while descriptors are out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from contextlib import suppress
from typing import Any, cast

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import HttpProcessingError

from exporter.web.limits import Limits
from exporter.web.log_limit import LogLimit

log = logging.getLogger(__name__)

#: What the `Server` header says: no version, which would be told to clients before they are let in.
SERVER = "qemu-block-exporter"
_BACKLOG = 128
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: How long it is until the next attempt where no descriptor could be made free.
_RETRY_SECONDS = 0.1
#: What one connection may have written that its client has not taken yet.
_UNSENT_BYTES = 16 * 1024
#: What is read of a body after the answer, so that the client of a small one reads that answer.
_UNASKED_BYTES = 64 * 1024
#: A client may have written as much as it likes.
_ERROR_LENGTH = 120


class Connection(web.RequestHandler):
    """A client's connection, closed when the next request takes too long."""

    __slots__ = (
        "_body", "_connections", "_deadline", "_expecting_head", "_limits", "_link", "_unasked_bytes",
    )  # fmt: skip

    def __init__(self, connections: Connections, server: web.Server, limits: Limits) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none is aiohttp's way to turn it off
            # To throw away a body that nobody asked for, aiohttp would first decode it, all at once:
            # a few kilobytes of gzip stop the event loop for a second.
            auto_decompress=False,
            lingering_time=limits.linger_seconds,
            keepalive_timeout=limits.idle_seconds,
        )
        self._connections = connections
        self._limits = limits
        self._link: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._expecting_head = True
        #: The body of the last request, and how much of it has come since the answer.
        self._body: StreamReader | None = None
        self._unasked_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        self._link = cast(asyncio.Transport, transport)
        self._link.set_write_buffer_limits(_UNSENT_BYTES)
        super().connection_made(transport)
        self._close_in(self._limits.head_seconds)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request; the first part of it starts the time for its headers."""
        if self._deadline is not None and not self._expecting_head:
            self._expecting_head = True
            self._close_in(self._limits.head_seconds)
        super().data_received(data)
        # Once it is answered, a body that goes on is not wanted: aiohttp would read it for a while,
        # as fast as it comes.
        if self._deadline is not None and self._body is not None and not self._body.is_eof():
            self._unasked_bytes += len(data)
            if self._unasked_bytes > _UNASKED_BYTES and self._link is not None:
                self._link.pause_reading()

    def resume_reading(self, *args: Any, **kw: Any) -> None:
        """Read on, unless it is a body that no endpoint asked for."""
        if self._unasked_bytes <= _UNASKED_BYTES:
            super().resume_reading(*args, **kw)

    def begin_request(self, body: StreamReader) -> None:
        """Stop the clock: the headers are there."""
        self._connections.answering(self)
        self._body = body
        self._unasked_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the answer, then wait for the next request."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            if self._link is not None:
                self._connections.answered(self)
                self._expecting_head = False
                self._close_in(self._limits.idle_seconds)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._link = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._connections.forget(self)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close it now, whether or not the client has read what was written."""
        if self._link is not None:
            self._link.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, or a request that failed."""
        response = super().handle_error(request, status, exc, message)
        response.headers[hdrs.SERVER] = SERVER
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a defect; of clients that do not speak HTTP only so many."""
        error = kw.get("exc_info")
        if isinstance(error, HttpProcessingError):
            self._connections.note_malformed(self, error)
        else:
            super().log_exception(*args, **kw)

    def _close_in(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.abort)


class Connections:
    """All connections of clients.

    At the cap, the one that waits longest for its first request makes room, then the one that waits
    longest for another.
    """

    def __init__(
        self, server: web.Server, limits: Limits, tls: ssl.SSLContext | None = None
    ) -> None:
        """Accept nobody yet; `server` is told of every request."""
        self._server = server
        self._limits = limits
        self._tls = tls
        self._listeners: dict[socket.socket, asyncio.Task[None]] = {}
        #: Each connection, with what brings it about.
        self._open: dict[Connection, asyncio.Task[None]] = {}
        #: Those that wait: for their first request, and for another. The first waits longest.
        self._new: dict[Connection, None] = {}
        self._idle: dict[Connection, None] = {}
        self._spare: list[int] = []
        self._malformed = LogLimit(log)
        self._refused = LogLimit(log)
        self._exhausted = LogLimit(log)
        self._keep_spare()
        make_request = server.request_factory

        def begin(
            message: Any, payload: StreamReader, protocol: Any, writer: Any, task: Any
        ) -> Any:
            cast(Connection, protocol).begin_request(payload)
            return make_request(message, payload, protocol, writer, task)

        server.request_factory = begin

    def __len__(self) -> int:
        return len(self._open)

    def listen(self, sock: socket.socket) -> None:
        """Accept connections from a socket."""
        sock.setblocking(False)
        sock.listen(_BACKLOG)
        self._listeners[sock] = asyncio.create_task(self._accept(sock))

    async def close(self) -> None:
        """Accept no more, and give up those whose handshake is not over; the others go on."""
        accepting = list(self._listeners.values())
        handshakes = [task for task in self._open.values() if not task.done()]
        for task in accepting + handshakes:
            task.cancel()
        if accepting + handshakes:
            await asyncio.wait(accepting + handshakes)
        for sock in self._listeners:
            sock.close()
        self._listeners.clear()
        while self._spare:
            os.close(self._spare.pop())

    def answering(self, connection: Connection) -> None:
        """Note that a request is complete."""
        self._new.pop(connection, None)
        self._idle.pop(connection, None)

    def answered(self, connection: Connection) -> None:
        """Note that a connection waits for its next request."""
        self._idle[connection] = None

    def forget(self, connection: Connection) -> None:
        """Note that a connection is closed, and take its descriptor if one is owed."""
        self.answering(connection)
        if self._open.pop(connection, None) is not None and self._listeners:
            asyncio.get_running_loop().call_soon(self._keep_spare)

    def note_malformed(self, connection: Connection, error: HttpProcessingError) -> None:
        """Log that a client does not speak HTTP."""
        peer = connection.peername
        text = " ".join(str(error.message).split())[:_ERROR_LENGTH]
        self._malformed.log(
            logging.INFO,
            "request is not valid HTTP",
            {"client": str(peer[0] if peer else ""), "err": f"{type(error).__name__}: {text}"},
        )

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _NO_RESOURCES:
                    await self._free_descriptor(error)
                await asyncio.sleep(0)  # what fails at once, each time, must not stop the loop
                continue
            if self._has_room():
                connection = Connection(self, self._server, self._limits)
                self._new[connection] = None
                self._open[connection] = loop.create_task(self._connect(connection, sock))
            else:
                sock.close()
                self._refused.log(
                    logging.WARNING,
                    "connection refused: all are in use",
                    {"limit": self._limits.connections},
                )
            # A socket with many clients that wait is ready each time.
            await asyncio.sleep(0)

    async def _connect(self, connection: Connection, sock: socket.socket) -> None:
        seconds = self._limits.handshake_seconds if self._tls else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, sock, ssl=self._tls, ssl_handshake_timeout=seconds
            )
        except OSError as error:
            log.debug("connection not made", extra={"err": f"{type(error).__name__}: {error}"})
            self.forget(connection)
        except asyncio.CancelledError:
            self.forget(connection)
            raise

    def _has_room(self) -> bool:
        if len(self._open) < self._limits.connections:
            return True
        return self._cut_off_one()

    def _cut_off_one(self) -> bool:
        """Close the connection that waits longest, and return whether there is one."""
        for waiting in (self._new, self._idle):
            for connection in waiting:
                made = self._open.pop(connection)
                del waiting[connection]
                if made.done():
                    connection.abort()
                else:
                    made.cancel()
                return True
        return False

    async def _free_descriptor(self, error: OSError) -> None:
        self._exhausted.log(
            logging.WARNING,
            "connection not accepted",
            {"err": os.strerror(error.errno or 0), "connections": len(self._open)},
        )
        if self._spare:
            os.close(self._spare.pop())  # for the next attempt, which is before anything else
            return
        cut_off = self._cut_off_one()
        await asyncio.sleep(0 if cut_off else _RETRY_SECONDS)

    def _keep_spare(self) -> None:
        with suppress(OSError):
            while len(self._spare) < self._limits.spare_descriptors:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
