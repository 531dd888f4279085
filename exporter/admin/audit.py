"""The audit log: one line per request to change something, and counters of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

log = logging.getLogger("exporter.admin.audit")
#: Audit lines are written whatever the level of other loggers.
log.setLevel(logging.INFO)

#: Actions of the program itself: it dismisses jobs whose outcome is recorded, and sets the histograms
#: that the configuration asks for.
OWN = ("auto_dismiss", "latency_histogram")
#: done: QEMU did it. dry_run: checked only. replayed: accepted before. refused: nothing was sent.
#: rejected: QEMU replied with an error. unknown: no reply came.
DONE, DRY_RUN, REPLAYED, REFUSED, REJECTED, UNKNOWN = RESULTS = (
    "done", "dry_run", "replayed", "refused", "rejected", "unknown",
)  # fmt: skip


class Audit:
    """Writes the audit log, and counts its lines per action and result, which start at 0."""

    def __init__(self, actions: Iterable[str] = OWN) -> None:
        self.counts: Counter[tuple[str, str]] = Counter(
            {(action, result): 0 for action in actions for result in RESULTS}
        )

    def record(self, action: str, result: str, about: Mapping[str, object]) -> None:
        """Write a line and count. `about` must be public: no credentials, in file names either."""
        if (action, result) in self.counts:
            self.counts[action, result] += 1
        log.info("action", extra={"action": action, "result": result, **about})
