"""Follows a job until it ends, or until it waits for somebody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from exporter.api import Job
from exporter.ctl import words
from exporter.ctl.client import Client, NoAnswer, NotSent, Refused
from exporter.ctl.progress import Progress
from exporter.ctl.rates import Rates
from exporter.ctl.screen import Screen
from exporter.ctl.text import is_ready, state
from exporter.ctl.words import Prompt
from exporter.errors import ExporterError

#: A job is gone after so many polls without it: an exporter that was just restarted may not have
#: seen its VMs yet.
_GONE_POLLS = 3
#: After so many polls a concluded job without an outcome will not get one: it is recorded at once.
_CONCLUDED_POLLS = 5


class Lost(ExporterError):
    """The outcome of a job that was followed cannot be known; the message says why."""


@dataclass
class Wait:
    """Waits for jobs, without a time limit: an exporter that is down is retried until it is up."""

    client: Client
    screen: Screen
    prompt: Prompt
    interval_seconds: float = 1.0
    rates: Rates = field(default_factory=Rates)

    async def until(self, vm: str, job_id: str, *, ready: bool) -> Job:
        """Return the job when it has ended; with `ready` also when it waits for somebody.

        Raises:
            Lost: it is gone without a record, or the exporter no longer lets us look.
        """
        with self._left_alone(vm, job_id, ready=ready), Progress(self.screen) as progress:
            return await self._follow(vm, job_id, progress, ready=ready)

    async def pause(self, vm: str, job_id: str) -> None:
        """Wait before retrying a request for a ready job."""
        with self._left_alone(vm, job_id, ready=True):
            await asyncio.sleep(self.interval_seconds)

    @contextmanager
    def _left_alone(self, vm: str, job_id: str, *, ready: bool) -> Iterator[None]:
        """If the program is ended meanwhile, say that the job goes on."""
        try:
            yield
        except asyncio.CancelledError:
            text = f'the job goes on: see it with "{self.prompt.line("jobs", vm)}"'
            if ready:
                complete = self.prompt.line("complete", vm, job_id, flag="--when-ready")
                text += f', complete it with "{complete}"'
            self.screen.note(text)
            raise

    async def _follow(self, vm: str, job_id: str, progress: Progress, *, ready: bool) -> Job:
        gone = concluded = 0
        seen = True
        while True:
            try:
                job = await self.client.job(vm, job_id)
            except Refused as error:
                gone = self._gone(error, gone, vm, job_id)
                if not gone:
                    progress.trouble(str(error))
            except (NotSent, NoAnswer) as error:
                progress.trouble(str(error))
            else:
                gone = 0
                self.rates.update([job], time.monotonic())
                progress.job(job, self.rates)
                if seen and not job.in_qemu and not job.outcome:
                    look = self.prompt.line("vms")
                    self.screen.note(f"cannot see whether QEMU has job {job_id}: see {look}")
                seen = job.in_qemu
                if job.outcome or (ready and (is_ready(job) or job.status == "pending")):
                    return job
                concluded = concluded + 1 if job.status == "concluded" else 0
                if concluded and job.error:
                    return job
                if concluded >= _CONCLUDED_POLLS:
                    raise Lost(f"{words.about(job)}, and its outcome was not recorded")
            await asyncio.sleep(self.interval_seconds)

    def _gone(self, error: Refused, times: int, vm: str, job_id: str) -> int:
        """Return how many polls in a row the job was missing; 0 for a refusal that may be temporary."""
        problem = error.problem
        name = words.name(problem)
        if name == "unknown-vm":
            raise Lost(f"the exporter no longer has VM {vm}, and job {job_id} is gone with it")
        if problem.status in {401, 403}:
            raise Lost(f"{words.refusal(problem)}; job {job_id} goes on")
        if name != "unknown-job":
            return 0
        if times + 1 >= _GONE_POLLS:
            raise Lost(f"job {job_id} is gone, and its outcome was not recorded")
        return times + 1


def waits_for(job: Job, prompt: Prompt) -> str:
    """Return what a ready or pending job waits for, with the command for it."""
    verb = "finalize" if state(job) == "pending" else "complete"
    return f"{state(job)}: {verb} it with {prompt.line(verb, job.vm, job.job_id)}"
