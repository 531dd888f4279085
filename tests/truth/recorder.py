"""What QEMU says of the jobs of one VM, on a monitor that nobody sends a command to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.lab import Monitor
from tests.truth.record import PLAIN, Job, Record

_ENDS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


@dataclass
class Plan:
    """What the driver is about to start under an id."""

    type: str
    device: str = ""
    active: bool = False
    exported: bool = False
    #: The jobs that began under it: one, or none where QEMU refused the command.
    begun: list[Job] = field(default_factory=list)


class Recorder(threading.Thread):
    """The jobs of one life of a VM, as its events come."""

    def __init__(self, monitor: Monitor, record: Record, vm: str, life: int) -> None:
        super().__init__(name=f"{vm} recorder", daemon=True)
        self._monitor = monitor
        self._monitor._socket.settimeout(None)
        self._record = record
        self._vm = vm
        self._life = life
        self._jobs: dict[str, Job] = {}
        self._plans: dict[str, Plan] = {}
        self._news = threading.Condition()
        #: QEMU hung up.
        self.over = False

    def plan(self, job_id: str, plan: Plan) -> bool:
        """Say what the next job of an id is; return whether the id is free."""
        with self._news:
            if job_id in self._plans or job_id in self._jobs:
                return False
            self._plans[job_id] = plan
            return True

    def unplan(self, job_id: str) -> None:
        """Forget what was planned: QEMU refused it."""
        with self._news:
            self._plans.pop(job_id, None)

    def job(self, job_id: str) -> Job | None:
        """Return the job that has an id now, None where none has."""
        with self._news:
            return self._jobs.get(job_id)

    def alive(self) -> list[Job]:
        """Return the jobs that QEMU has."""
        with self._news:
            return list(self._jobs.values())

    def wait(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds, which only an event can make hold."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not holds():
                left = deadline - time.monotonic()
                if self.over or left <= 0:
                    return False
                self._news.wait(left)
        return True

    def run(self) -> None:
        """Read until QEMU hangs up."""
        try:
            for early in self._monitor.events:
                self._take(early)
            while True:
                message = self._monitor._read()
                if "event" in message:
                    self._take(message)
        except (EOFError, OSError, ValueError):
            pass  # it ended, or was ended in the middle of a line
        finally:
            with self._news:
                self.over = True
                self._news.notify_all()
            self._monitor.close()

    def _take(self, message: dict[str, Any]) -> None:
        stamp = message["timestamp"]
        at = stamp["seconds"] + stamp["microseconds"] / 1e6
        name, data = str(message["event"]), message.get("data", {})
        if "JOB" not in name and name not in ("SHUTDOWN", "DEVICE_DELETED"):
            return
        with self._news:
            if name == "JOB_STATUS_CHANGE":
                self._take_status(str(data["id"]), str(data["status"]), at)
            elif name in _ENDS:
                self._take_end(name, data, at)
            elif name == "BLOCK_JOB_READY" and (job := self._jobs.get(data["device"])):
                job.ready = job.ready or at
            told = " ".join(f"{key}={data[key]}" for key in data if key not in ("len", "speed"))
            self._record.say(at, self._vm, f"    QEMU: {name} {told}")
            self._news.notify_all()

    def _take_status(self, job_id: str, status: str, at: float) -> None:
        if status == "created":
            plan = self._plans.pop(job_id, None) or Plan("?")
            job = Job(self._vm, self._life, job_id, plan.type, at, plan.device, plan.active)
            job.exported = plan.exported
            plan.begun.append(job)
            self._jobs[job_id] = job
            self._record.jobs.append(job)
            return
        job_now = self._jobs.get(job_id)
        if job_now is None:
            return
        job_now.status = status
        if status == "running":
            job_now.ran = True
        elif status == "aborting":
            job_now.aborting = True
        elif status == "concluded" and job_now.type in PLAIN and not job_now.ended:
            job_now.ended, job_now.event = at, status
        elif status == "null":
            job_now.gone = at
            del self._jobs[job_id]

    def _take_end(self, name: str, data: dict[str, Any], at: float) -> None:
        job = self._jobs.get(data["device"])
        if job is None:
            return
        job.ended, job.event, job.type = at, name, str(data["type"])
        job.error = str(data.get("error", ""))
