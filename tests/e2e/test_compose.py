"""The compose file, by the schema of its specification, and by the programs whose files it mounts.

No docker engine can be had here, so the containers themselves are not started: what they would be given
is given to Debian's Prometheus and Alertmanager, with the paths and names that hold outside.
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.e2e.lab import ROOT, Lab, drive, tool, wait_until
from tests.e2e.prometheus import free_address, shipped_rules
from tests.packages import is_ignored

HOME = ROOT / "deploy" / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((HOME / "compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def mounts(service: str) -> dict[str, Path]:
    """Return the files of ours that a service mounts, by their paths inside."""
    short = [each for each in SERVICES[service]["volumes"] if isinstance(each, str)]
    parts = [each.split(":") for each in short if each.startswith(".")]
    return {inside: (HOME / outside).resolve() for outside, inside, mode in parts if mode == "ro"}


def test_the_compose_file_is_one() -> None:
    """By the specification's own schema; and that is one that refuses what is wrong."""
    schema = json.loads((ROOT / "tests" / "data" / "schemas" / "compose-spec.json").read_text())
    validator = jsonschema_rs.validator_for(schema)
    wrong = {"services": {**SERVICES, "exporter": {**SERVICES["exporter"], "cap_drops": ["ALL"]}}}

    assert [error.message for error in validator.iter_errors(COMPOSE)] == []
    assert not validator.is_valid(wrong)


@pytest.mark.parametrize("service", ["prometheus", "alertmanager", "grafana"])
def test_every_file_that_it_mounts_is_there(service: str) -> None:
    """A bind mount of a file that is not there makes a folder, and a service that does not start."""
    assert mounts(service)
    assert all(path.is_file() for path in mounts(service).values())


def test_all_dashboards_are_mounted_where_grafana_looks() -> None:
    """None is forgotten, and the provisioning names their folder."""
    inside = mounts("grafana")
    provisioning = yaml.safe_load(
        (ROOT / "grafana" / "provisioning" / "dashboards.yml").read_text()
    )
    folder = provisioning["providers"][0]["options"]["path"]

    assert {path for path in inside.values() if path.suffix == ".json"} == {
        *(ROOT / "grafana").glob("*.json")
    }
    assert all(Path(path).parent == Path(folder) for path in inside if path.endswith(".json"))


def test_every_secret_is_a_file_that_git_does_not_take() -> None:
    """No password stands in the compose file, and none of the files can be committed by mistake."""
    files = [HOME / each["file"] for each in COMPOSE["secrets"].values()]

    assert files
    assert is_ignored(*files)
    assert not re.search(r"(?i)password: ", (HOME / "compose.yml").read_text())


def test_no_port_is_open_to_others_and_the_exporter_has_none() -> None:
    """Published are three pages, on loopback; what listens on all addresses is in a network of two."""
    ports = {name: service.get("ports", []) for name, service in SERVICES.items()}
    members = [name for name, service in SERVICES.items() if "scrape" in service["networks"]]

    assert ports["exporter"] == []
    assert all(port.startswith("127.0.0.1:") for each in ports.values() for port in each)
    assert members == ["exporter", "prometheus"]
    assert COMPOSE["networks"]["scrape"] == {"internal": True}


def test_alertmanager_takes_its_file() -> None:
    """amtool says so."""
    path = mounts("alertmanager")["/etc/alertmanager/alertmanager.yml"]
    check = subprocess.run([tool("amtool"), "check-config", path], check=False, capture_output=True)

    assert check.returncode == 0, check.stderr


def alertmanager(lab: Lab) -> str:
    """Start Alertmanager with its file, and return its address."""
    address = free_address()
    lab.process("alertmanager", [
        "prometheus-alertmanager", f"--config.file={mounts('alertmanager')['/etc/alertmanager/alertmanager.yml']}",
        f"--storage.path={lab.folder}/alertmanager", f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ])  # fmt: skip
    return address


def ask(url: str, body: Any = None) -> Any:
    """Return what is said at a URL, None where nobody listens yet; a body is posted."""
    request = urllib.request.Request(
        url, body and json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or "true")
    except OSError:
        return None


def test_a_vm_whose_storage_hangs_silences_what_follows_from_that(lab: Lab) -> None:
    """Of this VM alone, and nothing that is for now."""
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in shipped_rules("alert")}
    url = f"http://{alertmanager(lab)}/api/v2/alerts"
    hangs, stalled, corrupt = (
        "QemuVmStorageNotResponding",
        "QemuBlockJobStalled",
        "QemuBlockImageCorrupt",
    )
    fired = [
        {
            "labels": {
                "alertname": name,
                "severity": severities[name],
                "instance": "host1:9709",
                "vm": vm,
            }
        }
        for name, vm in ((hangs, "a"), (stalled, "a"), (corrupt, "a"), (stalled, "b"))
    ]
    wait_until(lambda: ask(url, fired), "Alertmanager takes alerts")

    def silenced() -> set[tuple[str, str]]:
        alerts = [(each["labels"], each["status"]) for each in ask(url)]
        return {
            (labels["alertname"], labels["vm"])
            for labels, status in alerts
            if status["inhibitedBy"]
        }

    wait_until(silenced, "one is silenced")
    assert silenced() == {(stalled, "a")}


def test_prometheus_loads_the_rules_scrapes_the_exporter_and_finds_alertmanager(lab: Lab) -> None:
    """The real ones, with the files as they are mounted: only addresses and times are others."""
    lab.qemu("web1", *drive("disk0", lab.image("disk")))
    exporter = lab.exporter()
    address, mail = free_address(), alertmanager(lab)
    inside = mounts("prometheus")
    text = inside.pop("/etc/prometheus/prometheus.yml").read_text()
    others = {
        "exporter:9709": exporter.url.removeprefix("http://"),
        "alertmanager:9093": mail,
        "15s": "1s",
    }
    for old, new in (others | {old: str(new) for old, new in inside.items()}).items():
        assert old in text
        text = text.replace(old, new)
    config = lab.folder / "prometheus.yml"
    config.write_text(text)
    subprocess.run([tool("promtool"), "check", "config", config], check=True, capture_output=True)
    lab.process("prometheus", [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={lab.folder}/tsdb",
        f"--web.listen-address={address}",
    ])  # fmt: skip

    def api(path: str) -> Any:
        return (ask(f"http://{address}/api/v1/{path}") or {"data": None})["data"]

    seen = wait_until(
        lambda: (answer := api("query?query=qemu_vm_up")) and answer["result"], "a scrape"
    )
    loaded = [rule for group in api("rules")["groups"] for rule in group["rules"]]
    found = wait_until(lambda: api("alertmanagers")["activeAlertmanagers"], "an Alertmanager")

    assert [(each["metric"]["job"], each["metric"]["vm"]) for each in seen] == [
        ("qemu-block", "web1")
    ]
    assert len(loaded) == len(shipped_rules("record")) + len(shipped_rules("alert"))
    assert found == [{"url": f"http://{mail}/api/v2/alerts"}]
