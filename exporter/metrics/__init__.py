"""THE TABLE of metrics, and the types of its rows. No I/O."""

from __future__ import annotations

from exporter.metrics.table import (
    BITMAPS,
    COLLECTORS,
    INTERVALS,
    IO,
    JOBS,
    METRICS,
    NODES,
    STATE,
    THROTTLE,
)
from exporter.metrics.types import NS, Metric, Scope, ZeroMeaning

__all__ = [
    "BITMAPS",
    "COLLECTORS",
    "INTERVALS",
    "IO",
    "JOBS",
    "METRICS",
    "NODES",
    "NS",
    "STATE",
    "THROTTLE",
    "Metric",
    "Scope",
    "ZeroMeaning",
]
