"""Recorded replies, step by step: through a socket to a real collector, or straight to its assembler."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporter.collect.discovery import Target
from exporter.collect.vm import Vm
from exporter.config.settings import Settings
from exporter.expose.families import join
from exporter.expose.plan import Plan
from exporter.jobs.assembler import Assembler, JobReplies, Replies
from exporter.jobs.memory import VmMemory
from exporter.jobs.places import JobPlaces
from exporter.model import chain
from exporter.model.build import Topology, other_jobs
from exporter.model.device_names import join_key
from exporter.model.state import VmState
from exporter.qmp import queries
from exporter.qmp.client import CommandStats
from exporter.qmp.peer import Process
from exporter.qmp.queries import Query
from exporter.storage.file_stat import FileStat
from exporter.storage.prober import Storage
from tests.fakeqmp import GREETING, FakeQmp

RECORDINGS = Path(__file__).parent / "recordings"
_NOT_FOUND = {"error": {"class": "CommandNotFound", "desc": "not recorded"}}
_VOLATILE = re.compile(
    r"^(qemu_(?:vm_scrape_duration_seconds|(?:vm|block_job)_\w+_timestamp_seconds)\{.*\}) .*$",
    re.MULTILINE,
)


def scenarios(version: str) -> list[str]:
    """Return what begins the names of the steps of one VM: a letter.

    The session of 2.0 asked one thing before and another after its pivot: two VMs to a collector
    that learns what a QEMU does not know.
    """
    return sorted({step if version == "2.0" else step[0] for step in steps(version)})


def steps(version: str, scenario: str = "") -> list[str]:
    """Return the steps of a scenario that asked the block layer, in order."""
    return sorted(
        folder.name
        for folder in (RECORDINGS / version).iterdir()
        if folder.name.startswith(scenario) and list(folder.glob("query-block*.json"))
    )


class Recording:
    """Answers as the present step recorded them, else as an earlier one did.

    What was never asked is CommandNotFound.
    """

    def __init__(self, version: str, step: str = "") -> None:
        self.version = version
        self.step = step
        self._answers: dict[str, Any] = {}

    def load(self, name: str) -> Any:
        """Return a recorded reply, None where there is none."""
        path = RECORDINGS / self.version / self.step / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def replies(self) -> dict[str, Any]:
        """Return the table of a `FakeQmp`."""
        names = ("status", "blockstats", "block", "block-jobs", "jobs", "name", "uuid")
        return {
            f"query-{name}": (lambda arguments, name=f"query-{name}": self._answer(name, arguments))
            for name in names
        }

    def _answer(self, name: str, arguments: Mapping[str, Any]) -> Any:
        form = ".query-nodes" if arguments.get("query-nodes") else ""
        answer = self.load(name + form) or self._answers.get(name + form, _NOT_FOUND)
        self._answers[name + form] = answer
        return answer

    def greeting(self) -> Mapping[str, Any]:
        """Return the greeting of this version, whatever step has it."""
        for folder in sorted((RECORDINGS / self.version).iterdir()):
            if (folder / "greeting.json").exists():
                greeting: Mapping[str, Any] = json.loads((folder / "greeting.json").read_text())
                return greeting
        return GREETING


    def ask(self, query: Query[Any]) -> Any:
        """Return the decoded answer to a query, None where it was never asked."""
        request = json.loads(query.wire)
        name = request["execute"]
        reply = query.decoder.decode(json.dumps(self._answer(name, request.get("arguments", {}))))
        return None if reply.return_ is msgspec.UNSET else reply.return_


def assembled(version: str, names: list[str]) -> Iterator[tuple[str, VmState]]:
    """Yield each step with its state, of one assembler that lives through all; without any I/O."""
    recording = Recording(version)
    greeting = recording.greeting()["QMP"]["version"]
    numbers = tuple(greeting["qemu"][part] for part in ("major", "minor", "micro"))
    process = Process(0, numbers, greeting.get("package", ""))
    memory = VmMemory()
    memory.connected(process, 0.0)
    socket = "/run/test/vm.sock"
    assembler = Assembler("vm", socket, process, lambda device: 0, memory, JobPlaces())
    blockstats = queries.LAYERSTATS if numbers < (2, 5) else queries.BLOCKSTATS
    ask_others = True
    for index, step in enumerate(names):
        recording.step = step
        memory.ask()
        if index == 0:
            name, uuid = recording.ask(queries.NAME), recording.ask(queries.UUID)
        blocks = recording.ask(queries.BLOCK) or []
        entries = recording.ask(blockstats)
        has_blockstats = entries is not None
        if entries is None:
            entries = [chain.without_counters(info) for info in blocks]
        block_jobs = recording.ask(queries.BLOCK_JOBS) or []
        listed = recording.ask(queries.JOBS) if ask_others else None
        ask_others = bool(listed and other_jobs(listed, {job.device for job in block_jobs}))
        jobs = JobReplies(
            block_jobs=block_jobs,
            jobs=listed,
            has_graph=False,  # nor is it recorded
            has_blockstats=has_blockstats,
        )
        topology = Topology({join_key(info): info for info in blocks}) if blocks else None
        replies = Replies(
            entries=entries,
            walk=chain.walk(entries),
            jobs=jobs,
            status=recording.ask(queries.STATUS),
            name=name.name if name else "",
            uuid=uuid.UUID if uuid else "",
            nodes=None if entries else recording.ask(queries.NODESTATS),
            topology=topology,
            topology_timestamp_seconds=float(index) if blocks else None,
        )
        state = assembler.assemble(replies, float(index))
        # Known to whoever asked.
        yield step, msgspec.structs.replace(
            state, duration_seconds=0.0, last_seen_timestamp_seconds=float(index)
        )


async def replay(
    version: str, names: list[str], folder: Path, settings: Settings | None = None
) -> AsyncIterator[tuple[str, VmState, str]]:
    """Yield each step with its snapshot and exposition, of one collector that lives through all."""
    recording = Recording(version)
    settings = settings or Settings()
    socket = str(folder / "vm.sock")
    async with FakeQmp(socket, recording.replies()) as fake:
        fake.greeting = recording.greeting()
        target = Target(vm="vm", socket=socket, group="test", settings=settings)
        # The recorded files are not on this host, whose own mounts have nothing to do with it.
        vm = Vm(target, CommandStats(), Storage(lambda path: FileStat(visible=False)))
        try:
            for step in names:
                recording.step = step
                # Makes the collector ask query-block again: events are not played back here.
                vm._topology.invalidate()
                snapshot = await vm.collect(5)
                yield step, snapshot, exposition(snapshot, folder)
        finally:
            await vm.close()


def exposition(snapshot: VmState, folder: Path = Path("/run/test")) -> str:
    """Return the text of one VM without what differs from run to run."""
    text = join([Plan().render(snapshot)], openmetrics=False).decode()
    return _VOLATILE.sub(r"\1 <varies>", text).replace(str(folder), "/run/test")
