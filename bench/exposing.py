"""Made-up hosts of VMs, as many as it takes, whose series move as those of a real one may.

The labels and names are a real VM's. Of the values, those that I/O moves do: in each scrape a disk
has done some requests, of some size, that took some time. Nothing else changes, as in real life.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.fleets import tool

#: What moves with every scrape, busy or idle: the exporter's clock.
_CLOCKS = ("qemu_vm_scrape_duration_seconds", "qemu_vm_last_seen_timestamp_seconds")
_IDLE = "qemu_block_idle_seconds"
_BYTES = re.compile(r"qemu_block_(read|written)_bytes_total")
_REQUESTS = re.compile(r"qemu_block_(reads|writes|flushes)_completed_total")
_TIMES = re.compile(r"qemu_block_(read|write|flush)_time_seconds_total")
_OFFSETS = re.compile(r"qemu_block_node_(allocated_bytes|write_highest_offset_bytes)")
#: A whole block of Prometheus, from where one begins.
_BLOCK_SECONDS = 7200
_BEGIN = 1_795_557_600 // _BLOCK_SECONDS * _BLOCK_SECONDS


class Shown:
    """The lines of a number of VMs, and their values from scrape to scrape."""

    def __init__(self, body: Sequence[str], vms: int, *, busy: bool, seed: int = 0) -> None:
        """Show the samples of one VM, called NAME there, for each of `vms`."""
        self._random = random.Random(seed)
        self._busy = busy
        #: Name with labels, kind, and value, of every sample.
        self._samples: list[tuple[str, str, float | str]] = []
        for number in range(vms):
            for line in body:
                series, _, value = line.rpartition(" ")
                name = series.replace("NAME", f"vm{number:04}")
                kind = self._kind(series)
                self._samples.append((name, kind, float(value) if kind else value))
        self._template = "".join(
            f"{name.replace('%', '%%')} {'%s' if kind else str(value).replace('%', '%%')}\n"
            for name, kind, value in self._samples
        )
        self._moving = [[kind, value] for _, kind, value in self._samples if kind]

    def _kind(self, series: str) -> str:
        name = series.partition("{")[0]
        if name in _CLOCKS:
            return name
        if name == _IDLE:
            return "idle"
        for kind, pattern in (("bytes", _BYTES), ("requests", _REQUESTS), ("time", _TIMES)):
            if self._busy and pattern.fullmatch(name):
                return kind
        grows = self._busy and 'layer="0"' in series and _OFFSETS.match(name)
        return "offset" if grows else ""

    def scrape(self, seconds: float) -> str:
        """Return what is exposed after another so many seconds."""
        values: list[str] = []
        for each in self._moving:
            kind, value = each
            assert isinstance(value, float)
            each[1] = value = self._next(str(kind), value, seconds)
            values.append(repr(value) if kind in {"time", "idle", *_CLOCKS} else str(int(value)))
        return self._template % tuple(values)

    def _next(self, kind: str, value: float, seconds: float) -> float:
        chance = self._random.random
        match kind:
            case "requests":
                return value + int(chance() * 100 * seconds)
            case "bytes":
                return value + int(chance() * 800 * seconds) * 4096
            case "time":
                return round(value + chance() * 0.2 * seconds, 9)
            case "offset":
                return value + (65536 if chance() < 0.2 else 0)
            case "idle":
                return round(chance(), 9) if self._busy else round(value + seconds, 9)
            case "qemu_vm_scrape_duration_seconds":
                return round(0.002 + chance() * 0.004, 9)
            case _:
                return round(value + seconds + (chance() - 0.5) / 100, 6)


def blocks(folder: Path, shown: Shown, seconds: int) -> float:
    """Return the bytes of a sample, index included, of a block of two hours."""
    folder.mkdir()
    by_name: dict[str, list[str]] = {}
    target = '{job="qemu-block",instance="host0001.example:9709",'
    for at in range(_BEGIN, _BEGIN + _BLOCK_SECONDS, seconds):
        for line in shown.scrape(seconds).splitlines():
            name = line.partition("{")[0]
            by_name.setdefault(name, []).append(f"{line.replace('{', target, 1)} {at}\n")
    source = folder / "samples"
    with source.open("w") as file:
        for lines in by_name.values():
            file.writelines(lines)
        file.write("# EOF\n")
    made = folder / "blocks"
    command = [
        tool("promtool"),
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        str(source),
        str(made),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (block,) = made.iterdir()
    count: int = json.loads((block / "meta.json").read_text())["stats"]["numSamples"]
    assert count == sum(map(len, by_name.values()))
    return sum(path.stat().st_size for path in block.rglob("*") if path.is_file()) / count


@contextmanager
def serving(body: Sequence[str], vms: int) -> Iterator[str]:
    """Serve any host at /NAME, busy, and take what is written to /write; return the address."""
    hosts: dict[str, Shown] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            shown = hosts.get(self.path) or Shown(body, vms, busy=True, seed=len(hosts))
            hosts[self.path] = shown
            self._answer(200, shown.scrape(15).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(204, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
