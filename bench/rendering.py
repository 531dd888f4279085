"""Samples to text: the program's own way beside prometheus_client's, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bench.fleets import qemus, record
from bench.report import Bar, Results, Table
from exporter.expose import exposition
from exporter.expose.families import join
from exporter.expose.plan import Plan
from exporter.model import build, chain
from exporter.model.build import Topology
from exporter.model.device_names import join_key
from exporter.model.state import VmState
from exporter.qmp import queries

_SAMPLES = 100_000


class Parsed:
    """A collector of samples that are there already, so that only their text is made."""

    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def rendering(results: Results, rounds: int = 5) -> None:
    """Measure 100,000 samples of VMs of 4 disks x 3 layers."""
    with qemus(1, 4, 3, ["record"]) as fleet:
        replies = record(fleet.listed("record")[0])
    plan = Plan()
    snapshots = [snapshot(f"vm{index:04}", replies) for index in range(_SAMPLES // 200)]
    per_vm = sum(blob.count(b"\n") for blob in plan.render(snapshots[0]))
    snapshots = snapshots[: -(-_SAMPLES // per_vm)]
    kept = [plan.keep(each) for each in snapshots]

    def anew() -> bytes:
        return join([plan.render(each) for each in snapshots], openmetrics=False)

    def again() -> bytes:
        return join(
            [plan.render(each, known) for each, known in zip(snapshots, kept, strict=True)],
            openmetrics=False,
        )

    text = anew()
    assert again() == text
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Parsed(text.decode()))
    blobs = [plan.render(each, known) for each, known in zip(snapshots, kept, strict=True)]
    ways: dict[str, Callable[[], Any]] = {
        "prometheus_client.generate_latest": lambda: generate_latest(registry),
        "the first time": anew,
        "in each scrape": again,
        "gzip": lambda: exposition.encoded(blobs, openmetrics=False, process=False, gzip=True),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            took[name].append(time.perf_counter() - began)
    samples = per_vm * len(snapshots)
    slow = statistics.median(took["prometheus_client.generate_latest"])
    rows = [
        (name, statistics.median(times) * 1e3, statistics.median(times) / slow)
        for name, times in took.items()
    ]
    packed = len(
        b"".join(exposition.encoded(blobs, openmetrics=False, process=False, gzip=True)[0])
    )
    results.tables.append(
        Table(
            "Samples to text", ("way", "ms", "of generate_latest"), rows,
            f"{samples:,} samples of {len(snapshots)} VMs of 4 disks x 3 layers,"
            f" {len(text) / 1e6:.1f} MB; gzip joins and compresses them to {packed / 1e6:.2f} MB.",
        )
    )  # fmt: skip
    value = statistics.median(took["in each scrape"]) / slow
    results.bars.append(Bar("100,000 samples to text, of generate_latest's", value, 0.1, 0.05))


def snapshot(vm: str, replies: dict[str, str]) -> VmState:
    """Return what the exporter makes of a VM that said this."""
    entries: Any = queries.BLOCKSTATS.decoder.decode(replies["query-blockstats"]).return_
    blocks: Any = queries.BLOCK.decoder.decode(replies["query-block"]).return_
    topology = Topology(blocks={join_key(info): info for info in blocks})
    known = build.devices(entries, topology, lambda _: 0)
    return VmState(
        vm=vm,
        up=True,
        running=True,
        status="running",
        name=vm,
        devices=known.found,
        counters=build.count(known, entries, chain.walk(entries)),
    )
