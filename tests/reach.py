"""A fleet of fake VMs, and all that may change them: requests, account and keeper, in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from exporter.actions import Actions
from exporter.api import VERBS, Commit
from exporter.config import Admin, Config, Grant, Group, LatencyHistograms, Settings
from exporter.hand import Hand
from exporter.ledger import Entry
from exporter.scrape import Collected, Fleet, Member
from exporter.storage import Sight, Storage
from tests.disks import Disk, block_job, graph, plug, start
from tests.fakeqmp import FakeQmp, speak

USER = "alice"


def grant(*users: str, **more: Any) -> Grant:
    """Everything on every VM, but for files."""
    verbs = tuple(verb for verb in VERBS if verb != "snapshot" or "directories" in more)
    return Grant(**{"users": users or (USER,), "verbs": verbs, "vms": ("*",), **more})


class Reach:
    """The VMs whose sockets are in a folder, and what may change them."""

    def __init__(self, sockets: Path, state: Path | None, **settings: object) -> None:
        """`state` has the account; None where users may change nothing."""
        self.state = state
        chosen = msgspec.convert(settings, Settings)
        self._group = Group(name="g", settings=chosen, sockets=(f"{sockets}/*.sock",))
        #: What is seen of each image file.
        self.sight = Sight(visible=True)
        self.hand = Hand(None if state is None else str(state))
        self.fleet = Fleet(
            Config(groups=(self._group,)),
            Storage(lambda path: self.sight),
            observer=self.hand.keeper,
        )
        self.fleet.actions = self.hand.trail.counts
        self.grant(grant())
        if self.hand.ledger is not None:
            self.actions = Actions(self.fleet, self.hand.ledger)

    def grant(self, *grants: Grant) -> None:
        """Have these be the grants from now on."""
        self.fleet.reconfigure(Config(groups=(self._group,), admin=Admin(grants=grants)))

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """(action, result) -> how many, of what is not 0."""
        return {key: count for key, count in self.hand.trail.counts.items() if count}

    def member(self, vm: str = "vm") -> Member:
        """Return a target."""
        self.fleet.discover()
        return self.fleet.members[vm]

    async def look(self, vm: str = "vm") -> Collected:
        """Scrape a VM, and wait for what that makes the keeper do."""
        collected = await self.fleet.probe(vm, 20.0)
        await self.hand.keeper.close()
        return collected

    def entry(self, job_id: str, vm: str = "vm") -> Entry:
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
        request = Commit(action="commit", device="disk0", job_id=job_id, **more)
        return await self.actions.commit(USER, vm, request)

    async def close(self) -> None:
        """Leave the VMs."""
        await self.hand.keeper.close()
        await self.fleet.close()


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


def begin(fake: FakeQmp, job_id: str = "qbe-1", disk: Disk | None = None, **more: object) -> None:
    """Have a commit run, or be as `more` says."""
    chosen = disk or Disk()
    has_graph = chosen.nodes[0] != ""
    blockgraph = graph(job_id, chosen.device or chosen.qdev, chosen.nodes) if has_graph else None
    start(fake, block_job(job_id, **more), blockgraph)


def end(fake: FakeQmp, job_id: str = "qbe-1", *nodes: str, **more: object) -> None:
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
        if record.name == "exporter.audit"
    ]
