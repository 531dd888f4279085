"""The disks of other VMs, and the other disks of the same: each may read a layer of a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from exporter import guards, imagenames
from exporter.errors import Refused
from exporter.filename import local_path
from exporter.member import Collected, Member
from exporter.model import Snapshot
from exporter.scrape import Fleet
from exporter.turn import Turn


def of(fleet: Fleet, vm: str) -> list[Member]:
    """Return the other VMs, those that have come since the last scrape among them."""
    fleet.discover()
    return [member for member in fleet.members.values() if member.name != vm]


async def see(others: Collection[Member]) -> list[str]:
    """Look at other VMs; return which may share a layer and did not say."""
    # Not by a sweep: one that is joined does not know what a VM got since it began.
    looking = {member.start(): member for member in others}
    # Each ends by its VM's own timeout: one that is only slow may have the same layers.
    await asyncio.wait(looking)
    said = {member.name: _unsaid(member, look) for look, member in looking.items()}
    return [f"{vm} {why}: it may share a layer" for vm, why in sorted(said.items()) if why]


async def compared(
    fleet: Fleet, mine: Turn, snapshot: Snapshot, found: guards.Found, layers: guards.Range
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
    guards.unshared(snapshot, found, layers, others, known, opened)
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
    guards.unshared(snapshot, found, layers, others, known | dict(identities), opened)
    return []


def _unsaid(member: Member, look: asyncio.Task[Collected]) -> str:
    snapshot = member.outcome(look).snapshot
    why = guards.unsaid(snapshot)
    if not why and member.open_identities is None:
        why = imagenames.unseen(snapshot)
    return why
