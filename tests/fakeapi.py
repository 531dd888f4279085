"""The HTTP API of an exporter, with jobs whose lives are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import web

from exporter.api.types import Device, Done, Job, JobList, Layer, Problem, Vm, VmList, VmSummary

GIB = 1024**3


def vm(name: str = "web", **more: Any) -> Vm:
    """Return a VM with a disk of three layers."""
    facts = {
        "up": True, "reason": None, "status": "running", "running": True, "name": name,
        "qemu_version": "10.0.2", "manager": None, "socket": f"/run/{name}.sock",
        "storage_responding": True, "device_count": 1, "job_count": 0, "backing_depth_max": 2,
        "devices": [device()], "jobs": [],
    }  # fmt: skip
    return Vm(vm=name, **{**facts, **more})


def device(name: str = "disk0", depth: int = 2) -> Device:
    """Return a disk with its chain."""
    return Device(
        device=name, inserted=True, read_only=False, io_status="ok", backing_depth=depth,
        expected_backing_depth=0, layers=[
            Layer(layer=n, node_name=f"#block{n}", driver="qcow2", file=f"/images/{n}.qcow2",
                  virtual_size_bytes=20 * GIB, allocated_bytes=GIB + n * GIB // 2)
            for n in range(depth + 1)
        ],
    )  # fmt: skip


def job(job_id: str = "qbe-1", **more: Any) -> Job:
    """Return a commit that runs."""
    facts = {
        "vm": "web", "job_type": "commit", "device": "disk0", "status": "running", "ready": False,
        "paused": False, "busy": True, "offset_bytes": GIB, "length_bytes": 4 * GIB, "top": 0, "base": 2,
    }  # fmt: skip
    return Job(job_id=job_id, **{**facts, **more})


def ready(job_id: str = "qbe-1", **more: Any) -> Job:
    """Return a commit that can be completed."""
    return job(job_id, **{"status": "ready", "ready": True, "offset_bytes": 4 * GIB, **more})


def ended(outcome: str, job_id: str = "qbe-1", **more: Any) -> Job:
    """Return the record of a commit."""
    facts = {"status": None, "ready": None, "paused": None, "busy": None}
    return job(job_id, **{**facts, "outcome": outcome, **more})


def problem(name: str, status: int, **more: Any) -> Problem:
    """Return a refusal as the API words it."""
    facts = {"title": f"It is {name}", "detail": f"all about {name}", "instance": "/"}
    return Problem(type=f"/api/v1/problems/{name}", status=status, **{**facts, **more})


#: What a request gets: an answer, or None for a connection that is cut.
Answer = Problem | web.Response | None


class FakeApi:
    """A server whose answers are scripted."""

    def __init__(self) -> None:
        self.vms = [vm()]
        self.lives: dict[str, list[Job]] = {}
        #: What the next job that is started goes through, the last for ever; and once completed.
        self.life: list[Job] = [ready()]
        self.completed: list[Job] = [ended("completed")]
        #: Instead of what a POST would get.
        self.posts: list[Answer] = []
        #: Instead of what a GET of jobs would get.
        self.gets: list[Answer] = []
        self.asked: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.changed = asyncio.Event()
        self.replay = False
        self.warnings: list[str] = []
        self.prefix = ""
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    async def start(self, ssl: Any = None) -> None:
        """Serve; after `stop` on the same port."""
        app = web.Application()
        app.router.add_route("*", "/{path:(?s:.*)}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=ssl, reuse_address=True
        )
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Serve no more."""
        if self._runner:
            await self._runner.cleanup()
        self._runner = None

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until requests have made something true."""
        async with asyncio.timeout(60):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    def verbs(self) -> list[str]:
        """Return the last word of each POST."""
        return [path.rpartition("/")[2] for method, path, _ in self.asked if method == "POST"]

    def polls(self) -> int:
        """Return how often a job was asked for."""
        return sum(method == "GET" and "/block-jobs" in path for method, path, _ in self.asked)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        body = msgspec.json.decode(await request.read() or b"null")
        self.asked.append((request.method, path, body))
        self.headers.append(dict(request.headers))
        self.changed.set()
        dry_run = request.query.get("dry_run") == "true"
        scripted = self.posts if request.method == "POST" else self.gets
        if scripted and (request.method == "POST" or "/block-jobs" in path):
            return self._scripted(request, scripted.pop(0))
        if not path.startswith(f"{self.prefix}/api/v1/"):
            return web.Response(status=404, text="404: Not Found")
        parts = [unquote(part) for part in path.removeprefix(f"{self.prefix}/api/v1/").split("/")]
        match request.method, parts:
            case "GET", ["vms"]:
                names = VmSummary.__struct_fields__
                lines = [VmSummary(**{k: getattr(each, k) for k in names}) for each in self.vms]
                return _json(VmList(lines))
            case "GET", ["vms", *_] if self._vm(request) is None:
                return _json(problem("unknown-vm", 404))
            case "GET", ["vms", _]:
                return _json(self._vm(request))
            case "GET", [*_, "block-jobs"]:
                return _json(JobList([_next(life) for life in self.lives.values()]))
            case "GET", [*_, "block-jobs", job_id]:
                return self._job(job_id)
            case "POST", ["admin", "vms", name, *rest]:
                return self._changed(name, rest, body, dry_run)
        return web.Response(status=405, text="405: Method Not Allowed")

    def _scripted(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        if isinstance(answer, web.Response):
            return answer
        if answer is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return _json(answer)

    def _vm(self, request: web.Request) -> Vm | None:
        parts = request.raw_path.partition("?")[0].removeprefix(self.prefix).split("/")
        name = unquote(parts[4])
        return next((each for each in self.vms if each.vm == name), None)

    def _job(self, job_id: str) -> web.Response:
        life = self.lives.get(job_id)
        if not life:
            return _json(problem("unknown-job", 404))
        return _json(_next(life))

    def _changed(self, name: str, rest: list[str], body: Any, dry_run: bool) -> web.Response:
        start = rest == ["block-jobs"]
        verb: Any = "snapshot" if rest == ["snapshots"] else "commit" if start else rest[2]
        job_id: Any = (
            None
            if verb == "snapshot"
            else body.get("job_id", "named-by-qemu")
            if start
            else rest[1]
        )
        if not dry_run and not self.replay:
            if start:
                self.lives[job_id] = [named(each, job_id) for each in self.life]
            if verb == "complete":
                self.lives[job_id] = [named(each, job_id) for each in self.completed]
        command = None if self.replay else f"block-{verb}"
        now = self.lives[job_id][0] if job_id in self.lives else None
        return _json(
            Done(vm=name, action=verb, device=body.get("device"), job_id=job_id, dry_run=dry_run,
                 replayed=self.replay, command=command, arguments=body, warnings=self.warnings, job=now),
            200 if dry_run or self.replay else 202,
        )  # fmt: skip


def _next(life: list[Job]) -> Job:
    return life.pop(0) if len(life) > 1 else life[0]


def named(each: Job, job_id: str) -> Job:
    """Return a job under another id."""
    return msgspec.structs.replace(each, job_id=job_id)


def _json(value: Any, status: int = 200) -> web.Response:
    kind = "application/json"
    if isinstance(value, Problem):
        status, kind = value.status, "application/problem+json"
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=kind)


@asynccontextmanager
async def fake_api() -> AsyncIterator[FakeApi]:
    """Serve until it is left."""
    api = FakeApi()
    await api.start()
    try:
        yield api
    finally:
        await api.stop()
