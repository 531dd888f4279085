"""What query-block knows of one VM, and when it may be asked again.

query-block stats every image file on QEMU's main loop, so it is asked seldom, and never while the
storage does not answer (`storage`): on first contact, when the chains changed, when an event says
so, and when the last answer is old.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any
from zlib import crc32

from exporter.collect.image_files import ImageFiles, Storages
from exporter.config import Settings
from exporter.model import ImageFile, Topology, build, join_key, nodes
from exporter.model import chain as chains
from exporter.qmp import PendingReplies, queries, schema
from exporter.storage import Storage

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
        #: The paths of all images.
        self._paths: frozenset[str] = frozenset()
        #: Whether QEMU has no other files than these.
        self._paths_are_all = False
        self._images = ImageFiles(vm, storage)
        self._node_names: NodeNames = ()
        self._asked_at = self._due_at = float("-inf")
        #: Something happened since: the next scrape asks.
        self._outdated = False
        #: Something happened since query-block was last asked; its answer may be of before.
        self._happened = False
        self._disagreed: NodeNames | None = None
        #: The chains of which query-block must not be asked.
        self._refused: NodeNames | None = None
        #: Whether something is about to rest on where the names of images lead.
        self._anew = False
        #: When query-block last answered, seconds since 1970.
        self.timestamp: float | None = None

    @property
    def responding(self) -> bool | None:
        """Whether the storage of the image files answers; None where they cannot be seen."""
        return self._images.responding

    @property
    def storage_error(self) -> str:
        """Why query-block must not be asked, empty where it may be."""
        return self._images.error

    @property
    def image_files(self) -> Mapping[str, ImageFile]:
        """What was last seen of each image file, by the path that QEMU tells."""
        return self._images.known

    @property
    def open_identities(self) -> frozenset[tuple[int, ...]] | None:
        """Which files QEMU has open (`storage.FileStat.identity`); None where that cannot be seen."""
        return self._images.identities

    def note(self, event: str) -> None:
        """Take an event into account."""
        if event in EVENTS:
            self.invalidate()

    def invalidate(self) -> None:
        """Ask in the next scrape: something happened."""
        self._outdated = self._happened = True

    def look_anew(self) -> None:
        """Ask in the next scrape, and trust nothing that was seen of the images before."""
        self.invalidate()
        self._anew = True

    def forget(self, *, another: bool) -> None:
        """Know nothing: the connection is new, and it is `another` QEMU, as far as can be seen."""
        self._topology = self.timestamp = self._refused = None
        if another:
            self._images.forget()

    def current(self) -> Topology | None:
        """Return what is known, None where it is too old to be shown."""
        age = time.monotonic() - self._asked_at
        return (
            self._topology if age <= _STALE_AGES * self._settings.topology_max_age_seconds else None
        )

    def files(self) -> Mapping[str, ImageFile]:
        """Return what is seen of each image file, by its path, as long as `current` is known."""
        return self._images.known if self.current() else {}

    def entries(self) -> list[schema.BlockStats]:
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
    def is_refused(self) -> bool:
        """Whether query-block must not be asked, whatever the storage does."""
        return self._refused is not None

    @property
    def is_old(self) -> bool:
        """Whether the last answer is older than max-age, or what of it this VM waits at first."""
        return time.monotonic() >= self._due_at

    async def probe_storage(
        self, node_names: NodeNames, process: int, timeout_seconds: float
    ) -> bool:
        """Ask the storage first: whether query-block would not hang in it.

        `process` is the QEMU, or what stands before it. In the mode `always` query-block is asked
        all the same.
        """
        self._happened = False
        known = self.known(node_names)
        answer = await self._images.ask(
            self._paths if self._topology else (),
            node_names,
            process,
            min(CANARY_SECONDS, timeout_seconds),
            are_all=known and self._paths_are_all,
        )
        if answer in (Storages.HANG, Storages.BUSY):
            return self._settings.topology == "always"
        is_timed = self._settings.topology == "auto" and known and not self._outdated
        if is_timed and answer is Storages.PARTLY_SEEN:
            # Looked for again after as long: a mount may have come.
            self._due_at = time.monotonic() + self._settings.topology_max_age_seconds
            self._images.warn_unseen()
            return False
        return True

    async def put(
        self,
        blocks: Sequence[schema.BlockInfo],
        names: NodeNames,
        limits: Mapping[str, schema.Limits],
        process: int,
        timeout_seconds: float,
        *,
        agreed: bool,
        closed: AbstractSet[tuple[str, str]] = frozenset(),
    ) -> None:
        """Keep an answer, with what the storage of its files says of itself.

        `agreed`: whether query-blockstats saw the same chains; `closed` as for `agree`.
        """
        by_key = {join_key(info): info for info in blocks}
        # A chain that goes on disagreeing is one that this program does not understand: to ask
        # again in each scrape would not help.
        self._outdated = self._happened or (not agreed and self._disagreed != names)
        self._disagreed = None if agreed else names
        self._node_names, self._refused = names, None
        self._asked_at, self.timestamp = time.monotonic(), time.time()
        # What a fleet was asked for at once on first contact is asked for bit by bit from then on.
        part = 1.0 if self._topology else crc32(self._vm.encode()) / 0xFFFFFFFF
        self._due_at = self._asked_at + part * self._settings.topology_max_age_seconds
        data_files = nodes.header_data_files(by_key) & self._images.opened_names
        topology = Topology(by_key, limits, closed, data_files)
        if topology != self._topology:
            self._topology = topology  # else the same object, of which all is rendered already
            self._paths = nodes.image_files(by_key) | data_files
            self._paths_are_all = nodes.are_all_files(by_key)
        anew, self._anew = self._anew, False
        timeout = min(CANARY_SECONDS, timeout_seconds)
        await self._images.learn(self._paths, names, process, timeout, anew=anew)
        self._outdated |= bool(self._images.doubted)

    def merge_flat(self, blocks: Sequence[schema.BlockInfo]) -> None:
        """Put the backing images, which a flat answer leaves out, back from the last one."""
        assert self._topology is not None
        for info in blocks:
            before = self._topology.blocks.get(join_key(info))
            if info.inserted and before and before.inserted:
                info.inserted.image.backing_image = before.inserted.image.backing_image


def throttle_queries(
    blocks: Sequence[schema.BlockInfo],
) -> dict[str, queries.Query[dict[str, int]]]:
    """Return the query for the limits of each throttle filter's group."""
    by_key = {str(index): info for index, info in enumerate(blocks)}
    return {
        group: query
        for group in sorted(build.throttle_groups(by_key))
        if (query := queries.throttle_limits(group))
    }


async def throttle_limits(
    blocks: Sequence[schema.BlockInfo],
    settings: Settings,
    batch: Callable[[Sequence[queries.Query[Any]]], Awaitable[PendingReplies]],
) -> dict[str, schema.Limits]:
    """Ask for the limits of each throttle filter's group, by `batch`.

    Raises:
        TargetError: the VM does not answer.
    """
    queries = throttle_queries(blocks)
    if not queries or "throttle" in settings.without:
        return {}
    answers = await batch(list(queries.values()))
    return {
        group: schema.limits_of_group(limits)
        for group, query in queries.items()
        if not answers.refused(query) and (limits := answers.get(query))
    }


def agree(
    blocks: Sequence[schema.BlockInfo],
    entries: Sequence[schema.BlockStats],
    closed: AbstractSet[tuple[str, str]],
) -> bool:
    """Whether query-block and query-blockstats saw the same chains.

    `closed` are the devices whose root node has no driver any more, and that node's name.
    """
    by_key = {join_key(info): info for info in blocks}
    return all(
        (info := by_key.get(join_key(entry))) is not None
        and (chains.joined(entry, info) is not None or (join_key(entry), entry.node_name) in closed)
        for entry in entries
    )


def without_drivers(
    blocks: Sequence[schema.BlockInfo], entries: Sequence[schema.BlockStats]
) -> frozenset[tuple[str, str]]:
    """Return the devices whose root node seems to have no driver, and that node's name.

    One answer alone does not tell it from a medium that was taken out between the two queries.
    """
    by_key = {join_key(info): info for info in blocks}
    return frozenset(
        (join_key(entry), entry.node_name)
        for entry in entries
        if (info := by_key.get(join_key(entry))) is not None and chains.is_closed(entry, info)
    )
