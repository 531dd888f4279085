"""What can be seen of an image file from here; to look blocks for as long as its server hangs."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

_AT_FDCWD = -100
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_STATS = 0x7FF
#: Size of struct statx, and where in it some members stand. [statx(2)]
_STATX_BYTES, _STX_MODE, _STX_INO, _STX_RDEV, _STX_DEV = 256, 28, 32, 128, 136
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of one image file."""

    #: Whether the file can be seen from here at all.
    visible: bool
    #: Bytes of the file system, or of the block device; None where unknown.
    size_bytes: int | None = None
    available_bytes: int | None = None
    #: Equal for two names of one file or block device.
    identity: tuple[int, ...] | None = None


def look_at(path: str) -> Sight:
    """Ask the server of a file system for a file's attributes and for the space that is left.

    Blocks for as long as the server does not answer.
    """
    # A relative path is relative to a folder that only QEMU knows; at a NUL the kernel would stop.
    if not path.startswith("/") or "\0" in path:
        return Sight(visible=False)
    try:
        if (found := _statx(os.fsencode(path))) is None:
            return Sight(visible=False)
        mode, device, inode, rdev = found
        if stat.S_ISBLK(mode):
            return Sight(True, _device_size(*rdev), identity=rdev)
        identity = (*device, inode)
        space = os.statvfs(os.path.dirname(path) or "/")
    except ValueError:  # half a character: JSON has it, file names do not
        return Sight(visible=False)
    except OSError:
        return Sight(visible=True)
    size, available = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    return Sight(True, size, available, identity)


def _statx(path: bytes) -> tuple[int, tuple[int, int], int, tuple[int, int]] | None:
    """Return mode, device, inode and, of a device, the numbers of a file, as its server has them.

    Return None where there is none that is ours to see.

    Raises:
        OSError: any other answer of the server.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(_AT_FDCWD, path, _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, buffer) != 0:
        error = ctypes.get_errno()
        if error in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM):
            return None
        raise OSError(error, os.strerror(error))
    (mode,) = struct.unpack_from("=H", buffer, _STX_MODE)
    (inode,) = struct.unpack_from("=Q", buffer, _STX_INO)
    rdev = struct.unpack_from("=II", buffer, _STX_RDEV)
    return mode, struct.unpack_from("=II", buffer, _STX_DEV), inode, rdev


def _device_size(major: int, minor: int) -> int | None:
    try:
        return int(Path(f"/sys/dev/block/{major}:{minor}/size").read_text()) * 512
    except (OSError, ValueError):
        return None
