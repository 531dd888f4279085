"""The mounts of this host, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter import mounts


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


def test_mount_points_are_read_with_their_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blank in a name stands there in octal; what else may split a line stands there raw."""
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        b"23 22 0:40 / /mnt/my\\040share rw - nfs4 server:/x rw\n"
        b"25 22 0:42 / /mnt/odd\r\x0b\xff rw - xfs /dev/sdb1 rw\n"
        b"24 22 0:41 / /mnt/back\\134slash rw shared:2 master:1 - fuse.sshfs me@host:/ rw\n"
    )
    real = Path

    def redirected(path: str) -> Path:
        return table if path == "/proc/self/mountinfo" else real(path)

    monkeypatch.setattr(mounts, "Path", redirected)
    monkeypatch.setattr(mounts, "_points_at", float("-inf"))

    assert mounts.points() == {
        "/": "ext4",
        "/mnt/my share": "nfs4",
        "/mnt/back\\slash": "fuse.sshfs",
        "/mnt/odd\r\x0b\udcff": "xfs",
    }


def test_the_mounts_of_this_host_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always a root."""
    monkeypatch.setattr(mounts, "_points_at", float("-inf"))

    assert "/" in mounts.points()
