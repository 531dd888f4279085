"""The serving commands: reads their flags and starts what they ask for."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from exporter.admin import service
from exporter.cli import serve_flags
from exporter.collect import Fleet, printable
from exporter.config import Config, Settings, load
from exporter.errors import ConfigError
from exporter.expose import exposition
from exporter.process import gc_tuning, logs
from exporter.web import (
    GRACE_SECONDS,
    AuthMiddleware,
    Endpoints,
    Options,
    ReadApi,
    WatchedWebConfig,
    WriteApi,
    listen,
    serve,
    user_of,
)

log = logging.getLogger(__name__)


def run(arguments: Sequence[str]) -> int:
    """Serve, collect once or run the demo, as the flags say, and return the exit code.

    Raises:
        ConfigError: a flag or a file is wrong.
    """
    flags = serve_flags.parser().parse_args(arguments)
    logs.set_up_logging(flags.log_level, flags.log_format)
    return _run(flags)


def _run(flags: argparse.Namespace) -> int:
    if flags.command == "demo":
        if flags.web_config_file:
            raise ConfigError("--web.config.file: the demo has neither TLS nor users")
        from exporter.demo import main as demo  # noqa: PLC0415  # not part of the serving process

        return demo.run(flags.web_listen_address)
    settings = serve_flags.settings(flags)
    sockets = tuple(flags.qmp_sockets)
    web = serve_flags.web(flags)
    config = load(flags.config_file, settings, sockets)
    live = WatchedWebConfig(flags.web_config_file) if flags.web_config_file else None
    if flags.command == "serve":
        users = live.config.users if live else ()
        service.check(config, users, enabled=flags.web_enable_admin_api)
    if flags.config_check:
        print("configuration is valid")
        return 0
    if flags.command == "once":
        return asyncio.run(_once(config, flags))
    return asyncio.run(_serve(config, settings, sockets, flags, web, live))


async def _once(config: Config, flags: argparse.Namespace) -> int:
    logs.raise_file_limit()
    fleet = Fleet(config)
    try:
        collected = await fleet.scrape(fleet.longest_seconds + GRACE_SECONDS, text=True)
        if not collected:
            globs = [glob for group in config.groups for glob in group.sockets]
            log.warning("no socket found", extra={"sockets": " ".join(map(printable, globs))})
        blobs = [each.blobs for each in collected]
        if flags.exporter_metrics:
            blobs.append(fleet.self_metrics(collected))
        return _print(exposition.body(blobs, openmetrics=False, process=False))
    finally:
        await fleet.close()


def _print(body: bytes) -> int:
    try:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
    except OSError as error:
        print(f"qemu-block-exporter: standard output: {error.strerror}", file=sys.stderr)
        # Python would try to write the rest again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


async def _serve(
    config: Config,
    settings: Settings,
    sockets: tuple[str, ...],
    flags: argparse.Namespace,
    web: Options,
    live: WatchedWebConfig | None,
) -> int:
    logs.raise_file_limit()
    enabled = flags.web_enable_admin_api
    with service.opened(flags.admin_state_directory if enabled else None) as reaching:
        return await _serve_with(reaching, config, settings, sockets, flags, web, live)


async def _serve_with(
    reaching: service.AdminService,
    config: Config,
    settings: Settings,
    sockets: tuple[str, ...],
    flags: argparse.Namespace,
    web: Options,
    live: WatchedWebConfig | None,
) -> int:
    gate = AuthMiddleware(live) if live else None
    enabled = flags.web_enable_admin_api
    fleet = Fleet(
        config,
        swept=gc_tuning.GcTuner().settle,
        observer=reaching.keeper,
        actions=reaching.trail.counts,
    )

    def reload() -> None:
        logs.notify_reloading()
        try:
            if live:
                live.reload()
            fleet.reload_successful = False
            changed = load(flags.config_file, settings, sockets)
            service.check(changed, gate.users if gate else (), enabled=enabled)
            fleet.reconfigure(changed)
            log.info("configuration reloaded")
        except ConfigError as error:
            log.error("configuration not reloaded", extra={"err": str(error)})
            raise
        finally:
            logs.notify("READY=1")

    def look_ahead() -> None:
        try:
            service.check(fleet.discovery.config, gate.users if gate else (), enabled=enabled)
        except ConfigError as error:
            log.warning("the next start will be refused", extra={"err": str(error)})

    listening = (
        logs.systemd_sockets()
        if flags.web_systemd_socket
        else [sock for address in flags.web_listen_address for sock in listen(address)]
    )
    fleet.discover()
    if live:
        live.told, live.changed = fleet.note_web_config, look_ahead
    try:
        async with reaching.over(fleet) as actions:
            changing = WriteApi(
                actions,
                reaching.trail,
                prefix=web.route_prefix,
                origins=[urlsplit(flags.web_external_url).netloc],
                user_of=user_of,
            )
            reading = ReadApi(fleet, reaching.ledger, web.route_prefix)
            app = Endpoints(fleet, web, reload, reading, changing).application(gate)
            await serve(app, listening, reload, tls=live.context if live else None)
    finally:
        await fleet.close()
    return 0
