"""Layers that other disks read: none is written to by a commit, as far as anybody knows."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter.admin import preconditions, shared_layers
from exporter.admin.lease import VmLease
from exporter.admin.preconditions import Range
from exporter.collect.scrape_target import ScrapeTarget
from exporter.config.settings import Admin, Config, Group, Settings
from exporter.errors import Refused
from exporter.model.state import ImageFile, Node
from exporter.storage.file_stat import FileStat
from exporter.storage.mounts import Mount
from exporter.storage.open_files import OpenFile, OpenFiles
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp, until
from tests.reach import USER, Reach, commit, grant, refused, run
from tests.snapshots import CHAIN, disk, node, vm


async def test_a_layer_of_another_vm_is_not_written_to(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """As far as scrapes know its disks, also after it went down."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "base")))
        await reach.look("other")
    await reach.look("other")

    assert await refused(reach.commit()) == (
        "shared-layer",
        "/images/base.qcow2 is layer 1 of disk0 of other too",
    )
    assert fake.changes == []


async def test_a_disk_that_another_vm_got_since_it_was_looked_at_is_seen(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """All VMs are looked at anew, for each commit, however short ago they were scraped."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        await reach.fleet.scrape(20.0)
        assert (await reach.actions.commit(USER, "vm", commit(), dry_run=True)).warnings == []
        plug(other, Disk("hot", nodes=("x", "base")))

        assert await refused(reach.commit()) == (
            "shared-layer",
            "/images/base.qcow2 is layer 1 of hot of other too",
        )
    assert fake.changes == []


async def test_one_file_that_two_vms_know_by_two_names_is_not_written_to(
    fake: FakeQmp, reach: Reach, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage tells which file a name leads to."""
    monkeypatch.setattr("exporter.storage.prober._RECENT_SECONDS", 0.0)
    reach.sight = FileStat(visible=True, identity=(8, 1, 5))
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "y"), files=("/links/x", "/links/y")))

        assert await refused(reach.commit()) == (
            "shared-layer",
            "/links/x is layer 0 of disk0 of other too",
        )
        reach.sight = FileStat(visible=True)
        assert (await reach.commit()).command == "block-commit"


async def test_a_vm_that_has_come_since_the_last_scrape_is_looked_at(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """Its socket is looked for, however short ago that was done."""
    await reach.fleet.scrape(20.0)
    async with FakeQmp(str(sockets / "new.sock")) as new:
        plug(new, Disk(nodes=("x", "base")))

        assert await refused(reach.commit()) == (
            "shared-layer",
            "/images/base.qcow2 is layer 1 of disk0 of new too",
        )


async def test_a_vm_that_is_only_slow_is_waited_for(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """On a busy host too its layers are not written to."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "base")))
        other.answering.clear()
        committing = asyncio.create_task(reach.commit())
        await until(lambda: other.received)
        asyncio.get_running_loop().call_later(1.1, other.answering.set)

        assert (await refused(committing))[0] == "shared-layer"
    assert fake.changes == []


async def test_a_vm_that_is_silent_is_waited_for_as_long_as_it_may_take_to_answer(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """It is named as any that does not answer."""
    hasty = Group(
        name="hasty", settings=Settings(timeout_seconds=0.05), sockets=(f"{sockets}/other.sock",)
    )
    patient = Group(name="patient", settings=Settings(), sockets=(f"{sockets}/vm.sock",))
    reach.fleet.reconfigure(Config(groups=(hasty, patient), admin=Admin(grants=(grant(),))))
    async with FakeQmp(str(sockets / "other.sock")) as other:
        other.greeting = None
        problem = await refused(reach.commit())

    assert problem == (
        "unseen-neighbours",
        "other does not answer (greeting_timeout): it may share a layer",
    )
    assert fake.changes == []


async def test_a_vm_whose_files_are_not_known_may_share_a_layer(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """It answers, and yet nobody can compare."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "y")))
        other.replies["query-block"] = {"error": {"class": "GenericError", "desc": "no"}}
        problem = await refused(reach.commit())

    assert problem == (
        "unseen-neighbours",
        "other does not report the files of all its disks: it may share a layer",
    )


async def test_files_that_cannot_be_looked_at_are_compared_by_name_alone(
    fake: FakeQmp, reach: Reach, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is said; a name that is the same is refused as ever."""

    async def see(self: VmLease, paths: Collection[str]) -> Any:
        assert "/mnt/y" in paths
        raise Refused("storage-hangs", "/mnt hangs")

    monkeypatch.setattr(VmLease, "identities", see)
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "y"), files=("/mnt/x", "/mnt/y")))
        told = "layers of other disks were compared by name only: /mnt hangs"
        assert await refused(reach.commit()) == ("unseen-neighbours", told)
        allowed = {"unseen_neighbours": "allow"}
        done = await reach.actions.commit(USER, "vm", commit(**allowed), dry_run=True)
        plug(other, Disk(nodes=("z", "base")))
        problem, _ = await refused(reach.commit(**allowed))

    assert done.warnings == [told]
    assert problem == "shared-layer"


async def test_a_vm_that_does_not_answer_may_share_a_layer(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """It is named; of a socket that nobody listens on there is no QEMU."""
    async with FakeQmp(str(sockets / "gone.sock")):
        pass
    async with FakeQmp(str(sockets / "odd.sock")) as odd, FakeQmp(str(sockets / "b.sock")) as b:
        odd.replies["query-status"] = b.replies["query-status"] = b"x\r\n"
        told = [
            "b does not answer (protocol): it may share a layer",
            "odd does not answer (protocol): it may share a layer",
        ]
        assert await refused(reach.commit()) == ("unseen-neighbours", "; ".join(told))
        assert (fake.changes, reach.on_disk()) == ([], [])
        done = await reach.commit(unseen_neighbours="allow")

    assert done.warnings == told
    assert done.job.status == "running"


async def test_a_grant_may_allow_neighbours_that_do_not_answer(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """A request may still say otherwise."""
    reach.grant(grant(unseen_neighbours="allow"))
    async with FakeQmp(str(sockets / "odd.sock")) as odd:
        odd.replies["query-status"] = b"x\r\n"

        assert (await refused(reach.commit(unseen_neighbours="refuse")))[0] == "unseen-neighbours"
        assert (await reach.commit()).command == "block-commit"


async def test_a_refusal_names_the_first_of_many_neighbours(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """And counts the others: a host has a thousand VMs."""
    async with AsyncExitStack() as having:
        for number in range(7):
            odd = FakeQmp(str(sockets / f"odd{number}.sock"))
            await having.enter_async_context(odd)
            odd.replies["query-status"] = b"x\r\n"
        _, detail = await refused(reach.commit())

    assert (detail.count("odd"), detail.endswith(", and 2 more")) == (5, True)


async def test_one_of_several_grants_may_allow_neighbours_that_do_not_answer(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """What one allows, another need not."""
    reach.grant(grant(), grant(unseen_neighbours="allow"))
    async with FakeQmp(str(sockets / "odd.sock")) as odd:
        odd.replies["query-status"] = b"x\r\n"

        assert (await reach.commit()).command == "block-commit"


async def test_a_vm_whose_images_have_no_names_that_tell_may_share_a_layer(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """Unless it is seen which files it has open."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "y"), files=("/images/x", "y.qcow2")))

        assert await refused(reach.commit()) == (
            "unseen-neighbours",
            "other has an image that its name does not identify, y.qcow2: it may share a layer",
        )


async def test_only_files_with_a_path_are_looked_at_to_compare_them(
    fake: FakeQmp, reach: Reach, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative name leads somewhere else from here."""
    looked: set[str] = set()

    async def see(self: VmLease, paths: Collection[str]) -> Any:
        looked.update(paths)
        return {}

    monkeypatch.setattr(VmLease, "identities", see)
    async with FakeQmp(str(sockets / "other.sock")) as other:
        plug(other, Disk(nodes=("x", "y"), files=("x.qcow2", "/mnt/y")))
        await reach.commit(unseen_neighbours="allow")

    assert looked == {"/images/top.qcow2", "/images/base.qcow2", "/mnt/y"}


async def test_a_file_that_another_vm_has_open_without_a_disk_on_it_is_not_written_to(
    fake: FakeQmp, reach: Reach, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As QEMU has it open for a job, or for a moment."""
    of_base = {"/images/base.qcow2": ImageFile(identity=(8, 1, 5))}
    opened = {"other": frozenset({(8, 1, 5)})}
    files = {"vm": of_base}
    monkeypatch.setattr(
        ScrapeTarget, "open_identities", property(lambda self: opened.get(self.name))
    )
    monkeypatch.setattr(
        ScrapeTarget, "image_files", property(lambda self: files.get(self.name, {}))
    )
    async with FakeQmp(str(sockets / "other.sock")):
        assert await refused(reach.commit()) == (
            "shared-layer",
            "/images/base.qcow2 is open in other too",
        )


# VMs that do not answer, whose open files are seen.


@dataclass(frozen=True)
class Neighbour:
    """A VM as far as it is looked at here."""

    name: str
    process: int = 7


@dataclass(frozen=True)
class Own:
    """The lease of the VM that is committed, and what is seen of its images."""

    image_files: Mapping[str, ImageFile]

    @property
    def member(self) -> Own:
        """The VM."""
        return self


def inode(number: int) -> ImageFile:
    """An image in a file of this number."""
    return ImageFile(identity=(8, 1, number))


#: top is file 1, mid 2, base 3.
SEEN = {f"/images/{name}.qcow2": inode(number) for number, name in enumerate(CHAIN, 1)}
WHOLE = Range(0, 2)


class Silent:
    """A VM that does not answer, and what a commit beside it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def told(
        self,
        opened: Sequence[str] | None,
        layers: Range = WHOLE,
        seen: Mapping[str, ImageFile] = SEEN,
        nodes: Sequence[Node] = (),
    ) -> list[str]:
        """Return what is not proven while it has files of these numbers open."""
        files = None if opened is None else OpenFiles(7, tuple(map(_opened, opened)))
        self._patch.setattr("exporter.storage.open_files.read", {7: files}.get)
        found = preconditions.device(vm(disk(*nodes)), "disk0")
        silent: Any = {Neighbour("b"): "does not answer"}
        lease: Any = Own(seen)
        return shared_layers.unproven(silent, lease, found, layers)


def _opened(number: str) -> OpenFile:
    return OpenFile(f"/proc/7/fd/{number}", "/x", number, Mount("/", "8:1", "ext4"))


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Silent:
    """A VM that does not answer."""
    return Silent(monkeypatch)


MAY = ["b does not answer: it may share a layer"]


def test_a_silent_vm_that_has_none_of_the_layers_open_shares_none(silent: Silent) -> None:
    """/proc tells it; one layer of those that are merged is enough to share."""
    assert silent.told(["9", "10"]) == []
    for number in ("1", "2", "3"):
        assert silent.told(["9", number]) == MAY


def test_a_silent_vm_may_have_layers_open_that_the_commit_does_not_touch(silent: Silent) -> None:
    """Those below the base, and those above the top."""
    assert silent.told(["3"], Range(0, 1)) == []
    assert silent.told(["1"], Range(1, 2)) == []
    assert silent.told(["2"], Range(0, 1)) == silent.told(["2"], Range(1, 2)) == MAY


def test_a_silent_vm_whose_files_are_not_seen_may_share_a_layer(silent: Silent) -> None:
    """None of them, or the number of one."""
    assert silent.told(None) == MAY
    assert silent.told(["9", ""]) == MAY


@pytest.mark.parametrize(
    "base", [None, ImageFile(), ImageFile(identity=(8, 3))], ids=["unseen", "no number", "device"]
)
def test_a_layer_that_is_not_known_by_a_file_may_be_shared(
    silent: Silent, base: ImageFile | None
) -> None:
    """A device may be open by another node of it, which is another file."""
    seen = {path: file for path, file in SEEN.items() if "base" not in path}
    seen |= {} if base is None else {"/images/base.qcow2": base}

    assert silent.told(["9"], seen=seen) == MAY
    assert silent.told(["9"], Range(0, 1), seen) == []


@pytest.mark.parametrize(
    ("data", "proven"),
    [
        ({}, True),
        ({"data-file": "/data"}, False),
        ({"data-file-raw": False}, False),
        ({"data-file-raw": True}, False),
    ],
    ids=str,
)
def test_a_layer_that_is_in_two_files_may_be_shared_by_the_other(
    silent: Silent, data: dict[str, object], proven: bool
) -> None:
    """A qcow2 with a data file, whatever its header says of that."""
    more: Any = {"format-specific": {"type": "qcow2", "data": data}}
    nodes = node(0, "top"), node(1, "mid"), node(2, "base", **more)

    assert silent.told(["9"], nodes=nodes) == ([] if proven else MAY)


def test_a_layer_without_an_image_may_be_shared(silent: Silent) -> None:
    """Nobody knows its file."""
    nodes = node(0, "top"), node(1, "mid"), Node(layer="2", role="format", node_name="base")

    assert silent.told(["9"], nodes=nodes) == MAY


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"device": "nope"}, "unknown-device"),
        ({"top": "nope"}, "unknown-layer"),
        ({"top": "base"}, "nothing-to-commit"),
    ],
    ids=str,
)
async def test_a_wrong_request_costs_other_vms_nothing(
    fake: FakeQmp, reach: Reach, sockets: Path, more: dict[str, str], problem: str
) -> None:
    """Its own VM is looked at first, for a dry run too."""
    wrong = msgspec.structs.replace(commit(), **more)
    async with FakeQmp(str(sockets / "other.sock")) as other:
        for dry_run in (True, False):
            asked = reach.actions.commit(USER, "vm", wrong, dry_run=dry_run)
            assert (await refused(asked))[0] == problem

    assert other.received == []


async def test_two_vms_that_are_committed_at_once_do_not_wait_for_each_other(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """Each looks at the other before it has its own VM for itself."""
    async with FakeQmp(str(sockets / "other.sock")) as other:
        run(other, 7, 2, disk=Disk(nodes=("x", "y")))
        done = await asyncio.gather(reach.commit("qbe-1"), reach.commit("qbe-2", "other"))

    assert [each.job.status for each in done] == ["running", "running"]
