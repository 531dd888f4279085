"""The operators' commands: an HTTP client of a running exporter. The serving process loads none of it."""

from __future__ import annotations

from exporter.ctl import main
from exporter.ctl.commands import OPERATING

__all__ = ["OPERATING", "main"]
