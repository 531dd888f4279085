"""What a good user's scrape costs while others try passwords and race to complete one job.

python -m bench.hostile URL REQUESTS PAIRS CONNECTIONS

is those others, in a process of their own: each connection asks for URL with one wrong pair of user
and password after the other, and the statuses that came are printed as JSON.
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import bcrypt

from bench.fleets import qemus
from bench.report import Bar, Results, Table
from bench.subjects import HEADERS, Exporter
from bench.usage import MIB, resident_bytes

REQUESTS, PAIRS, CONNECTIONS, COMPLETES = 10_000, 500, 10, 100
_COST = 10
_USER, _PASSWORD = "prometheus", "right"
_VMS, _PERIOD_SECONDS, _TURN_SCRAPES = 10, 0.2, 10
#: The passwords that wait when the others are stopped are checked by then.
_SETTLE_SECONDS = 1.5
_JOB = "qbe-bench"


def hostile(results: Results) -> None:
    """Hold the 95th percentile of a scrape under attack to that of one in peace."""
    with ExitStack() as stack:
        fleet = stack.enter_context(qemus(_VMS, 2, 3, ["exporter"]))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        module = ("bench.watched", str(folder / "turns.json"), "--each-its-own-sweep")
        exporter = stack.enter_context(
            Exporter(fleet.sockets("exporter"), *_flags(folder), module=module)
        )
        root = exporter.url.removesuffix("/metrics")
        _ready(root, folder)
        _scrape(exporter.url)
        before = resident_bytes(exporter.process.pid)
        command = [sys.executable, "-m", "bench.hostile", exporter.url]
        numbers = [str(number) for number in (REQUESTS, PAIRS, CONNECTIONS)]
        began = time.monotonic()
        others = subprocess.Popen([*command, *numbers], stdout=subprocess.PIPE, text=True)
        attacked: list[float] = []
        idle: list[float] = []
        threads = stack.enter_context(ThreadPoolExecutor(COMPLETES))
        path = f"{root}/api/v1/admin/vms/vm0000/block-jobs/{_JOB}/complete"
        completes: list[Future[int]] = []
        stack.callback(others.kill)
        while others.poll() is None:
            attacked += [_scrape(exporter.url) for _ in range(_TURN_SCRAPES)]
            if not completes:
                completes = [threads.submit(_post, path, {}) for _ in range(COMPLETES)]
                attacked += [_scrape(exporter.url) for _ in range(_TURN_SCRAPES)]
            # In turns: what the machine does else hits both alike.
            others.send_signal(signal.SIGSTOP)
            time.sleep(_SETTLE_SECONDS)
            idle += [_scrape(exporter.url) for _ in range(_TURN_SCRAPES)]
            others.send_signal(signal.SIGCONT)
        took = time.monotonic() - began
        said, _ = others.communicate()
        statuses = Counter[str](json.loads(said))
        answers = Counter(each.result() for each in completes)
        grown = resident_bytes(exporter.process.pid) - before
    assert statuses.total() == REQUESTS, statuses
    assert statuses.keys() <= {"401", "429"}, statuses
    assert answers[202] == 1, answers
    assert answers.keys() <= {202, 404, 409}, answers
    ratio = _p95(attacked) / _p95(idle)
    results.bars.append(
        Bar("p95 of a good user's /metrics under attack, of that in peace", ratio, 1.5)
    )
    rows = [
        (
            name,
            len(walls),
            sorted(walls)[len(walls) // 2] * 1e3,
            _p95(walls) * 1e3,
            max(walls) * 1e3,
        )
        for name, walls in (("in peace", idle), ("under attack", attacked))
    ]
    counts = ", ".join(f"{count:,} times {status}" for status, count in sorted(statuses.items()))
    results.tables.append(
        Table(
            "A good user under attack",
            ("scrape", "scrapes", "median ms", "p95 ms", "most ms"),
            rows,
            f"In turns of {_TURN_SCRAPES} scrapes. {_VMS} real QEMUs, each scrape a sweep of its own, one every {_PERIOD_SECONDS:g} s, by a"
            f" user with a password at bcrypt cost {_COST}. Meanwhile {REQUESTS:,} requests with"
            f" {PAIRS} wrong pairs of user and password on {CONNECTIONS} connections, in {took:.0f} s:"
            f" {counts}; and {COMPLETES} requests at once to complete one job, of which one was"
            f" accepted. Memory grew by {grown / MIB:.1f} MiB.",
        )
    )


def _p95(walls: list[float]) -> float:
    return sorted(walls)[int(len(walls) * 0.95)]


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _flags(folder: Path) -> list[str]:
    """Write what an exporter with a user, a grant and an account needs, and return its flags."""
    hashed = bcrypt.hashpw(_PASSWORD.encode(), bcrypt.gensalt(_COST)).decode()
    web, config = folder / "web.json", folder / "config.json"
    web.write_text(json.dumps({"basic_auth_users": {_USER: hashed}}), "utf-8")
    grant = {
        "users": [_USER], "verbs": ["snapshot", "commit", "complete"], "vms": ["*"],
        "directories": [str(folder)],
    }  # fmt: skip
    config.write_text(json.dumps({"admin": {"grants": [grant]}}), "utf-8")
    return [
        f"--web.config.file={web}", f"--config.file={config}", "--web.enable-admin-api",
        f"--admin.state-directory={folder / 'state'}",
    ]  # fmt: skip


def _ask(url: str, body: Mapping[str, object] | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": _basic(_USER, _PASSWORD), "Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        with error:
            return error.code, error.read()


def _post(url: str, body: Mapping[str, object]) -> int:
    return _ask(url, body)[0]


def _ready(root: str, folder: Path) -> None:
    """Have a commit of one VM wait to be completed."""
    _, vm = _ask(f"{root}/api/v1/vms/vm0000")
    disk = vm["devices"][0]
    device, base = disk["device"], disk["layers"][0]["file"]
    admin = f"{root}/api/v1/admin/vms/vm0000"
    # The lower layers are those of all VMs: a layer of its own is merged.
    status, answer = _ask(f"{admin}/snapshots", {"device": device, "file": f"{folder}/x.qcow2"})
    assert status == 201, answer
    commit = {"action": "commit", "device": device, "job_id": _JOB, "base": base}
    status, answer = _ask(f"{admin}/block-jobs", commit)
    assert status == 202, answer
    while not _ask(f"{root}/api/v1/vms/vm0000/block-jobs/{_JOB}")[1]["ready"]:
        time.sleep(0.1)


def _scrape(url: str) -> float:
    """Scrape, and return how long that took; the next is a period after this one's start."""
    request = urllib.request.Request(
        url, headers={**HEADERS, "Authorization": _basic(_USER, _PASSWORD)}
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()
    took = time.perf_counter() - began
    time.sleep(max(0.0, _PERIOD_SECONDS - took))
    return took


async def _attack(url: str, requests: int, pairs: int, connections: int) -> Counter[str]:
    place = urlsplit(url)
    tokens = [_basic((_USER, f"user{n}")[n % 2], f"wrong{n}") for n in range(pairs)]
    statuses: Counter[str] = Counter()
    left = iter(range(requests))

    async def one() -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        for number in left:
            head = f"GET {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\n"
            writer.write(f"{head}Authorization: {tokens[number % pairs]}\r\n\r\n".encode())
            status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            named = dict(line.lower().split(": ", 1) for line in headers if line)
            await reader.readexactly(int(named["content-length"]))
            statuses[status.split(" ")[1]] += 1
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return statuses


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_attack(sys.argv[1], *map(int, sys.argv[2:])))))
