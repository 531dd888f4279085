"""The parts of the benchmark: each measures one thing and adds it to the results."""

from __future__ import annotations

import json
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.fleets import Fleet, fakes, qemus
from bench.measure import Cost, Costs, asked_cpu, cpu, interleave, wall
from bench.report import Bar, Results, Table
from bench.subjects import Client, Exporter, Subject
from bench.usage import MIB, peak_resident_bytes, resident_bytes

_BLOCK = 'qemu_exporter_qmp_commands_total{command="query-block"}'
_STATUS = 'qemu_exporter_qmp_commands_total{command="query-status"}'
#: Monitors that each QEMU has: one for each that asks.
CLIENTS = ("exporter", "always", "same", "raw", "json", "qemu.qmp")


@dataclass(frozen=True, slots=True)
class Size:
    """A fleet of real QEMUs, and how it is measured."""

    count: int
    disks: int
    layers: int
    rounds: int
    period_seconds: float

    @property
    def name(self) -> str:
        return f"{self.count} x {self.disks} x {self.layers}"


def real_fleet(results: Results, size: Size) -> Mapping[str, Costs]:
    """The exporter beside its floors, on real QEMUs."""
    # A scrape in four asks query-block, as with a scrape every 15 s and a max-age of 60 s.
    age = f"--collector.topology.max-age={3.5 * size.period_seconds}"
    with ExitStack() as stack:
        fleet = stack.enter_context(qemus(size.count, size.disks, size.layers, CLIENTS))
        exporter = Exporter(fleet.sockets("exporter"), age)
        always = "--collector.topology.max-age=0.001"
        subjects: list[Subject] = [
            stack.enter_context(exporter),
            stack.enter_context(Exporter(fleet.sockets("always"), always, name="always")),
            *(stack.enter_context(Client(kind, fleet.sockets(kind))) for kind in CLIENTS[2:]),
        ]
        # Until every VM has been refreshed once, by its own part of max-age.
        interleave(subjects[:1], [], 5, size.period_seconds)
        for subject in subjects[1:]:
            subject.sweep()
        before = exporter.value(_BLOCK), exporter.value(_STATUS)
        time.sleep(1.1)
        costs = interleave(subjects, fleet.pids, size.rounds, size.period_seconds)
        time.sleep(1.1)
        share = (exporter.value(_BLOCK) - before[0]) / (exporter.value(_STATUS) - before[1])
        memory = resident_bytes(exporter.process.pid)
        said = exporter.said()
    assert "level=ERROR" not in said, said
    raw = costs["raw"]
    results.tables.append(
        Table(
            f"Real QEMUs, {size.name}",
            ("client", "wall ms", "p95", "of raw", "CPU us a VM", "QEMU us a VM", "of raw"),
            [
                (
                    name, cost.median(wall) * 1e3, cost.p95(wall) * 1e3,
                    cost.median(wall) / raw.median(wall),
                    cost.mean(cpu) / size.count * 1e6, cost.mean(asked_cpu) / size.count * 1e6,
                    cost.mean(asked_cpu) / raw.mean(asked_cpu),
                )
                for name, cost in costs.items()
            ],
            f"VMs x disks x layers; {size.rounds} rounds, one every {size.period_seconds:g} s. Of the"
            f" exporter's scrapes of a VM {share:.0%} had a query-block; it took"
            f" {memory / MIB:.0f} MiB.",
        )
    )  # fmt: skip
    return costs


def bars_of_fleets(results: Results, found: Mapping[int, Mapping[str, Costs]]) -> None:
    """Hold the fleets of two disks to their bars."""
    at = found[50]
    results.bars += [
        Bar("wall of /metrics, 50 VMs, of the raw client's", _ratio(at, wall, "raw"), 1.3, 1.0),
        Bar("CPU of the exporter, 50 VMs, of the JSON client's", _ratio(at, cpu, "json"), 2, 1.3),
        Bar("CPU of QEMU, 50 VMs, of the three queries'", _ratio(at, asked_cpu, "raw"), 1.05, 0.6),
    ]
    if 200 in found:
        what = "CPU of QEMU, 200 VMs, of what the same queries cost"
        results.bars.append(Bar(what, _ratio(found[200], asked_cpu, "same"), 1.05))
    if 1000 in found:
        for what, of in (("wall", wall), ("CPU of the exporter", cpu)):
            many, few = found[1000]["exporter"], found[50]["exporter"]
            value = many.mean(of) / 1000 / (few.mean(of) / 50)
            results.bars.append(Bar(f"{what} a VM, 1,000 VMs, of 50 VMs'", value, 1.2))


def _ratio(costs: Mapping[str, Costs], of: Callable[[Cost], float], to: str) -> float:
    if of is wall:
        return costs["exporter"].median(wall) / costs[to].median(wall)
    return costs["exporter"].mean(of) / costs[to].mean(of)


def one_stopped(results: Results, count: int = 50, rounds: int = 12) -> None:
    """What one VM that hangs costs the scrape of the others."""
    timeout = 2.0
    with (
        qemus(count, 2, 3, ["exporter"]) as fleet,
        Exporter(fleet.sockets("exporter"), f"--qmp.timeout={timeout}") as exporter,
    ):
        exporter.sweep()
        healthy = _walls(exporter, rounds)
        process = fleet.processes[0]
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.1)
        first = exporter.sweep()
        after = _walls(exporter, rounds)
        process.send_signal(signal.SIGCONT)
        time.sleep(1.1)
        up = exporter.value('qemu_vm_up{vm="vm0000"}')
    assert up == 1.0, "the VM was not back in the scrape after SIGCONT"
    ratio = statistics.median(after) / statistics.median(healthy)
    results.bars += [
        Bar("first scrape with one VM in 50 stopped, of the timeout", first / timeout, 1.2),
        Bar("next scrapes, of healthy ones", ratio, 1.2, 1.05),
    ]
    rows = [("healthy", statistics.median(healthy) * 1e3, max(healthy) * 1e3),
            ("the first with one stopped", first * 1e3, first * 1e3),
            ("the next", statistics.median(after) * 1e3, max(after) * 1e3)]  # fmt: skip
    note = f"Wall of a scrape, {rounds} each, with a timeout of {timeout:g} s."
    results.tables.append(
        Table("One VM in 50 stopped", ("scrape", "median ms", "most ms"), rows, note)
    )


def _walls(exporter: Exporter, rounds: int) -> list[float]:
    walls = []
    for _ in range(rounds):
        time.sleep(1.1)
        walls.append(exporter.sweep())
    return walls


def simulated_fleet(results: Results, counts: Sequence[int], rounds: int) -> Mapping[int, float]:
    """Memory, the event loop, and cost against N, on simulated VMs of 4 disks x 3 layers."""
    rows = []
    found: dict[int, float] = {}
    for count in counts:
        period = max(1.3, count * 0.003)
        with ExitStack() as stack:
            fleet = stack.enter_context(fakes(count, 4, 3))
            report = Path(stack.enter_context(tempfile.TemporaryDirectory()), "turns.json")
            exporter = stack.enter_context(_watched(fleet, report, period))
            first = exporter.sweep()
            memory_first = peak_resident_bytes(exporter.process.pid)
            exporter.process.send_signal(signal.SIGUSR1)  # what came before was its start
            interleave([exporter], fleet.pids, 4, period)
            costs = interleave([exporter], fleet.pids, rounds, period)["exporter"]
            turns = json.loads(report.read_text("utf-8"))
            pid = exporter.process.pid
            peak, resident = peak_resident_bytes(pid), resident_bytes(pid)
            found[count] = costs.mean(cpu) / count
            rows.append((
                count, first * 1e3, costs.median(wall) * 1e3, costs.p95(wall) * 1e3,
                costs.mean(cpu) / count * 1e6, resident / MIB, peak / MIB, memory_first / MIB,
                turns["longest_seconds"] * 1e3, turns["turns_over_limit"],
                turns["longest_with_a_core_seconds"] * 1e3,
                exporter.body_bytes / MIB,
            ))  # fmt: skip
    results.tables.append(
        Table(
            "Simulated VMs of 4 disks x 3 layers",
            ("VMs", "first ms", "wall ms", "p95", "CPU us a VM", "MiB", "peak MiB",
             "peak MiB, first", "longest turn ms", "turns over 20 ms", "longest with a core ms",
             "gzip MiB"),
            rows,
            "They replay what a real QEMU said. A turn is what the event loop does between two"
            " looks at its sockets; with a core: less the time that its thread was ready to run and"
            " others had the cores.",
        )
    )  # fmt: skip
    last = rows[-1]
    if counts[-1] == 1000:
        results.bars += [
            Bar("memory of 1,000 VMs of 4 disks x 3 layers, MiB", float(last[6]), 250, 120),
            Bar(
                "longest turn of the event loop at 1,000 VMs, with a core, ms", float(last[10]), 20
            ),
            Bar("CPU a VM, 1,000 simulated VMs, of 50 VMs'", found[1000] / found[50], 1.2),
        ]
    return found


def _watched(fleet: Fleet, report: Path, period_seconds: float) -> Exporter:
    age = f"--collector.topology.max-age={3.5 * period_seconds}"
    module = ("bench.watched", str(report))
    return Exporter(fleet.sockets("exporter"), age, module=module)


def endurance(results: Results, scrapes: int = 10_000, count: int = 20) -> None:
    """Memory over many scrapes, each of a sweep of its own."""
    rows = []
    with ExitStack() as stack:
        fleet = stack.enter_context(fakes(count, 2, 3))
        report = Path(stack.enter_context(tempfile.TemporaryDirectory()), "turns.json")
        module = ("bench.watched", str(report), "--each-its-own-sweep")
        flags = "--collector.topology.max-age=1"
        exporter = stack.enter_context(Exporter(fleet.sockets("exporter"), flags, module=module))
        for index in range(1, scrapes + 1):
            exporter.sweep()
            if index % (scrapes // 10) == 0:
                rows.append((index, resident_bytes(exporter.process.pid) / MIB))
        commands = exporter.value(_STATUS)
    assert commands >= scrapes * count, "not every scrape was a sweep of its own"
    note = f"Of {count} simulated VMs of 2 disks x 3 layers, a refresh of each once a second."
    results.tables.append(Table("Memory over scrapes", ("scrapes", "MiB"), rows, note))
    growth = rows[-1][1] / rows[1][1]
    results.bars.append(
        Bar(f"memory after {scrapes:,} scrapes, of that after a fifth", growth, 1.02)
    )
