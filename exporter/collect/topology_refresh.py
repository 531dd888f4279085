"""query-block, asked again: in full or flat, until it tells the same chains as query-blockstats."""

from __future__ import annotations

import logging

from exporter.collect.connection import Connection
from exporter.collect.querier import remaining_seconds
from exporter.collect.topology_cache import (
    NodeNames,
    TopologyCache,
    agree,
    throttle_limits,
    without_drivers,
)
from exporter.config import Settings
from exporter.errors import ProtocolError
from exporter.model import chain as chains
from exporter.qmp import BlockJob, BlockStats, PendingReplies, Session, queries

log = logging.getLogger(__name__)

#: The first QEMU whose query-block can leave the backing images out.
_FLAT_VERSION = (11, 1)
#: How often a chain that two queries tell differently is asked for in one scrape.
_AGREE_TRIES = 2
#: Far more than QEMU can have; a reply that is nothing but devices would block this process.
DEVICES_LIMIT = 4096


class TopologyRefresh:
    """How query-block of one VM is asked, for what `TopologyCache` keeps of it."""

    def __init__(
        self, vm: str, session: Session, topology: TopologyCache, settings: Settings
    ) -> None:
        self._vm = vm
        self._session = session
        self._topology = topology
        self._settings = settings
        #: The node that was last logged to keep query-block from being asked.
        self._logged_node = ""

    def entries(self, connection: Connection, answers: PendingReplies) -> list[BlockStats]:
        """Return the devices, by query-block for a QEMU that has no query-blockstats.

        Raises:
            ProtocolError: there are more than any QEMU has.
        """
        querier = connection.querier
        if querier.blockstats in querier.unknown:
            return self._topology.entries()
        entries = answers.get(querier.blockstats) or []
        if len(entries) > DEVICES_LIMIT:
            raise ProtocolError(f"has more than {DEVICES_LIMIT} devices")
        return entries

    def matters(self, connection: Connection, entries: list[BlockStats]) -> bool:
        """Whether query-block would tell of anything."""
        unknown = connection.querier.unknown
        if queries.BLOCK in unknown:
            return False
        return bool(entries) or connection.querier.blockstats in unknown

    async def ask(
        self,
        connection: Connection,
        entries: list[BlockStats],
        names: NodeNames,
        block_jobs: list[BlockJob],
        deadline: float,
    ) -> tuple[list[BlockStats], list[BlockJob]]:
        """Ask query-block if the storage lets it, and return the chains and jobs as they are then.

        Raises:
            TargetError: the VM does not answer.
        """
        querier = connection.querier
        if not await self._may_be_asked(connection, entries, names, deadline):
            return entries, block_jobs
        blocks = None
        if self._flat_will_do(connection, entries, names, block_jobs):
            answers = await querier.batch([queries.BLOCK_FLAT], deadline)
            if answers.refused(queries.BLOCK_FLAT):
                connection.flat_allowed = False
            elif (blocks := answers.get(queries.BLOCK_FLAT)) is not None:
                self._topology.merge_flat(blocks)
        if blocks is None:
            blocks = (await querier.batch([queries.BLOCK], deadline)).get(queries.BLOCK)
        shut = without_drivers(blocks or (), entries)
        closed = shut & self._topology.closed
        agreed = blocks is not None and agree(blocks, entries, closed)
        for _ in range(_AGREE_TRIES):
            if blocks is None or agreed:
                break
            again = await querier.batch(
                [querier.blockstats, queries.BLOCK, queries.BLOCK_JOBS], deadline
            )
            entries, blocks = self.entries(connection, again), again.get(queries.BLOCK)
            block_jobs = again.get(queries.BLOCK_JOBS) or []
            # What two answers in a row tell is no medium that was just taken out.
            closed, shut = (now := without_drivers(blocks or (), entries)) & shut, now
            agreed = blocks is not None and agree(blocks, entries, closed)
            names = chains.walk(entries).names
        if blocks is None:
            return entries, block_jobs
        if querier.blockstats in querier.unknown:
            entries = [chains.without_counters(info) for info in blocks]
            agreed, names = True, chains.walk(entries).names
        limits = await throttle_limits(
            blocks, self._settings, lambda asked: querier.batch(asked, deadline)
        )
        process = self._session.peer_pid
        await self._topology.put(
            blocks,
            names,
            limits,
            process,
            remaining_seconds(deadline),
            agreed=agreed,
            closed=closed,
        )
        return entries, block_jobs

    async def _may_be_asked(
        self, connection: Connection, entries: list[BlockStats], names: NodeNames, deadline: float
    ) -> bool:
        if await self._would_crash(connection, entries, deadline):
            self._topology.refuse(names)
            return False
        return await self._topology.probe_storage(
            names, self._session.peer_pid, remaining_seconds(deadline)
        )

    async def _would_crash(
        self, connection: Connection, entries: list[BlockStats], deadline: float
    ) -> bool:
        """Whether query-block would end this QEMU, or fail for all of its disks."""
        suspects = connection.corruption.below_root(entries)
        if not suspects:
            return False
        graph = await connection.querier.ask_optional(queries.GRAPH, deadline)
        hidden = connection.corruption.hidden(suspects, graph)
        if hidden and hidden != self._logged_node:
            log.warning(
                "query-block is not asked: the image of a node below another was found corrupt,"
                " and QEMU would crash",
                extra={"vm": self._vm, "node": hidden},
            )
        self._logged_node = hidden
        return bool(hidden)

    def _flat_will_do(
        self,
        connection: Connection,
        entries: list[BlockStats],
        names: NodeNames,
        block_jobs: list[BlockJob],
    ) -> bool:
        # A job writes to layers that a flat answer leaves out, and a filter hides the active one.
        return (
            connection.flat_allowed
            and self._session.version >= _FLAT_VERSION
            and not block_jobs
            and self._topology.known(names)
            and not any(chains.of_nodes(entry).filters for entry in entries)
        )
