"""Atomic replacement of small files: afterwards they survive a crash of the process or the host."""

from __future__ import annotations

import os
import secrets

#: Suffix, as a pattern, of the temporary file that a crash in between leaves behind.
UNFINISHED = r"\.[0-9a-f]{8}$"


def write(path: str, text: bytes) -> None:
    """Atomically write a file that only this user can read, and fsync it.

    Raises:
        OSError: it was not written, or may not survive a crash of the host.
    """
    new = f"{path}.{secrets.token_hex(4)}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        os.unlink(new)
        raise
    sync(os.path.dirname(path))


def remove(path: str) -> None:
    """Delete a file and fsync its directory.

    Raises:
        OSError: it was not deleted, or may reappear after a crash of the host.
    """
    os.unlink(path)
    sync(os.path.dirname(path))


def sync(folder: str) -> None:
    """Fsync a directory, so that the names in it survive a crash of the host."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
