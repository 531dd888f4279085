"""The canary: a mount that hangs is noticed, costs one thread, and is noticed to come back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest

from exporter import mounts, storage
from exporter.sight import Sight
from exporter.storage import Storage, StorageBusy, StorageHangs
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
    monkeypatch.setattr(mounts, "points", lambda: points)
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
    monkeypatch.setattr(mounts, "points", lambda: kinds)
    await slow.see_network(PATIENCE)

    assert sorted(eye.looks) == ["/a", "/b", "/c", "/e", "/g"]


async def test_a_network_mount_that_hangs_is_noticed(slow: Storage, eye: Eye) -> None:
    """The mount point itself is looked at."""
    eye.free.clear()
    with pytest.raises(StorageHangs, match="^/slow did not answer"):
        await slow.see_network(0.05)
    eye.free.set()
