"""One pair of hands: it starts jobs on a few disks of one VM, waits for them and ends them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.e2e.lab import QmpError
from tests.truth.disk import Disk
from tests.truth.machine import HANG_SECONDS, Ended, Machine
from tests.truth.oracle import truth
from tests.truth.record import COMPLETED, PLAIN, Job
from tests.truth.recorder import Plan

#: Slow enough to be there until somebody ends it; not so slow that QEMU, which waits for a backup's
#: requests when it changes a graph, is stuck for long.
SLOW = 256 << 10


@dataclass(frozen=True)
class Pace:
    """How long the driver waits, in seconds."""

    #: Between two operations of one pair of hands, in the mean.
    between: float
    #: At most between two steps of one operation.
    step: float


class Work:
    """A pair of hands."""

    def __init__(self, machine: Machine, disks: list[Disk], rng: random.Random, pace: Pace) -> None:
        self.machine = machine
        self.disks = disks
        self.rng = rng
        self.pace = pace
        #: Ids of one's own that may be used again.
        self._ids: list[str] = []
        #: Jobs that are `concluded` and not dismissed yet.
        self.kept: list[Job] = []

    def step(self) -> None:
        """Wait as somebody does between two steps: sometimes not at all."""
        kind = self.rng.random()
        if kind < 0.15:
            return
        if kind < 0.35:
            time.sleep(0.02)
        elif kind < 0.8:
            time.sleep(self.rng.uniform(0.05, min(0.5, self.pace.step)))
        else:
            time.sleep(self.rng.uniform(0, self.pace.step))

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def choose_id(self, disk: Disk, type: str) -> str:
        """Return an id; empty for QEMU's own default, which is the device's name."""
        kind = self.rng.random()
        if disk.kind == "drive" and type not in PLAIN:
            if kind < 0.35:
                return ""
            if kind < 0.42:
                return self.rng.choice(self.disks).label
        if kind < 0.5 and self._ids:
            return self.rng.choice(self._ids)
        made = self.machine.unique(type[0])
        self._ids = [*self._ids, made][-3:]
        return made

    def start(
        self, disk: Disk, command: str, type: str, *, job_id: str | None = None,
        active: bool = False, **arguments: Any,
    ) -> Job | None:  # fmt: skip
        """Start a job; return None where QEMU refuses it."""
        chosen = self.choose_id(disk, type) if job_id is None else job_id
        named = chosen or disk.label
        label = "" if type in PLAIN or disk.unplugged else disk.label
        plan = Plan(type, label, active, disk.kind == "export")
        if not named or not self.machine.recorder.plan(named, plan):
            return None
        if chosen:
            arguments["job_id"] = chosen
        self.machine.say(f"{disk.called}: {command} {named} {_short(arguments)}")
        with self.machine.refusable():
            self.machine.run(command, **arguments)
            return self.begun(plan)
        self.machine.recorder.unplan(named)
        return None

    def begun(self, plan: Plan) -> Job:
        """Return the job that a command has started."""
        self.until(lambda: bool(plan.begun))
        if not plan.begun:
            raise Ended
        return plan.begun[0]

    def until(self, holds: Callable[[], bool], seconds: float = HANG_SECONDS) -> bool:
        """Wait for something that events tell; return whether it came."""
        came = self.machine.recorder.wait(holds, seconds)
        if not came and self.machine.recorder.over:
            raise Ended
        return came

    def ready(self, job: Job) -> bool:
        """Wait until a job is ready; return False where it ended before."""
        return self.until(lambda: bool(job.ready or job.ended or job.gone)) and not job.ended

    def concluded(self, job: Job) -> None:
        """Wait until there is nothing left of a job but to dismiss it."""
        self.until(lambda: bool(job.gone) or job.status == "concluded")

    def ended(self, job: Job) -> None:
        """Wait for the end of a job, and dismiss it where QEMU leaves that to us."""
        self.concluded(job)
        # One that QEMU dismisses by itself is gone a moment later.
        if not self.until(lambda: bool(job.gone), 0.1) and job.status == "concluded":
            self.dismiss(job)

    def dismiss(self, job: Job) -> None:
        """Dismiss a job that is concluded; the error of one that is no block job is read before."""
        if job.type in PLAIN and job.aborting and not job.error:
            for each in self.machine.run("query-jobs"):
                if each["id"] == job.id:
                    job.error = each.get("error", "")
        with suppress(QmpError):
            self.machine.run("job-dismiss", id=job.id)
        self.until(lambda: bool(job.gone), 5)

    def ask(self, job: Job, verb: str, *, force: bool = False) -> None:
        """Have a job completed or cancelled."""
        command = f"job-{verb}" if job.type in PLAIN else f"block-job-{verb}"
        arguments: dict[str, Any] = {("id" if job.type in PLAIN else "device"): job.id}
        if force:
            arguments["force"] = True
        self.machine.say(f"{job.id}: {command}{' force' if force else ''}")
        if not job.gone and self.machine.try_(command, **arguments):
            job.asked = verb

    def speed(self, job: Job, speed: int) -> None:
        """Set the speed of a job that may be gone."""
        self.machine.try_("block-job-set-speed", device=job.id, speed=speed)

    def commit(
        self,
        disk: Disk,
        how: str,
        *,
        base: str = "",
        at_once: bool = False,
        when_ready: Callable[[], object] = lambda: None,
        **more: Any,
    ) -> Job | None:
        """Commit the active layer: `complete` or `cancel` when ready, or `early` before."""
        layers = disk.layers()
        if len(layers) < 2:
            return None
        base = base or layers[-1]
        more |= {"speed": SLOW} if how == "early" else {}
        more |= {"base_node": base} if base != layers[-1] or self.chance(0.3) else {}
        job = self.start(disk, "block-commit", "commit", active=True, device=disk.target(), **more)
        if job is None:
            return None
        if how == "early":
            self.step()
            self.ask(job, "cancel")
        elif self.ready(job):
            when_ready()
            if not at_once:
                self.step()
            self.ask(job, how)
        self.look(disk, job, layers[0], base)
        return job

    def look(self, disk: Disk, job: Job, top: str, base: str) -> None:
        """Look at the chain right after the end of a commit."""
        self.until(lambda: bool(job.ended or job.gone))
        if job.event == "BLOCK_JOB_COMPLETED" and not job.error and not job.moved:
            job.pivoted = disk.pivoted(top)
        self.ended(job)
        disk.settle(top, base, COMPLETED if truth(job) == COMPLETED else "")

    def tidy(self) -> None:
        """Leave nothing behind that later operations would run into."""
        for job in list(self.kept):
            if job.gone or self.chance(0.5):
                self.kept.remove(job)
                self.dismiss(job)
        for disk in self.disks:
            disk.tidy()


def _short(arguments: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={str(each).rpartition('/')[2]}" for name, each in arguments.items()
        if name not in ("job_id", "format")
    )  # fmt: skip
