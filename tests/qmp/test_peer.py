"""Who is at the other end of a socket, seen from the side."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.errors import TargetError, TargetTimeout
from exporter.qmp import connections, peer, socket_file
from exporter.qmp.client import CommandStats
from exporter.qmp.queries import STATUS
from exporter.qmp.session import Session
from tests.fakeqmp import until
from tests.qmp.test_connections import listen

#: A process that is no QEMU: it greets its first client and answers nothing.
PROCESS = """
import json, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1)
print("listening", flush=True)
while True:
    client, _ = server.accept()
    version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
    client.sendall(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\\n")
    client.recv(1000)
    client.sendall(b'{"return": {}}\\n')
    while client.recv(1000):
        pass
"""


@pytest.fixture
def process(sockets: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that listens on vm.sock."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PROCESS, str(sockets / "vm.sock")],
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"listening\n"
        yield child
        child.kill()


async def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and see that it stopped."""
    process.send_signal(signal.SIGSTOP)
    await until(lambda: peer.is_stopped(process.pid))


def deaf(name: str, data: bytes) -> None:
    """Take no notice of an event."""


def test_the_process_at_the_other_end_is_known(
    process: subprocess.Popen[bytes], sockets: Path
) -> None:
    """As the kernel says it, before a word was spoken."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(sockets / "vm.sock"))
        assert peer.pid(sock) == process.pid


async def test_a_stopped_process_is_seen(process: subprocess.Popen[bytes]) -> None:
    """And one that goes on."""
    assert not peer.is_stopped(process.pid)
    await stop(process)
    process.send_signal(signal.SIGCONT)
    await until(lambda: not peer.is_stopped(process.pid))


def test_what_cannot_be_seen_is_not_stopped() -> None:
    """A process of another namespace has number 0; one that ended has none."""
    child = subprocess.Popen(["true"])
    child.wait()

    assert not peer.is_stopped(0)
    assert not peer.is_stopped(-1)
    assert not peer.is_stopped(child.pid)


def test_a_process_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name stands in brackets in front of the state, and may have some of its own."""
    stat = tmp_path / "stat"
    stat.write_bytes(b"7 (a) R 1 (\xff T) S 1 7 7\n")
    monkeypatch.setattr(peer, "Path", lambda path: stat)

    assert not peer.is_stopped(7)
    stat.write_bytes(b"7 (a) R (b) t 1 7 7\n")
    assert peer.is_stopped(7)


async def test_a_stopped_vm_is_stopped_and_not_busy(
    process: subprocess.Popen[bytes], sockets: Path
) -> None:
    """It greets nobody; it looks like a socket that serves another client, and is not waited for."""
    await stop(process)
    session = Session(str(sockets / "vm.sock"), CommandStats(), deaf)
    async with asyncio.timeout(20):
        with pytest.raises(TargetError) as caught:
            await session.connect(1000.0, keep_waiting=True)
    await session.close()

    assert (caught.value.reason, str(caught.value)) == ("stopped", "its process is stopped")


async def test_a_vm_that_is_stopped_while_it_answers_is_stopped(
    process: subprocess.Popen[bytes], sockets: Path
) -> None:
    """Not merely slow."""
    session = Session(str(sockets / "vm.sock"), CommandStats(), deaf)
    await session.connect(20.0, keep_waiting=True)
    await stop(process)
    with pytest.raises(TargetTimeout) as caught:
        await session.ask(STATUS, timeout_seconds=0.05)
    await session.close()

    assert (caught.value.reason, str(caught.value)) == ("stopped", "its process is stopped")


async def test_a_stopped_vm_with_a_full_backlog_is_stopped_once_it_is_known(
    process: subprocess.Popen[bytes], sockets: Path
) -> None:
    """A connection that is refused names nobody; the one before it did."""
    session = Session(str(sockets / "vm.sock"), CommandStats(), deaf)
    await session.connect(20.0, keep_waiting=True)
    await stop(process)
    await session.close()
    waiting = []
    for _ in range(10):
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        waiting.append(sock)
        if sock.connect_ex(str(sockets / "vm.sock")):
            break
    with pytest.raises(TargetError) as caught:
        await session.connect(20.0, keep_waiting=True)
    for sock in waiting:
        sock.close()

    assert caught.value.reason == "stopped"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("qemu-system-x86", True), ("qemu-kvm", True), ("kvm", True), ("qemu", True), ("libvirtd", False),
     ("xqemu", False), ("socat", False)],
)  # fmt: skip
async def test_a_qemu_is_known_by_the_name_of_its_program(
    tmp_path: Path, name: str, expected: bool
) -> None:
    """A manager that made the socket, or a proxy that stands before it, is none."""
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    process = await asyncio.create_subprocess_exec(program, "60")
    # It has its name a moment later than the pipe by which Python sees that it runs is closed.
    await until(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == name[:15])
    found = peer.is_qemu(process.pid)
    process.kill()
    await process.wait()

    assert found is expected


def test_whether_a_process_is_a_qemu_may_not_be_seen() -> None:
    """That is not the same as that it is none."""
    child = subprocess.Popen(["true"])
    child.wait()
    for process in (0, -1, child.pid):
        with pytest.raises(OSError, match="No such file"):
            peer.is_qemu(process)


@pytest.mark.parametrize("keep_waiting", [True, False])
async def test_a_process_that_was_stopped_before_this_one_began_is_stopped(
    process: subprocess.Popen[bytes], sockets: Path, keep_waiting: bool
) -> None:
    """Its connection to the exporter of before, which has ended, is no other client."""
    before = Session(str(sockets / "vm.sock"), CommandStats(), deaf)
    await before.connect(20.0, keep_waiting=True)
    await stop(process)
    await before.close()
    for _ in range(2):
        session = Session(str(sockets / "vm.sock"), CommandStats(), deaf)
        for _ in range(2):
            with pytest.raises(TargetError) as caught:
                await session.connect(20.0, keep_waiting=keep_waiting)
            assert caught.value.reason == "stopped"
        await session.close()


async def test_a_shared_socket_of_a_stopped_process_is_left_alone(
    process: subprocess.Popen[bytes], sockets: Path
) -> None:
    """A connection that was dropped stays in its backlog and keeps others out."""
    path = str(sockets / "vm.sock")
    session = Session(path, CommandStats(), deaf)
    await session.connect(20.0, keep_waiting=False)
    await session.close()
    await stop(process)
    for _ in range(5):
        with pytest.raises(TargetError) as caught:
            await session.connect(20.0, keep_waiting=False)
        assert caught.value.reason == "stopped"
    listener = connections.listener(path, socket_file.look(path))

    assert listener is not None
    assert listener.waiting == ()


async def test_a_qemu_is_found_by_its_socket(sockets: Path, tmp_path: Path) -> None:
    """Where a full backlog keeps us from asking the kernel who listens."""
    path = str(sockets / "vm.sock")
    program = tmp_path / "qemu-system-x"
    program.symlink_to("/bin/sleep")
    with listen(path) as server:
        inode = os.fstat(server.fileno()).st_ino
        unseen = peer.holder(inode)  # this process is not a QEMU
        process = await asyncio.create_subprocess_exec(program, "60", stdin=server.fileno())
    await until(lambda: peer.holder(inode))
    process.send_signal(signal.SIGSTOP)
    await until(lambda: peer.is_stopped(process.pid))
    with contextlib.suppress(BlockingIOError):
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                sock.connect(path)
    session = Session(path, CommandStats(), deaf)
    with pytest.raises(TargetError) as caught:
        await session.connect(20.0, keep_waiting=True)
    found = peer.holder(inode)
    process.kill()
    await process.wait()

    assert (unseen, found) == (0, process.pid)
    assert caught.value.reason == "stopped"
