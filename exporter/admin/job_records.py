"""The account of jobs that were asked for: one file for each id, written before the command leaves.

A file is replaced whole and synced, so that whatever happens to this process or host, it says what
may have been sent. It is kept for 7 days after the last change.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import threading
import time
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from exporter.admin import atomic_file
from exporter.api import Outcome
from exporter.errors import ConfigError, Refused
from exporter.jobs import End

log = logging.getLogger(__name__)

#: How long the same id with the same request is known as such.
KEPT_SECONDS = 7 * 24 * 3600.0
#: How long a job is waited for that has not ended, or is in QEMU yet: its VM may be gone for good.
OPEN_SECONDS = 90 * 24 * 3600.0
#: Most entries: each is a request that a user was granted.
ENTRIES_LIMIT = 10_000
_SUFFIX = ".json"
#: The directories that this process has to itself, (device, inode) -> descriptor.
_held: dict[tuple[int, int], int] = {}
_NAME_LIMIT_BYTES = 200
#: A file that was not replaced whole, as this program or its host ended.
_UNFINISHED = re.compile(r"@qbe-[^@]*\.json" + atomic_file.UNFINISHED)


class JobRecord(Struct, kw_only=True, frozen=True):
    """A job that was asked for, and what became of it."""

    vm: str
    job_id: str
    job_type: str
    device: str
    user: str
    #: What was asked for, without the id.
    request: dict[str, Any]
    requested_timestamp_seconds: float
    #: Whether QEMU was seen to have the job, or said that it does.
    started: bool = False
    #: Whether the job stays in QEMU until it is dismissed.
    kept_by_qemu: bool = False
    #: The layers' node names, `0` first, and which of them it works on.
    chain: list[str] = []
    top: int | None = None
    base: int | None = None
    outcome: Outcome | None = None
    error: str = ""
    ended_timestamp_seconds: float | None = None
    dismissed: bool = False
    #: When it was last seen to run, to the day.
    seen_timestamp_seconds: float = 0.0

    @property
    def changed_timestamp_seconds(self) -> float:
        """When something last became of it."""
        ended = self.ended_timestamp_seconds or 0.0
        return max(self.requested_timestamp_seconds, self.seen_timestamp_seconds, ended)

    @property
    def open(self) -> bool:
        """Whether something is to be done about it yet."""
        return self.outcome is None or (
            self.kept_by_qemu and self.started and not self.dismissed and self.outcome != "unknown"
        )

    @property
    def end(self) -> End | None:
        """How the job ended, None where that is not known."""
        if self.outcome in (None, "unknown") or self.ended_timestamp_seconds is None:
            return None
        at = self.ended_timestamp_seconds
        return End(self.job_type, self.device, self.outcome, at, self.error)

    def with_end(self, end: End, *, dismissed: bool = False) -> JobRecord:
        """Return the entry of a job that ended."""
        return msgspec.structs.replace(
            self,
            started=True,
            outcome=end.result,
            error=end.error,
            ended_timestamp_seconds=end.timestamp_seconds,
            dismissed=dismissed or self.dismissed,
        )


class JobRecords:
    """All entries, in memory and in a directory."""

    def __init__(self, folder: str) -> None:
        """Read what is there.

        Raises:
            ConfigError: the directory cannot be read or written.
        """
        self._folder = folder
        self._writing = threading.Lock()
        #: VM -> job id -> entry.
        self._entries: dict[str, dict[str, JobRecord]] = {}
        where = "--admin.state-directory"
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._lock()
            self._read()
            probe = os.path.join(folder, f".{secrets.token_hex(8)}")
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            os.unlink(probe)
        except OSError as error:
            raise ConfigError(f"{where}: {error.filename or folder}: {error.strerror}") from error

    def get(self, vm: str, job_id: str) -> JobRecord | None:
        """Return the entry of a job."""
        return self._entries.get(vm, {}).get(job_id)

    def of(self, vm: str) -> list[JobRecord]:
        """Return the entries of a VM."""
        return list(self._entries.get(vm, {}).values())

    def vms(self) -> list[str]:
        """Return the VMs that there are entries of."""
        return list(self._entries)

    def open(self, vm: str) -> list[JobRecord]:
        """Return the entries of a VM that something is to be done about yet."""
        return [entry for entry in self.of(vm) if entry.open]

    def put(self, entry: JobRecord) -> None:
        """Write an entry; it is on the disk when this returns.

        Raises:
            Refused: it could not be written.
        """
        with self._writing:
            self._put(entry)

    def _put(self, entry: JobRecord) -> None:
        known = self.get(entry.vm, entry.job_id)
        if known is not None and known.outcome and not entry.outcome:
            return  # what was seen before it ended, and comes late
        if known is None:
            self._forget_old()
            if sum(map(len, self._entries.values())) >= ENTRIES_LIMIT:
                raise Refused(
                    "not-recorded", f"{ENTRIES_LIMIT} requests are on record for the last 7 days"
                )
        try:
            text = msgspec.json.format(msgspec.json.encode(entry)) + b"\n"
            atomic_file.write(self._path(entry.vm, entry.job_id), text)
        except OSError as error:
            if known is None:
                # It may be there all the same; the next process must not take it for sent.
                with contextlib.suppress(OSError):
                    os.unlink(self._path(entry.vm, entry.job_id))
            raise Refused("not-recorded", f"{self._folder}: {error.strerror}") from error
        self._keep(entry)

    def remove(self, entry: JobRecord) -> None:
        """Forget an entry: nothing came of it."""
        with self._writing:
            self._remove(entry)

    def _remove(self, entry: JobRecord) -> None:
        of_vm = self._entries.get(entry.vm, {})
        of_vm.pop(entry.job_id, None)
        if not of_vm:
            self._entries.pop(entry.vm, None)
        try:
            atomic_file.remove(self._path(entry.vm, entry.job_id))
        except OSError as error:
            log.warning("record not removed", extra={"job_id": entry.job_id, "err": error.strerror})

    def _lock(self) -> None:
        """Keep other processes out until this one ends: each would know only its own entries."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino) in _held:
            os.close(descriptor)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"--admin.state-directory: {self._folder}: another process uses it"
            ) from error
        except OSError as error:
            # Some network file systems lock no directories.
            log.warning(
                "state directory not locked", extra={"folder": self._folder, "err": error.strerror}
            )
        _held[found.st_dev, found.st_ino] = descriptor

    def _read(self) -> None:
        for name in sorted(os.listdir(self._folder)):
            path = os.path.join(self._folder, name)
            if _UNFINISHED.search(name):
                os.unlink(path)
            if not name.endswith(_SUFFIX):
                continue
            with open(path, "rb") as file:
                text = file.read()
            try:
                entry = msgspec.json.decode(text, type=JobRecord)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                # To go on without it could start a job for a second time.
                raise ConfigError(f"--admin.state-directory: {path}: {error}") from error
            self._keep(entry)
        self._forget_old()

    def _keep(self, entry: JobRecord) -> None:
        self._entries.setdefault(entry.vm, {})[entry.job_id] = entry

    def _forget_old(self) -> None:
        now = time.time()
        for entry in [entry for vm in self.vms() for entry in self.of(vm)]:
            kept = OPEN_SECONDS if entry.open else KEPT_SECONDS
            if entry.changed_timestamp_seconds < now - kept:
                self._remove(entry)

    def _path(self, vm: str, job_id: str) -> str:
        # "@" is in no quoted name: two entries never have one path.
        return os.path.join(self._folder, f"{short(vm)}@{job_id}{_SUFFIX}")


def short(vm: str) -> str:
    """Return a VM as a file's name may begin with it; a long one ends with its digest."""
    name = quote(vm, safe="")
    if len(name) <= _NAME_LIMIT_BYTES - 64:
        return name
    return name[: _NAME_LIMIT_BYTES - 129] + "=" + sha256(name.encode()).hexdigest()
