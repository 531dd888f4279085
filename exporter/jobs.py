"""The jobs of one VM from scrape to scrape: when they were seen, what they did, how they ended.

Pure: no I/O, no clock. Events (`take`) and queries (`poll`) tell of the same jobs in any order, and
each job ends once:

* BLOCK_JOB_COMPLETED with an `error`: failed. BLOCK_JOB_CANCELLED: cancelled.
* BLOCK_JOB_COMPLETED without: completed, but for a commit that was ready, or of which it is not
  known that it was not: to cancel it sends the same event. It is completed if its top node is gone
  from the chain and its base is not, else cancelled, as the query-blockstats says that is asked
  after the event; unverified where that cannot be read, has no layer of before, or may be the work
  of another commit.
* A job that queries had and have no more, without an event (no connection, no events on this one):
  vanished, but for a commit whose chain shows that it was completed, if the QEMU is the same.
* A job that is found `concluded`, its event unheard: failed or cancelled by its `error`, which
  QEMU gives to both. Without one, a commit is judged by its chain if that was known before and else
  unverified; of the others the missing error is QEMU's word for completed, as its event would be.
* A job that is no block job has only JOB_STATUS_CHANGE: its `error` is read from query-jobs while
  that has it; when it is gone, `aborting` before `concluded` is failed.
* A job that never ran (`created`, then `null`: its command was refused) did not end.

Where a job turns out to be another one (another type, or an offset that went back while nobody
listened), the one before it has vanished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from exporter import qapi
from exporter.events import BLOCK_JOB, ID_LIMIT, STATUS_CHANGE, BlockJobEvent
from exporter.graph import Place
from exporter.known import LIVE, Known
from exporter.model import Device, Job, Process
from exporter.outcomes import (
    CANCELLED,
    COMPLETED,
    FAILED,
    UNVERIFIED,
    VANISHED,
    Chains,
    Ended,
    Outcomes,
    chains_of,
)
from exporter.parse import BLOCK_JOB_TYPES

#: Most jobs of one VM that are followed at once.
JOBS_LIMIT = 1000
#: The error that QEMU gives to a job that was cancelled: strerror(ECANCELED).
_CANCELED = "Operation canceled"
_READY = frozenset({"ready", "standby"})
#: The first QEMU with JOB_STATUS_CHANGE.
_STATUS_VERSION = (3, 0)


class Jobs:
    """The jobs of one VM. A round begins with `ask`, before the queries that end in `poll`."""

    def __init__(self) -> None:
        self.outcomes = Outcomes()
        #: Ids of jobs that events named and no query has told of yet.
        self.named: set[str] = set()
        self._known: dict[str, Known] = {}
        self._devices: tuple[Device, ...] = ()
        self.round = 0
        #: Ids whose job ended in this round: the answers of this round may still list it.
        self._gone: set[str] = set()
        #: There were more of them than are kept.
        self._gone_any = False
        #: Of the connection that it is all about.
        self.generation = 0
        self._process = Process()
        #: Commits that were started before this process, with the layers that they work on.
        self.adopted: dict[str, tuple[Place, Sequence[str]]] = {}
        #: This connection's jobs were listed whole: one that was not has begun since.
        self._listed = False

    def connected(self, generation: int, process: Process, now: float) -> None:
        """Take note of the connection that is used: another may be to another QEMU."""
        same, self._process = process == self._process, process
        self.generation = generation
        self.named.clear()
        self._listed = False
        if not (same and process.pid):
            # Nobody can tell that the next chains will be those that were worked on.
            self.outcomes.give_up(now)
            for job in self._known.values():
                job.chain = ()
        if not same:
            for job_id in list(self._known):
                self._lose(job_id, now)
            self._devices = ()
        for job in self._known.values():
            job.stale, job.unbroken = True, False

    def ask(self) -> None:
        """Begin a round: what is asked from here on is answered after all that was told so far."""
        self.round += 1
        if self._gone:
            self._gone.clear()
            self._gone_any = False

    def take(self, name: str, data: bytes, now: float) -> tuple[str, str]:
        """Take an event; return the id and the new status of a job that JOB_STATUS_CHANGE names.

        Raises:
            msgspec.DecodeError, UnicodeError, RecursionError: it is not what QAPI says.
        """
        if name == "JOB_STATUS_CHANGE":
            change = STATUS_CHANGE.decode(data)
            self._take_status(change.id, change.status, now)
            return change.id, change.status
        if name == "BLOCK_JOB_READY":
            job = self._of_event(BLOCK_JOB.decode(data), now)
            job.ready_at = job.ready_at or now
        elif name == "BLOCK_JOB_CANCELLED":
            self._take_end(BLOCK_JOB.decode(data), CANCELLED, now)
        elif name == "BLOCK_JOB_COMPLETED":
            event = BLOCK_JOB.decode(data)
            self._take_end(event, COMPLETED if event.error is None else FAILED, now)
        return "", ""

    def poll(
        self,
        block_jobs: Sequence[qapi.BlockJob],
        others: Sequence[qapi.JobInfo] | None,
        places: Mapping[tuple[str, str], Place],
        devices: tuple[Device, ...],
        now: float,
        *,
        readable: bool = True,
    ) -> None:
        """Take the answers of a round.

        `others` are the jobs that are no block jobs, None where query-jobs was not answered.
        `readable`: whether `devices` have the chains of this instant.
        """
        self._devices = devices
        self._listed = True
        if not (self._known or self.outcomes.waiting or block_jobs or others):
            return
        chains = chains_of(devices) if readable else {}
        self.outcomes.judge(chains, self.round, now)
        if self._gone_any:
            return
        for info in others or ():
            self._see_other(info, now)
        for block_job in block_jobs:
            place = places.get((block_job.device, block_job.type))
            self._see(block_job, place, chains, now)
        listed = {job.device for job in block_jobs}.union(info.id for info in others or ())
        for job_id in self._known.keys() - listed - self._gone:
            job = self._known[job_id]
            if (job.plain or not job.type) and others is None:
                continue
            # What events told of and no query has listed may have begun after the answer.
            if job.listed or job.stale:
                self._lose(job_id, now)
        self.outcomes.judge_vanished(chains, now)

    @property
    def unseen_commit(self) -> bool:
        """Whether a commit is ready that no query has listed."""
        known = self._known.values()
        return any(j.type == "commit" and j.ready_at and not (j.listed or j.ended) for j in known)

    def stamped(self, job: Job) -> Job:
        """Return a job of a snapshot with when it was seen."""
        known = self._known.get(job.job_id)
        if known is None or known.type != job.job_type:
            return job
        return msgspec.structs.replace(
            job,
            first_seen_timestamp_seconds=known.first_seen,
            last_progress_timestamp_seconds=known.last_progress,
            ready_timestamp_seconds=known.ready_at,
        )

    # What events tell.

    def _take_status(self, job_id: str, status: str, now: float) -> None:
        if status == "created":
            self._take_created(job_id, now)
            return
        if status == "null":
            self._take_null(job_id, now)
            return
        if job_id not in self._known and job_id in self._gone:
            return  # its end is counted already
        job = self._known.get(job_id) or self._new(job_id, now) or Known(now, now)
        if status == "aborting":
            job.aborting = True
        elif status == "concluded":
            job.concluded = True
            if job.unbroken and not job.started:
                job.ended = True  # of a transaction that was refused: it never ran
        else:
            job.started = True
            if status in _READY:
                job.ready_at = job.ready_at or now

    def _take_created(self, job_id: str, now: float) -> None:
        if len(self.named) < JOBS_LIMIT:
            self.named.add(job_id)
        if job_id in self._known:
            self._went(job_id)
            self._lose(job_id, now)
        if job := self._new(job_id, now):
            job.unbroken = True

    def _take_null(self, job_id: str, now: float) -> None:
        self.named.discard(job_id)
        job = self._known.get(job_id)
        if job is None:
            return
        self._went(job_id)
        if job.ended or job.stale or job.type in BLOCK_JOB_TYPES or not job.concluded:
            self._lose(job_id, now)
            return
        del self._known[job_id]
        result = COMPLETED if job.started else UNVERIFIED
        result = FAILED if job.aborting else result
        self.outcomes.count(job_id, self._device(job_id, job), job.type, result, now)

    def _of_event(self, event: BlockJobEvent, now: float) -> Known:
        job = self._known.get(event.device)
        if job is not None and job.type and job.type != event.type:
            self._lose(event.device, now)
            job = None
        job = job or self._new(event.device, now) or Known(now, now)
        job.type, job.started = event.type, True
        self.outcomes.expect(event.type)
        return job

    def _take_end(self, event: BlockJobEvent, result: str, now: float) -> None:
        job_id = event.device
        job = self._of_event(event, now)
        if job.ended:
            return
        job.ended = True
        self._went(job_id)
        if result == COMPLETED and event.type == "commit" and job.may_have_been_ready:
            self._wait(job_id, job, CANCELLED, now)
        else:
            device = self._device(job_id, job)
            self.outcomes.count(job_id, device, event.type, result, now, event.error or "")
        if self._process.version < _STATUS_VERSION:
            self._known.pop(job_id, None)  # no event will say that it is dismissed

    # What queries tell.

    def _see(self, told: qapi.BlockJob, place: Place | None, chains: Chains, now: float) -> None:
        """Take an entry of query-block-jobs."""
        status: str = told.status or ""  # type: ignore[attr-defined]  # leaves of the table
        progress: int = told.offset or 0  # type: ignore[attr-defined]
        ready: bool = told.ready or status in _READY  # type: ignore[attr-defined]
        job_id = told.device
        known = self._known.get(job_id)
        found = known is None or not known.started
        job = self._listed_job(job_id, told.type, status, progress, now)
        if job is None:
            return
        if job_id in self.adopted:
            job.place, job.chain = self.adopted.pop(job_id)
            found = False
        if status == "concluded":
            if not job.ended:
                self._conclude(job_id, job, told.error, found, now)
            return
        if ready:
            job.ready_at = job.ready_at or now
        elif status in LIVE or not status:
            job.unbroken = True
        if place is not None:
            job.place, job.chain = place, chains.get(place.device, ())

    def _see_other(self, info: qapi.JobInfo, now: float) -> None:
        """Take an entry of query-jobs that is no block job."""
        job = self._listed_job(info.id, info.type, info.status, info.current_progress, now)
        if job is None:
            return
        job.plain = True
        if info.status == "concluded" and not job.ended:
            job.ended = True
            result = FAILED if info.error or job.aborting else COMPLETED
            if info.error == _CANCELED:
                result = CANCELLED
            self.outcomes.count(info.id, "", info.type, result, now, info.error)

    def _listed_job(
        self, job_id: str, type: str, status: str, progress: int, now: float
    ) -> Known | None:
        """Return the job that a query lists, None where it cannot be told from one that ended."""
        if job_id in self._gone or max(len(job_id), len(type)) > ID_LIMIT:
            return None
        job = self._known.get(job_id)
        if job is not None and job.is_not(type, status, progress):
            self._lose(job_id, now)
            job = None
        job = job or self._new(job_id, now)
        if job is None:
            self._listed = False
            return None
        if progress != job.progress:
            job.progress, job.last_progress = progress, now
        job.type = type
        self.outcomes.expect(type)
        job.listed, job.stale = True, False
        job.started = job.started or status != "created"
        return job

    def _conclude(self, job_id: str, job: Known, error: str, found: bool, now: float) -> None:
        """Take a block job that is `concluded`, and whose event was not heard."""
        job.ended = True
        if not error and job.type == "commit" and not found and job.chain:
            if job.may_have_been_ready:
                self._wait(job_id, job, CANCELLED, now)
                return
            result = COMPLETED
        elif error:
            result = CANCELLED if error == _CANCELED else FAILED
        else:
            result = UNVERIFIED if job.type == "commit" else COMPLETED
        self.outcomes.count(job_id, self._device(job_id, job), job.type, result, now, error)

    # How it ended.

    def _lose(self, job_id: str, now: float) -> None:
        """Let go of a job that is gone, whether or not something said how it ended."""
        job = self._known.pop(job_id)
        if job.ended:
            return
        if job.type == "commit" and job.chain:
            self._wait(job_id, job, VANISHED, now)
        elif job.started or job.listed:
            self.outcomes.count(job_id, self._device(job_id, job), job.type, VANISHED, now)

    def _wait(self, job_id: str, job: Known, otherwise: str, now: float) -> None:
        """Let the chain of the next round say how a commit ended."""
        device, before = self._device(job_id, job), () if job.chain else self._devices
        ended = Ended(job_id, device, job.chain, job.place, before, otherwise, self.round)
        self.outcomes.wait(ended, now)

    def _new(self, job_id: str, now: float) -> Known | None:
        if len(self._known) >= JOBS_LIMIT:
            return None
        self.outcomes.ends.pop(job_id, None)  # of another job, which had the id before
        job = self._known[job_id] = Known(now, now, unbroken=self._listed)
        return job

    def _went(self, job_id: str) -> None:
        if len(self._gone) < JOBS_LIMIT:
            self._gone.add(job_id)
        else:
            self._gone_any = True

    def _device(self, job_id: str, job: Known) -> str:
        """Return the device of a job; QEMU's own default for an id is the name of the device."""
        if job.place is not None:
            return job.place.device
        return job_id if any(device.device == job_id for device in self._devices) else ""
