"""How many scrapes may be collected at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Handler

_WAITED = web.RequestKey("waited", float)


def waited_seconds(request: web.Request) -> float:
    """Return how long a request waited for its place."""
    waited: float = request.get(_WAITED, 0.0)
    return waited


class RequestLimit:
    """Places for requests that are being worked on; to send an answer takes none.

    Many that come at once are done in a moment, because they share one sweep and one body: those
    above the limit wait a little for a place before they are refused.
    """

    def __init__(self, limit: int, wait_seconds: float) -> None:
        """`limit` is 0 for no limit."""
        self._limit = limit
        self._wait_seconds = wait_seconds
        self._places = asyncio.Semaphore(limit) if limit else None
        self.active = 0

    def around(self, handler: Handler, refuse: Callable[[str], web.Response]) -> Handler:
        """Return a handler that answers what `refuse` returns, or raises, where no place is free."""

        async def limited(request: web.Request) -> web.StreamResponse:
            if not await self._have_place(request):
                return refuse(
                    f"Limit of concurrent requests reached ({self._limit}), try again later."
                )
            self.active += 1
            try:
                return await handler(request)
            finally:
                self.active -= 1
                if self._places is not None:
                    self._places.release()

        return limited

    async def _have_place(self, request: web.Request) -> bool:
        if self._places is None:
            return True
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_seconds):
                await self._places.acquire()
                request[_WAITED] = time.monotonic() - began
                return True
        return False
