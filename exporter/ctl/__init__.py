"""The operators' commands: an HTTP client of a running exporter.

`exporter.ctl.main`, which runs them, loads rich: import it only to run a command. The serving
process loads only the list of commands.
"""

from __future__ import annotations

from exporter.ctl.commands import OPERATING

__all__ = ["OPERATING"]
