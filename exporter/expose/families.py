"""The exposition of all blobs, family by family: its head, and the lines of all VMs. Pure.

The lines are the same in both formats, only the heads differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from exporter.expose.plan import FamilyBytes
from exporter.metrics import METRICS, Metric


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _text_head(metric: Metric) -> bytes:
    kind = "gauge" if metric.kind == "info" else metric.kind
    return (
        f"# HELP {metric.name} {_escape_help(metric.help)}\n# TYPE {metric.name} {kind}\n"
    ).encode()


def _openmetrics_head(metric: Metric) -> bytes:
    family = metric.family
    unit = f"# UNIT {family} {metric.unit}\n" if metric.unit else ""
    help_text = _escape_help(metric.help).replace('"', '\\"')
    return f"# TYPE {family} {metric.kind}\n{unit}# HELP {family} {help_text}\n".encode()


_TEXT_HEADS = tuple(_text_head(metric) for metric in METRICS)
_OPENMETRICS_HEADS = tuple(_openmetrics_head(metric) for metric in METRICS)


def families(blobs: Iterable[FamilyBytes], *, openmetrics: bool) -> Iterator[bytes]:
    """Yield the exposition of all blobs family by family: its head, and the lines of all.

    An OpenMetrics body still wants its `# EOF`, which is the caller's: more may follow.
    """
    heads = _OPENMETRICS_HEADS if openmetrics else _TEXT_HEADS
    for head, *of_family in zip(heads, *blobs, strict=True):
        lines = b"".join(of_family)
        if lines:
            yield head
            yield lines


def join(blobs: Iterable[FamilyBytes], *, openmetrics: bool) -> bytes:
    """Return `families` as a whole."""
    return b"".join(families(blobs, openmetrics=openmetrics))
