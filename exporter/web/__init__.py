"""The HTTP side: endpoints, users, TLS."""

from __future__ import annotations

from exporter.web.api_read import GRACE_SECONDS, ReadApi
from exporter.web.api_write import WriteApi
from exporter.web.app import OTHER_PATHS, Endpoints, Options
from exporter.web.auth import AuthMiddleware, user_of
from exporter.web.server import listen, serve
from exporter.web.watched_config import WatchedWebConfig

__all__ = [
    "GRACE_SECONDS",
    "OTHER_PATHS",
    "AuthMiddleware",
    "Endpoints",
    "Options",
    "ReadApi",
    "WatchedWebConfig",
    "WriteApi",
    "listen",
    "serve",
    "user_of",
]
