"""What a process needs of any kind: logging, systemd, garbage collection, reading flags."""

from __future__ import annotations

from exporter.process import gc_tuning, logs
from exporter.process.arguments import Parser, seconds
from exporter.process.logs import Formatter

__all__ = ["Formatter", "Parser", "gc_tuning", "logs", "seconds"]
