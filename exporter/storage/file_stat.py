"""The attributes of an image file, as seen from here. Reading them blocks while its server hangs."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_STATX_FORCE_SYNC = 0x1000, 0x2000
#: [openat2(2); the number is the same on all but one old architecture]
_SYS_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10
_STATX_BASIC_STATS = 0x7FF
#: Size of struct statx, and the offsets of some of its members. [statx(2)]
_STATX_BYTES, _STX_MODE, _STX_INO, _STX_RDEV, _STX_DEV = 256, 28, 32, 128, 136
_libc = ctypes.CDLL(None, use_errno=True)
#: A name as another process sees it: links in it are resolved within that process's root.
_ELSEWHERE = re.compile(r"(/proc/\d+/root)(/.*)", re.DOTALL)
_DESCRIPTOR = re.compile(r"/proc/\d+/fd/\d+")


@dataclass(frozen=True, slots=True)
class FileStat:
    """What was seen of one image file."""

    #: Whether the file can be seen from here at all.
    visible: bool
    #: Size of the file system, or of the block device; None if unknown.
    size_bytes: int | None = None
    available_bytes: int | None = None
    #: Equal for two names of the same file or block device.
    identity: tuple[int, ...] | None = None
    #: Whether there certainly is no such file; a file that is not visible may exist otherwise.
    missing: bool = False
    #: For a file that a process has open: the kernel's name for it.
    link: str = ""


def stat_file(path: str) -> FileStat:
    """Ask the server of a file system for a file's attributes and for the available space.

    `path` is a name, or /proc/PID/fd/N of a file that a process has open, or a name below
    /proc/PID/root, which is resolved as that process would. Blocks until the server answers.
    """
    # A relative path is relative to a directory that only QEMU knows; the kernel would cut a path
    # at a NUL.
    if not path.startswith("/") or "\0" in path:
        return FileStat(visible=False)
    try:
        if elsewhere := _ELSEWHERE.fullmatch(path):
            with _opened_in(elsewhere[1], elsewhere[2]) as file:
                return _seen(_statx(b"", file), file)
        if _DESCRIPTOR.fullmatch(path):
            with _closing(os.open(path, os.O_PATH | os.O_CLOEXEC)) as file:
                link = os.readlink(f"/proc/self/fd/{file}")
                return replace(_seen(_statx(b"", file), file), link=link)
        return _seen(_statx(os.fsencode(path)), path)
    except ValueError:  # half a surrogate pair: possible in JSON, but not in file names
        return FileStat(visible=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return FileStat(visible=False, missing=True)
        return FileStat(visible=error.errno not in (errno.EACCES, errno.EPERM))


def _seen(found: tuple[int, tuple[int, int], int, tuple[int, int]], where: str | int) -> FileStat:
    mode, device, inode, rdev = found
    if stat.S_ISBLK(mode):
        return FileStat(True, _device_size(*rdev), identity=rdev)
    space = os.statvfs(where)
    size, available = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    return FileStat(True, size, available, (*device, inode))


@contextmanager
def _opened_in(root: str, path: str) -> Iterator[int]:
    """Open a path within another root directory, for its attributes only.

    Raises:
        OSError: the path leads nowhere, or cannot be seen.
    """
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
        file = _libc.syscall(_SYS_OPENAT2, folder, os.fsencode(path), how, len(how))
        if file < 0:
            raise _error()
    finally:
        os.close(folder)
    with _closing(file):
        yield file


@contextmanager
def _closing(file: int) -> Iterator[int]:
    try:
        yield file
    finally:
        os.close(file)


def _statx(path: bytes, at: int = _AT_FDCWD) -> tuple[int, tuple[int, int], int, tuple[int, int]]:
    """Return a file's mode, device, inode and, if it is a device, its own numbers, from its server.

    Raises:
        OSError: there is no such file, or it must not be seen, or the server fails.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    flags = _AT_STATX_FORCE_SYNC | (0 if path else _AT_EMPTY_PATH)
    if _libc.statx(at, path, flags, _STATX_BASIC_STATS, buffer) != 0:
        raise _error()
    (mode,) = struct.unpack_from("=H", buffer, _STX_MODE)
    (inode,) = struct.unpack_from("=Q", buffer, _STX_INO)
    rdev = struct.unpack_from("=II", buffer, _STX_RDEV)
    return mode, struct.unpack_from("=II", buffer, _STX_DEV), inode, rdev


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _device_size(major: int, minor: int) -> int | None:
    try:
        return int(Path(f"/sys/dev/block/{major}:{minor}/size").read_text()) * 512
    except (OSError, ValueError):
        return None
