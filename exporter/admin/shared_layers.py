"""The disks of other VMs, and the other disks of the same: each may read a layer of a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from exporter.admin import image_names, preconditions
from exporter.admin.lease import VmLease
from exporter.collect import Collected, Fleet, ScrapeTarget
from exporter.errors import Refused
from exporter.model import Node, VmState
from exporter.redact import local_path
from exporter.storage import open_files

#: The identity of a file: major and minor number of its file system, and its own. [`storage.FileStat`]
_OF_FILE = 3


def of(fleet: Fleet, vm: str) -> list[ScrapeTarget]:
    """Return the other VMs, those that have come since the last scrape among them."""
    fleet.discover()
    return [member for member in fleet.members.values() if member.name != vm]


async def see(others: Collection[ScrapeTarget]) -> dict[ScrapeTarget, str]:
    """Look at other VMs; return those that did not say which layers they have, and why."""
    # Not by a sweep: one that is joined does not know what a VM got since it began.
    looking = {member.start(): member for member in others}
    # Each ends by its VM's own timeout: one that is only slow may have the same layers.
    await asyncio.wait(looking)
    said = {member: _unsaid(member, look) for look, member in looking.items()}
    return {member: why for member, why in said.items() if why}


def unproven(
    unseen: Mapping[ScrapeTarget, str],
    mine: VmLease,
    found: preconditions.Found,
    layers: preconditions.Range,
) -> list[str]:
    """Return which of the VMs that did not say may share a layer of a commit, a sentence for each.

    A QEMU that does not answer still shows in /proc which files it has open: one that has none of
    the layers shares none.
    """
    inodes = _inodes(mine.member, found.layers[layers.top : layers.base + 1])
    return [
        f"{member.name} {why}: it may share a layer"
        for member, why in sorted(unseen.items(), key=lambda each: each[0].name)
        if inodes is None or open_files.may_have(member.process, inodes)
    ]


async def compared(
    fleet: Fleet,
    mine: VmLease,
    snapshot: VmState,
    found: preconditions.Found,
    layers: preconditions.Range,
) -> list[str]:
    """See that no other disk reads a layer that is written to; return what could not be compared.

    Raises:
        Refused: one does.
    """
    others = [
        (member.name, device)
        for member in fleet.members.values()
        for device in (snapshot.devices if member.name == snapshot.vm else member.known_devices)
    ]
    each = fleet.members.values()
    opened = {m.name: files for m in each if (files := m.open_identities) is not None}
    known: dict[Any, object] = {
        (member.name, path): file.identity
        for member in each
        for path, file in member.image_files.items()
        if file.identity
    }
    preconditions.unshared(snapshot, found, layers, others, known, opened)
    paths = {
        path
        for _, device in others
        for node in device.nodes
        if node.image and (path := local_path(node.image.filename)) and path.startswith("/")
    }
    try:
        identities = await mine.identities(paths)
    except Refused as error:
        return [f"layers of other disks were compared by name alone: {error}"]
    preconditions.unshared(snapshot, found, layers, others, known | dict(identities), opened)
    return []


def _inodes(member: ScrapeTarget, layers: Sequence[Node]) -> frozenset[int] | None:
    """Return the numbers of the files of layers; None where these are not all that they are in."""
    found = set()
    for node in layers:
        image = node.image
        data = image.format_specific.data if image and image.format_specific else None
        path = local_path(image.filename) if image else None
        file = member.image_files.get(path) if path else None
        has_data_file = data is not None and (data.data_file or data.data_file_raw is not None)
        # A device, whose identity is shorter, may be open by a node of another number.
        if file is None or file.identity is None or len(file.identity) != _OF_FILE or has_data_file:
            return None
        found.add(file.identity[-1])
    return frozenset(found)


def _unsaid(member: ScrapeTarget, look: asyncio.Task[Collected]) -> str:
    snapshot = member.outcome(look).snapshot
    why = preconditions.unsaid(snapshot)
    if not why and member.open_identities is None:
        why = image_names.unseen(snapshot)
    return why
