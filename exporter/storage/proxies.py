"""The QEMUs that a process stands before which answers for one: a proxy, or a manager.

Nobody says which QEMU it is; by the connections of unix sockets it is one of few. To find them
takes long, and is asked only while some storage of the host hangs. /proc and netlink answer
whatever file system does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from exporter.qmp import peer, sockdiag
from exporter.storage import open_files


class Host:
    """The QEMUs of this host and the file systems that they have files on, at one instant."""

    def __init__(self) -> None:
        """Look at all processes: this takes some milliseconds for each hundred of them."""
        sockets = {process: _sockets(process) for process in _processes()}
        self._connected = _connected(sockets)
        #: None where their files cannot be seen.
        self._devices = {process: _devices(process) for process in sockets if _is_qemu(process)}

    def has_files_on(self, devices: AbstractSet[str], relay: int) -> bool:
        """Whether a QEMU that `relay` may stand before has a file on one of these file systems.

        True as well where that cannot be seen.
        """
        found = [self._devices[process] for process in self._behind(relay)]
        return not found or any(each is None or each & devices for each in found)

    def _behind(self, relay: int) -> AbstractSet[int]:
        """Return the QEMUs that are the fewest connections away, all if there is none."""
        qemus = self._devices.keys()
        reached = {os.getpid()}  # all VMs are one connection away from us
        nearest = {relay}
        while nearest and not nearest & qemus:
            reached |= nearest
            nearest = {n for each in nearest for n in self._connected.get(each, ())} - reached
        return nearest & qemus or qemus


def _devices(process: int) -> frozenset[str] | None:
    opened = open_files.read(process)
    return None if opened is None else frozenset(file.mount.device for file in opened.files)


def _connected(sockets: Mapping[int, Iterable[int]]) -> dict[int, set[int]]:
    """Return which processes have a connection with which."""
    owners: dict[int, set[int]] = {}
    for process, inodes in sockets.items():
        for inode in inodes:
            owners.setdefault(inode, set()).add(process)
    found: dict[int, set[int]] = {}
    try:
        connections = sockdiag.sockets(sockdiag.ESTABLISHED)
    except OSError:
        return found
    for each in connections:
        for server in owners.get(each.inode, ()):
            for client in owners.get(each.peer, ()):
                found.setdefault(server, set()).add(client)
                found.setdefault(client, set()).add(server)
    return found


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _is_qemu(process: int) -> bool:
    try:
        return peer.is_qemu(process)
    except OSError:  # ended meanwhile
        return False


def _sockets(process: int) -> list[int]:
    """Return the numbers of the sockets that a process has open, none where they are not seen."""
    found = []
    for number in peer.descriptors(process):
        try:
            link = os.readlink(f"/proc/{process}/fd/{number}")
        except OSError:
            continue
        if link.startswith("socket:["):
            found.append(int(link[8:-1]))
    return found
