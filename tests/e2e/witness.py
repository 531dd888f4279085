"""What tells that something was done, or that nothing was: bytes, files, QEMU's word, the account."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.e2e.lab import Disk, Exporter, Lab, Qemu, tool
from tests.e2e.reading import value

#: What changes by itself while a job works.
_MOVING = frozenset({"actual-size", "busy", "count", "io-status", "len", "offset"})


class Content:
    """What a disk has to have in it: a model that is written to along with the disk."""

    def __init__(self, disk: Disk, folder: Path, before: bytes) -> None:
        self.expected = bytearray(before)
        self._disk = disk
        self._pattern = folder / f"{disk.device}.pattern"
        self._random = random.Random(disk.device)

    def write(self, offset: int, size: int) -> None:
        """Write what was nowhere before."""
        data = self._random.randbytes(size)
        self._pattern.write_bytes(data)
        self._io(f"write -q -s {self._pattern} {offset} {size}")
        self.expected[offset : offset + size] = data

    def zero(self, offset: int, size: int) -> None:
        """Write zeroes, as a guest that trims."""
        self._io(f"write -q -z {offset} {size}")
        self.expected[offset : offset + size] = bytes(size)

    def _io(self, command: str) -> None:
        backend = self._disk.device
        if not self._disk.entry["device"]:
            backend = f"-d {self._disk.device}/virtio-backend"
        assert self._disk.vm.hmp(f'qemu-io {backend} "{command}"') == ""


def raw(image: Path) -> bytes:
    """Return what a chain of images that nobody uses has in it; each has to be sound."""
    copy = image.with_suffix(".raw")
    subprocess.run([tool("qemu-img"), "check", "-q", image], check=True)
    subprocess.run([tool("qemu-img"), "convert", "-O", "raw", image, copy], check=True)
    content = copy.read_bytes()
    copy.unlink()
    return content


def state(vm: Qemu) -> Any:
    """Return all that QEMU says of disks, nodes and jobs, but for what a job moves."""
    nodes = vm.run("query-named-block-nodes", {"flat": True})
    names = sorted(node["node-name"] for node in nodes)
    asked = ("query-status", "query-block", "query-block-jobs")
    late = vm.version.startswith("5.")
    return [names, *(_still(vm.run(command), late=late) for command in asked)]


def files(lab: Lab) -> set[str]:
    """Return the path of every file, link and folder of a lab."""
    return {str(path) for path in lab.folder.rglob("*")}


def opened(vm: Qemu) -> set[str]:
    """Return the files that a QEMU has open."""
    found = set()
    for link in Path(f"/proc/{vm.pid}/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(link))
    return found


def records(lab: Lab) -> dict[tuple[str, str], Any]:
    """Return what is on record in the state directory, by VM and job id."""
    entries = [json.loads(path.read_text()) for path in (lab.folder / "state").glob("*.json")]
    return {(entry["vm"], entry["job_id"]): entry for entry in entries}


def audited(exporter: Exporter, **wanted: str) -> list[dict[str, str]]:
    """Return the audit lines that say this, the first one first."""
    lines = [line for line in exporter.said().splitlines() if " msg=action " in line]
    told = [dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)', line)) for line in lines]
    plain = [
        {name: json.loads(each) if each[:1] == '"' else each for name, each in line.items()}
        for line in told
    ]
    return [line for line in plain if wanted.items() <= line.items()]


def counted(exporter: Exporter, action: str, result: str) -> float | None:
    """Return how often the exporter says that something came of an action."""
    text = exporter.get()
    return value(text, "qemu_exporter_actions_total", action=action, result=result)


@contextmanager
def scraped(exporter: Exporter) -> Iterator[list[str]]:
    """Scrape all the time, and yield what is read: a scrape that fails is raised in the end."""
    texts: list[str] = []
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(0.01):
            texts.append(exporter.get())

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        try:
            yield texts
        finally:
            ended.set()
        scraping.result()
    assert texts, "nothing was scraped"


def _still(told: Any, *, late: bool) -> Any:
    if isinstance(told, dict):
        if late and told.get("paused") and told.get("status") == "running":
            # QEMU 5.2 says so of a paused job until it wakes from its speed limit.
            told = told | {"status": "paused"}
        still = {name: each for name, each in told.items() if name not in _MOVING}
        return {name: _still(each, late=late) for name, each in still.items()}
    if isinstance(told, str) and told.startswith("json:"):
        # QEMU 10.0 and newer write the keys in another order once the node was reopened.
        return json.loads(told.removeprefix("json:"))
    return [_still(each, late=late) for each in told] if isinstance(told, list) else told
