"""Tracks jobs between scrapes, and finds out how they ended. No I/O, no clock."""

from __future__ import annotations

from exporter.jobs.events import Events
from exporter.jobs.outcomes import End
from exporter.jobs.tracker import JobTracker
from exporter.jobs.verdict import CANCELLED, COMPLETED

__all__ = ["CANCELLED", "COMPLETED", "End", "Events", "JobTracker"]
