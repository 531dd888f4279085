"""The process at the other end of a monitor socket, as far as /proc tells."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from msgspec import Struct


class Process(Struct, frozen=True, gc=False):
    """Who is at the other end of a monitor socket."""

    #: 0 where that cannot be seen.
    pid: int = 0
    version: tuple[int, ...] = ()
    package: str = ""
    #: Numbers of the socket's file.
    socket: tuple[int, int] | None = None


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


def opened(process: int, number: str) -> str:
    """Return what a descriptor of a process leads to, empty where it was closed meanwhile.

    Raises:
        OSError: that cannot be seen.
    """
    try:
        return os.readlink(f"/proc/{process}/fd/{number}")
    except FileNotFoundError:
        return ""


def is_qemu(process: int) -> bool:
    """Whether a process is a QEMU, and not whoever made the socket for one, or stands before it.

    Raises:
        OSError: that cannot be seen.
    """
    with open(f"/proc/{process}/comm", "rb") as comm:
        return comm.read().startswith((b"qemu", b"kvm"))


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
            if any(opened(int(name), number) == link for number in numbers):
                return int(name)
        except OSError:
            continue  # it has ended, or is another user's
    return 0
