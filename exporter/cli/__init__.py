"""The command line: loads and runs the half of the program that is called for."""

from __future__ import annotations

from exporter.cli.entry import main

__all__ = ["main"]
