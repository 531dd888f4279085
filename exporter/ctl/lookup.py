"""Finds out what became of a request that got no reply, without sending it again."""

from __future__ import annotations

import asyncio

from exporter.api import Commit, Job, JobRequest, Snapshot
from exporter.ctl.client import Client, NoAnswer, NotSent, Refused

#: How often to look, an interval apart.
POLLS = 5


async def job(
    client: Client, vm: str, job_id: str, request: Commit | JobRequest, interval_seconds: float
) -> tuple[Job | None, bool]:
    """Return the job as it was last seen, and whether it shows that the request was carried out."""
    seen: Job | None = None
    for poll in range(POLLS):
        if poll:
            await asyncio.sleep(interval_seconds)
        try:
            seen = await client.job(vm, job_id)
        except (Refused, NotSent, NoAnswer):
            continue
        if request.is_shown_by(seen):
            return seen, True
    return seen, False


async def snapshot(client: Client, vm: str, request: Snapshot, interval_seconds: float) -> bool:
    """Whether the disk is on the new layer."""
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
