"""The serving process and clients that want to do it harm."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.conftest import series
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp
from tests.program import COMMAND, Exporter, exporter

_HALF = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 4000
_METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
#: 64 descriptors: a quarter is for clients.
_FEW_DESCRIPTORS = ("prlimit", "--nofile=64", *COMMAND)


@pytest.fixture
async def vms(sockets: Path) -> AsyncIterator[str]:
    """Three VMs; what finds their sockets."""
    async with AsyncExitStack() as stack:
        for number in range(3):
            fake = await stack.enter_async_context(FakeQmp(str(sockets / f"vm{number}.sock")))
            plug(fake, *(Disk(f"disk{n}", (f"top{n}", f"base{n}")) for n in range(2)))
        yield f"--qmp.sockets={sockets}/*.sock"


@asynccontextmanager
async def _clients(
    running: Exporter, count: int, sent: bytes, *, buffer_bytes: int = 0
) -> AsyncIterator[list[socket.socket]]:
    """Connect so many clients that send something and do not read."""
    host, _, port = running.address.rpartition(":")
    loop = asyncio.get_running_loop()
    with _Sockets() as clients:
        for _ in range(count):
            sock = socket.socket()
            clients.append(sock)
            if buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            sock.setblocking(False)
            await loop.sock_connect(sock, (host, int(port)))
            await loop.sock_sendall(sock, sent)
        yield clients


class _Sockets(list[socket.socket]):
    """Sockets that are closed at the end."""

    def __enter__(self) -> _Sockets:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self:
            sock.close()


async def _up(running: Exporter) -> int:
    status, text = await running.get("/metrics")
    assert status == 200
    return sum(value == "1" for value in series(text, "qemu_vm_up").values())


async def test_clients_without_a_request_leave_descriptors_for_vms_and_the_log_alone(
    vms: str,
) -> None:
    """More of them than there are descriptors: every VM is up, and nobody else is kept out."""
    async with exporter(vms, command=_FEW_DESCRIPTORS) as running:
        for sent in (b"", _HALF):
            async with _clients(running, 200, sent):
                assert (await running.get("/-/healthy"))[0] == 200
                assert await _up(running) == 3
        assert await _up(running) == 3

    assert len(running.log) < 30
    assert not any("out of system resource" in line for line in running.log)


async def test_scrapers_that_do_not_read_keep_nobody_out(sockets: Path) -> None:
    """More of them than there are places."""
    async with FakeQmp(str(sockets / "large.sock")) as fake:
        plug(fake, *(Disk(f"disk{n}", (f"top{n}", f"base{n}")) for n in range(1000)))
        async with (
            exporter(f"--qmp.sockets={sockets}/*.sock", "--web.max-requests=4") as running,
            AsyncExitStack() as stack,
        ):
            _, text = await running.get("/metrics")
            assert len(text) > 1 << 20
            for _ in range(4):
                clients = _clients(running, 4, _METRICS, buffer_bytes=2048)
                for sock in await stack.enter_async_context(clients):
                    sock.setblocking(True)
                    assert await asyncio.to_thread(sock.recv, 12) in (
                        b"HTTP/1.1 200",
                        b"HTTP/1.1 503",
                    )
            assert await running.get("/-/healthy") == (200, "QEMU Block Exporter is Healthy.\n")
            assert await _up(running) == 1


@pytest.mark.parametrize("method", ["POST /metrics", "GET /-/healthy", "PUT /api/v1/vms"])
async def test_bodies_that_no_page_asked_for_keep_nobody_waiting(vms: str, method: str) -> None:
    """Compressed ones that would be gigabytes, and ones that never end: they are not read."""
    packed = gzip.compress(bytes(64 << 20))
    head = f"{method} HTTP/1.1\r\nHost: x\r\n"
    bomb = f"{head}Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    endless = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1000\r\n" + bytes(4096)
    async with (
        exporter(vms) as running,
        _clients(running, 40, bomb + packed),
        _clients(running, 40, endless),
    ):
        assert (await running.get("/-/healthy"))[0] == 200
        assert await _up(running) == 3


async def test_who_is_not_let_in_is_told_no_version(vms: str, tmp_path: Path) -> None:
    """Nor is who does not speak HTTP."""
    hashed = "$2b$04$" + "." * 53
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{a: {hashed}}}\n")
    async with exporter(vms, f"--web.config.file={tmp_path}/web.yml") as running:
        for sent, status in ((_METRICS, b"401"), (b"\x16\x03\x01\r\n\r\n", b"400")):
            reader, writer = await asyncio.open_connection(*running.address.split(":"))
            with closing(writer):
                writer.write(sent)
                answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.split()[1] == status
            assert b"\r\nServer: qemu-block-exporter\r\n" in answer
            assert b"ython" not in answer
            assert b"aiohttp" not in answer


async def test_what_is_no_http_leaves_few_log_lines(vms: str) -> None:
    """With how many there were."""
    async with exporter(vms) as running:
        for _ in range(4):
            async with _clients(running, 50, b"GET / HTTP/1.1\nHost: x\r\n\r\n"):
                assert await _up(running) == 3

    assert len([line for line in running.log if "not valid HTTP" in line]) in range(1, 10)
    assert len(running.log) < 30


async def test_haproxys_check_finds_it_up(vms: str) -> None:
    """`option httpchk` alone asks `OPTIONS / HTTP/1.0`."""
    async with exporter(vms) as running:
        reader, writer = await asyncio.open_connection(*running.address.split(":"))
        with closing(writer):
            writer.write(b"OPTIONS / HTTP/1.0\r\n\r\n")
            answer = await reader.read()

    assert answer.startswith(b"HTTP/1.0 204 ")
    assert b"\r\nAllow: GET, HEAD, OPTIONS\r\n" in answer
