"""The connections of a monitor socket, seen from the side, without a word to QEMU.

A QMP socket serves one client at a time; the next one connects, and is never greeted. A connection
whose client has left stays with a QEMU that is stopped, and the clients of a QEMU that had the same
path before stay with that one: neither keeps anybody waiting.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from exporter.qmp import sockdiag
from exporter.qmp.sockdiag import UnixSocket
from exporter.qmp.socket_file import SocketFile

#: How old a look may be. A fleet that is silent asks for each VM, and the kernel tells of all sockets.
FRESH_SECONDS = 0.05
#: Where the kernel does not tell more. It names no peers and no files.
_TABLE = Path("/proc/net/unix")
_LISTENING, _CONNECTING, _CONNECTED = "01", "02", "03"
#: Of a lack that passes: the kernel will tell another time.
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def is_served(path: str, file: SocketFile | None) -> bool:
    """Whether a client is connected to a socket, and was accepted.

    False where that cannot be seen: the socket belongs to another network namespace.
    """
    look = _looked()
    return any(each.peer for each in look.accepted(path, file)) or path in look.served


def has_another_client(path: str, file: SocketFile | None, own: int) -> bool:
    """Whether a client is served on a socket while ours, which has the number `own`, waits."""
    look = _looked()
    if path in look.served:
        return path in look.waiting
    return any(each.peer not in (0, own) for each in look.accepted(path, file))


def listener(path: str, file: SocketFile | None) -> UnixSocket | None:
    """Return the socket that listens, with who waits there; None where that cannot be seen."""
    try:
        listening = sockdiag.sockets(sockdiag.LISTEN)
    except OSError:
        return None
    return next((each for each in listening if _is_of(each, path, file)), None)


class _Look:
    """What the kernel told at one instant."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        #: Accepted connections, by the number of their socket's file.
        self._accepted: dict[int, list[UnixSocket]] = {}
        #: Paths with an accepted connection, and with one that waits to be, where no more is known.
        self.served: frozenset[str] = frozenset()
        self.waiting: frozenset[str] = frozenset()
        try:
            for each in _accepted():
                self._accepted.setdefault(each.file_inode, []).append(each)
        except OSError:
            self._read_table()

    def accepted(self, path: str, file: SocketFile | None) -> Iterator[UnixSocket]:
        """Yield the connections that were accepted on one socket."""
        if file is not None:
            for each in self._accepted.get(_low(file.inode), ()):
                if _is_of(each, path, file):
                    yield each

    def _read_table(self) -> None:
        listeners: dict[str, int] = {}
        served, waiting = set(), set()
        for line in _lines():
            fields = line.split(maxsplit=7)
            if len(fields) == 8:
                state, inode, path = fields[5:]
                if state == _LISTENING:
                    listeners[path] = listeners.get(path, 0) + 1
                elif state == _CONNECTING:
                    waiting.add(path)
                elif state == _CONNECTED and inode != "0":
                    served.add(path)
        # Of two that listen, one has lost its path to the other: whose clients these are is not told.
        self.served = frozenset(path for path in served if listeners.get(path) == 1)
        self.waiting = frozenset(waiting)


_last: _Look | None = None
_kernel_tells = True


def _looked() -> _Look:
    global _last  # noqa: PLW0603
    if _last is None or time.monotonic() - _last.at >= FRESH_SECONDS:
        _last = _Look()
    return _last


def _accepted() -> list[UnixSocket]:
    global _kernel_tells  # noqa: PLW0603
    if not _kernel_tells:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    try:
        connected = sockdiag.sockets(sockdiag.ESTABLISHED)
    except OSError as error:
        # Else a kernel without the module would look for it each time.
        _kernel_tells = error.errno in _PASSING
        raise
    return [each for each in connected if each.inode]


def _is_of(each: UnixSocket, path: str, file: SocketFile | None) -> bool:
    """Whether a socket is that of a file; `path` is how we name it."""
    if file is None or each.file_inode != _low(file.inode):
        return False
    device = os.major(file.device) << 20 | os.minor(file.device)
    # Some file systems (btrfs, overlayfs) tell programs of another device than the kernel has.
    return device == each.file_device or each.path == path


def _low(inode: int) -> int:
    return inode & 0xFFFFFFFF


def _lines() -> list[str]:
    try:
        return _TABLE.read_text("utf-8", "surrogateescape").split("\n")[1:]
    except OSError:
        return []
