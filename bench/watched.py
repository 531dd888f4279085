"""The exporter with its event loop watched: how long was it busy with other than waiting?

    python -m bench.watched REPORT [--each-its-own-sweep] FLAG...

runs the exporter with the flags, and after each turn of the loop that took longer than any before
writes to the file REPORT: seconds of the longest turn, and how many turns took over 20 ms. SIGUSR1
starts anew. `--each-its-own-sweep` has scrapes join no sweep, so that thousands can be made.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from exporter import cli, scrape

LIMIT_SECONDS = 0.02


class WatchedLoop(asyncio.SelectorEventLoop):
    """An event loop that knows its longest turn."""

    report = Path()

    def __init__(self) -> None:
        super().__init__()
        self._began = 0.0
        self.forget()
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def watched(timeout: float | None = None) -> Any:
            found = select(timeout)
            self._began = time.perf_counter()
            return found

        selector.select = watched

    def forget(self) -> None:
        """Start anew."""
        self._longest, self._over = 0.0, 0

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        took = time.perf_counter() - self._began
        self._over += took > LIMIT_SECONDS
        if took > self._longest or took > LIMIT_SECONDS:
            self._longest = max(took, self._longest)
            self.report.write_text(
                json.dumps({"longest_seconds": self._longest, "turns_over_limit": self._over})
            )


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
        scrape.JOIN_SECONDS = 0.0
    asyncio.set_event_loop_policy(Policy())
    return cli.main(flags)


if __name__ == "__main__":
    sys.exit(main())
