"""A counter that our own queries put through `rate` or `increase` has a sample before its first event.

Without one the first event is no increase: after werror=stop it may stay the only one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from exporter.collect.fleet import Fleet
from exporter.config.settings import Config
from exporter.expose.families import join
from exporter.metrics.table import METRICS
from exporter.storage.file_stat import FileStat
from exporter.storage.prober import Storage
from tests.conftest import samples
from tests.dashboards import queries
from tests.promql import seen_from_the_first
from tests.replay import replay

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
COUNTERS = {metric.name for metric in METRICS if metric.kind == "counter"}


class Asked(NamedTuple):
    """A query that is shipped."""

    where: str
    expr: str


def shipped() -> list[Asked]:
    """Return the queries of pages, runbooks and guides, of rules, alerts and dashboards."""
    found = [Asked(query.where, query.expr) for query in queries()]
    for path in (
        PROMETHEUS / "rules.yml",
        PROMETHEUS / "alerts.yml",
        PROMETHEUS / "scale" / "rules.yml",
    ):
        for group in yaml.safe_load(path.read_text())["groups"]:
            rules = group["rules"]
            found += [Asked(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules]
    for path in sorted(
        [
            *ROOT.glob("*.md"),
            *ROOT.glob("docs/*.md"),
            *ROOT.glob("deploy/**/*.md"),
            *ROOT.glob("grafana/*.md"),
        ]
    ):
        text = path.read_text()
        lines = [
            line
            for line in text.splitlines()
            if line.startswith(("    ", "increase(")) or "`" in line
        ]
        found += [Asked(path.name, line) for line in lines]
    return [each for each in found if re.search(r"\b(rate|increase|irate)\(", each.expr)]


def counted(expr: str) -> set[str]:
    """Return the counters of which an expression takes an increase."""
    return {
        name
        for name in re.findall(r"\b(?:rate|increase|irate)\(\s*(\w+)", expr)
        if name in COUNTERS
    }


async def _names(sockets: Path) -> set[str]:
    async for _, _, exposition in replay("10.0", ["a09-commit-running"], sockets):
        return {re.split(r"[{ ]", sample)[0] for sample in samples(exposition)}
    raise AssertionError


def test_there_are_such_queries_in_each_place() -> None:
    """The test below looks at something."""
    places = {each.where for each in shipped() if counted(each.expr)}

    assert {"queries.md", "QemuBlockIoFailed.md", "QemuVmPausedByIoError.md"} <= places
    assert "vm_device:qemu_block_images_corrupted:increase1d" in places
    assert any(place.startswith("qemu-block-jobs: I/O errors") for place in places)


async def test_a_counter_has_a_sample_before_its_first_event(sockets: Path) -> None:
    """Or the query sees the first one by itself."""
    first = await _names(sockets)
    fleet = Fleet(Config(groups=()), Storage(lambda path: FileStat(visible=True)))
    own = samples(join([fleet.self_metrics(())], openmetrics=False).decode())
    first |= {re.split(r"[{ ]", sample)[0] for sample in own}
    blind = [
        (each.where, name)
        for each in shipped()
        for name in counted(each.expr) - set(seen_from_the_first(each.expr))
        if name not in first
    ]

    assert blind == []


def test_an_increase_that_is_blind_is_found() -> None:
    """The form that sees the first count is exactly one."""
    sees = (
        'increase(a_total{b="c"}[5m]) + (min_over_time(a_total{b="c"}[5m])'
        ' unless last_over_time(a_total{b="c"}[1h] offset 5m)) or increase(a_total{b="c"}[5m])'
    )  # fmt: skip

    assert seen_from_the_first(f"sum({sees})") == ["a_total"]
    for blind in (
        "increase(a_total[5m])",
        sees.replace("offset 5m", "offset 1m"),
        sees.replace('min_over_time(a_total{b="c"}', "min_over_time(a_total"),
    ):
        assert not seen_from_the_first(blind)
