"""The account: whatever happens to the process, it says what may have been sent."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from exporter.admin import atomic_file, job_records
from exporter.admin.job_records import KEPT_SECONDS, OPEN_SECONDS, JobRecord, JobRecords
from exporter.errors import ConfigError, Refused
from exporter.jobs.outcomes import End

DAY = 24 * 3600.0


def entry(job_id: str = "qbe-a", vm: str = "vm", **more: Any) -> JobRecord:
    """A request as it is recorded before its command leaves."""
    known = {"requested_timestamp_seconds": time.time(), **more}
    request = {"action": "commit", "device": "disk0"}
    return JobRecord(
        vm=vm, job_id=job_id, job_type="commit", device="disk0", user="u", request=request, **known
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the account will be."""
    return tmp_path / "state"


def entries(account: JobRecords) -> list[JobRecord]:
    """Return all that is on record."""
    return [each for vm in account.vms() for each in account.of(vm)]


def reopened(folder: Path) -> dict[tuple[str, str], JobRecord]:
    """What another process reads there."""
    return {(each.vm, each.job_id): each for each in entries(JobRecords(str(folder)))}


def failing(*_: Any, **__: Any) -> Any:
    """Fail as a broken disk does."""
    raise OSError(errno.EIO, "Input/output error")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_entry_is_read_back_by_another_process(folder: Path) -> None:
    """With all that is known of it."""
    told = entry(chain=["top", "base"], top=0, base=1, kept_by_qemu=True, started=True)
    JobRecords(str(folder)).put(told)

    assert reopened(folder) == {("vm", "qbe-a"): told}


def test_an_entry_that_was_replaced_is_read_as_it_was_last(folder: Path) -> None:
    """The outcome takes the place of the request."""
    account = JobRecords(str(folder))
    account.put(entry())
    ended = entry().with_end(End("commit", "disk0", "completed", time.time(), ""))
    account.put(ended)

    assert reopened(folder) == {("vm", "qbe-a"): ended}
    assert account.get("vm", "qbe-a") == ended


def test_an_outcome_is_not_lost_to_what_was_seen_before_it(folder: Path) -> None:
    """A look that was made while the job ran may be recorded after the job's end is."""
    account = JobRecords(str(folder))
    account.put(entry())
    ended = entry().with_end(End("commit", "disk0", "failed", time.time(), "e"))
    account.put(ended)
    account.put(entry(started=True))

    assert account.get("vm", "qbe-a") == ended
    assert reopened(folder) == {("vm", "qbe-a"): ended}


def test_an_entry_that_was_removed_is_gone(folder: Path) -> None:
    """QEMU refused: the id is free."""
    account = JobRecords(str(folder))
    account.put(entry())
    account.remove(entry())

    assert account.get("vm", "qbe-a") is None
    assert reopened(folder) == {}


def test_an_entry_is_not_removed_while_another_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are done in threads, and what one finds the other must not change."""
    account = JobRecords(str(folder))
    account.put(entry())
    alone, real = [], os.unlink

    def unlink(path: str) -> None:
        alone.append(not account._writing.acquire(blocking=False))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        account.remove(entry())
    account.put(entry("qbe-b"))

    assert alone == [True]
    assert list(reopened(folder)) == [("vm", "qbe-b")]


def test_nobody_else_can_read_it(folder: Path) -> None:
    """Neither the directory nor a file in it, whatever the umask."""
    before = os.umask(0)
    try:
        JobRecords(str(folder)).put(entry())
    finally:
        os.umask(before)

    assert mode(folder) == 0o700
    assert [mode(path) for path in folder.iterdir()] == [0o600]


# The process ends in the middle of a write.


class Killed(BaseException):
    """The process ends."""


@pytest.mark.parametrize("at", ["open", "fsync", "replace"])
def test_a_write_that_does_not_end_leaves_the_entry_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Wherever it ends, and what it leaves behind is cleared away by the next process."""
    account = JobRecords(str(folder))
    account.put(entry())
    real = getattr(os, at)

    def killed(*arguments: Any, **more: Any) -> Any:
        if at == "open":
            os.close(real(*arguments, **more))
        raise Killed(at)

    with monkeypatch.context() as patch:
        patch.setattr(os, at, killed)
        with pytest.raises(Killed):
            account.put(entry(started=True))
    left = len(list(folder.iterdir()))
    found = reopened(folder)[("vm", "qbe-a")]

    assert left == 2
    assert found.started is False
    assert len(list(folder.iterdir())) == 1


def test_a_write_that_is_not_synced_to_its_end_has_happened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is in its place; only a crash of the host could undo that."""
    account = JobRecords(str(folder))

    def killed(_: str) -> None:
        raise Killed("sync")

    with monkeypatch.context() as patch:
        patch.setattr(atomic_file, "sync", killed)
        with pytest.raises(Killed):
            account.put(entry())

    assert list(reopened(folder)) == [("vm", "qbe-a")]


def test_the_file_is_on_the_disk_before_it_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First its content, then its name, then the directory."""
    account = JobRecords(str(folder))
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(*arguments: Any, real: Any = real, name: str = name) -> Any:
            done.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, noted)
    account.put(entry())

    assert done == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("at", ["open", "fsync", "replace"])
def test_a_write_that_fails_is_refused_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The request may be made again, also of the next process."""
    account = JobRecords(str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(os, at, failing)
        with pytest.raises(Refused) as refusal:
            account.put(entry())

    assert refusal.value.problem == "not-recorded"
    assert "Input/output error" in str(refusal.value)
    assert account.get("vm", "qbe-a") is None
    assert list(folder.iterdir()) == []


def test_a_first_write_whose_directory_cannot_be_synced_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next process would take a request that was refused for one that was sent."""
    account = JobRecords(str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(atomic_file, "sync", failing)
        with pytest.raises(Refused):
            account.put(entry())

    assert reopened(folder) == {}


def test_a_later_write_that_fails_keeps_the_entry(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may have been sent stays on record."""
    account = JobRecords(str(folder))
    account.put(entry())
    with monkeypatch.context() as patch:
        patch.setattr(atomic_file, "sync", failing)
        with pytest.raises(Refused):
            account.put(entry(started=True))
    kept = account.get("vm", "qbe-a")

    assert kept is not None
    assert kept.started is False
    assert list(reopened(folder)) == [("vm", "qbe-a")]


# What is found at the start.


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b'{"vm": "vm"}', b"\xff\xfe", b"[" * 100_000, bytes(64)],
    ids=["empty", "cut", "null", "list", "half", "no-utf-8", "deep", "zeros"],
)
def test_a_file_that_is_broken_is_named_and_nothing_starts(folder: Path, text: bytes) -> None:
    """To go on without it could start a job for a second time."""
    JobRecords(str(folder)).put(entry("qbe-good"))
    broken = folder / "vm@qbe-bad.json"
    broken.write_bytes(text)

    with pytest.raises(ConfigError) as error:
        JobRecords(str(folder))
    assert str(broken) in str(error.value)


def test_a_directory_in_the_place_of_a_file_is_named(folder: Path) -> None:
    """What cannot be read is no reason to go on without it."""
    odd = folder / "vm@qbe-a.json"
    odd.mkdir(parents=True)

    with pytest.raises(ConfigError) as error:
        JobRecords(str(folder))
    assert str(odd) in str(error.value)


def test_a_state_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    """The flag is named too."""
    path = tmp_path / "state"
    path.write_text("")

    with pytest.raises(ConfigError) as error:
        JobRecords(str(path))
    assert str(error.value) == f"--admin.state-directory: {path}: File exists"


def test_files_of_others_are_left_alone(folder: Path) -> None:
    """Only what this program itself left unfinished is cleared away."""
    folder.mkdir()
    others = {"README", "notes.json.12345678", "vm@qbe-a.json.bak", ".hidden"}
    for name in others:
        (folder / name).write_text("")
    found = reopened(folder)

    assert found == {}
    assert {path.name for path in folder.iterdir()} == others


# How long it is kept.


@pytest.mark.parametrize("more", [{"outcome": "unknown"}, {"outcome": "failed"}])
def test_what_is_done_is_forgotten_after_a_week(folder: Path, more: dict[str, Any]) -> None:
    """In memory and on the disk, at the start and when something new is recorded."""
    old, young = time.time() - KEPT_SECONDS - 1, time.time() - KEPT_SECONDS + 60
    account = JobRecords(str(folder))
    account.put(entry("qbe-old", requested_timestamp_seconds=old, **more))
    account.put(entry("qbe-young", requested_timestamp_seconds=young, **more))
    account.put(entry("qbe-new", **more))

    assert {each.job_id for each in entries(account)} == {"qbe-young", "qbe-new"}
    assert {job_id for _, job_id in reopened(folder)} == {"qbe-young", "qbe-new"}


def test_a_week_is_counted_from_the_end_of_a_job(folder: Path) -> None:
    """A job may take longer than that."""
    asked, ended = time.time() - 30 * DAY, time.time() - DAY
    told = entry(requested_timestamp_seconds=asked)
    account = JobRecords(str(folder))
    account.put(told.with_end(End("commit", "disk0", "completed", ended, "")))

    assert list(reopened(folder)) == [("vm", "qbe-a")]


def test_a_job_that_has_not_ended_is_not_forgotten_after_a_week(folder: Path) -> None:
    """Nobody would record its outcome, or let go of it."""
    account = JobRecords(str(folder))
    old = time.time() - KEPT_SECONDS - DAY
    account.put(entry(requested_timestamp_seconds=old, started=True))
    account.put(entry("qbe-other"))

    assert {job_id for _, job_id in reopened(folder)} == {"qbe-a", "qbe-other"}


def test_a_job_whose_vm_is_gone_is_not_waited_for_for_ever(folder: Path) -> None:
    """The account does not fill with them."""
    account = JobRecords(str(folder))
    account.put(entry(requested_timestamp_seconds=time.time() - OPEN_SECONDS - 1, started=True))

    assert reopened(folder) == {}


def test_there_is_a_limit_to_what_is_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is refused, and what is on record can still be changed."""
    monkeypatch.setattr(job_records, "ENTRIES_LIMIT", 2)
    account = JobRecords(str(folder))
    account.put(entry("qbe-a"))
    account.put(entry("qbe-b"))
    with pytest.raises(Refused) as refusal:
        account.put(entry("qbe-c"))
    account.put(entry("qbe-b", started=True))

    assert refusal.value.problem == "not-recorded"
    assert account.get("vm", "qbe-c") is None


# Names.

LONG = "x" * 255
NAMES = [
    "a/b", "../../etc/passwd", ".", "..", "...", "-rf", "a b", "a\nb", "vm@qbe-a", "%2F", "/", "~",
    "müller", "虚拟机", "\U0001f600" * 60, LONG, LONG * 10, LONG + "a", LONG + "b", "x" * 136, "x" * 137,
    "VM", "vm", "a.json", "a\0b",
]  # fmt: skip


def test_every_name_of_a_vm_has_a_file_of_its_own_in_the_directory(folder: Path) -> None:
    """Whatever is in it, and however long it is."""
    account = JobRecords(str(folder))
    job_id = "qbe-" + "j" * 59
    for name in NAMES:
        account.put(entry(job_id, vm=name))
    found = reopened(folder)
    inside = sorted(path.name for path in folder.parent.rglob("*") if path.is_file())

    assert found.keys() == {(name, job_id) for name in NAMES}
    assert len(inside) == len(NAMES) == len(list(folder.iterdir()))
    assert max(len(os.fsencode(name)) for name in inside) <= 255


def test_a_name_that_looks_like_a_shortened_one_is_another(folder: Path) -> None:
    """A digest that a name itself ends with is no digest of a longer one."""
    account = JobRecords(str(folder))
    account.put(entry(vm=LONG))
    short = next(folder.iterdir()).name.rpartition("@")[0]
    account.put(entry(vm=short))
    account.put(entry(vm=short.replace("=", "~")))

    assert len(reopened(folder)) == len(list(folder.iterdir())) == 3


# What is to be done about an entry.


@pytest.mark.parametrize(
    ("more", "is_open"),
    [
        ({}, True),
        ({"started": True}, True),
        ({"outcome": "unknown"}, False),
        ({"outcome": "completed", "started": True}, False),
        ({"outcome": "completed", "started": True, "kept_by_qemu": True}, True),
        ({"outcome": "unknown", "started": True, "kept_by_qemu": True}, False),
        ({"outcome": "failed", "started": True, "kept_by_qemu": True, "dismissed": True}, False),
    ],
)
def test_an_entry_is_open_until_its_job_is_known_to_be_done_with(
    folder: Path, more: dict[str, Any], is_open: bool
) -> None:
    """Its outcome is on record, and QEMU has let go of it."""
    account = JobRecords(str(folder))
    account.put(entry(**more))

    assert bool(account.open("vm")) is is_open
    assert account.open("other") == []


def test_an_outcome_that_is_unknown_is_no_end() -> None:
    """What is found out later about the job is more than that."""
    ended = time.time()

    assert entry(outcome="unknown", ended_timestamp_seconds=ended).end is None
    assert entry(outcome="failed", error="e", ended_timestamp_seconds=ended).end == End(
        "commit", "disk0", "failed", ended, "e"
    )


def test_a_directory_that_another_process_uses_is_refused(folder: Path) -> None:
    """Each would know only its own entries; it is free again when the other one has ended."""
    code = "import sys; from exporter.admin import JobRecords; JobRecords(sys.argv[1]); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match="^--admin.state-directory: .*: another process"):
            JobRecords(str(folder))
        other.communicate(b"\n")

    assert entries(JobRecords(str(folder))) == []
