"""No answer came: what became of the request is looked up, and never sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from exporter.api import Commit, Job, Request, SetSpeed, Snapshot, Verb
from exporter.ctl.client import Client, NoAnswer, NotSent, Refused
from exporter.ctl.text import is_seen

#: How often it is looked, an interval apart.
POLLS = 5

#: What a job is like once a request came true.
_CAME_TRUE: dict[Verb, Callable[[Job, Request], bool]] = {
    # The record was written before the command left, and so is no sign of it.
    "commit": lambda job, asked: (
        (is_seen(job) or job.outcome not in {None, "unknown"})
        and isinstance(asked, Commit)
        and job.device in {None, asked.device}
    ),
    "complete": lambda job, _: job.outcome == "completed",
    "cancel": lambda job, _: job.outcome == "cancelled",
    "pause": lambda job, _: job.outcome is None and job.paused is True,
    "resume": lambda job, _: job.outcome is None and job.paused is False,
    "speed": lambda job, asked: (
        isinstance(asked, SetSpeed)
        and job.speed_limit_bytes_per_second == asked.speed_bytes_per_second
    ),
    "finalize": lambda job, _: job.outcome == "completed",
    "dismiss": lambda job, _: job.outcome is not None and job.status is None,
}


async def job(
    client: Client, vm: str, job_id: str, verb: Verb, request: Request, interval_seconds: float
) -> tuple[Job | None, bool]:
    """Return the job as it was last seen, and whether the request came true."""
    seen: Job | None = None
    for poll in range(POLLS):
        if poll:
            await asyncio.sleep(interval_seconds)
        try:
            seen = await client.job(vm, job_id)
        except (Refused, NotSent, NoAnswer):
            continue
        if _CAME_TRUE[verb](seen, request):
            return seen, True
    return seen, False


async def snapshot(client: Client, vm: str, request: Snapshot, interval_seconds: float) -> bool:
    """Return whether the disk is on the new layer."""
    for poll in range(POLLS):
        if poll:
            await asyncio.sleep(interval_seconds)
        try:
            found = await client.vm(vm)
        except (Refused, NotSent, NoAnswer):
            continue
        if any(
            device.device == request.device and device.layers[0].file == request.file
            for device in found.devices
            if device.layers
        ):
            return True
    return False
