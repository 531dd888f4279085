"""The flags of the serving commands, and the settings made from them."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Mapping
from typing import get_args

from exporter import __version__
from exporter.api import ROOT
from exporter.config import (
    DEFAULT_PORT,
    DEFAULT_SOCKETS,
    Connection,
    Settings,
    Topology,
    check_glob,
)
from exporter.ctl import OPERATING
from exporter.errors import ConfigError
from exporter.metrics import COLLECTORS
from exporter.process import Parser, seconds
from exporter.web import GRACE_SECONDS, OTHER_PATHS, Options

#: systemd passes the directory that it created in $STATE_DIRECTORY. [systemd.exec(5)]
DEFAULT_STATE = "/var/lib/qemu-block-exporter"
_PATH = re.compile(r"[\w./~-]*", re.ASCII)

#: The serving commands, each with what it does.
SERVING = {
    "serve": "serve metrics over HTTP (the default)",
    "once": "collect once, print the metrics, and exit",
    "demo": "run small virtual machines with block jobs, and serve their metrics",
}


def settings(flags: argparse.Namespace) -> Settings:
    """Return the settings from the flags, which apply unless the config file overrides them.

    Raises:
        ConfigError: a glob can never match a socket.
    """
    made = Settings(
        timeout_seconds=flags.qmp_timeout,
        connection=flags.qmp_connection,
        without=frozenset(name for name in COLLECTORS if not getattr(flags, f"collector_{name}")),
        nodes=flags.collector_nodes,
        topology=flags.collector_topology,
        topology_max_age_seconds=flags.collector_topology_max_age,
    )
    for pattern in flags.qmp_sockets:
        check_glob(pattern, "--qmp.sockets")
    return made


def web(flags: argparse.Namespace) -> Options:
    """Return the options of the HTTP endpoints.

    Raises:
        ConfigError: a path or a number is not valid.
    """
    prefix = flags.web_route_prefix
    if prefix is None:
        prefix = flags.web_external_url.partition("://")[2].partition("/")[2]
    prefix = "/" + prefix.strip("/") if prefix.strip("/") else ""
    if not flags.web_telemetry_path.startswith("/"):
        raise ConfigError(
            f"--web.telemetry-path: must begin with /, got {flags.web_telemetry_path!r}"
        )
    if flags.web_telemetry_path in OTHER_PATHS or flags.web_telemetry_path.startswith(f"{ROOT}/"):
        raise ConfigError(
            f"--web.telemetry-path: must not be another page's path, got {flags.web_telemetry_path!r}"
        )
    for flag, path in (("telemetry-path", flags.web_telemetry_path), ("route-prefix", prefix)):
        if not _PATH.fullmatch(path):
            raise ConfigError(f"--web.{flag}: must be a path such as /metrics, got {path!r}")
    if flags.web_max_requests < 0:
        raise ConfigError(
            f"--web.max-requests: must be 0 (no limit) or more, got {flags.web_max_requests}"
        )
    return Options(
        telemetry_path=flags.web_telemetry_path,
        route_prefix=prefix,
        max_requests=flags.web_max_requests,
        exporter_metrics=flags.exporter_metrics,
        lifecycle=flags.web_enable_lifecycle,
        timeout_seconds=flags.qmp_timeout + GRACE_SECONDS,
    )


def parser() -> argparse.ArgumentParser:
    """Build the argument parser of the serving commands."""
    made = Parser(
        prog="qemu-block-exporter",
        description="Prometheus exporter for the block layer of QEMU virtual machines.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"serving:\n{_listed(SERVING)}\n\n"
        f"operating, through a running exporter's HTTP API (COMMAND --help):\n{_listed(OPERATING)}",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("command", nargs="?", choices=SERVING, default="serve", metavar="COMMAND",
        help="serve, once or demo; or, before all flags, one of the operating commands")  # fmt: skip
    add("--version", action="version", version=_version())
    add(
        "--config.file", dest="config_file", metavar="FILE", help="YAML file with groups of targets"
    )
    add("--config.check", dest="config_check", action="store_true",
        help="check the configuration and exit")  # fmt: skip

    qmp = made.add_argument_group("monitor sockets").add_argument
    qmp("--qmp.sockets", dest="qmp_sockets", action="append", default=[], metavar="GLOB",
        help=f"monitor sockets to collect from; may be repeated (default: {DEFAULT_SOCKETS})")  # fmt: skip
    qmp("--qmp.timeout", dest="qmp_timeout", type=seconds, default=5.0, metavar="SECONDS",
        help="how long one VM may take to answer (default: 5)")  # fmt: skip
    qmp("--qmp.connection", dest="qmp_connection", choices=get_args(Connection),
        default="persistent",
        help="per-scrape for a socket shared with another tool (default: persistent)")  # fmt: skip

    collector = made.add_argument_group("collectors").add_argument
    for name, text in COLLECTORS.items():
        collector(f"--collector.{name}", dest=f"collector_{name}", default=True,
                  action=argparse.BooleanOptionalAction, help=text)  # fmt: skip
    collector("--collector.nodes", dest="collector_nodes", default=False,
              action=argparse.BooleanOptionalAction,
              help="nodes under no device; adds half the cost of a query-blockstats in QEMU")  # fmt: skip
    collector("--collector.topology", dest="collector_topology", choices=get_args(Topology),
              default="auto",
              help="when to send query-block; auto: only while the storage answers (default: auto)")  # fmt: skip
    collector("--collector.topology.max-age", dest="collector_topology_max_age", type=seconds,
              default=60.0, metavar="SECONDS",
              help="how old its reply may be before it is sent again (default: 60)")  # fmt: skip

    web = made.add_argument_group("web").add_argument
    web("--web.listen-address", dest="web_listen_address", action=_Replace, metavar="HOST:PORT",
        default=[f"127.0.0.1:{DEFAULT_PORT}"],
        help=f"address to listen on; may be repeated (default: 127.0.0.1:{DEFAULT_PORT})")  # fmt: skip
    web("--web.systemd-socket", dest="web_systemd_socket", action="store_true",
        help="listen on the sockets of systemd's socket activation")  # fmt: skip
    web("--web.config.file", dest="web_config_file", default="", metavar="FILE",
        help="file with TLS, users and headers, in the format of Prometheus exporters")  # fmt: skip
    web("--web.telemetry-path", dest="web_telemetry_path", default="/metrics", metavar="PATH",
        help="path of the metrics (default: /metrics)")  # fmt: skip
    web("--web.max-requests", dest="web_max_requests", type=int, default=40, metavar="N",
        help="how many scrapes are served at once, 0 for no limit (default: 40)")  # fmt: skip
    web("--web.disable-exporter-metrics", dest="exporter_metrics", action="store_false",
        help="leave out the metrics about the exporter itself")  # fmt: skip
    web("--web.enable-lifecycle", dest="web_enable_lifecycle", action="store_true",
        help="allow reloading by POST /-/reload")  # fmt: skip
    web("--web.enable-admin-api", dest="web_enable_admin_api", action="store_true",
        help="let users start and end block jobs, as far as the configuration grants it")  # fmt: skip
    web("--web.external-url", dest="web_external_url", default="", metavar="URL",
        help="URL under which the exporter is reachable, if behind a proxy")  # fmt: skip
    web("--web.route-prefix", dest="web_route_prefix", metavar="PATH",
        help="prefix of every path (default: the path of --web.external-url)")  # fmt: skip

    admin = made.add_argument_group("admin API").add_argument
    admin("--admin.state-directory", dest="admin_state_directory", metavar="DIR",
          default=os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or DEFAULT_STATE,
          help=f"where commits and snapshots are recorded for 7 days (default: {DEFAULT_STATE})")  # fmt: skip

    logs = made.add_argument_group("logging").add_argument
    logs("--log.level", dest="log_level", choices=("debug", "info", "warn", "error"),
         default="info", help="lowest level to log (default: info)")  # fmt: skip
    logs("--log.format", dest="log_format", choices=("logfmt", "json"), default="logfmt",
         help="format of log lines (default: logfmt)")  # fmt: skip
    return made


def _version() -> str:
    return (
        f"qemu-block-exporter, version {__version__}\n"
        f"  python: {platform.python_version()}\n  platform: {sys.platform}/{platform.machine()}"
    )


def _listed(commands: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:10}{text}" for name, text in commands.items())


class _Replace(argparse.Action):
    """Like `append`, but the first value given replaces the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        chosen = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [values] if chosen is self.default else [*chosen, values])
