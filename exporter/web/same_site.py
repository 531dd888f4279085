"""Requests from pages of other sites: a browser sends the user's password along with them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from aiohttp import hdrs, web


class SameSite:
    """The hosts that pages of this exporter are on."""

    def __init__(self, external_hosts: Iterable[str] = ()) -> None:
        """`external_hosts` are those, with ports, that a proxy has for this exporter."""
        # The origin "null" of a sandboxed page has no host: none is ever the same as that.
        self._external_hosts = frozenset(external_hosts) - {""}

    def foreign(self, request: web.Request) -> str:
        """Return what shows that a page of another site asks, "" where nothing does."""
        site = request.headers.get("Sec-Fetch-Site", "none")
        if site not in ("none", "same-origin"):
            return "Sec-Fetch-Site names another site"
        said = request.headers.get(hdrs.ORIGIN)
        if said is None:
            return ""  # no browser: all of them send it with what may change something
        origin = _split(said)
        if origin is not None and origin.netloc in self._external_hosts:
            return ""
        if origin is None or origin.netloc not in {request.host} - {""}:
            return "Origin is another site"
        # Any site may have its name lead to this address for a while (DNS rebinding).
        if not _is_own(origin.hostname or ""):
            return "Host must be an IP address, localhost or the host of --web.external-url"
        return ""


def _split(origin: str) -> SplitResult | None:
    try:
        return urlsplit(origin)
    except ValueError:
        return None


def _is_own(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
