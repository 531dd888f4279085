"""What is seen of an image file, by the system calls."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from exporter.storage import file_stat as sights
from exporter.storage.file_stat import FileStat, stat_file


def test_a_file_is_seen_with_the_space_of_its_file_system(tmp_path: Path) -> None:
    """As statvfs says it."""
    image = tmp_path / "a.qcow2"
    image.touch()
    space = os.statvfs(tmp_path)
    sight = stat_file(str(image))

    assert sight.visible
    assert sight.size_bytes == space.f_blocks * space.f_frsize
    assert sight.available_bytes is not None
    assert 0 < sight.available_bytes <= sight.size_bytes


def test_a_block_device_has_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In sectors of 512 bytes, as sysfs says it; what is left of it is QEMU's to know."""
    size = tmp_path / "size"
    asked = []

    def sysfs(path: str) -> Path:
        asked.append(path)
        return size

    monkeypatch.setattr(sights, "Path", sysfs)
    monkeypatch.setattr(sights, "_statx", lambda path: (stat.S_IFBLK, (0, 5), 99, (8, 17)))
    assert stat_file(str(tmp_path)) == FileStat(visible=True, identity=(8, 17))
    size.write_text("2048\n")

    assert stat_file(str(tmp_path)) == FileStat(visible=True, size_bytes=1048576, identity=(8, 17))
    assert asked[0] == "/sys/dev/block/8:17/size"


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/mountinfo", "/", __file__])
def test_what_the_server_says_of_a_file_is_what_stat_says(path: str) -> None:
    """The kernel's own structure is read, a member at a time."""
    state = os.stat(path)

    assert sights._statx(os.fsencode(path)) == (
        state.st_mode, (os.major(state.st_dev), os.minor(state.st_dev)), state.st_ino,
        (os.major(state.st_rdev), os.minor(state.st_rdev)),
    )  # fmt: skip


def test_a_file_is_one_under_all_of_its_names(tmp_path: Path) -> None:
    """Links of both kinds, and ways around; what is in it, and what it was called, is no matter."""
    file, other, folder = tmp_path / "a", tmp_path / "b", tmp_path / "folder"
    for each in (file, other):
        each.write_text("alike")
    folder.symlink_to(tmp_path)
    (tmp_path / "hard").hardlink_to(file)
    (tmp_path / "soft").symlink_to("a")
    paths = [
        file,
        tmp_path / "hard",
        tmp_path / "soft",
        folder / "hard",
        f"{tmp_path}/../{tmp_path.name}/a",
    ]
    identities = {stat_file(str(path)).identity for path in paths}

    assert len(identities) == 1
    assert identities != {stat_file(str(other)).identity}
    assert None not in identities


def test_a_block_device_is_one_under_all_of_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node is a file of its own, elsewhere; the device is what counts, and no file is it."""
    nodes = {
        "/dev/vg/disk": (stat.S_IFBLK | 0o660, (0, 5), 11, (253, 4)),
        "/srv/node": (stat.S_IFBLK | 0o600, (8, 1), 12, (253, 4)),
        "/dev/vg/other": (stat.S_IFBLK | 0o660, (0, 5), 13, (253, 5)),
        f"{tmp_path}/file": (stat.S_IFREG | 0o600, (253, 4), 11, (0, 0)),
    }
    monkeypatch.setattr(sights, "_statx", lambda path: nodes[os.fsdecode(path)])
    one, again, other, file = (stat_file(path).identity for path in nodes)

    assert one == again
    assert len({one, other, file}) == 3


@pytest.mark.parametrize("name", ["gone", "\0"])
def test_what_cannot_be_seen_is_no_file_that_is_known(tmp_path: Path, name: str) -> None:
    """Two of them are not taken for one."""
    assert stat_file(str(tmp_path / name)).identity is None
    assert stat_file("relative").identity is None


def test_a_file_that_is_open_is_seen_with_the_name_that_the_kernel_has_for_it(
    tmp_path: Path,
) -> None:
    """By which a number that leads to another file by now is told from the one that it led to."""
    path = tmp_path / "image"
    path.write_bytes(b"")
    with path.open() as file:
        here, opened = stat_file(str(path)), stat_file(f"/proc/{os.getpid()}/fd/{file.fileno()}")

    assert (here.link, opened.link) == ("", str(path))
    assert here.identity == opened.identity


@pytest.mark.parametrize("name", ["gone", "file/below", ""])
def test_a_file_that_is_not_there_cannot_be_seen(tmp_path: Path, name: str) -> None:
    """It is in another namespace, as is one whose path is relative to QEMU's folder."""
    (tmp_path / "file").touch()

    sight = stat_file(str(tmp_path / name) if name else "relative.qcow2")
    assert sight == FileStat(visible=False, missing=bool(name))


def test_a_path_of_any_bytes_can_be_looked_at(tmp_path: Path) -> None:
    """What QEMU shows of it may be no path at all."""
    assert stat_file(str(tmp_path / "\ufffd\n")) == FileStat(visible=False, missing=True)
    assert stat_file("/" + "x" * 10_000) == FileStat(visible=True)


def test_a_path_with_a_nul_cannot_be_seen() -> None:
    """JSON has it; no file system does."""
    assert stat_file("/etc\0/passwd") == FileStat(visible=False)


def test_a_path_with_a_lone_surrogate_cannot_be_seen() -> None:
    """JSON has it; UTF-8 does not."""
    assert stat_file("/images/\ud800.img") == FileStat(visible=False)
