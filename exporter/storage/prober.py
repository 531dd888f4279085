"""Probes whether the storage of image files answers, without risking QEMU.

query-block and query-named-block-nodes stat every image file in QEMU's main loop. On storage that
hangs (a dead NFS server) they stop the whole VM, so this probes first, from a thread that may be
lost. There is one thread per file system; while it hangs, the file system counts as hanging and
gets no second thread. A name may lead to another file system than it seems to: names are probed by
separate threads, so that one that hangs does not affect the probing of open files.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from exporter.concurrency import LoopPacer
from exporter.errors import ExporterError
from exporter.storage import mounts
from exporter.storage.file_stat import FileStat, stat_file
from exporter.storage.mounts import Mount
from exporter.storage.open_files import OpenFile
from exporter.storage.proxies import Host

#: How long the result for a file is reused: the VMs of a fleet share layers.
_RECENT_SECONDS = 2.0
#: How long it is remembered which QEMU has files on hanging storage.
_HOST_SECONDS = 5.0
#: Most paths whose mount is remembered.
_PATHS_LIMIT = 100_000

#: What a thread is to probe: the key of a file -> the path to look at.
_Questions = Mapping[str, str]


class StorageHangs(ExporterError):
    """A file system did not answer within the deadline."""


class StorageBusy(ExporterError):
    """A file system is answering, but this request did not get its turn: a fleet shares one thread."""


class Storage:
    """Probes all file systems of this host that hold image files."""

    def __init__(
        self, look: Callable[[str], FileStat] | None = None, pace: LoopPacer | None = None
    ) -> None:
        """`look` replaces the system calls, in tests."""
        self._pace = pace or LoopPacer()
        self._look = look or stat_file
        #: For open files, by the device of their file system.
        self._files: dict[str, _Thread] = {}
        #: For names that seem to lead there.
        self._names: dict[str, _Thread] = {}
        self._points: Mapping[str, Mount] = {}
        #: The mount of each path so far, by `_points`.
        self._mount_of: dict[str, Mount] = {}
        #: The QEMUs of this host while the file systems `_hung` were hanging.
        self._host: asyncio.Future[Host] | None = None
        self._hung: frozenset[str] = frozenset()
        self._host_at = float("-inf")

    async def see(self, paths: Collection[str], timeout_seconds: float) -> dict[str, FileStat]:
        """Return the attributes of the file that each path leads to.

        Raises:
            StorageHangs: a file system did not answer in time, or has not answered an earlier probe.
            StorageBusy: it is answering, but not all files were probed in time.
        """
        return await self._see(self._by_mount(paths), timeout_seconds)

    async def see_open(
        self, files: Collection[OpenFile], timeout_seconds: float, *, anew: bool = False
    ) -> dict[OpenFile, FileStat]:
        """Return the attributes of files that a process has open, whatever their names.

        `anew`: do not reuse recent results.

        Raises:
            StorageHangs: a file system did not answer in time, or has not answered an earlier probe.
            StorageBusy: it is answering, but not all files were probed in time.
        """
        by_thread: dict[_Thread, dict[str, str]] = {}
        for file in files:
            by_thread.setdefault(self._thread(file.mount), {})[file.key] = file.path
        stats = await self._see(by_thread, timeout_seconds, anew=anew)
        return {file: stats[file.key] for file in files}

    async def see_names(
        self, names: Mapping[str, str | None], timeout_seconds: float, *, anew: bool = False
    ) -> dict[str, FileStat]:
        """Return the attributes of the files that names lead to, without those that do not answer.

        `names` maps a path to the device that it seems to lead to, None to go by its mount.
        `anew`: do not reuse recent results.
        """
        by_thread = self._by_mount([path for path, device in names.items() if device is None])
        for path, device in names.items():
            if device is not None:
                by_thread.setdefault(self._thread_of_names(device, path), {})[path] = path
        answers = await asyncio.gather(
            *(
                self._see({thread: asked}, timeout_seconds, anew=anew)
                for thread, asked in by_thread.items()
            ),
            return_exceptions=True,
        )
        found: dict[str, FileStat] = {}
        for answer in answers:
            if isinstance(answer, dict):
                found |= answer
            elif not isinstance(answer, StorageHangs | StorageBusy):
                raise answer
        return found

    async def hanging(self, asked: Iterable[Mount], timeout_seconds: float) -> list[Mount]:
        """Probe the roots of mounts of this namespace, and return those that do not answer.

        Raises:
            StorageBusy: one is answering, but was not probed in time.
        """
        each = list(asked)
        answers = await asyncio.gather(
            *(
                self._see({self._thread(mount): {mount.point: mount.point}}, timeout_seconds)
                for mount in each
            ),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, StorageHangs):
                raise answer
        return [
            mount
            for mount, answer in zip(each, answers, strict=True)
            if isinstance(answer, StorageHangs)
        ]

    async def may_be_of(self, hanging: Collection[Mount], relay: int) -> bool:
        """Whether the QEMU behind the process `relay` may have files on mounts that hang."""
        devices = frozenset(mount.device for mount in hanging)
        is_old = time.monotonic() - self._host_at >= _HOST_SECONDS
        if self._host is None or is_old or not devices <= self._hung:
            # Cached, since a host has many processes: nothing can be opened on what already hung.
            self._host = asyncio.ensure_future(asyncio.to_thread(Host))
            self._hung, self._host_at = devices, time.monotonic()
        return (await asyncio.shield(self._host)).has_files_on(devices, relay)

    async def _see(
        self,
        by_thread: Mapping[_Thread, _Questions],
        timeout_seconds: float,
        *,
        anew: bool = False,
    ) -> dict[str, FileStat]:
        if not by_thread:
            return {}
        asking = list(by_thread.items())
        if hanging := [thread.point for thread, _ in asking if thread.hangs]:
            raise StorageHangs(f"{hanging[0]} has not answered since an earlier scrape")
        looks = [thread.looks for thread, _ in asking]
        asked = [thread.ask(questions, anew=anew) for thread, questions in asking]
        late = await self._late(asked, timeout_seconds)
        for (thread, _), answer, before in zip(asking, asked, looks, strict=True):
            thread.hangs |= answer in late and thread.looks == before
        if hanging := [thread.point for thread, _ in asking if thread.hangs]:
            raise StorageHangs(f"{hanging[0]} did not answer within {timeout_seconds:g} s")
        for answer in late:
            answer.cancel()  # it is no longer needed
        if late:
            raise StorageBusy(f"not every file was checked within {timeout_seconds:g} s")
        return {key: seen for answer in asked for key, seen in answer.result().items()}

    def _by_mount(self, paths: Collection[str]) -> dict[_Thread, dict[str, str]]:
        by_thread: dict[_Thread, dict[str, str]] = {}
        if not paths:
            return by_thread
        points = mounts.points()
        if points is not self._points:
            if points != self._points or len(self._mount_of) > _PATHS_LIMIT:
                self._mount_of = {}
            self._points = points
        for path in paths:
            if (mount := self._mount_of.get(path)) is None:
                point = mounts.point_of(path, points)
                mount = self._mount_of[path] = points.get(point) or Mount(point, point, "")
            by_thread.setdefault(self._thread_of_names(mount.device, mount.point), {})[path] = path
        return by_thread

    def _thread(self, mount: Mount) -> _Thread:
        """Return the thread that probes the open files of a file system."""
        if (thread := self._files.get(mount.device)) is None:
            thread = self._files[mount.device] = _Thread(mount.point, self._look)
        return thread

    def _thread_of_names(self, device: str, point: str) -> _Thread:
        # No second thread enters a file system that is known to hang.
        if (thread := self._files.get(device)) is not None and thread.hangs:
            return thread
        if (thread := self._names.get(device)) is None:
            thread = self._names[device] = _Thread(point, self._look)
        return thread

    async def _late(
        self, asked: Sequence[asyncio.Future[dict[str, FileStat]]], timeout_seconds: float
    ) -> Collection[asyncio.Future[dict[str, FileStat]]]:
        """Wait for all futures, and return those that are not done in time."""
        # Not asyncio.wait, which costs more than all the rest of a probe.
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


class _Thread:
    """A thread that probes one file system, and may hang there."""

    def __init__(self, point: str, look: Callable[[str], FileStat]) -> None:
        self.point = point
        #: Whether the thread has exceeded a deadline and not answered since.
        self.hangs = False
        #: Number of files that the thread has probed.
        self.looks = 0
        self._look = look
        self._asked: queue.SimpleQueue[
            tuple[_Questions, bool, asyncio.AbstractEventLoop, asyncio.Future[dict[str, FileStat]]]
        ] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, questions: _Questions, *, anew: bool) -> asyncio.Future[dict[str, FileStat]]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, FileStat]] = loop.create_future()
        self._asked.put((questions, anew, loop, answer))
        if self._thread is None:
            # A daemon: a thread that hangs must not keep the process from ending.
            self._thread = threading.Thread(
                target=self._run, name=f"canary {self.point}", daemon=True
            )
            self._thread.start()
        return answer

    def _run(self) -> None:
        recent: dict[str, FileStat] = {}
        since = float("-inf")
        while True:
            questions, anew, loop, answer = self._asked.get()
            if answer.cancelled():
                continue
            if anew or time.monotonic() - since >= _RECENT_SECONDS:
                recent, since = {}, time.monotonic()
            # At least one probe: that it answered a second ago does not mean that it does now.
            for key in [key for key in questions if key not in recent] or [*questions][:1]:
                recent[key] = self._look(questions[key])
                self.looks += 1
            seen = {key: recent[key] for key in questions}
            try:
                loop.call_soon_threadsafe(self._answer, answer, seen)
            except RuntimeError:  # the loop was closed while this thread hung
                return

    def _answer(
        self, answer: asyncio.Future[dict[str, FileStat]], seen: dict[str, FileStat]
    ) -> None:
        # Runs in the event loop, like `_see`: an answer at the deadline is in time or resets this.
        self.hangs = False
        if not answer.done():
            answer.set_result(seen)
