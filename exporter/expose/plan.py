"""Table x state -> bytes per family. Pure.

A VM is rendered once, into one blob of lines per family; `families` joins those of all VMs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from exporter.expose.line_template import LineTemplate, flatten, number, template
from exporter.expose.samples import escape, info_line, labels, lines_of
from exporter.metrics import METRICS, Metric, Scope, ZeroMeaning
from exporter.model import Bitmap, Exporter, Node, Throttle, VmState, intervals

#: Lines of one snapshot: one blob per family, in the order of the table.
FamilyBytes = tuple[bytes, ...]

_SLOT = {metric.name: slot for slot, metric in enumerate(METRICS)}


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a scope whose values stand under one owner, read at once."""

    owner: Callable[[Any], Any]
    values: Callable[[Any], tuple[Any, ...]]
    rows: tuple[tuple[int, Metric], ...]
    #: Of rows that are integers and no more, the divisor of all; 0 where they are more.
    divisor: int
    #: No sample while all values are 0.
    together: bool
    #: The values of a record that has none of them.
    nothing: tuple[None, ...]


#: Owners of what a scrape brings anew; the rest of a device stays until query-block is asked again.
_LIVE_OWNERS = frozenset({"stats", "driver_specific", "layer_io", "timed"})
_KEPT_SCOPES = (Scope.DEVICE, Scope.THROTTLE, Scope.BITMAP, Scope.NODE)


@dataclass(slots=True)
class Cell:
    """The lines of what was last remembered of a VM: valid while it is the same object."""

    remembered: object = None
    #: By slot.
    lines: Sequence[tuple[int, bytes]] = ()


@dataclass(frozen=True, slots=True)
class CachedLines:
    """What stays the same of a VM's lines for as long as its devices do.

    A scrape renders three kinds of lines, from the least to the most often new:

    * `blobs` come from query-block, and are as they are until that is asked again.
    * What is remembered of jobs and events is one object until something happens: its lines are in
      a cell, and are rendered again when it is another object.
    * Counters are new in each scrape, but only their numbers: a template has the text around them,
      and one `%` fills in all numbers of its families. A template is kept until the records or
      what is missing among their values change.

    So templates and cell are filled while rendering, and everything is dropped with the devices.
    """

    blobs: FamilyBytes
    #: Labels of each device.
    devices: tuple[str, ...]
    #: Labels of each node that counts, in the order of `model.Counters`.
    nodes: tuple[str, ...]
    #: The lines that scrapes fill in, by the first of the slots that they belong to.
    templates: dict[int, LineTemplate] = field(default_factory=dict)
    cell: Cell = field(default_factory=Cell)


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

    def render(self, snapshot: VmState, kept: CachedLines | None = None) -> FamilyBytes:
        """Return the lines of one VM, one blob per family of the table.

        `kept` is what `keep` returned for a snapshot with the same devices.
        """
        kept = kept or self.keep(snapshot)
        counters, live, templates = snapshot.counters, self._live, kept.templates
        blobs = list(kept.blobs)
        identity = labels(Scope.VM.labels, (snapshot.vm,))
        _records(blobs, live[Scope.VM], (snapshot,), (identity,), {})
        if snapshot.up:
            for metric in self._info:
                blobs[_SLOT[metric.name]] = info_line(metric, snapshot, identity).encode()
        _records(blobs, live[Scope.DEVICE], counters.devices, kept.devices, templates)
        timed = [
            (f"{of_device},{labels(('interval_seconds',), (interval.interval_seconds,))}", interval)
            for entry, of_device in zip(counters.devices, kept.devices, strict=True)
            if entry.stats.timed_stats
            for interval in intervals(entry)
        ]
        _pairs(blobs, live[Scope.INTERVAL], timed)
        if counters.files:
            _records(blobs, live[Scope.FILE], counters.files, kept.nodes, templates)
        nodes, of_nodes = counters.nodes, kept.nodes
        if nodes and nodes[0].layer_io is not None:
            _records(blobs, live[Scope.LAYER], nodes, of_nodes, templates)
        if snapshot.free_nodes:
            nodes = [*nodes, *counters.free_nodes]
            of_nodes += tuple(_node_labels(snapshot.vm, "", node) for node in snapshot.free_nodes)
        _records(blobs, live[Scope.NODE], nodes, of_nodes, templates)
        exports = [
            (labels(Scope.EXPORT.labels, (snapshot.vm, each.export)), each)
            for each in snapshot.exports
        ]
        _pairs(blobs, live[Scope.EXPORT], exports)
        jobs = [
            (labels(Scope.JOB.labels, (snapshot.vm, job.device, job.job_id, job.job_type)), job)
            for job in snapshot.jobs
        ]
        _pairs(blobs, live[Scope.JOB], jobs)
        if snapshot.remembered:
            cell = kept.cell
            if cell.remembered is not snapshot.remembered:
                cell.lines = self._remember(snapshot)
                cell.remembered = snapshot.remembered
            for slot, lines in cell.lines:
                blobs[slot] = lines
        return tuple(blobs)

    def _remember(self, snapshot: VmState) -> list[tuple[int, bytes]]:
        blobs = [b""] * len(METRICS)
        for scope, records in (snapshot.remembered or {}).items():
            read = attrgetter(*scope.labels[1:], scope.labels[1])  # twice: never a lone value
            of = [labels(scope.labels, (snapshot.vm, *read(record)[:-1])) for record in records]
            _records(blobs, self._live[scope], records, of, {})
        return [(slot, lines) for slot, lines in enumerate(blobs) if lines]

    def keep(self, snapshot: VmState) -> CachedLines:
        """Render what stays until query-block is asked again."""
        devices: list[str] = []
        throttles: list[tuple[str, Throttle]] = []
        bitmaps: list[tuple[str, Bitmap]] = []
        nodes: list[tuple[str, Node]] = []
        for device in snapshot.devices:
            identity = labels(Scope.DEVICE.labels, (snapshot.vm, device.device))
            devices.append(identity)
            if (throttle := device.throttle) is not None:
                more = labels(("throttle_group",), (throttle.throttle_group,))
                throttles.append((f"{identity},{more}", throttle))
            for bitmap in device.bitmaps:
                more = labels(("bitmap", "node_name"), (bitmap.bitmap, bitmap.node_name))
                bitmaps.append((f"{identity},{more}", bitmap))
            nodes += [(_node_labels(snapshot.vm, device.device, n), n) for n in device.nodes]
        blobs = [b""] * len(METRICS)
        _records(blobs, self._kept[Scope.DEVICE], snapshot.devices, devices, {})
        _pairs(blobs, self._kept[Scope.THROTTLE], throttles)
        _pairs(blobs, self._kept[Scope.BITMAP], bitmaps)
        _pairs(blobs, self._kept[Scope.NODE], nodes)
        counting = tuple(identity for identity, node in nodes if node.counts)
        return CachedLines(tuple(blobs), tuple(devices), counting)


def _node_labels(vm: str, device: str, node: Node) -> str:
    # As `labels` would, of which there would be one for each node of a fleet.
    return (
        f'vm="{escape(vm)}",device="{escape(device)}",layer="{node.layer}",role="{node.role}",'
        f'node_name="{escape(node.node_name)}"'
    )


def _grouped(metrics: Iterable[Metric]) -> tuple[_Rows, ...]:
    rows: dict[tuple[tuple[str, ...], int, bool], list[Metric]] = {}
    for metric in metrics:
        if metric.path:
            # Rows that appear together stay together, whatever they are.
            together = metric.zero is ZeroMeaning.UNUSED
            divisor = metric.divisor if _is_number(metric) and not together else 0
            key = (metric.path[:-1], divisor, together)
            rows.setdefault(key, []).append(metric)
    return tuple(
        _Rows(
            _owner(owner),
            _values([row.path[-1] for row in group]),
            tuple((_SLOT[row.name], row) for row in group),
            divisor,
            together,
            (None,) * len(group),
        )
        for (owner, divisor, together), group in rows.items()
    )


def _is_number(metric: Metric) -> bool:
    plain = metric.kind in ("counter", "gauge") and not metric.states and not metric.labels
    return plain and metric.type is int and metric.zero is not ZeroMeaning.UNSET


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


def _pairs(blobs: list[bytes], groups: Iterable[_Rows], pairs: Sequence[tuple[str, Any]]) -> None:
    """As `_records`, of what is most often not there at all."""
    if pairs:
        identities, records = zip(*pairs, strict=True)
        _records(blobs, groups, records, identities, {})


def _records(
    blobs: list[bytes],
    groups: Iterable[_Rows],
    records: Sequence[Any],
    identities: Sequence[str],
    templates: dict[int, LineTemplate],
) -> None:
    """Put the lines of all records of one kind; an identity is labels without braces."""
    for group in groups:
        owner_of, values_of, nothing = group.owner, group.values, group.nothing
        read = [
            (identity, record, values)
            for record, identity in zip(records, identities, strict=True)
            if (owner := owner_of(record)) is not None and (values := values_of(owner)) != nothing
        ]
        if group.together:
            read = [each for each in read if any(each[2])]
        if not read:
            continue
        of, those, values = zip(*read, strict=True)
        if group.divisor:
            _numbers(blobs, group, of, values, templates)
            continue
        for (slot, metric), column in zip(group.rows, zip(*values, strict=True), strict=True):
            blobs[slot] = "".join(
                [
                    lines_of(metric, record, identity, value)
                    for identity, record, value in zip(of, those, column, strict=True)
                    if value is not None
                ]
            ).encode()


def _numbers(
    blobs: list[bytes],
    group: _Rows,
    identities: tuple[str, ...],
    values: Sequence[tuple[int | None, ...]],
    templates: dict[int, LineTemplate],
) -> None:
    """Put integers: nearly all lines of a scrape, which are the same but for their numbers."""
    flat, missing = flatten(values, group.divisor)
    first = group.rows[0][0]
    kept = templates.get(first)
    if kept is None or not kept.fits(identities, missing):
        names = [metric.name for _, metric in group.rows]
        kept = templates[first] = template(names, identities, missing, group.divisor)
    for (slot, _), lines in zip(group.rows, kept.fill(flat), strict=True):
        blobs[slot] = lines


def render_exporter(exporter: Exporter) -> FamilyBytes:
    """Return the lines of the program itself, one blob per family of the table."""
    blobs = [b""] * len(METRICS)
    for slot, metric in enumerate(METRICS):
        if metric.scope is not Scope.EXPORTER:
            continue
        value: Any = getattr(exporter, metric.path[-1]) if metric.path else None
        if metric.kind == "info":
            text = info_line(metric, exporter, "")
        elif metric.labels:
            text = "".join(
                f"{metric.name}{{{labels(metric.labels, each)}}} {count}\n"
                for label_values, count in sorted(value.items())
                for each in [label_values if isinstance(label_values, tuple) else (label_values,)]
            )
        else:
            text = f"{metric.name} {number(value)}\n"
        blobs[slot] = text.encode()
    return tuple(blobs)
