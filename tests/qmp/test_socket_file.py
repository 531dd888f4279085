"""Which socket a path leads to."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from exporter.qmp import socket_file
from tests.qmp.test_connections import listen


def test_a_socket_that_is_made_anew_is_another_file(sockets: Path) -> None:
    """As long as anything holds the first one."""
    path = str(sockets / "vm.sock")
    with listen(path):
        first = socket_file.look(path)
        with listen(path):
            second = socket_file.look(path)
    os.unlink(path)

    assert None not in (first, second)
    assert first != second
    assert socket_file.look(path) is None


@pytest.mark.parametrize("path", ["/proc/self/fd/1/x", "x\0y", "/" + "x" * 5000])
def test_a_path_that_cannot_be_looked_at_leads_nowhere(path: str) -> None:
    """Whatever the reason is."""
    assert socket_file.look(path) is None


def test_what_was_connected_to_is_told(sockets: Path) -> None:
    """The file behind a link, not the link."""
    path, link = str(sockets / "vm.sock"), str(sockets / "link.sock")
    os.symlink(path, link)
    with listen(path), socket.socket(socket.AF_UNIX) as sock:
        assert socket_file.connect(sock, link) == socket_file.look(path) == socket_file.look(link)


def test_without_proc_the_path_itself_is_connected_to(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bare chroot."""
    path = str(sockets / "vm.sock")
    monkeypatch.setattr(socket_file, "_DESCRIPTORS", "/gone")
    with listen(path), socket.socket(socket.AF_UNIX) as sock:
        assert socket_file.connect(sock, path) == socket_file.look(path)


def test_a_connection_leads_to_the_file_that_is_told(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the path is bound anew between the look and the connection."""
    path = str(sockets / "vm.sock")
    with listen(path) as first, socket.socket(socket.AF_UNIX) as sock:
        before, opening = socket_file.look(path), os.open

        def open_and_lose(name: str, flags: int) -> int:
            opened = opening(name, flags)
            late.append(listen(path))
            return opened

        late: list[socket.socket] = []
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", open_and_lose)
            connected = socket_file.connect(sock, path)
        first.setblocking(False)
        served, _ = first.accept()
        served.close()
        late[0].close()

    assert connected == before != socket_file.look(path)
