"""What query-block knows of one VM, and when it may be asked again.

query-block stats every image file on QEMU's main loop, so it is asked seldom, and never while the
storage does not answer (`storage`): on first contact, when the chains changed, when an event says
so, and when the last answer is old.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any
from zlib import crc32

from exporter import chain as chains
from exporter import nodes, parse, peer, qapi, queries
from exporter.client import Answers
from exporter.config import Settings
from exporter.identity import key
from exporter.model import Space
from exporter.parse import Topology
from exporter.sight import Sight
from exporter.storage import Storage, StorageBusy, StorageHangs

log = logging.getLogger(__name__)

#: Longest that the storage may take to say that it is there.
CANARY_SECONDS = 1.0
#: What comes from query-block is dropped when it is older than this many times its max-age.
_STALE_AGES = 3
#: Events after which a device or image is not what query-block said.
EVENTS = frozenset(
    {
        "BLOCK_IMAGE_CORRUPTED",
        "BLOCK_IO_ERROR",
        "BLOCK_JOB_CANCELLED",
        "BLOCK_JOB_COMPLETED",
        "BLOCK_WRITE_THRESHOLD",
        "DEVICE_TRAY_MOVED",
        "RESUME",
    }
)

#: `chain.Walk.names`: all devices and nodes.
NodeNames = tuple[str, ...]


class TopologyCache:
    """The last answer of query-block of one VM."""

    def __init__(self, vm: str, settings: Settings, storage: Storage) -> None:
        self._vm = vm
        self._settings = settings
        self._storage = storage
        self._topology: Topology | None = None
        self._files: frozenset[str] = frozenset()
        #: What the storage of each image file has, by the file's path.
        self._space: Mapping[str, Space] = {}
        self._node_names: NodeNames = ()
        self._asked_at = self._due_at = float("-inf")
        #: Something happened since: the next scrape asks.
        self._outdated = False
        #: Something happened since query-block was last asked; its answer may be of before.
        self._happened = False
        self._disagreed: NodeNames | None = None
        #: The chains of which query-block must not be asked.
        self._refused: NodeNames | None = None
        self._all_visible = True
        #: The files that QEMU had open, and by what these were known.
        self._opened: frozenset[str] | None = None
        self._opened_as: tuple[int, NodeNames, tuple[str, ...]] = (0, (), ())
        #: What was seen before query-block was asked.
        self._sights: dict[str, Sight] = {}
        #: When query-block last answered, seconds since 1970.
        self.timestamp: float | None = None
        #: Whether the storage of the image files answers; None where they cannot be seen.
        self.responding: bool | None = None

    def note(self, event: str) -> None:
        """Take an event into account."""
        if event in EVENTS:
            self.outdate()

    def outdate(self) -> None:
        """Ask in the next scrape: something happened."""
        self._outdated = self._happened = True

    def forget(self, *, another: bool) -> None:
        """Know nothing: the connection is new, and it is `another` QEMU, as far as can be seen."""
        self._topology = self.timestamp = self._refused = None
        if another:
            self.responding = self._opened = None

    def current(self) -> Topology | None:
        """Return what is known, None where it is too old to be shown."""
        age = time.monotonic() - self._asked_at
        return (
            self._topology if age <= _STALE_AGES * self._settings.topology_max_age_seconds else None
        )

    def space(self) -> Mapping[str, Space]:
        """Return what the storage of each image file has, as long as `current` is known."""
        return self._space if self.current() else {}

    def entries(self) -> list[qapi.BlockStats]:
        """Return the devices of query-block, for a QEMU that has no query-blockstats."""
        topology = self.current()
        return [chains.without_counters(b) for b in topology.blocks.values()] if topology else []

    @property
    def closed(self) -> AbstractSet[tuple[str, str]]:
        """The devices whose root node had no driver any more, and that node's name."""
        return self._topology.closed if self._topology else frozenset()

    def known(self, node_names: NodeNames) -> bool:
        """Whether what is known is of exactly these chains: all that a flat answer leaves out."""
        return self._topology is not None and node_names == self._node_names

    def is_due(self, node_names: NodeNames) -> bool:
        """Whether query-block should be asked now, given the chains of query-blockstats."""
        mode = self._settings.topology
        if mode == "never":
            return False
        if node_names == self._refused:
            return self.is_old
        if self._topology is None or self._outdated or node_names != self._node_names:
            return True
        return self.is_old

    def refuse(self, node_names: NodeNames) -> None:
        """Take query-block as not to be asked until the chains change, or for max-age."""
        self._refused = node_names
        self._due_at = time.monotonic() + self._settings.topology_max_age_seconds

    @property
    def is_old(self) -> bool:
        """Whether the last answer is older than max-age, or what of it this VM waits at first."""
        return time.monotonic() >= self._due_at

    async def may_ask(self, node_names: NodeNames, process: int, timeout_seconds: float) -> bool:
        """Ask the storage first: whether query-block would not hang in it.

        The files that `process`, the QEMU, has open are asked for beside the known images: it has
        more (data files, the children of a quorum) than query-block names. Where they cannot be
        seen, every network mount of this host is asked. The images follow, as they are known by
        name: one may be a link into a mount that hangs, and it is that mount that hangs.
        """
        self._happened = False
        self._sights = {}
        files = self._files if self._topology else frozenset()
        timeout = min(CANARY_SECONDS, timeout_seconds)
        try:
            sights: dict[str, Sight] = {}
            if (opened := self._open_files(node_names, process)) is None:
                await self._storage.see_network(timeout)
            else:
                sights = await self._storage.see(opened, timeout)
            sights |= await self._storage.see(files - sights.keys(), timeout)
        except StorageHangs as error:
            if self.responding is not False:
                log.warning("storage does not answer", extra={"vm": self._vm, "err": str(error)})
            self.responding = False
            return self._settings.topology == "always"
        except StorageBusy:
            return self._settings.topology == "always"
        self._sights = sights
        if self.known(node_names):
            # Of other chains, some files may be gone by right: `put` looks at those that are left.
            self._saw({path: sights[path] for path in files})
        if self._settings.topology == "auto" and self.known(node_names) and not self._outdated:
            if not self._all_visible:
                # Looked for again after as long: a mount may have come.
                self._due_at = time.monotonic() + self._settings.topology_max_age_seconds
            return self._all_visible
        return True

    def _open_files(self, node_names: NodeNames, process: int) -> frozenset[str] | None:
        # To follow each link is dear. A file that was opened since has a number of its own, or
        # that of one whose node is gone.
        numbers = peer.descriptors(process) if self._opened is not None else ()
        if self._opened is None or (process, node_names, numbers) != self._opened_as:
            self._opened = peer.open_files(process)
            self._opened_as = (process, node_names, numbers)
        return self._opened

    async def put(
        self,
        blocks: Sequence[qapi.BlockInfo],
        names: NodeNames,
        limits: Mapping[str, qapi.Limits],
        timeout_seconds: float,
        *,
        agreed: bool,
        closed: AbstractSet[tuple[str, str]] = frozenset(),
    ) -> None:
        """Keep an answer, with what the storage of its files says of itself.

        `agreed`: whether query-blockstats saw the same chains; `closed` as for `agree`.
        """
        by_key = {key(info): info for info in blocks}
        # A chain that goes on disagreeing is one that this program does not understand: to ask
        # again in each scrape would not help.
        self._outdated = self._happened or (not agreed and self._disagreed != names)
        self._disagreed = None if agreed else names
        self._node_names, self._refused = names, None
        self._asked_at, self.timestamp = time.monotonic(), time.time()
        # What a fleet was asked for at once on first contact is asked for bit by bit from then on.
        part = 1.0 if self._topology else crc32(self._vm.encode()) / 0xFFFFFFFF
        self._due_at = self._asked_at + part * self._settings.topology_max_age_seconds
        data_files = nodes.header_data_files(by_key) & (self._opened or frozenset())
        topology = Topology(by_key, limits, closed, data_files)
        if topology != self._topology:
            self._topology = topology  # else the same object, of which all is rendered already
            self._files = nodes.image_files(by_key) | data_files
        files = self._files
        # What `may_ask` has just seen is not looked at again.
        sights = {path: sight for path, sight in self._sights.items() if path in files}
        self._sights = {}
        try:
            sights |= await self._storage.see(
                files - sights.keys(), min(CANARY_SECONDS, timeout_seconds)
            )
            self._saw(sights)
        except StorageHangs:
            self.responding = False
        except StorageBusy:
            pass  # the sizes come with the next answer
        space = {path: each for path, each in self._space.items() if path in files}
        space |= {p: Space(s.size_bytes, s.available_bytes) for p, s in sights.items()}
        self._space = space

    def merge_flat(self, blocks: Sequence[qapi.BlockInfo]) -> None:
        """Put the backing images, which a flat answer leaves out, back from the last one."""
        assert self._topology is not None
        for info in blocks:
            before = self._topology.blocks.get(key(info))
            if info.inserted and before and before.inserted:
                info.inserted.image.backing_image = before.inserted.image.backing_image

    def _saw(self, sights: Mapping[str, Sight]) -> None:
        visible = [sight.visible for sight in sights.values()]
        if self.responding is False and any(visible):
            log.info("storage answers again", extra={"vm": self._vm})
        self.responding = True if any(visible) else None
        if self._outdated:
            return  # some files may be gone by right, and the next answer is awaited
        if self._all_visible and not all(visible) and self._settings.topology == "auto":
            log.warning(
                "image files cannot be seen from here: query-block is asked only when"
                " something changed (--collector.topology=always asks all the same)",
                extra={"vm": self._vm},
            )
        self._all_visible = all(visible)


def throttle_queries(blocks: Sequence[qapi.BlockInfo]) -> dict[str, queries.Query[dict[str, int]]]:
    """Return the query for the limits of each throttle filter's group."""
    by_key = {str(index): info for index, info in enumerate(blocks)}
    return {
        group: query
        for group in sorted(parse.throttle_groups(by_key))
        if (query := queries.throttle_limits(group))
    }


async def throttle_limits(
    blocks: Sequence[qapi.BlockInfo],
    settings: Settings,
    batch: Callable[[Sequence[queries.Query[Any]]], Awaitable[Answers]],
) -> dict[str, qapi.Limits]:
    """Ask for the limits of each throttle filter's group, by `batch`.

    Raises:
        TargetError: the VM does not answer.
    """
    queries = throttle_queries(blocks)
    if not queries or "throttle" in settings.without:
        return {}
    answers = await batch(list(queries.values()))
    return {
        group: qapi.limits_of_group(limits)
        for group, query in queries.items()
        if not answers.refused(query) and (limits := answers.get(query))
    }


def agree(
    blocks: Sequence[qapi.BlockInfo],
    entries: Sequence[qapi.BlockStats],
    closed: AbstractSet[tuple[str, str]],
) -> bool:
    """Whether query-block and query-blockstats saw the same chains.

    `closed` are the devices whose root node has no driver any more, and that node's name.
    """
    by_key = {key(info): info for info in blocks}
    return all(
        (info := by_key.get(key(entry))) is not None
        and (chains.joined(entry, info) is not None or (key(entry), entry.node_name) in closed)
        for entry in entries
    )


def without_drivers(
    blocks: Sequence[qapi.BlockInfo], entries: Sequence[qapi.BlockStats]
) -> frozenset[tuple[str, str]]:
    """Return the devices whose root node seems to have no driver, and that node's name.

    One answer alone does not tell it from a medium that was taken out between the two queries.
    """
    by_key = {key(info): info for info in blocks}
    return frozenset(
        (key(entry), entry.node_name)
        for entry in entries
        if (info := by_key.get(key(entry))) is not None and chains.is_closed(entry, info)
    )
