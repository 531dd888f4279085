"""Table x state -> bytes per family -> exposition."""

from __future__ import annotations

from exporter.expose import exposition
from exporter.expose.plan import Blobs, Kept, Plan, render_exporter

__all__ = ["Blobs", "Kept", "Plan", "exposition", "render_exporter"]
