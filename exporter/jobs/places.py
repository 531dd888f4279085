"""Where the jobs of one QEMU work: asked once for each job, and kept for as long as it lives. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from exporter.model import Place
from exporter.qmp import schema

#: Id and type of a job.
JobKey = tuple[str, str]
#: Most ids that are remembered to have begun since the last answers.
_BEGUN_LIMIT = 1000


class JobPlaces:
    """The places of block jobs."""

    def __init__(self) -> None:
        self._known: dict[JobKey, Place] = {}
        #: Ids of jobs that began since `missing`: answers may still list an earlier job.
        self._begun: set[str] = set()

    @property
    def known(self) -> Mapping[JobKey, Place]:
        """The places of the jobs whose place is known."""
        return self._known

    def missing(self, jobs: Sequence[schema.BlockJob]) -> bool:
        """Whether the place of any job is unknown; from here on these are the jobs that count."""
        self._begun.clear()
        return any((job.device, job.type) not in self._known for job in jobs)

    def forget(self, job_id: str) -> None:
        """Forget a job: another one with its id begins, perhaps on another disk."""
        if len(self._begun) < _BEGUN_LIMIT:
            self._begun.add(job_id)
        if self._known:
            self._known = {key: place for key, place in self._known.items() if key[0] != job_id}

    def learn(
        self,
        jobs: Sequence[schema.BlockJob],
        ended: Iterable[JobKey],
        locate: Callable[[str], Place | None],
    ) -> list[schema.BlockJob]:
        """Find the places that are unknown; return the jobs without those that ended meanwhile.

        The places of all other jobs are forgotten, but for those that `ended` just now.
        """
        keys = [(job.device, job.type) for job in jobs]
        found = {key: self._known[key] for key in keys if key in self._known}
        for key in [*(key for key in keys if key not in found), *ended]:
            place = None if key[0] in self._begun else locate(key[0])
            if place is not None:
                found[key] = place
        self._known = found
        return [job for job in jobs if (job.device, job.type) in found]
