"""The recording rules and alerts: Prometheus takes them, and they say what they should."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.metrics.table import METRICS

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "prometheus"
RUNBOOKS = "https://github.com/qemu-block-exporter/qemu-block-exporter/blob/main/deploy/prometheus/runbooks"
UNIT_TESTS = sorted(path.name for path in (FOLDER / "tests").glob("*.yml"))

#: What Prometheus adds to every target.
TARGET_LABELS = {"job", "instance"}
TARGET_METRICS = {"up": TARGET_LABELS, "scrape_duration_seconds": TARGET_LABELS}
WORDS = {
    "absent", "and", "avg_over_time", "bool", "by", "changes", "count", "group_left", "group_right",
    "histogram_quantile", "ignoring", "increase", "label_replace", "last_over_time", "max",
    "max_over_time", "min", "min_over_time", "offset", "on", "or", "predict_linear", "rate", "resets",
    "scalar", "sum", "time", "timestamp", "unless", "vector", "without",
}  # fmt: skip


def _load(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


RULES = _load("rules.yml")
ALERTS = {alert["alert"]: alert for alert in _load("alerts.yml")}
STORIES = [
    story
    for name in UNIT_TESTS
    for story in yaml.safe_load((FOLDER / "tests" / name).read_text())["tests"]
]

each_alert = pytest.mark.parametrize("name", ALERTS)
each_expression = pytest.mark.parametrize(
    "rule", [*RULES, *ALERTS.values()], ids=lambda rule: rule.get("alert") or rule["record"]
)


def _known() -> dict[str, set[str]]:
    """Return every name that a rule may use, with its labels."""
    known = dict(TARGET_METRICS)
    for metric in METRICS:
        bucket = metric.kind == "histogram"
        known[metric.name + "_bucket" * bucket] = {
            *metric.labels, *metric.scope.labels, *TARGET_LABELS,
            *(["status"] if metric.states else []), *(["le"] if bucket else []),
        }  # fmt: skip
    every = {label for labels in known.values() for label in labels}
    every |= {label for rule in RULES for label in rule.get("labels", ())}
    return known | {rule["record"]: every for rule in RULES}


KNOWN = _known()
LABELS = {label for labels in KNOWN.values() for label in labels}
LABELS |= set(
    re.findall(r'^ *"(\w+)", "\w+", "", ""$', (FOLDER / "alerts.yml").read_text(), re.MULTILINE)
)


def _unknown(expression: str) -> set[str]:
    """Return the words of an expression that are no metric, label, function or keyword."""
    text = re.sub(r"\[[^]]*\]|\boffset \w+", " ", re.sub(r'"[^"]*"|%q', " ", expression))
    unknown: set[str] = set()

    def selector(match: re.Match[str]) -> str:
        name, matchers = match.groups()
        labels = set(re.findall(r"(\w+)\s*(?:=|!)", matchers))
        unknown.update(f"{name}{{{label}}}" for label in labels - KNOWN.get(name, set()))
        return name

    def grouping(match: re.Match[str]) -> str:
        unknown.update(set(re.findall(r"\w+", match[1])) - LABELS)
        return " "

    text = re.sub(r"([\w:]+)\{([^}]*)\}", selector, text)
    text = re.sub(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", grouping, text)
    words = set(re.findall(r"(?<![\w.])[a-zA-Z_][\w:]*", text))
    return unknown | {word for word in words - WORDS if word not in KNOWN}


def _promtool(*arguments: str) -> None:
    run = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER / "tests", capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", ["rules.yml", "alerts.yml"])
def test_promtool_takes_the_rules(name: str) -> None:
    """They are rules of Prometheus."""
    _promtool("check", "rules", str(FOLDER / name))


@pytest.mark.parametrize("name", UNIT_TESTS)
def test_the_alerts_fire_when_they_should_and_only_then(name: str) -> None:
    """promtool plays series through the rules: see the names of the stories in the file."""
    _promtool("test", "rules", name)


@each_alert
def test_an_alert_has_what_somebody_needs_at_night(name: str) -> None:
    """Severity, a sentence, the VM and disk that it is about, and a runbook."""
    alert = ALERTS[name]
    notes = alert["annotations"]

    assert re.fullmatch(r"Qemu(Block|Vm)([A-Z][a-z0-9]+)+", name)
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert re.fullmatch(r"[A-Z][^{]*\.", notes["summary"])
    assert notes["description"].endswith(".")
    assert "{{ $" in notes["description"] or alert["expr"].startswith("absent")
    assert notes["runbook_url"] == f"{RUNBOOKS}/{name}.md"


@each_alert
def test_an_alert_waits_or_says_why_it_does_not(name: str) -> None:
    """`for` is there, and a `for` of 0s has a comment above it."""
    text = (FOLDER / "alerts.yml").read_text()
    text = re.split(r"- alert: ", text.partition(f"- alert: {name}\n")[2])[0]

    assert re.fullmatch(r"\d+[smhd]", ALERTS[name]["for"])
    assert not re.search(r"(?<!\.)\n +for: 0", text)


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    """A runbook that is renamed is renamed with its alert."""
    assert {path.stem for path in (FOLDER / "runbooks").glob("*.md")} == ALERTS.keys()


@each_alert
def test_a_runbook_says_what_it_means_how_to_look_and_what_to_do(name: str) -> None:
    """Three sections, commands in them, and links that lead somewhere."""
    page = (FOLDER / "runbooks" / f"{name}.md").read_text()

    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)", page, re.MULTILINE) == [
        "What it means",
        "How to investigate",
        "What to do",
    ]
    assert "\n    " in page.partition("## How to investigate")[2]
    for link in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (FOLDER / "runbooks" / link).exists(), link


@each_alert
def test_every_metric_that_a_runbook_names_exists(name: str) -> None:
    """PromQL that is copied from a runbook gives something."""
    page = (FOLDER / "runbooks" / f"{name}.md").read_text()
    named = set(re.findall(r"(?<![\w:.])(?:\w+:)?qemu_\w+(?::\w+)?", page))
    named -= {prefix for prefix in named if prefix.endswith("_")}  # grep '^qemu_block_job_.*'

    assert named <= KNOWN.keys()


@each_expression
def test_every_metric_and_label_of_a_rule_exists(rule: dict[str, Any]) -> None:
    """In the table, or recorded by another rule; the queries in descriptions too."""
    description = rule.get("annotations", {}).get("description", "")
    queries = re.findall(r'"(qemu_\w+\{[^"]*)"', description)
    labels = set(re.findall(r"\$labels\.(\w+)", description))

    assert not set().union(*(_unknown(text) for text in (rule["expr"], *queries)))
    assert labels <= LABELS


def test_an_unknown_name_is_found() -> None:
    """The test above can fail."""
    assert _unknown("qemu_vm_upp") == {"qemu_vm_upp"}
    assert _unknown('rate(qemu_vm_up{vmm="a"}[5m])') == {"qemu_vm_up{vmm}"}
    assert _unknown("sum by (vmm) (qemu_vm_up)") == {"vmm"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["record"])
def test_a_recorded_name_is_level_metric_operation(rule: dict[str, Any]) -> None:
    """Prometheus's convention; thresholds have no level."""
    assert re.fullmatch(
        r"qemu_block_threshold:\w+|(vm_device|vm_job|vm_throttle_group|instance):qemu_\w+:\w+",
        rule["record"],
    )


@each_alert
def test_a_threshold_stands_in_one_place(name: str) -> None:
    """An alert compares with recorded numbers; it has none of its own but 0 and 1."""
    text = re.sub(r'"[^"]*"|\[[^]]*\]', " ", ALERTS[name]["expr"])

    assert set(re.findall(r"(?<![\w:.])\d[\d.eE]*", text)) <= {"0", "1"}


def test_every_threshold_is_used() -> None:
    """A number that changes nothing misleads."""
    rules, alerts = (FOLDER / "rules.yml").read_text(), (FOLDER / "alerts.yml").read_text()
    recorded = re.findall(r"record: (qemu_block_threshold:\w+)", rules)

    assert len(set(recorded)) == len(recorded) > 0
    assert set(recorded) == set(re.findall(r"scalar\((qemu_block_threshold:\w+)\)", rules + alerts))


def test_no_rule_rests_on_what_the_exporter_remembers() -> None:
    """A restart of the exporter loses these three: they are for people."""
    text = (FOLDER / "rules.yml").read_text() + (FOLDER / "alerts.yml").read_text()

    assert not re.search(r"(?<!:)qemu_block_job_(first_seen|last_progress|ready)_timestamp", text)


@each_alert
def test_an_alert_is_seen_to_fire_and_to_resolve(name: str) -> None:
    """In one story it fires and later does not; before it fires it waits."""
    resolves = False
    for story in STORIES:
        checks = [c for c in story["alert_rule_test"] if c["alertname"] == name]
        fires = [bool(check.get("exp_alerts")) for check in checks]
        resolves |= True in fires and False in fires[fires.index(True) :]

    assert resolves


def test_the_mixin_wraps_every_file() -> None:
    """A dashboard that is added is added to the mixin."""
    text = (FOLDER / "mixin.libsonnet").read_text()
    wrapped = {(FOLDER / name).resolve() for name in re.findall(r"importstr '([^']+)'", text)}

    assert wrapped == {
        FOLDER / "rules.yml",
        FOLDER / "alerts.yml",
        *(ROOT / "grafana").glob("*.json"),
    }
