"""The commands that change something: each sends one request, and reports its result."""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from msgspec import UNSET, UnsetType

from exporter.api import (
    JOB_ID_PREFIX,
    JOB_REQUESTS,
    Commit,
    Done,
    Job,
    JobRequest,
    Snapshot,
    verbs,
)
from exporter.ctl import lookup, words
from exporter.ctl.client import Client, NoAnswer, NotSent, Refused
from exporter.ctl.screen import Screen
from exporter.ctl.text import is_ready, state
from exporter.ctl.waiting import Wait, waits_for
from exporter.ctl.words import Prompt

T = TypeVar("T")

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
#: Most characters of the device's name in a job's id, so that the id has at most 63.
_DEVICE_LENGTH = 32
UNKNOWN = 4
#: Problems that mean that somebody else completes or ends the job that was ready.
_OVERTAKEN = frozenset({"already-asked", "unknown-job"})


def made_job_id(device: str) -> str:
    """Return a new, unique id for a job on `device`."""
    safe = _UNSAFE.sub("-", device).strip("-.")[:_DEVICE_LENGTH] or "disk"
    now = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{JOB_ID_PREFIX}{safe}-{now}-{secrets.token_hex(3)}"


class Actions:
    """The actions that `flags` ask for. The methods return exit codes.

    Raises:
        Refused, NotSent: the request changed nothing.
        Lost: waiting is pointless, as the outcome cannot be known.
    """

    def __init__(
        self, client: Client, screen: Screen, prompt: Prompt, flags: argparse.Namespace
    ) -> None:
        self._client = client
        self._screen = screen
        self._prompt = prompt
        self._flags = flags
        self._vm: str = flags.vm
        self._wait = Wait(client, screen, prompt, flags.interval)

    async def commit(self) -> int:
        """Start a commit and, if asked to, wait for it or complete it."""
        flags = self._flags
        if flags.job_id is None:
            flags.job_id = made_job_id(flags.device)
            if not flags.dry_run:
                self._screen.note(f"job {flags.job_id}")
        request = Commit(
            action="commit",
            device=flags.device,
            job_id=flags.job_id or UNSET,
            top=_unset(flags.top),
            base=_unset(flags.base),
            speed_bytes_per_second=_unset(flags.speed),
            unseen_neighbours=_unset(flags.unseen_neighbours),
        )
        # QEMU before 2.7 names the job after the device; any other id is in the answer.
        flags.job_id = flags.job_id or flags.device
        code = await self._send(request)
        if code or flags.dry_run:
            return code
        if flags.complete_when_ready:
            return await self._complete_when_ready()
        return self._ended(await self._until(ready=True)) if flags.wait else 0

    async def complete(self) -> int:
        """Complete a job; if asked to, wait until it is ready first."""
        if self._flags.when_ready and not self._flags.dry_run:
            return await self._complete_when_ready()
        code = await self._send(verbs.Complete())
        if code or self._flags.dry_run or not self._flags.wait:
            return code
        return self._ended(await self._until(ready=False))

    async def change(self, kind: type[JobRequest]) -> int:
        """Change a job; each field of the request comes from the flag of its name, if given."""
        given = {name: getattr(self._flags, name) for name in kind.__struct_fields__}
        fields = {name: value for name, value in given.items() if value is not None}
        return await self._send(kind(**fields))

    async def snapshot(self) -> int:
        """Add a new layer on top of a disk."""
        request = Snapshot(device=self._flags.device, file=self._flags.file)
        dry_run = self._flags.dry_run
        try:
            done = await self._sent(self._client.snapshot(self._vm, request, dry_run=dry_run))
        except NoAnswer as error:
            with self._uncertain():
                found = await lookup.snapshot(self._client, self._vm, request, self._flags.interval)
            if found:
                self._screen.note(f"no reply came: {error}")
                self._screen.note(f"checked: {request.device} is on {request.file} now")
                return 0
            look = self._prompt.line("chain", self._vm, request.device)
            again = "repeating the command does not add a second layer"
            self._unknown(
                error, None, f"{request.device} is not on {request.file}; {again}; see {look}"
            )
            return UNKNOWN
        self._accepted(done)
        return 0

    async def _send(self, request: Commit | JobRequest) -> int:
        job_id, dry_run = self._flags.job_id, self._flags.dry_run
        if isinstance(request, Commit):
            asked = self._client.start(self._vm, request, dry_run=dry_run)
        else:
            asked = self._client.change(self._vm, job_id, request, dry_run=dry_run)
        try:
            done = await self._sent(asked)
        except NoAnswer as error:
            return await self._looked_up(request, error)
        self._flags.job_id = done.job_id or job_id
        self._accepted(done)
        return 0

    async def _sent(self, asked: Awaitable[Done]) -> Done:
        try:
            with self._uncertain():
                return await asked
        except NoAnswer as error:
            if self._flags.dry_run:
                raise NotSent(str(error)) from error
            raise

    @contextmanager
    def _uncertain(self) -> Iterator[None]:
        """If the program is ended meanwhile, say that the request's outcome is unknown."""
        try:
            yield
        except asyncio.CancelledError:
            look = self._prompt.line("jobs", self._vm)
            self._screen.note(f"the request may have been carried out: see {look}")
            raise

    def _accepted(self, done: Done) -> None:
        self._screen.result(done, words.done(done))
        for warning in done.warnings:
            self._screen.note(f"warning: {warning}", "yellow")

    async def _looked_up(self, request: Commit | JobRequest, error: NoAnswer) -> int:
        job_id, seconds = self._flags.job_id, self._flags.interval
        with self._uncertain():
            seen, is_done = await lookup.job(self._client, self._vm, job_id, request, seconds)
        if seen is not None and is_done:
            self._screen.note(f"no reply came: {error}")
            self._screen.result(seen, f"checked: {words.about(seen)}")
            return 0
        if seen is not None:
            look = self._prompt.line("jobs", self._vm)
            self._unknown(error, seen, f"{words.about(seen)}; see {look}")
        elif isinstance(request, Commit) and request.job_id:
            again = f"repeating the command with --job-id={job_id} does not start a second job"
            self._unknown(error, None, f"there is no job {job_id}; {again}")
        else:
            self._unknown(error, None, f"there is no job {job_id}")
        return UNKNOWN

    def _unknown(self, error: NoAnswer, seen: Job | None, found: str) -> None:
        self._screen.note(f"no reply came: {error}", "bold red")
        self._screen.note(f"the outcome of the request is unknown; checked: {found}")
        if self._screen.json and (known := seen or error.problem):
            self._screen.result(known, "")

    async def _until(self, *, ready: bool) -> Job:
        return await self._wait.until(self._vm, self._flags.job_id, ready=ready)

    async def _complete_when_ready(self) -> int:
        job = await self._until(ready=True)
        if not is_ready(job):
            return self._ended(job)
        shown = ""
        while True:
            try:
                code = await self._send(verbs.Complete())
            except (NotSent, Refused) as error:
                problem = error.problem if isinstance(error, Refused) else None
                if problem and words.name(problem) in _OVERTAKEN:
                    return self._ended(await self._until(ready=False))
                if problem and problem.status != 503:
                    raise
                if shown != str(error):
                    shown = str(error)
                    self._screen.note(f"retrying: {shown}")
                await self._wait.pause(self._vm, self._flags.job_id)
            else:
                return code or self._ended(await self._until(ready=False))

    def _ended(self, job: Job) -> int:
        """Report how waiting ended, and return the exit code. JSON lines have the job already."""
        waiting = is_ready(job) or state(job) == "pending"
        if not self._screen.json:
            text = waits_for(job, self._prompt) if waiting else words.about(job)
            self._screen.result(job, text)
        return words.exit_code(job)


def _changing(kind: type[JobRequest]) -> Callable[[Actions], Awaitable[int]]:
    return lambda actions: actions.change(kind)


#: A command's name -> what runs it.
ACTIONS: dict[str, Callable[[Actions], Awaitable[int]]] = {
    **{kind.verb: _changing(kind) for kind in JOB_REQUESTS},
    verbs.Commit.verb: Actions.commit,
    verbs.Complete.verb: Actions.complete,  # it can wait, too
    verbs.Snapshot.verb: Actions.snapshot,
}


def _unset(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value
