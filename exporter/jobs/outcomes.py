"""Counts how the jobs of one VM ended; the outcome of a commit is first checked against the chain.

Pure, and bounded whatever a VM sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from exporter.jobs import verdict
from exporter.jobs.evidence import Chains, Change, Commit, Sighting, observe, work
from exporter.jobs.verdict import FAILED, RESULTS, Seen, State
from exporter.metrics import Scope
from exporter.model import Finished, JobOutcomes, LastError, Place
from exporter.qmp import schema
from exporter.redact import redact_text

#: Most commits of one VM that wait for the chain.
_WAITING_LIMIT = 1000
#: Most combinations of labels that are remembered of one VM, and most job types.
KEYS_LIMIT = 1000
_TYPES_LIMIT = 32
#: Most jobs of one VM whose end is remembered by their id.
ENDS_LIMIT = 64
_TYPE_LENGTH_LIMIT = 64
#: Most ends that are compared with those of commits.
_CHANGES_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended, looked up by its id."""

    type: str
    device: str
    result: str
    #: When this process learnt of it.
    timestamp_seconds: float
    error: str
    #: They identify the job: an id may be used again.
    first_seen_timestamp_seconds: float | None = field(default=None, compare=False)
    serial: int = field(default=0, compare=False)


class Outcomes:
    """The ends of the jobs of one VM."""

    def __init__(self) -> None:
        #: Commits that wait for the chain.
        self.waiting: list[Commit] = []
        #: Ends of jobs whose disk is not known, by id.
        self.held: dict[str, End] = {}
        #: The last ends that may have changed a chain, in the order in which they were reported.
        self._changes: deque[Change] = deque()
        #: Type -> jobs by result, in the order of `RESULTS`.
        self._counts: dict[str, list[int]] = {}
        self._finished: dict[tuple[str, str, str], float] = {}
        self._errors: dict[tuple[str, str], str] = {}
        #: The last jobs that ended, by id: the newest job of each id.
        self.ends: dict[str, End] = {}
        #: Id -> the serial number of the newest job that has it.
        self._newest: dict[str, int] = {}
        #: Whether anything has changed since `records`.
        self.changed = False

    def begin(self, job_id: str, serial: int) -> None:
        """Register a new job: all that is known under its id belongs to an earlier one."""
        if job_id in self.held:
            self.end(job_id, self.held.pop(job_id))
        self.ends.pop(job_id, None)
        _put(self._newest, job_id, serial)

    def is_newest(self, job_id: str, serial: int) -> bool:
        """Whether no later job has the id."""
        return serial >= self._newest.get(job_id, 0)

    def end(self, job_id: str, end: End) -> None:
        """Count the end of a job, and remember it by the job's id."""
        self.count(job_id, end.device, end.type, end.result, end.timestamp_seconds, end.error)
        if self.is_newest(job_id, end.serial):  # otherwise a later job has the id
            _put(self.ends, job_id, replace(end, error=redact_text(end.error)), ENDS_LIMIT)

    def count(
        self, job_id: str, device: str, job_type: str, result: str, now: float, error: str = ""
    ) -> None:
        """Count an end that was learnt of at `now`; called once for each."""
        name = self.expect(job_type)
        self._counts[name][RESULTS.index(result)] += 1
        _put(self._finished, (device, name, result), now)
        if result == FAILED and error:
            _put(self._errors, (device, name), redact_text(error))
        self.changed = True

    def expect(self, job_type: str) -> str:
        """Create the counters of a job type, at 0 before its first end, and return its label."""
        if job_type in self._counts:
            return job_type
        many = len(self._counts) >= _TYPES_LIMIT or len(job_type) > _TYPE_LENGTH_LIMIT
        name = "other" if many else job_type
        self._counts.setdefault(name, [0] * len(RESULTS))
        self.changed = True
        return name

    def note(self, change: Change) -> None:
        """Record an end that may have changed a chain."""
        if len(self._changes) >= _CHANGES_LIMIT:
            # There are too many to keep: the newest is replaced by one that may concern any chain.
            self._changes.pop()
            change = Change(change.order, change.round, 0, "")
        self._changes.append(change)

    def hold(self, job_id: str, end: End) -> None:
        """Postpone counting an end until the next replies: they may show the disk of the job."""
        if len(self.held) < _WAITING_LIMIT and job_id not in self.held:
            self.held[job_id] = end
        else:
            self.end(job_id, end)

    def release(
        self, places: Mapping[tuple[str, str], Place], others: Sequence[schema.JobInfo]
    ) -> None:
        """Count the postponed ends, with the device and type that the replies show."""
        held, self.held = self.held, {}
        types = {info.id: info.type for info in others} if held else {}
        for job_id, end in held.items():
            known = end
            if self.is_newest(job_id, end.serial):
                place = places.get((job_id, end.type), Place())
                known = replace(end, device=place.device, type=end.type or types.get(job_id, ""))
                self._place_change(end.serial, place.device, ())
            self.end(job_id, known)

    def unlocated(self, round: int) -> list[tuple[str, str]]:
        """Return the ids and types of jobs that ended in a round and whose place is unknown."""
        commits = [
            (commit.job_id, "commit")
            for commit in self.waiting
            if commit.round == round
            and not commit.located
            and self.is_newest(commit.job_id, commit.serial)
        ]
        return [*commits, *((job_id, end.type) for job_id, end in self.held.items())]

    def locate(self, round: int, places: Mapping[tuple[str, str], Place], chains: Chains) -> None:
        """Set the place of commits whose end was reported while the replies were on their way."""
        unlocated = set(self.unlocated(round))
        for commit in self.waiting:
            key = (commit.job_id, "commit")
            if key in unlocated and commit.round == round and (place := places.get(key)):
                commit.device = place.device
                commit.span, commit.bare = work(place, chains)
                chain = commit.span.chain if commit.span and commit.span.whole else ()
                self._place_change(commit.serial, place.device, chain)

    def _place_change(self, serial: int, device: str, chain: Sequence[str]) -> None:
        # With an unknown disk it would be a rival of every commit that ended before it.
        for index, change in enumerate(self._changes):
            if change.serial == serial:
                self._changes[index] = replace(change, device=device, chain=chain)

    def wait(self, commit: Commit, now: float) -> None:
        """Postpone counting a commit until its chain is seen."""
        self.expect("commit")
        if len(self.waiting) < _WAITING_LIMIT:
            self.waiting.append(commit)
        else:
            self._settle(commit, commit.device, Seen.UNREADABLE, now)

    def reconnected(self) -> None:
        """Allow for jobs of the same QEMU that may have ended while there was no connection."""
        for commit in self.waiting:
            commit.before.clear()
            if commit.state is State.SAID:
                commit.state = State.KEPT if commit.ours else State.CUT_OFF

    def give_up(self, now: float) -> None:
        """Count all waiting commits: the chain that they worked on will not be seen again."""
        waiting, self.waiting = self.waiting, []
        for commit in waiting:
            self._settle(commit, commit.device, Seen.UNREADABLE, now)

    def judge(self, sighting: Sighting, now: float) -> None:
        """Decide and count the commits that ended before the round of these chains."""
        due = [commit for commit in self.waiting if commit.round < sighting.round]
        self.waiting = [commit for commit in self.waiting if commit.round >= sighting.round]
        for commit in due:
            device, seen = observe(commit, sighting, self._changes)
            self._settle(commit, device, seen, now)
        for commit in self.waiting:
            commit.note(sighting)
        since = min((commit.since for commit in self.waiting), default=sighting.round)
        while self._changes and self._changes[0].round < min(since, sighting.round):
            self._changes.popleft()

    def records(self) -> Mapping[Scope, Sequence[Any]]:
        """Return all records by scope."""
        self.changed = False
        return {
            Scope.OUTCOME: [JobOutcomes(name, *n) for name, n in sorted(self._counts.items())],
            Scope.FINISHED: [Finished(*key, at) for key, at in sorted(self._finished.items())],
            Scope.LAST_ERROR: [LastError(*key, e) for key, e in sorted(self._errors.items())],
        }

    def _settle(self, commit: Commit, device: str, seen: Seen, now: float) -> None:
        result = verdict.result(commit.state, seen)
        end = End("commit", device, result, now, "", commit.first_seen, commit.serial)
        self.end(commit.job_id, end)


def _put(kept: dict[Any, Any], key: object, value: object, most: int = KEYS_LIMIT) -> None:
    """Add an entry as the newest, and drop the oldest beyond `most`."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]
