"""The web config file as it is now: looked at for each request and handshake, read on change."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable
from typing import TypeAlias

from msgspec import UNSET

from exporter.errors import ConfigError
from exporter.web import tls
from exporter.web.config import WebConfig, read

log = logging.getLogger(__name__)

#: Two writes in one tick of the kernel's clock leave one time: what is younger is read again.
_TICK_NS = 100_000_000

_Stamp: TypeAlias = tuple[int, ...]


class WatchedWebConfig:
    """The last good state of the file and of what it names, all of it or nothing of it."""

    def __init__(self, path: str) -> None:
        """Raise ConfigError where the file is wrong."""
        self._path = path
        self._seen: dict[str, _Stamp] = {}
        self._mistake = ""
        self._config, self._context = self._read()
        #: Is told whether the file is good whenever it was read.
        self.told: Callable[[bool], None] = lambda _: None
        #: Is called when the file was read because it changed, and is good.
        self.changed: Callable[[], None] = lambda: None

    @property
    def config(self) -> WebConfig:
        """The newest good state."""
        self._refresh()
        return self._config

    @property
    def context(self) -> ssl.SSLContext | None:
        """What a listening socket needs, if the file has TLS: it follows the file by itself."""
        return tls.Newest(self._newest) if self._context else None

    def reload(self) -> None:
        """Read the file now.

        Raises:
            ConfigError: it is wrong; the last good state stays.
        """
        try:
            config, context = self._read()
            self._check_step(config)
        except ConfigError as error:
            self._mistake = str(error)
            self.told(False)
            raise
        self._config, self._context, self._mistake = config, context, ""
        self.told(True)

    def _newest(self) -> ssl.SSLContext:
        self._refresh()
        assert self._context is not None
        return self._context

    def _refresh(self) -> None:
        before = self._seen
        now = {path: _stamp(path) for path in before}
        if now == before:
            return
        mistake = self._mistake
        try:
            self.reload()
        except ConfigError as error:
            # One that was just written is read several times.
            if str(error) != mistake:
                log.error("web configuration not reloaded", extra={"err": str(error)})
            return
        if any(now[path][:-1] != before[path][:-1] for path in now):
            log.info("web configuration reloaded")
            self.changed()

    def _read(self) -> tuple[WebConfig, ssl.SSLContext | None]:
        """Read all files. What a wrong state named is watched too: there it will be put right."""
        stamp = _stamp(self._path)
        self._seen = {path: _stamp(path) for path in self._seen} | {self._path: stamp}
        config = read(self._path)
        self._seen = {self._path: stamp}
        if config.tls is None:
            return config, None
        self._seen |= {path: _stamp(path) for path in config.tls.files}
        try:
            return config, tls.context(config.tls)
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {error}") from error

    def _check_step(self, new: WebConfig) -> None:
        """Refuse what a listening socket cannot do, and what half a file could have said.

        An editor may have written only the beginning of a file when it is read: that must not open
        the door.
        """
        if (new.tls is None) != (self._config.tls is None):
            word = "off" if new.tls is None else "on"
            raise ConfigError(f"{self._path}: TLS is turned {word} by a restart only")
        for what, before, now in (
            ("users are", self._config.users, new.users),
            ("client certificates are", _asks(self._config), _asks(new)),
            ("client_allowed_sans is", _restricts(self._config), _restricts(new)),
        ):
            if before and not now:
                raise ConfigError(f"{self._path}: {what} turned off by a restart only")


def _asks(config: WebConfig) -> bool:
    return config.tls is not None and config.tls.client_auth_type == "RequireAndVerifyClientCert"


def _restricts(config: WebConfig) -> bool:
    return config.tls is not None and config.tls.client_allowed_sans is not UNSET


def _stamp(path: str) -> _Stamp:
    """Return what changes when a file does; of one that was just written, the look itself."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    now_ns = time.time_ns()
    young = 0 <= now_ns - found.st_ctime_ns < _TICK_NS
    return (
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_size,
        found.st_ino,
        now_ns if young else 0,
    )
