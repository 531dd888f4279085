"""Beyond one host: the files of deploy/prometheus/scale are configurations, and keep what is asked for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.metrics.table import METRICS
from tests.dashboards import queries
from tests.promql import uses

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
SCALE = PROMETHEUS / "scale"
SHARDS = ["shard-by-host.yml", "shard-by-vm.yml"]
CONFIGS = [*SHARDS, "agent.yml", "central.yml"]
#: What Prometheus itself says of a target, as far as rules ask for it.
OF_TARGETS = {"up", "scrape_duration_seconds"}
KNOWN = {metric.name + "_bucket" * (metric.kind == "histogram") for metric in METRICS} | OF_TARGETS


def load(name: str) -> Any:
    """Return a file as data."""
    return yaml.safe_load((SCALE / name).read_text())


def rules(path: Path) -> list[dict[str, Any]]:
    """Return all rules of a file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def kept(name: str) -> re.Pattern[str]:
    """Return what a file lets through to the central store: Prometheus anchors the pattern."""
    (relabel,) = load(name)["remote_write"][0]["write_relabel_configs"]
    assert (relabel["source_labels"], relabel["action"]) == (["__name__"], "keep")
    return re.compile(relabel["regex"])


def words(expression: str) -> set[str]:
    """Return all words of an expression that are names, those between quotes left out."""
    return set(re.findall(r"(?<![\w:$])[a-z_][\w:]*", re.sub(r'"[^"]*"', " ", expression)))


def asked() -> tuple[set[str], set[str]]:
    """Return the exporter's series that rules, alerts, descriptions and dashboards ask for, and
    patterns of names that a dashboard asks for.
    """
    shipped = [*rules(PROMETHEUS / "rules.yml"), *rules(PROMETHEUS / "alerts.yml")]
    shipped += rules(SCALE / "rules.yml")
    texts = [rule["expr"] for rule in shipped]
    texts += re.findall(r'"(qemu_\w+)\{', (PROMETHEUS / "alerts.yml").read_text())
    found = set().union(*map(words, texts)) & KNOWN
    patterns = set()
    for query in queries():
        for use in uses(query.expr):
            if use.name in KNOWN:
                found.add(use.name)
            elif re.search(r"[^\w:]", use.name):
                patterns.add(use.name)
            else:
                assert ":" in use.name, f"{query.where}: {use.name}"
    return {name for name in found if not any(re.fullmatch(p, name) for p in patterns)}, patterns


def placed(name: str, folder: Path) -> Path:
    """Write a file with the rules that it names where they are here."""
    text = (SCALE / name).read_text().replace("/etc/prometheus/qemu-block", str(PROMETHEUS))
    path = folder / name
    path.write_text(text)
    return path


def promtool(*arguments: str, cwd: Path = SCALE) -> None:
    run = subprocess.run(
        ["promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", CONFIGS)
def test_promtool_takes_each_file(name: str, tmp_path: Path) -> None:
    """With the rules that it names; the agent's as one of an agent."""
    flags = ["--agent"] if name == "agent.yml" else []
    promtool("check", "config", *flags, str(placed(name, tmp_path)))


def test_the_sums_are_what_they_say() -> None:
    """promtool plays two hosts, with a backing file that two disks share."""
    promtool("test", "rules", "rules.yml", cwd=SCALE / "tests")


def test_every_name_in_the_sums_exists_and_each_sum_has_its_convention() -> None:
    """They rest on the table and on rules.yml; a recorded name is level:metric:operation."""
    recorded = {rule["record"] for rule in rules(PROMETHEUS / "rules.yml")}
    own = {rule["record"] for rule in rules(SCALE / "rules.yml")}
    for rule in rules(SCALE / "rules.yml"):
        named = {word for word in words(rule["expr"]) if "qemu_" in word}
        assert named <= KNOWN | recorded | own, rule["record"]
        assert re.fullmatch(r"vm:qemu_block_\w+:\w+", rule["record"])


def test_agents_send_what_rules_alerts_and_dashboards_ask_for(
    request: pytest.FixtureRequest,
) -> None:
    """And nothing else, so that the list is as short as it can be. `--update-golden` writes it."""
    names, patterns = asked()
    if request.config.getoption("--update-golden"):
        lines = "|\\\n".join(f"          {name}" for name in sorted(names | patterns))
        path = SCALE / "agent.yml"
        text, count = re.subn(
            r'(regex: "\\\n).*?"\n',
            lambda m: f'{m[1]}{lines}"\n',
            path.read_text(),
            flags=re.DOTALL,
        )
        assert count == 1
        path.write_text(text)

    assert set(kept("agent.yml").pattern.split("|")) == names | patterns
    assert len(names) > 50
    assert patterns == {"qemu_block_throttle_.+"}


def test_shards_send_every_sum_and_every_alert() -> None:
    """What a name of the list stands for exists, here or in the rules, and both lists are one."""
    keep = kept(SHARDS[0])
    recorded = {
        rule["record"]
        for name in ("rules.yml", "scale/rules.yml")
        for rule in rules(PROMETHEUS / name)
    }
    everything = KNOWN | recorded | {"ALERTS"}

    assert kept(SHARDS[1]) == keep
    assert {rule["record"] for rule in rules(SCALE / "rules.yml")} | {"ALERTS", "up"} <= {
        name for name in everything if keep.fullmatch(name)
    }
    for part in re.sub(r"\(.*?\)", lambda m: m[0].replace("|", "\0"), keep.pattern).split("|"):
        pattern = part.replace("\0", "|")
        assert any(re.fullmatch(pattern, name) for name in everything), pattern


def test_shards_send_nothing_that_two_of_them_record() -> None:
    """A threshold has no labels: two shards that send it would write over each other."""
    keep = kept(SHARDS[0])

    assert not any(
        keep.fullmatch(rule["record"])
        for rule in rules(PROMETHEUS / "rules.yml")
        if "vector(" in rule["expr"]
    )


@pytest.mark.parametrize("name", SHARDS)
def test_shards_hash_what_tells_targets_apart(name: str) -> None:
    """Each job has a modulus and keeps one remainder; all jobs of a file have the same ones."""
    shares = set()
    for job in load(name)["scrape_configs"]:
        hashed, chosen = job["relabel_configs"][-2:]
        assert hashed["action"] == "hashmod"
        assert hashed["target_label"] == "__tmp_hash" == chosen["source_labels"][0]
        assert chosen["action"] == "keep"
        labels = ["__address__", "__param_target"] if "metrics_path" in job else ["__address__"]
        assert hashed["source_labels"] == labels
        assert re.match("qemu-block", job["job_name"]), "rules.yml looks for it"
        shares.add((hashed["modulus"], chosen["regex"]))

    assert shares == {(2, "0")}


def test_the_files_of_both_ways_to_shard_differ_in_their_jobs_alone() -> None:
    """What is mended in one is mended in the other."""
    one, other = (load(name) for name in SHARDS)

    assert {**one, "scrape_configs": 0} == {**other, "scrape_configs": 0}
