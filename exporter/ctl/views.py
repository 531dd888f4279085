"""The commands that only show something."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from exporter.api import Job
from exporter.ctl import tables
from exporter.ctl.client import Client, NoAnswer, NotSent, Refused
from exporter.ctl.rates import Rates
from exporter.ctl.screen import Screen
from exporter.ctl.text import SENTENCE_LIMIT, clean

#: A job that ended longer ago is shown only with --all.
_RECENT_SECONDS = 3600.0


async def vms(client: Client, screen: Screen, _: argparse.Namespace) -> int:
    """List the VMs."""
    found = await client.vms()
    screen.result(found, tables.vms(found.vms))
    return 0


async def chain(client: Client, screen: Screen, flags: argparse.Namespace) -> int:
    """Show the disks of a VM, or one of them."""
    found = await client.vm(flags.vm)
    if flags.device is not None:
        devices = [device for device in found.devices if device.device == flags.device]
        if not devices:
            known = ", ".join(clean(device.device) for device in found.devices) or "none"
            screen.note(f"{flags.vm} has no device {flags.device}; it has: {known}")
            return 1
        found = msgspec.structs.replace(found, devices=devices)
    screen.result(found, tables.vm(found))
    return 0


async def jobs(client: Client, screen: Screen, flags: argparse.Namespace) -> int:
    """List jobs, once or until Ctrl-C."""
    rates = Rates()
    found = await client.jobs(flags.vm)
    if not flags.watch:
        screen.result(found, _shown(found.jobs, rates, screen, all_=flags.all))
        return 0
    in_place = screen.in_place(screen.out)
    with screen.live(screen.out) if in_place else nullcontext(None) as show:
        trouble = ""
        while not screen.broken:
            if not trouble:
                rates.update(found.jobs, time.monotonic())
            shown = _shown(found.jobs, rates, screen, all_=flags.all)
            if show:
                show(Group(shown, Text(trouble, style="yellow")) if trouble else shown)
            elif not trouble:
                screen.result(found, shown)
            await asyncio.sleep(flags.interval)
            before = trouble
            try:
                found, trouble = await client.jobs(flags.vm), ""
            except (Refused, NotSent, NoAnswer) as error:
                trouble = clean(f"retrying: {error}", SENTENCE_LIMIT)
                if not show and trouble != before:
                    screen.note(trouble)
    return 1


def _shown(found: Iterable[Job], rates: Rates, screen: Screen, *, all_: bool) -> RenderableType:
    now = time.time()
    shown = [
        job
        for job in found
        if all_
        or job.outcome is None
        or now - (job.ended_timestamp_seconds or now) < _RECENT_SECONDS
    ]
    shown.sort(key=lambda job: (job.outcome is not None, job.vm, job.job_id))
    return tables.jobs(shown, rates, bars=screen.out.is_terminal)


#: A command's name -> the function that runs it.
VIEWS: dict[str, Callable[[Client, Screen, argparse.Namespace], Awaitable[int]]] = {
    "vms": vms,
    "jobs": jobs,
    "chain": chain,
}
