"""A file that is replaced whole, and is on the disk afterwards, whatever ends this process or host."""

from __future__ import annotations

import os
import secrets

#: How the name ends, after that of the file, of what an end in between leaves beside it.
UNFINISHED = r"\.[0-9a-f]{8}$"


def write(path: str, text: bytes) -> None:
    """Have a file say this, and nobody else read it.

    Raises:
        OSError: it does not, or may not outlive a crash of the host.
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
    """Have a file be gone.

    Raises:
        OSError: it is not, or may come back after a crash of the host.
    """
    os.unlink(path)
    sync(os.path.dirname(path))


def sync(folder: str) -> None:
    """Have the names in a directory outlive a crash of the host."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
