"""Who is connected to a socket, seen from the side."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.qmp import connections, sockdiag, socket_file


@pytest.fixture
def path(sockets: Path) -> str:
    """Where the socket of a VM is."""
    return str(sockets / "vm.sock")


@pytest.fixture
def listener(path: str) -> Iterator[socket.socket]:
    """A socket that listens with QEMU's backlog, and is accepted from by hand."""
    with listen(path) as server:
        yield server


@pytest.fixture(params=["netlink", "table"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the connections are read: by netlink, or where that is not to be had."""
    if request.param == "table":
        forbid_netlink(monkeypatch)
    return str(request.param)


def forbid_netlink(monkeypatch: pytest.MonkeyPatch, code: int = errno.EPERM) -> list[int]:
    """Have the kernel tell nothing by netlink; return a list with an entry for each time it is asked."""
    asked: list[int] = []

    def refuse(state: int) -> list[sockdiag.UnixSocket]:
        asked.append(state)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(connections, "_kernel_tells", True)
    monkeypatch.setattr(sockdiag, "sockets", refuse)
    return asked


def listen(path: str) -> socket.socket:
    """Listen as QEMU does: what is at the path is removed first."""
    if os.path.exists(path):
        os.unlink(path)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    return server


def connect(path: str) -> socket.socket:
    """Connect as one more client."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def number(sock: socket.socket) -> int:
    """Return the number of a socket."""
    return os.fstat(sock.fileno()).st_ino


def is_served(path: str) -> bool:
    """Whether a client is connected to the socket at a path."""
    return connections.is_served(path, socket_file.look(path))


def has_another(path: str, ours: socket.socket) -> bool:
    """Whether another client than `ours` is served there."""
    return connections.has_another_client(path, socket_file.look(path), number(ours))


def test_another_client_is_seen_while_one_waits(
    listener: socket.socket, path: str, source: str
) -> None:
    """To be served alone is nothing to see; to wait behind another client is."""
    assert not is_served(path)
    with connect(path) as other:
        served, _ = listener.accept()
        with served:
            assert is_served(path)
            assert not has_another(path, other)
            with connect(path) as ours:
                assert has_another(path, ours)
        assert not is_served(path)


def test_a_client_that_waits_alone_waits_for_nobody(
    listener: socket.socket, path: str, source: str
) -> None:
    """A QEMU that is still opening its images serves no one."""
    with connect(path) as ours:
        assert not is_served(path)
        assert not has_another(path, ours)


def test_clients_of_another_socket_do_not_count(
    listener: socket.socket, path: str, source: str
) -> None:
    """Nor of one whose name begins alike."""
    with connect(path), connect(path) as ours:
        served, _ = listener.accept()
        with served:
            assert has_another(path, ours)
            assert not has_another(path[:-1], ours)
            assert not has_another(os.path.dirname(path), ours)


def test_clients_of_a_socket_that_had_the_path_before_do_not_count(path: str, source: str) -> None:
    """They stay connected to the process that made it."""
    with listen(path) as before, connect(path):
        served, _ = before.accept()
        with served, listen(path):
            assert not is_served(path)
            with connect(path) as ours:
                assert not has_another(path, ours)


def test_a_client_that_left_does_not_count(listener: socket.socket, path: str) -> None:
    """A process that is stopped keeps its end."""
    other = connect(path)
    served, _ = listener.accept()
    with served:
        other.close()
        assert not is_served(path)
        with connect(path) as ours:
            assert not has_another(path, ours)


def test_clients_of_both_sockets_are_told_apart(path: str) -> None:
    """One is connected to the process before, one to that of now."""
    with listen(path) as before, connect(path):
        served_before, _ = before.accept()
        with served_before, listen(path) as now, connect(path) as other:
            served, _ = now.accept()
            with served, connect(path) as ours:
                assert is_served(path)
                assert has_another(path, ours)
                assert not has_another(path, other)


def test_a_path_with_blanks_and_odd_bytes_is_found(sockets: Path, source: str) -> None:
    """As it is."""
    path = str(sockets / os.fsdecode(b"a  b \xff.sock"))
    with listen(path) as server, connect(path), connect(path) as ours:
        served, _ = server.accept()
        with served:
            assert has_another(path, ours)


def test_a_link_leads_to_the_socket(listener: socket.socket, path: str, sockets: Path) -> None:
    """The file is the same, whatever it is called."""
    link = sockets / "link.sock"
    link.symlink_to(path)
    with connect(path):
        served, _ = listener.accept()
        with served:
            assert is_served(str(link))


def test_a_file_system_that_tells_of_another_device_is_no_hindrance(
    listener: socket.socket, path: str
) -> None:
    """As btrfs and overlayfs do: then the path has to be that of QEMU."""
    file = socket_file.look(path)
    assert file is not None
    other = file._replace(device=os.makedev(0, 9999))
    with connect(path):
        served, _ = listener.accept()
        with served:
            assert connections.is_served(path, other)
            assert not connections.is_served(path + "x", other)


def test_without_proc_nothing_is_seen(
    listener: socket.socket, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is said that the VM does not greet, and no more."""
    forbid_netlink(monkeypatch)
    monkeypatch.setattr(connections, "_TABLE", tmp_path / "gone")
    with connect(path), connect(path) as ours:
        served, _ = listener.accept()
        with served:
            assert not is_served(path)
            assert not has_another(path, ours)
    assert connections.listener(path, socket_file.look(path)) is None


@pytest.mark.parametrize(
    ("code", "times"), [(errno.EPERM, 1), (errno.ENOENT, 1), (errno.EMFILE, 3)]
)
def test_a_kernel_that_does_not_tell_is_asked_once(
    path: str, monkeypatch: pytest.MonkeyPatch, code: int, times: int
) -> None:
    """It would look for the module each time; a lack of descriptors passes."""
    asked = forbid_netlink(monkeypatch, code)
    for _ in range(3):
        is_served(path)

    assert len(asked) == times


def test_the_listener_tells_who_waits(listener: socket.socket, path: str) -> None:
    """Those that left are known not to."""
    file = socket_file.look(path)

    def waiting() -> tuple[int, ...]:
        found = connections.listener(path, file)
        assert found is not None
        assert found.inode == number(listener)
        return found.waiting

    assert waiting() == ()
    with connect(path) as ours:
        assert waiting() == (number(ours),)
    assert waiting() == (0,)


def test_more_sockets_than_one_answer_holds_are_all_seen(sockets: Path) -> None:
    """A host has thousands, and the kernel tells of them piece by piece."""
    paths = [str(sockets / f"{number}.sock") for number in range(300)]
    servers = [listen(path) for path in paths]
    clients = [connect(path) for path in paths]
    served = [server.accept()[0] for server in servers]
    seen = [is_served(path) for path in paths]
    for sock in (*servers, *clients, *served):
        sock.close()

    assert all(seen)
