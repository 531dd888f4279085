"""METRICS.md, written from the table."""

from __future__ import annotations

from exporter.errors import REASONS
from exporter.metrics.table import COLLECTORS, METRICS
from exporter.metrics.types import Metric, Scope, ZeroMeaning

_INTRO = """\
# Metrics

Generated from `exporter/metrics/table.py` by `make golden`; do not edit.

The brackets after a description hold QEMU's own field. A field that QEMU did not report gives no
sample: never 0, never NaN. A family of kind *info* is `info` in OpenMetrics and a gauge of 1 in
the text format. A family with a `status` label has a sample for every state, 1 for the present
one and 0 for the others. Every family below a heading has the labels that stand there.

`reason` is one of {reasons}.

Collectors can be turned off by `--no-collector.NAME`:
{collectors}
"""


def markdown() -> str:
    """Return the whole page."""
    parts = [
        _INTRO.format(
            reasons=", ".join(f"`{reason}`" for reason in REASONS),
            collectors="\n".join(f"\n* `{name}`: {text}" for name, text in COLLECTORS.items()),
        ).replace("\n\n* ", "\n* ")
    ]
    for scope in Scope:
        rows = [metric for metric in METRICS if metric.scope is scope]
        labels = ", ".join(f"`{label}`" for label in scope.labels)
        parts.append(f"\n## {scope.title}\n")
        parts.append(f"\nLabels: {labels}.\n" if labels else "")
        parts.append("\n| name | kind | collector | description |\n| --- | --- | --- | --- |\n")
        parts += [_row(metric) for metric in rows]
    return "".join(parts)


def _row(metric: Metric) -> str:
    name = metric.name + ("_bucket" if metric.kind == "histogram" else "")
    more = [label for label in metric.labels if label not in metric.scope.labels]
    more += ["status"] if metric.states else []
    more += ["le"] if metric.kind == "histogram" else []
    label_text = "{" + ",".join(more) + "}" if more else ""
    zero = {
        ZeroMeaning.VALUE: "",
        ZeroMeaning.UNSET: " Absent while 0: not set, or unlimited.",
        ZeroMeaning.UNUSED: "",
    }[metric.zero]
    if metric.zero is ZeroMeaning.UNUSED and "absent before" not in metric.text:
        zero = " Absent until one was not 0."
    text = metric.text + zero + (f" `[{metric.field}]`" if metric.field else "")
    return f"| `{name}{label_text}` | {metric.kind} | {metric.collector} | {text} |\n"
