"""The process at the other end of a monitor socket, as far as /proc tells."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path


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


def descriptors(process: int) -> tuple[str, ...]:
    """Return the numbers of the files that a process has open, none where they cannot be seen."""
    try:
        return tuple(os.listdir(f"/proc/{process}/fd"))
    except OSError:
        return ()


def is_qemu(process: int) -> bool:
    """Whether a process is a QEMU, and not whoever made the socket for one, or stands before it.

    Raises:
        OSError: that cannot be seen.
    """
    with open(f"/proc/{process}/comm", "rb") as comm:
        return comm.read().startswith((b"qemu", b"kvm"))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed meanwhile
        return ""


def holder(inode: int) -> int:
    """Return the QEMU that has a socket open, by its number; 0 where none is seen to.

    Looks through the files of every QEMU: this takes some milliseconds for each hundred of them.
    """
    link = f"socket:[{inode}]"
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            numbers = descriptors(int(name)) if is_qemu(int(name)) else ()
            if any(_link(f"/proc/{name}/fd/{number}") == link for number in numbers):
                return int(name)
        except OSError:
            continue  # it has ended, or is another user's
    return 0
