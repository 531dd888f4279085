"""Which QEMUs stand behind a proxy, by the connections of its sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from exporter.storage.proxies import Host

#: Listens, and serves one client; connects to further sockets; has a file open.
PROCESS = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1)
others = []
for path in sys.argv[3:]:
    others.append(socket.socket(socket.AF_UNIX))
    others[-1].connect(path)
file = open(sys.argv[2], "r+")
print("ready", flush=True)
client, _ = server.accept()
client.recv(1)
"""


class Programs:
    """Processes of given names, each with a socket and a file."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack

    def start(self, name: str, file: Path, *others: str) -> int:
        """Start one that is connected to others."""
        program = self.folder / name
        program.symlink_to(os.path.realpath(sys.executable))
        file.touch()
        sockets = [str(self.folder / f"{other}.sock") for other in others]
        command = [str(program), "-I", "-S", "-c", PROCESS, f"{program}.sock", str(file), *sockets]
        child = self._stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        self._stack.callback(child.kill)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child.pid


@pytest.fixture
def programs(sockets: Path) -> Iterator[Programs]:
    """None so far."""
    with ExitStack() as stack:
        yield Programs(sockets, stack)


def device(path: Path) -> str:
    """Return the file system that a path is on, as the table of mounts has it."""
    number = path.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def test_only_the_qemu_behind_a_proxy_counts(programs: Programs, tmp_path: Path) -> None:
    """Another one of the host has a file on a mount that hangs; this one has not."""
    here, elsewhere = tmp_path / "a", Path("/dev/shm") / f"{tmp_path.name}-{os.getpid()}"
    try:
        programs.start("qemu-one", here)
        programs.start("qemu-two", elsewhere)
        proxy = programs.start("proxy", tmp_path / "log", "qemu-one")
        host = Host()
        said = (
            host.has_files_on({device(here)}, proxy),
            host.has_files_on({device(elsewhere)}, proxy),
        )
    finally:
        elsewhere.unlink()

    assert said == (True, False)


def test_a_qemu_is_found_behind_a_manager(programs: Programs, tmp_path: Path) -> None:
    """As virt-qemu-qmp-proxy stands before libvirtd, which stands before all of them."""
    elsewhere = Path("/dev/shm") / f"{tmp_path.name}-{os.getpid()}"
    try:
        programs.start("qemu-one", elsewhere)
        programs.start("manager", tmp_path / "log", "qemu-one")
        proxy = programs.start("proxy", tmp_path / "log", "manager")
        assert Host().has_files_on({device(elsewhere)}, proxy)
        assert not Host().has_files_on({"0:0"}, proxy)
    finally:
        elsewhere.unlink()


def test_behind_a_process_without_connections_may_be_any_qemu(
    programs: Programs, tmp_path: Path
) -> None:
    """It made the socket and handed it over."""
    elsewhere = Path("/dev/shm") / f"{tmp_path.name}-{os.getpid()}"
    try:
        programs.start("qemu-one", elsewhere)
        manager = programs.start("manager", tmp_path / "log")
        assert Host().has_files_on({device(elsewhere)}, manager)
    finally:
        elsewhere.unlink()


def test_a_qemu_whose_files_cannot_be_seen_may_have_any(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host where it belongs to another user; and where there is none, it is elsewhere."""
    programs.start("qemu-one", tmp_path / "a")
    proxy = programs.start("proxy", tmp_path / "log", "qemu-one")
    monkeypatch.setattr("exporter.storage.open_files.read", lambda process: None)
    assert Host().has_files_on({"0:0"}, proxy)
    monkeypatch.setattr("exporter.qmp.peer.is_qemu", lambda process: False)

    assert Host().has_files_on({"0:0"}, proxy)
