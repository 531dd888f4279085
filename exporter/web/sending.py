"""Answers on their way to clients: what those who do not read may hold in memory, and how long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from aiohttp import hdrs, payload, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.typedefs import Handler

from exporter.web.connections import SERVER
from exporter.web.limits import Limits
from exporter.web.log_limit import LogLimit

log = logging.getLogger(__name__)

#: A body is handed to the connection in portions of this size.
_PORTION_BYTES = 16 * 1024


class Portions(payload.Payload):
    """A body that many clients may share: each has a portion of its own at most."""

    def __init__(self, parts: Sequence[bytes], owner: object = None) -> None:
        """`owner` lives as long as this does."""
        super().__init__(parts)
        self.parts = parts
        self._owner = owner
        self._size = sum(map(len, parts))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return b"".join(self.parts).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write each portion once the client has taken the one before."""
        for part in self.parts:
            view = memoryview(part)
            for start in range(0, len(view), _PORTION_BYTES):
                await writer.write(view[start : start + _PORTION_BYTES])
                await writer.drain()


class _Sending:
    """One answer that is being sent."""

    def __init__(self, body: Portions, request: web.Request) -> None:
        self.parts = body.parts
        self.size = body.size or 0
        self.transport = request.transport


class Sender:
    """Sends every answer, within a time and a bound of memory.

    Large answers are cut off, those that are sent for longest first, when more bytes than
    `Limits.unsent_bytes` would be held by clients that do not read.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: Large answers; the first is sent for longest.
        self._sending: dict[_Sending, None] = {}
        self._cut_off = LogLimit(log)

    @web.middleware
    async def sent(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Send what the handler returns or raises: aiohttp finds it done."""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            await self._send(request, error)
            raise
        await self._send(request, response)
        return response

    async def name_server(self, request: web.Request, response: web.StreamResponse) -> None:
        """Set a `Server` header without a version, in place of aiohttp's."""
        response.headers[hdrs.SERVER] = SERVER

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        """Write an answer, and wait until the client has taken it but for a small rest."""
        body = response.body if isinstance(response, web.Response) else None
        if isinstance(body, bytes) and len(body) > _PORTION_BYTES:
            body = Portions([body])
            response.body = body  # type: ignore[attr-defined]
        sending = _Sending(body, request) if isinstance(body, Portions) else None
        if sending is not None:
            self._sending[sending] = None
            self._bound(sending)
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                writer = await response.prepare(request)
                await response.write_eof()
                if writer is not None:
                    await writer.drain()
        except ConnectionError:
            return  # it hung up
        except TimeoutError:
            self._abort(request.transport)
        finally:
            if sending is not None:
                self._sending.pop(sending, None)
            if isinstance(response, web.Response):
                # The connection would keep it until its next request.
                response.body = None

    def _bound(self, newest: _Sending) -> None:
        while len(self._sending) > 1 and self._unsent_bytes() > self._limits.unsent_bytes:
            oldest = next(iter(self._sending))
            if oldest is newest:
                return
            del self._sending[oldest]
            self._abort(oldest.transport)

    def _unsent_bytes(self) -> int:
        bodies = {id(each.parts): each.size for each in self._sending}
        return sum(bodies.values())

    def _abort(self, transport: asyncio.Transport | None) -> None:
        if transport is None:
            return
        peer = transport.get_extra_info("peername")
        client = str(peer[0]) if isinstance(peer, tuple) else ""
        self._cut_off.log(logging.WARNING, "client cut off: it does not read", {"client": client})
        transport.abort()
