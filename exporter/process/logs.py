"""Logging, and systemd's interfaces: notifications, the watchdog and socket activation."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import sys
import time
from typing import Any

from exporter.errors import ConfigError

#: The first descriptor of those that systemd passes. [sd_listen_fds(3)]
_FIRST_SOCKET = 3
#: Libraries' loggers, which would otherwise write to stderr in a format of their own.
_LIBRARIES = ("aiohttp.server", "asyncio")
#: Longest text of their exceptions that is logged: it may quote any amount of a client's data.
_ERROR_LENGTH = 120
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Formatter(logging.Formatter):
    """Log lines as Prometheus writes them: `time=... level=INFO source=vm.py:90 msg="..." key=value`."""

    def __init__(self, kind: str) -> None:
        """`kind` is `logfmt` or `json`."""
        super().__init__()
        self._json = kind == "json"

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.replace("WARNING", "WARN"),
            "source": f"{record.filename}:{record.lineno}",
            "msg": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        if self._json:
            return json.dumps(fields, default=str)
        return " ".join(f"{name}={_logfmt(value)}" for name, value in fields.items())


def _logfmt(value: object) -> str:
    text = str(value)
    plain = text and all(c.isprintable() and c not in ' "=\\' for c in text)
    if plain:
        return text
    # Control characters are escaped: a terminal would act on them, a viewer break the line there.
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)


def set_up_logging(level: str, kind: str) -> None:
    """Log to stderr from `level` (debug, info, warn, error) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(kind))
    root = logging.getLogger("exporter")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel({"warn": "WARNING"}.get(level, level.upper()))
    other = logging.StreamHandler(sys.stderr)
    other.setFormatter(Formatter(kind))
    if level != "debug":
        other.addFilter(_without_trace)
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        library.handlers[:] = [other]
        library.setLevel(root.level)


def _without_trace(record: logging.LogRecord) -> bool:
    """Log only the exception's name and text: a client that does not speak HTTP needs no more."""
    if record.exc_info:
        error = record.exc_info[1]
        record.err = f"{type(error).__name__}: {' '.join(str(error).split())[:_ERROR_LENGTH]}"
        record.exc_info = None
    return True


def raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit: each VM's session is an open file.

    The soft limit is low only for programs that use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def notify(*states: str) -> None:
    """Notify systemd of the service's state, if it started this process. [sd_notify(3)]"""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto("\n".join(states).encode(), address)
        except OSError as error:
            logging.getLogger(__name__).warning(
                "systemd not notified", extra={"err": error.strerror}
            )


def notify_reloading() -> None:
    """Notify systemd that the configuration is being reloaded."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_seconds() -> float | None:
    """Return how often to notify systemd's watchdog, None if it is off. [sd_watchdog_enabled(3)]"""
    usec = os.environ.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 1e6 / 2 or None


def systemd_sockets() -> list[socket.socket]:
    """Return the listening sockets that systemd passed to this process.

    Raises:
        ConfigError: it passed none.
    """
    count = os.environ.pop("LISTEN_FDS", "")
    pid = os.environ.pop("LISTEN_PID", "")
    if pid != str(os.getpid()) or not count.isdigit() or count == "0":
        raise ConfigError("--web.systemd-socket: systemd passed no socket")
    return [socket.socket(fileno=_FIRST_SOCKET + index) for index in range(int(count))]
