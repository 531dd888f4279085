"""The exporter with its event loop watched: how long was it busy with other than waiting?

    python -m bench.watched REPORT [--each-its-own-sweep] FLAG...

runs the exporter with the flags, and after each turn of the loop that took longer than any before
writes to the file REPORT: seconds of the longest turn, how many turns took over 20 ms, and seconds
of the longest without the time that the thread was ready to run and had no core: that is the
machine's, which has fewer cores than the bench has processes. SIGUSR1 starts anew.
`--each-its-own-sweep` has scrapes join no sweep, so that thousands can be made.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from exporter.cli import entry
from exporter.collect import fleet

LIMIT_SECONDS = 0.02


class WatchedLoop(asyncio.SelectorEventLoop):
    """An event loop that knows its longest turn."""

    report = Path()

    def __init__(self) -> None:
        super().__init__()
        self._began = 0.0
        self._waited_before = 0
        self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self.forget()
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def watched(timeout: float | None = None) -> Any:
            found = select(timeout)
            self._waited_before = self._waited()
            self._began = time.perf_counter()
            return found

        selector.select = watched

    def forget(self) -> None:
        """Start anew."""
        self._longest = self._longest_own = 0.0
        self._over = 0

    def _waited(self) -> int:
        """Return the nanoseconds that this thread has waited for a core so far."""
        return int(os.pread(self._schedstat, 100, 0).split()[1])

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        took = time.perf_counter() - self._began
        own = took - (self._waited() - self._waited_before) / 1e9
        self._over += took > LIMIT_SECONDS
        if took > self._longest or own > self._longest_own or took > LIMIT_SECONDS:
            self._longest = max(took, self._longest)
            self._longest_own = max(own, self._longest_own)
            found = {
                "longest_seconds": self._longest,
                "turns_over_limit": self._over,
                "longest_with_a_core_seconds": self._longest_own,
            }
            self.report.write_text(json.dumps(found))


class Policy(asyncio.DefaultEventLoopPolicy):
    """Makes watched loops."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = WatchedLoop()
        signal.signal(signal.SIGUSR1, lambda *_: loop.forget())
        return loop


def main() -> int:
    report, *flags = sys.argv[1:]
    WatchedLoop.report = Path(report)
    if "--each-its-own-sweep" in flags:
        flags.remove("--each-its-own-sweep")
        fleet.JOIN_SECONDS = 0.0
    asyncio.set_event_loop_policy(Policy())
    return entry.main(flags)


if __name__ == "__main__":
    sys.exit(main())
