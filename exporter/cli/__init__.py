"""The command line: which half of the program is meant, so that only that is loaded."""

from __future__ import annotations

from exporter.cli.entry import main

__all__ = ["main"]
