"""A fleet of fake VMs, and all that may change them: requests, account and keeper, in one process."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from exporter.admin.job_records import JobRecord
from exporter.admin.requests import AdminRequests
from exporter.admin.service import AdminService
from exporter.admin.timing import Timing
from exporter.api.verbs import VERBS, Commit
from exporter.collect.fleet import Fleet
from exporter.collect.scrape_target import Collected, ScrapeTarget
from exporter.config.settings import (
    Admin,
    Config,
    Grant,
    Group,
    LatencyHistograms,
    Settings,
    Target,
)
from exporter.errors import Refused
from exporter.storage.file_stat import FileStat
from exporter.storage.prober import Storage
from exporter.web.api_read import ReadApi
from exporter.web.api_write import WriteApi
from exporter.web.app import Endpoints, Options
from exporter.web.auth import AuthMiddleware, user_of
from exporter.web.watched_config import WatchedWebConfig
from tests.disks import Disk, block_job, graph, plug, start
from tests.fakeqmp import FakeQmp, speak
from tests.pki import hashed

USER = "alice"


def grant(*users: str, **more: Any) -> Grant:
    """Everything on every VM, but for files."""
    verbs = tuple(verb for verb in VERBS if verb != "snapshot" or "directories" in more)
    return Grant(**{"users": users or (USER,), "verbs": verbs, "vms": ("*",), **more})


def commit(**more: Any) -> Commit:
    """The request to commit the disk."""
    return Commit(action="commit", device="disk0", **more)


async def refused(asked: Any) -> tuple[str, str]:
    """Return the problem and the detail that a request is refused with."""
    with pytest.raises(Refused) as caught:
        await asked
    return caught.value.problem, str(caught.value)


def files(folder: Path) -> list[str]:
    """Return the names of what is in a directory."""
    return sorted(os.listdir(folder))


class Reach:
    """The VMs whose sockets are in a folder, and what may change them."""

    def __init__(self, sockets: Path, state: Path | None, **settings: object) -> None:
        """`state` has the account; None where users may change nothing."""
        self.state = state
        chosen = msgspec.convert(settings, Settings)
        self._group = Group(name="g", settings=chosen, sockets=(f"{sockets}/*.sock",))
        #: What is seen of each image file.
        self.sight = FileStat(visible=True)
        #: A test that cannot wait for as long changes it.
        self.timing = Timing()
        self.hand = AdminService(None if state is None else str(state), self.timing)
        self.fleet = Fleet(
            Config(groups=(self._group,)),
            Storage(lambda path: self.sight),
            observer=self.hand.keeper,
            actions=self.hand.trail.counts,
        )
        self.grant(grant())
        if self.hand.ledger is not None and self.hand.snapshots is not None:
            self.actions = AdminRequests(
                self.fleet, self.hand.ledger, self.hand.snapshots, self.timing
            )

    def grant(self, *grants: Grant) -> None:
        """Have these be the grants from now on."""
        self.fleet.reconfigure(Config(groups=(self._group,), admin=Admin(grants=grants)))

    def rename(self, vm: str, socket: str) -> None:
        """Have one VM, of this name, whatever the file of its socket is called."""
        self._group = Group(
            name="g", settings=self._group.settings, targets=(Target(vm=vm, socket=socket),)
        )
        self.grant(grant())

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """(action, result) -> how many, of what is not 0."""
        return {key: count for key, count in self.hand.trail.counts.items() if count}

    def member(self, vm: str = "vm") -> ScrapeTarget:
        """Return a target."""
        self.fleet.discover()
        return self.fleet.members[vm]

    async def look(self, vm: str = "vm") -> Collected:
        """Scrape a VM, and wait for what that makes the keeper do."""
        collected = await self.fleet.probe(vm, 20.0)
        await self.hand.keeper.close()
        return collected

    def entry(self, job_id: str, vm: str = "vm") -> JobRecord:
        """Return what is on record of a job."""
        assert self.hand.ledger is not None
        found = self.hand.ledger.get(vm, job_id)
        assert found is not None
        return found

    def on_disk(self) -> list[dict[str, Any]]:
        """Return what the files of the account say."""
        assert self.state is not None
        return [json.loads(path.read_text()) for path in sorted(self.state.glob("*.json"))]

    async def commit(self, job_id: str = "qbe-1", vm: str = "vm", **more: Any) -> Any:
        """Start a commit as a user."""
        return await self.actions.commit(USER, vm, commit(job_id=job_id, **more))

    async def close(self) -> None:
        """Leave the VMs."""
        await self.hand.keeper.close()
        await self.fleet.close()


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    kind: str
    headers: Mapping[str, str]
    body: Any

    @property
    def problem(self) -> str:
        """The name of a problem, empty where it is none."""
        is_one = self.kind == "application/problem+json"
        return str(self.body["type"]).rpartition("/")[2] if is_one else ""


class Site:
    """The HTTP API over a fleet; each user's password is the name, doubled."""

    def __init__(self, reach: Reach, client: TestClient[Any, Any], prefix: str) -> None:
        self.reach = reach
        self.prefix = prefix
        self._client = client

    async def get(self, path: str, **more: Any) -> Answer:
        """Ask for what is below /api/v1."""
        return await self.send("GET", "/api/v1" + path, **more)

    async def post(self, path: str, body: object = None, **more: Any) -> Answer:
        """Ask for a change."""
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        return await self.send("POST", "/api/v1/admin" + path, data=data, **more)

    async def commit(self, vm: str = "vm", **more: Any) -> Answer:
        """Start a commit."""
        body = {"action": "commit", "device": "disk0", "job_id": "qbe-1"}
        return await self.post(f"/vms/{vm}/block-jobs", body, **more)

    async def send(
        self, method: str, path: str, *, user: str = USER, password: str = "", **more: Any
    ) -> Answer:
        """Ask for anything; paths are sent as they are written."""
        headers = {"Content-Type": "application/json", **more.pop("headers", {})}
        if user:
            token = f"{user}:{password or user * 2}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(token).decode()}"
        url = URL(self.prefix + path, encoded=True)
        async with self._client.request(method, url, headers=headers, **more) as response:
            text = await response.text()
            kind = response.content_type
            body = json.loads(text) if kind.endswith("json") else text
            return Answer(response.status, kind, response.headers, body)


@asynccontextmanager
async def serving(
    reach: Reach,
    folder: Path,
    *users: str,
    prefix: str = "",
    origins: Sequence[str] = (),
    **options: object,
) -> AsyncIterator[Site]:
    """Serve the API as the program does, with users if there are any."""
    async with reach.hand.over(reach.fleet) as actions:
        changing = WriteApi(
            actions, reach.hand.trail, prefix=prefix, origins=origins, user_of=user_of
        )
        reading = ReadApi(reach.fleet, reach.hand.ledger, prefix)
        chosen = msgspec.convert({"route_prefix": prefix, **options}, Options)
        gate = None
        if users:
            file = folder / "web.json"
            hashes = {user: hashed(user * 2) for user in users}
            file.write_text(json.dumps({"basic_auth_users": hashes}))
            gate = AuthMiddleware(WatchedWebConfig(str(file)))
        endpoints = Endpoints(reach.fleet, chosen, lambda: None, reading, changing)
        async with TestClient(TestServer(endpoints.application(gate))) as client:
            yield Site(reach, client, prefix)


HISTOGRAMS = LatencyHistograms(boundaries_seconds=(0.001, 0.01))


def run(fake: FakeQmp, *version: int, disk: Disk | None = None) -> None:
    """Have a VM of this QEMU with a disk, on which a commit starts when it is asked for."""
    chosen = disk or Disk()
    plug(fake, chosen)
    speak(fake, *version)

    def commit(arguments: Mapping[str, Any]) -> dict[str, Any]:
        begin(fake, str(arguments.get("job-id", arguments["device"])), chosen)
        return {"return": {}}

    fake.replies["block-commit"] = commit


def begin(fake: FakeQmp, job_id: str = "qbe-1", disk: Disk | None = None, **more: Any) -> None:
    """Have a commit run, or be as `more` says."""
    chosen = disk or Disk()
    has_graph = chosen.nodes[0] != ""
    blockgraph = graph(job_id, chosen.device or chosen.qdev, chosen.nodes) if has_graph else None
    start(fake, block_job(job_id, **more), blockgraph)


def end(fake: FakeQmp, job_id: str = "qbe-1", *nodes: str, **more: Any) -> None:
    """Have the commit be over and its device on `nodes`, as one that waits to be dismissed is."""
    if nodes:
        plug(fake, Disk(nodes=nodes))
    more = {"status": "concluded", "ready": False, "busy": False, **more}
    alone = {"nodes": [{"id": 2, "type": "block-job", "name": job_id}], "edges": []}
    start(fake, block_job(job_id, **more), {"return": alone})
    _dismissable(fake)


def gone(fake: FakeQmp) -> None:
    """Have no job."""
    fake.replies["query-block-jobs"] = {"return": []}


def _dismissable(fake: FakeQmp) -> None:
    def dismiss(arguments: Mapping[str, Any]) -> dict[str, Any]:
        gone(fake)
        return {"return": {}}

    for name in ("job-dismiss", "block-job-dismiss"):
        if name in fake.replies:
            fake.replies[name] = dismiss


def said(records: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the audit lines among log records, as what they say about each request."""
    plain = {"action", "result", "user", "vm", "job_id", "device", "command", "answer", "outcome"}
    return [
        {name: value for name, value in vars(record).items() if name in plain}
        for record in records
        if record.name == "exporter.admin.audit"
    ]
