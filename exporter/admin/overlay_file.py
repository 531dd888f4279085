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

#: Most links that a path may lead over. [path_resolution(7)]
_LINKS = 40


@dataclass(frozen=True, slots=True)
class CreatedFile:
    """A file that was made here."""

    path: str
    device: int
    inode: int

    @property
    def is_there(self) -> bool:
        """Whether the path leads to it, and to no other file."""
        try:
            return self._is(os.lstat(self.path))
        except OSError:
            return False

    def remove(self) -> None:
        """Remove it, if it is still the same."""
        if self.is_there:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def holds(self, image: bytes) -> bool:
        """Whether it is still the same, and holds this and nothing else."""
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
    """Where files may be made, and for whom."""

    #: Directories that grants name.
    directories: tuple[str, ...]
    #: The process that is to open the file.
    process: int
    #: Whether the process has the same files under the same names, where that cannot be seen.
    same_files: bool


def granted(path: str, grants: Iterable[Grant], process: int) -> AllowedLocation:
    """Return what grants say of a file, by its name alone: nothing is asked of the disk yet.

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
    """See whether a file may be made, without making it, or whether that of `before` may be used.

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
    """Make an empty qcow2 image on top of the image `active`, for QEMU to open.

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
            # Without the zeros at its end, which need no room.
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
    """Return what a new layer on top of `active` holds."""
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
    """Return the file that is there, if it was made here for the same, and nobody has used it."""
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
    # POSIX lets two slashes at the beginning mean something else, and so they stay.
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
    """Refuse a directory that no grant names, wherever its name leads by links."""
    real = os.readlink(f"/proc/self/fd/{descriptor}")
    for granted in directories:
        root = os.path.realpath(granted)
        if real == root or real.startswith(root.rstrip("/") + "/"):
            _not_everybodys(descriptor, folder)
            return
    raise Refused("not-granted", f"no grant names the directory {folder}")


def _not_everybodys(descriptor: int, folder: str) -> None:
    """Refuse a directory in which every user may put another file in the place of ours."""
    mode = os.stat(descriptor).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise Refused(
            "bad-file",
            f"every user may write to {folder}, and so replace the file before QEMU opens it:"
            " remove that permission, or set the sticky bit",
        )


def _backing(active: Image, process: int) -> str:
    """Return the name of the active image as an overlay elsewhere has to call it."""
    name = active.filename
    path = local_path(name)
    if path is None or path.startswith("/"):
        return name
    # Relative to where QEMU was started; in a header, to where that image is.
    try:
        return os.path.join(os.readlink(f"/proc/{process}/cwd"), path)
    except OSError as error:
        raise Refused(
            "bad-file",
            f"the disk's image has a relative name, {path}, to a directory that the exporter cannot access",
        ) from error


def _own_as(file: int, active: Image, process: int) -> None:
    """Give a file to whom the disk's present image belongs, so that QEMU may open it."""
    path = local_path(active.filename)
    try:
        like = os.stat(_backing(active, process)) if path else None
    except (OSError, ValueError):  # a NUL, which no file's name has
        like = None
    if like is None or not stat.S_ISREG(like.st_mode):
        return
    mine = os.fstat(file)
    if (like.st_uid, like.st_gid) != (mine.st_uid, mine.st_gid):
        # Not allowed to all; then the mode alone may do, and else QEMU says that it does not.
        with contextlib.suppress(OSError):
            os.fchown(file, -1, like.st_gid)
        with contextlib.suppress(OSError):
            os.fchown(file, like.st_uid, -1)
    os.fchmod(file, stat.S_IMODE(like.st_mode) & 0o666)


def _seen_by(where: AllowedLocation, path: str, here: os.stat_result) -> None:
    """Refuse what is another file or directory, or none, where QEMU is, or may be."""
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
    """Return where a path leads in another root; the kernel would follow its links into ours.

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
            if error.errno != errno.EINVAL:  # it is no link
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
