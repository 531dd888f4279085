"""Tables of VMs, jobs and chains for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from exporter.api import Device, Job, Layer, Vm, VmSummary
from exporter.ctl import text
from exporter.ctl.rates import Rates
from exporter.ctl.text import NOTHING, SENTENCE_LIMIT, clean

_BAR_COLUMNS = 16
#: Columns that are folded on a narrow terminal, and their least width. Names are not folded, so
#: that they can be copied.
_FOLDED = frozenset({"FILE", "ERROR", "JOBS"})
_FOLDED_COLUMNS = 20
_GAP_COLUMNS = 2
_ENDLESS_COLUMNS = 100_000
_STYLES = {
    "ready": "bold yellow",
    "pending": "bold yellow",
    "standby": "yellow",
    "paused": "yellow",
    "running": "cyan",
    "completed": "green",
    "failed": "bold red",
    "cancelled": "red",
    "vanished": "bold red",
    "unverified": "magenta",
    "unknown": "magenta",
}


class Fitting:
    """A table; if it is too wide for the terminal, each row becomes lines of names and values."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        endless = options.update(width=_ENDLESS_COLUMNS)
        needed = -_GAP_COLUMNS
        for column in self._table.columns:
            cells = (column.header, *column.cells)
            widest = max(Measurement.get(console, endless, cell).maximum for cell in cells)
            least = _FOLDED_COLUMNS if column.header in _FOLDED else widest
            needed += min(widest, least) + _GAP_COLUMNS
        if needed <= options.max_width or not self._table.row_count:
            yield self._table
        else:
            yield self._stacked()

    def _stacked(self) -> Table:
        """Return the rows as lines of a column's name and value, without unknown values."""
        stacked = Table.grid(padding=(0, _GAP_COLUMNS, 0, 0))
        stacked.add_column(style="bold", no_wrap=True)
        stacked.add_column(overflow="fold")
        columns = self._table.columns
        for number, row in enumerate(zip(*(column.cells for column in columns), strict=True)):
            if number:
                stacked.add_row()
            for column, cell in zip(columns, row, strict=True):
                if str(cell) != NOTHING:
                    stacked.add_row(column.header, cell)
        return stacked


def vms(summaries: Iterable[VmSummary]) -> Fitting:
    """Return the VMs, one per line."""
    table = _table(
        "VM", "UP", "STATUS", "QEMU", "MANAGER", *map(_right, ("DISKS", "DEPTH", "JOBS"))
    )
    for vm in summaries:
        storage = vm.up and vm.storage_responding is False
        up = "storage hangs" if storage else "yes" if vm.up else vm.reason or "no"
        table.add_row(
            _cell(vm.vm),
            _cell(up, "green" if up == "yes" else "bold red"),
            _cell(vm.status),
            _cell(vm.qemu_version),
            _cell(vm.manager),
            _cell(vm.device_count),
            _cell(vm.backing_depth_max),
            _cell(vm.job_count),
        )
    return Fitting(table)


def jobs(found: Iterable[Job], rates: Rates, *, bars: bool) -> Fitting:
    """Return jobs, one per line; `bars` shows progress as bars, for a terminal."""
    table = _table(
        *("VM", "JOB", "TYPE", "DEVICE", "STATUS", "PROGRESS"),
        *map(_right, ("RATE", "ETA", "LIMIT")),
        "ERROR",
    )
    for job in found:
        table.add_row(
            _cell(job.vm),
            _cell(job.job_id),
            _cell(job.job_type),
            _cell(job.device),
            _state(job),
            _progress(job) if bars else _cell(text.percent(job)),
            text.speed(rates.bytes_per_second(job)),
            text.duration(rates.seconds_left(job)),
            text.speed(job.speed_limit_bytes_per_second or None),
            _cell(job.error, "red", SENTENCE_LIMIT),
        )
    return Fitting(table)


def job_line(job: Job, rates: Rates) -> RenderableType:
    """Return one job as one line of a terminal."""
    line = Table.grid(padding=(0, 2))
    line.add_row(
        _cell(job.job_id),
        _state(job),
        _progress(job),
        text.speed(rates.bytes_per_second(job)),
        f"ETA {text.duration(rates.seconds_left(job))}",
    )
    return line


def vm(found: Vm) -> RenderableType:
    """Return the disks of a VM, each with its layers from the active one down."""
    facts = [found.status or "", f"QEMU {found.qemu_version}" if found.qemu_version else ""]
    facts.append(f"managed by {found.manager}" if found.manager else "")
    if not found.up:
        facts.append(f"down: {found.reason}")
    title = ", ".join(clean(fact) for fact in facts if fact)
    parts: list[RenderableType] = [Text(f"{clean(found.vm)}: {title}", style="bold")]
    for device in found.devices:
        at_work = [job for job in found.jobs if job.device == device.device and not job.outcome]
        parts += ["", Text(_device(device), style="bold")]
        if device.layers:
            parts.append(_layers(device.layers, at_work))
        unmarked = [job for job in at_work if job.top is None and job.base is None]
        parts += [Text(f"running: {_named(job)}", style=_style(job)) for job in unmarked]
    return Group(*parts)


def _device(device: Device) -> str:
    facts = []
    if device.inserted is False:
        facts.append("empty")
    if device.backing_depth is not None:
        facts.append(f"depth {device.backing_depth}")
    if device.expected_backing_depth:
        facts.append(f"expected {device.expected_backing_depth}")
    if device.read_only:
        facts.append("read-only")
    if device.io_status not in {None, "ok"}:
        facts.append(f"I/O status {device.io_status}")
    return clean(device.device) + (f": {', '.join(map(clean, facts))}" if facts else "")


def _layers(layers: Iterable[Layer], at_work: Sequence[Job]) -> Fitting:
    table = _table(
        *(_right("LAYER"), "NODE", "DRIVER", "FILE"), *map(_right, ("VIRTUAL", "ALLOCATED")), "JOBS"
    )
    for layer in layers:
        marks = [mark for job in at_work for mark in _marks(job, layer.layer)]
        table.add_row(
            str(layer.layer),
            _cell(layer.node_name),
            _cell(layer.driver),
            _cell(layer.file, limit=SENTENCE_LIMIT),
            text.size(layer.virtual_size_bytes),
            text.size(layer.allocated_bytes),
            Text("\n").join(marks) if marks else NOTHING,
        )
    return Fitting(table)


def _marks(job: Job, layer: int) -> Iterable[Text]:
    for mark, place in (("top", job.top), ("base", job.base)):
        if layer == place:
            yield Text(f"{mark} of {_named(job)}", style=_style(job))


def _named(job: Job) -> str:
    return f"{clean(job.job_id)} ({clean(job.job_type)}, {clean(text.state(job))})"


def _style(job: Job) -> str:
    return _STYLES.get(text.state(job), "")


def _state(job: Job) -> Text:
    return _cell(text.state(job), _style(job))


def _progress(job: Job) -> RenderableType:
    done = text.whole_percent(job)
    if done is None or job.outcome is not None:
        return _cell(text.percent(job))
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(
        *(100, done, _BAR_COLUMNS),
        style="bright_black",
        complete_style="cyan",
        finished_style="green",
    )
    grid.add_row(bar, text.percent(job))
    return grid


def _right(name: str) -> tuple[str]:
    return (name,)


def _table(*columns: str | tuple[str]) -> Table:
    """Return a table without lines; a column whose name is in a tuple is right-aligned."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP_COLUMNS, 0, 0), header_style="bold")
    for column in columns:
        if isinstance(column, tuple):
            table.add_column(column[0], justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)
    return table


def _cell(value: object, style: str = "", limit: int = text.NAME_LIMIT) -> Text:
    shown = NOTHING if value is None else clean(str(value), limit)
    return Text(shown, style="" if shown == NOTHING else style)
