"""Tracks jobs between scrapes, and finds out how they ended. No I/O, no clock."""

from __future__ import annotations

from exporter.jobs.assembler import Assembler, JobReplies, Replies
from exporter.jobs.memory import VmMemory
from exporter.jobs.outcomes import End
from exporter.jobs.places import JobPlaces
from exporter.jobs.tracker import JobTracker
from exporter.jobs.verdict import CANCELLED, COMPLETED

__all__ = [
    "CANCELLED",
    "COMPLETED",
    "Assembler",
    "End",
    "JobPlaces",
    "JobReplies",
    "JobTracker",
    "Replies",
    "VmMemory",
]
