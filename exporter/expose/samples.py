"""Samples as lines: a value, its name and its labels, as both formats have them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from exporter.errors import ProtocolError
from exporter.expose.line_template import number
from exporter.metrics import Metric, ZeroMeaning
from exporter.qmp import schema

#: No name of QEMU's is longer; a label of a liar's stands in every line of its device.
LABEL_LIMIT = 8192
_BINS_LIMIT = 1000
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
#: What cannot stand in a label value as it is: a lone surrogate has no UTF-8.
_find_special = re.compile('[\\\\"\n\ud800-\udfff]').search


@lru_cache(maxsize=8192)
def escape(text: str) -> str:
    """Return a label value as both formats want it between its quotes."""
    if len(text) > LABEL_LIMIT:
        raise ProtocolError(f"sent a name of more than {LABEL_LIMIT} characters")
    if _find_special(text) is None:
        return text
    # QEMU never sends a lone surrogate, a liar might.
    return text.translate(_ESCAPES).encode("utf-8", "replace").decode()


def labels(names: Sequence[str], values: Sequence[str]) -> str:
    """Return `name="value",...` without braces.

    >>> labels(("vm",), ('a"b',))
    'vm="a\\\\"b"'
    """
    return ",".join(f'{n}="{escape(v)}"' for n, v in zip(names, values, strict=True))


def lines_of(metric: Metric, record: Any, identity: str, value: Any) -> str:
    """Return the lines of a value that is more than an integer."""
    if metric.states:
        return _states(metric.name, metric.path[-1], metric.states, identity, value)
    if metric.kind == "info" or metric.labels:
        return info_line(metric, record, identity)
    if isinstance(value, schema.Histogram):
        return _histogram(metric, identity, value)
    if not value and metric.zero is ZeroMeaning.UNSET:
        return ""
    return f"{metric.name}{{{identity}}} {number(value, metric.divisor)}\n"


@lru_cache(maxsize=8192)
def _states(name: str, path: str, states: Sequence[str], identity: str, value: str) -> str:
    """A status family: the state of a VM is the same in nearly every scrape."""
    start = f'{name}{{{identity},{path.rpartition("_")[2]}="'
    lines = [f'{start}{state}"}} {int(state == value)}\n' for state in states]
    if value not in states:
        lines.append(f'{start}{escape(value)}"}} 1\n')
    return "".join(lines)


def info_line(metric: Metric, record: Any, identity: str) -> str:
    """An info family, or a reason."""
    more = labels(metric.labels, [getattr(record, name) for name in metric.labels])
    return f"{metric.name}{{{identity}{identity and ','}{more}}} 1\n"


def _histogram(metric: Metric, identity: str, histogram: schema.Histogram) -> str:
    if len(histogram.bins) > _BINS_LIMIT:
        raise ProtocolError(f"sent a histogram of more than {_BINS_LIMIT} bins")
    total = 0
    lines = []
    edges = [number(edge, metric.divisor) for edge in histogram.boundaries]
    for edge, count in zip([*edges, "+Inf"], histogram.bins, strict=False):
        total += count
        lines.append(f'{metric.name}_bucket{{{identity},le="{edge}"}} {total}\n')
    return "".join(lines)
