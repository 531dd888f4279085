"""Who is at the other end of a monitor socket, as far as /proc tells.

A QMP socket serves one client at a time; the next one connects, and is never greeted. A stopped
QEMU looks the same. These look from the side, without a word to QEMU.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_SOCKETS = Path("/proc/net/unix")
_CONNECTING, _CONNECTED = "02", "03"


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


def open_files(process: int) -> frozenset[str] | None:
    """Return the paths of the files that a QEMU has open, None where they cannot be known.

    A manager may have made the socket and handed it over: then `process` is the manager, whose
    files say nothing.
    """
    try:
        name = Path(f"/proc/{process}/comm").read_bytes()
        if not name.startswith((b"qemu", b"kvm")):
            return None
        if os.readlink(f"/proc/{process}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            return None
        links = [_link(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")]
    except OSError:
        return None
    return frozenset(link for link in links if link.startswith("/"))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed meanwhile
        return ""


def has_another_client(path: str) -> bool:
    """Whether a client is served on the socket at `path` while another, such as we, waits.

    Only an accepted connection has an inode; one in the backlog has none yet. False where the
    socket belongs to another network namespace.
    """
    served = waiting = False
    try:
        lines = _SOCKETS.read_text("utf-8", "surrogateescape").splitlines()[1:]
    except OSError:
        return False
    for line in lines:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == path:
            served |= fields[5] == _CONNECTED and fields[6] != "0"
            waiting |= fields[5] == _CONNECTING
    return served and waiting
