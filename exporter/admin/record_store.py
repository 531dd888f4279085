"""Records of one kind on disk: one file per record, written before the command is sent.

Files are replaced atomically and synced, so that after any crash they say what may have been sent.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Generic, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from exporter.admin import atomic_file
from exporter.errors import ConfigError, Refused

log = logging.getLogger(__name__)

#: How long a record is kept after its last change.
KEPT_SECONDS = 7 * 24 * 3600.0
#: How many records of a kind there can be; each is a request that a grant permitted.
RECORDS_LIMIT = 10_000
_FLAG = "--admin.state-directory"
_NAME_LIMIT_BYTES = 200


class Record(Protocol):
    """What a store needs to know about a record."""

    @property
    def vm(self) -> str:
        """The VM of the record."""


T = TypeVar("T", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKind(Generic[T]):
    """Describes one kind of records."""

    type: type[T]
    #: What they record, in the plural.
    name: str
    #: Suffix of the file names.
    suffix: str
    #: Pattern of the keys.
    key_pattern: str
    #: What identifies a record among those of its VM; part of the file name.
    key: Callable[[T], str]
    #: When a record may be forgotten.
    kept_until_seconds: Callable[[T], float]
    #: Whether the known record (first) must stay although a new one comes.
    outranks: Callable[[T, T], bool] = lambda _known, _new: False


class RecordStore(Generic[T]):
    """All records of a kind, in memory and in a directory. Writing blocks on the disk."""

    def __init__(self, folder: str, kind: RecordKind[T], limit: int = RECORDS_LIMIT) -> None:
        """Read all records; create the directory if it is missing.

        Raises:
            ConfigError: the directory cannot be read or written.
        """
        self._folder = folder
        self._kind = kind
        self._limit = limit
        self._writing = threading.Lock()
        #: VM -> key -> record.
        self._records: dict[str, dict[str, T]] = {}
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._read()
            probe = os.path.join(folder, f".{secrets.token_hex(8)}")
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            os.unlink(probe)
        except OSError as error:
            raise _unusable(folder, error) from error

    def get(self, vm: str, key: str) -> T | None:
        """Return a record of a VM, None if there is none."""
        return self._records.get(vm, {}).get(key)

    def of(self, vm: str) -> list[T]:
        """Return the records of a VM."""
        return list(self._records.get(vm, {}).values())

    def vms(self) -> list[str]:
        """Return the VMs that have records."""
        return list(self._records)

    def put(self, record: T) -> None:
        """Write a record; it is on the disk when this returns.

        Raises:
            Refused: it could not be written.
        """
        with self._writing:
            self._put(record)

    def remove(self, record: T) -> None:
        """Delete a record: nothing was sent."""
        with self._writing:
            self._remove(record)

    def _put(self, record: T) -> None:
        known = self.get(record.vm, self._kind.key(record))
        if known is not None and self._kind.outranks(known, record):
            return
        if known is None:
            self._forget_old()
            if sum(map(len, self._records.values())) >= self._limit:
                what = f"{self._limit} {self._kind.name} are on record for the last 7 days"
                raise Refused("not-recorded", what)
        try:
            text = msgspec.json.format(msgspec.json.encode(record)) + b"\n"
            atomic_file.write(self._path(record), text)
        except OSError as error:
            if known is None:
                # It may be there all the same; a later process must not believe that it was sent.
                with contextlib.suppress(OSError):
                    os.unlink(self._path(record))
            raise Refused("not-recorded", f"{self._folder}: {error.strerror}") from error
        self._keep(record)

    def _remove(self, record: T) -> None:
        of_vm = self._records.get(record.vm, {})
        of_vm.pop(self._kind.key(record), None)
        if not of_vm:
            self._records.pop(record.vm, None)
        path = self._path(record)
        try:
            atomic_file.remove(path)
        except OSError as error:
            log.warning("record not removed", extra={"record": path, "err": error.strerror})

    def _read(self) -> None:
        suffix = self._kind.suffix
        unfinished = re.compile(
            f"@{self._kind.key_pattern}{re.escape(suffix)}{atomic_file.UNFINISHED}"
        )
        for name in sorted(os.listdir(self._folder)):
            path = os.path.join(self._folder, name)
            if unfinished.search(name):
                os.unlink(path)
            if not name.endswith(suffix):
                continue
            with open(path, "rb") as file:
                text = file.read()
            try:
                record = msgspec.json.decode(text, type=self._kind.type)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                # Without it a request could be carried out twice.
                raise ConfigError(f"{_FLAG}: {path}: {error}") from error
            self._keep(record)
        self._forget_old()

    def _keep(self, record: T) -> None:
        self._records.setdefault(record.vm, {})[self._kind.key(record)] = record

    def _forget_old(self) -> None:
        now = time.time()
        for record in [record for vm in self.vms() for record in self.of(vm)]:
            if self._kind.kept_until_seconds(record) < now:
                self._remove(record)

    def _path(self, record: T) -> str:
        # A quoted name never contains "@": two records never share a path.
        name = f"{_short(record.vm)}@{self._kind.key(record)}{self._kind.suffix}"
        return os.path.join(self._folder, name)


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Lock a state directory against other processes, which would know only their own records.

    The directory is created if it is missing.

    Raises:
        ConfigError: another process uses it, or it cannot be opened.
    """
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{_FLAG}: {folder}: another process uses it") from error
        except OSError as error:
            # Some network file systems cannot lock directories.
            about = {"folder": folder, "err": error.strerror}
            log.warning("state directory not locked", extra=about)
        yield
    finally:
        os.close(descriptor)


def _unusable(folder: str, error: OSError) -> ConfigError:
    return ConfigError(f"{_FLAG}: {error.filename or folder}: {error.strerror}")


def _short(vm: str) -> str:
    """Return a VM's name as the start of a file name; a long one is cut and ends with a digest."""
    name = quote(vm, safe="")
    if len(name) <= _NAME_LIMIT_BYTES - 64:
        return name
    return name[: _NAME_LIMIT_BYTES - 129] + "=" + sha256(name.encode()).hexdigest()
