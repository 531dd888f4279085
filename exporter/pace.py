"""Work in slices: of the many who could go on, few enough that the event loop turns on.

The answers of a thousand VMs may lie there at once, and each is worth some tenths of a
millisecond of decoding and rendering. Without this, nobody else is served until all are done.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

#: What one turn of the event loop may take, about.
SLICE_SECONDS = 0.004
_MOST = 256


class Pace:
    """Lets those who wait go on, as many in a turn as the last turns took time for."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        #: How many go on in one turn.
        self._many = 4
        self._turn_began = 0.0
        self._turning = False

    def release(self, future: asyncio.Future[None]) -> None:
        """Complete a future, in this turn of the loop or in one that soon follows."""
        self._waiting.append(future)
        if not self._turning:
            self._turning = True
            self._turn_began = time.perf_counter()
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        now = time.perf_counter()
        took, self._turn_began = now - self._turn_began, now
        if took > SLICE_SECONDS:
            self._many = max(1, self._many // 2)
        elif took < SLICE_SECONDS / 2:
            self._many = min(_MOST, self._many + 2)
        for _ in range(min(self._many, len(self._waiting))):
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
        self._turning = bool(self._waiting)
        if self._turning:
            asyncio.get_running_loop().call_soon(self._turn)
