"""What the backing chains prove about a commit that has ended.

A chain that has lost the commit's top proves a pivot only if nothing else can have removed that
layer. QEMU lets no other job do so before a commit of the active layer has ended. Rivals are
therefore jobs that ended after it or, if no query listed the commit, after the chain that is
compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from exporter.jobs.verdict import Seen, State
from exporter.model import Device, Merge, Place, users
from exporter.qmp import schema

#: Device -> its layers' node names, `0` the active one.
Chains = Mapping[str, Sequence[str]]
#: The types of jobs whose end may remove layers from a chain. A backup only reads.
CHANGING = frozenset({"commit", "mirror", "stream"})


@dataclass(frozen=True, slots=True)
class Sighting:
    """All chains, as the queries of one round reported them."""

    round: int
    chains: Chains
    #: None if it was not queried.
    graph: schema.Graph | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """The layers of a disk while a commit works on it, and which of them it works on."""

    chain: Sequence[str]
    top: int = 0
    #: None if not known.
    base: int | None = None
    #: Whether these are all the layers of the disk.
    whole: bool = True

    @property
    def named(self) -> bool:
        """Whether this QEMU names its nodes."""
        return all(self.chain)


@dataclass(frozen=True, slots=True)
class Change:
    """The end of a job that may have removed layers from a chain."""

    #: Its number in the order in which ends were reported.
    order: int
    #: The round in which it was reported: the replies of that round may or may not show it.
    round: int
    #: The serial number of the job.
    serial: int
    #: Empty if not known.
    device: str
    #: The layers of that device while the job worked; empty if not known.
    chain: Sequence[str] = ()

    def concerns(self, device: str, top: str) -> bool:
        """Whether it may have removed the layer `top` from the chain of a device."""
        if self.device and device and self.device != device:
            return False
        known = bool(top) and bool(self.chain) and all(self.chain)
        return not known or top in self.chain


@dataclass(slots=True)
class Commit:
    """A commit that has ended, and whose outcome the chain will show."""

    job_id: str
    first_seen: float
    #: Its number in the order in which jobs were first seen.
    serial: int
    state: State
    device: str
    #: Where it worked on a device; None if that is not known.
    span: Span | None
    #: Where it worked on nodes under no device; None if it did not, or that is not known.
    bare: Merge | None
    #: Whether this program started it.
    ours: bool
    #: The round in which its end was reported, and its number among all ends.
    round: int
    order: int
    #: If `span` and `bare` are not known: device -> (round of the reply, the last chain from before
    #: the end, or from about that time).
    before: dict[str, tuple[int, Sequence[str]]] = field(default_factory=dict)

    @property
    def located(self) -> bool:
        """Whether it is known where it worked."""
        return self.span is not None or self.bare is not None

    @property
    def since(self) -> int:
        """The first round whose changes may matter."""
        rounds = () if self.located else [asked for asked, _ in self.before.values()]
        return min(rounds, default=self.round)

    def note(self, sighting: Sighting) -> None:
        """Record chains that were queried before the end was reported.

        They may be from before the end or after it. A chain with new layers is the better one to
        compare with: what matters is whether these layers are gone later.
        """
        if self.located:
            return
        for device, chain in sighting.chains.items():
            _, known = self.before.get(device, (0, ()))
            new = len(chain) - len(known)
            if new > 0 and all(chain) and list(chain[new:]) == list(known):
                self.before[device] = (sighting.round, chain)


def observe(commit: Commit, sighting: Sighting, changes: Iterable[Change]) -> tuple[str, Seen]:
    """Return the device of a commit, "" if it is not known, and what the chains show."""
    others = [change for change in changes if change.serial != commit.serial]
    if commit.bare is not None:
        return "", _observe_bare(commit, commit.bare, sighting, others)
    if commit.span is not None:
        return commit.device, _observe_span(commit, commit.span, sighting, others)
    return _observe_all(commit, sighting, others)


def chains_of(devices: Sequence[Device]) -> Chains:
    """Return the layers of each device."""
    return {
        device.device: [node.node_name for node in device.nodes if node.role == "format"]
        for device in devices
    }


def work(place: Place, chains: Chains) -> tuple[Span | None, Merge | None]:
    """Return the layers that a job works on: of a device, or as nodes under no device."""
    if place.merge is not None and not place.device:
        return None, place.merge
    if place.merge is not None:
        # The graph is from a single instant; the chain may be from another one.
        nodes = place.merge.nodes
        return Span(nodes, 0, len(nodes) - 1, whole=False), None
    if chain := chains.get(place.device, ()):
        return Span(chain, int(place.top or 0), int(place.base) if place.base else None), None
    return None, None


def compare(span: Span, after: Sequence[str]) -> Seen:
    """Compare the layers of a disk with those from before a commit ended."""
    before = span.chain
    if span.top >= len(before) or not after:
        return Seen.STRANGE
    if not span.named:
        # QEMU is too old to name nodes: only the depth can be compared.
        gone = len(before) - len(after)
        wanted = max(gone, 1) if span.base is None else span.base - span.top
        return Seen.TOP if gone == 0 else Seen.PIVOT if gone == wanted else Seen.STRANGE
    if before[span.top] in after:
        return Seen.TOP
    bases = before[span.top + 1 :] if span.base is None else before[span.base : span.base + 1]
    base = next((node for node in bases if node in after), None)
    if base is None:
        return Seen.STRANGE
    above = list(after[: list(after).index(base)])
    stay = list(before[: span.top])
    if stay and above[-len(stay) :] != stay:
        return Seen.STRANGE
    new = above[: len(above) - len(stay)]
    if not set(new).isdisjoint(before):
        return Seen.STRANGE
    return Seen.COVERED if new else Seen.PIVOT


def _observe_span(commit: Commit, span: Span, sighting: Sighting, others: Sequence[Change]) -> Seen:
    if commit.device not in sighting.chains:
        return Seen.UNREADABLE
    seen = compare(span, sighting.chains[commit.device])
    top = span.chain[span.top] if span.top < len(span.chain) else ""
    return _unless_rivals(seen, commit, others, top)


def _observe_bare(
    commit: Commit, bare: Merge, sighting: Sighting, others: Sequence[Change]
) -> Seen:
    """Judge a commit of nodes under no device by what uses its top and its base."""
    if sighting.graph is None or not bare.used:
        return Seen.UNREADABLE
    on_top, on_base = users(sighting.graph, bare)
    if on_top:
        return Seen.TOP
    return _unless_rivals(Seen.PIVOT if on_base else Seen.STRANGE, commit, others, bare.nodes[0])


def _observe_all(commit: Commit, sighting: Sighting, others: Sequence[Change]) -> tuple[str, Seen]:
    """Judge a commit that no query listed: it belongs to the only device that has lost its top.

    A layer that was added to a chain and committed between two replies leaves no trace.
    """
    if not commit.before:
        return commit.device, Seen.UNREADABLE
    lost = {
        device: (asked, chain)
        for device, (asked, chain) in commit.before.items()
        if device in sighting.chains
        and commit.device in (device, "")
        and compare(Span(chain), sighting.chains[device]) in (Seen.PIVOT, Seen.COVERED)
    }
    if len(lost) != 1:
        return commit.device, Seen.FLAT if _is_flat(commit, sighting, others) else Seen.STRANGE
    [(device, (asked, chain))] = lost.items()
    if any(c.round >= asked and c.concerns(device, chain[0]) for c in others):
        return commit.device, Seen.RIVAL
    return device, compare(Span(chain), sighting.chains[device])


def _is_flat(commit: Commit, sighting: Sighting, others: Sequence[Change]) -> bool:
    """Whether no layer is left that a cancelled commit would have left behind.

    Only another job or the removal of the disk could have removed it otherwise.
    """
    if sighting.graph is None or any(change.order > commit.order for change in others):
        return False
    before = {device: list(chain) for device, (_, chain) in commit.before.items()}
    same = before == {device: list(chain) for device, chain in sighting.chains.items()}
    return same and not any(edge.name == "backing" for edge in sighting.graph.edges)


def _unless_rivals(seen: Seen, commit: Commit, others: Sequence[Change], top: str) -> Seen:
    if seen in (Seen.PIVOT, Seen.COVERED) and any(
        change.order > commit.order and change.concerns(commit.device, top) for change in others
    ):
        return Seen.RIVAL
    return seen
