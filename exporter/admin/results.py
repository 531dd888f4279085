"""Results of accepted requests, before the command is sent and after."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from exporter import api
from exporter.admin.lease import VmLease
from exporter.model import VmState
from exporter.qmp import Command
from exporter.redact import redact_filename


def checked(
    mine: VmLease,
    snapshot: VmState,
    verb: api.Verb,
    command: Command,
    device: str | None,
    job_id: str | None,
    warnings: Sequence[str],
) -> api.Done:
    """Return the result of a request that passed all checks; a dry run returns this."""
    arguments = {
        name: redact_filename(value) if isinstance(value, str) else value
        for name, value in command.arguments.items()
    }
    return api.Done(
        vm=mine.member.name,
        action=verb,
        device=device,
        job_id=job_id,
        dry_run=True,
        replayed=False,
        command=command.name,
        arguments=arguments,
        warnings=list(warnings),
        job=mine.job(snapshot, job_id),
    )


async def after(mine: VmLease, done: api.Done) -> api.Done:
    """Return the result of a sent request, with the job as it is now, if the VM answers."""
    snapshot = await mine.look_again()
    job = mine.job(snapshot, done.job_id) if snapshot else None
    return msgspec.structs.replace(done, dry_run=False, job=job)
