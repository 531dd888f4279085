"""Table x Snapshot -> bytes per family, and families -> exposition. Pure.

A VM is rendered once, into one blob of lines per family; an exposition is the heads of the
families, each with the blobs of all VMs behind it. The lines are the same in both formats, only
the heads differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

from exporter import qapi
from exporter.errors import ProtocolError
from exporter.family import Metric, Scope, Zero
from exporter.metrics import METRICS
from exporter.model import Exporter, Interval, Node, Snapshot
from exporter.parse import intervals

#: Lines of one snapshot: one blob per family, in the order of the table.
Blobs = tuple[bytes, ...]

_SLOT = {metric.name: slot for slot, metric in enumerate(METRICS)}
_UNSIGNED = 1 << 64
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
class _Rows:
    """Rows of a scope whose values stand under one owner, read at once."""

    owner: Callable[[Any], Any]
    values: Callable[[Any], tuple[Any, ...]]
    rows: tuple[tuple[int, Metric], ...]
    #: Whether all rows are integers and no more: they are rendered by `_columns`.
    numbers: bool
    #: No sample while all values are 0.
    together: bool


#: Owners of what a scrape brings anew; the rest of a device stays until query-block is asked again.
_LIVE_OWNERS = frozenset({"stats", "driver_specific", "layer_io", "timed"})
_KEPT_SCOPES = (Scope.DEVICE, Scope.THROTTLE, Scope.BITMAP, Scope.NODE)


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays the same of a VM's lines for as long as its devices do."""

    blobs: Blobs
    #: Labels of each device.
    devices: tuple[str, ...]
    #: Labels of each node that counts, in the order of `model.Counters`.
    nodes: tuple[str, ...]


class Plan:
    """How the families of the chosen collectors are read off a snapshot."""

    def __init__(self, without: Collection[str] = ()) -> None:
        """Leave out the collectors in `without` (keys of `metrics.COLLECTORS`)."""
        chosen = [m for m in METRICS if m.collector not in without and m.scope != Scope.EXPORTER]
        self._live = {scope: _grouped(m for m in chosen if m.scope is scope) for scope in Scope}
        self._kept: dict[Scope, tuple[_Rows, ...]] = {}
        for scope in _KEPT_SCOPES:
            mine = [metric for metric in chosen if metric.scope is scope]
            self._live[scope] = _grouped(m for m in mine if m.path[0] in _LIVE_OWNERS)
            self._kept[scope] = _grouped(m for m in mine if m.path[0] not in _LIVE_OWNERS)
        self._info = [m for m in chosen if not m.path]
        #: Families that a scrape brings anew; no family is kept in part.
        self._live_slots = [_SLOT[metric.name] for metric in self._info] + [
            slot for groups in self._live.values() for group in groups for slot, _ in group.rows
        ]

    def render(self, snapshot: Snapshot, kept: Kept | None = None) -> Blobs:
        """Return the lines of one VM, one blob per family of the table.

        `kept` is what `keep` returned for a snapshot with the same devices.
        """
        kept = kept or self.keep(snapshot)
        counters = snapshot.counters
        out: list[list[str]] = [[] for _ in METRICS]
        self._vm(out, snapshot)
        _records(out, self._live[Scope.DEVICE], counters.devices, kept.devices)
        for entry, identity in zip(counters.devices, kept.devices, strict=True):
            if entry.stats.timed_stats:
                self._intervals(out, intervals(entry), identity)
        if counters.storage:
            _records(out, self._live[Scope.STORAGE], counters.storage, kept.nodes)
        nodes, identities = counters.nodes, kept.nodes
        if snapshot.free_nodes:
            nodes = [*nodes, *counters.free_nodes]
            identities += tuple(_node_labels(snapshot.vm, "", n) for n in snapshot.free_nodes)
        _records(out, self._live[Scope.NODE], nodes, identities)
        for job in snapshot.jobs:
            identity = labels(Scope.JOB.labels, (snapshot.vm, job.device, job.job_id, job.job_type))
            _records(out, self._live[Scope.JOB], (job,), (identity,))
        blobs = list(kept.blobs)
        for slot in self._live_slots:
            if lines := out[slot]:
                blobs[slot] = "".join(lines).encode()
        return tuple(blobs)

    def keep(self, snapshot: Snapshot) -> Kept:
        """Render what stays until query-block is asked again."""
        out: list[list[str]] = [[] for _ in METRICS]
        devices: list[str] = []
        counting: list[str] = []
        for device in snapshot.devices:
            identity = labels(Scope.DEVICE.labels, (snapshot.vm, device.device))
            if device.throttle:
                more = labels(("throttle_group",), (device.throttle.throttle_group,))
                _records(
                    out, self._kept[Scope.THROTTLE], (device.throttle,), (f"{identity},{more}",)
                )
            bitmaps = [
                f"{identity},{labels(('bitmap', 'node_name'), (bitmap.bitmap, bitmap.node_name))}"
                for bitmap in device.bitmaps
            ]
            _records(out, self._kept[Scope.BITMAP], device.bitmaps, bitmaps)
            nodes = [_node_labels(snapshot.vm, device.device, node) for node in device.nodes]
            _records(out, self._kept[Scope.NODE], device.nodes, nodes)
            devices.append(identity)
            counting += [n for n, node in zip(nodes, device.nodes, strict=True) if node.counts]
        _records(out, self._kept[Scope.DEVICE], snapshot.devices, devices)
        blobs = tuple("".join(lines).encode() for lines in out)
        return Kept(blobs, tuple(devices), tuple(counting))

    def _vm(self, out: list[list[str]], snapshot: Snapshot) -> None:
        identity = labels(Scope.VM.labels, (snapshot.vm,))
        _records(out, self._live[Scope.VM], (snapshot,), (identity,))
        if snapshot.up:
            for metric in self._info:
                _info(out[_SLOT[metric.name]], metric, snapshot, identity)

    def _intervals(
        self, out: list[list[str]], found: Sequence[Interval], identity: str
    ) -> None:
        identities = [
            f"{identity},{labels(('interval_seconds',), (interval.interval_seconds,))}"
            for interval in found
        ]
        _records(out, self._live[Scope.INTERVAL], found, identities)


def _node_labels(vm: str, device: str, node: Node) -> str:
    # As `labels` would, of which there would be one for each node of a fleet.
    return (
        f'vm="{escape(vm)}",device="{escape(device)}",layer="{node.layer}",role="{node.role}",'
        f'node_name="{escape(node.node_name)}"'
    )


def _grouped(metrics: Iterable[Metric]) -> tuple[_Rows, ...]:
    rows: dict[tuple[tuple[str, ...], bool, bool], list[Metric]] = {}
    for metric in metrics:
        if metric.path:
            key = (metric.path[:-1], _is_number(metric), metric.zero is Zero.UNUSED)
            rows.setdefault(key, []).append(metric)
    return tuple(
        _Rows(
            _owner(owner),
            _values([row.path[-1] for row in group]),
            tuple((_SLOT[row.name], row) for row in group),
            numbers,
            together,
        )
        for (owner, numbers, together), group in rows.items()
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


def _records(
    out: list[list[str]],
    groups: Iterable[_Rows],
    records: Sequence[Any],
    identities: Sequence[str],
) -> None:
    """Append the lines of records of one kind; an identity is labels without braces."""
    for group in groups:
        owner_of, values_of, together = group.owner, group.values, group.together
        read = [
            (identity, record, values)
            for record, identity in zip(records, identities, strict=True)
            if (owner := owner_of(record)) is not None
            and (any(values := values_of(owner)) or not together)
        ]
        if not read:
            continue
        if group.numbers:
            _columns(out, group.rows, [identity for identity, _, _ in read], [v for _, _, v in read])
            continue
        for identity, record, values in read:
            for (slot, metric), value in zip(group.rows, values, strict=True):
                if value is not None:
                    _value(out[slot], metric, record, identity, value)


def _columns(
    out: list[list[str]],
    rows: Iterable[tuple[int, Metric]],
    identities: Sequence[str],
    values: Sequence[tuple[Any, ...]],
) -> None:
    """Append integers, family by family: nearly all lines of a scrape, and so without a detour."""
    for (slot, metric), column in zip(rows, zip(*values, strict=True), strict=True):
        of, known = identities, column
        if None in column:
            of = [i for i, value in zip(identities, column, strict=True) if value is not None]
            known = tuple(value for value in column if value is not None)
        if known and (min(known) < 0 or max(known) >= _UNSIGNED):
            known = tuple(map(_unsigned, known))
        start, divisor = metric.name + "{", metric.divisor
        if divisor == 1:
            out[slot] += [f"{start}{i}}} {v}\n" for i, v in zip(of, known, strict=True)]
        else:
            out[slot] += [f"{start}{i}}} {v / divisor}\n" for i, v in zip(of, known, strict=True)]


def _value(lines: list[str], metric: Metric, record: Any, identity: str, value: Any) -> None:
    """Append the lines of a value that is more than an integer."""
    if metric.kind == "info" or metric.states or metric.labels:
        _info(lines, metric, record, identity, value)
    elif isinstance(value, qapi.Histogram):
        _histogram(lines, metric, identity, value)
    elif value or metric.zero is not Zero.UNSET:
        lines.append(f"{metric.name}{{{identity}}} {number(value, metric.divisor)}\n")


def _info(
    lines: list[str], metric: Metric, record: Any, identity: str, value: Any = None
) -> None:
    """An info family, a status family, or a reason."""
    if metric.states:
        start = f'{metric.name}{{{identity},{metric.path[-1].rpartition("_")[2]}="'
        lines += [f'{start}{state}"}} {int(state == value)}\n' for state in metric.states]
        if value not in metric.states:
            lines.append(f'{start}{escape(value)}"}} 1\n')
        return
    more = labels(metric.labels, [getattr(record, name) for name in metric.labels])
    lines.append(f"{metric.name}{{{identity}{identity and ','}{more}}} 1\n")


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
            _info(out[slot], metric, exporter, "")
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
