"""Settings, from the flags and the config file."""

from __future__ import annotations

from exporter.config import yaml_file
from exporter.config.settings import (
    DEFAULT_PORT,
    DEFAULT_SOCKETS,
    Config,
    Connection,
    Grant,
    Group,
    LatencyHistograms,
    Settings,
    Topology,
    check_glob,
    describe,
    load,
)

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_SOCKETS",
    "Config",
    "Connection",
    "Grant",
    "Group",
    "LatencyHistograms",
    "Settings",
    "Topology",
    "check_glob",
    "describe",
    "load",
    "yaml_file",
]
