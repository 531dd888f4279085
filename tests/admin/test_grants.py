"""Who may do what to which VM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.api import verbs
from exporter.api.verbs import Commit, Snapshot
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp
from tests.reach import USER, Reach, commit, grant, refused


async def test_who_has_no_grant_learns_nothing(fake: FakeQmp, reach: Reach) -> None:
    """Not even whether there is such a VM; the VM is not asked."""
    for vm in ("vm", "none"):
        asked = reach.actions.commit("bob", vm, commit())
        assert await refused(asked) == ("not-granted", f"no grant permits 'bob' to commit on {vm!r}")
    assert fake.received == []


async def test_a_grant_is_of_users_verbs_and_patterns_of_vms(
    fake: FakeQmp, reach: Reach, sockets: Path
) -> None:
    """Shell patterns, as everywhere in the configuration."""
    reach.grant(
        grant("alice", "bob", verbs=("commit",), vms=("web-*", "db[12]")),
        grant("carol", verbs=("pause",)),
    )
    asked = [
        ("alice", "commit", "web-1"), ("bob", "commit", "db2"), ("carol", "pause", "db9"),
        ("alice", "commit", "db3"), ("alice", "pause", "web-1"), ("carol", "commit", "web-1"),
        ("Alice", "commit", "web-1"), ("alice", "commit", "WEB-1"), ("", "commit", "web-1"),
    ]  # fmt: skip
    problems = []
    for user, verb, vm in asked:
        request = commit() if verb == "commit" else verbs.Pause()
        done = (
            reach.actions.commit(user, vm, request)
            if isinstance(request, Commit)
            else reach.actions.change(user, vm, "j", request)
        )
        problems.append((await refused(done))[0])

    assert problems == ["unknown-vm"] * 3 + ["not-granted"] * 6


async def test_only_grants_that_match_allow_managed_vms(fake: FakeQmp, reach: Reach) -> None:
    """What another grant of the same user allows elsewhere does not count; one that matches does."""
    plug(fake, Disk(nodes=("libvirt-2-format", "libvirt-1-format")))
    elsewhere = [
        grant(vms=("other",), allow_managed=True),
        grant(verbs=("pause",), allow_managed=True),
        grant("bob", allow_managed=True),
    ]
    reach.grant(grant(), *elsewhere)
    assert (await refused(reach.commit()))[0] == "managed-vm"
    reach.grant(grant(), grant(vms=("v*",), allow_managed=True))

    assert (await reach.commit()).command == "block-commit"


async def test_only_grants_that_match_give_directories(
    fake: FakeQmp, reach: Reach, tmp_path: Path
) -> None:
    """Several of them add up."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()

    def of(name: str, **more: Any) -> Any:
        return grant(directories=(str(tmp_path / name),), same_files=True, **more)

    reach.grant(of("a"), of("b"), of("c", vms=("other",)), grant("alice"))
    for name in ("a", "b"):
        request = Snapshot(device="disk0", file=str(tmp_path / name / "x.qcow2"))
        await reach.actions.snapshot(USER, "vm", request)
    request = Snapshot(device="disk0", file=str(tmp_path / "c/x.qcow2"))

    assert await refused(reach.actions.snapshot(USER, "vm", request)) == (
        "not-granted",
        f"no grant names the directory {tmp_path / 'c'}",
    )
    assert len(fake.changes) == 2


async def test_a_grant_that_is_gone_is_gone_at_once(fake: FakeQmp, reach: Reach) -> None:
    """As soon as the configuration was read again."""
    await reach.commit()
    reach.grant()

    assert (await refused(reach.commit()))[0] == "not-granted"
