"""The HTTP side: endpoints, users, TLS."""

from __future__ import annotations

from exporter.web.api_read import GRACE_SECONDS, Reading
from exporter.web.api_write import Changing
from exporter.web.app import OTHER_PATHS, Endpoints, Options
from exporter.web.auth import Gate, user_of
from exporter.web.server import listen, serve
from exporter.web.watched_config import Live

__all__ = [
    "GRACE_SECONDS",
    "OTHER_PATHS",
    "Changing",
    "Endpoints",
    "Gate",
    "Live",
    "Options",
    "Reading",
    "listen",
    "serve",
    "user_of",
]
