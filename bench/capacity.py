"""Measure what a fleet costs a Prometheus, and write deploy/prometheus/scale/CAPACITY.md from it.

    python -m bench.capacity            # measure (six minutes), keep the constants, write the page
    python -m bench.capacity --page     # write the page anew from the constants that were kept

The constants are kept in bench/capacity.json; `bench.sizing` is the arithmetic on them.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import sizing
from bench.exposing import Shown, blocks, serving
from bench.fleets import end, make_chain, temporary_folder, tool
from bench.monitor import Monitor
from bench.report import machine
from bench.servers import Server
from bench.subjects import Exporter
from exporter.metrics.table import METRICS

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "deploy" / "prometheus"
#: Real QEMUs, one of each: the model of the arithmetic is linear, and these show that it is.
GRID = [(disks, layers) for disks in range(1, 9) for layers in (1, 2, 3)]
MODEL = (2, 3)
#: 120 samples fill a chunk of the head: less would not show what a series holds.
SCRAPES, EVERY_SECONDS = 126, 2
VMS_OF_HOST = 20
SMALL_HOSTS, LARGE_HOSTS, AGENT_HOSTS, RULED_HOSTS = 15, 60, 5, 1
BOUNDARIES = (10**5, 10**6, 10**7, 10**8)


def main() -> None:
    if sys.argv[1:] != ["--page"]:
        sizing.DATA.write_text(json.dumps(measured(), indent=2) + "\n", "utf-8")
    sizing.write()


def measured() -> dict[str, Any]:
    """Return every constant."""
    with ExitStack() as stack:
        folder = temporary_folder(stack)
        vms = real_vms(folder, stack)
        names = dict.fromkeys(vms.values())
        exporter = stack.enter_context(Exporter(f"{folder}/*.sock"))
        text = exporter.text()
        constants: dict[str, Any] = {
            "made": {
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "machine": machine(),
                "prometheus": subprocess.run(
                    [tool("prometheus"), "--version"], capture_output=True, text=True, check=True
                ).stdout.split(" (")[0].replace("prometheus, version ", ""),
            },
            "grid": {name: sum(series_of(text, name).values()) for name in names},
            "own_series": sum('vm="' not in line for line in samples(text)),
        }  # fmt: skip
        model = "d{}l{}".format(*MODEL)
        constants["collectors"] = by_collector(series_of(text, model))
        body = [line.replace(model, "NAME") for line in samples(text) if f'vm="{model}"' in line]
        constants |= changes(folder, exporter, text, model)
        constants |= in_bytes(body)
        constants |= in_blocks(folder, body)
        constants |= in_servers(folder, body)
        return constants


def real_vms(folder: Path, stack: ExitStack) -> dict[tuple[int, int], str]:
    """Start a VM for each point of the grid, with virtio disks, and return their names."""
    processes: list[subprocess.Popen[bytes]] = []
    stack.callback(end, processes)
    names = {}
    images = folder / "images"
    images.mkdir()
    for disks, layers in GRID:
        name = names[disks, layers] = f"d{disks}l{layers}"
        (images / name).mkdir()
        command = [tool("qemu-system-x86_64"), "-name", name, "-machine", "pc", "-m", "16", "-S"]
        command += ["-accel", "tcg,tb-size=1", "-nodefaults", "-display", "none"]
        for ending in ("sock", "own"):
            command += ["-qmp", f"unix:{folder}/{name}.{ending},server=on,wait=off"]
        for disk in range(disks):
            (images / name / str(disk)).mkdir()
            top = make_chain(images / name / str(disk), layers)
            command += ["-drive", f"if=none,id=drive{disk},file={top},format=qcow2"]
            command += ["-device", f"virtio-blk-pci,id=virtio-disk{disk},drive=drive{disk}"]
        processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
    for name in names.values():
        Monitor(folder / f"{name}.own").close()
    return names


def samples(text: str) -> list[str]:
    """Return the lines of an exposition that are samples."""
    return [line for line in text.splitlines() if line and line[0] != "#"]


def series_of(text: str, vm: str) -> Counter[str]:
    """Return how many series of each name a VM has."""
    lines = [line for line in samples(text) if f'vm="{vm}"' in line]
    return Counter(re.split(r"[{ ]", line)[0] for line in lines)


def by_collector(found: Mapping[str, int]) -> dict[str, int]:
    """Return how many series each collector gives."""
    collectors = {m.name: m.collector or "always" for m in METRICS}
    counts: Counter[str] = Counter()
    for name, count in found.items():
        counts[collectors[name.removesuffix("_bucket")]] += count
    return dict(sorted(counts.items()))


def changes(folder: Path, exporter: Exporter, text: str, model: str) -> dict[str, Any]:
    """Return what histograms, a snapshot, a running commit and its end do to the series of a VM."""

    def identities(text: str) -> set[str]:
        return {line.rpartition(" ")[0] for line in samples(text) if f'vm="{model}"' in line}

    def differ(before: set[str]) -> tuple[set[str], dict[str, int]]:
        time.sleep(1.5)  # a scrape joins a sweep that is under a second old
        now = identities(exporter.text())
        return now, {"gone": len(before - now), "new": len(now - before)}

    vm = Monitor(folder / f"{model}.own")
    found: dict[str, Any] = {}
    now = identities(text)
    path = "/machine/peripheral/virtio-disk0/virtio-backend"
    vm.run("block-latency-histogram-set", {"id": path, "boundaries": list(BOUNDARIES)})
    now, found["histograms"] = differ(now)
    overlay = {"device": "drive0", "snapshot-file": f"{folder}/images/overlay.qcow2"}
    vm.run("blockdev-snapshot-sync", {**overlay, "format": "qcow2"})
    now, found["snapshot"] = differ(now)
    top, base, *_ = vm.chain("drive0")
    nodes = {"top-node": top, "base-node": base}
    vm.run("block-commit", {"device": "drive0", "job-id": "merge", **nodes})
    now, found["job"] = differ(now)
    while not vm.run("query-block-jobs")[0]["ready"]:
        time.sleep(0.1)
    vm.run("job-complete", {"id": "merge"})
    while vm.run("query-block-jobs"):
        time.sleep(0.1)
    now, found["commit_end"] = differ(now)
    vm.close()
    return {"changes": found, "histogram_boundaries": len(BOUNDARIES)}


def in_bytes(body: Sequence[str]) -> dict[str, Any]:
    """Return the bytes of a scrape for each VM of a host of 50, plain and as they are sent."""
    shown = Shown(body, 50, busy=True)
    for _ in range(20):
        text = shown.scrape(15).encode()
    return {
        "body_bytes_per_vm": round(len(text) / 50),
        "gzip_bytes_per_vm": round(len(gzip.compress(text, 1)) / 50),
    }


def in_blocks(folder: Path, body: Sequence[str]) -> dict[str, Any]:
    """Return the bytes of a sample in a block of two hours, which promtool makes."""
    found: dict[str, dict[str, float]] = {}
    for kind, busy in (("busy", True), ("idle", False)):
        found[kind] = {}
        for seconds in (15, 30, 60):
            there = folder / f"blocks-{kind}-{seconds}"
            found[kind][str(seconds)] = blocks(there, Shown(body, 3, busy=busy), seconds)
    return {"block_bytes_per_sample": found}


def in_servers(folder: Path, body: Sequence[str]) -> dict[str, Any]:
    """Return what real servers take that scrape made-up hosts of such VMs."""
    keep = {
        "agents": _keep(SHIPPED / "scale" / "agent.yml"),
        "sums": _keep(SHIPPED / "scale" / "shard-by-host.yml"),
    }
    with ExitStack() as stack:
        source = stack.enter_context(serving(body, VMS_OF_HOST))
        write = {"url": f"http://{source}/write", "queue_config": {"max_samples_per_send": 2000}}
        rules = [str(SHIPPED / name) for name in ("rules.yml", "scale/rules.yml")]

        def start(name: str, hosts: int, *flags: str, **more: Any) -> Server:
            server = Server(folder / name, source, hosts, EVERY_SECONDS, *flags, **more)
            stack.callback(server.close)
            return server

        small = start("small", SMALL_HOSTS)
        large = start("large", LARGE_HOSTS)
        agent = start("agent", AGENT_HOSTS, "--enable-feature=agent", remote_write=[write])
        ruled = start("ruled", RULED_HOSTS, rule_files=rules)
        time.sleep(SCRAPES * EVERY_SECONDS / 2)
        began = {server: server.cpu_seconds_and_samples() for server in (small, large)}
        time.sleep(SCRAPES * EVERY_SECONDS / 2)
        costs = []
        for server, (cpu, count) in began.items():
            now_cpu, now_count = server.cpu_seconds_and_samples()
            costs.append((now_cpu - cpu) / (now_count - count))
        vms = RULED_HOSTS * VMS_OF_HOST
        scraped = '{vm!="",__name__!~".+:.+|ALERTS.*"}'
        return {
            "servers": {
                name: {
                    "series": server.value("prometheus_tsdb_head_series"),
                    "resident_bytes": server.most_resident(),
                    "samples": server.cpu_seconds_and_samples()[1]
                    / server.value("prometheus_tsdb_head_series"),
                }
                for name, server in (("small", small), ("large", large))
            },
            "cpu_seconds_per_sample": sum(costs) / len(costs),
            "wal_bytes_per_sample": large.wal_bytes()
            / large.value("prometheus_tsdb_head_samples_appended_total"),
            "agent": {
                "series": agent.value("prometheus_agent_active_series"),
                "resident_bytes": agent.most_resident(),
                "wire_bytes_per_sample": agent.value("prometheus_remote_storage_bytes_total")
                / agent.value("prometheus_remote_storage_samples_total"),
            },
            "series_per_vm": {
                "everything": ruled.count(scraped) / vms,
                "recorded": ruled.count('{vm!="",__name__=~".+:.+"}') / vms,
                "agents": ruled.count(f'{{vm!="",__name__=~"{keep["agents"]}"}}') / vms,
                "sums": ruled.count(f'{{vm!="",__name__=~"{keep["sums"]}"}}') / vms,
            },
        }


def _keep(path: Path) -> str:
    text = path.read_text("utf-8")
    quoted = re.search(r'remote_write:.*?regex: (".*?")\n', text, re.DOTALL)
    assert quoted
    return re.sub(r"\\\n\s*", "", quoted[1]).strip('"')


if __name__ == "__main__":
    main()
