"""How many scrapes may be collected at once."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler


class RequestLimit:
    """A limit of requests that are being worked on; to send an answer is no part of it."""

    def __init__(self, limit: int) -> None:
        """`limit` is 0 for no limit."""
        self._limit = limit
        self.active = 0

    def around(self, handler: Handler, refuse: Callable[[str], web.Response]) -> Handler:
        """Return a handler that answers what `refuse` returns, or raises, above the limit."""

        async def limited(request: web.Request) -> web.StreamResponse:
            if self._limit and self.active >= self._limit:
                return refuse(
                    f"Limit of concurrent requests reached ({self._limit}), try again later."
                )
            self.active += 1
            try:
                return await handler(request)
            finally:
                self.active -= 1

        return limited
