"""The file of a snapshot: made by this process, in a directory that was granted, and never over another.

QEMU is told to use what exists. It must be the same file to QEMU as to us, so the process at the
other end must see it, where that can be known.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from exporter.admin import qcow2
from exporter.config import Grant
from exporter.errors import Refused
from exporter.qmp import Image, peer
from exporter.redact import local_path
from exporter.storage import open_files

#: How many symbolic links a path may lead over. [path_resolution(7)]
_LINKS = 40


@dataclass(frozen=True, slots=True)
class CreatedFile:
    """A file that the exporter created."""

    path: str
    device: int
    inode: int

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            return self._is(os.lstat(self.path))
        except OSError:
            return False

    def remove(self) -> None:
        """Delete it, if the path still leads to it."""
        if self.is_there:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def holds(self, image: bytes) -> bool:
        """Whether the path still leads to it and its content is exactly this."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(file, "rb") as opened:
                found = os.fstat(file)
                same = self._is(found) and stat.S_ISREG(found.st_mode)
                return same and opened.read(len(image) + 1) == image
        except OSError:
            return False

    def _is(self, found: os.stat_result) -> bool:
        return (found.st_dev, found.st_ino) == (self.device, self.inode)


@dataclass(frozen=True, slots=True)
class AllowedLocation:
    """Where files may be created, and for which process."""

    #: The directories of grants.
    directories: tuple[str, ...]
    #: The process that will open the file.
    process: int
    #: Whether the process is said to have the same files under the same names, if that is not visible.
    same_files: bool


def granted(path: str, grants: Iterable[Grant], process: int) -> AllowedLocation:
    """Return what grants permit for a file, by its name only, without touching the disk.

    Raises:
        Refused: none of them names its directory.
    """
    folder, _ = _split(path)
    within = [
        (directory, grant)
        for grant in grants
        for directory in map(os.path.normpath, grant.directories)
        if folder == directory or folder.startswith(directory.rstrip("/") + "/")
    ]
    if not within:
        raise Refused("not-granted", f"no grant names the directory {folder}")
    directories = tuple(directory for directory, _ in within)
    return AllowedLocation(directories, process, any(grant.same_files for _, grant in within))


def check(
    path: str, where: AllowedLocation, active: Image, before: CreatedFile | None = None
) -> None:
    """Check whether a file may be created, without creating it, or whether `before` may be used.

    Raises:
        Refused: the directory is not granted, or cannot be seen from here or there, or the file
            exists.
    """
    folder, name = _split(path)
    with _opened(folder) as descriptor:
        _within(descriptor, folder, where.directories)
        _seen_by(where, folder, os.stat(descriptor))
        try:
            os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise Refused("bad-file", f"{path}: {_why(error)}") from error
        else:
            _unused(path, where, active, before)
            return
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Refused("bad-file", f"{folder} cannot be written to from here")


def make(
    path: str, where: AllowedLocation, active: Image, before: CreatedFile | None = None
) -> CreatedFile:
    """Create an empty qcow2 image on top of the image `active`, for QEMU to open.

    Where `before` was made for the same and nobody has used it, it is returned: it is the same.

    Raises:
        Refused: it cannot be made, or the QEMU would open another file.
    """
    folder, name = _split(path)
    image = _image(path, where, active)
    with _opened(folder) as descriptor:
        _within(descriptor, folder, where.directories)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(name, flags, 0o600, dir_fd=descriptor)
        except FileExistsError:
            return _unused(path, where, active, before)
        except (OSError, ValueError) as error:
            raise Refused("bad-file", f"{path}: {_why(error)}") from error
    found = os.fstat(file)
    made = CreatedFile(path, found.st_dev, found.st_ino)
    try:
        with os.fdopen(file, "wb") as opened:
            _own_as(file, active, where.process)
            # Without the zeros at its end, which need no space.
            opened.write(image.rstrip(b"\0"))
            opened.truncate(len(image))
            opened.flush()
            os.fsync(file)
        _seen_by(where, path, found)
    except BaseException as error:
        made.remove()
        if isinstance(error, OSError):
            raise Refused("bad-file", f"{path}: {_why(error)}") from error
        raise
    return made


def _image(path: str, where: AllowedLocation, active: Image) -> bytes:
    """Return the content of a new layer on top of `active`."""
    backing = _backing(active, where.process)
    size: int | None = getattr(active, "virtual_size", None)
    try:
        image, length = qcow2.overlay(size or 0, backing, active.format)
    except ValueError as error:
        raise Refused("bad-file", f"{path}: {error}") from error
    return image.ljust(length, b"\0")


def _unused(
    path: str, where: AllowedLocation, active: Image, before: CreatedFile | None
) -> CreatedFile:
    """Return the existing file, if it was created for the same request and has not been used."""
    if before is None or not before.is_there:
        raise Refused("file-exists", f"{path} exists")
    if not before.holds(_image(path, where, active)):
        raise Refused(
            "file-exists",
            f"{path} exists: it was made for this snapshot, and is not empty any more, or the disk"
            " is not as it was",
        )
    opened = open_files.read(where.process)
    real = os.path.realpath(path)
    if opened is not None and any(file.name == real for file in opened.files):
        raise Refused("file-exists", f"{path} exists, and the VM has it open")
    _seen_by(where, path, os.lstat(path))
    return before


def _split(path: str) -> tuple[str, str]:
    folder, name = os.path.split(path)
    plain = os.path.normpath(path) == path and path.startswith("/") and path.isprintable()
    # POSIX allows two leading slashes to have a meaning of their own, and so they stay.
    if not plain or path.startswith("//") or name in ("", ".", ".."):
        raise Refused(
            "bad-file", f"file must be a plain absolute path, got {quote(path, safe='/')!r}"
        )
    return folder, name


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[int]:
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise Refused(
            "bad-file", f"{folder} is not accessible to the exporter: {_why(error)}"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _within(descriptor: int, folder: str, directories: Sequence[str]) -> None:
    """Refuse a directory that no grant names, after links are resolved."""
    real = os.readlink(f"/proc/self/fd/{descriptor}")
    for granted in directories:
        root = os.path.realpath(granted)
        if real == root or real.startswith(root.rstrip("/") + "/"):
            _not_everybodys(descriptor, folder)
            return
    raise Refused("not-granted", f"no grant names the directory {folder}")


def _not_everybodys(descriptor: int, folder: str) -> None:
    """Refuse a directory in which any user could replace our file."""
    mode = os.stat(descriptor).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise Refused(
            "bad-file",
            f"every user may write to {folder}, and so replace the file before QEMU opens it:"
            " remove that permission, or set the sticky bit",
        )


def _backing(active: Image, process: int) -> str:
    """Return the name of the active image as the header of an overlay elsewhere needs it."""
    name = active.filename
    path = local_path(name)
    if path is None or path.startswith("/"):
        return name
    # Relative to the working directory of QEMU; in a header, to the directory of that image.
    try:
        return os.path.join(os.readlink(f"/proc/{process}/cwd"), path)
    except OSError as error:
        raise Refused(
            "bad-file",
            f"the disk's image has a relative name, {path}, to a directory that the exporter cannot access",
        ) from error


def _own_as(file: int, active: Image, process: int) -> None:
    """Give a file the owner of the disk's present image, so that QEMU can open it."""
    path = local_path(active.filename)
    try:
        like = os.stat(_backing(active, process)) if path else None
    except (OSError, ValueError):  # a NUL byte, which no file name contains
        like = None
    if like is None or not stat.S_ISREG(like.st_mode):
        return
    mine = os.fstat(file)
    if (like.st_uid, like.st_gid) != (mine.st_uid, mine.st_gid):
        # chown needs privileges; without them the file mode may be enough, or QEMU reports an error.
        with contextlib.suppress(OSError):
            os.fchown(file, -1, like.st_gid)
        with contextlib.suppress(OSError):
            os.fchown(file, like.st_uid, -1)
    os.fchmod(file, stat.S_IMODE(like.st_mode) & 0o666)


def _seen_by(where: AllowedLocation, path: str, here: os.stat_result) -> None:
    """Refuse a path that is, or may be, a different file or none where QEMU runs."""
    root = f"/proc/{where.process}/root"
    try:
        if not peer.is_qemu(where.process):
            raise PermissionError(errno.EPERM, "not the QEMU itself")
        os.listdir(root)
    except OSError:
        if where.same_files:
            return
        raise Refused(
            "bad-file",
            f"{path}: the exporter cannot verify that QEMU has the same files under the same names;"
            " a grant can state it (same_files)",
        ) from None
    try:
        there = os.lstat(_without_links(root, path))
    except OSError as error:
        raise Refused("bad-file", f"{path} is not accessible to QEMU") from error
    if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
        raise Refused("bad-file", f"{path} is a different file to QEMU")


def _without_links(root: str, path: str) -> str:
    """Resolve a path in another root; the kernel would follow its links into ours.

    Raises:
        OSError: nowhere, or that cannot be seen.
    """
    real, left, links = "", path.split("/")[::-1], 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            real = os.path.dirname(real).rstrip("/")
            continue
        try:
            target = os.readlink(f"{root}{real}/{name}")
        except OSError as error:
            if error.errno != errno.EINVAL:  # not a link
                raise
            real = f"{real}/{name}"
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        real = "" if target.startswith("/") else real
        left += target.split("/")[::-1]
    return root + real


def _why(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
