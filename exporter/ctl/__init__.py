"""The operators' commands: an HTTP client of a running exporter. The serving process loads none of it.

`exporter.ctl.main`, which runs them, loads rich: only who runs a command imports it.
"""

from __future__ import annotations

from exporter.ctl.commands import OPERATING

__all__ = ["OPERATING"]
