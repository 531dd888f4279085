"""Log lines that clients can cause: a few at once, then one now and then, with a count of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from logging import Logger

#: Lines at once, and how long it is from one to the next after them.
_BURST = 5
_INTERVAL_SECONDS = 10.0


class LogLimit:
    """A log of one kind of event, limited in rate."""

    def __init__(self, log: Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        #: When all lines of a burst may be logged again.
        self._full_at = clock()
        self._left_out = 0

    def log(self, level: int, message: str, extra: Mapping[str, object]) -> None:
        """Log a line, or count it as left out."""
        now = self._clock()
        full_at = max(self._full_at, now)
        if full_at - now > (_BURST - 1) * _INTERVAL_SECONDS:
            self._left_out += 1
            return
        self._full_at = full_at + _INTERVAL_SECONDS
        counted = {"left_out": self._left_out} if self._left_out else {}
        self._left_out = 0
        self._log.log(level, message, extra={**extra, **counted}, stacklevel=2)
