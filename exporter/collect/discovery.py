"""Where the sockets are: from globs and names to targets, each with a name of its own."""

from __future__ import annotations

import codecs
import errno
import glob
import logging
import os
import re
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from msgspec import Struct

from exporter.config import Config, Group, Settings

log = logging.getLogger(__name__)
_MAGIC = re.compile(r"[*?\[]")


class Target(Struct, frozen=True, kw_only=True):
    """A monitor socket and how it is collected."""

    #: The `vm` label.
    vm: str
    socket: str
    group: str
    settings: Settings


class Discovery:
    """The targets as they are now; a name stays with the socket that had it first."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.targets: dict[str, Target] = {}
        #: Sockets left out because another one has their name.
        self.conflicts: tuple[str, ...] = ()
        self._unreadable: frozenset[str] = frozenset()
        #: What was made of each name and group, so that a socket that stays is the same target.
        self._made: dict[tuple[str, str, int], Target | None] = {}
        self._made_by = config

    def refresh(self) -> None:
        """Look again. A globbed socket that is gone is no longer a target."""
        candidates: dict[str, Target] = {}
        trouble = _trouble(self.config)
        before = self._made if self._made_by is self.config else {}
        self._made, self._made_by = {}, self.config
        for socket, vm, number in _all(
            self.config, trouble, [t.socket for t in self.targets.values()]
        ):
            found = (socket, vm, number)
            made = (
                before[found]
                if found in before
                else _target(self.config.groups[number], *found[:2])
            )
            self._made[found] = made
            if made is not None:
                candidates.setdefault(socket, made)
        known = [t.socket for t in self.targets.values() if t.socket in candidates]
        new = sorted(candidates.keys() - set(known))
        targets: dict[str, Target] = {}
        conflicts = []
        for socket in (*known, *new):
            target = candidates[socket]
            if targets.setdefault(target.vm, target) is not target:
                conflicts.append(socket)
        for socket in conflicts:
            if socket not in self.conflicts:
                vm = candidates[socket].vm
                log.warning(
                    "socket left out: another one has its name",
                    extra={
                        "vm": vm,
                        "socket": printable(socket),
                        "kept": printable(targets[vm].socket),
                    },
                )
        self.conflicts = tuple(conflicts)
        self.targets = targets
        self._say_unreadable(trouble)

    def _say_unreadable(self, trouble: dict[str, str]) -> None:
        """Log folders that cannot be listed, once: a glob finds nothing there and says nothing."""
        for folder in sorted(trouble.keys() - self._unreadable):
            log.warning(
                "folder cannot be listed",
                extra={"folder": printable(folder), "err": trouble[folder]},
            )
        self._unreadable = frozenset(trouble)


def printable(path: str) -> str:
    """Return a path with each byte that is not UTF-8 as %XX.

    >>> printable("web\\udcff")
    'web%FF'
    """
    return os.fsencode(path).decode("utf-8", "percent")


def _percent(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"%{byte:02X}" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("percent", _percent)


def _folder(pattern: str) -> str:
    return os.path.dirname(_MAGIC.split(pattern)[0])


def _trouble(config: Config) -> dict[str, str]:
    """Return each folder that is there and cannot be listed, with the reason."""
    folders = {_folder(pattern) for group in config.groups for pattern in group.sockets}
    return {folder: why for folder in folders if (why := _why_not_listed(folder or os.curdir))}


def _why_not_listed(folder: str) -> str:
    try:
        os.scandir(folder).close()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return error.strerror or type(error).__name__
    return "" if os.access(folder, os.X_OK) else os.strerror(errno.EACCES)


def _matches(pattern: str, socket: str) -> bool:
    return pattern.count("/") == socket.count("/") and fnmatchcase(socket, pattern)


def _all(
    config: Config, trouble: Collection[str], known: Collection[str]
) -> Iterator[tuple[str, str, int]]:
    """Yield every socket with the name that it was given, if any, and the number of its group.

    A glob whose folder cannot be listed has the sockets known before.
    """
    # A socket that is named is what its name says, whatever glob matches it as well.
    for number, group in enumerate(config.groups):
        for target in group.targets:
            yield target.socket, target.vm, number
    for number, group in enumerate(config.groups):
        for pattern in group.sockets:
            found = glob.iglob(pattern)
            if _folder(pattern) in trouble:
                found = iter({*found, *(s for s in known if _matches(pattern, s))})
            for socket in found:
                yield socket, "", number


def _target(group: Group, socket: str, vm: str) -> Target | None:
    """Return a target, None where the pattern of its group finds no name for it."""
    if name := vm or _name(socket, group):
        return Target(vm=name, socket=socket, group=group.name, settings=group.settings)
    return None


def _name(socket: str, group: Group) -> str:
    if group.pattern is None:
        return printable(os.path.splitext(os.path.basename(socket))[0])
    match = group.pattern.search(socket)
    return printable(match["vm"] or "") if match else ""
