"""What shows, after a connection was lost, that a command took effect: pure looks at a snapshot.

Each is true only where nothing else is likely to have done it; else nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from exporter import api
from exporter.jobs import CANCELLED, COMPLETED, End
from exporter.model import Job, VmState
from exporter.redact import redact_filename

Effect = Callable[[VmState], bool]


def started(job_id: str, ends: Mapping[str, End], since_seconds: float) -> Effect:
    """A job with this id is there, or has ended since."""
    return lambda now: bool(_find(now, job_id)) or _ended(ends, job_id, since_seconds)


def has_layer(device: str, file: str) -> Effect:
    """The active layer of a device is in this file."""
    return lambda now: any(
        each.device == device and each.file == redact_filename(file) for each in now.devices
    )


def changed(
    verb: api.Verb, job: Job, request: api.Request, ends: Mapping[str, End], since_seconds: float
) -> Effect:
    """The job is as a request wanted it, and was not before."""
    job_id = job.job_id

    def is_done(now: VmState) -> bool:
        found = _find(now, job_id)
        match verb:
            case "complete" | "finalize":
                return _ended(ends, job_id, since_seconds, COMPLETED)
            case "cancel":
                if found is not None and _leaf(found, "status") == "aborting":
                    return True
                return _ended(ends, job_id, since_seconds, CANCELLED)
            case "pause":
                return found is not None and bool(_leaf(found, "paused"))
            case "resume":
                return found is not None and not _leaf(found, "paused")
            case "dismiss":
                return found is None
            case "speed" if isinstance(request, api.SetSpeed):
                before = _leaf(job, "speed")
                wanted = request.speed_bytes_per_second
                return found is not None and before != wanted == _leaf(found, "speed")
        return False

    return is_done


def _ended(
    ends: Mapping[str, End], job_id: str, since_seconds: float, result: str | None = None
) -> bool:
    end = ends.get(job_id)
    if end is None or end.timestamp_seconds < since_seconds:
        return False
    return result is None or end.result == result


def _find(now: VmState, job_id: str) -> Job | None:
    return next((job for job in now.jobs if job.job_id == job_id), None)


def _leaf(job: Job, name: str) -> Any:
    return getattr(job.job, name, None)
