"""How the jobs of one VM are asked for, in a scrape and in a look between two: in the same way."""

from __future__ import annotations

import time
from typing import Any

from exporter.collect.event_watcher import EventWatcher
from exporter.collect.querier import Querier
from exporter.model import Device, Job, build
from exporter.qmp import PendingReplies, Query, queries, schema


class JobList:
    """What is asked beside query-block-jobs: the graph, and the jobs that are not block jobs."""

    def __init__(self, inquiry: Querier, watch: EventWatcher) -> None:
        self._inquiry = inquiry
        self._watch = watch
        self.connection_is_new()

    def connection_is_new(self) -> None:
        """Ask for all jobs: this may be another QEMU."""
        self._ask_others = True

    def beside(self) -> list[Query[Any]]:
        """Return what is asked in one write with query-block-jobs."""
        return [queries.JOBS] if self._ask_others else []

    def of_look(self) -> list[Query[Any]]:
        """Return what a look asks, in one write."""
        # The graph first: a job that has begun may end before the other answers.
        graph: list[Query[Any]] = [queries.GRAPH] if self._watch.jobs.graph_wanted else []
        return [*graph, self._inquiry.blockstats, queries.BLOCK_JOBS, *self.beside()]

    async def take(
        self,
        answers: PendingReplies,
        entries: list[schema.BlockStats],
        told: list[schema.BlockJob],
        devices: tuple[Device, ...],
        deadline: float,
    ) -> tuple[Job, ...]:
        """Return the jobs of a scrape or a look, and have those counted that have ended.

        `answers` are those of the first write; `entries`, `told` and `devices` may be newer.

        Raises:
            ProtocolError: two jobs have one id.
        """
        watch, jobs = self._watch, self._watch.jobs
        began = jobs.round
        graph = None
        new = watch.unplaced(told)
        if new or jobs.graph_wanted or queries.GRAPH in answers.queries:
            graph = await self._inquiry.later(answers, queries.GRAPH, deadline)
        watch.place([*new, *jobs.unlocated], graph, entries)
        others = await self._others(answers, {job.device for job in told}, deadline)
        found = build.jobs(watch.placed(told), others or (), watch.places)
        if jobs.round != began:
            return ()  # of a look that a scrape did not wait for
        unknown = self._inquiry.unknown
        jobs.places_told = queries.GRAPH not in unknown
        jobs.poll(
            told,
            others,
            watch.places,
            devices,
            time.time(),
            readable=self._inquiry.blockstats not in unknown,
            graph=graph,
        )
        return tuple(jobs.stamped(job) for job in found)

    async def _others(
        self, answers: PendingReplies, ids: set[str], deadline: float
    ) -> list[schema.JobInfo] | None:
        """Return the jobs that are not block jobs (`ids`), None where there is no reason to ask."""
        named = self._watch.jobs.named
        told = None
        if self._ask_others or named - ids:
            told = await self._inquiry.later(answers, queries.JOBS, deadline)
        named -= ids.union(job.id for job in told or ())
        others = None if told is None else build.other_jobs(told, ids)
        self._ask_others = bool(others)
        return others
