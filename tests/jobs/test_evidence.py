"""What chains show of a commit that ended, and verdicts on whatever jobs do, against a model of QEMU."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.jobs.assembler import Assembler, JobReplies
from exporter.jobs.evidence import Span, compare
from exporter.jobs.memory import VmMemory
from exporter.jobs.places import JobPlaces
from exporter.jobs.verdict import RESULTS, TABLE, Seen, State
from exporter.model.chain import walk
from exporter.model.job_placement import Merge, users
from exporter.qmp import schema
from exporter.qmp.peer import Process
from tests.disks import block_job
from tests.model.test_job_placement import disk, graph

BEFORE = ("top", "mid", "base")
HERE = Process(7, (7, 2, 0))


@pytest.mark.parametrize(
    ("top", "base", "after", "seen"),
    [
        (0, 1, ("mid", "base"), Seen.PIVOT),
        (0, 2, ("base",), Seen.PIVOT),
        (0, None, ("mid", "base"), Seen.PIVOT),
        (0, None, ("base",), Seen.PIVOT),
        (0, 1, ("new", "mid", "base"), Seen.COVERED),
        (0, 2, ("new", "newer", "base"), Seen.COVERED),
        (0, 1, BEFORE, Seen.TOP),
        (0, 1, ("new", *BEFORE), Seen.TOP),
        (0, 1, ("new", "top"), Seen.TOP),
        (0, 1, ("base",), Seen.STRANGE),  # the base was merged as well
        (0, 2, ("mid", "base"), Seen.STRANGE),  # only a part is gone: another did it
        (0, 1, ("other",), Seen.STRANGE),
        (0, 1, (), Seen.STRANGE),
        (1, 2, ("top", "base"), Seen.PIVOT),
        (1, 2, ("new", "top", "base"), Seen.COVERED),
        (1, 2, ("base",), Seen.STRANGE),  # the one above is gone as well
        (1, 2, BEFORE, Seen.TOP),
        (7, None, BEFORE, Seen.STRANGE),
    ],
)
def test_a_chain_is_compared_by_the_layer_that_was_merged(
    top: int, base: int | None, after: Sequence[str], seen: Seen
) -> None:
    """And by the one that stayed; whatever is new may be above it."""
    assert compare(Span(BEFORE, top, base), after) is seen


@pytest.mark.parametrize(
    ("base", "depth", "seen"),
    [
        (None, 1, Seen.PIVOT), (None, 2, Seen.PIVOT), (None, 3, Seen.TOP), (None, 4, Seen.STRANGE),
        (1, 2, Seen.PIVOT), (1, 1, Seen.STRANGE), (2, 1, Seen.PIVOT), (2, 2, Seen.STRANGE),
    ],
)  # fmt: skip
def test_a_chain_without_names_is_compared_by_its_depth(
    base: int | None, depth: int, seen: Seen
) -> None:
    """QEMU 2.0."""
    assert compare(Span(("",) * 3, 0, base), ("",) * depth) is seen


@pytest.mark.parametrize(
    ("edges", "shown"),
    [
        (("dev:e root t", "t backing m", "m backing b"), (True, False)),
        (("dev:e root b", "t backing m", "m backing b"), (False, True)),
        (("dev:e root n", "n backing b"), (False, True)),
        (("t backing m", "m backing b"), (False, False)),
        (("job:j source t", "t backing m", "m backing b", "job:j target b"), (False, False)),
    ],
)
def test_nodes_under_no_device_are_told_apart_by_what_stands_on_them(
    edges: Sequence[str], shown: tuple[bool, bool]
) -> None:
    """An export moves from the top of a commit to its base."""
    assert users(graph(*edges), Merge(("t", "m", "b"), used=True)) == shown


def test_every_result_has_a_row_and_every_row_a_meaning() -> None:
    """A commit that waits is judged whatever its chain looks like; one is cut off while it waits."""
    waiting = {State.SAID, State.CUT_OFF, State.KEPT, State.GONE}
    chain = {Seen.TOP, Seen.PIVOT, Seen.COVERED, Seen.RIVAL, Seen.STRANGE, Seen.UNREADABLE}

    assert {each for each in TABLE.values() if isinstance(each, str)} == set(RESULTS)
    assert all((state, seen) in TABLE for state in waiting for seen in chain)
    assert all(isinstance(each, str) for (state, _), each in TABLE.items() if state in waiting)
    assert {each for each in TABLE.values() if isinstance(each, State)} == waiting - {State.CUT_OFF}


def test_only_what_was_heard_is_a_success() -> None:
    """Or is a commit of this program's own that stands as it was asked for."""
    rows = {row for row, each in TABLE.items() if each == "completed" and row[0] in (
        State.SAID, State.CUT_OFF, State.KEPT, State.GONE)}  # fmt: skip

    assert rows == {
        (State.SAID, Seen.PIVOT), (State.SAID, Seen.COVERED), (State.SAID, Seen.FLAT),
        (State.KEPT, Seen.PIVOT),
    }  # fmt: skip


# A model of QEMU: disks, jobs, and a wire on which events and answers come in order.


@dataclass
class Running:
    """A job."""

    id: str
    kind: str
    disk: str
    #: Active commit: the layers from top to base. Otherwise what leaves the chain at its end.
    layers: list[str]
    status: str = "running"
    kept: bool = False
    error: str = ""
    how: str = ""


@dataclass
class World:
    """A QEMU and what listens to it."""

    chains: dict[str, list[str]] = field(
        default_factory=lambda: {"disk0": ["a1", "a0"], "disk1": ["b0"]}
    )
    jobs: dict[str, Running] = field(default_factory=dict)
    #: (id, type, how it ended, disk) of each job that ran and ended.
    truth: list[tuple[str, str, str, str]] = field(default_factory=list)
    counted: list[tuple[str, str, str, str]] = field(default_factory=list)
    heard: bool = True
    nodes: int = 0

    def __post_init__(self) -> None:
        self.memory = VmMemory()
        self.connect()
        self.memory.jobs.places_told = True
        outcomes = self.memory.jobs.outcomes
        count = outcomes.count

        def counting(
            job_id: str, device: str, kind: str, result: str, now: float, error: str = ""
        ) -> None:
            self.counted.append((job_id, kind, result, device))
            count(job_id, device, kind, result, now, error)

        outcomes.count = counting  # type: ignore[method-assign,assignment]

    def tell(self, name: str, **data: object) -> None:
        if self.heard:
            job_id, status = self.memory.take(name, json.dumps(data).encode(), 1.0)
            if status == "created":
                self.places.forget(job_id)

    def status(self, job: Running, *statuses: str) -> None:
        for status in statuses:
            job.status = status
            self.tell("JOB_STATUS_CHANGE", id=job.id, status=status)

    def node(self) -> str:
        self.nodes += 1
        return f"n{self.nodes}"

    def busy(self, disk: str) -> bool:
        return any(j.disk == disk and j.status != "concluded" for j in self.jobs.values())

    # What happens.

    def snapshot(self, disk: str, _: int) -> None:
        if not self.busy(disk):
            self.chains[disk].insert(0, self.node())

    def change_medium(self, disk: str, choice: int) -> None:
        if not self.busy(disk):
            self.chains[disk] = [self.node(), self.node()][: 1 + choice % 2]

    def start(self, disk: str, choice: int) -> None:
        chain = self.chains[disk]
        kinds = ["backup", "mirror", "create"]
        kinds += ["commit", "commit", "commit", "stream"] if len(chain) > 1 else []
        kinds += ["middle"] if len(chain) > 2 else []
        kind, choice = kinds[choice % len(kinds)], choice // len(kinds)
        ids = ["disk0", "disk1", "x", f"j{self.nodes}"]
        job_id, choice = ids[choice % len(ids)], choice // len(ids)
        if job_id in self.jobs or self.busy(disk):
            return
        self.nodes += 1
        layers: list[str] = []
        if kind == "commit":
            layers = chain[: 2 + choice % (len(chain) - 1)]
        elif kind == "middle":
            layers = chain[1 : 3 + choice % (len(chain) - 2)]
        elif kind == "stream":
            layers = chain[1:]
        name = "commit" if kind == "middle" else kind
        kept = kind == "create" or choice % 5 == 0
        job = self.jobs[job_id] = Running(job_id, name, disk, layers, kept=kept, how=kind)
        self.status(job, "created", "running")

    def go_on(self, _: str, choice: int) -> None:
        if self.jobs:
            job = list(self.jobs.values())[choice % len(self.jobs)]
            self._step(job, choice // len(self.jobs))

    def _step(self, job: Running, choice: int) -> None:
        if job.status == "concluded":
            self.status(job, "null")
            del self.jobs[job.id]
        elif job.status == "running" and job.how in ("commit", "mirror") and choice % 4:
            self.status(job, "ready")
            self.tell("BLOCK_JOB_READY", device=job.id, type=job.kind)
        elif job.status == "ready":
            self._end(job, ["completed", "completed", "cancelled", "failed"][choice % 4])
        else:
            self._end(
                job, ["completed", "completed", "completed", "cancelled", "failed"][choice % 5]
            )

    def _end(self, job: Running, how: str) -> None:
        ready = job.status == "ready"
        if how == "completed" and not ready and job.how in ("commit", "mirror"):
            how = "cancelled"  # one that is not ready cannot be completed
        if how == "completed":
            self._change(job)
        self.truth.append(
            (
                job.id,
                job.kind,
                "completed" if ready and job.kind == "mirror" and how == "cancelled" else how,
                job.disk,
            )
        )
        error = {"cancelled": "Operation canceled", "failed": "No space left on device"}.get(
            how, ""
        )
        if job.kind == "create":
            job.error = error
            self.status(job, *(["aborting"] if error else ["waiting", "pending"]), "concluded")
        else:
            soft = how == "completed" or (how == "cancelled" and ready)
            job.error = "" if soft else error
            self.status(job, *(["waiting", "pending"] if soft else ["aborting"]))
            data = {"device": job.id, "type": job.kind}
            if how == "cancelled" and not ready:
                self.tell("BLOCK_JOB_CANCELLED", **data)
            else:
                self.tell("BLOCK_JOB_COMPLETED", **data, **({"error": error} if not soft else {}))
            self.status(job, "concluded")
        if not job.kept:
            self._step(job, 0)

    def _change(self, job: Running) -> None:
        chain = self.chains[job.disk]
        if job.how == "mirror":
            # To a target of its own, or to one on the layers below.
            self.chains[job.disk] = [self.node(), *(chain[1:] if self.nodes % 2 else [])]
        elif job.how in ("commit", "middle"):
            self.chains[job.disk] = [node for node in chain if node not in job.layers[:-1]]
        elif job.how == "stream":
            self.chains[job.disk] = [node for node in chain if node not in job.layers]

    # What is asked, each answer at its own moment.

    def graph(self) -> schema.Graph:
        edges = []
        for name, chain in self.chains.items():
            job = next(
                (j for j in self.jobs.values() if j.disk == name and j.status != "concluded"), None
            )
            nodes = [*([f"filter-{job.id}"] if job and job.how == "commit" else []), *chain]
            edges.append(f"dev:{name} root {nodes[0]}")
            edges += [f"{a} backing {b}" for a, b in pairwise(nodes)]
            if job is not None and job.kind != "create":
                edges.append(f"job:{job.id} main_node {nodes[0]}")
                if job.how == "commit":
                    edges.append(f"job:{job.id} source {job.layers[0]}")
                    edges.append(f"job:{job.id} target {job.layers[-1]}")
                elif job.layers:
                    edges += [f"job:{job.id} intermediate_node {n}" for n in job.layers[:-1]]
                    edges.append(f"job:{job.id} base {job.layers[-1]}")
        return graph(*edges)

    def ask(self, between: Callable[[], None], *, look: bool) -> None:
        """Ask as a look does, or as a scrape, while other things happen."""
        jobs = self.memory.jobs
        jobs.ask()
        between()
        told_graph = self.graph() if look else None
        between()
        entries = [disk(name, *chain) for name, chain in self.chains.items()]
        between()
        told = [
            msgspec.convert(
                block_job(j.id, j.kind, status=j.status, ready=j.status == "ready",
                          **({"error": j.error} if j.error else {})),
                schema.BlockJob,
            )
            for j in self.jobs.values() if j.kind != "create"
        ]  # fmt: skip
        between()
        missing = self.places.missing(told)
        if told_graph is None and (missing or jobs.graph_wanted):
            told_graph = self.graph()
        between()
        others = [
            msgspec.convert(
                {"id": j.id, "type": j.kind, "status": j.status, "current-progress": 0,
                 "total-progress": 1, **({"error": j.error} if j.error else {})},
                schema.JobInfo,
            )
            for j in self.jobs.values() if j.kind == "create"
        ]  # fmt: skip
        between()
        replies = JobReplies(block_jobs=told, jobs=others, graph=told_graph)
        self.assembler.track(replies, entries, walk(entries), 1.0)

    def connect(self) -> None:
        self.memory.connected(HERE, 1.0)
        self.places = JobPlaces()
        self.assembler = Assembler("vm", "", HERE, lambda _: 0, self.memory, self.places)

    def reconnect(self, _: str, __: int) -> None:
        self.heard = True
        self.connect()

    def lose(self, _: str, __: int) -> None:
        self.heard = False


def play(numbers: list[int], *, gaps: bool) -> World:
    """Have things happen by chance."""
    world = World()
    left = list(reversed(numbers))
    things: list[Callable[[str, int], None]] = [
        world.snapshot, world.start, world.start, world.go_on, world.go_on, world.go_on,
        world.go_on, world.change_medium,
    ]  # fmt: skip

    def happen(number: int) -> None:
        thing, number = things[number % len(things)], number // len(things)
        thing(("disk0", "disk1")[number % 2], number // 2)

    def between() -> None:
        while left and left[-1] % 3 == 0:
            happen(left.pop() // 3)

    world.ask(lambda: None, look=False)
    while left:
        kind, number = left[-1] % 7, left.pop() // 7
        if gaps and kind == 6:
            (world.reconnect if not world.heard else world.lose)("", 0)
        elif kind in (4, 5) and world.heard:
            world.ask(between, look=kind == 4)
        else:
            happen(number)
    if not world.heard:
        world.reconnect("", 0)
    for _ in range(3):
        world.ask(lambda: None, look=True)
    return world


_NUMBERS = st.lists(st.integers(0, 10**7), min_size=10, max_size=120)


def assert_true(world: World) -> None:
    """See that nothing was said that is not so."""
    truth = Counter((job_id, kind, how) for job_id, kind, how, _ in world.truth)
    said = Counter((job_id, kind, how) for job_id, kind, how, _ in world.counted)
    for (job_id, kind, how), count in said.items():
        if how in ("completed", "failed", "cancelled"):
            kinds = ("create",) if kind == "" else (kind,)
            assert count <= sum(truth[job_id, each, how] for each in kinds), (job_id, kind, how)
    for job_id, kind, how, device in world.counted:
        if device:
            assert (
                any((job_id, kind, device) == (t[0], t[1], t[3]) for t in world.truth)
                or how == "vanished"
            ), (job_id, kind, how, device)


@settings(max_examples=150, deadline=None)
@given(_NUMBERS)
def test_no_verdict_is_wrong_and_no_end_is_lost(numbers: list[int]) -> None:
    """Whatever jobs do to the disks, and between any two answers."""
    world = play(numbers, gaps=False)

    assert_true(world)
    assert len(world.counted) == len(world.truth)
    assert not [each for each in world.counted if each[2] == "vanished"]


@settings(max_examples=150, deadline=None)
@given(_NUMBERS)
def test_no_verdict_is_wrong_though_the_connection_is_lost(numbers: list[int]) -> None:
    """Events are lost, and the QEMU is the same."""
    assert_true(play(numbers, gaps=True))
