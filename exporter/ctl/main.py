"""Runs an operator's command, from its arguments to its exit code."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import signal
from collections.abc import Sequence
from urllib.parse import urlsplit

from exporter.ctl import credentials, options, words
from exporter.ctl.actions import ACTIONS, UNKNOWN, Actions
from exporter.ctl.client import Client, NoAnswer, NotSent, Refused
from exporter.ctl.screen import Screen
from exporter.ctl.views import VIEWS
from exporter.ctl.waiting import Lost
from exporter.ctl.words import Prompt


def run(command: str, arguments: Sequence[str]) -> int:
    """Run a command to its end, or to Ctrl-C or SIGTERM, and return its exit code.

    Raises:
        ConfigError: the file of --http.config.file is wrong.
        SystemExit: wrong usage, 2; or --help.
    """
    return asyncio.run(_until_signal(options.parse(command, arguments)))


async def operate(flags: argparse.Namespace) -> int:
    """Do what `flags` say, and return the exit code.

    Raises:
        ConfigError: the file of --http.config.file is wrong.
    """
    sent_with = credentials.load(flags.http_config_file)
    screen = Screen(json=flags.json)
    prompt = options.prompt(flags)
    if sent_with.username is not None and _overheard(flags.url):
        screen.note(
            f"warning: the password is sent to {flags.url} in clear text: use https", "yellow"
        )
    async with Client(flags.url, sent_with, flags.timeout) as client:
        code = await _run(client, screen, prompt, flags)
    return code or int(screen.broken)


async def _run(client: Client, screen: Screen, prompt: Prompt, flags: argparse.Namespace) -> int:
    try:
        if flags.command in VIEWS:
            return await VIEWS[flags.command](client, screen, flags)
        return await ACTIONS[flags.command](Actions(client, screen, prompt, flags))
    except Refused as error:
        _refused(screen, prompt, flags, error)
    except (NotSent, NoAnswer) as error:
        screen.note(f"cannot reach the exporter: {error}", "bold red")
        screen.note("is it running, and is --url its address, with http or https?")
    except Lost as error:
        screen.note(f"the outcome is unknown: {error}", "bold red")
        return UNKNOWN
    return 1


def _refused(screen: Screen, prompt: Prompt, flags: argparse.Namespace, error: Refused) -> None:
    if screen.json:
        screen.result(error.problem, "")
        return
    screen.note(words.refusal(error.problem), "bold red")
    vm, job_id = getattr(flags, "vm", None), getattr(flags, "job_id", None)
    if step := words.next_step(error.problem, prompt, vm, job_id):
        screen.note(step)


async def _until_signal(flags: argparse.Namespace) -> int:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    met: list[int] = []

    def end(number: int) -> None:
        met.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    try:
        return await operate(flags)
    except asyncio.CancelledError:
        if not met:
            raise
        return 128 + met[0]


def _overheard(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme != "http":
        return False
    host = parts.hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
