"""The file of a monitor socket: which one a path leads to, and a connection to exactly that one.

A path may be bound again at any time (QEMU unlinks what is there first); the file tells.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

#: Where there is no /proc, a path of more than 107 bytes cannot be connected to.
_DESCRIPTORS = "/proc/self/fd"


class SocketFile(NamedTuple):
    """A socket in a file system. Its number is not used again while a connection to it lives."""

    device: int
    inode: int


def look(path: str) -> SocketFile | None:
    """Return the file that a path leads to, None where there is none or it cannot be seen."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return SocketFile(found.st_dev, found.st_ino)


def leads_elsewhere(path: str, file: SocketFile | None) -> bool:
    """Whether a path leads to another socket than `file`, if that is known.

    A path that leads nowhere leads to no other VM.
    """
    return file is not None and look(path) not in (file, None)


def connect(sock: socket.socket, path: str) -> SocketFile:
    """Connect to the socket at `path`, of any length, and return which file that was.

    Raises:
        OSError: it cannot be connected to.
    """
    opened = os.open(path, os.O_PATH)
    try:
        found = os.fstat(opened)
        # By its descriptor: the path may lead to another file a moment later.
        sock.connect(f"{_DESCRIPTORS}/{opened}")
    except FileNotFoundError:
        if os.path.exists(_DESCRIPTORS):
            raise
        sock.connect(path)
    finally:
        os.close(opened)
    return SocketFile(found.st_dev, found.st_ino)
