"""The mounts of this host, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.storage import mounts
from exporter.storage.mounts import Mount


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/slow/a", "/slow"),
        ("/slow", "/slow"),
        ("/slow/a/../b", "/slow"),
        ("/slower/a", "/"),
        ("/fast/../slow/a", "/slow"),
        ("/", "/"),
        ("//slow/a", "/slow"),
        ("//x/y", "/"),
        ("///slow/a", "/slow"),
        ("relative/a", "/"),
        ("../a", "/"),
        ("a", "/"),
        ("", "/"),
    ],
)
def test_the_mount_of_a_path_is_found_by_its_name(path: str, point: str) -> None:
    """To resolve a link is to ask the file system; two slashes in front are a path like any."""
    assert mounts.point_of(path, ["/", "/slow", "/fast"]) == point


TABLE = (
    b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    b"23 22 0:40 / /mnt/my\\040share rw - nfs4 server:/x rw\n"
    b"25 22 0:42 / /mnt/odd\r\x0b\xff rw - xfs /dev/sdb1 rw\n"
    b"24 22 0:41 / /mnt/back\\134slash rw shared:2 master:1 - fuse.sshfs me@host:/ rw\n"
    b"26 22 0:43 /sub /mnt/my\\040share rw - 9p share rw\n"
)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A kernel that lists these; returns where it was asked."""
    path, asked, real = tmp_path / "mountinfo", [], Path
    path.write_bytes(TABLE)

    def redirected(name: str) -> Path:
        asked.append(name)
        return real(path)

    monkeypatch.setattr(mounts, "Path", redirected)
    monkeypatch.setattr(mounts, "_points_at", float("-inf"))
    return asked


def test_mount_points_are_read_with_their_types(table: list[str]) -> None:
    """A blank in a name stands there in octal; what else may split a line stands there raw.

    Of two on one point, the later one covers the other.
    """
    assert mounts.points() == {
        "/": Mount("/", "8:1", "ext4"),
        "/mnt/my share": Mount("/mnt/my share", "0:43", "9p"),
        "/mnt/back\\slash": Mount("/mnt/back\\slash", "0:41", "fuse.sshfs"),
        "/mnt/odd\r\x0b\udcff": Mount("/mnt/odd\r\x0b\udcff", "0:42", "xfs"),
    }
    assert table == ["/proc/self/mountinfo"]


def test_the_mounts_of_a_process_are_known_by_their_numbers(table: list[str]) -> None:
    """As fdinfo names them: also one that is covered by another."""
    found = mounts.of(77)

    assert table == ["/proc/77/mountinfo"]
    assert found["23"] == Mount("/mnt/my share", "0:40", "nfs4")
    assert found["26"] == Mount("/mnt/my share", "0:43", "9p")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("nfs", True), ("nfs4", True), ("cifs", True), ("ceph", True), ("9p", True), ("virtiofs", True),
     ("fuse", True), ("fuse.sshfs", True), ("fuse.glusterfs", True),
     ("fuseblk", False), ("ext4", False), ("xfs", False), ("tmpfs", False), ("proc", False)],
)  # fmt: skip
def test_what_may_hang_on_another_host_or_program_is_known(kind: str, expected: bool) -> None:
    """By its type alone."""
    assert Mount("/m", "0:1", kind).is_network is expected


def test_the_mounts_of_this_host_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always a root."""
    monkeypatch.setattr(mounts, "_points_at", float("-inf"))

    assert "/" in mounts.points()
