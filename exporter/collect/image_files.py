"""What is seen on this host of the image files of one VM: whether their storage answers, and names.

query-block stats the files that QEMU has open. Where these can be seen, they are asked for before,
and nothing else has to answer. Where not (QEMU runs as another user, in a container, behind a
proxy), the images are asked for by their names, and the network mounts that QEMU may have files on
have to answer as well.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum, auto

from msgspec.structs import replace

from exporter.model import FileName, ImageFile
from exporter.qmp import peer
from exporter.storage import (
    FileStat,
    Mount,
    OpenFile,
    OpenFiles,
    Storage,
    StorageBusy,
    StorageHangs,
    mounts,
    open_files,
)

log = logging.getLogger(__name__)

_FDSETS = "/dev/fdset/"
#: QEMU shows this for bytes of a name that are not UTF-8.
_UNREADABLE = "\ufffd"
_UNNAMED = frozenset({FileName.REMOVED, FileName.OTHER})
#: Most images without a name that are logged at once.
_LOGGED_LIMIT = 10
#: Most readings of what a QEMU has open until two are the same.
_LOOKS_LIMIT = 3


class Storages(Enum):
    """Whether the storage of a VM answers."""

    ANSWER = auto()
    #: What can be seen of it does.
    PARTLY_SEEN = auto()
    HANG = auto()
    BUSY = auto()


class ImageFiles:
    """The image files of one VM, and all others that its QEMU has open."""

    def __init__(self, vm: str, storage: Storage) -> None:
        self._vm = vm
        self._storage = storage
        #: By the path that QEMU tells. The same object until they were looked at anew.
        self.known: Mapping[str, ImageFile] = {}
        #: Whether the storage answers; None where it cannot be seen.
        self.responding: bool | None = None
        #: Why query-block must not be asked, empty where it may be.
        self.error = ""
        #: `storage.FileStat.identity` of all that QEMU has open; None where that cannot be seen.
        self.identities: frozenset[tuple[int, ...]] | None = None
        #: Images of which the next answer of query-block has to tell whether they have a name.
        self.doubted: frozenset[str] = frozenset()
        #: Images that no open file was found for, but for one that is of no other image.
        self._by_elimination: set[str] = set()
        self._opened: OpenFiles | None = None
        #: By what `_opened` is known to be still so.
        self._opened_as: tuple[int, object, tuple[str, ...]] = (0, None, ())
        self._of_open: dict[OpenFile, FileStat] = {}
        self._of_names: dict[str, FileStat] = {}
        self._warned: frozenset[tuple[str, FileName]] = frozenset()
        self._warned_unseen = False

    @property
    def opened_names(self) -> AbstractSet[str]:
        """The names of the files that QEMU has open, as it sees them; none where they are not seen."""
        return frozenset(file.name for file in self._opened.files) if self._opened else frozenset()

    def forget(self) -> None:
        """Another QEMU has taken the socket over: nothing is known of its files."""
        self.known, self.identities, self.doubted = {}, None, frozenset()
        self.responding, self.error, self._opened = None, "", None

    async def ask(
        self,
        paths: Collection[str],
        nodes: object,
        process: int,
        timeout_seconds: float,
        *,
        are_all: bool,
    ) -> Storages:
        """Ask the storage of all that query-block would stat.

        `paths` are the images that are known of the VM, `are_all` whether it certainly has no other
        files; `nodes` changes when it opens any.
        """
        self._of_names = {}
        try:
            if (opened := self._open_files(nodes, process)) is not None:
                self._of_open = await self._stat_open(opened.files, timeout_seconds)
                self._answers(bool(paths) or None)
                return Storages.ANSWER
            self._of_names = await self._storage.see(paths, timeout_seconds)
            hanging, blind = await self._network(process, timeout_seconds)
        except StorageHangs as error:
            self._hangs(str(error))
            return Storages.HANG
        except StorageBusy:
            return Storages.BUSY
        visible = [sight.visible for sight in self._of_names.values()]
        if paths:
            self._answers(any(visible) or None)
        elif self.responding is False:
            self.responding = None  # of before, and not known to be of this storage
        all_seen = are_all and all(visible)
        if hanging and not all_seen and await self._storage.may_be_of(hanging, process):
            self._withhold(
                f"{hanging[0].point} does not answer, and nobody can see from here whether"
                f" {self._vm} has files there"
            )
            return Storages.HANG
        self.error = ""
        return Storages.ANSWER if all(visible) or not blind else Storages.PARTLY_SEEN

    async def learn(
        self,
        paths: Collection[str],
        nodes: object,
        process: int,
        timeout_seconds: float,
        *,
        anew: bool,
    ) -> None:
        """Look at the images that query-block has just told of.

        `anew`: where their names lead is asked for now, for something is about to rest on it.
        """
        try:
            if (opened := self._open_files(nodes, process)) is None:
                self.identities = None
                missing = [path for path in paths if path not in self._of_names]
                self._of_names |= await self._storage.see(missing, timeout_seconds)
                found = {path: _unopened(path, self._of_names[path]) for path in paths}
            else:
                found = await self._look_until_sure(opened, paths, timeout_seconds, anew=anew)
        except StorageHangs as error:
            self._hangs(str(error))
            return
        except StorageBusy:
            return  # it comes with the next answer
        finally:
            self.known = {path: self.known[path] for path in paths if path in self.known}
        self.known = found
        if opened is not None:
            self._answers(bool(paths) or None)
        else:
            self._answers(any(self._of_names[path].visible for path in paths) or None)
        self._of_names = {}
        self._warn()

    def warn_unseen(self) -> None:
        """Log, once, that nobody can ask for all images before query-block does."""
        unseen = {
            path: "a relative name" if not path.startswith("/") else "no file that can be seen"
            for path, sight in self._of_names.items()
            if not sight.visible
        }
        if unseen and not self._warned_unseen:
            path, why = min(unseen.items())
            log.warning(
                "image files cannot be seen from here: query-block is asked only when"
                " something changed (--collector.topology=always asks all the same)",
                extra={"vm": self._vm, "file": path, "why": why, "files": len(unseen)},
            )
        self._warned_unseen = bool(unseen)

    def _open_files(self, nodes: object, process: int) -> OpenFiles | None:
        # To follow each link is dear. A file that was opened since has a number of its own, or
        # that of one whose node is gone.
        numbers = peer.descriptors(process)
        if self._opened is None or (process, nodes, numbers) != self._opened_as:
            self._opened = open_files.read(process)
            self._opened_as = (process, nodes, numbers)
        return self._opened

    async def _network(self, process: int, timeout_seconds: float) -> tuple[list[Mount], bool]:
        """Ask the network mounts on which a VM may have files whose names are not known.

        Return those that hang, and whether there may be others that could not be asked.
        """
        here = {mount.device: mount for mount in mounts.points().values() if mount.is_network}
        theirs, blind = frozenset(here), True
        try:
            if peer.is_qemu(process):
                of_qemu = mounts.of(process).values()
                theirs = frozenset(mount.device for mount in of_qemu if mount.is_network)
                blind = not theirs <= here.keys()
        except OSError:
            pass  # it cannot be seen: then it may be on any of ours
        asked = [here[device] for device in theirs if device in here]
        return await self._storage.hanging(asked, timeout_seconds), blind

    async def _stat_open(
        self, files: Collection[OpenFile], timeout_seconds: float, *, anew: bool = False
    ) -> dict[OpenFile, FileStat]:
        stats = await self._storage.see_open(files, timeout_seconds, anew=anew)
        return {file: stat for file, stat in stats.items() if file.is_seen_by(stat)}

    async def _look_until_sure(
        self, opened: OpenFiles, paths: Collection[str], timeout_seconds: float, *, anew: bool
    ) -> dict[str, ImageFile]:
        """Look again before an image is told to be removed or replaced for the first time.

        QEMU opens and closes layers while what it has open is read file by file: two readings must
        be the same. A layer may also have been closed since query-block told of it: where what else
        is open is all that speaks for a name being wrong, the next answer has to say so again. What
        is in doubt is not told, unless something is about to rest on it.
        """
        found = await self._look(opened, paths, timeout_seconds, anew=anew)
        for _ in range(_LOOKS_LIMIT):
            new, torn = self._newly_unnamed(found), self._is_torn(opened)
            if not (new or torn) or (again := open_files.read(opened.process)) is None:
                break
            before = opened
            opened, self._opened, self._of_open = again, again, {}
            found = await self._look(opened, paths, timeout_seconds, anew=True)
            if opened == before and self._newly_unnamed(found) == new and not torn:
                new &= self._by_elimination - self.doubted
                break
        else:
            new = self._newly_unnamed(found)
        if not anew:
            self.doubted = frozenset(new)
            for path in new:
                found[path] = replace(found[path], name=FileName.UNSEEN, name_valid=None)
        return found

    async def _look(
        self, opened: OpenFiles, paths: Collection[str], timeout_seconds: float, *, anew: bool
    ) -> dict[str, ImageFile]:
        """Find what each path leads to, and which of the open files it is of."""
        unseen = [file for file in opened.files if file not in self._of_open]
        self._of_open |= await self._stat_open(unseen, timeout_seconds, anew=anew)
        gone = FileStat(visible=False)
        sights = {file: self._of_open.get(file, gone) for file in opened.files}
        self.identities = frozenset(s.identity for s in sights.values() if s.identity)
        by_identity = {sight.identity: file for file, sight in sights.items() if sight.identity}
        by_name = _by_name(opened)
        places = {path: _place(path, opened) for path in paths}
        led = await self._storage.see_names(
            {
                place: None if opened.same_names else _device(by_name.get(name), opened)
                for name, place in places.values()
                if place
            },
            timeout_seconds,
            anew=anew,
        )
        names: dict[str, FileName] = {}
        files: dict[str, OpenFile | None] = {}
        for path, (name, place) in places.items():
            sight = led.get(place)
            file = by_identity.get(sight.identity) if sight and sight.identity else None
            files[path] = own = file or by_name.get(name)
            names[path] = _judge(path, sight, is_open=file is not None)
            if own and sights[own] is gone and names[path] in _UNNAMED:
                names[path] = FileName.UNSEEN
        # An image that no name leads to is one of those that no other image is.
        taken = {file.key for file in files.values() if file}
        left = {file.key: file for file in opened.files if file.is_locked and file.key not in taken}
        found = {}
        self._by_elimination = set()
        for path, own in files.items():
            file = own
            if own is None and len({each.mount.device for each in left.values()}) == 1:
                file = next(iter(left.values()))
                self._by_elimination.add(path)
            if file is None and names[path] in _UNNAMED:
                # QEMU has closed it since it told of it: the layer was merged, and removed.
                names[path] = FileName.UNSEEN
            sight = sights[file] if file else gone
            identity = sight.identity if own or len(left) == 1 else None
            found[path] = _image_file(path, names[path], sight, identity)
        return found

    def _is_torn(self, opened: OpenFiles) -> bool:
        """Whether a file was renamed, or its number used again, since the files were read."""
        return not all(file in self._of_open for file in opened.files)

    def _newly_unnamed(self, found: Mapping[str, ImageFile]) -> set[str]:
        before = {path: file.name for path, file in self.known.items()}
        return {
            path
            for path, file in found.items()
            if file.name in _UNNAMED
            and before.get(path) is not file.name
            and path.startswith("/")  # else it misleads in any case
        }

    def _answers(self, responding: bool | None) -> None:
        if self.responding is False and responding:
            log.info("storage answers again", extra={"vm": self._vm})
        self.responding = responding
        self.error = ""

    def _hangs(self, error: str) -> None:
        if self.responding is not False:
            log.warning("storage does not answer", extra={"vm": self._vm, "err": error})
        self.responding = False
        self.error = error

    def _withhold(self, error: str) -> None:
        if not self.error:
            log.warning("query-block is not asked", extra={"vm": self._vm, "err": error})
        self.error = error

    def _warn(self) -> None:
        """Log, once, each image that nobody finds by its name."""
        unnamed = frozenset(
            (path, file.name) for path, file in self.known.items() if file.name_valid == 0
        )
        for path, name in sorted(unnamed - self._warned, key=lambda each: each[0])[:_LOGGED_LIMIT]:
            why = name.value if name is not FileName.UNSEEN else FileName.RELATIVE.value
            about = {"vm": self._vm, "file": path, "why": f"its name {why}"}
            log.warning("image cannot be found by its name", extra=about)
        self._warned = unnamed


def _by_name(opened: OpenFiles) -> dict[str, OpenFile]:
    """Return the files by their names, but for names that several files have had."""
    found: dict[str, OpenFile] = {}
    several = set()
    for file in opened.files:
        if found.setdefault(file.name, file).key != file.key:
            several.add(file.name)
    return {name: file for name, file in found.items() if name not in several}


def _place(path: str, opened: OpenFiles) -> tuple[str, str]:
    """Return what the kernel may call a file, and where we are led by its name as QEMU is.

    Both are empty where that is not known.
    """
    if path.startswith(_FDSETS) or _UNREADABLE in path or "\0" in path:
        return "", ""
    if not path.startswith("/"):
        if not opened.folder:
            return "", ""
        path = os.path.join(opened.folder, path)
    place = path if opened.same_names else f"/proc/{opened.process}/root{path}"
    return os.path.normpath(path).replace("//", "/"), place


def _device(file: OpenFile | None, opened: OpenFiles) -> str:
    """Return the file system that a name in another namespace leads to, as far as is known."""
    return file.mount.device if file else f"process {opened.process}"


def _judge(path: str, led: FileStat | None, *, is_open: bool) -> FileName:
    if path.startswith(_FDSETS):
        return FileName.FDSET
    if led is None:
        return FileName.UNSEEN
    if is_open:
        return FileName.OWN if path.startswith("/") else FileName.RELATIVE
    if led.missing:
        return FileName.REMOVED
    return FileName.OTHER if led.identity else FileName.UNSEEN


def _image_file(
    path: str, name: FileName, sight: FileStat, identity: tuple[int, ...] | None
) -> ImageFile:
    valid = None if name is FileName.UNSEEN else int(name is FileName.OWN)
    # By themselves names of these kinds lead nobody else there, whatever can be seen.
    if not path.startswith("/") or path.startswith(_FDSETS):
        valid = 0
    return ImageFile(sight.size_bytes, sight.available_bytes, valid, name, identity)


def _unopened(path: str, sight: FileStat) -> ImageFile:
    """Return what is seen of an image where nobody can see which file QEMU has open."""
    name = FileName.FDSET if path.startswith(_FDSETS) else FileName.UNSEEN
    return _image_file(path, name, sight, None)
