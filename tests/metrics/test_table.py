"""The table: its names are Prometheus's kind of names, and METRICS.md says what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from exporter.metrics.table import COLLECTORS, METRICS
from exporter.metrics.types import Metric, Scope
from tests.metrics_md import markdown

METRICS_MD = Path(__file__).parent.parent.parent / "METRICS.md"
_ABBREVIATIONS = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
_OTHER_UNITS = {
    "minutes",
    "hours",
    "days",
    "weeks",
    "milliseconds",
    "kibibytes",
    "megabytes",
    "bits",
}

each_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


def test_metrics_md_is_what_the_table_says(request: pytest.FixtureRequest) -> None:
    """The page is generated: `pytest --update-golden` writes it anew."""
    if request.config.getoption("--update-golden"):
        METRICS_MD.write_text(markdown())

    assert METRICS_MD.read_text() == markdown()


def test_no_name_stands_twice() -> None:
    """Neither as a sample nor, without its suffix, as an OpenMetrics family."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert len({metric.family for metric in METRICS}) == len(METRICS)


@each_metric
def test_a_counter_ends_with_total_and_nothing_else_does(metric: Metric) -> None:
    """promlint: counter metrics should have the suffix _total."""
    assert (metric.kind == "counter") == metric.name.endswith("_total")


@each_metric
def test_a_name_is_lower_case_words_with_the_prefix_of_its_scope(metric: Metric) -> None:
    """promlint: no colons, no camelCase."""
    assert re.fullmatch(r"qemu(_[a-z][a-z0-9]*)+", metric.name)
    assert metric.name.startswith(metric.scope.prefix)


@each_metric
def test_a_name_has_only_base_units_and_no_abbreviation(metric: Metric) -> None:
    """promlint: base units, unabbreviated."""
    assert not set(metric.name.split("_")) & (_ABBREVIATIONS | _OTHER_UNITS)


@each_metric
def test_a_name_has_no_reserved_suffix_and_no_type_in_it(metric: Metric) -> None:
    """promlint: _sum, _count and _bucket belong to histograms and summaries."""
    assert not metric.name.endswith(("_sum", "_count", "_bucket"))
    assert not set(metric.name.split("_")) & {"gauge", "counter", "histogram", "summary"}


@each_metric
def test_help_is_a_sentence_without_quotes(metric: Metric) -> None:
    """Quotes are escaped in OpenMetrics and not in the text format: they are not used."""
    assert metric.text.rstrip("]").endswith((".", "snapshots", "progress", "+Inf"))
    assert metric.text[0].isupper() or metric.text.startswith("query-block")
    assert '"' not in metric.help
    assert "\\" not in metric.help


@each_metric
def test_a_value_of_qemu_names_its_field(metric: Metric) -> None:
    """HELP ends with QEMU's own field where the value is QEMU's."""
    if metric.field:
        assert metric.help.endswith(f"[{metric.field}]")


@each_metric
def test_a_label_is_none_of_those_that_prometheus_and_kubernetes_own(metric: Metric) -> None:
    """A scraped label named job or instance would become exported_job."""
    owned = {"job", "instance", "node", "type", "le"}
    # A contract: of an export alone, whose type QEMU has no other word for.
    owned -= {"type"} if metric.scope is Scope.EXPORT else set()
    assert not {*metric.labels, *metric.scope.labels} & owned


@each_metric
def test_every_collector_is_one_that_can_be_turned_off(metric: Metric) -> None:
    """A collector of the table has its flag; the VM and the exporter itself have none."""
    always_on = metric.scope in (Scope.VM, Scope.EXPORTER)
    assert metric.collector in ({""} if always_on else COLLECTORS.keys())
