"""The audit trail: a line for each request to change something, and how many of each there were."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

log = logging.getLogger("exporter.admin.audit")
#: Whatever the level of other lines.
log.setLevel(logging.INFO)

#: What this program does by itself: it lets go of jobs whose outcome is recorded, and has QEMU keep
#: the histograms that the configuration asks for.
OWN = ("auto_dismiss", "latency_histogram")
#: done: QEMU did it. dry_run: all was checked. replayed: it was accepted before. refused: nothing
#: was sent. rejected: QEMU answered with an error. unknown: no answer came.
DONE, DRY_RUN, REPLAYED, REFUSED, REJECTED, UNKNOWN = RESULTS = (
    "done", "dry_run", "replayed", "refused", "rejected", "unknown",
)  # fmt: skip


class Audit:
    """Counts of each action and result, each at 0 from the start."""

    def __init__(self, actions: Iterable[str] = OWN) -> None:
        self.counts: Counter[tuple[str, str]] = Counter(
            {(action, result): 0 for action in actions for result in RESULTS}
        )

    def record(self, action: str, result: str, about: Mapping[str, object]) -> None:
        """Write a line and count. What is `about` is public: no credential, no file's secrets."""
        if (action, result) in self.counts:
            self.counts[action, result] += 1
        log.info("action", extra={"action": action, "result": result, **about})
