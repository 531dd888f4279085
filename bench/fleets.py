"""Fleets to be scraped: real QEMUs, and simulated ones that answer as a real one did."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

_START_SECONDS = 60.0
#: What is recorded of a real QEMU for the simulated ones.
RECORDED = (
    "query-status", "query-blockstats", "query-block", "query-block-jobs", "query-jobs",
    "query-name", "query-uuid", "query-block-exports",
)  # fmt: skip


class Fleet:
    """Monitors to be scraped: a folder of sockets for each client, `FOLDER/CLIENT/NAME.sock`.

    A monitor serves one client at a time, so that each client that is compared has its own.
    """

    def __init__(
        self,
        folder: Path,
        processes: Sequence[subprocess.Popen[bytes]],
        count: int,
        pids: Sequence[int] = (),
    ) -> None:
        self.folder = folder
        #: Those that answer; of VMs that something else has started, only the `pids`.
        self.processes = processes
        self.pids = pids or [process.pid for process in processes]
        self.count = count

    def sockets(self, client: str) -> str:
        """Return the glob of a client's sockets."""
        return f"{self.folder}/{client}/*.sock"

    def listed(self, client: str) -> list[str]:
        """Return a client's sockets."""
        return sorted(str(path) for path in (self.folder / client).iterdir())


@contextmanager
def qemus(count: int, disks: int, layers: int, clients: Sequence[str]) -> Iterator[Fleet]:
    """Start real QEMUs with nothing but disks, each a qcow2 chain."""
    # Each client has a monitor in every VM, and QEMU a handful of files.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        folder = temporary_folder(stack)
        for client in clients:
            (folder / client).mkdir()
        images = folder / "images"
        images.mkdir()
        model = make_chain(images, layers)
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(end, processes)
        for index in range(count):
            name = f"vm{index:04}"
            tops = [_top(model, images / f"{name}-{disk}.qcow2") for disk in range(disks)]
            processes.append(_start(folder, name, tops, clients))
            if index % 8 == 7 or index == count - 1:
                _await_socket(folder / clients[-1] / f"{name}.sock", processes[-1])
        for index, process in enumerate(processes):
            _await_socket(folder / clients[-1] / f"vm{index:04}.sock", process)
        yield Fleet(folder, processes, count)


@contextmanager
def fakes(count: int, disks: int, layers: int, client: str = "exporter") -> Iterator[Fleet]:
    """Simulate monitors in one process, by what one real QEMU says."""
    with ExitStack() as stack:
        real = stack.enter_context(qemus(1, disks, layers, ["record"]))
        replies = real.folder / "replies.json"
        replies.write_text(json.dumps(record(real.listed("record")[0])))
        (real.folder / client).mkdir()
        command = [sys.executable, "-m", "bench.fakes", str(real.folder / client), str(count)]
        process = subprocess.Popen([*command, str(replies)], stdout=subprocess.PIPE)
        stack.callback(end, [process])
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "the simulated fleet did not start"
        process.stdout.close()
        yield Fleet(real.folder, [process], count)


def record(path: str) -> dict[str, str]:
    """Return the lines that a real QEMU answers the exporter's queries with."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        lines = sock.makefile("r", encoding="utf-8")
        answers = {"greeting": lines.readline().strip()}
        for command in ("qmp_capabilities", *RECORDED):
            sock.sendall(json.dumps({"execute": command}).encode())
            answers[command] = lines.readline().strip()
        lines.close()
    return answers


def tool(name: str) -> str:
    """Return the path of a program, or say that it is needed."""
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"bench: {name} is needed and not installed")
    return path


def temporary_folder(stack: ExitStack) -> Path:
    """Return a folder that is gone with the stack."""
    # A short path: a socket's may have 107 bytes.
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qbe-bench-")))


def make_chain(folder: Path, layers: int) -> Path:
    """Return an active layer whose backing files all VMs share, as clones of a template do."""
    below: Path | None = None
    for layer in range(layers):
        image = folder / f"layer{layer}.qcow2"
        backing = ["-b", str(below), "-F", "qcow2"] if below else []
        create = [tool("qemu-img"), "create", "-q", "-f", "qcow2", *backing, str(image)]
        subprocess.run([*create, *([] if backing else ["64M"])], check=True)
        below = image
    assert below is not None
    return below


def _top(model: Path, image: Path) -> Path:
    # qemu-img takes 10 ms, and a thousand VMs have thousands of disks.
    shutil.copyfile(model, image)
    return image


def _start(
    folder: Path, name: str, tops: Sequence[Path], clients: Sequence[str]
) -> subprocess.Popen[bytes]:
    command = [tool("qemu-system-x86_64"), "-name", name, "-machine", "none", "-nodefaults"]
    command += ["-display", "none", "-accel", "tcg,tb-size=1"]
    for client in clients:
        command += ["-qmp", f"unix:{folder}/{client}/{name}.sock,server=on,wait=off"]
    for index, top in enumerate(tops):
        command += ["-drive", f"if=none,id=disk{index},file={top},format=qcow2,file.locking=off"]
    log = open(folder / f"{name}.log", "wb")  # noqa: SIM115
    with log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _await_socket(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.settimeout(_START_SECONDS)
                sock.connect(str(path))
                if sock.recv(1):
                    return
            except OSError:
                pass
        time.sleep(0.01)
    raise SystemExit(f"bench: a QEMU did not start: {path}")


def end(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """End processes, and reap them."""
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()
