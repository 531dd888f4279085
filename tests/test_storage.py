"""The canary: a mount that hangs is noticed, costs one thread, and is noticed to come back."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from exporter import storage
from exporter.storage import Sight, Storage, StorageBusy, StorageHangs, look_at, mount_points
from tests.fakeqmp import until

PATIENCE = 20.0


class Eye:
    """Looks at files in place of the system calls, and blocks while it is told to."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.looks: Counter[str] = Counter()
        self.inside = 0
        self.most_inside = 0

    def __call__(self, path: str) -> Sight:
        """Look at a file of /slow or elsewhere."""
        self.looks[path] += 1
        if not path.startswith("/slow"):
            return Sight(visible=True, size_bytes=7)
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)
        self.free.wait(PATIENCE)
        self.inside -= 1
        return Sight(visible=True, size_bytes=8)


@pytest.fixture
def eye(monkeypatch: pytest.MonkeyPatch) -> Eye:
    """Two mounts, one of which can hang."""
    points = {"/": "ext4", "/slow": "nfs4", "/fast": "ext4"}
    monkeypatch.setattr(storage, "mount_points", lambda: points)
    return Eye()


@pytest.fixture
def slow(eye: Eye) -> Storage:
    """Storage seen by the eye."""
    return Storage(eye)


async def hangs(slow: Storage, *paths: str) -> str:
    """Ask in vain, and return what is said."""
    with pytest.raises(StorageHangs) as caught:
        await slow.see(paths or ["/slow/a"], 0.05)
    return str(caught.value)


async def test_storage_that_answers_is_seen(slow: Storage) -> None:
    """Each file with its mount's answer."""
    sights = await slow.see(["/slow/a", "/fast/b"], PATIENCE)

    assert {path: sight.size_bytes for path, sight in sights.items()} == {
        "/slow/a": 8,
        "/fast/b": 7,
    }


async def test_no_files_need_no_look(slow: Storage, eye: Eye) -> None:
    """And no thread."""
    assert await slow.see([], PATIENCE) == {}
    assert not eye.looks


async def test_a_mount_that_hangs_is_noticed_and_named(slow: Storage, eye: Eye) -> None:
    """Within the deadline, not after it."""
    eye.free.clear()
    said = await hangs(slow, "/fast/b", "/slow/a")
    eye.free.set()

    assert said == "/slow did not answer within 0.05 s"


async def test_a_mount_that_hangs_gets_no_second_thread(slow: Storage, eye: Eye) -> None:
    """Nor a second look: whoever asks is told at once, however long he would wait."""
    eye.free.clear()
    await hangs(slow)
    before = threading.active_count()
    for _ in range(20):
        with pytest.raises(StorageHangs, match="^/slow has not answered since an earlier scrape$"):
            await slow.see(["/slow/b"], PATIENCE)
    after = threading.active_count()
    eye.free.set()

    assert (after, eye.most_inside, eye.looks["/slow/b"]) == (before, 1, 0)


async def test_many_who_ask_at_once_share_one_thread(slow: Storage, eye: Eye) -> None:
    """A fleet on one server asks for a thousand VMs at once."""
    eye.free.clear()
    asking = [asyncio.create_task(hangs(slow, f"/slow/{number}")) for number in range(50)]
    said = await asyncio.gather(*asking)
    assert eye.most_inside == 1
    eye.free.set()
    await until(lambda: len(eye.looks) == 50 and not eye.inside)

    assert set(said) == {"/slow did not answer within 0.05 s"}
    assert eye.most_inside == 1


async def test_a_file_of_many_is_looked_at_once(slow: Storage, eye: Eye) -> None:
    """The VMs of a fleet share layers, and a server has only so many answers in a second."""
    sights = await asyncio.gather(
        *(slow.see([f"/slow/{number}", "/slow/base"], PATIENCE) for number in range(50))
    )

    assert {sight["/slow/base"].size_bytes for sight in sights} == {8}
    assert eye.looks["/slow/base"] == 1


async def test_what_was_seen_of_a_file_is_not_told_for_long(
    slow: Storage, eye: Eye, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space that is left changes."""
    monkeypatch.setattr(storage, "_RECENT_SECONDS", 0.05)
    await slow.see(["/slow/a", "/slow/base"], PATIENCE)
    await asyncio.sleep(0.06)
    await slow.see(["/slow/b", "/slow/base"], PATIENCE)

    assert eye.looks["/slow/base"] == 2


async def test_a_mount_is_asked_again_even_of_files_that_were_just_seen(
    slow: Storage, eye: Eye
) -> None:
    """That it answered a moment ago does not tell that it answers."""
    await slow.see(["/slow/a", "/slow/b"], PATIENCE)
    eye.free.clear()
    said = await hangs(slow, "/slow/a", "/slow/b")
    eye.free.set()

    assert said == "/slow did not answer within 0.05 s"


async def test_a_mount_that_is_slow_and_goes_on_answering_does_not_hang(slow: Storage) -> None:
    """A fleet on a server of a millisecond a file wants more of it than a deadline has."""

    def look(path: str) -> Sight:
        time.sleep(0.01)
        return Sight(visible=True)

    slow = Storage(look)
    asking = [slow.see([f"/slow/{number}"], 0.8) for number in range(100)]
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    kinds = Counter(type(outcome) for outcome in outcomes)

    assert kinds[dict]
    assert kinds[StorageBusy]
    assert set(kinds) == {dict, StorageBusy}
    assert not slow._mounts["/slow"].hangs


async def test_a_mount_that_hangs_costs_the_others_nothing(slow: Storage, eye: Eye) -> None:
    """Each mount has a thread of its own."""
    eye.free.clear()
    await hangs(slow)
    sights = await slow.see(["/fast/b"], PATIENCE)
    eye.free.set()

    assert sights["/fast/b"].visible


async def test_a_mount_that_answers_again_is_asked_again(slow: Storage, eye: Eye) -> None:
    """The thread that hung is the thread that asks on."""
    eye.free.clear()
    await hangs(slow)
    before = threading.active_count()
    eye.free.set()
    await until(lambda: not slow._mounts["/slow"].hangs)
    sights = await slow.see(["/slow/a"], PATIENCE)

    assert sights["/slow/a"].visible
    assert threading.active_count() == before
    assert eye.looks["/slow/a"] == 2


async def test_a_mount_that_answers_at_the_deadline_does_not_count_as_hanging_for_ever(
    slow: Storage, eye: Eye
) -> None:
    """The answer may be under way when the deadline comes, in a process that is busy."""

    def answer() -> None:
        eye.free.set()
        while eye.inside:
            time.sleep(0.001)
        time.sleep(0.05)

    loop = asyncio.get_running_loop()
    eye.free.clear()
    asking = asyncio.create_task(slow.see(["/slow/a"], 0.05))
    await asyncio.sleep(0)
    # The deadline passes while the loop is busy; then, in one round, it is noticed and answered:
    # that is in time.
    loop.call_later(0.01, time.sleep, 0.1)
    loop.call_later(0.07, answer)
    assert (await asking)["/slow/a"].visible
    assert not slow._mounts["/slow"].hangs

    assert (await slow.see(["/slow/a"], PATIENCE))["/slow/a"].visible


async def test_every_network_mount_can_be_asked(
    slow: Storage, eye: Eye, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody knows which files a VM has; local disks are not asked."""
    kinds = {
        "/": "ext4",
        "/a": "nfs",
        "/b": "fuse.glusterfs",
        "/c": "cifs",
        "/d": "xfs",
        "/e": "fuse",
        "/f": "fuseblk",
        "/g": "ceph",
        "/proc": "proc",
    }
    monkeypatch.setattr(storage, "mount_points", lambda: kinds)
    await slow.see_network(PATIENCE)

    assert sorted(eye.looks) == ["/a", "/b", "/c", "/e", "/g"]


async def test_a_network_mount_that_hangs_is_noticed(slow: Storage, eye: Eye) -> None:
    """The mount point itself is looked at."""
    eye.free.clear()
    with pytest.raises(StorageHangs, match="^/slow did not answer"):
        await slow.see_network(0.05)
    eye.free.set()


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
    assert storage._mount_of(path, ["/", "/slow", "/fast"]) == point


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

    monkeypatch.setattr(storage, "Path", redirected)
    monkeypatch.setattr(storage, "_mount_points_at", float("-inf"))

    assert mount_points() == {
        "/": "ext4",
        "/mnt/my share": "nfs4",
        "/mnt/back\\slash": "fuse.sshfs",
        "/mnt/odd\r\x0b\udcff": "xfs",
    }


def test_the_mounts_of_this_host_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always a root."""
    monkeypatch.setattr(storage, "_mount_points_at", float("-inf"))

    assert "/" in mount_points()


# The system calls.


def test_a_file_is_seen_with_the_space_of_its_file_system(tmp_path: Path) -> None:
    """As statvfs says it."""
    image = tmp_path / "a.qcow2"
    image.touch()
    space = os.statvfs(tmp_path)
    sight = look_at(str(image))

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

    monkeypatch.setattr(storage, "Path", sysfs)
    monkeypatch.setattr(storage, "_statx", lambda path: (stat.S_IFBLK, (0, 5), 99, (8, 17)))
    assert look_at(str(tmp_path)) == Sight(visible=True, identity=(8, 17))
    size.write_text("2048\n")

    assert look_at(str(tmp_path)) == Sight(visible=True, size_bytes=1048576, identity=(8, 17))
    assert asked[0] == "/sys/dev/block/8:17/size"


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/mountinfo", "/", __file__])
def test_what_the_server_says_of_a_file_is_what_stat_says(path: str) -> None:
    """The kernel's own structure is read, a member at a time."""
    state = os.stat(path)

    assert storage._statx(os.fsencode(path)) == (
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
    paths = [file, tmp_path / "hard", tmp_path / "soft", folder / "hard", f"{tmp_path}/../{tmp_path.name}/a"]
    identities = {look_at(str(path)).identity for path in paths}

    assert len(identities) == 1
    assert identities != {look_at(str(other)).identity}
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
    monkeypatch.setattr(storage, "_statx", lambda path: nodes[os.fsdecode(path)])
    one, again, other, file = (look_at(path).identity for path in nodes)

    assert one == again
    assert len({one, other, file}) == 3


@pytest.mark.parametrize("name", ["gone", "\0"])
def test_what_cannot_be_seen_is_no_file_that_is_known(tmp_path: Path, name: str) -> None:
    """Two of them are not taken for one."""
    assert look_at(str(tmp_path / name)).identity is None
    assert look_at("relative").identity is None


@pytest.mark.parametrize("name", ["gone", "file/below", ""])
def test_a_file_that_is_not_there_cannot_be_seen(tmp_path: Path, name: str) -> None:
    """It is in another namespace, as is one whose path is relative to QEMU's folder."""
    (tmp_path / "file").touch()

    assert look_at(str(tmp_path / name) if name else "relative.qcow2") == Sight(visible=False)


def test_a_path_of_any_bytes_can_be_looked_at(tmp_path: Path) -> None:
    """What QEMU shows of it may be no path at all."""
    assert look_at(str(tmp_path / "\ufffd\n")) == Sight(visible=False)
    assert look_at("/" + "x" * 10_000) == Sight(visible=True)


def test_a_path_with_a_nul_cannot_be_seen() -> None:
    """JSON has it; no file system does."""
    assert look_at("/etc\0/passwd") == Sight(visible=False)


def test_a_path_with_a_lone_surrogate_cannot_be_seen() -> None:
    """JSON has it; UTF-8 does not."""
    assert look_at("/images/\ud800.img") == Sight(visible=False)
