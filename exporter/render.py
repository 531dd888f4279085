"""Table x Snapshot -> bytes per family, and families -> exposition. Pure.

A VM is rendered once, into one blob of lines per family; an exposition is the heads of the
families, each with the blobs of all VMs behind it. The lines are the same in both formats, only
the heads differ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from exporter import qapi
from exporter.family import Metric, Scope, Zero
from exporter.metrics import METRICS
from exporter.model import Exporter, Snapshot

#: Lines of one snapshot: one blob per family, in the order of the table.
Blobs = tuple[bytes, ...]

_SLOT = {metric.name: slot for slot, metric in enumerate(METRICS)}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def escape(text: str) -> str:
    """Return a label value as both formats want it between its quotes."""
    # A lone surrogate has no UTF-8; QEMU never sends one, a liar might.
    return text.translate(_ESCAPES).encode("utf-8", "replace").decode()


def labels(names: Sequence[str], values: Sequence[str]) -> str:
    """Return `name="value",...` without braces.

    >>> labels(("vm",), ('a"b',))
    'vm="a\\\\"b"'
    """
    return ",".join(f'{n}="{escape(v)}"' for n, v in zip(names, values, strict=True))


def number(value: float, divisor: int = 1) -> str:
    """Return a number as both formats want it; integers stay exact.

    Every integer in the block layer's replies is unsigned: one that arrives below zero went
    through a signed type (`write_threshold`).
    """
    if value is True or value is False:
        return "1" if value else "0"
    if isinstance(value, int):
        if value < 0:
            value += 1 << 64
        return str(value) if divisor == 1 else repr(value / divisor)
    return repr(value / divisor)


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of a scope whose values stand under one owner, read at once."""

    owner: Callable[[Any], Any]
    values: Callable[[Any], tuple[Any, ...]]
    rows: tuple[tuple[int, Metric], ...]
    together: bool


def _owner(path: tuple[str, ...]) -> Callable[[Any], Any]:
    def resolve(record: Any) -> Any:
        for name in path:
            record = getattr(record, name)
            if record is None:
                return None
        return record

    return resolve


def _values(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    getter = attrgetter(*names)
    return getter if len(names) > 1 else lambda record: (getter(record),)


class Plan:
    """How the families of the chosen collectors are read off a snapshot."""

    def __init__(self, without: Collection[str] = ()) -> None:
        """Leave out the collectors in `without` (keys of `metrics.COLLECTORS`)."""
        self._groups: dict[Scope, tuple[_Group, ...]] = {}
        chosen = [m for m in METRICS if m.collector not in without and m.scope != Scope.EXPORTER]
        for scope in Scope:
            rows: dict[tuple[tuple[str, ...], bool], list[Metric]] = {}
            for metric in chosen:
                if metric.scope is scope and metric.path:
                    group = (metric.path[:-1], metric.zero is Zero.UNUSED)
                    rows.setdefault(group, []).append(metric)
            self._groups[scope] = tuple(
                _Group(
                    _owner(owner),
                    _values([row.path[-1] for row in group]),
                    tuple((_SLOT[row.name], row) for row in group),
                    together,
                )
                for (owner, together), group in rows.items()
            )
        self._info = [m for m in chosen if not m.path]

    def render(self, snapshot: Snapshot) -> Blobs:
        """Return the lines of one VM, one blob per family of the table."""
        out: list[list[str]] = [[] for _ in METRICS]
        vm = (snapshot.vm,)
        self._record(out, Scope.VM, snapshot, vm)
        if snapshot.up:
            for metric in self._info:
                _info(out, metric, _SLOT[metric.name], snapshot, labels(("vm",), vm))
        for device in snapshot.devices:
            of_device = (snapshot.vm, device.device)
            self._record(out, Scope.DEVICE, device, of_device)
            for interval in device.intervals:
                self._record(out, Scope.INTERVAL, interval, (*of_device, interval.interval_seconds))
            if device.throttle:
                group = device.throttle.throttle_group
                self._record(out, Scope.THROTTLE, device.throttle, (*of_device, group))
            for bitmap in device.bitmaps:
                self._record(
                    out, Scope.BITMAP, bitmap, (*of_device, bitmap.bitmap, bitmap.node_name)
                )
            for node in device.nodes:
                self._record(
                    out, Scope.NODE, node, (*of_device, node.layer, node.role, node.node_name)
                )
        for node in snapshot.nodes:
            self._record(
                out, Scope.NODE, node, (snapshot.vm, "", node.layer, node.role, node.node_name)
            )
        for job in snapshot.jobs:
            self._record(out, Scope.JOB, job, (snapshot.vm, job.device, job.job_id, job.job_type))
        return tuple("".join(lines).encode() for lines in out)

    def _record(
        self, out: list[list[str]], scope: Scope, record: Any, values: Sequence[str]
    ) -> None:
        identity = ""
        for group in self._groups[scope]:
            owner = group.owner(record)
            if owner is None:
                continue
            read = group.values(owner)
            if group.together and not any(read):
                continue
            identity = identity or labels(scope.labels, values)
            for (slot, metric), value in zip(group.rows, read, strict=True):
                if value is None:
                    continue
                if metric.kind == "info" or metric.states or metric.labels:
                    _info(out, metric, slot, record, identity, value)
                elif isinstance(value, qapi.Histogram):
                    _histogram(out[slot], metric, identity, value)
                elif value or metric.zero is not Zero.UNSET:
                    out[slot].append(
                        f"{metric.name}{{{identity}}} {number(value, metric.divisor)}\n"
                    )


def _info(
    out: list[list[str]],
    metric: Metric,
    slot: int,
    record: Any,
    identity: str,
    value: Any = None,
) -> None:
    """An info family, a status family, or a reason."""
    if metric.states:
        states = metric.states if value in metric.states else (*metric.states, value)
        label = metric.path[-1].rpartition("_")[2]
        for state in states:
            out[slot].append(
                f'{metric.name}{{{identity},{label}="{escape(state)}"}} {int(state == value)}\n'
            )
        return
    more = labels(metric.labels, [getattr(record, name) for name in metric.labels])
    out[slot].append(f"{metric.name}{{{identity}{identity and ','}{more}}} 1\n")


def _histogram(lines: list[str], metric: Metric, identity: str, histogram: qapi.Histogram) -> None:
    total = 0
    edges = [number(edge, metric.divisor) for edge in histogram.boundaries]
    for edge, count in zip([*edges, "+Inf"], histogram.bins, strict=False):
        total += count
        lines.append(f'{metric.name}_bucket{{{identity},le="{edge}"}} {total}\n')


def render_exporter(exporter: Exporter) -> Blobs:
    """Return the lines of the program itself, one blob per family of the table."""
    out: list[list[str]] = [[] for _ in METRICS]
    for slot, metric in enumerate(METRICS):
        if metric.scope is not Scope.EXPORTER:
            continue
        value: Any = getattr(exporter, metric.path[-1]) if metric.path else None
        if metric.kind == "info":
            _info(out, metric, slot, exporter, "")
        elif metric.labels:
            for label_values, count in sorted(value.items()):
                each = label_values if isinstance(label_values, tuple) else (label_values,)
                out[slot].append(f"{metric.name}{{{labels(metric.labels, each)}}} {count}\n")
        else:
            out[slot].append(f"{metric.name} {number(value)}\n")
    return tuple("".join(lines).encode() for lines in out)


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


def join(blobs: Iterable[Blobs], *, openmetrics: bool) -> bytes:
    """Return the exposition of all blobs: each family once, with the lines of all behind its head.

    An OpenMetrics body still wants its `# EOF`, which is the caller's: more may follow.
    """
    heads = _OPENMETRICS_HEADS if openmetrics else _TEXT_HEADS
    parts: list[bytes] = []
    for head, *of_family in zip(heads, *blobs, strict=True):
        lines = b"".join(of_family)
        if lines:
            parts += (head, lines)
    return b"".join(parts)
