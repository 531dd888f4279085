"""The demo as its user meets it: a command that runs VMs, shows a commit moving, and cleans up."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter.demo.lines import live_lines
from exporter.demo.scenarios import MIB, Scenario
from exporter.demo.vms import DemoVm
from tests.conftest import series

PATIENCE_SECONDS = 40.0


class Demo:
    """The demo in a process of its own, whose temporary files all lie in one folder."""

    def __init__(self, folder: Path, path: str | None, address: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._output = folder / "output"
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        if path is not None:
            environment["PATH"] = path
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "exporter", "demo", "--web.listen-address", address],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._output.read_text()

    @property
    def url(self) -> str:
        """Where it says that its metrics are."""
        match = re.search(r"^  (http://\S+/metrics)$", self.output, re.MULTILINE)
        assert match
        return match[1]

    def says(self, text: str) -> None:
        """Wait until it says something."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, text)
        assert text in self.output

    def series(self, name: str, **labels: str) -> dict[str, str]:
        """Scrape it, and return the samples of one family."""
        with urllib.request.urlopen(self.url, timeout=PATIENCE_SECONDS) as response:
            return series(response.read().decode(), name, **labels)

    def children(self) -> dict[int, str]:
        """Return the process id of each QEMU and qemu-img of this demo, with its command line."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if str(self.temporary).encode() in line:
                found[int(process.name)] = line.decode()
        return found

    def qemus(self) -> dict[int, str]:
        """Return its VMs alone."""
        return {pid: line for pid, line in self.children().items() if "guest=" in line}

    def end_by(self, number: signal.Signals) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def is_gone(self) -> bool:
        """Whether neither a process nor a file is left."""
        return not self.children() and not list(self.temporary.iterdir())


@contextmanager
def demo(folder: Path, path: str | None = None, address: str = "127.0.0.1:0") -> Iterator[Demo]:
    """Run the demo, and end it whatever happens."""
    running = Demo(folder, path, address)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
    assert "Traceback" not in running.output


def wait_until(holds: Callable[[], Any], what: str) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)


def all_count(running: Demo, name: str) -> None:
    """See that each series of a counter gets higher."""
    wait_until(lambda: len(running.series(name)) == 6, name)
    before = running.series(name)

    def all_are_higher() -> bool:
        now = running.series(name)
        return all(float(value) > float(before[sample]) for sample, value in now.items())

    wait_until(all_are_higher, f"more in every {name}")


def moves(running: Demo, vm: str) -> bool:
    """Whether the commit of a VM gets on."""
    offsets: set[str] = set()

    def moved() -> bool:
        offsets.update(running.series("qemu_block_job_offset_bytes", vm=vm).values())
        return len(offsets) > 1

    wait_until(moved, f"two offsets of the commit in {vm}")
    return True


def test_the_demo_shows_a_commit_that_moves_in_real_vms(sockets: Path) -> None:
    """Three VMs are up, with both styles of disk and three layers, and Ctrl-C leaves nothing."""
    with demo(sockets) as running:
        running.says("stop with Ctrl-C")
        assert len(running.qemus()) == 3
        assert list(running.series("qemu_vm_up").values()) == ["1"] * 3
        for vm, device in (("demo-web", "disk0"), ("demo-db", "virtio-disk0")):
            depth = running.series("qemu_block_device_backing_depth", vm=vm, device=device)
            assert set(depth.values()) <= {"2", "3"}
            assert depth
        assert moves(running, "demo-db")
        assert running.series("qemu_block_job_length_bytes", vm="demo-db", device="virtio-disk0")
        running.says("commit [")

        assert running.end_by(signal.SIGINT) == 0
        assert running.is_gone()
    assert "SIMULATED" not in running.output


def test_the_guests_of_the_demo_read_write_and_flush(sockets: Path) -> None:
    """The counters of every disk move the whole time."""
    with demo(sockets) as running:
        running.says("stop with Ctrl-C")
        for counter in ("reads", "writes", "flushes"):
            name = f"qemu_block_{counter}_completed_total"
            all_count(running, name)


def test_a_vm_that_is_killed_is_told_and_the_demo_goes_on(sockets: Path) -> None:
    """It is down in the metrics, the others are up; SIGKILL of the demo takes their QEMU along."""
    with demo(sockets) as running:
        running.says("demo-web: block-commit")
        victim = next(pid for pid, line in running.qemus().items() if "guest=demo-web" in line)
        os.kill(victim, signal.SIGKILL)
        running.says("demo-web: qemu-system-x86_64 ended")
        running.says("demo-web   down: refused")
        assert sorted(running.series("qemu_vm_up").values()) == ["0", "1", "1"]

        running.end_by(signal.SIGKILL)
        wait_until(lambda: not running.children(), "the end of every QEMU")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_while_it_starts_leaves_nothing(
    sockets: Path, number: signal.Signals
) -> None:
    """No process and no file, and the exit code of one that was asked to end."""
    with demo(sockets) as running:
        running.says("starting")
        assert running.end_by(number) == 0
        assert running.is_gone()


def test_a_demo_whose_terminal_is_closed_leaves_nothing(sockets: Path) -> None:
    """SIGHUP ends it like Ctrl-C, also once it serves."""
    with demo(sockets) as running:
        running.says("commit [")
        assert running.end_by(signal.SIGHUP) == 0
        assert running.is_gone()


def test_a_demo_that_nobody_reads_ends(sockets: Path) -> None:
    """As in `demo | head -1`."""
    folder = sockets / "tmp"
    folder.mkdir()
    command = [sys.executable, "-m", "exporter", "demo", "--web.listen-address", "127.0.0.1:0"]
    with subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE_SECONDS) == 0
        assert process.stderr.read() == b""
    assert not list(folder.iterdir())


def test_without_qemu_the_demo_says_loudly_that_it_simulates(sockets: Path) -> None:
    """The same demo, with a commit that moves, in VMs that are named for what they are."""
    empty = sockets / "bin"
    empty.mkdir()
    with demo(sockets, path=str(empty)) as running:
        running.says("stop with Ctrl-C")
        assert "SIMULATED: this is not QEMU" in running.output
        assert "qemu-img: not found in PATH" in running.output
        assert not running.children()
        up = running.series("qemu_vm_up")
        assert list(up.values()) == ["1"] * 3
        assert all('vm="simulated-' in sample for sample in up)
        assert moves(running, "simulated-db")
        assert running.series("qemu_block_job_offset_bytes", device="virtio-disk0")

        assert running.end_by(signal.SIGINT) == 0
        assert running.is_gone()


def test_where_qemu_does_not_start_the_demo_simulates_and_says_why(sockets: Path) -> None:
    """QEMU's own last words are told."""
    programs = sockets / "bin"
    programs.mkdir()
    real = shutil.which("qemu-img")
    assert real
    (programs / "qemu-img").symlink_to(real)
    broken = programs / "qemu-system-x86_64"
    broken.write_text("#!/bin/sh\necho 'could not allocate guest memory' >&2\nexit 1\n")
    broken.chmod(0o755)
    with demo(sockets, path=str(programs)) as running:
        running.says("stop with Ctrl-C")
        assert "SIMULATED" in running.output
        assert "could not allocate guest memory" in running.output


def test_a_port_in_use_is_one_clear_line(sockets: Path) -> None:
    """Exit code 1, and not a VM was started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with demo(sockets, address=address) as running:
            assert running.process.wait(PATIENCE_SECONDS) == 1
            assert running.is_gone()
    (line,) = running.output.splitlines()
    assert address in line
    assert "in use" in line


@asynccontextmanager
async def quick_vm(
    folder: Path, *, libvirt: bool, ready_seconds: float | None
) -> AsyncIterator[DemoVm]:
    """A VM of real QEMU whose rounds are short."""
    vm = DemoVm(Scenario("quick", libvirt, MIB, 64 * MIB, ready_seconds, 0.0), folder)
    try:
        await vm.start()
        yield vm
    finally:
        await vm.stop()


@asynccontextmanager
async def lines_of(vm: DemoVm) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    """Run a VM; yield a function that waits until it says something."""
    said: asyncio.Queue[str] = asyncio.Queue()

    async def heard(text: str) -> str:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while text not in (line := await said.get()):
                assert "nothing more happens" not in line
        return line

    running = asyncio.create_task(vm.run(said.put_nowait))
    try:
        yield heard
    finally:
        running.cancel()
        await asyncio.wait((running,))


async def root_file(vm: DemoVm) -> str:
    """Return the name of the file that the guest writes to."""
    block, *_ = [
        block
        for block in await vm.execute("query-block", {})
        if "disk0" in block["device"] + block["qdev"]
    ]
    return Path(block["inserted"]["file"]).name


@pytest.mark.parametrize("libvirt", [False, True])
async def test_a_real_disk_goes_round_and_round(sockets: Path, *, libvirt: bool) -> None:
    """Snapshot, writes, commit, ready, pivot, twice; no overlay is left behind a round."""
    async with quick_vm(sockets, libvirt=libvirt, ready_seconds=0.0) as vm, lines_of(vm) as heard:
        base = await root_file(vm)
        for number in (1, 2):
            await heard(f"writes to demo-quick-overlay-{number}.qcow2")
            await heard("ready to be completed")
            assert base in await heard("completed; ")
            assert not (sockets / f"demo-quick-overlay-{number}.qcow2").exists()


@pytest.mark.parametrize("libvirt", [False, True])
async def test_whoever_plays_with_the_demo_may_cancel_and_complete(
    sockets: Path, *, libvirt: bool
) -> None:
    """A cancelled commit begins again, and one that is completed by hand is completed."""
    async with quick_vm(sockets, libvirt=libvirt, ready_seconds=None) as vm, lines_of(vm) as heard:
        base = await root_file(vm)
        await heard("ready to be completed")
        (job,) = await vm.execute("query-block-jobs", {})
        await vm.execute("block-job-cancel", {"device": job["device"]})
        await heard("block-commit of demo-quick-overlay-1.qcow2 begins")
        await heard("ready to be completed")
        assert await root_file(vm) == "demo-quick-overlay-1.qcow2"
        await vm.execute("block-job-complete", {"device": job["device"]})
        assert base in await heard("completed; ")
        await heard("writes to demo-quick-overlay-2.qcow2")


def test_the_live_lines_say_how_each_vm_is() -> None:
    """A job with its progress, a VM without one, one that is down, one not seen yet."""
    exposition = """\
# HELP qemu_vm_up not a sample
qemu_vm_up{vm="a"} 1
qemu_block_read_bytes_total{vm="a",device="disk0"} 1048576
qemu_block_read_bytes_total{vm="a",device="disk1"} 2097152
qemu_block_job_offset_bytes{vm="a",device="disk0",job_id="disk0",job_type="commit"} 524288
qemu_block_job_length_bytes{vm="a",device="disk0",job_id="disk0",job_type="commit"} 2097152
qemu_block_job_status{vm="a",device="disk0",job_id="disk0",job_type="commit",status="running"} 1
qemu_block_job_status{vm="a",device="disk0",job_id="disk0",job_type="commit",status="ready"} 0
qemu_vm_up{vm="b"} 1
qemu_block_device_backing_depth{vm="b",device="disk0"} 2
qemu_block_device_backing_depth{vm="b",device="disk1"} 0
qemu_vm_up{vm="c"} 0
qemu_vm_scrape_error{vm="c",reason="refused"} 1
"""
    a, b, c, d = live_lines(exposition, ["a", "b", "c", "d"])

    assert "disk0" in a
    assert " 25%" in a
    assert "0.5 of  2.0 MiB, running" in a
    assert "read 3," in a
    assert "ready" not in a
    assert "disk0" in b
    assert "no job, 2 backing files" in b
    assert "down: refused" in c
    assert "down" in d
