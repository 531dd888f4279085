"""Finds the QEMUs that may be behind a process that answers for one: a proxy, or a manager.

Nothing says which QEMU it is, but the connections of unix sockets narrow it down. Finding them
takes long, so it is done only while some storage of the host hangs. /proc and netlink answer even
then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from exporter.qmp import peer, sockdiag
from exporter.storage import open_files


class Host:
    """The QEMUs of this host at one instant, and the file systems that they have files on."""

    def __init__(self) -> None:
        """Inspect all processes: this takes some milliseconds per hundred of them."""
        sockets = {process: _sockets(process) for process in _processes()}
        self._connected = _connected(sockets)
        #: None for those whose files cannot be seen.
        self._devices = {process: _devices(process) for process in sockets if _is_qemu(process)}

    def has_files_on(self, devices: AbstractSet[str], relay: int) -> bool:
        """Whether a QEMU that may be behind `relay` has a file on one of these file systems.

        Also True if that cannot be seen.
        """
        found = [self._devices[process] for process in self._behind(relay)]
        return not found or any(each is None or each & devices for each in found)

    def _behind(self, relay: int) -> AbstractSet[int]:
        """Return the QEMUs that are the fewest connections away, or all QEMUs if none is connected."""
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
    """Return, for each process, the processes that it is connected to."""
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
    """Return the inode numbers of a process's open sockets; empty if they cannot be seen."""
    found = []
    for number in peer.descriptors(process):
        try:
            link = os.readlink(f"/proc/{process}/fd/{number}")
        except OSError:
            continue
        if link.startswith("socket:["):
            found.append(int(link[8:-1]))
    return found
