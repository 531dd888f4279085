"""The file of a snapshot: made where it was granted, over nothing, and the same to QEMU as to us."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter import overlay, qapi
from exporter.errors import Refused

MIB = 1 << 20
SELF = os.getpid()


def image(filename: object, **more: Any) -> qapi.Image:
    """The active image of a disk, as query-block tells it."""
    told = {"filename": str(filename), "format": "qcow2", "virtual-size": 64 * MIB, **more}
    return msgspec.json.decode(json.dumps(told), type=qapi.Image)


@pytest.fixture
def granted(tmp_path: Path) -> Path:
    """A directory that a grant names."""
    path = tmp_path / "granted"
    path.mkdir()
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The file of the disk's present image."""
    path = tmp_path / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    return path


def qemu_img(*arguments: object) -> str:
    tool = shutil.which("qemu-img")
    assert tool, "the tests need qemu-img"
    return subprocess.run(
        [tool, *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def backing(path: Path) -> str:
    """Return the name of the backing file, as it stands in the header."""
    return str(json.loads(qemu_img("info", "-U", "--output=json", path))["backing-filename"])


def refusal(path: object, *folders: object, active: object = "/b", process: int = SELF) -> str:
    """Return which problem stands in the way of making a file, and of checking it alike."""
    directories = [str(folder) for folder in folders]
    with pytest.raises(Refused) as made:
        overlay.make(str(path), directories, image(active), process)
    return made.value.problem


def checked(path: object, *folders: object) -> str:
    """Return which problem a dry run finds, empty for none."""
    try:
        overlay.check(str(path), [str(folder) for folder in folders])
    except Refused as error:
        return error.problem
    return ""


# What is made.


def test_the_file_is_an_image_on_top_of_the_active_one(granted: Path, base: Path) -> None:
    """Of its size, and with nothing in it."""
    path = granted / "new.qcow2"
    overlay.make(str(path), [str(granted)], image(base), SELF)
    told = json.loads(qemu_img("info", "-U", "--output=json", path))

    assert (told["virtual-size"], told["backing-filename"]) == (64 * MIB, str(base))
    assert not json.loads(qemu_img("check", "--output=json", path)).keys() & {"leaks"}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o644, 0o755])
def test_the_file_belongs_to_whom_the_present_image_belongs_to(
    granted: Path, base: Path, mode: int
) -> None:
    """QEMU may open it if it may open the other; nobody may execute it."""
    os.chown(base, 65534, 65533)
    base.chmod(mode)
    path = granted / "new.qcow2"
    before = os.umask(0o077)
    try:
        overlay.make(str(path), [str(granted)], image(base), SELF)
    finally:
        os.umask(before)
    found = path.stat()

    assert (found.st_uid, found.st_gid) == (65534, 65533)
    assert stat.S_IMODE(found.st_mode) == mode & 0o666


@pytest.mark.parametrize("active", ["nbd://host/disk", "rbd:pool/image", "/gone.qcow2"])
def test_the_file_is_ours_alone_where_the_present_image_is_no_file_here(
    granted: Path, active: str
) -> None:
    """Nobody can tell whose it should be."""
    path = granted / "new.qcow2"
    overlay.make(str(path), [str(granted)], image(active), SELF)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert backing(path) == active


def test_a_relative_name_is_one_of_the_directory_that_qemu_was_started_in(
    granted: Path, base: Path
) -> None:
    """In a header it would be one of the directory that the new file is in."""
    with running_in(base.parent) as process:
        path = granted / "new.qcow2"
        overlay.make(str(path), [str(granted)], image("base.qcow2"), process)

    assert backing(path) == str(base)


def test_a_relative_name_to_a_directory_that_is_not_seen_is_refused(granted: Path) -> None:
    """No file is left, and nothing is guessed."""
    assert refusal(granted / "new", granted, active="base.qcow2", process=0) == "bad-file"
    assert list(granted.iterdir()) == []


def test_a_json_name_stays_as_it_is(granted: Path, base: Path) -> None:
    """QEMU opens what is below by it, with the options that are in it."""
    name = "json:" + json.dumps({"driver": "file", "filename": str(base)})
    path = granted / "new.qcow2"
    overlay.make(str(path), [str(granted)], image(name, format="raw"), SELF)

    assert json.loads(backing(path).removeprefix("json:")) == json.loads(name[5:])


@pytest.mark.parametrize(
    ("active", "more"),
    [("/" + "n" * 1023, {}), ("/b", {"virtual-size": 0}), ("/b", {"virtual-size": 1 << 52})],
)
def test_what_no_header_can_say_is_refused_before_a_file_is_made(
    granted: Path, active: str, more: dict[str, Any]
) -> None:
    """A name that is too long, and a size that is none."""
    with pytest.raises(Refused) as error:
        overlay.make(str(granted / "new"), [str(granted)], image(active, **more), SELF)

    assert error.value.problem == "bad-file"
    assert list(granted.iterdir()) == []


# Where it may be made.


def test_a_directory_below_a_granted_one_is_granted(granted: Path) -> None:
    """And one whose name only begins alike is not."""
    (granted / "below").mkdir()
    beside = granted.with_name("granted-too")
    beside.mkdir()

    assert checked(granted / "below" / "new", granted) == ""
    assert checked(beside / "new", granted) == "not-granted"
    assert refusal(beside / "new", granted) == "not-granted"
    assert list(beside.iterdir()) == []


def test_the_root_may_be_granted(granted: Path) -> None:
    """Then everything is."""
    assert checked(granted / "new", "/") == ""


@pytest.mark.parametrize("depth", ["link", "link/below"])
def test_a_link_out_of_a_granted_directory_leads_nowhere(
    granted: Path, tmp_path: Path, depth: str
) -> None:
    """Where a path ends counts, and not how it begins."""
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    (granted / "link").symlink_to(outside)

    assert checked(granted / depth / "new", granted) == "not-granted"
    assert refusal(granted / depth / "new", granted) == "not-granted"
    assert [path for path in outside.rglob("*") if path.is_file()] == []


def test_a_link_into_a_granted_directory_is_followed(granted: Path, tmp_path: Path) -> None:
    """A grant may name either."""
    link = tmp_path / "link"
    link.symlink_to(granted)
    overlay.make(str(link / "new"), [str(granted)], image("/b"), SELF)
    overlay.make(str(granted / "other"), [str(link)], image("/b"), SELF)

    assert sorted(path.name for path in granted.iterdir()) == ["new", "other"]


@pytest.mark.parametrize(
    "path",
    [
        "relative", "/", "//new", "{}/../new", "{}/./new", "{}//new", "{}/", "{}/.", "{}/..",
        "{}/a\nb", "{}/a\0b", "{}/\x1b[2J", "{}/a/../../outside",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_path_that_is_not_plain_is_refused(granted: Path, path: str) -> None:
    """QEMU and the log are told the same as was checked."""
    name = path.format(granted)

    assert checked(name, granted, "/") == refusal(name, granted, "/") == "bad-file"
    assert list(granted.iterdir()) == []


def test_a_directory_that_is_not_there_is_refused(granted: Path) -> None:
    """It is not made."""
    assert checked(granted / "no" / "new", granted) == "bad-file"
    assert refusal(granted / "no" / "new", granted) == "bad-file"


def test_a_name_that_is_too_long_is_refused(granted: Path) -> None:
    """As the file system says."""
    assert checked(granted / ("n" * 256), granted) == "bad-file"
    assert refusal(granted / ("n" * 256), granted) == "bad-file"


# Never over another.


def test_what_is_there_is_left_as_it_is(granted: Path, tmp_path: Path) -> None:
    """Files, directories, and links wherever they lead."""
    (granted / "file").write_text("precious")
    (granted / "folder").mkdir()
    (tmp_path / "target").write_text("precious")
    (granted / "link").symlink_to(tmp_path / "target")
    (granted / "dangling").symlink_to(granted / "nowhere")
    os.mkfifo(granted / "fifo")
    for name in ("file", "folder", "link", "dangling", "fifo"):
        assert checked(granted / name, granted) == "file-exists"
        assert refusal(granted / name, granted) == "file-exists"

    assert (granted / "file").read_text() == (tmp_path / "target").read_text() == "precious"
    assert not (granted / "nowhere").exists()


def test_of_many_who_make_the_same_file_one_does(granted: Path) -> None:
    """All others are refused, and remove nothing."""
    results: list[object] = []
    start = threading.Barrier(16)

    def make() -> None:
        start.wait()
        try:
            results.append(overlay.make(str(granted / "new"), [str(granted)], image("/b"), SELF))
        except Refused as error:
            results.append(error.problem)

    threads = [threading.Thread(target=make) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = next(each for each in results if isinstance(each, overlay.Made))
    found = (granted / "new").stat()

    assert results.count("file-exists") == 15
    assert (found.st_dev, found.st_ino) == (made.device, made.inode)


# Removed, if it is still the same.


def test_a_file_that_was_made_in_vain_is_removed(granted: Path) -> None:
    """QEMU refused it."""
    made = overlay.make(str(granted / "new"), [str(granted)], image("/b"), SELF)
    made.remove()
    made.remove()

    assert list(granted.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_file_that_took_its_place_is_not_removed(granted: Path, kind: str) -> None:
    """Nor what a link leads to."""
    path = granted / "new"
    made = overlay.make(str(path), [str(granted)], image("/b"), SELF)
    path.rename(granted / "moved")
    if kind == "file":
        path.write_text("precious")
    elif kind == "link":
        path.symlink_to(granted / "moved")
    else:
        path.mkdir()
    made.remove()

    assert sorted(path.name for path in granted.iterdir()) == ["moved", "new"]


def test_a_file_that_cannot_be_finished_is_removed(
    granted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request may have its name."""

    def failing(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(overlay.os, "fsync", failing)
        assert refusal(granted / "new", granted) == "bad-file"

    assert list(granted.iterdir()) == []


# Where QEMU is.


def test_a_process_that_cannot_be_seen_is_taken_to_see_what_we_see(granted: Path) -> None:
    """It is in another namespace of processes, or gone: QEMU itself says if there is no file."""
    overlay.make(str(granted / "new"), [str(granted)], image("/b"), 0)

    assert (granted / "new").exists()


@pytest.mark.parametrize("there", ["nothing", "another"])
def test_a_qemu_with_other_mounts_is_not_told_of_a_file_that_it_does_not_see(
    granted: Path, there: str
) -> None:
    """It would fail, or open another one; no file is left here."""
    with elsewhere(granted, there) as process:
        problem = refusal(granted / "new", granted, process=process)

    assert problem == "bad-file"
    assert list(granted.iterdir()) == []


def test_a_qemu_with_other_mounts_that_sees_the_file_is_told_of_it(
    granted: Path, tmp_path: Path
) -> None:
    """What else is mounted there is no matter."""
    other = tmp_path / "other"
    other.mkdir()
    with elsewhere(other, "nothing") as process:
        overlay.make(str(granted / "new"), [str(granted)], image("/b"), process)

    assert (granted / "new").exists()


class _Running:
    """A process that stands for a QEMU, until the test is done with it."""

    def __init__(self, command: list[str], cwd: Path | None = None) -> None:
        self._command, self._cwd = command, cwd

    def __enter__(self) -> int:
        self._process = subprocess.Popen(
            self._command, cwd=self._cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


def running_in(folder: Path) -> _Running:
    """Run a process in a folder."""
    return _Running(["sh", "-c", "echo ready; cat"], folder)


def elsewhere(folder: Path, there: str) -> _Running:
    """Run a process for which a folder is an empty one, or one with another file of the name."""
    tool = shutil.which("unshare")
    assert tool, "the tests need unshare"
    fill = "" if there == "nothing" else f"touch {folder}/new;"
    script = f"mount -t tmpfs none {folder}; {fill} echo ready; cat"
    return _Running([tool, "--mount", "--propagation", "private", "sh", "-c", script])


@pytest.fixture(autouse=True)
def plain_umask() -> Iterator[None]:
    """What the caller's umask is does not matter."""
    before = os.umask(0o022)
    yield
    os.umask(before)
