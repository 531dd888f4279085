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

from exporter.admin import overlay_file
from exporter.config.settings import Grant
from exporter.errors import Refused
from exporter.qmp import schema

MIB = 1 << 20
SELF = os.getpid()


def image(filename: object, **more: Any) -> schema.Image:
    """The active image of a disk, as query-block tells it."""
    told = {"filename": str(filename), "format": "qcow2", "virtual-size": 64 * MIB, **more}
    return msgspec.json.decode(json.dumps(told), type=schema.Image)


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


def grant(*folders: object, same_files: bool = True) -> Grant:
    """A grant that names directories, of VMs that have the same files unless it says otherwise."""
    names = tuple(map(str, folders))
    return Grant(users=(), verbs=(), vms=(), directories=names, same_files=same_files)


def make(
    path: object, *grants: Grant, active: schema.Image | None = None, process: int = SELF
) -> overlay_file.CreatedFile:
    """Make a file as the grants allow it."""
    where = overlay_file.granted(str(path), grants, process)
    return overlay_file.make(str(path), where, active or image("/b"))


def refusal(path: object, *grants: Grant, **more: Any) -> str:
    """Return which problem stands in the way of making a file."""
    with pytest.raises(Refused) as caught:
        make(path, *grants, **more)
    return caught.value.problem


def checked(path: object, *grants: Grant, process: int = SELF) -> str:
    """Return which problem a dry run finds, empty for none."""
    try:
        overlay_file.check(str(path), overlay_file.granted(str(path), grants, process), image("/b"))
    except Refused as error:
        return error.problem
    return ""


# What is made.


def test_the_file_is_an_image_on_top_of_the_active_one(granted: Path, base: Path) -> None:
    """Of its size, and with nothing in it."""
    path = granted / "new.qcow2"
    make(path, grant(granted), active=image(base))
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
        make(path, grant(granted), active=image(base))
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
    make(path, grant(granted), active=image(active))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert backing(path) == active


def test_a_relative_name_is_one_of_the_directory_that_qemu_was_started_in(
    granted: Path, base: Path
) -> None:
    """In a header it would be one of the directory that the new file is in."""
    with running_in(base.parent) as process:
        path = granted / "new.qcow2"
        make(path, grant(granted), active=image("base.qcow2"), process=process)

    assert backing(path) == str(base)


def test_a_relative_name_to_a_directory_that_is_not_seen_is_refused(granted: Path) -> None:
    """No file is left, and nothing is guessed."""
    assert (
        refusal(granted / "new", grant(granted), active=image("base.qcow2"), process=0)
        == "bad-file"
    )
    assert list(granted.iterdir()) == []


def test_a_json_name_stays_as_it_is(granted: Path, base: Path) -> None:
    """QEMU opens what is below by it, with the options that are in it."""
    name = "json:" + json.dumps({"driver": "file", "filename": str(base)})
    path = granted / "new.qcow2"
    make(path, grant(granted), active=image(name, format="raw"))

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
        make(granted / "new", grant(granted), active=image(active, **more))

    assert error.value.problem == "bad-file"
    assert list(granted.iterdir()) == []


# Where it may be made.


def test_a_directory_below_a_granted_one_is_granted(granted: Path) -> None:
    """And one whose name only begins alike is not."""
    (granted / "below").mkdir()
    beside = granted.with_name("granted-too")
    beside.mkdir()

    assert checked(granted / "below" / "new", grant(granted)) == ""
    assert checked(beside / "new", grant(granted)) == "not-granted"
    assert refusal(beside / "new", grant(granted)) == "not-granted"
    assert list(beside.iterdir()) == []


def test_the_root_may_be_granted(granted: Path) -> None:
    """Then everything is."""
    assert checked(granted / "new", grant("/")) == ""


@pytest.mark.parametrize("depth", ["link", "link/below"])
def test_a_link_out_of_a_granted_directory_leads_nowhere(
    granted: Path, tmp_path: Path, depth: str
) -> None:
    """Where a path ends counts, and not how it begins."""
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    (granted / "link").symlink_to(outside)

    assert checked(granted / depth / "new", grant(granted)) == "not-granted"
    assert refusal(granted / depth / "new", grant(granted)) == "not-granted"
    assert [path for path in outside.rglob("*") if path.is_file()] == []


def test_a_link_into_a_granted_directory_is_no_name_of_it(granted: Path, tmp_path: Path) -> None:
    """What is not named is not looked at: an answer would tell what there is elsewhere."""
    link = tmp_path / "link"
    link.symlink_to(granted)

    assert checked(link / "new", grant(granted)) == "not-granted"
    assert refusal(link / "new", grant(granted)) == "not-granted"
    assert list(granted.iterdir()) == []


def test_a_grant_may_name_a_link(granted: Path, tmp_path: Path) -> None:
    """Then that is the name of the directory, and the other one is not."""
    link = tmp_path / "link"
    link.symlink_to(granted)
    make(link / "new", grant(link))

    assert [path.name for path in granted.iterdir()] == ["new"]
    assert checked(granted / "other", grant(link)) == "not-granted"


def test_a_link_from_one_granted_directory_into_another_is_followed(
    granted: Path, tmp_path: Path
) -> None:
    """If the grants name both ends by the name that was asked for, or above it."""
    (granted / "below").mkdir()
    (granted / "link").symlink_to(granted / "below")
    other = tmp_path / "other"
    other.mkdir()
    (granted / "out").symlink_to(other)

    assert checked(granted / "link" / "new", grant(granted)) == ""
    assert checked(granted / "out" / "new", grant(granted), grant(other)) == "not-granted"


@pytest.mark.parametrize("name", ["there", "gone", "private/there", "file/below"])
def test_what_there_is_outside_of_granted_directories_is_not_told(
    granted: Path, tmp_path: Path, name: str
) -> None:
    """The answer is the same, in every word, whether a directory exists or not."""
    outside = tmp_path / "outside"
    (outside / "there").mkdir(parents=True)
    (outside / "file").touch()
    with pytest.raises(Refused) as caught:
        overlay_file.granted(str(outside / name / "new"), [grant(granted)], SELF)

    assert (caught.value.problem, str(caught.value)) == (
        "not-granted", f"no grant names the directory {outside / name}",
    )  # fmt: skip


def test_nothing_is_asked_of_the_disk_to_know_what_is_granted(
    granted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories of other grants may hang, and so may the one that is asked for."""

    def hanging(*_: object, **__: object) -> None:
        raise AssertionError("the disk was asked")

    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "open", "readlink", "listdir"):
            patch.setattr(os, name, hanging)
        where = overlay_file.granted(f"{granted}/a/new", [grant("/hangs"), grant(granted)], SELF)

    assert where.directories == (str(granted),)


@pytest.mark.parametrize("named", ["{}/", "{}//", "{}/.", "{}/../granted"])
def test_the_name_of_a_granted_directory_may_be_untidy(granted: Path, named: str) -> None:
    """Whoever wrote the configuration may write it as they do in a shell."""
    assert checked(granted / "new", grant(named.format(granted))) == ""


def test_only_grants_that_name_the_directory_say_what_its_files_are(
    granted: Path, tmp_path: Path
) -> None:
    """That VMs have the same files in one directory says nothing of another."""
    where = [
        overlay_file.granted(str(granted / "new"), grants, SELF)
        for grants in (
            [grant(granted, same_files=False), grant(tmp_path / "other")],
            [grant(granted, same_files=False), grant(tmp_path)],
        )
    ]

    assert [each.same_files for each in where] == [False, True]


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

    either = grant(granted, "/")

    assert checked(name, either) == refusal(name, either) == "bad-file"
    assert list(granted.iterdir()) == []


def test_a_directory_that_is_not_there_is_refused(granted: Path) -> None:
    """It is not made."""
    assert checked(granted / "no" / "new", grant(granted)) == "bad-file"
    assert refusal(granted / "no" / "new", grant(granted)) == "bad-file"


def test_a_name_that_is_too_long_is_refused(granted: Path) -> None:
    """As the file system says."""
    assert checked(granted / ("n" * 256), grant(granted)) == "bad-file"
    assert refusal(granted / ("n" * 256), grant(granted)) == "bad-file"


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
        assert checked(granted / name, grant(granted)) == "file-exists"
        assert refusal(granted / name, grant(granted)) == "file-exists"

    assert (granted / "file").read_text() == (tmp_path / "target").read_text() == "precious"
    assert not (granted / "nowhere").exists()


def test_of_many_who_make_the_same_file_one_does(granted: Path) -> None:
    """All others are refused, and remove nothing."""
    results: list[object] = []
    start = threading.Barrier(16)

    def compete() -> None:
        start.wait()
        try:
            results.append(make(granted / "new", grant(granted)))
        except Refused as error:
            results.append(error.problem)

    threads = [threading.Thread(target=compete) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = next(each for each in results if isinstance(each, overlay_file.CreatedFile))
    found = (granted / "new").stat()

    assert results.count("file-exists") == 15
    assert (found.st_dev, found.st_ino) == (made.device, made.inode)


# Used again, if nobody has used it.

USED = "it was made for this snapshot, and is not empty any more, or the disk is not as it was"


def again(
    made: overlay_file.CreatedFile, active: schema.Image | None = None, process: int = SELF
) -> set[str]:
    """Return why a file that was made here is not used again, by a dry run and by a real one."""
    grants, said = [grant(Path(made.path).parent)], set()
    where = overlay_file.granted(made.path, grants, process)
    for ask in (overlay_file.check, overlay_file.make):
        try:
            kept = ask(made.path, where, active or image("/b"), made)
        except Refused as error:
            said.add(str(error).removeprefix(f"{made.path} exists").lstrip(":, "))
        else:
            assert kept is (None if ask is overlay_file.check else made)
            said.add("used")
    return said


def test_a_file_that_was_made_for_the_same_and_not_used_is_used(granted: Path, base: Path) -> None:
    """It is what would be made now."""
    made = make(granted / "new", grant(granted), active=image(base))
    before = (granted / "new").stat()

    assert again(made, image(base)) == {"used"}
    assert (granted / "new").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("how", ["written", "longer", "shorter"])
def test_a_file_that_somebody_wrote_to_is_not_used(granted: Path, how: str) -> None:
    """A guest may have: what it wrote would be lost."""
    path = granted / "new"
    made = make(path, grant(granted))
    length = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(length - 1)
        file.write(b"x" if how == "written" else b"\0")
        file.truncate({"longer": length + 1, "shorter": length - 1}.get(how, length))

    assert again(made) == {USED}


@pytest.mark.parametrize("now", [image("/other"), image("/b", **{"virtual-size": 65 * MIB})])
def test_a_file_for_a_disk_that_is_not_as_it_was_is_not_used(
    granted: Path, now: schema.Image
) -> None:
    """It is on another layer by now, or has another size."""
    made = make(granted / "new", grant(granted))

    assert again(made, now) == {USED}


@pytest.mark.parametrize("kind", ["copy", "link", "fifo", "folder"])
def test_a_file_that_took_its_place_is_not_used(granted: Path, kind: str) -> None:
    """Whatever is in it: it is somebody's."""
    path = granted / "new"
    made = make(path, grant(granted))
    path.rename(granted / "moved")
    if kind == "copy":
        shutil.copy(granted / "moved", path)
    elif kind == "link":
        path.symlink_to(granted / "moved")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()

    assert again(made) == {""}


def test_a_file_that_qemu_has_open_is_not_used(granted: Path) -> None:
    """It may be a layer of what no monitor shows."""
    made = make(granted / "new", grant(granted))
    with qemu(f"exec 9<{granted}/new;") as process:
        assert again(made, process=process) == {"and the VM has it open"}
    with qemu() as process:
        assert again(made, process=process) == {"used"}


# Removed, if it is still the same.


def test_a_file_that_was_made_in_vain_is_removed(granted: Path) -> None:
    """QEMU refused it."""
    made = make(granted / "new", grant(granted))
    made.remove()
    made.remove()

    assert list(granted.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_file_that_took_its_place_is_not_removed(granted: Path, kind: str) -> None:
    """Nor what a link leads to."""
    path = granted / "new"
    made = make(path, grant(granted))
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
        patch.setattr(os, "fsync", failing)
        assert refusal(granted / "new", grant(granted)) == "bad-file"

    assert list(granted.iterdir()) == []


@pytest.mark.parametrize(
    ("active", "more"),
    [("/b\0c", {}), ("/b", {"format": "f" * 70_000}), ("/b", {"format": "\u00e9"})],
    ids=["nul", "long-format", "odd-format"],
)
def test_whatever_a_vm_calls_its_image_no_file_is_left_behind(
    granted: Path, active: str, more: dict[str, Any]
) -> None:
    """No header can say such a name or format: it is refused, and is no defect."""
    assert refusal(granted / "new", grant(granted), active=image(active, **more)) == "bad-file"
    assert list(granted.iterdir()) == []


def test_a_defect_leaves_no_file_behind(granted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: the same request again would be refused for the file."""

    def failing(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(overlay_file, "_own_as", failing)
        with pytest.raises(RuntimeError):
            make(granted / "new", grant(granted))

    assert list(granted.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "problem"),
    [(0o777, "bad-file"), (0o1777, ""), (0o775, ""), (0o702, "bad-file")],
    ids=["everybody", "sticky", "group", "others"],
)
def test_a_directory_that_every_user_may_write_to_is_refused(
    granted: Path, mode: int, problem: str
) -> None:
    """Anybody could put another file in its place; a sticky bit keeps them from it."""
    granted.chmod(mode)

    assert checked(granted / "new", grant(granted)) == problem
    if problem:
        assert refusal(granted / "new", grant(granted)) == problem
    else:
        make(granted / "new", grant(granted))
    assert (granted / "new").exists() is not bool(problem)


# Where QEMU is.


def test_a_file_that_qemu_sees_is_made_for_it(granted: Path) -> None:
    """Then no grant has to say that there is one."""
    with qemu() as process:
        tried = checked(granted / "new", grant(granted, same_files=False), process=process)
        make(granted / "new", grant(granted, same_files=False), process=process)

    assert tried == ""
    assert (granted / "new").exists()


@pytest.mark.parametrize("who", ["nobody", "gone", "manager", "private"])
def test_where_nobody_can_tell_what_qemu_sees_a_grant_has_to_say_it(
    granted: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """It is in another namespace, has ended, was handed its socket, or may not be looked into."""
    with qemu() as running, running_in(granted) as manager:
        with running_in(granted) as ended:
            pass
        process = {"nobody": 0, "gone": ended, "manager": manager, "private": running}[who]
        if who == "private":
            forbidden(monkeypatch, running)
        silent, says_it = grant(granted, same_files=False), grant(granted)
        refused = [
            checked(granted / "new", silent, process=process),
            refusal(granted / "new", silent, process=process),
        ]
        left = list(granted.iterdir())
        allowed = checked(granted / "new", says_it, process=process)
        make(granted / "new", says_it, process=process)

    assert (refused, left, allowed) == (["bad-file", "bad-file"], [], "")
    assert (granted / "new").exists()


def test_why_a_file_is_refused_that_qemu_may_not_have_says_what_to_do(granted: Path) -> None:
    """By the name of the option."""
    with pytest.raises(Refused) as caught:
        make(granted / "new", grant(granted, same_files=False), process=0)

    assert str(caught.value).startswith(f"{granted}/new: ")
    assert "same_files" in str(caught.value)


@pytest.mark.parametrize("there", ["nothing", "another"])
@pytest.mark.parametrize("same_files", [True, False])
def test_a_qemu_with_other_mounts_is_not_told_of_a_file_that_it_does_not_see(
    granted: Path, there: str, same_files: bool
) -> None:
    """It would fail, or open another one; no file is left here, whatever a grant says."""
    with elsewhere(granted, there) as process:
        says = grant(granted, same_files=same_files)
        problems = [
            checked(granted / "new", says, process=process),
            refusal(granted / "new", says, process=process),
        ]

    assert problems == ["bad-file", "bad-file"]
    assert list(granted.iterdir()) == []


def test_a_qemu_with_other_mounts_that_sees_the_file_is_told_of_it(
    granted: Path, tmp_path: Path
) -> None:
    """What else is mounted there is no matter."""
    other = tmp_path / "other"
    other.mkdir()
    with elsewhere(other, "nothing") as process:
        make(granted / "new", grant(granted, same_files=False), process=process)

    assert (granted / "new").exists()


@pytest.mark.parametrize("same_files", [True, False])
def test_a_link_is_followed_where_qemu_is_and_not_from_here(
    granted: Path, tmp_path: Path, same_files: bool
) -> None:
    """The link is the same there, and what is at its end is not."""
    target = tmp_path / "target"
    target.mkdir()
    granted.rmdir()
    granted.symlink_to(target)
    with elsewhere(target, "nothing") as process:
        says = grant(granted, same_files=same_files)
        problems = [
            checked(granted / "new", says, process=process),
            refusal(granted / "new", says, process=process),
        ]

    assert problems == ["bad-file", "bad-file"]
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("target", ["below", "../{}/below", "../below/../{}/./below/"])
def test_links_are_followed_as_the_kernel_does(granted: Path, target: str) -> None:
    """One that is relative is so to where it is; one that leads to itself leads nowhere."""
    (granted / "below").mkdir()
    (granted.parent / "below").mkdir()
    (granted / "link").symlink_to(target.format(granted.name))
    with qemu() as process:
        says = grant(granted, same_files=False)
        problem = checked(granted / "link" / "new", says, process=process)

    assert problem == ""


def test_links_that_lead_in_a_circle_where_qemu_is_lead_nowhere(granted: Path) -> None:
    """They are not followed for ever."""
    (granted / "loop").mkdir()
    with elsewhere(granted, "loop") as process:
        assert checked(granted / "loop" / "new", grant(granted), process=process) == "bad-file"


def forbidden(monkeypatch: pytest.MonkeyPatch, process: int) -> None:
    """Let nobody look at the files of a process, as where another user runs it."""
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if str(path).startswith(f"/proc/{process}/"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)


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


def qemu(before: str = "", *command: str) -> _Running:
    """Run a process by the name of a QEMU, after what is done before."""
    script = f"{before} echo qemu-system-x >/proc/$$/comm; echo ready; read line || :"
    return _Running([*command, "sh", "-c", script])


def elsewhere(folder: Path, there: str) -> _Running:
    """Run a QEMU for which a folder is another one, with nothing in it or what is said."""
    tool = shutil.which("unshare")
    assert tool, "the tests need unshare"
    fill = {
        "nothing": "",
        "another": f"touch {folder}/new;",
        "loop": f"ln -s loop {folder}/loop;",
    }[there]
    mount = f"mount -t tmpfs none {folder}; {fill}"
    return qemu(mount, tool, "--mount", "--propagation", "private")


@pytest.fixture(autouse=True)
def plain_umask() -> Iterator[None]:
    """What the caller's umask is does not matter."""
    before = os.umask(0o022)
    yield
    os.umask(before)
