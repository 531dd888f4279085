"""How the jobs of one QEMU are asked for: in a scrape, and between two scrapes, in the same way."""

from __future__ import annotations

from typing import Any

from exporter.collect.querier import Querier
from exporter.jobs import JobPlaces, JobReplies, JobTracker
from exporter.model import build
from exporter.qmp import PendingReplies, Query, queries, schema


class JobList:
    """What is asked beside query-block-jobs: the graph, and the jobs that are not block jobs."""

    def __init__(self, querier: Querier, tracker: JobTracker, places: JobPlaces) -> None:
        self._querier = querier
        self._tracker = tracker
        self._places = places
        #: Whether to ask for the jobs that are not block jobs: this QEMU may have some.
        self._ask_others = True

    def beside(self) -> list[Query[Any]]:
        """Return what is asked in one write with query-block-jobs."""
        return [queries.JOBS] if self._ask_others else []

    def between_scrapes(self) -> list[Query[Any]]:
        """Return what is asked between two scrapes, in one write."""
        # The graph first: a job that has begun may end before the other answers.
        graph: list[Query[Any]] = [queries.GRAPH] if self._tracker.graph_wanted else []
        return [*graph, self._querier.blockstats, queries.BLOCK_JOBS, *self.beside()]

    async def ask(
        self,
        answers: PendingReplies,
        block_jobs: list[schema.BlockJob],
        deadline: float,
    ) -> JobReplies:
        """Ask for what is missing, and return all that is known about the jobs.

        `answers` are those of the first write; `block_jobs` may be newer.
        """
        graph = None
        missing = self._places.missing(block_jobs)
        if missing or self._tracker.graph_wanted or queries.GRAPH in answers.queries:
            graph = await self._querier.later(answers, queries.GRAPH, deadline)
        ids = {job.device for job in block_jobs}
        jobs = None
        if self._ask_others or self._tracker.named - ids:
            jobs = await self._querier.later(answers, queries.JOBS, deadline)
        self._ask_others = bool(jobs and build.other_jobs(jobs, ids))
        unknown = self._querier.unknown
        return JobReplies(
            block_jobs=block_jobs,
            jobs=jobs,
            graph=graph,
            has_graph=queries.GRAPH not in unknown,
            has_blockstats=self._querier.blockstats not in unknown,
        )
