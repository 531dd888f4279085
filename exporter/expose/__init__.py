"""Table x state -> bytes per family -> exposition."""

from __future__ import annotations

from exporter.expose import exposition
from exporter.expose.plan import CachedLines, FamilyBytes, Plan, render_exporter

__all__ = ["CachedLines", "FamilyBytes", "Plan", "exposition", "render_exporter"]
