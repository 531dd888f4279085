"""Layers that other disks read: none is written to by a commit, as far as anybody knows."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter.admin.lease import VmLease
from exporter.config.settings import Admin, Config, Group, Settings
from exporter.errors import Refused
from exporter.storage.file_stat import FileStat
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp, until
from tests.reach import USER, Reach, commit, grant, refused, run


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
