"""The mounts of a process: their mount points and file systems, and the mount that a path is on.

/proc/PID/mountinfo is the kernel's own list: reading it accesses no file system.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre", "nfs", "nfs4",
        "ocfs2", "orangefs", "panfs", "smb3", "vboxsf", "virtiofs", "wekafs",
    }
)  # fmt: skip
#: How long the table of mounts is cached: a fleet would read it once per VM.
_FRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount, as one process sees it."""

    point: str
    #: Major and minor number: the same for all mounts of one file system, in every namespace.
    device: str
    #: The type of the file system.
    kind: str

    @property
    def is_network(self) -> bool:
        """Whether it depends on another host or on a program, and so may hang."""
        return (
            self.kind in _NETWORK_FILE_SYSTEMS
            or self.kind.startswith("fuse.")
            or self.kind == "fuse"
        )


_points: Mapping[str, Mount] = {}
_points_at = float("-inf")


def points() -> Mapping[str, Mount]:
    """Return every mount of this namespace by its mount point; at most a second old."""
    global _points, _points_at
    if time.monotonic() - _points_at >= _FRESH_SECONDS:
        # Of two mounts on the same point, the later one covers the other.
        found = {mount.point: mount for _, mount in _read("self")}
        _points, _points_at = found, time.monotonic()
    return _points


def of(process: int) -> dict[str, Mount]:
    """Return every mount of a process's namespace, by its number in fdinfo. [mnt_id, proc(5)]

    Raises:
        OSError: the process is gone, or must not be seen.
    """
    return dict(_read(str(process)))


def point_of(path: str, known: Container[str]) -> str:
    """Return that of the `known` mount points that a path is on."""
    # By the name only: resolving a link would access the file system.
    folder = os.path.normpath(path).replace("//", "/")
    while folder not in known and folder != "/":
        folder = os.path.dirname(folder) or "/"
    return folder


def _read(process: str) -> Iterator[tuple[str, Mount]]:
    table = os.fsdecode(Path(f"/proc/{process}/mountinfo").read_bytes())
    for line in table.split("\n")[:-1]:
        fields, _, kinds = line.partition(" - ")
        number, _, device, _, point = fields.split(" ")[:5]
        if "\\" in point:
            for code, character in (
                ("\\040", " "),
                ("\\011", "\t"),
                ("\\012", "\n"),
                ("\\134", "\\"),
            ):
                point = point.replace(code, character)
        yield number, Mount(point, device, kinds.split(" ")[0])
