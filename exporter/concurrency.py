"""Keeps the event loop responsive: waiters are resumed a few at a time, blocking work runs in threads.

The replies of a thousand VMs may arrive at once, and each takes some tenths of a millisecond to
decode and render. Without pacing, nothing else is served until all of them are done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: How many waiters are resumed per iteration of the event loop. First contact with a VM takes 2 ms;
#: an iteration itself costs some hundredths of a millisecond.
_AT_ONCE = 4
_THREADS = 4
_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="disk")


async def run_blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a thread pool reserved for disk I/O, and return its result.

    What hangs there delays no scrape.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool, lambda: function(*args, **kwargs))


class LoopPacer:
    """Resumes waiting tasks, a few per iteration of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def turn(self) -> None:
        """Wait until this task is resumed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.release(future)
        await future

    def release(self, future: asyncio.Future[None]) -> None:
        """Complete a future, in the next iteration of the loop or soon after."""
        self._waiting.append(future)
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        for _ in range(min(_AT_ONCE, len(self._waiting))):
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
        self._turning = bool(self._waiting)
        if self._turning:
            asyncio.get_running_loop().call_soon(self._turn)
