"""Decoded replies and what is remembered -> the state of a VM. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from exporter.jobs.memory import VmMemory
from exporter.jobs.places import JobPlaces
from exporter.model import (
    Counters,
    Device,
    Export,
    ImageFile,
    Job,
    Node,
    Place,
    Topology,
    VmState,
    build,
    place_job,
)
from exporter.model import chain as chains
from exporter.qmp import Process, schema


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReplies:
    """What QEMU answered about its jobs."""

    block_jobs: Sequence[schema.BlockJob] = ()
    #: Of query-jobs; None where it was not asked or not answered.
    jobs: Sequence[schema.JobInfo] | None = None
    graph: schema.Graph | None = None
    #: Whether this QEMU tells its graph.
    has_graph: bool = True
    #: Whether query-blockstats told the chains, and not an older answer of query-block.
    has_blockstats: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """All that one scrape found out about a VM."""

    entries: Sequence[schema.BlockStats]
    #: `chain.walk` of the entries.
    walk: chains.Walk
    jobs: JobReplies = JobReplies()
    status: schema.Status | None = None
    name: str = ""
    uuid: str = ""
    #: Of `query-nodes: true`; None where it was not asked or not answered.
    nodes: Sequence[schema.BlockNode] | None = None
    exports: tuple[Export, ...] = ()
    #: What query-block last answered; None where that is not known or too old.
    topology: Topology | None = None
    topology_timestamp_seconds: float | None = None
    #: What is seen of each image file, by the path that QEMU tells.
    files: Mapping[str, ImageFile] = field(default_factory=dict)
    storage_responding: bool | None = None
    storage_error: str = ""


class Assembler:
    """Makes states of the replies that come over one connection."""

    def __init__(
        self,
        vm: str,
        socket: str,
        process: Process,
        expected_depth: Callable[[str], int],
        memory: VmMemory,
        places: JobPlaces,
    ) -> None:
        """`expected_depth` tells how many backing files a device is expected to have."""
        self._vm = vm
        self._socket = socket
        self._process = process
        self._expected_depth = expected_depth
        self._memory = memory
        self._places = places
        #: The devices as query-block told of them, and what it told.
        self._devices: build.Devices | None = None
        self._topology: Topology | None = None
        self._manager = ""

    def assemble(self, replies: Replies, now: float) -> VmState:
        """Return the state of the VM; jobs that ended are counted.

        Raises:
            ProtocolError: the replies contradict themselves.
        """
        devices, counters = self._count(replies)
        self._memory.know(replies.entries, replies.walk.names)
        free_nodes: tuple[Node, ...] = ()
        if replies.nodes:
            free_nodes, of_free = build.free_nodes(replies.nodes, replies.entries)
            counters = msgspec.structs.replace(counters, free_nodes=of_free)
        jobs = self._track(replies.jobs, replies.entries, devices, now)
        status = replies.status
        return VmState(
            vm=self._vm,
            up=True,
            topology_timestamp_seconds=replies.topology_timestamp_seconds,
            storage_responding=replies.storage_responding,
            storage_error=replies.storage_error,
            running=status.running if status else None,
            status=status.status if status else None,
            name=replies.name,
            uuid=replies.uuid,
            qemu_version=".".join(map(str, self._process.version)),
            manager=self._manager,
            socket=self._socket,
            devices=devices,
            free_nodes=free_nodes,
            exports=replies.exports,
            jobs=jobs,
            counters=counters,
            remembered=self._memory.records(jobs),
        )

    def track(
        self,
        replies: JobReplies,
        entries: Sequence[schema.BlockStats],
        walk: chains.Walk,
        now: float,
    ) -> None:
        """Count the jobs that ended, from what was asked between two scrapes.

        Raises:
            ProtocolError: the replies contradict themselves.
        """
        known = self._devices
        if known is None or walk.names != known.names:
            known = build.devices(entries, None, self._expected_depth)
        self._track(replies, entries, known.found, now)

    def _count(self, replies: Replies) -> tuple[tuple[Device, ...], Counters]:
        """Return the devices; only their counters are new while query-block's answer is not."""
        entries, walk, topology = replies.entries, replies.walk, replies.topology
        known = self._devices
        if known is None or topology is not self._topology or walk.names != known.names:
            known = build.devices(entries, topology, self._expected_depth)
            self._devices, self._topology = known, topology
            self._manager = build.manager(self._process.package, entries)
        return known.found, build.count(known, entries, walk, replies.files)

    def _track(
        self,
        replies: JobReplies,
        entries: Sequence[schema.BlockStats],
        devices: tuple[Device, ...],
        now: float,
    ) -> tuple[Job, ...]:
        """Return the jobs, and have those counted that have ended."""
        tracker = self._memory.jobs
        graph, block_jobs = replies.graph, replies.block_jobs

        def locate(job_id: str) -> Place | None:
            # Without a graph, the jobs that were started here have their place on record.
            recorded = tracker.place(job_id) if graph is None else None
            return recorded or place_job(job_id, graph, entries)

        placed = self._places.learn(block_jobs, tracker.unlocated, locate)
        ids = {job.device for job in block_jobs}
        tracker.listed(ids.union(job.id for job in replies.jobs or ()))
        others = None if replies.jobs is None else build.other_jobs(replies.jobs, ids)
        found = build.jobs(placed, others or (), self._places.known)
        tracker.places_told = replies.has_graph
        tracker.poll(
            block_jobs,
            others,
            self._places.known,
            devices,
            now,
            readable=replies.has_blockstats,
            graph=graph,
        )
        return tuple(tracker.stamped(job) for job in found)
