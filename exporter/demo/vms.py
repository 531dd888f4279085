"""Small virtual machines of real QEMU, with I/O, snapshots and commits."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import random
import signal
import socket
import uuid
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from exporter.demo.disks import Disk, QemuFailed, cannot_run, disks_of
from exporter.demo.scenarios import (
    BLOCK_BYTES,
    DISK_BYTES,
    KIB,
    MIB,
    SCENARIOS,
    Scenario,
)

QEMU = "qemu-system-x86_64"
#: How long QEMU may take to start.
START_SECONDS = 30.0
_POLL_SECONDS = 0.5
_TURN_SECONDS = 0.25
#: The part of the data disk that the guest uses.
_DATA_BYTES = 32 * MIB
_SIZES_KIB = (4, 4, 8, 16, 64, 256)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

Say = Callable[[str], None]


class DemoVm:
    """One virtual machine: its QEMU process, the monitor that controls it, and its two disks."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        """Its files and the monitor socket for the exporter are created in `folder`."""
        self.name = f"demo-{scenario.name}"
        self.scenario = scenario
        self._stem = folder / self.name
        self._chain, self._data = disks_of(scenario, self._stem)
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asking = asyncio.Lock()

    async def start(self) -> None:
        """Start QEMU and the guest.

        Raises:
            QemuFailed: QEMU does not start.
        """
        for disk in (self._chain, self._data):
            await disk.create()
        await self._spawn()
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._reply("QMP")
                await self.execute("qmp_capabilities", {})
                await self.execute("cont", {})
        except TimeoutError:
            raise QemuFailed(f"{QEMU} was not ready within {START_SECONDS:g} s") from None

    async def stop(self) -> None:
        """Kill QEMU; its disks are not needed any more."""
        if self._writer is not None:
            self._writer.close()
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def run(self, say: Say) -> None:
        """Read and write as a guest does, and snapshot and commit, until cancelled or QEMU ends."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._work())
                group.create_task(self._commit_again_and_again(say))
        except* QemuFailed as failures:
            say(f"{self.name}: {failures.exceptions[0]}; this VM is left alone from now on")

    async def execute(self, command: str, arguments: Mapping[str, object]) -> Any:
        """Run a QMP command and return its result.

        Raises:
            QemuFailed: QEMU refused it, or is gone.
        """
        assert self._writer is not None
        async with self._asking:
            self._writer.write(
                json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
            )
            reply = await self._reply("return", "error")
        if "error" in reply:
            raise QemuFailed(f"{command}: {reply['error']['desc']}")
        return reply["return"]

    @property
    def _log(self) -> Path:
        return self._stem.with_suffix(".log")

    def _command(self, driver: int) -> list[str]:
        """Return QEMU's command line; `driver` is the descriptor of the demo's own monitor."""
        monitor = str(self._stem.with_suffix(".sock")).replace(",", ",,")
        return [
            *(QEMU, "-name", f"guest={self.name}", "-uuid", str(uuid.uuid4())),
            *("-machine", "pc", "-m", "4", "-accel", "tcg,tb-size=1"),
            *("-nodefaults", "-display", "none", "-S"),
            *("-qmp", f"unix:{monitor},server=on,wait=off"),
            *("-chardev", f"socket,id=driver,fd={driver}", "-mon", "chardev=driver,mode=control"),
            *self._chain.arguments(),
            *self._data.arguments(),
        ]

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            with theirs, self._log.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=DEVNULL,
                    stdout=log,
                    stderr=STDOUT,
                    # Ctrl-C must reach only the demo, which ends its VMs itself.
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
        except OSError as error:
            raise cannot_run(QEMU, error) from error

    async def _reply(self, *keys: str) -> dict[str, Any]:
        """Return the next message that has one of `keys`; events have none."""
        while True:
            try:
                line = await self._reader.readline()
            except OSError:
                line = b""
            if not line:
                raise QemuFailed(f"{QEMU} ended: {self._last_words()}")
            message: dict[str, Any] = json.loads(line)
            if message.keys() & set(keys):
                return message

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "without a message")

    async def _qemu_io(self, disk: Disk, command: str) -> None:
        # The aio forms are counted as the guest's own I/O; the plain ones are not.
        line = f'qemu-io {disk.qemu_io_name} "{command}"'
        output = await self.execute("human-monitor-command", {"command-line": line})
        if output:
            raise QemuFailed(f"qemu-io: {output.strip()}")

    async def _work(self) -> None:
        for turn in itertools.count():
            for operation in ("aio_write", "aio_read", "aio_read"):
                await self._qemu_io(self._data, f"{operation} -q {_somewhere(_DATA_BYTES)}")
            await self._qemu_io(self._chain, f"aio_read -q {_somewhere(DISK_BYTES)}")
            if turn % 4 == 0:
                # Few, and close together: a commit with a speed limit must catch up with them.
                await self._qemu_io(self._chain, f"aio_write -q {_somewhere(MIB)}")
            if turn % 8 == 0:
                for disk in (self._chain, self._data):
                    await self._qemu_io(disk, "aio_flush")
            await asyncio.sleep(_TURN_SECONDS)

    async def _commit_again_and_again(self, say: Say) -> None:
        for number in itertools.count(1):
            await self._grow(say, self._stem.with_name(f"{self._stem.name}-overlay-{number}.qcow2"))
            while await self._is_open(self._chain.layers[0]):
                await self._commit(say)
                await self._complete()
            await self._chain.drop_overlay(self)
            base = self._chain.layers[0].name
            say(f"{self.name}: completed; {self._chain.device} is back on {base}")
            await asyncio.sleep(self.scenario.rest_seconds)

    async def _grow(self, say: Say, overlay: Path) -> None:
        await self._chain.snapshot(self, overlay)
        say(f"{self.name}: snapshot; {self._chain.device} writes to {overlay.name} now")
        for block in range(self.scenario.overlay_bytes // BLOCK_BYTES):
            offset = 2 * block * BLOCK_BYTES
            await self._qemu_io(self._chain, f"aio_write -q {offset} {BLOCK_BYTES}")

    async def _commit(self, say: Say) -> None:
        await self._chain.commit(self, self.scenario.speed_bytes_per_second)
        say(f"{self.name}: block-commit of {self._chain.layers[0].name} begins")
        await self._until(lambda jobs: not jobs or jobs[0]["ready"])
        say(f"{self.name}: the commit is ready to be completed")

    async def _complete(self) -> None:
        # The user may complete or cancel the job at any time.
        if self.scenario.ready_seconds is not None:
            await asyncio.sleep(self.scenario.ready_seconds)
            if await self.execute("query-block-jobs", {}):
                await self.execute("block-job-complete", {"device": self._chain.job_id})
        await self._until(lambda jobs: not jobs)

    async def _is_open(self, file: Path) -> bool:
        blocks = await self.execute("query-block", {})
        return any(block["inserted"]["file"] == str(file) for block in blocks)

    async def _until(self, reached: Callable[[list[dict[str, Any]]], bool]) -> None:
        while True:
            if reached(await self.execute("query-block-jobs", {})):
                return
            await asyncio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def real_vms(folder: Path) -> AsyncIterator[list[DemoVm]]:
    """Run the virtual machines of the demo within a context.

    Raises:
        QemuFailed: QEMU or qemu-img cannot be run here.
    """
    vms = [DemoVm(scenario, folder) for scenario in SCENARIOS]
    try:
        for vm in vms:
            await vm.start()
        yield vms
    finally:
        for vm in vms:
            await vm.stop()


def _somewhere(bound_bytes: int) -> str:
    """Return an offset and a length for qemu-io, both below `bound_bytes`."""
    size = random.choice(_SIZES_KIB)  # noqa: S311  # nothing secret
    offset = random.randrange(0, bound_bytes // KIB - size, 4)  # noqa: S311
    return f"{offset}k {size}k"


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
