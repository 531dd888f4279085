"""The process among others: its log, systemd, the collector of cycles, its command line."""

from __future__ import annotations

from exporter.process import gc_tuning, logs
from exporter.process.arguments import Parser, seconds
from exporter.process.logs import Formatter

__all__ = ["Formatter", "Parser", "gc_tuning", "logs", "seconds"]
