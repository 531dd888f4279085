"""The canary: does the storage of an image file answer?

query-block and query-named-block-nodes stat every image file on QEMU's main loop. On storage that
hangs (a dead NFS server) they stop the whole VM, so this asks first, from a thread that can be
lost. There is one thread per mount; while one hangs, its mount counts as hanging and gets no
second one.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import queue
import stat
import struct
import threading
import time
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import ExporterError
from exporter.pace import Pace

_AT_FDCWD = -100
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_STATS = 0x7FF
#: Size of struct statx, and where in it some members stand. [statx(2)]
_STATX_BYTES, _STX_MODE, _STX_INO, _STX_RDEV, _STX_DEV = 256, 28, 32, 128, 136
_NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "lustre", "nfs", "nfs4", "ocfs2", "smb3"}
)
#: Longest that what was seen of one file is told to others: the VMs of a fleet share layers.
_RECENT_SECONDS = 2.0
#: How long the table of mounts is taken to stay as it is: a fleet would read it for each VM.
_MOUNTS_SECONDS = 1.0
_mount_points: Mapping[str, str] = {}
_mount_points_at = float("-inf")
#: Most paths whose mount is remembered.
_PATHS_LIMIT = 100_000
_libc = ctypes.CDLL(None, use_errno=True)


class StorageHangs(ExporterError):
    """A mount did not answer within the deadline."""


class StorageBusy(ExporterError):
    """A mount answered others within the deadline, and not yet us: a fleet asks one thread."""


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


class Storage:
    """All mounts of this host that image files are on."""

    def __init__(
        self, look: Callable[[str], Sight] | None = None, pace: Pace | None = None
    ) -> None:
        """`look` replaces the system calls, in tests."""
        self._pace = pace or Pace()
        self._look = look or look_at
        self._mounts: dict[str, _Mount] = {}
        self._points: Mapping[str, str] = {}
        #: The mount of each path that was asked for, by `_points`.
        self._point_of: dict[str, str] = {}

    async def see(self, paths: Collection[str], timeout_seconds: float) -> dict[str, Sight]:
        """Ask the storage of each path for the file's attributes.

        Raises:
            StorageHangs: a mount did not answer in time, or still owes an earlier answer.
            StorageBusy: it answered others.
        """
        mounts = self._by_mount(paths)
        if not mounts:
            return {}
        if hanging := [mount.point for mount, _ in mounts if mount.hangs]:
            raise StorageHangs(f"{hanging[0]} has not answered since an earlier scrape")
        looks = [mount.looks for mount, _ in mounts]
        asked = [mount.ask(of_mount) for mount, of_mount in mounts]
        late = await self._late(asked, timeout_seconds)
        for (mount, _), answer, before in zip(mounts, asked, looks, strict=True):
            mount.hangs |= answer in late and mount.looks == before
        if hanging := [mount.point for mount, _ in mounts if mount.hangs]:
            raise StorageHangs(f"{hanging[0]} did not answer within {timeout_seconds:g} s")
        for answer in late:
            answer.cancel()  # nobody waits for it any more
        if late:
            raise StorageBusy(f"not every file was looked at within {timeout_seconds:g} s")
        return {path: sight for answer in asked for path, sight in answer.result().items()}

    def _by_mount(self, paths: Collection[str]) -> list[tuple[_Mount, list[str]]]:
        if not paths:
            return []
        points = mount_points()
        if points is not self._points:
            if points != self._points or len(self._point_of) > _PATHS_LIMIT:
                self._point_of = {}
            self._points = points
        by_mount: dict[str, list[str]] = {}
        for path in paths:
            if (point := self._point_of.get(path)) is None:
                point = self._point_of[path] = _mount_of(path, points)
            by_mount.setdefault(point, []).append(path)
        return [
            (self._mounts.setdefault(point, _Mount(point, self._look)), of_mount)
            for point, of_mount in by_mount.items()
        ]

    async def _late(
        self, asked: Sequence[asyncio.Future[dict[str, Sight]]], timeout_seconds: float
    ) -> Collection[asyncio.Future[dict[str, Sight]]]:
        """Wait for all, and return those that are not done in time."""
        # By hand: what asyncio has for it costs more than all the rest of a look.
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[None] = loop.create_future()
        left = len(asked)

        def answered(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._pace.release(decided)

        alarm = loop.call_later(timeout_seconds, self._pace.release, decided)
        for answer in asked:
            answer.add_done_callback(answered)
        try:
            await decided
        finally:
            alarm.cancel()
        return [answer for answer in asked if not answer.done()]

    async def see_network(self, timeout_seconds: float) -> None:
        """Ask every network and FUSE mount of this host: for a QEMU whose open files are not seen.

        Raises:
            StorageHangs: one did not answer.
            StorageBusy: it answered others.
        """
        await self.see(
            [point for point, kind in mount_points().items() if _is_network(kind)],
            timeout_seconds,
        )


class _Mount:
    """One mount and the thread that may hang in it."""

    def __init__(self, point: str, look: Callable[[str], Sight]) -> None:
        self.point = point
        #: Whether the thread owes an answer beyond its deadline.
        self.hangs = False
        #: How many files the thread has looked at.
        self.looks = 0
        self._look = look
        self._asked: queue.SimpleQueue[
            tuple[list[str], asyncio.AbstractEventLoop, asyncio.Future[dict[str, Sight]]]
        ] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, paths: list[str]) -> asyncio.Future[dict[str, Sight]]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Sight]] = loop.create_future()
        self._asked.put((paths, loop, answer))
        if self._thread is None:
            # A daemon: a thread that hangs must not keep the process from ending.
            self._thread = threading.Thread(
                target=self._run, name=f"canary {self.point}", daemon=True
            )
            self._thread.start()
        return answer

    def _run(self) -> None:
        recent: dict[str, Sight] = {}
        since = float("-inf")
        while True:
            paths, loop, answer = self._asked.get()
            if answer.cancelled():
                continue
            if time.monotonic() - since >= _RECENT_SECONDS:
                recent, since = {}, time.monotonic()
            # One look at least: that the mount answered a second ago says nothing of now.
            for path in [path for path in paths if path not in recent] or paths[:1]:
                recent[path] = self._look(path)
                self.looks += 1
            sights = {path: recent[path] for path in paths}
            try:
                loop.call_soon_threadsafe(self._answer, answer, sights)
            except RuntimeError:  # the loop was closed while this thread hung
                return

    def _answer(self, answer: asyncio.Future[dict[str, Sight]], sights: dict[str, Sight]) -> None:
        # In the loop, as `see` is: an answer at the deadline is either in time or unsets this.
        self.hangs = False
        if not answer.done():
            answer.set_result(sights)


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


def mount_points() -> Mapping[str, str]:
    """Return every mount point of this namespace with its file system's type, as a second ago."""
    global _mount_points, _mount_points_at
    if time.monotonic() - _mount_points_at >= _MOUNTS_SECONDS:
        _mount_points, _mount_points_at = _read_mount_points(), time.monotonic()
    return _mount_points


def _read_mount_points() -> dict[str, str]:
    points = {}
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]:
        fields, _, kinds = line.partition(" - ")
        point = fields.split(" ")[4]
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(code, character)
        points[point] = kinds.split(" ")[0]
    return points


def _mount_of(path: str, points: Container[str]) -> str:
    # By the name alone: to resolve a link is to ask the file system.
    folder = os.path.normpath(path).replace("//", "/")
    while folder not in points and folder != "/":
        folder = os.path.dirname(folder) or "/"
    return folder


def _is_network(kind: str) -> bool:
    return kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse.") or kind == "fuse"


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
