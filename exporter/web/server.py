"""The serving process: its sockets, its signals, its end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from exporter import __version__
from exporter.errors import ConfigError
from exporter.process import logs
from exporter.web.connections import Connections
from exporter.web.limits import Limits, limits_of_process

log = logging.getLogger(__name__)

_NO_IP6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def listen(address: str) -> list[socket.socket]:
    """Return sockets that listen on `host:port`, `:port` or `[ip6]:port`.

    Raises:
        ConfigError: the address is not host:port, or is not available.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or not 0 <= int(port) < 65536 or "/" in host:
        raise ConfigError(f"--web.listen-address: {address!r} is not host:port")
    try:
        found = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ConfigError(f"--web.listen-address: {address}: {error.strerror}") from error
    except UnicodeError as error:
        raise ConfigError(f"--web.listen-address: {address}: is not a host name") from error
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, place in dict.fromkeys(found):
        try:
            sockets.append(_bound(family, kind, protocol, place))
        except OSError as error:
            if not host and sockets and error.errno in _NO_IP6:
                continue  # any address, on a host without IPv6
            for sock in sockets:
                sock.close()
            reason = os.strerror(error.errno or 0)
            raise ConfigError(f"--web.listen-address: {address}: {reason}") from error
    return sockets


def _bound(family: int, kind: int, protocol: int, place: Any) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


async def serve(
    app: web.Application,
    sockets: Sequence[socket.socket],
    reload: Callable[[], None],
    ready: Callable[[], None] = lambda: None,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, over TLS if there is a context; SIGHUP calls `reload`."""
    limits = limits or limits_of_process()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, reload)
    runner = web.AppRunner(app, shutdown_timeout=limits.shutdown_seconds)
    await runner.setup()
    assert runner.server is not None
    connections = Connections(runner.server, limits, tls)
    try:
        for sock in sockets:
            connections.listen(sock)
            host, port = sock.getsockname()[:2] if sock.family != socket.AF_UNIX else ("unix", 0)
            log.info(
                "listening",
                extra={
                    "address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                    "tls": "on" if tls else "off",
                },
            )
        if os.geteuid() == 0:
            log.warning("running as root: a user that may open the sockets is enough")
        logs.notify("READY=1", f"STATUS=version {__version__}")
        ready()
        await _until(ended)
    finally:
        logs.notify("STOPPING=1")
        await connections.close()
        await runner.cleanup()


async def _until(ended: asyncio.Event) -> None:
    interval = logs.watchdog_seconds()
    while not ended.is_set():
        try:
            async with asyncio.timeout(interval):
                await ended.wait()
        except TimeoutError:
            logs.notify("WATCHDOG=1")


def _reload(reload: Callable[[], None]) -> None:
    try:
        reload()
    except ConfigError:
        return  # logged where it was noticed; the old configuration stays
