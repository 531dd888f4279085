"""Evidence, after a lost connection, that a command took effect. Pure functions of one snapshot.

Each is true only if nothing else is likely to have caused it; otherwise the outcome is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.api import verbs
from exporter.jobs import CANCELLED, COMPLETED, End
from exporter.model import Job, VmState
from exporter.redact import redact_filename

Effect = Callable[[VmState], bool]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is observed of a job after a command was sent."""

    before: Job
    #: None if QEMU no longer has it.
    now: Job | None
    #: How it ended after the command was sent; None if it has not, or that is not known.
    result: str | None


def seen(now: VmState, before: Job, ends: Mapping[str, End], since_seconds: float) -> Seen:
    """Return what a snapshot and the known ends of jobs show of a job."""
    job_id = before.job_id
    end = ends[job_id] if _ended(ends, job_id, since_seconds) else None
    return Seen(before, _find(now, job_id), end.result if end else None)


def started(job_id: str, ends: Mapping[str, End], since_seconds: float) -> Effect:
    """Return a predicate: whether a job with this id exists, or has ended since."""
    return lambda now: bool(_find(now, job_id)) or _ended(ends, job_id, since_seconds)


def has_layer(device: str, file: str) -> Effect:
    """Return a predicate: whether the active layer of a device is in this file."""
    return lambda now: any(
        each.device == device and each.file == redact_filename(file) for each in now.devices
    )


def completed(seen: Seen, _: object) -> bool:
    """Whether it completed. Its absence alone proves nothing: it may have failed or been cancelled."""
    return seen.result == COMPLETED


def cancelled(seen: Seen, _: object) -> bool:
    """Whether it is being cancelled, or was; not if it completed first."""
    return seen.result == CANCELLED or _leaf(seen.now, "status") == "aborting"


def paused(seen: Seen, _: object) -> bool:
    """Whether it exists and is paused."""
    return bool(_leaf(seen.now, "paused"))


def resumed(seen: Seen, _: object) -> bool:
    """Whether it exists and is not paused."""
    return seen.now is not None and not _leaf(seen.now, "paused")


def limited(seen: Seen, request: verbs.SetSpeed) -> bool:
    """Whether it has the requested limit, and had another one before."""
    wanted = request.speed_bytes_per_second
    return bool(_leaf(seen.before, "speed") != wanted == _leaf(seen.now, "speed"))


def gone(seen: Seen, _: object) -> bool:
    """Whether QEMU no longer has it."""
    return seen.now is None


def unknowable(_seen: Seen, _: object) -> bool:
    """Nothing shows whether it was done."""
    return False


def _ended(ends: Mapping[str, End], job_id: str, since_seconds: float) -> bool:
    end = ends.get(job_id)
    return end is not None and end.timestamp_seconds >= since_seconds


def _find(now: VmState, job_id: str) -> Job | None:
    return next((job for job in now.jobs if job.job_id == job_id), None)


def _leaf(job: Job | None, name: str) -> Any:
    return getattr(job.job, name, None) if job is not None else None
