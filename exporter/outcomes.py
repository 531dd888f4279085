"""How the jobs of one VM ended: counted, and for commits first compared with the chain.

Pure, and bounded whatever a VM sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.family import Scope
from exporter.filename import public_text
from exporter.graph import Place
from exporter.model import Device, Finished, JobOutcomes, LastError

COMPLETED, FAILED, CANCELLED, UNVERIFIED, VANISHED = RESULTS = (
    "completed", "failed", "cancelled", "unverified", "vanished",
)  # fmt: skip
#: Most commits of one VM that wait for the chain.
_WAITING_LIMIT = 1000
#: Most combinations of labels that are remembered of one VM, and most job types.
KEYS_LIMIT = 1000
_TYPES_LIMIT = 32
#: Most jobs of one VM whose end is remembered by their id.
ENDS_LIMIT = 64
_TYPE_LENGTH_LIMIT = 64

#: Device -> its layers' node names, `0` the active one.
Chains = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended, for who asks for it by its id."""

    type: str
    device: str
    result: str
    #: When it was learnt of.
    timestamp_seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A commit that ended, and waits for the chain to show how."""

    job_id: str
    device: str
    #: The layers while it ran, and which of them it worked on; empty where no query saw it.
    chain: Sequence[str]
    place: Place | None
    #: The devices before it ran, where no query saw it.
    before: Sequence[Device]
    #: What it is if the chain does not show that it was completed.
    otherwise: str
    #: When it ended: the chain of an answer that was asked for in the same round may be of before.
    round: int

    @property
    def unknown(self) -> str:
        """What it is if the chain shows nothing."""
        return VANISHED if self.otherwise == VANISHED else UNVERIFIED


class Outcomes:
    """The ends of the jobs of one VM."""

    def __init__(self) -> None:
        #: Commits that wait for the chain.
        self.waiting: list[Ended] = []
        #: Type -> jobs by result, in the order of `RESULTS`.
        self._counts: dict[str, list[int]] = {}
        self._finished: dict[tuple[str, str, str], float] = {}
        self._errors: dict[tuple[str, str], str] = {}
        #: The last jobs that ended, by id.
        self.ends: dict[str, End] = {}
        #: Whether anything is not as `records` returned it.
        self.changed = False

    def count(
        self, job_id: str, device: str, type: str, result: str, now: float, error: str = ""
    ) -> None:
        """Count an end, learnt of `now`."""
        _put(self.ends, job_id, End(type, device, result, now, public_text(error)), ENDS_LIMIT)
        name = self.expect(type)
        self._counts[name][RESULTS.index(result)] += 1
        _put(self._finished, (device, name, result), now)
        if result == FAILED and error:
            _put(self._errors, (device, name), public_text(error))
        self.changed = True

    def expect(self, type: str) -> str:
        """Have counters of a type, at 0 before the first end, and return its label."""
        if type in self._counts:
            return type
        many = len(self._counts) >= _TYPES_LIMIT or len(type) > _TYPE_LENGTH_LIMIT
        name = "other" if many else type
        self._counts.setdefault(name, [0] * len(RESULTS))
        self.changed = True
        return name

    def wait(self, ended: Ended, now: float) -> None:
        """Count a commit when its chain is seen next."""
        self.expect("commit")
        if len(self.waiting) < _WAITING_LIMIT:
            self.waiting.append(ended)
        else:
            self.count(ended.job_id, ended.device, "commit", ended.unknown, now)

    def give_up(self, now: float) -> None:
        """Count those that wait: the chain that they worked on will not be seen any more."""
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            self.count(each.job_id, each.device, "commit", each.unknown, now)

    def judge(self, chains: Chains, round: int, now: float) -> None:
        """Count the commits that ended before this round, as its chains show them."""
        due = [each for each in self.waiting if each.round < round]
        self.waiting = [each for each in self.waiting if each.round >= round]
        for each in due:
            device, result = _verdict(each, due, chains)
            self.count(each.job_id, device, "commit", result, now)

    def judge_vanished(self, chains: Chains, now: float) -> None:
        """Count the vanished commits of this very round that have completed.

        A chain that has changed stays so; one that has not may change between two answers of one
        round, and is looked at again in the next.
        """
        for each in [each for each in self.waiting if each.otherwise == VANISHED]:
            if _verdict(each, self.waiting, chains)[1] == COMPLETED:
                self.waiting.remove(each)
                self.count(each.job_id, each.device, "commit", COMPLETED, now)

    def records(self) -> Mapping[Scope, Sequence[Any]]:
        """Return what is remembered, by what it is about."""
        self.changed = False
        return {
            Scope.OUTCOME: [JobOutcomes(name, *n) for name, n in sorted(self._counts.items())],
            Scope.FINISHED: [Finished(*key, at) for key, at in sorted(self._finished.items())],
            Scope.LAST_ERROR: [LastError(*key, e) for key, e in sorted(self._errors.items())],
        }


def chains_of(devices: Sequence[Device]) -> Chains:
    """Return the layers of each device."""
    return {
        device.device: [node.node_name for node in device.nodes if node.role == "format"]
        for device in devices
    }


def _put(kept: dict[Any, Any], key: object, value: object, most: int = KEYS_LIMIT) -> None:
    """Remember the newest."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]


def _verdict(each: Ended, all_of_them: Sequence[Ended], chains: Chains) -> tuple[str, str]:
    """Return the device and the result of a commit, as the chains show it.

    A chain that lost its top tells of one commit: where several may have done it, nobody knows
    which of them did.
    """
    if each.chain:
        if each.device not in chains:
            return each.device, each.unknown
        if not _pivoted(each.chain, chains[each.device], each.place):
            # A chain without any of its layers was changed again since, and does not tell.
            strange = all(each.chain) and set(each.chain).isdisjoint(chains[each.device])
            return each.device, each.unknown if strange else each.otherwise
        device = each.device
    else:
        before = chains_of(each.before)
        pivoted = [
            device
            for device in ([each.device] if each.device else before)
            if device in before
            and device in chains
            and _pivoted(before[device], chains[device], None)
        ]
        if len(pivoted) != 1:
            # A layer that was put on the chain and committed between two scrapes leaves no trace.
            return each.device, each.unknown
        device = pivoted[0]
    rivals = sum(other.device in (device, "") for other in all_of_them)
    return device, COMPLETED if rivals == 1 else each.unknown


def _pivoted(before: Sequence[str], after: Sequence[str], place: Place | None) -> bool:
    """Whether the top that was committed is gone from the chain, and its base is there."""
    if not all(before):
        return 0 < len(after) < len(before)  # an old QEMU that names no nodes
    top = int(place.top) if place and place.top else 0
    if top >= len(before) or before[top] in after:
        return False
    if place and place.base:
        base = int(place.base)
        return base < len(before) and before[base] in after
    return bool(after) and after[0] in before
