"""The demo: small virtual machines with block jobs, and the exporter that watches them."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import aiohttp

from exporter.collect import Fleet
from exporter.config import Settings, load
from exporter.demo.disks import QemuFailed
from exporter.demo.lines import live_lines
from exporter.demo.simulation import SimulatedMonitor, simulated_vms
from exporter.demo.vms import DemoVm, real_vms
from exporter.errors import ConfigError
from exporter.web import Endpoints, Options, listen, serve

_LIVE_SECONDS = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Longest path that leaves room for the name of a socket.
_FOLDER_LIMIT_BYTES = 60

Vms = Sequence[DemoVm] | Sequence[SimulatedMonitor]


def run(listen_addresses: list[str]) -> int:
    """Run the demo until Ctrl-C, and return its exit code.

    Raises:
        ConfigError: an address cannot be listened on, or no temporary directory can be created.
    """
    listening = [sock for address in listen_addresses for sock in listen(address)]
    # The log would repeat what the live lines show.
    logging.getLogger("exporter").setLevel(logging.ERROR)
    try:
        asyncio.run(_until_signal(listening))
    finally:
        for sock in listening:
            sock.close()
    return 0


async def _until_signal(listening: Sequence[socket.socket]) -> None:
    _end_by_signals()
    with contextlib.suppress(asyncio.CancelledError), _folder() as folder:
        async with AsyncExitStack() as stack:
            _say("starting ...")
            try:
                vms: Vms = await stack.enter_async_context(real_vms(folder))
                _say(f"running {len(vms)} small virtual machines of real QEMU in {folder},")
                _say("a folder that grows to 300 MiB and is removed at the end")
            except QemuFailed as error:
                vms = await stack.enter_async_context(simulated_vms(folder))
                _say(_simulated(str(error)))
                _say(f"running {len(vms)} SIMULATED virtual machines in {folder}")
            await _watch(vms, folder, listening)
    _say("stopped; nothing is left behind")


async def _watch(vms: Vms, folder: Path, listening: Sequence[socket.socket]) -> None:
    fleet = Fleet(load(None, Settings(), (f"{glob.escape(str(folder))}/*.sock",)))
    url = _url(listening[0])
    _say(_places(vms, url))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(vm.run(_say_now)) for vm in vms]
            tasks.append(group.create_task(_follow(f"{url}/metrics", [vm.name for vm in vms])))
            app = Endpoints(fleet, Options(), lambda: None).application()
            await serve(app, listening, _end)
            for task in tasks:
                task.cancel()
    finally:
        await fleet.close()


async def _follow(url: str, names: Sequence[str]) -> None:
    """Print every few seconds what the exporter's metrics show."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session:
        while True:
            await asyncio.sleep(_LIVE_SECONDS)
            # The next line will show it; at the end there is no answer any more.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url) as response:
                    lines = live_lines(await response.text(), names)
                for line in lines:
                    _say_now(line)


@contextmanager
def _folder() -> Iterator[Path]:
    try:
        where = tempfile.gettempdir()
        if len(os.fsencode(where)) > _FOLDER_LIMIT_BYTES:
            where = "/tmp"  # noqa: S108  # a private folder in it
        folder = tempfile.TemporaryDirectory(prefix="qemu-block-demo-", dir=where)
    except OSError as error:
        raise ConfigError(f"demo: cannot create a temporary folder: {error.strerror}") from error
    with folder as path:
        yield Path(path)


def _end_by_signals() -> None:
    """Make the first signal cancel this task; later ones must not disturb the cleanup."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def end() -> None:
        for number in _SIGNALS:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, end)


def _end() -> None:
    signal.raise_signal(signal.SIGTERM)


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # nothing binds here
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _simulated(reason: str) -> str:
    stars = "*" * 78
    return (
        f"\n{stars}\n"
        "  SIMULATED: this is not QEMU. The virtual machines, their disks and their jobs\n"
        "  are made up by the demo itself, because QEMU cannot be run:\n"
        f"  {reason}\n"
        f"{stars}\n"
    )


def _places(vms: Vms, url: str) -> str:
    lines = []
    for vm in vms:
        scenario = vm.scenario
        lines += [
            f"  {vm.name}: {scenario.chain_device} and {scenario.data_device}, {scenario.style}",
            f"      {scenario.chain_device}: {scenario.story}",
        ]
    return "\n".join(
        [
            *lines,
            "\nlook at",
            f"  {url}/",
            f"  {url}/metrics",
            f"  {url}/probe?target={vms[0].name}&debug=true",
            f"  curl -s {url}/metrics | grep ^qemu_block_job_",
            "\nstop with Ctrl-C\n",
        ]
    )


def _say_now(text: str) -> None:
    _say(f"{time.strftime('%H:%M:%S')}  {text}")


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:
        # The reader has gone, so the demo ends; Python would try to write again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end()
