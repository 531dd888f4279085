"""Formats text for people: escapes a server's text for terminals, and writes numbers with units."""

from __future__ import annotations

from exporter.api import Job

#: Longer names are cut.
NAME_LIMIT = 256
#: Longer sentences are cut.
SENTENCE_LIMIT = 1024
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
#: What a column shows for an unknown value.
NOTHING = "-"


def clean(text: str, limit: int = NAME_LIMIT) -> str:
    r"""Return `text` with control characters escaped, cut to `limit` characters.

    >>> clean("web\x1b[2J")
    'web\\x1b[2J'
    """
    shown = "".join(c if c.isprintable() else _escaped(c) for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def size(size_bytes: float | None) -> str:
    """Return a size as people read it.

    >>> size(1536 * 1024)
    '1.5 MiB'
    """
    if size_bytes is None:
        return NOTHING
    value, unit = float(size_bytes), 0
    # A value that would be rounded to 1024.0 becomes 1.0 of the next unit.
    while abs(value) >= 1023.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{value:.0f} B"


def speed(bytes_per_second: float | None) -> str:
    """Return a speed as people read it."""
    return NOTHING if bytes_per_second is None else f"{size(bytes_per_second)}/s"


def duration(seconds: float | None) -> str:
    """Return a duration as people read it.

    >>> duration(3725)
    '1:02:05'
    """
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24} d"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def whole_percent(job: Job) -> int | None:
    """Return how much of its work a job has done, 0 to 100; None if that is not known."""
    if job.offset_bytes is None or job.length_bytes is None or job.length_bytes <= 0:
        return None
    return min(max(job.offset_bytes, 0), job.length_bytes) * 100 // job.length_bytes


def percent(job: Job) -> str:
    """Return the progress of a job: `ready`, or a whole percentage, 100% only if nothing is left."""
    if is_ready(job):
        return "ready"
    done = whole_percent(job)
    return NOTHING if done is None else f"{done}%"


def is_ready(job: Job) -> bool:
    """Whether a job can be completed now; a ready job that is paused cannot."""
    return job.outcome is None and bool(job.ready) and not job.paused


def state(job: Job) -> str:
    """Return the outcome of a job or, if it has not ended, its status."""
    if job.outcome:
        return job.outcome
    if job.status:
        return job.status
    # QEMU before 2.12 has no status.
    if job.ready:
        return "standby" if job.paused else "ready"
    if job.paused:
        return "paused"
    return "running" if job.in_qemu else "not seen"
