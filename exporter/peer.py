"""Who is at the other end of a monitor socket, as far as /proc tells.

A QMP socket serves one client at a time; the next one connects, and is never greeted. A stopped
QEMU looks the same. These look from the side, without a word to QEMU.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_SOCKETS = Path("/proc/net/unix")
_CONNECTING, _CONNECTED = "02", "03"
_FRESH_SECONDS = 0.05


def pid(sock: socket.socket) -> int:
    """Return the process that listens at the other end, 0 where it is in another namespace."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def is_stopped(process: int) -> bool:
    """Whether a process is stopped by a signal or a debugger; False where that cannot be seen."""
    if process <= 0:
        return False
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])


def is_qemu(process: int) -> bool:
    """Whether a process is a QEMU, and not whoever made the socket for one, or stands before it.

    Raises:
        OSError: that cannot be seen.
    """
    with open(f"/proc/{process}/comm", "rb") as comm:
        return comm.read().startswith((b"qemu", b"kvm"))


def is_served(path: str) -> bool:
    """Whether a client is connected to the socket at `path` and was accepted.

    False where the socket belongs to another network namespace.
    """
    return path in _sockets_in_use(_FRESH_SECONDS).served and (
        # What was looked up for another VM may be of before a client left.
        path in _sockets_in_use(_FRESH_SECONDS / 10).served
    )


def has_another_client(path: str) -> bool:
    """Whether a client is served on the socket at `path` while another, such as we, waits."""
    return is_served(path) and path in _sockets_in_use(_FRESH_SECONDS).waiting


@dataclass(frozen=True, slots=True)
class _InUse:
    #: Paths of sockets with an accepted connection, and with one in the backlog.
    served: frozenset[str]
    waiting: frozenset[str]
    seen_at: float


_in_use = _InUse(frozenset(), frozenset(), float("-inf"))


def _sockets_in_use(fresh_seconds: float) -> _InUse:
    # A fleet that is silent asks this for each VM, of a file with a line for every socket.
    global _in_use  # noqa: PLW0603
    if time.monotonic() - _in_use.seen_at >= fresh_seconds:
        served, waiting = set(), set()
        for line in _lines():
            fields = line.split(maxsplit=7)
            if len(fields) == 8:
                # Only an accepted connection has an inode; one in the backlog has none yet.
                if fields[5] == _CONNECTED and fields[6] != "0":
                    served.add(fields[7])
                elif fields[5] == _CONNECTING:
                    waiting.add(fields[7])
        _in_use = _InUse(frozenset(served), frozenset(waiting), time.monotonic())
    return _in_use


def _lines() -> list[str]:
    try:
        return _SOCKETS.read_text("utf-8", "surrogateescape").split("\n")[1:]
    except OSError:
        return []
