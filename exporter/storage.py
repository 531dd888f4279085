"""The canary: does the storage of an image file answer?

query-block and query-named-block-nodes stat every image file on QEMU's main loop. On storage that
hangs (a dead NFS server) they stop the whole VM, so this asks first, from a thread that can be
lost. There is one thread per mount; while one hangs, its mount counts as hanging and gets no
second one.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from exporter import mounts
from exporter.errors import ExporterError
from exporter.pace import Pace
from exporter.sight import Sight, look_at

#: Longest that what was seen of one file is told to others: the VMs of a fleet share layers.
_RECENT_SECONDS = 2.0
#: Most paths whose mount is remembered.
_PATHS_LIMIT = 100_000


class StorageHangs(ExporterError):
    """A mount did not answer within the deadline."""


class StorageBusy(ExporterError):
    """A mount answered others within the deadline, and not yet us: a fleet asks one thread."""


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
        asking = self._by_mount(paths)
        if not asking:
            return {}
        if hanging := [mount.point for mount, _ in asking if mount.hangs]:
            raise StorageHangs(f"{hanging[0]} has not answered since an earlier scrape")
        looks = [mount.looks for mount, _ in asking]
        asked = [mount.ask(of_mount) for mount, of_mount in asking]
        late = await self._late(asked, timeout_seconds)
        for (mount, _), answer, before in zip(asking, asked, looks, strict=True):
            mount.hangs |= answer in late and mount.looks == before
        if hanging := [mount.point for mount, _ in asking if mount.hangs]:
            raise StorageHangs(f"{hanging[0]} did not answer within {timeout_seconds:g} s")
        for answer in late:
            answer.cancel()  # nobody waits for it any more
        if late:
            raise StorageBusy(f"not every file was looked at within {timeout_seconds:g} s")
        return {path: sight for answer in asked for path, sight in answer.result().items()}

    def _by_mount(self, paths: Collection[str]) -> list[tuple[_Mount, list[str]]]:
        if not paths:
            return []
        points = mounts.points()
        if points is not self._points:
            if points != self._points or len(self._point_of) > _PATHS_LIMIT:
                self._point_of = {}
            self._points = points
        by_mount: dict[str, list[str]] = {}
        for path in paths:
            if (point := self._point_of.get(path)) is None:
                point = self._point_of[path] = mounts.point_of(path, points)
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
            [point for point, kind in mounts.points().items() if mounts.is_network(kind)],
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
