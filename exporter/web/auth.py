"""Checks before every page: the rate limit, the headers and the users of the web config file."""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address

from aiohttp import hdrs, web

from exporter.web.config import RateLimit, WebConfig
from exporter.web.passwords import Passwords
from exporter.web.watched_config import WatchedWebConfig

_USER = web.RequestKey("user", str)
#: When a client that could not be checked may try again.
_RETRY_SECONDS = 1.0

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def user_of(request: web.Request) -> str:
    """Return the user who asks; "" where no users are configured."""
    user: str = request.get(_USER, "")
    return user


def credentials(header: str) -> tuple[str, bytes] | None:
    """Return the user and the password of an Authorization header, or None if it has none.

    Bytes of the name that are no UTF-8 are kept as surrogates, which no configured name has.

    >>> credentials("Basic YTpiOmM=")
    ('a', b'b:c')
    """
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    name, colon, password = decoded.partition(b":")
    return (name.decode("utf-8", "surrogateescape"), password) if colon else None


class Bucket:
    """A token bucket: `burst` requests at once, then one in each interval."""

    def __init__(self, limit: RateLimit | None, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._clock = clock
        #: When the bucket is full again.
        self._full_at = -math.inf

    def wait_seconds(self) -> float:
        """Take a token and return 0, or return how long it is until there is one."""
        if self.limit is None:
            return 0.0
        now = self._clock()
        full_at = max(self._full_at, now)
        wait = full_at - now - (self.limit.burst - 1) * self.limit.interval_seconds
        if wait > 0:
            return wait
        self._full_at = full_at + self.limit.interval_seconds
        return 0.0


class AuthMiddleware:
    """Lets requests through to an application, or not."""

    def __init__(
        self,
        live: WatchedWebConfig,
        passwords: Passwords | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live = live
        self._passwords = passwords or Passwords()
        self._clock = clock
        self._bucket = Bucket(None, clock)
        self._config = WebConfig()

    @property
    def users(self) -> frozenset[str]:
        """The names of all users, as the file has them now."""
        return frozenset(self._live.config.users)

    def guard(self, app: web.Application) -> None:
        """Check every request to `app`, those of unknown paths too."""
        app.middlewares.insert(0, self._admit)
        app.on_response_prepare.append(self._add_headers)
        app.on_cleanup.append(self._close)

    @web.middleware
    async def _admit(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        self._config = config = self._live.config
        if config.rate_limit != self._bucket.limit:
            self._bucket = Bucket(config.rate_limit, self._clock)
        if wait := self._bucket.wait_seconds():
            return _too_many(wait)
        if config.users:
            sent = request.headers.getall(hdrs.AUTHORIZATION, [])
            found = credentials(sent[0]) if len(sent) == 1 else None
            right = found and await self._passwords.right(
                config.users, *found, _network(request.remote)
            )
            if right is None and found:
                return _too_many(_RETRY_SECONDS)
            if not right or not found:
                return web.Response(
                    text="Unauthorized\n", status=401, headers={hdrs.WWW_AUTHENTICATE: "Basic"}
                )
            request[_USER] = found[0]
        return await handler(request)

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._config.headers)

    async def _close(self, app: web.Application) -> None:
        await self._passwords.close()


def _too_many(seconds: float) -> web.Response:
    return web.Response(
        text="Too Many Requests\n",
        status=429,
        headers={hdrs.RETRY_AFTER: str(math.ceil(seconds))},
    )


def _network(remote: str | None) -> str:
    """Return the address of a client; of IPv6 its /64, which one client has."""
    try:
        address = ip_address(remote or "")
    except ValueError:
        return ""
    return address.packed[:8].hex() if isinstance(address, IPv6Address) else str(address)
