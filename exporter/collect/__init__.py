"""Discovery, the fleet and its sweeps, and what is asked of one VM."""

from __future__ import annotations

from exporter.collect.discovery import printable
from exporter.collect.fleet import Fleet
from exporter.collect.scrape_target import Collected, Observer, ScrapeTarget
from exporter.collect.topology_cache import CANARY_SECONDS
from exporter.collect.vm import Vm

__all__ = ["CANARY_SECONDS", "Collected", "Fleet", "Observer", "ScrapeTarget", "Vm", "printable"]
