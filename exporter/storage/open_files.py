"""Lists the files that a QEMU has open, with their mounts, from /proc, without accessing the mounts.

To answer query-block, QEMU stats these very files, whatever their names: an image may have been
removed or replaced since it was opened; it may never have had a lasting name (`snapshot=on`), or
only one with a meaning to that process (`/dev/fdset/N`, a relative name); and QEMU may be in a
mount namespace of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from exporter.qmp import peer
from exporter.storage import mounts
from exporter.storage.file_stat import FileStat
from exporter.storage.mounts import Mount

_DELETED = " (deleted)"
#: Descriptors that are not images: of write-only files, of directories, and with O_PATH.
_ACCESS_MODE, _WRITE_ONLY = 0o3, 0o1
_NO_IMAGE = os.O_DIRECTORY | os.O_PATH
#: First bytes that QEMU locks of each image. [RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE]
_LOCKED_FROM, _LOCKED_TO = 100, 300


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that a process has open and can read."""

    #: Leads to the very file, even if it no longer has a name. [/proc/PID/fd/N]
    path: str
    #: Its name, or its last name if it was removed, as the process sees it.
    name: str
    #: Its inode number, empty if the kernel does not report it. [Linux 5.14]
    inode: str
    mount: Mount
    #: Whether QEMU holds a lock on it as it does on images.
    is_locked: bool = False

    @property
    def key(self) -> str:
        """A key that is equal if two processes have the same file open."""
        # Inode numbers are not unique across the subvolumes of a btrfs, but the names differ.
        return f"{self.inode} {self.name}" if self.inode else self.path

    def is_seen_by(self, stat: FileStat) -> bool:
        """Whether its descriptor still led to it when `stat` was read: QEMU reuses descriptors."""
        return not stat.link or stat.link.removesuffix(_DELETED) == self.name


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """All open files of a process, and how to resolve names as it does."""

    process: int
    files: tuple[OpenFile, ...]
    #: Whether a path means the same to the process as to us.
    same_names: bool = True
    #: Its working directory, empty if it cannot be seen.
    folder: str = ""


def read(process: int) -> OpenFiles | None:
    """Return the files that a QEMU has open, None if that cannot be seen.

    If a manager created the socket and passed it on, or a proxy is in between, `process` is not a
    QEMU, and its files mean nothing.
    """
    try:
        if not peer.is_qemu(process):
            return None
        by_number = mounts.of(process)
        links = {
            number: peer.opened(process, number) for number in os.listdir(f"/proc/{process}/fd")
        }
        same = all(
            os.readlink(f"/proc/{process}/{what}") == os.readlink(f"/proc/self/{what}")
            for what in ("ns/mnt", "root")
        )
    except OSError:
        return None
    files = (
        _file(process, number, link, by_number)
        for number, link in links.items()
        if link.startswith("/")
    )
    return OpenFiles(process, tuple(file for file in files if file), same, _folder(process))


def may_have(process: int, inodes: AbstractSet[int]) -> bool:
    """Whether a QEMU may have a file with one of these inode numbers open; also if it cannot be seen.

    The numbers are not tied to a file system: two files may have the same number.
    """
    opened = read(process)
    return opened is None or any(not f.inode or int(f.inode) in inodes for f in opened.files)


def _folder(process: int) -> str:
    try:
        folder = os.readlink(f"/proc/{process}/cwd")
    except OSError:
        return ""
    return "" if folder.endswith(_DELETED) else folder


def _file(process: int, number: str, link: str, by_number: Mapping[str, Mount]) -> OpenFile | None:
    try:
        text = Path(f"/proc/{process}/fdinfo/{number}").read_text("ascii")
    except OSError:  # closed meanwhile
        return None
    flags, inode, mount_id, is_locked = 0, "", "", False
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "flags":
            flags = int(value, 8)
        elif name == "ino":
            inode = value.strip()
        elif name == "mnt_id":
            mount_id = value.strip()
        elif name == "lock":
            first = value.split()[-2]
            is_locked |= first.isdigit() and _LOCKED_FROM <= int(first) < _LOCKED_TO
    if flags & _NO_IMAGE or flags & _ACCESS_MODE == _WRITE_ONLY:
        return None
    name = link.removesuffix(_DELETED)
    # A mount that was detached while files were open on it is no longer listed.
    mount = by_number.get(mount_id) or Mount(name, f"detached {mount_id}", "")
    return OpenFile(f"/proc/{process}/fd/{number}", name, inode, mount, is_locked)
