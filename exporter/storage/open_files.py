"""The files that a QEMU has open, by /proc: which they are and on which mounts, without asking those.

What QEMU stats to answer query-block are these very files, whatever their names: an image may have
been removed or replaced since it was opened, may never have had a name that lasts (`snapshot=on`),
or one that means something to this process alone (`/dev/fdset/N`, a relative name), and QEMU may be
in a mount namespace of its own.
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
#: Descriptors that are no images: of files only written to, of directories and of mere paths.
_ACCESS_MODE, _WRITE_ONLY = 0o3, 0o1
_NO_IMAGE = os.O_DIRECTORY | os.O_PATH
#: First bytes that QEMU locks of each image. [RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE]
_LOCKED_FROM, _LOCKED_TO = 100, 300


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that a process has open and can read."""

    #: Leads to the very file, also where it has no name any more. [/proc/PID/fd/N]
    path: str
    #: Where it is, or was when it was removed, as the process sees it.
    name: str
    #: Its number on its file system, empty where the kernel does not tell. [Linux 5.14]
    inode: str
    mount: Mount
    #: Whether QEMU holds the lock on it that it takes on images.
    is_locked: bool = False

    @property
    def key(self) -> str:
        """Equal for one file that two processes have open."""
        # Subvolumes of one btrfs have the same numbers, in places of different names.
        return f"{self.inode} {self.name}" if self.inode else self.path

    def is_seen_by(self, stat: FileStat) -> bool:
        """Whether its number still led to it when it was looked at: QEMU uses numbers again."""
        return not stat.link or stat.link.removesuffix(_DELETED) == self.name


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """All of them, and where the names that the process knows them by are to be looked for."""

    process: int
    files: tuple[OpenFile, ...]
    #: Whether a path means the same to the process as to us.
    same_names: bool = True
    #: The directory of relative names, empty where it cannot be seen.
    folder: str = ""


def read(process: int) -> OpenFiles | None:
    """Return what a QEMU has open, None where that cannot be known.

    A manager may have made the socket and handed it over, or a proxy may stand before it: then
    `process` is no QEMU, and its files say nothing.
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
    """Whether a QEMU may have one of these files open; True as well where that cannot be seen.

    The numbers are those of files on any file system: two files may have one number.
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
    # A mount that was detached while files were open on it is in no list any more.
    mount = by_number.get(mount_id) or Mount(name, f"detached {mount_id}", "")
    return OpenFile(f"/proc/{process}/fd/{number}", name, inode, mount, is_locked)
