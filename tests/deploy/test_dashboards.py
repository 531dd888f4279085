"""The dashboards ask for what the exporter has, and say what they show."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.models import units

from exporter.metrics.table import METRICS
from tests.dashboards import (
    FILES,
    GRAFANA,
    VALUES,
    Query,
    filled,
    load,
    panels,
    queries,
    schema_errors,
)
from tests.promql import Use, kept, uses

UIDS = ("qemu-block-fleet", "qemu-block-jobs", "qemu-block-vm")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: What Prometheus gives every series that it scrapes.
OF_PROMETHEUS = {"__name__", "job", "instance"}
#: Functions of a counter, and functions of a gauge that take a range too.
OF_COUNTERS = {"rate", "irate", "increase", "resets"}
OF_RANGES = {"deriv", "delta", "changes"}
EVERY = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def _known() -> dict[str, tuple[str, set[str]]]:
    """Return the kind and the labels of every series that the exporter can have, by name."""
    found = {}
    for metric in METRICS:
        labels = {*metric.scope.labels, *metric.labels, *(["status"] if metric.states else [])}
        histogram = metric.kind == "histogram"
        name = metric.name + "_bucket" if histogram else metric.name
        found[name] = (metric.kind, labels | OF_PROMETHEUS | ({"le"} if histogram else set()))
    return found


def _wrong(use: Use, known: dict[str, tuple[str, set[str]]]) -> list[str]:
    """Return what is wrong with one selector."""
    names = [name for name in known if re.fullmatch(use.name, name)]
    if not names:
        return [f"{use.name} does not exist"]
    found = []
    for name in names:
        kind, labels = known[name]
        found += [f"{name} has no label {label}" for label in use.labels - labels]
        counts = kind in {"counter", "histogram"}
        if counts != (use.function in OF_COUNTERS):
            found.append(f"{name} is a {kind}: not for {use.function or 'use by itself'}")
    if bool(use.range) != (use.function in OF_COUNTERS | OF_RANGES):
        found.append(f"{use.name}: {use.function} and [{use.range}] do not go together")
    allowed = {"$__rate_interval"} | ({"$__range"} if use.function == "increase" else set())
    if use.range and use.range not in allowed:
        found.append(f"{use.name}: [{use.range}] is not [$__rate_interval]")
    return found


def _strings(value: Any) -> list[str]:
    """Return every text in a dashboard."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _strings(inner)]
    return [value] if isinstance(value, str) else []


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )


def _columns(panel: dict[str, Any]) -> set[str]:
    """Return the names of the columns that the queries of a table give."""
    found = {"Time"}
    for target in panel["targets"]:
        labels = kept(target["expr"])
        if labels is None:
            known = _known()
            for use in uses(target["expr"]):
                found |= {"__name__"} if "__name__" in use.labels else set()
                for name, (_, series) in known.items():
                    found |= series if re.fullmatch(use.name, name) else set()
        else:
            found |= labels
        found.add(f"Value #{target['refId']}" if len(panel["targets"]) > 1 else "Value")
    return found


# -- the files


def test_the_uids_are_what_links_and_bookmarks_hold() -> None:
    """A uid is never changed: it is in bookmarks, alerts and runbooks."""
    assert tuple(load(path)["uid"] for path in FILES) == UIDS
    assert tuple(path.stem for path in FILES) == UIDS


@EVERY
def test_grafana_provisions_the_file_unchanged(path: Path) -> None:
    """Nothing in it belongs to one Grafana, and nothing has to be filled in at an import."""
    dashboard = load(path)

    assert dashboard["id"] is None
    assert dashboard["editable"] is True
    assert dashboard["schemaVersion"] == 39
    assert dashboard["tags"] == ["qemu", "qemu-block"]
    assert dashboard["title"]
    assert dashboard["description"]
    assert "__inputs" not in dashboard
    assert "DS_PROMETHEUS" not in path.read_text()


@EVERY
def test_the_file_is_valid_by_the_schema_that_grafana_publishes(path: Path) -> None:
    """No unknown field, no wrong type, in the dashboard, its queries and its panels' options."""
    assert schema_errors(load(path)) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda panel: panel.update(titel="x"), ".titel is unknown"),
        (lambda panel: panel["gridPos"].update(w="3"), ".grid_pos.w is '3'"),
        (lambda panel: panel["options"].update(graphMode="x"), ".options.graph_mode is 'x'"),
        (lambda panel: panel["options"].update(grafMode="x"), ".options.grafMode is unknown"),
        (lambda panel: panel["targets"][0].update(format="x"), ".targets[0].format_val is 'x'"),
        (lambda panel: panel["targets"][0].update(exp="x"), ".targets[0].exp is unknown"),
        (lambda panel: panel.update(transformations=[{"id": 1}]), ".transformations[0].id_val is"),
    ],
)
def test_what_the_schema_does_not_have_is_found(change: Any, error: str) -> None:
    """The check itself: it sees unknown fields and wrong types at every depth."""
    dashboard = load(GRAFANA / "qemu-block-fleet.json")
    change(next(panel for panel in dashboard["panels"] if panel["type"] == "stat"))

    assert any(error in found for found in schema_errors(dashboard))


@pytest.mark.parametrize("name", ["dashboards.yml", "datasource.yml"])
def test_the_provisioning_examples_are_what_grafana_reads(name: str) -> None:
    """They are YAML of Grafana's provisioning version, and name one provider or data source."""
    example = yaml.safe_load((GRAFANA / "provisioning" / name).read_text())

    assert example["apiVersion"] == 1
    (entry,) = example.get("providers") or example["datasources"]
    assert entry["type"] in {"file", "prometheus"}


# -- the panels


@EVERY
def test_panels_lie_side_by_side_on_24_columns(path: Path) -> None:
    """Each has an id of its own and a place of its own."""
    dashboard = load(path)
    ids = [panel["id"] for panel in dashboard["panels"]]
    places = [panel["gridPos"] for panel in dashboard["panels"]]

    assert len(set(ids)) == len(ids)
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, other in itertools.combinations(places, 2):
        assert not _overlap(one, other), (one, other)


@EVERY
def test_every_panel_says_what_it_shows_and_when_it_shows_nothing(path: Path) -> None:
    """Title, unit, a description in sentences, and a text for the time without data."""
    for panel in panels(load(path)):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert re.fullmatch(r"[A-Z0-9-].{20,}\.", panel["description"]), panel["title"]
        assert defaults["unit"], panel["title"]
        assert len(defaults["noValue"]) > 4, panel["title"]


@EVERY
def test_every_unit_is_one_of_grafanas(path: Path) -> None:
    """A unit that Grafana does not know is shown as a suffix."""
    known = {value for name, value in vars(units).items() if name[0].isupper()}
    named = re.findall(r'"id": "unit", "value": "([^"]+)"', path.read_text())
    named += re.findall(r'"unit": "([^"]+)"', path.read_text())

    assert set(named) <= known
    assert named


@EVERY
def test_tables_name_columns_that_their_queries_give(path: Path) -> None:
    """A column that is renamed or hidden exists, and an override is for a column that is shown."""
    for panel in panels(load(path)):
        if panel["type"] != "table":
            continue
        options = panel["transformations"][-1]["options"]
        given = _columns(panel)
        named = {*options["renameByName"], *options["excludeByName"], *options["indexByName"]}
        assert given <= named, panel["title"]
        assert named <= given | {"Value"}, panel["title"]  # if only one query found something
        shown = set(options["renameByName"].values())
        for override in panel["fieldConfig"]["overrides"]:
            if override["matcher"]["id"] == "byName":
                assert override["matcher"]["options"] in shown, panel["title"]


@EVERY
def test_tables_ask_for_one_moment_and_graphs_for_a_range(path: Path) -> None:
    """A table of a range has a line for each step."""
    for panel in panels(load(path)):
        moment = panel["type"] in {"table", "stat"}
        for target in panel["targets"]:
            assert target["instant"] is moment, panel["title"]
            assert target["range"] is not moment, panel["title"]
            assert (target.get("format") == "table") is (panel["type"] == "table"), panel["title"]
            assert (target.get("format") == "heatmap") is (panel["type"] == "heatmap")


# -- the queries


@EVERY
def test_panels_and_queries_use_the_data_source_that_is_chosen(path: Path) -> None:
    """The variable, everywhere."""
    dashboard = load(path)
    for panel in panels(dashboard):
        assert panel["datasource"] == SOURCE, panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == SOURCE, panel["title"]
    for variable in dashboard["templating"]["list"][1:]:
        assert variable["datasource"] == SOURCE


@EVERY
def test_refs_are_unique_in_a_panel(path: Path) -> None:
    """Grafana drops the second query of one name."""
    for panel in panels(load(path)):
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names), panel["title"]


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.where)
def test_queries_ask_for_what_the_exporter_has(query: Query) -> None:
    """Metrics and labels of the table; a counter only as a rate, over Grafana's rate interval."""
    known = _known()
    found = uses(query.expr)

    assert found
    assert [wrong for use in found for wrong in _wrong(use, known)] == []


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.where)
def test_legends_name_labels_that_the_query_keeps(query: Query) -> None:
    """A label that was summed away is empty in a legend."""
    named = set(re.findall(r"{{(\w+)}}", query.target.get("legendFormat", "")))

    assert named <= (kept(query.expr) or set())


def test_queries_are_promql(tmp_path: Path) -> None:
    """Prometheus's own parser takes them all, as Grafana sends them."""
    rules = [
        {"record": f"query{index}", "expr": filled(query.expr)}
        for index, query in enumerate(queries())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    check = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False
    )

    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize(
    ("expr", "wrong"),
    [
        ("qemu_vm_upp", "qemu_vm_upp does not exist"),
        ('qemu_vm_up{device="a"}', "qemu_vm_up has no label device"),
        ("max by (device) (qemu_vm_up)", "qemu_vm_up has no label device"),
        ("qemu_block_reads_completed_total", "is a counter: not for use by itself"),
        ("rate(qemu_vm_up[$__rate_interval])", "is a gauge: not for rate"),
        ("rate(qemu_block_reads_completed_total[5m])", "[5m] is not [$__rate_interval]"),
        ("deriv(qemu_block_job_offset_bytes[$__range])", "[$__range] is not"),
        ("deriv(qemu_block_job_offset_bytes)", "deriv and [] do not go together"),
        ('{__name__=~"qemu_block_throttled_.+"}', "does not exist"),
    ],
)
def test_a_query_that_asks_for_something_else_is_found(expr: str, wrong: str) -> None:
    """The check itself."""
    found = [error for use in uses(expr) for error in _wrong(use, _known())]

    assert any(wrong in error for error in found), found


@pytest.mark.parametrize("expr", ["sum(up) by (vm)", "a * on (vm) b", "a'b'"])
def test_a_query_that_the_check_cannot_read_is_refused(expr: str) -> None:
    """Nothing passes because it was not understood."""
    with pytest.raises(ValueError, match=r"before its operand|not understood"):
        uses(expr)


# -- variables and links


@EVERY
def test_the_variables_are_there_and_the_data_source_is_the_first(path: Path) -> None:
    """All of a label is `.*`: a job whose disk is not known has an empty device, and is shown."""
    dashboard = load(path)
    variables = dashboard["templating"]["list"]
    one = path.stem == "qemu-block-vm"

    assert [variable["name"] for variable in variables] == [
        *("datasource", "job", "instance", "vm", "device"),
    ]
    assert variables[0]["type"] == "datasource"
    assert variables[0]["query"] == "prometheus"
    for variable in variables[1:]:
        every = not (one and variable["name"] == "vm")
        assert variable["includeAll"] is variable["multi"] is every
        assert variable.get("allValue") == (".*" if every else None)


@EVERY
def test_the_variables_ask_for_labels_that_the_exporter_has(path: Path) -> None:
    """Each is `label_values(series, label)`, and the series has that label."""
    known = _known()
    for variable in load(path)["templating"]["list"][1:]:
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert match
        (use,) = uses(match[1])
        assert match[2] == variable["name"]
        assert {*use.labels, match[2]} <= known[use.name][1]


@EVERY
def test_every_variable_that_is_used_is_defined(path: Path) -> None:
    """Grafana leaves a variable that it does not know as it stands, and the query finds nothing."""
    dashboard = load(path)
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set()
    for text in _strings(dashboard):
        for name in re.findall(r"\$\{?(\w+)", text):
            if not name.startswith("__"):
                used.add(name)
            else:
                assert f"${name}" in VALUES or name in {"__data", "__url_time_range", "__all"}

    assert used == defined


@EVERY
def test_links_lead_to_a_dashboard_that_exists(path: Path) -> None:
    """By its uid, with the variables and the time."""
    dashboard = load(path)
    urls = re.findall(r'"url": "([^"]*)"', path.read_text())
    for url in urls:
        match = re.fullmatch(r"/d/([\w-]+)/\1(\?.*)?", url)
        assert match, url
        assert match[1] in UIDS
    assert {link["url"].split("/")[2] for link in dashboard["links"]} == {*UIDS} - {path.stem}
    for link in dashboard["links"]:
        assert link["includeVars"] is link["keepTime"] is True


@EVERY
def test_data_links_carry_the_variables_from_columns_that_are_shown(path: Path) -> None:
    """A link from a VM in a table opens that VM, in the same data source and time."""
    for panel in panels(load(path)):
        for url in re.findall(r'"url": "([^"]*\?[^"]*)"', json.dumps(panel)):
            shown = set(panel["transformations"][-1]["options"]["renameByName"].values())
            assert set(re.findall(r"__data\.fields\.(\w+)", url)) <= shown
            for part in ("${datasource:queryparam}", "var-vm=${", "${__url_time_range}"):
                assert part in url
