"""The overlay of a snapshot, as qemu-img judges it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from exporter.admin import qcow2

KIB, MIB, GIB, TIB, PIB = (1 << shift for shift in (10, 20, 30, 40, 50))
#: What one entry, and one cluster, of the L1 table is for.
ENTRY, CLUSTER = 512 * MIB, 4 * TIB


def qemu_img(*arguments: object) -> str:
    """Return what qemu-img says; to be without it is to fail."""
    tool = shutil.which("qemu-img")
    assert tool, "the tests need qemu-img"
    return subprocess.run(
        [tool, *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def written(path: Path, size: int, backing: str, kind: str = "qcow2") -> Path:
    """Write an overlay as `exporter.overlay` does."""
    image, length = qcow2.overlay(size, backing, kind)
    with path.open("wb") as file:
        file.write(image)
        file.truncate(length)
    return path


def info(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(qemu_img("info", "-U", "--output=json", path))
    return told


def check(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(qemu_img("check", "--output=json", path))
    return told


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An image to be on top of."""
    path = tmp_path / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    return path


@pytest.mark.parametrize(
    "size",
    [
        512, 1024, 64 * KIB - 512, 64 * KIB, MIB, 10 * GIB + 512,
        ENTRY - 512, ENTRY, ENTRY + 512, CLUSTER - 512, CLUSTER, CLUSTER + 512,
        64 * TIB, PIB, 2 * PIB - 512, 2 * PIB,
    ],
)  # fmt: skip
def test_an_overlay_of_any_size_is_one_that_qemu_finds_no_fault_in(
    base: Path, tmp_path: Path, size: int
) -> None:
    """Empty, of exactly that size, and on top of what it was made for."""
    path = written(tmp_path / "over.qcow2", size, str(base))
    told, checked = info(path), check(path)

    assert told["virtual-size"] == size
    assert (told["format"], told["backing-filename"]) == ("qcow2", str(base))
    assert told["backing-filename-format"] == "qcow2"
    assert told["format-specific"]["data"]["compat"] == "1.1"
    assert told["format-specific"]["data"]["corrupt"] is False
    assert checked["check-errors"] == 0
    assert not checked.keys() & {"leaks", "corruptions"}
    assert checked["image-end-offset"] == path.stat().st_size


def test_an_overlay_is_what_qemu_img_itself_would_make(base: Path, tmp_path: Path) -> None:
    """The same is said of both."""
    ours, theirs = written(tmp_path / "ours", 64 * MIB, str(base)), tmp_path / "theirs"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", theirs)
    told = [info(path) for path in (ours, theirs)]
    for each in told:
        each.pop("filename"), each.pop("actual-size")
        each.pop("children", None)

    assert told[0] == told[1]


def test_what_is_below_is_read_through_it_and_what_is_written_stays_in_it(
    base: Path, tmp_path: Path
) -> None:
    """To the last bytes of the disk."""
    tool = shutil.which("qemu-io")
    assert tool, "the tests need qemu-io"
    last = 64 * MIB - 512
    subprocess.run([tool, "-c", "write -q -P 1 0 1M", base], check=True)
    path = written(tmp_path / "over.qcow2", 64 * MIB, str(base))
    before = base.read_bytes()
    commands = [f"write -q -P 2 {last} 512", "read -q -P 1 0 1M", f"read -q -P 2 {last} 512"]
    said = subprocess.run(
        [tool, *(part for command in commands for part in ("-c", command)), path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert said == ""
    assert base.read_bytes() == before
    assert not check(path).keys() & {"leaks", "corruptions"}


@pytest.mark.parametrize("length", [1, 7, 8, 9, 254, 255, 1022, 1023])
def test_a_backing_name_of_any_length_is_read_back(tmp_path: Path, length: int) -> None:
    """Whether there is such a file or not."""
    name = ("/" + "n" * 63) * 16
    path = written(tmp_path / "over.qcow2", MIB, name[:length])

    assert info(path)["backing-filename"] == name[:length]


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk", "luks", "qed", "host_device"])
def test_the_format_of_what_is_below_is_said_and_never_guessed(tmp_path: Path, kind: str) -> None:
    """A guest could write another format's header to a raw disk."""
    path = written(tmp_path / "over.qcow2", MIB, "/base", kind)

    assert info(path)["backing-filename-format"] == kind


def test_a_json_name_is_one_that_qemu_opens(base: Path, tmp_path: Path) -> None:
    """With the options that are in it."""
    name = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}})
    path = written(tmp_path / "over.qcow2", 64 * MIB, f"json:{name}")
    chain = json.loads(qemu_img("info", "-U", "--backing-chain", "--output=json", path))

    assert [each["virtual-size"] for each in chain] == [64 * MIB, 64 * MIB]


def test_bytes_of_a_name_that_are_no_text_are_kept(tmp_path: Path) -> None:
    """A file name is bytes to the system."""
    image, _ = qcow2.overlay(MIB, "/b\udcff", "raw")

    assert b"/b\xff\0" in image


@pytest.mark.parametrize(
    ("size", "name"),
    [(0, "/b"), (-1, "/b"), (2 * PIB + 1, "/b"), (MIB, ""), (MIB, "n" * 1024), (MIB, "ü" * 512)],
)
def test_what_the_format_does_not_allow_is_refused(size: int, name: str) -> None:
    """Rather than made, and found to be broken by QEMU."""
    with pytest.raises(ValueError):
        qcow2.overlay(size, name, "raw")
