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
from exporter.errors import ProtocolError
from exporter.family import Metric, Scope, Zero
from exporter.metrics import METRICS
from exporter.model import Exporter, Node, Snapshot

#: Lines of one snapshot: one blob per family, in the order of the table.
Blobs = tuple[bytes, ...]

_SLOT = {metric.name: slot for slot, metric in enumerate(METRICS)}
_UNSIGNED = 1 << 64
#: No name of QEMU's is longer; a label of a liar's stands in every line of its device.
LABEL_LIMIT = 8192
_BINS_LIMIT = 1000
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def escape(text: str) -> str:
    """Return a label value as both formats want it between its quotes."""
    if len(text) > LABEL_LIMIT:
        raise ProtocolError(f"sent a name of more than {LABEL_LIMIT} characters")
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
        value = _unsigned(value)
        return str(value) if divisor == 1 else repr(value / divisor)
    return repr(value / divisor)


def _unsigned(value: int) -> int:
    if -(_UNSIGNED >> 1) <= value < _UNSIGNED:
        return value % _UNSIGNED
    raise ProtocolError("sent an integer of more than 64 bits")


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of a scope whose values stand under one owner, read at once."""

    owner: Callable[[Any], Any]
    values: Callable[[Any], tuple[Any, ...]]
    rows: tuple[tuple[int, Metric], ...]
    #: The rows again where each is a number and no more: slot, start of the line, divisor.
    numbers: tuple[tuple[int, str, int], ...] | None
    together: bool


#: What a scrape brings anew; all else of a device comes from query-block and stays until the next.
_LIVE_OWNERS = frozenset({"stats", "driver_specific", "layer_io", "timed"})
_KEPT_SCOPES = (Scope.DEVICE, Scope.THROTTLE, Scope.BITMAP, Scope.NODE)


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays the same of a VM's lines for as long as its devices come from one answer."""

    blobs: Blobs
    #: Labels of each device and, in the order of the model, of its nodes.
    identities: tuple[tuple[str, tuple[str, ...]], ...]


class Plan:
    """How the families of the chosen collectors are read off a snapshot."""

    def __init__(self, without: Collection[str] = ()) -> None:
        """Leave out the collectors in `without` (keys of `metrics.COLLECTORS`)."""
        chosen = [m for m in METRICS if m.collector not in without and m.scope != Scope.EXPORTER]
        self._live = {scope: _groups(m for m in chosen if m.scope is scope) for scope in Scope}
        self._kept: dict[Scope, tuple[_Group, ...]] = {}
        for scope in _KEPT_SCOPES:
            mine = [metric for metric in chosen if metric.scope is scope]
            self._live[scope] = _groups(m for m in mine if m.path[0] in _LIVE_OWNERS)
            self._kept[scope] = _groups(m for m in mine if m.path[0] not in _LIVE_OWNERS)
        self._info = [m for m in chosen if not m.path]
        #: Families that a scrape brings anew; no family is kept in part.
        self._live_slots = [_SLOT[metric.name] for metric in self._info] + [
            slot for groups in self._live.values() for group in groups for slot, _ in group.rows
        ]

    def render(self, snapshot: Snapshot, kept: Kept | None = None) -> Blobs:
        """Return the lines of one VM, one blob per family of the table.

        `kept` is what `keep` returned for a snapshot of the same `base`.
        """
        kept = kept or self.keep(snapshot)
        out: list[list[str]] = [[] for _ in METRICS]
        self._vm(out, snapshot)
        device_groups, node_groups = self._live[Scope.DEVICE], self._live[Scope.NODE]
        for device, (identity, node_identities) in zip(
            snapshot.devices, kept.identities, strict=True
        ):
            _record(out, device_groups, device, identity)
            for interval in device.intervals:
                more = labels(("interval_seconds",), (interval.interval_seconds,))
                _record(out, self._live[Scope.INTERVAL], interval, f"{identity},{more}")
            for node, node_identity in zip(device.nodes, node_identities, strict=True):
                _record(out, node_groups, node, node_identity)
        for node in snapshot.nodes:
            _record(out, node_groups, node, _node_identity(snapshot.vm, "", node))
        for job in snapshot.jobs:
            identity = labels(Scope.JOB.labels, (snapshot.vm, job.device, job.job_id, job.job_type))
            _record(out, self._live[Scope.JOB], job, identity)
        blobs = list(kept.blobs)
        for slot in self._live_slots:
            if lines := out[slot]:
                blobs[slot] = "".join(lines).encode()
        return tuple(blobs)

    def keep(self, snapshot: Snapshot) -> Kept:
        """Render what stays until query-block is asked again."""
        out: list[list[str]] = [[] for _ in METRICS]
        identities = []
        for device in snapshot.devices:
            identity = labels(Scope.DEVICE.labels, (snapshot.vm, device.device))
            _record(out, self._kept[Scope.DEVICE], device, identity)
            if device.throttle:
                more = labels(("throttle_group",), (device.throttle.throttle_group,))
                _record(out, self._kept[Scope.THROTTLE], device.throttle, f"{identity},{more}")
            for bitmap in device.bitmaps:
                more = labels(("bitmap", "node_name"), (bitmap.bitmap, bitmap.node_name))
                _record(out, self._kept[Scope.BITMAP], bitmap, f"{identity},{more}")
            nodes = tuple(_node_identity(snapshot.vm, device.device, n) for n in device.nodes)
            for node, node_identity in zip(device.nodes, nodes, strict=True):
                _record(out, self._kept[Scope.NODE], node, node_identity)
            identities.append((identity, nodes))
        return Kept(tuple("".join(lines).encode() for lines in out), tuple(identities))

    def _vm(self, out: list[list[str]], snapshot: Snapshot) -> None:
        identity = labels(Scope.VM.labels, (snapshot.vm,))
        _record(out, self._live[Scope.VM], snapshot, identity)
        if snapshot.up:
            for metric in self._info:
                _info(out, metric, _SLOT[metric.name], snapshot, identity)


def _node_identity(vm: str, device: str, node: Node) -> str:
    return labels(Scope.NODE.labels, (vm, device, node.layer, node.role, node.node_name))


def _groups(metrics: Iterable[Metric]) -> tuple[_Group, ...]:
    rows: dict[tuple[tuple[str, ...], bool, bool], list[Metric]] = {}
    for metric in metrics:
        if metric.path:
            key = (metric.path[:-1], metric.zero is Zero.UNUSED, _is_number(metric))
            rows.setdefault(key, []).append(metric)
    return tuple(
        _Group(
            _owner(owner),
            _values([row.path[-1] for row in group]),
            tuple((_SLOT[row.name], row) for row in group),
            tuple((_SLOT[m.name], m.name + "{", m.divisor) for m in group) if numbers else None,
            together,
        )
        for (owner, together, numbers), group in rows.items()
    )


def _is_number(metric: Metric) -> bool:
    plain = metric.kind in ("counter", "gauge") and not metric.states and not metric.labels
    return plain and metric.type is int and metric.zero is not Zero.UNSET


def _owner(path: tuple[str, ...]) -> Callable[[Any], Any]:
    if not path:
        return lambda record: record
    if len(path) == 1:
        return attrgetter(path[0])

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


def _numbers(
    out: list[list[str]],
    rows: tuple[tuple[int, str, int], ...],
    values: tuple[int | None, ...],
    identity: str,
) -> None:
    """Append the lines of integers: nearly all lines of a scrape, and so without a detour."""
    for (slot, start, divisor), value in zip(rows, values, strict=True):
        if value is not None:
            exact = value if 0 <= value < _UNSIGNED else _unsigned(value)
            shown = exact if divisor == 1 else exact / divisor
            out[slot].append(f"{start}{identity}}} {shown}\n")


def _record(out: list[list[str]], groups: tuple[_Group, ...], record: Any, identity: str) -> None:
    """Append the lines of one record; `identity` is its labels, without braces."""
    for group in groups:
        owner = group.owner(record)
        if owner is None:
            continue
        read = group.values(owner)
        if group.together and not any(read):
            continue
        if group.numbers is not None:
            _numbers(out, group.numbers, read, identity)
            continue
        for (slot, metric), value in zip(group.rows, read, strict=True):
            if value is None:
                continue
            if metric.kind == "info" or metric.states or metric.labels:
                _info(out, metric, slot, record, identity, value)
            elif isinstance(value, qapi.Histogram):
                _histogram(out[slot], metric, identity, value)
            elif value or metric.zero is not Zero.UNSET:
                out[slot].append(f"{metric.name}{{{identity}}} {number(value, metric.divisor)}\n")


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
    if len(histogram.bins) > _BINS_LIMIT:
        raise ProtocolError(f"sent a histogram of more than {_BINS_LIMIT} bins")
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
