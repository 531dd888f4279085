"""The mounts of this host: where they are, and which of them a path is on."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Mapping
from pathlib import Path

_NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "lustre", "nfs", "nfs4", "ocfs2", "smb3"}
)
#: How long the table of mounts is taken to stay as it is: a fleet would read it for each VM.
_FRESH_SECONDS = 1.0
_points: Mapping[str, str] = {}
_points_at = float("-inf")


def points() -> Mapping[str, str]:
    """Return every mount point of this namespace with its file system's type, as a second ago."""
    global _points, _points_at
    if time.monotonic() - _points_at >= _FRESH_SECONDS:
        _points, _points_at = _read(), time.monotonic()
    return _points


def point_of(path: str, known: Container[str]) -> str:
    """Return the one of the mount points that a path is on."""
    # By the name alone: to resolve a link is to ask the file system.
    folder = os.path.normpath(path).replace("//", "/")
    while folder not in known and folder != "/":
        folder = os.path.dirname(folder) or "/"
    return folder


def is_network(kind: str) -> bool:
    """Whether a file system of this type may hang on another host, or on a program."""
    return kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse.") or kind == "fuse"


def _read() -> dict[str, str]:
    found = {}
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]:
        fields, _, kinds = line.partition(" - ")
        point = fields.split(" ")[4]
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(code, character)
        found[point] = kinds.split(" ")[0]
    return found
