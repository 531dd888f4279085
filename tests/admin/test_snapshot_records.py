"""The account of snapshots: the same request is carried out once, and only its own file is used for it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter.admin import atomic_file, snapshot_records
from exporter.admin.job_records import KEPT_SECONDS, JobRecords
from exporter.admin.overlay_file import granted
from exporter.admin.preconditions import Found
from exporter.admin.snapshot_records import SnapshotRecord, SnapshotRecords
from exporter.api.verbs import Snapshot
from exporter.config.settings import Grant
from exporter.errors import ConfigError, LayerLost, Refused
from exporter.model.state import Device, Node
from exporter.qmp.commands import DiskName
from exporter.qmp.schema import Image

NAME = "qbe-0123456789abcdef"
ACTIVE = msgspec.json.decode(
    b'{"filename": "/base", "format": "qcow2", "virtual-size": 67108864}', type=Image
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the account is."""
    path = tmp_path / "state"
    path.mkdir()
    return path


@pytest.fixture
def request_(tmp_path: Path) -> Snapshot:
    """A request for a file that may be made."""
    return Snapshot(device="disk0", file=str(tmp_path / "new.qcow2"))


def found(*files: str) -> Found:
    """A disk, by the files of its layers."""
    nodes = tuple(
        Node(role="format", layer=str(number), node_name=f"n{number}", file=file, image=ACTIVE)
        for number, file in enumerate(files or ("/base",))
    )
    disk = Device(device="disk0", nodes=nodes, backing_depth=None, expected_backing_depth=None)
    return Found(disk, DiskName("disk0", ""), nodes)


def prepare(account: SnapshotRecords, request: Snapshot, vm: str = "vm") -> SnapshotRecord | None:
    """Have all that is needed on the disk."""
    folder = os.path.dirname(request.file)
    grants = [Grant(users=(), verbs=(), vms=(), directories=(folder,), same_files=True)]
    where = granted(request.file, grants, 0)
    account.check(vm, request, where, found())
    return account.prepare(vm, request, "alice", account.node_name(vm, request), where, found())


def problem(ask: Any, *arguments: Any) -> tuple[str, str]:
    """Return what a request is refused with."""
    with pytest.raises(Refused) as caught:
        ask(*arguments)
    return caught.value.problem, str(caught.value)


def test_a_file_is_made_once_for_one_request(folder: Path, request_: Snapshot) -> None:
    """Also where another process made it: it is on record before the command leaves."""
    account = SnapshotRecords(str(folder))
    asked = prepare(account, request_)
    names = {account.node_name("vm", request_)}
    again = prepare(account, request_)
    later = SnapshotRecords(str(folder))

    assert asked is not None
    assert (asked.vm, asked.device, asked.file, asked.user) == (
        "vm", "disk0", request_.file, "alice",
    )  # fmt: skip
    assert (again, prepare(later, request_)) == (None, None)
    assert later.get("vm", request_) == asked
    assert {*names, later.node_name("vm", request_)} == {asked.node_name}


def test_the_file_of_one_request_is_not_that_of_another(folder: Path, request_: Snapshot) -> None:
    """Of another VM or another disk."""
    account = SnapshotRecords(str(folder))
    prepare(account, request_)
    other = msgspec.structs.replace(request_, device="disk1")

    assert problem(prepare, account, other) == ("file-exists", f"{request_.file} exists")
    assert problem(prepare, account, request_, "vm2") == ("file-exists", f"{request_.file} exists")


def test_a_disk_that_has_the_layer_was_given_it(folder: Path, request_: Snapshot) -> None:
    """Also where other layers were put on it since."""
    account = SnapshotRecords(str(folder))
    before = account.was_taken("vm", request_, found("/base"))
    prepare(account, request_)

    assert before is False
    assert account.was_taken("vm", request_, found(request_.file, "/base"))
    assert account.was_taken("vm", request_, found("/over", request_.file, "/base"))
    assert not account.was_taken("vm", request_, found("/base"))


@pytest.mark.parametrize("whose", ["nobody's", "replaced", "another-disk's"])
def test_a_layer_of_that_name_that_was_not_made_for_it_is_refused(
    folder: Path, request_: Snapshot, whose: str
) -> None:
    """A layer on top of itself would be the end of the disk."""
    account, file = SnapshotRecords(str(folder)), Path(request_.file)
    if whose == "another-disk's":
        prepare(account, msgspec.structs.replace(request_, device="disk1"))
    elif whose != "nobody's":
        prepare(account, request_)
        file.rename(file.with_suffix(".moved"))
        file.write_bytes(file.with_suffix(".moved").read_bytes())

    assert problem(account.was_taken, "vm", request_, found("/over", request_.file)) == (
        "file-exists", f"{request_.file} is layer 1 of disk0",
    )  # fmt: skip


def test_a_layer_whose_file_was_removed_is_told_as_such(folder: Path, request_: Snapshot) -> None:
    """To be told that the file exists would be no help."""
    account = SnapshotRecords(str(folder))
    prepare(account, request_)
    Path(request_.file).unlink()

    assert not account.is_there("vm", request_)
    with pytest.raises(LayerLost, match=f"^{request_.file} is layer 1 of disk0, and was removed$"):
        account.was_taken("vm", request_, found("/over", request_.file))


@pytest.mark.parametrize("known", ["by-the-answer", "by-the-chain"])
def test_a_file_that_was_a_layer_is_not_used_for_another_one(
    folder: Path, request_: Snapshot, known: str
) -> None:
    """The layer was merged: who asks again has forgotten to name another file, or to remove it."""
    account = SnapshotRecords(str(folder))
    prepare(account, request_)
    if known == "by-the-answer":
        account.note_taken("vm", request_)
    else:
        account.was_taken("vm", request_, found(request_.file, "/base"))
    says = ("file-exists", f"{request_.file} exists: it was a layer of disk0 before")

    assert problem(prepare, account, request_) == says
    assert problem(prepare, SnapshotRecords(str(folder)), request_) == says
    Path(request_.file).rename(f"{request_.file}.old")
    assert prepare(account, request_) is not None


def test_a_record_that_cannot_be_completed_stays_as_it_is(
    folder: Path, request_: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot was taken, which is what was asked for."""
    account = SnapshotRecords(str(folder))
    asked = prepare(account, request_)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        account.note_taken("vm", request_)

    assert account.get("vm", request_) == SnapshotRecords(str(folder)).get("vm", request_) == asked


def test_what_was_prepared_in_vain_is_undone(folder: Path, request_: Snapshot) -> None:
    """The file and its record; then the same request is a new one."""
    account = SnapshotRecords(str(folder))
    asked = prepare(account, request_)
    account.undo(asked)
    left = [*folder.iterdir(), account.get("vm", request_), Path(request_.file).exists()]

    assert left == [None, False]
    assert prepare(account, request_) is not None


def test_what_was_there_before_is_not_undone(folder: Path, request_: Snapshot) -> None:
    """QEMU may have the file, whatever it says at the second try."""
    account = SnapshotRecords(str(folder))
    asked = prepare(account, request_)
    account.undo(prepare(account, request_))

    assert Path(request_.file).exists()
    assert account.get("vm", request_) == asked


def test_a_name_that_is_free_again_is_taken_anew(folder: Path, request_: Snapshot) -> None:
    """The file of last time was merged and removed."""
    account = SnapshotRecords(str(folder))
    first = prepare(account, request_)
    Path(request_.file).rename(f"{request_.file}.old")
    second = prepare(account, request_)

    assert first is not None
    assert second is not None
    assert second.file_inode != first.file_inode
    assert SnapshotRecords(str(folder)).get("vm", request_) == second


@pytest.mark.parametrize("at", ["replace", "sync", "limit"])
def test_what_cannot_be_recorded_leaves_nothing(
    folder: Path, request_: Snapshot, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Neither a file nor a record: nothing was sent."""
    account = SnapshotRecords(str(folder))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if at == "limit":
            patch.setattr(snapshot_records, "ENTRIES_LIMIT", 0)
        else:
            patch.setattr(os if at == "replace" else atomic_file, at, full)
        kind, detail = problem(prepare, account, request_)
    left = [*folder.iterdir()]

    assert kind == "not-recorded"
    assert ("7 days" if at == "limit" else "No space left on device") in detail
    assert (left, Path(request_.file).exists()) == ([], False)
    assert account.get("vm", request_) is None


def test_a_request_is_forgotten_after_a_week(
    folder: Path, request_: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is then one that is there, as any other."""
    prepare(SnapshotRecords(str(folder)), request_)
    later = time.time() + KEPT_SECONDS + 60
    monkeypatch.setattr(time, "time", lambda: later)
    account = SnapshotRecords(str(folder))

    assert list(folder.iterdir()) == []
    assert problem(prepare, account, request_) == ("file-exists", f"{request_.file} exists")


def test_it_shares_a_directory_with_the_ledger(folder: Path, request_: Snapshot) -> None:
    """Neither reads what is the other's, nor does an older version of this program."""
    prepare(SnapshotRecords(str(folder)), request_)
    account = JobRecords(str(folder))

    assert account.vms() == []
    assert len(list(folder.iterdir())) == 1


def test_what_a_killed_process_left_unfinished_is_cleared_away(
    folder: Path, request_: Snapshot
) -> None:
    """And nothing else."""
    prepare(SnapshotRecords(str(folder)), request_)
    record = next(folder.iterdir())
    (folder / f"{record.name}.0123abcd").write_text("{")
    (folder / "notes.snapshot.0123abcd").write_text("")
    SnapshotRecords(str(folder))

    assert {path.name for path in folder.iterdir()} == {record.name, "notes.snapshot.0123abcd"}


def test_a_record_that_is_broken_is_named_and_nothing_starts(folder: Path) -> None:
    """To go on without it could put a layer on a disk twice."""
    (folder / "vm@1.snapshot").write_text("{")
    with pytest.raises(ConfigError) as caught:
        SnapshotRecords(str(folder))

    assert str(caught.value).startswith(f"--admin.state-directory: {folder}/vm@1.snapshot: ")
