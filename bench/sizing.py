"""The arithmetic of deploy/prometheus/scale/CAPACITY.md: from the constants of a VM to a fleet.

Everything is proportional to VMs, disks, layers and time; what is not measured is not here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "capacity.json"
PAGE = Path(__file__).parents[1] / "deploy" / "prometheus" / "scale" / "CAPACITY.md"
GIB = 1 << 30
DAY_SECONDS = 86400
#: Of a server's memory half is for the head: queries, compaction and a restart take the other.
SERVER_BYTES, HEAD_SHARE = 64 * GIB, 0.5
#: How long a series that ended stays in the head: blocks are cut every two hours, an hour later.
HEAD_HOURS = 3
FLEETS = ((1, 10), (100, 50), (10_000, 100))
INTERVALS = (15, 30, 60)


@dataclass(frozen=True)
class Sizing:
    """The constants, and what follows from them."""

    constants: Mapping[str, Any]

    @property
    def model(self) -> tuple[int, int, int]:
        """Series of a VM: so many, so many more a disk, and so many more a layer of a disk."""
        grid = self.constants["grid"]
        layer = grid["d1l2"] - grid["d1l1"]
        disk = grid["d2l1"] - grid["d1l1"] - layer
        return grid["d1l1"] - disk - layer, disk, layer

    @property
    def bytes_per_series(self) -> float:
        """Memory of a series of the head: the slope between two servers."""
        small, large = (self.constants["servers"][name] for name in ("small", "large"))
        more = large["resident_bytes"] - small["resident_bytes"]
        return float(more / (large["series"] - small["series"]))

    @property
    def base_bytes(self) -> float:
        """Memory of a server without series."""
        large = self.constants["servers"]["large"]
        return float(large["resident_bytes"] - large["series"] * self.bytes_per_series)

    def per_vm(self, tier: str) -> float:
        """Series of a VM that a store has, recorded ones among them."""
        found = self.constants["series_per_vm"]
        return float(found[tier] if tier == "sums" else found[tier] + found["recorded"])

    def series(self, tier: str, hosts: int, vms: int) -> float:
        """Series of a fleet; the exporters' own too, where they are not sums."""
        own = 0 if tier == "sums" else hosts * self.constants["own_series"]
        return hosts * vms * self.per_vm(tier) + own

    def disk_bytes(self, samples_per_second: float, seconds: int, days: int) -> float:
        """Blocks, where every disk does I/O all the time."""
        each = self.constants["block_bytes_per_sample"]["busy"][str(seconds)]
        return float(samples_per_second * DAY_SECONDS * days * each)

    def memory_bytes(self, series: float) -> float:
        """Memory of one server, were there one that large."""
        return self.base_bytes + series * self.bytes_per_series

    def servers(self, series: float) -> int:
        """Servers of SERVER_BYTES."""
        room = SERVER_BYTES * HEAD_SHARE - self.base_bytes
        return math.ceil(series * self.bytes_per_series / room)


#: A store: what it is called, what is in it, and what comes in over the network.
STORES = (
    ("shards, with rules", "everything"),
    ("centre of agents, with rules", "agents"),
    ("centre of shards: sums", "sums"),
)


def tables(constants: Mapping[str, Any]) -> dict[str, str]:
    """Return every table of the page by its name."""
    sizing = Sizing(constants)
    return {
        "made": _made(constants),
        "vm": _vm(sizing),
        "constants": _constants(sizing),
        "samples": _samples(sizing),
        "fleets": _fleets(sizing),
        "churn": _churn(sizing),
    }


def write() -> None:
    """Put the tables of the kept constants into the page."""
    text = PAGE.read_text("utf-8")
    for name, table in tables(json.loads(DATA.read_text("utf-8"))).items():
        begin, end = f"<!-- {name}: by python -m bench.capacity -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        assert found, begin
        text = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text, "utf-8")


def _made(constants: Mapping[str, Any]) -> str:
    made = constants["made"]
    return f"{made['date']}, Prometheus {made['prometheus']}, {made['machine']}.\n"


def _vm(sizing: Sizing) -> str:
    base, disk, layer = sizing.model
    grid = sizing.constants["grid"]
    rows = [
        (f"{disks} disks" if disks > 1 else "1 disk", *(grid[f"d{disks}l{n}"] for n in (1, 2, 3)))
        for disks in range(1, 9)
    ]
    formula = f"Series of a VM = {base} + disks x ({disk} + {layer} x layers), to the last one:\n\n"
    collectors = ", ".join(
        f"{'no collector' if name == 'always' else f'`{name}`'} {count}"
        for name, count in sizing.constants["collectors"].items()
    )
    changes = sizing.constants["changes"]
    more = (
        ("a latency histogram, a disk", changes["histograms"]["new"]),
        ("a running commit", changes["job"]["new"]),
        ("the exporter itself, a host", sizing.constants["own_series"]),
    )
    return (
        formula
        + _table(("", "1 layer", "2 layers", "3 layers"), rows)
        + f"\nOf 2 disks of 3 layers, by collector: {collectors}. Beside them:\n\n"
        + _table(("what", "series"), more)
        + f"\nThe histogram has {sizing.constants['histogram_boundaries']} boundaries.\n"
    )


def _constants(sizing: Sizing) -> str:
    found = sizing.constants
    per_vm = found["series_per_vm"]
    blocks = found["block_bytes_per_sample"]
    small, large = (found["servers"][name] for name in ("small", "large"))
    rows: list[tuple[str, str]] = [
        ("series of a VM", f"{per_vm['everything']:.0f}"),
        ("of them in the list of agents", f"{per_vm['agents']:.0f}"),
        ("recorded by rules.yml and scale/rules.yml", f"{per_vm['recorded']:.0f}"),
        ("of all these in the list of shards (sums)", f"{per_vm['sums']:.0f}"),
        ("scrape, a VM: text", f"{found['body_bytes_per_vm']:,} bytes"),
        ("scrape, a VM: gzip, as it is sent", f"{found['gzip_bytes_per_vm']:,} bytes"),
        *(
            (
                f"block of 2 h, a sample at {seconds} s: busy, idle disks",
                f"{blocks['busy'][str(seconds)]:.2f}, {blocks['idle'][str(seconds)]:.2f} bytes",
            )
            for seconds in INTERVALS
        ),
        ("write-ahead log, a sample", f"{found['wal_bytes_per_sample']:.1f} bytes"),
        (
            f"memory of a server of {small['series']:,.0f} series, {small['samples']:.0f} samples each",
            _bytes(small["resident_bytes"]),
        ),
        (
            f"memory of a server of {large['series']:,.0f} series, {large['samples']:.0f} samples each",
            _bytes(large["resident_bytes"]),
        ),
        ("so, a series", f"{sizing.bytes_per_series:,.0f} bytes"),
        ("and a server without any", _bytes(sizing.base_bytes)),
        ("CPU of the server, a sample", f"{found['cpu_seconds_per_sample'] * 1e6:.2f} µs"),
        (
            f"memory of an agent of {found['agent']['series']:,.0f} series",
            _bytes(found["agent"]["resident_bytes"]),
        ),
        (
            "remote write on the wire, a sample",
            f"{found['agent']['wire_bytes_per_sample']:.1f} bytes",
        ),
    ]
    return _table(("what", "measured"), rows)


def _samples(sizing: Sizing) -> str:
    rows = []
    for hosts, vms in FLEETS:
        for title, tier in STORES:
            series = sizing.series(tier, hosts, vms)
            rates = [_count(series / seconds) for seconds in INTERVALS]
            rows.append((f"{hosts:,} x {vms}", title, _count(series), *rates))
    columns = [f"samples/s at {seconds} s" for seconds in INTERVALS]
    return _table(("hosts x VMs", "store", "series", *columns), rows)


def _fleets(sizing: Sizing, seconds: int = 30) -> str:
    found = sizing.constants
    rows = []
    for hosts, vms in FLEETS:
        for title, tier in STORES:
            series = sizing.series(tier, hosts, vms)
            rate = series / seconds
            if tier == "everything":
                arrives = hosts * vms * found["gzip_bytes_per_vm"] / seconds
            else:
                recorded = hosts * vms * found["series_per_vm"]["recorded"]
                sent = series - (recorded if tier == "agents" else 0)
                arrives = sent / seconds * found["agent"]["wire_bytes_per_sample"]
            rows.append((
                f"{hosts:,} x {vms}",
                title,
                _bytes(sizing.memory_bytes(series)),
                sizing.servers(series),
                f"{rate * found['cpu_seconds_per_sample']:.2f}",
                _bytes(sizing.disk_bytes(rate, seconds, 15)),
                _bytes(sizing.disk_bytes(rate, seconds, 90)),
                _bits(arrives * 8),
            ))  # fmt: skip
    columns = (
        "hosts x VMs",
        "store",
        "memory",
        "servers",
        "cores",
        "15 days",
        "90 days",
        "arrives",
    )
    return _table(columns, rows)


def _churn(sizing: Sizing) -> str:
    changes = sizing.constants["changes"]
    whole = sum(changes[each]["new"] for each in ("snapshot", "job", "commit_end"))
    vm = sizing.constants["series_per_vm"]["everything"]
    daily = 2 * whole
    rows = [
        (
            "a snapshot of a disk of 3 layers",
            changes["snapshot"]["gone"],
            changes["snapshot"]["new"],
        ),
        ("its commit begins", changes["job"]["gone"], changes["job"]["new"]),
        ("the commit ends", changes["commit_end"]["gone"], changes["commit_end"]["new"]),
    ]
    spread = daily * HEAD_HOURS / 24
    return _table(("what happens", "series that end", "new series"), rows) + (
        f"\nBoth disks of a VM once a day: {daily:.0f} new series a day. Spread over the day,"
        f" {spread:.0f} of them are in the head, {spread / vm:.0%} of the VM's {vm:.0f}; all in one"
        f" night, all of them: {daily / vm:.0%}.\n"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1000 if unit == 'k' else size):.3g} {unit}"
    return f"{value:,.0f}"


def _bits(value: float) -> str:
    """Return a rate, as networks are sold."""
    number, _, unit = _count(value).partition(" ")
    return f"{number} {unit}bit/s"


def _bytes(value: float) -> str:
    for exponent, unit in ((4, "TiB"), (3, "GiB")):
        if value >= 1024**exponent:
            return f"{value / 1024**exponent:.3g} {unit}"
    return f"{value / 1024**2:.3g} MiB"


def read_tables(page: str) -> dict[str, str]:
    """Return the tables that a page has, by their names."""
    found = re.findall(r"<!-- (\w+): by [^>]*-->\n\n(.*?)\n<!-- /\1 -->", page, re.DOTALL)
    return dict(found)
