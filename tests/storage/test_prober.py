"""The canary: a mount that hangs is noticed, costs one thread, and is noticed to come back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest

from exporter.storage import mounts, prober
from exporter.storage.file_stat import FileStat
from exporter.storage.mounts import Mount
from exporter.storage.open_files import OpenFile
from exporter.storage.prober import Storage, StorageBusy, StorageHangs
from tests.fakeqmp import until

PATIENCE = 20.0
ROOT, SLOW = Mount("/", "8:1", "ext4"), Mount("/slow", "0:40", "nfs4")
FAST = Mount("/fast", "8:2", "ext4")


class Eye:
    """Looks at files in place of the system calls, and blocks while it is told to."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.looks: Counter[str] = Counter()
        self.inside = 0
        self.most_inside = 0

    def __call__(self, path: str) -> FileStat:
        """Look at a file of /slow or elsewhere."""
        self.looks[path] += 1
        if not path.startswith("/slow"):
            return FileStat(visible=True, size_bytes=7)
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)
        self.free.wait(PATIENCE)
        self.inside -= 1
        return FileStat(visible=True, size_bytes=8)


@pytest.fixture
def eye(monkeypatch: pytest.MonkeyPatch) -> Eye:
    """Two mounts, one of which can hang."""
    table = {mount.point: mount for mount in (ROOT, SLOW, FAST)}
    monkeypatch.setattr(mounts, "points", lambda: table)
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
    monkeypatch.setattr(prober, "_RECENT_SECONDS", 0.05)
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

    def look(path: str) -> FileStat:
        time.sleep(0.01)
        return FileStat(visible=True)

    slow = Storage(look)
    asking = [slow.see([f"/slow/{number}"], 0.8) for number in range(100)]
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    kinds = Counter(type(outcome) for outcome in outcomes)

    assert kinds[dict]
    assert kinds[StorageBusy]
    assert set(kinds) == {dict, StorageBusy}
    assert not slow._names["0:40"].hangs


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
    await until(lambda: not slow._names["0:40"].hangs)
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
    assert not slow._names["0:40"].hangs

    assert (await slow.see(["/slow/a"], PATIENCE))["/slow/a"].visible


def opened(name: str, mount: Mount, process: int = 1, inode: str = "5") -> OpenFile:
    """A file that a process has open."""
    return OpenFile(f"{name}#{process}", name, inode, mount)


async def test_a_file_that_is_open_is_looked_at_by_its_descriptor(slow: Storage, eye: Eye) -> None:
    """Its name may lead elsewhere, or nowhere."""
    file = opened("/slow/gone", SLOW)

    assert (await slow.see_open([file], PATIENCE))[file].size_bytes == 8
    assert list(eye.looks) == ["/slow/gone#1"]


async def test_a_file_that_many_have_open_is_looked_at_once(slow: Storage, eye: Eye) -> None:
    """One of the same number in another place is another: subvolumes have numbers of their own."""

    async def see(process: int) -> None:
        own = opened(f"/slow/{process}", SLOW, process, str(process))
        shared = [opened(name, SLOW, process, "99") for name in ("/slow/base", "/slow/sub/base")]
        await slow.see_open([own, *shared], PATIENCE)

    await asyncio.gather(*map(see, range(50)))
    looks = Counter(path.partition("#")[0] for path in eye.looks.elements())

    assert (looks["/slow/base"], looks["/slow/sub/base"], len(looks)) == (1, 1, 52)


async def test_two_views_of_one_file_system_are_asked_by_one_thread(
    slow: Storage, eye: Eye
) -> None:
    """A QEMU in a mount namespace of its own has it elsewhere."""
    eye.free.clear()
    elsewhere = Mount("/slow/elsewhere", SLOW.device, SLOW.kind)
    with pytest.raises(StorageHangs, match="^/slow did not answer"):
        await slow.see_open([opened("/slow/a", SLOW)], 0.05)
    before = threading.active_count()
    with pytest.raises(StorageHangs, match="^/slow has not answered since an earlier scrape$"):
        await slow.see_open([opened("/slow/elsewhere/b", elsewhere)], PATIENCE)
    with pytest.raises(StorageHangs, match="^/slow has not answered since an earlier scrape$"):
        await slow.see(["/slow/c"], PATIENCE)
    after = threading.active_count()
    eye.free.set()

    assert (after, eye.most_inside) == (before, 1)


async def test_a_name_that_hangs_says_nothing_of_what_is_open(slow: Storage, eye: Eye) -> None:
    """It may be a link into a file system that hangs, on one that does not."""
    link, file = "/fast/link", opened("/fast/a", FAST)
    look = slow._look
    slow._look = lambda path: look("/slow/target" if path == link else path)
    eye.free.clear()
    await hangs(slow, link)
    sights = await slow.see_open([file], PATIENCE)
    eye.free.set()

    assert sights[file].visible


async def test_names_that_do_not_answer_are_left_out(slow: Storage, eye: Eye) -> None:
    """The others are told."""
    eye.free.clear()
    names = {"/slow/a": None, "/fast/b": None, "/proc/7/root/slow/c": SLOW.device}
    sights = await slow.see_names(names, 0.05)
    eye.free.set()

    assert list(sights) == ["/fast/b"]


async def test_where_a_name_leads_now_is_not_told_as_it_was_a_moment_ago(
    slow: Storage, eye: Eye
) -> None:
    """The image may have been removed since, and an action is about to rest on it."""
    names = dict.fromkeys(("/fast/a", "/fast/b"))
    await slow.see_names(names, PATIENCE)
    await slow.see_names(names, PATIENCE)
    before = dict(eye.looks)
    await slow.see_names(names, PATIENCE, anew=True)

    assert (before, eye.looks) == ({"/fast/a": 2, "/fast/b": 1}, {"/fast/a": 3, "/fast/b": 2})


async def test_network_mounts_that_hang_are_found(slow: Storage, eye: Eye) -> None:
    """The mount points themselves are looked at; one that hangs does not hide another."""
    eye.free.clear()
    other = Mount("/slow/other", "0:41", "nfs")
    found = await slow.hanging([FAST, SLOW, other], 0.05)
    eye.free.set()

    assert found == [SLOW, other]
    assert sorted(eye.looks) == ["/fast", "/slow", "/slow/other"]


async def test_who_has_files_on_a_mount_that_hangs_is_not_looked_for_in_each_scrape(
    slow: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of a host are many; but when another mount hangs, all may be otherwise."""
    hosts: list[object] = []

    class Host:
        """A host whose process 7 has files on /slow."""

        def __init__(self) -> None:
            hosts.append(self)

        def has_files_on(self, devices: frozenset[str], relay: int) -> bool:
            """Whether it has."""
            return relay == 7 and "0:40" in devices

    monkeypatch.setattr(prober, "Host", Host)
    said = await asyncio.gather(*(slow.may_be_of([SLOW], relay) for relay in (7, 8, 7, 8)))
    before = len(hosts)
    more = await slow.may_be_of([SLOW, FAST], 7)

    assert (said, more) == ([True, False, True, False], True)
    assert (before, len(hosts)) == (1, 2)
