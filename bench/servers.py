"""Real Prometheus servers and agents that scrape made-up hosts, and what they take for it."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from bench.fleets import tool


class Server:
    """One server, which is ended with `close`."""

    def __init__(
        self, folder: Path, source: str, hosts: int, seconds: int, *flags: str, **more: Any
    ) -> None:
        folder.mkdir()
        scrapes = [
            {
                "job_name": f"qemu-block-{number}",
                "metrics_path": f"/{folder.name}-{number}",
                "static_configs": [
                    {"targets": [source], "labels": {"instance": f"host{number:04}.example:9709"}}
                ],
            }
            for number in range(hosts)
        ]
        every = {"scrape_interval": f"{seconds}s", "scrape_timeout": f"{seconds}s"}
        settings = {"global": {**every, "evaluation_interval": "2s"}, "scrape_configs": scrapes}
        (folder / "config.yml").write_text(json.dumps({**settings, **more}))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        kind = "agent" if "--enable-feature=agent" in flags else "tsdb"
        self._storage = folder / "data"
        command = [tool("prometheus"), f"--config.file={folder}/config.yml", *flags]
        command += [f"--storage.{kind}.path={self._storage}"]
        command += [f"--web.listen-address={self._address}"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._most = 0.0
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Keep the most memory of the last half minute: between collections of Go it swings."""
        recent: list[float] = []
        while not self._closed.wait(1):
            status = Path(f"/proc/{self._process.pid}/statm").read_text("utf-8")
            recent = [*recent[-29:], int(status.split()[1]) * 4096.0]
            self._most = max(recent)

    def most_resident(self) -> float:
        """Return the most memory of the last half minute."""
        return self._most

    def value(self, name: str) -> float:
        """Return a number that it tells of itself, summed over labels."""
        with urllib.request.urlopen(f"http://{self._address}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        assert found, name
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def cpu_seconds_and_samples(self) -> tuple[float, float]:
        """Return what it has used and stored so far."""
        name = "prometheus_tsdb_head_samples_appended_total"
        return self.value("process_cpu_seconds_total"), self.value(name)

    def count(self, selector: str) -> float:
        """Return how many series a selector finds."""
        query = urllib.parse.urlencode({"query": f"count({selector})"})
        url = f"http://{self._address}/api/v1/query"
        with urllib.request.urlopen(url, query.encode(), timeout=30) as answer:
            (found,) = json.load(answer)["data"]["result"]
        return float(found["value"][1])

    def wal_bytes(self) -> float:
        """Return how large its write-ahead log is."""
        return float(sum(each.stat().st_size for each in (self._storage / "wal").glob("0*")))

    def close(self) -> None:
        self._closed.set()
        self._process.kill()
        self._process.wait()
