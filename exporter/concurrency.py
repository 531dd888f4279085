"""Keeps the event loop responsive: many waiters resumed a few at a time, blocking work in threads.

The answers of a thousand VMs may lie there at once, and each is worth some tenths of a
millisecond of decoding and rendering. Without the pacing, nobody else is served until all are done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: How many go on in one turn of the event loop. First contact with a VM is worth 2 ms, and a turn
#: costs some hundredths of one.
_AT_ONCE = 4
_THREADS = 4
_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="disk")


async def run_blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that waits for a disk in a thread of its own pool; return what it returns."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool, lambda: function(*args, **kwargs))


class LoopPacer:
    """Lets those who wait go on, a few in each turn of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def turn(self) -> None:
        """Wait for one's turn."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.release(future)
        await future

    def release(self, future: asyncio.Future[None]) -> None:
        """Complete a future, in this turn of the loop or in one that soon follows."""
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
