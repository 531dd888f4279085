"""Tracks the jobs of one VM from scrape to scrape: when they were seen, and how they ended.

Pure: no I/O, no clock. Events (`take`) and queries (`poll`) report the same jobs in any order, and
each job ends once. The table in `verdict` says what its end means; this module finds the row that
applies:

* A block job sends BLOCK_JOB_COMPLETED or BLOCK_JOB_CANCELLED. But a commit that was ready sends
  the same event whether it was completed or cancelled: its chain decides.
* A job that queries no longer list, without an event, is missing. If its event was missed but it is
  listed as `concluded`, its `error` decides; QEMU sets it for cancelled jobs, too.
* A job that is not a block job sends only JOB_STATUS_CHANGE: its type and its `error` are in
  query-jobs, as long as that lists it.

If an entry turns out to be another job (another type, or an offset that went back while there was
no connection), the job before it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from exporter.jobs.events import BLOCK_JOB, ID_LIMIT, STATUS_CHANGE, BlockJobEvent
from exporter.jobs.evidence import CHANGING, Chains, Change, Commit, Sighting, chains_of, work
from exporter.jobs.outcomes import End, Outcomes
from exporter.jobs.tracked_job import LIVE, READY, Heard, Lister, Step, TrackedJob
from exporter.jobs.verdict import Seen, State, of_error, verdict
from exporter.model import BLOCK_JOB_TYPES, Device, Job, Place
from exporter.qmp import Process, schema

#: Most jobs of one VM that are followed at once.
JOBS_LIMIT = 1000
#: The first QEMU with JOB_STATUS_CHANGE.
_STATUS_VERSION = (3, 0)


class JobTracker:
    """The jobs of one VM. A round begins with `ask`, before the queries that end in `poll`."""

    def __init__(self) -> None:
        self.outcomes = Outcomes()
        #: Ids of jobs from events that no query has listed yet.
        self.named: set[str] = set()
        #: Whether an event since `ask` calls for another round of queries.
        self.wanted = False
        #: Whether this QEMU reports where its jobs work; otherwise a job's id may be a device's name.
        self.places_told = False
        self._known: dict[str, TrackedJob] = {}
        self._devices: tuple[Device, ...] = ()
        self.round = 0
        #: The round whose replies `_devices` come from.
        self._devices_round = 0
        #: Ids of jobs that ended in this round: the replies of this round may still list them.
        self._gone: set[str] = set()
        #: Whether there were more of them than are kept.
        self._gone_any = False
        self._process = Process()
        #: Commits that this program started, with their place and the layers at that time.
        self.adopted: dict[str, tuple[Place, Sequence[str]]] = {}
        #: Whether all jobs of this connection have been listed: a job not listed has begun since.
        self._listed = False
        #: Number of jobs so far, and of ends.
        self._jobs = self._ends = 0

    def connected(self, process: Process, now: float) -> None:
        """Register a new connection, which may lead to another QEMU."""
        same, self._process = process == self._process, process
        self.named.clear()
        self.outcomes.release({}, ())
        self._listed = False
        # Events in between were missed.
        self._devices = ()
        self.outcomes.reconnected()
        if not (same and process.pid):
            # The next chains may not be those that the jobs worked on.
            self.outcomes.give_up(now)
            for job in self._known.values():
                job.span = None
        if not same:
            for job_id in list(self._known):
                self._lose(job_id, now)
        for job in self._known.values():
            job.sight = Heard.STALE

    def ask(self) -> None:
        """Begin a round: replies to queries from here on are newer than all events so far."""
        self.round += 1
        self.wanted = False
        if self._gone:
            self._gone.clear()
            self._gone_any = False

    def take(self, name: str, data: bytes, now: float) -> tuple[str, str]:
        """Process an event; return the id and the new status of a job from JOB_STATUS_CHANGE.

        Raises:
            msgspec.DecodeError, UnicodeError, RecursionError: it does not match QAPI.
        """
        if name == "JOB_STATUS_CHANGE":
            change = STATUS_CHANGE.decode(data)
            self._take_status(change.id, change.status, now)
            return change.id, change.status
        if name == "BLOCK_JOB_READY":
            job = self._of_event(BLOCK_JOB.decode(data), now)
            job.ready_at = job.ready_at or now
            if job.lister is Lister.NONE:
                self.wanted = True
        elif name == "BLOCK_JOB_CANCELLED":
            self._take_end(BLOCK_JOB.decode(data), Seen.CANCELED, now)
        elif name == "BLOCK_JOB_COMPLETED":
            event = BLOCK_JOB.decode(data)
            self._take_end(event, Seen.SUCCESS if event.error is None else Seen.ERROR, now)
        return "", ""

    def poll(
        self,
        block_jobs: Sequence[schema.BlockJob],
        others: Sequence[schema.JobInfo] | None,
        places: Mapping[tuple[str, str], Place],
        devices: tuple[Device, ...],
        now: float,
        *,
        readable: bool = True,
        graph: schema.Graph | None = None,
    ) -> None:
        """Process the replies of a round, whose first query is query-blockstats.

        `others` are the jobs that are not block jobs, None if there is no reply to query-jobs.
        `readable`: whether `devices` have the chains of this instant.
        """
        self._devices, self._devices_round = devices if readable else (), self.round
        self._listed = True
        if not (self._known or self.outcomes.waiting or self.outcomes.held or block_jobs or others):
            return
        chains = chains_of(self._devices)
        self.outcomes.locate(self.round, places, chains)
        self.outcomes.release(places, others or ())
        self.outcomes.judge(Sighting(self.round, chains, graph), now)
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
            if (job.lister is Lister.JOBS or not job.type) and others is None:
                continue
            # A job known only from events may have begun after the reply.
            if job.lister is not Lister.NONE or job.sight is Heard.STALE:
                self._lose(job_id, now)

    def listed(self, ids: AbstractSet[str]) -> None:
        """Take note that queries have told of these jobs."""
        self.named -= ids

    def place(self, job_id: str) -> Place | None:
        """Return where a job works, None if that is not known."""
        if job_id in self.adopted:
            return self.adopted[job_id][0]
        return job.place if (job := self._known.get(job_id)) else None

    @property
    def unlocated(self) -> list[tuple[str, str]]:
        """The ids and types of jobs that have ended since `ask` and whose place is not known.

        A graph that still has them shows it.
        """
        return self.outcomes.unlocated(self.round)

    @property
    def graph_wanted(self) -> bool:
        """Whether the graph is needed beyond the queries that each scrape sends."""
        return (
            any(commit.span is None for commit in self.outcomes.waiting)
            or bool(self.outcomes.held)
            or any(j.lister is Lister.NONE and not j.ended for j in self._known.values())
        )

    def stamped(self, job: Job) -> Job:
        """Return `job` with the times at which it was seen."""
        known = self._known.get(job.job_id)
        if known is None or known.type != job.job_type:
            return job
        return msgspec.structs.replace(
            job,
            first_seen_timestamp_seconds=known.first_seen,
            last_progress_timestamp_seconds=known.last_progress,
            ready_timestamp_seconds=known.ready_at,
        )

    # Events.

    def _take_status(self, job_id: str, status: str, now: float) -> None:
        if status == "created":
            self._take_created(job_id, now)
            return
        if status == "null":
            self._take_null(job_id, now)
            return
        if job_id not in self._known and job_id in self._gone:
            return  # its end has been counted
        job = self._known.get(job_id) or self._new(job_id, now)
        job.hear(status, now)
        if status in ("aborting", "concluded") and not job.ended:
            # The error of a job that is not a block job is only in query-jobs, until it is dismissed.
            self.wanted = self.wanted or job.type not in BLOCK_JOB_TYPES

    def _take_created(self, job_id: str, now: float) -> None:
        if len(self.named) < JOBS_LIMIT:
            self.named.add(job_id)
        if job_id in self._known:
            self._went(job_id)
            self._lose(job_id, now)
        self._new(job_id, now).sight = Heard.WHOLE
        self.wanted = True

    def _take_null(self, job_id: str, now: float) -> None:
        self.named.discard(job_id)
        job = self._known.get(job_id)
        if job is None:
            return
        self._went(job_id)
        stale = job.sight is Heard.STALE
        if job.ended or stale or job.type in BLOCK_JOB_TYPES or not job.concluded:
            self._lose(job_id, now)
            return
        del self._known[job_id]
        self._finish(job_id, job, Seen.DISMISSED, now)

    def _of_event(self, event: BlockJobEvent, now: float) -> TrackedJob:
        job = self._known.get(event.device)
        if job is not None and job.type and job.type != event.type:
            self._lose(event.device, now)
            job = None
        job = job or self._new(event.device, now)
        job.type, job.step = event.type, max(job.step, Step.STARTED)
        self.outcomes.expect(event.type)
        return job

    def _take_end(self, event: BlockJobEvent, seen: Seen, now: float) -> None:
        job_id = event.device
        job = self._of_event(event, now)
        if job.ended:
            return
        job.ended = True
        self._went(job_id)
        if job.sight is Heard.STALE:
            job.place = job.span = job.bare = None  # another job may have its id
        self._finish(job_id, job, seen, now, event.error or "")
        if self._process.version < _STATUS_VERSION:
            self._known.pop(job_id, None)  # no event will report that it is dismissed

    # Replies to queries.

    def _see(self, entry: schema.BlockJob, place: Place | None, chains: Chains, now: float) -> None:
        """Process an entry of query-block-jobs."""
        status: str = entry.status or ""  # type: ignore[attr-defined]  # leaves of the table
        progress: int = entry.offset or 0  # type: ignore[attr-defined]
        ready: bool = entry.ready or status in READY  # type: ignore[attr-defined]
        job_id = entry.device
        job = self._listed_job(job_id, entry.type, status, progress, now)
        if job is None:
            return
        job.lister = Lister.BLOCK_JOBS
        if status == "concluded":
            if not job.ended:
                job.ended = True
                seen = Seen.CONCLUDED if not entry.error else of_error(entry.error)
                self._finish(job_id, job, seen, now, entry.error)
            return
        if ready:
            job.ready_at = job.ready_at or now
        elif status in LIVE or not status:
            job.sight = Heard.WHOLE
        if place is not None:
            job.place = place
            job.span, job.bare = work(place, chains)

    def _see_other(self, info: schema.JobInfo, now: float) -> None:
        """Process an entry of query-jobs that is not a block job."""
        job = self._listed_job(info.id, info.type, info.status, info.current_progress, now)
        if job is None:
            return
        job.lister = Lister.JOBS
        if info.error and not job.ended:
            job.ended = True  # it is `aborting` or `concluded`, and keeps its error from then on
            self._finish(info.id, job, of_error(info.error), now, info.error)
        elif info.status == "concluded" and not job.ended:
            job.ended = True
            self._finish(info.id, job, Seen.CONCLUDED, now)

    def _listed_job(
        self, job_id: str, type: str, status: str, progress: int, now: float
    ) -> TrackedJob | None:
        """Return the job that a query lists, None if it may be one that has ended."""
        if job_id in self._gone or max(len(job_id), len(type)) > ID_LIMIT:
            return None
        job = self._known.get(job_id)
        if job is not None and job.is_not(type, status, progress):
            self._lose(job_id, now)
            job = None
        if job is None:
            if len(self._known) >= JOBS_LIMIT:
                self._listed = False
                return None
            job = self._new(job_id, now)
            job.sight = Heard.PART
        job.list(type, status, progress, now)
        self.outcomes.expect(type)
        return job

    # Ends.

    def _lose(self, job_id: str, now: float) -> None:
        """Forget a job that is gone; if its end has not been reported, it is missing."""
        job = self._known.pop(job_id)
        if not job.ended:
            self._finish(job_id, job, Seen.MISSING, now)

    def _finish(
        self, job_id: str, job: TrackedJob, seen: Seen, now: float, error: str = ""
    ) -> None:
        """Count the end of a job as the table says, or let the chain of the next round decide."""
        self._ends += 1
        found = verdict(job.state, seen)
        device = self._device(job_id, job)
        if job.type in CHANGING and seen in (Seen.SUCCESS, Seen.CONCLUDED, Seen.MISSING):
            chain = job.span.chain if job.span and job.span.whole else ()
            self.outcomes.note(Change(self._ends, self.round, job.serial, device, chain))
        if isinstance(found, State):
            self._wait(job_id, job, found, device, now)
        elif found is not None:
            end = End(job.type, device, found, now, error, job.first_seen, job.serial)
            if self._may_be_located(job):
                self.outcomes.hold(job_id, end)
            else:
                self.outcomes.end(job_id, end)

    def _may_be_located(self, job: TrackedJob) -> bool:
        """Whether replies that are on their way may show the place of a job not listed so far."""
        return (
            self.places_told
            and job.lister is Lister.NONE
            and job.place is None
            and job.sight is not Heard.STALE
        )

    def _wait(self, job_id: str, job: TrackedJob, state: State, device: str, now: float) -> None:
        commit = Commit(
            job_id,
            job.first_seen,
            job.serial,
            state,
            device,
            job.span,
            job.bare,
            job.ours,
            self.round,
            self._ends,
        )
        if state is State.SAID and not commit.located and job.sight is not Heard.STALE:
            chains = chains_of(self._devices)
            commit.before = {name: (self._devices_round, chains[name]) for name in chains}
        self.outcomes.wait(commit, now)
        self.wanted = True

    def _new(self, job_id: str, now: float) -> TrackedJob:
        """Return a new job; it is not kept if there are too many."""
        self._jobs += 1
        self.outcomes.begin(job_id, self._jobs)
        sight = Heard.WHOLE if self._listed else Heard.PART
        job = TrackedJob(now, now, serial=self._jobs, sight=sight)
        if adopted := self.adopted.pop(job_id, None):
            job.place, chain = adopted
            job.span, _ = work(job.place, {job.place.device: chain})
            job.ours = True
        if len(self._known) < JOBS_LIMIT:
            self._known[job_id] = job
        else:
            job.sight = Heard.PART
        return job

    def _went(self, job_id: str) -> None:
        if len(self._gone) < JOBS_LIMIT:
            self._gone.add(job_id)
        else:
            self._gone_any = True

    def _device(self, job_id: str, job: TrackedJob) -> str:
        """Return the device of a job; its id may be QEMU's default, which is a device's name."""
        if job.place is not None:
            return job.place.device
        if self.places_told:
            return ""
        return job_id if any(device.device == job_id for device in self._devices) else ""
