"""Bodies of expositions: made once for all scrapers of one sweep that want the same format."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from weakref import WeakValueDictionary

from exporter.collect import Collected
from exporter.expose import FamilyBytes, exposition

#: OpenMetrics, gzip, with the metrics of the process.
Format = tuple[bool, bool, bool]


class Body:
    """A body, made or being made."""

    def __init__(self, collected: Sequence[Collected], blobs: Sequence[FamilyBytes], how: Format):
        self.collected = collected
        openmetrics, gzip, process = how
        self._making = asyncio.ensure_future(
            asyncio.to_thread(
                exposition.encoded, blobs, openmetrics=openmetrics, process=process, gzip=gzip
            )
        )

    async def made(self) -> tuple[list[bytes], bool]:
        """Return its parts, and whether they are compressed."""
        # A client that hangs up must not take it away from the others.
        return await asyncio.shield(self._making)


class Bodies:
    """The newest body of each format, while a client has it."""

    def __init__(self) -> None:
        self._newest: WeakValueDictionary[Format, Body] = WeakValueDictionary()

    def find(self, collected: Sequence[Collected], how: Format) -> Body | None:
        """Return the body of the same answers of VMs, if there is one."""
        body = self._newest.get(how)
        return body if body is not None and _equal(body.collected, collected) else None

    def make(
        self, collected: Sequence[Collected], blobs: Sequence[FamilyBytes], how: Format
    ) -> Body:
        """Begin to make a body."""
        body = self._newest[how] = Body(collected, blobs, how)
        return body


def _equal(ours: Sequence[Collected], theirs: Sequence[Collected]) -> bool:
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same(one: Collected, other: Collected) -> bool:
    # Of a VM that is still being asked, each scrape is told how long it has waited.
    late = one.snapshot.reason == other.snapshot.reason == "timeout"
    return one is other or (late and one.snapshot.vm == other.snapshot.vm)
