"""A Prometheus of the tests' own, and the shipped rules with their times made short."""

from __future__ import annotations

import json
import random
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.lab import PATIENCE_SECONDS, ROOT, Process

SHIPPED = ROOT / "deploy" / "prometheus"
RULE_FILES = ("rules.yml", "alerts.yml")
#: The name that scrape.yml gives to the scrapes of a host, and that rules.yml looks for.
JOB = "qemu-block"
#: Thresholds that say how long something has lasted. The others are sizes, shares, counts, and how
#: long a request or a scrape takes: no test makes these shorter.
DURATIONS = frozenset({
    "job_stall_seconds", "backup_stall_seconds", "job_outcome_seconds", "snapshot_age_seconds",
    "storage_full_seconds",
})  # fmt: skip
EVERY_SECOND = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: A rate over fewer scrapes has gaps wherever one of them is late.
_SHORTEST_RANGE_MS = 5000


def shortened(rule: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return a shipped rule with its times divided by `factor`, and nothing else changed.

    These are `for` and `keep_firing_for`; what stands in [brackets] or after `offset` in its
    expression; and the number that it records, if it is one of the thresholds in DURATIONS.
    What stands in brackets stays as long as five scrapes.
    """
    short = dict(rule)
    for key in ("for", "keep_firing_for"):
        if key in rule:
            short[key] = _divided(rule[key], factor)
    short["expr"] = re.sub(
        r"\[[^\]]*\]|\boffset \w+",
        lambda each: _divided(each[0], factor, _SHORTEST_RANGE_MS if each[0][0] == "[" else 0),
        rule["expr"],
    )
    if rule.get("record", "").removeprefix("qemu_block_threshold:") in DURATIONS:
        seconds = re.fullmatch(r"vector\((\d+)\)", rule["expr"])
        assert seconds, rule
        short["expr"] = f"vector({int(seconds[1]) / factor})"
    return short


def _divided(text: str, factor: float, least_ms: float = 0) -> str:
    """Return a text with the durations in it divided, each at least `least_ms`; not a step."""

    def milliseconds(match: re.Match[str]) -> str:
        divided = int(match[2]) * _UNITS[match[3]] * 1000 / factor
        return f"{match[1]}{divided if match[1] else max(divided, least_ms):.0f}ms"

    return re.sub(r"(:?)\b(\d+)([smhd])\b", milliseconds, text)


def shipped(name: str) -> dict[str, Any]:
    """Return a rule file as it is shipped."""
    document: dict[str, Any] = yaml.safe_load((SHIPPED / name).read_text("utf-8"))
    return document


def shipped_rules(kind: str) -> list[dict[str, Any]]:
    """Return all shipped rules of a kind: `record` or `alert`."""
    groups = [group for name in RULE_FILES for group in shipped(name)["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def write_rules(folder: Path, factor: float) -> list[Path]:
    """Write the shipped rule files with short times and return where they are."""
    paths = []
    for name in RULE_FILES:
        document = shipped(name)
        for group in document["groups"]:
            group["rules"] = [shortened(rule, factor) for rule in group["rules"]]
        paths.append(folder / f"short-{name}")
        paths[-1].write_text(yaml.safe_dump(document), "utf-8")
    return paths


class Server(Process):
    """A real one, with storage of its own and a configuration of the test's."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *flags: str,
        address: str = "",
        storage: str = "tsdb",
    ) -> None:
        """Start it on what is in the folder; on the address of the one before, or a free one."""
        config = folder / "prometheus.yml"
        # JSON is YAML.
        config.write_text(json.dumps(settings))
        self.address = address or free_address()
        self.url = f"http://{self.address}/api/v1"
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.{storage}.path={folder}/{storage}",
            f"--web.listen-address={self.address}",
            *flags,
        ]
        super().__init__(command, folder / "prometheus.log")

    def api(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API."""
        url = f"{self.url}/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode("utf-8", "replace"))
            raise

    def series(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression gives at this moment: `metric` and `value` of each series."""
        found: list[dict[str, Any]] = self.api("query", query=expression)["result"]
        return found

    def query(self, expression: str, by: str = "job") -> dict[str, float]:
        """Return the value of each series of an expression, by one of its labels."""
        found = self.series(expression)
        assert len({each["metric"].get(by, "") for each in found}) == len(found), found
        return {each["metric"].get(by, ""): float(each["value"][1]) for each in found}


class Prometheus(Server):
    """One that scrapes and evaluates every second."""

    def __init__(
        self,
        folder: Path,
        jobs: dict[str, str],
        rules: Sequence[Path] = (),
        settings_of: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Scrape the target of each job, with the settings that a job has of its own."""
        self._jobs = jobs
        scrapes = [
            {"job_name": job, "static_configs": [{"targets": [target]}]}
            | dict((settings_of or {}).get(job, {}))
            for job, target in jobs.items()
        ]
        settings = {
            "global": EVERY_SECOND,
            "scrape_configs": scrapes,
            "rule_files": [str(path) for path in rules],
        }
        super().__init__(folder, settings)

    def has_scraped(self, times: int = 4) -> bool:
        """Whether each job has a few scrapes behind it."""
        assert self.exit_code is None, self.said()
        try:
            counts = self.query("count_over_time(up[1h])")
        except OSError:
            return False
        return counts.keys() == self._jobs.keys() and min(counts.values()) >= times


def free_address() -> str:
    """Return an address of this host that nobody listens on.

    Its port is none that the kernel gives away meanwhile, to whoever connects or asks for any.
    """
    while True:
        port = random.randrange(10_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"
