"""What the kernel tells of unix sockets by netlink."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.qmp import sockdiag


def test_both_ends_of_a_connection_are_told(sockets: Path) -> None:
    """The server's has the path, the file and the peer; a client's has none of its own."""
    path = sockets / "vm.sock"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(path))
        server.listen(1)
        client.connect(str(path))
        served, _ = server.accept()
        with served:
            [found] = [
                each for each in sockdiag.sockets(sockdiag.ESTABLISHED) if each.path == str(path)
            ]
            numbers = [os.fstat(each.fileno()).st_ino for each in (served, client)]
    file = path.stat()

    assert [found.inode, found.peer] == numbers
    assert found.file_inode == file.st_ino & 0xFFFFFFFF
    assert found.file_device == os.major(file.st_dev) << 20 | os.minor(file.st_dev)
    assert found.waiting == ()


class Netlink:
    """A netlink socket that says what it is told to."""

    def __init__(self, *answers: bytes) -> None:
        self._answers: Iterator[bytes] = iter(answers)

    def __call__(self, *_: object) -> Netlink:
        return self

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, request: bytes) -> None:
        """Take a request."""

    def recv(self, _: int) -> bytes:
        """Return the next answer."""
        return next(self._answers)


def test_a_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOENT where the kernel has no unix_diag."""
    refusal = struct.pack("=IHHIIi", 20, 2, 0, 0, 0, -errno.ENOENT)
    monkeypatch.setattr(socket, "socket", Netlink(refusal))
    with pytest.raises(OSError, match="No such file") as caught:
        sockdiag.sockets(sockdiag.LISTEN)

    assert caught.value.errno == errno.ENOENT


def test_what_a_later_kernel_adds_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes that are not known, of any length, padded to four bytes."""
    name = struct.pack("=HH", 4 + 3, 0) + b"/x\0\0"
    unknown = struct.pack("=HH", 4 + 5, 99) + b"12345\0\0\0"
    peer = struct.pack("=HHI", 8, 2, 7)
    message = struct.pack("=BBBBIII", 1, 1, 1, 0, 42, 0, 0) + name + unknown + peer
    answer = struct.pack("=IHHII", 16 + len(message), 20, 2, 0, 0) + message
    done = struct.pack("=IHHIIi", 20, 3, 2, 0, 0, 0)
    monkeypatch.setattr(socket, "socket", Netlink(answer, done))

    assert sockdiag.sockets(sockdiag.ESTABLISHED) == [sockdiag.UnixSocket(42, "/x", 0, 0, 7, ())]
