"""A simulated virtual machine. It has no clock of its own: call `advance`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from exporter.demo.scenarios import CHAIN_LAYERS, Scenario
from exporter.demo.simulated_disks import Disk, Job, Layer, Record, graph

VERSION: Record = {
    "qemu": {"major": 7, "minor": 2, "micro": 0},
    "package": "simulated: this is not QEMU",
}
#: How long the guest takes to fill a new layer.
_FILL_SECONDS = 2.0
_BYTES_PER_OPERATION = 16 * 1024
_CHAIN_RATES = {"rd": 4.0, "wr": 1.0, "flush": 0.5}
_DATA_RATES = {"rd": 8.0, "wr": 4.0, "flush": 0.5}


class SimulatedVm:
    """One virtual machine that goes through its scenario as its time advances."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        """The paths of its image files are in `folder`."""
        self.name = f"simulated-{scenario.name}"
        self.scenario = scenario
        self._folder = folder
        self._uuid = str(uuid.uuid4())
        self._layers_made = 0
        self._chain = self._disk(0, CHAIN_LAYERS, _CHAIN_RATES)
        self._data = self._disk(1, 1, _DATA_RATES)
        self._disks = (self._chain, self._data)
        self._job: Job | None = None
        self._events: list[Record] = []
        self._news: list[str] = []
        self._life = self._live()
        next(self._life)
        self._queries: dict[str, Callable[[], object]] = {
            "query-status": lambda: {"status": "running", "singlestep": False, "running": True},
            "query-name": lambda: {"name": self.name},
            "query-uuid": lambda: {"UUID": self._uuid},
            "query-version": lambda: VERSION,
            "query-migrate": dict,
            "query-migrate-capabilities": list,
            "query-commands": lambda: [{"name": name} for name in self._queries],
            "query-blockstats": lambda: [disk.block_stats() for disk in self._disks],
            "query-block": lambda: [disk.block_info() for disk in self._disks],
            "query-block-exports": list,
            "query-block-jobs": lambda: [self._job.block_job()] if self._job else [],
            "query-jobs": lambda: [self._job.job()] if self._job else [],
            "x-debug-query-block-graph": lambda: graph(self._disks, self._job),
        }

    def answer(self, command: str) -> Record:
        """Return QEMU's reply to a command."""
        query = self._queries.get(command)
        if query is None:
            description = f"The command {command} has not been found"
            return {"error": {"class": "CommandNotFound", "desc": description}}
        return {"return": query()}

    def advance(self, seconds: float) -> tuple[list[Record], list[str]]:
        """Advance the VM's time, and return its events, and the news for people."""
        for disk in self._disks:
            disk.work(seconds)
        self._life.send(seconds)
        events, news = self._events, self._news
        self._events, self._news = [], []
        return events, news

    def files(self) -> set[Path]:
        """Return the paths of its present image files."""
        return {Path(layer.file) for disk in self._disks for layer in disk.layers}

    def _live(self) -> Generator[None, float, Any]:
        """Go through the scenario; each `yield` returns the seconds that have passed."""
        scenario, disk = self.scenario, self.scenario.chain_device
        while True:
            self._chain.layers.insert(0, self._layer())
            self._news.append(f"snapshot; {disk} writes to {self._active_file()} now")
            yield from _pass(_FILL_SECONDS)
            self._chain.write(scenario.overlay_bytes)
            yield from self._commit()
            while scenario.ready_seconds is None:
                yield
            yield from _pass(scenario.ready_seconds)
            self._complete()
            self._news.append(f"completed; {disk} is back on {self._active_file()}")
            yield from _pass(scenario.rest_seconds)

    def _commit(self) -> Generator[None, float, None]:
        job = self._job = Job(
            job_id=self._chain.device or f"commit-vda-{self._chain.layers[0].node_name}",
            length=self.scenario.overlay_bytes,
            speed=self.scenario.speed_bytes_per_second,
        )
        self._change(job, "created")
        self._change(job, "running")
        self._news.append(f"block-commit of {self._active_file()} begins")
        while job.offset < job.length:
            seconds = yield
            job.offset = min(job.length, job.offset + seconds * job.speed)
        self._change(job, "ready")
        self._tell("BLOCK_JOB_READY", job.event_data())
        self._news.append("the commit is ready to be completed")

    def _complete(self) -> None:
        job, self._job = self._job, None
        assert job is not None
        self._change(job, "waiting")
        self._change(job, "pending")
        self._chain.pivot()
        self._tell("BLOCK_JOB_COMPLETED", job.event_data())
        self._change(job, "concluded")
        self._change(job, "null")

    def _change(self, job: Job, status: str) -> None:
        job.status = status
        self._tell("JOB_STATUS_CHANGE", {"status": status, "id": job.job_id})

    def _tell(self, event: str, data: Record) -> None:
        self._events.append({"event": event, "data": data})

    def _active_file(self) -> str:
        return Path(self._chain.layers[0].file).name

    def _disk(self, number: int, depth: int, rates: dict[str, float]) -> Disk:
        layers = [self._layer() for _ in range(depth)]
        if self.scenario.libvirt:
            device, path = "", f"peripheral/virtio-disk{number}"
        else:
            device, path = f"disk{number}", f"peripheral-anon/device[{number}]"
        return Disk(
            device=device,
            qdev=f"/machine/{path}/virtio-backend",
            layers=layers[::-1],
            rates=rates,
            bytes_per_operation=_BYTES_PER_OPERATION,
        )

    def _layer(self) -> Layer:
        self._layers_made += 1
        number = self._layers_made
        names = (
            (f"libvirt-{number}-format", f"libvirt-{number}-storage")
            if self.scenario.libvirt
            else (f"#block{number}47", f"#block{number}08")
        )
        return Layer(*names, file=str(self._folder / f"{self.name}-{number}.qcow2"))


def _pass(seconds: float) -> Generator[None, float, None]:
    while seconds > 0:
        seconds -= yield
