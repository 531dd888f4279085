"""The part of the HTTP API that reads: what each endpoint answers, and when it has nothing to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from exporter import api
from exporter.admin import present
from exporter.api.problems import PROBLEMS
from exporter.api.routes import ROUTES
from tests.disks import Disk, block_job, plug, start
from tests.fakeqmp import FakeQmp, until
from tests.reach import Reach, Site, begin, end, gone, run, serving

GETS = [route for route in ROUTES if route.body is None]


@pytest.fixture
async def site(fake: FakeQmp, reach: Reach, tmp_path: Path) -> AsyncIterator[Site]:
    """The API, for whoever asks."""
    async with serving(reach, tmp_path) as served:
        yield served


def known(vm: str = "vm", **more: object) -> dict[str, object]:
    """What /vms says of a VM that answers."""
    return {
        "vm": vm, "up": True, "reason": None, "status": "running", "running": True, "name": "fake",
        "qemu_version": "7.2.0", "manager": None, "storage_responding": True, "device_count": 1,
        "job_count": 0, "backing_depth_max": 1, **more,
    }  # fmt: skip


LAYERS = [
    {"layer": 0, "node_name": "top", "driver": "qcow2", "file": "/images/top.qcow2",
     "virtual_size_bytes": 1024, "allocated_bytes": None},
    {"layer": 1, "node_name": "base", "driver": "qcow2", "file": "/images/base.qcow2",
     "virtual_size_bytes": 1024, "allocated_bytes": None},
]  # fmt: skip
JOB = {
    "vm": "vm", "job_id": "qbe-1", "job_type": "commit", "device": "disk0", "status": "running",
    "ready": False, "paused": False, "busy": True, "offset_bytes": 25, "length_bytes": 100,
    "speed_limit_bytes_per_second": 0, "io_status": "ok", "auto_finalize": True,
    "auto_dismiss": True, "top": 0, "base": 1, "error": None, "ready_timestamp_seconds": None,
    "outcome": None, "ended_timestamp_seconds": None,
}  # fmt: skip


def without_times(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job without when it was seen."""
    seen = {"first_seen_timestamp_seconds", "last_progress_timestamp_seconds"}
    return {name: value for name, value in job.items() if name not in seen}


# VMs.


async def test_every_vm_in_one_line(site: Site, sockets: Path) -> None:
    """By name; one that does not answer says why, and nothing that it has said before."""
    async with FakeQmp(str(sockets / "a.sock")) as other:
        run(other, 7, 2)
        up = await site.get("/vms")
    member = site.reach.member("a")  # the file of its socket is still there
    down = msgspec.to_builtins(present.summary((await member.collect()).snapshot))
    first, second = up.body["vms"]

    assert (up.status, up.kind) == (200, "application/json")
    assert first == known("a", socket=f"{sockets}/a.sock")
    assert second == known(socket=f"{sockets}/vm.sock")
    assert (down["up"], down["reason"]) == (False, "refused")
    assert {value for name, value in down.items() if name not in ("vm", "up", "reason")} == {None}


async def test_a_vm_with_its_disks_and_jobs(site: Site, fake: FakeQmp, sockets: Path) -> None:
    """The layers from the active one down, and what works on them."""
    begin(fake)
    answer = await site.get("/vms/vm")
    [job] = answer.body.pop("jobs")

    assert answer.status == 200
    assert answer.body == known(
        socket=f"{sockets}/vm.sock",
        job_count=1,
        devices=[
            {"device": "disk0", "inserted": True, "read_only": False, "io_status": None,
             "backing_depth": 1, "expected_backing_depth": 0, "layers": LAYERS}
        ],
    )  # fmt: skip
    assert without_times(job) == JOB
    msgspec.convert({**answer.body, "jobs": [job]}, api.Vm)


async def test_a_vm_that_is_down_is_answered_as_such(site: Site, fake: FakeQmp) -> None:
    """It is there, and so it is 200: what it has is not known."""
    fake.replies["query-status"] = b"x\r\n"
    answer = await site.get("/vms/vm")

    assert (answer.status, answer.body["up"], answer.body["reason"]) == (200, False, "protocol")
    assert (answer.body["devices"], answer.body["jobs"]) == ([], [])
    assert answer.body["device_count"] is None


async def test_no_vm_is_an_empty_list(sockets: Path, tmp_path: Path) -> None:
    """And no error."""
    reach = Reach(sockets, None)
    async with serving(reach, tmp_path) as site:
        assert (await site.get("/vms")).body == {"vms": []}
        assert (await site.get("/block-jobs")).body == {"jobs": []}
    await reach.close()


async def test_a_hundred_vms_are_asked_at_once(sockets: Path, tmp_path: Path) -> None:
    """Each is there, in the order of their names."""
    names = [f"vm-{number:03}" for number in range(100)]
    reach = Reach(sockets, None)
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            each = await stack.enter_async_context(FakeQmp(str(sockets / f"{name}.sock")))
            run(each, 7, 2)
            begin(each)
        async with serving(reach, tmp_path) as site:
            vms = (await site.get("/vms")).body["vms"]
            jobs = (await site.get("/block-jobs")).body["jobs"]
        await reach.close()

    assert [(each["vm"], each["up"]) for each in vms] == [(name, True) for name in names]
    assert [(each["vm"], each["job_id"]) for each in jobs] == [(name, "qbe-1") for name in names]


# Jobs.


async def test_jobs_of_one_vm_and_of_all(site: Site, fake: FakeQmp, sockets: Path) -> None:
    """The same entries."""
    begin(fake)
    async with FakeQmp(str(sockets / "a.sock")) as other:
        run(other, 7, 2)
        start(other, block_job("mirror", "mirror"))
        every = (await site.get("/block-jobs")).body["jobs"]
        one = (await site.get("/vms/vm/block-jobs")).body["jobs"]
        job = (await site.get("/vms/vm/block-jobs/qbe-1")).body

    assert [(each["vm"], each["job_id"]) for each in every] == [("a", "mirror"), ("vm", "qbe-1")]
    assert one == every[1:] == [job]
    assert without_times(job) == JOB
    assert job["first_seen_timestamp_seconds"] is not None
    msgspec.convert(job, api.Job)


async def test_a_job_that_ended_is_remembered(site: Site, fake: FakeQmp) -> None:
    """By its id alone where it was not started here; in lists there is only what QEMU has."""
    start(fake, block_job("disk0", "mirror"))
    await site.get("/vms/vm")
    await fake.event(
        "BLOCK_JOB_COMPLETED", device="disk0", type="mirror", len=1, offset=1, speed=0,
        error="No space left on device",
    )  # fmt: skip
    await fake.event("JOB_STATUS_CHANGE", id="disk0", status="null")
    gone(fake)
    await until(lambda: "disk0" in site.reach.member().ends)
    job = (await site.get("/vms/vm/block-jobs/disk0")).body

    assert (await site.get("/vms/vm/block-jobs")).body == {"jobs": []}
    assert (job["outcome"], job["error"], job["job_type"], job["device"]) == (
        "failed", "No space left on device", "mirror", "disk0",
    )  # fmt: skip
    assert (job["status"], job["offset_bytes"]) == (None, None)
    assert job["ended_timestamp_seconds"] is not None


async def test_a_job_that_was_started_here_is_in_every_list_for_as_long_as_its_record(
    site: Site, fake: FakeQmp
) -> None:
    """Also while its VM is down."""
    await site.reach.commit()
    end(fake, "qbe-1", "base")
    for _ in range(4):
        await site.reach.look()
    assert "job-dismiss" in fake.commands
    every = (await site.get("/block-jobs")).body["jobs"]
    one = (await site.get("/vms/vm/block-jobs")).body["jobs"]
    fake.replies["query-status"] = b"x\r\n"
    down = await site.get("/vms/vm/block-jobs/qbe-1")

    assert every == one == [down.body]
    assert (down.status, down.body["outcome"], down.body["status"]) == (200, "completed", None)


async def test_a_job_on_record_is_told_of_when_its_vm_is_gone(
    site: Site, fake: FakeQmp, sockets: Path
) -> None:
    """There is no target of that name any more: what became of the job is known all the same."""
    await site.reach.commit()
    end(fake, "qbe-1", "base")
    for _ in range(4):
        await site.reach.look()
    (sockets / "vm.sock").unlink()
    site.reach.fleet.discover()
    job = await site.get("/vms/vm/block-jobs/qbe-1")
    every = await site.get("/block-jobs")
    lost = [
        await site.get(f"/vms/{path}") for path in ("vm", "vm/block-jobs/j", "w/block-jobs/qbe-1")
    ]

    assert (job.status, job.body["vm"], job.body["outcome"]) == (200, "vm", "completed")
    assert (job.body["status"], job.body["top"], job.body["base"]) == (None, 0, 1)
    assert every.body == {"jobs": [job.body]}
    assert [answer.problem for answer in lost] == ["unknown-vm"] * 3


async def test_jobs_of_vms_that_are_gone_stand_behind_those_that_run(
    site: Site, fake: FakeQmp
) -> None:
    """By the names of the VMs, also of those that were gone when the exporter was started."""
    await site.reach.commit()
    assert site.reach.hand.ledger is not None
    for name in ("z", "a"):
        site.reach.hand.ledger.put(msgspec.structs.replace(site.reach.entry("qbe-1"), vm=name))
    await site.reach.look()
    jobs = (await site.get("/block-jobs")).body["jobs"]

    assert [(job["vm"], job["job_id"], job["device"]) for job in jobs] == [
        (vm, "qbe-1", "disk0") for vm in ("vm", "a", "z")
    ]


async def test_a_job_of_a_vm_that_has_just_gone_is_told_of_once(
    site: Site, fake: FakeQmp, sockets: Path
) -> None:
    """The VM was there when all were asked, a moment ago, and is no target any more."""
    await site.reach.commit()
    before = await site.get("/block-jobs")
    (sockets / "vm.sock").unlink()
    site.reach.fleet.discover()
    after = await site.get("/block-jobs")

    assert [len(answer.body["jobs"]) for answer in (before, after)] == [1, 1]


async def test_a_job_that_waits_to_be_dismissed_has_its_outcome(site: Site, fake: FakeQmp) -> None:
    """QEMU still has it."""
    begin(fake, "j")
    await site.get("/vms/vm")
    end(fake, "j", error="No space left on device")
    await site.get("/vms/vm")
    job = (await site.get("/vms/vm/block-jobs/j")).body

    assert (job["status"], job["outcome"], job["error"]) == (
        "concluded", "failed", "No space left on device",
    )  # fmt: skip


async def test_an_id_that_is_used_again_has_no_outcome_yet(site: Site, fake: FakeQmp) -> None:
    """That of the job before it is not said of it."""
    begin(fake, "j")
    await site.get("/vms/vm")
    end(fake, "j", error="No space left on device")
    await site.get("/vms/vm")
    begin(fake, "j")
    job = (await site.get("/vms/vm/block-jobs/j")).body

    assert (job["status"], job["outcome"], job["ended_timestamp_seconds"]) == (
        "running", None, None,
    )  # fmt: skip


async def test_jobs_of_a_vm_that_is_down_are_503(site: Site, fake: FakeQmp) -> None:
    """An empty list would say that it has none."""
    fake.replies["query-status"] = b"x\r\n"
    for path in ("/vms/vm/block-jobs", "/vms/vm/block-jobs/j"):
        answer = await site.get(path)
        assert (answer.status, answer.problem) == (503, "vm-down")
        assert answer.body["detail"] == "vm: protocol"
        assert answer.body["vm"] == "vm"
    every = await site.get("/block-jobs")

    assert (every.status, every.body) == (200, {"jobs": []})


# What is not there.


@pytest.mark.parametrize(
    ("path", "problem", "detail"),
    [
        ("/vms/none", "unknown-vm", "there is no VM 'none'"),
        ("/vms/none/block-jobs", "unknown-vm", "there is no VM 'none'"),
        ("/vms/none/block-jobs/j", "unknown-vm", "there is no VM 'none'"),
        ("/vms/vm/block-jobs/j", "unknown-job", "vm has no block job 'j'"),
        ("/vms/../vms/none", "unknown-vm", "there is no VM 'none'"),
        ("/vms/", "not-found", "nothing is at /api/v1/vms/"),
        ("/vms//block-jobs", "not-found", "nothing is at /api/v1/vms//block-jobs"),
        ("/nothing", "not-found", "nothing is at /api/v1/nothing"),
        ("/problems/none", "not-found", "there is no problem 'none'"),
        ("/admin/vms", "not-found", "nothing is at /api/v1/admin/vms"),
    ],
)
async def test_what_is_not_there_is_a_problem(
    site: Site, path: str, problem: str, detail: str
) -> None:
    """Of RFC 9457, whose type can be read."""
    answer = await site.get(path)

    assert (answer.status, answer.problem, answer.body["detail"]) == (404, problem, detail)
    assert answer.body["instance"].startswith("/api/v1/")
    text = await site.send("GET", answer.body["type"])
    assert (text.status, text.body.partition(" (")[0]) == (200, answer.body["title"])


@pytest.mark.parametrize("route", GETS, ids=lambda route: route.name)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_what_is_read_is_only_read(site: Site, route: Any, method: str) -> None:
    """Another method is a problem, and says which there is."""
    path = route.path.format(vm="vm", job_id="j", name="not-found")
    answer = await site.send(method, path)

    assert (answer.status, answer.problem) == (405, "method-not-allowed")
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert answer.body["detail"] == f"{method}: use GET, HEAD, OPTIONS"


async def test_paths_outside_the_api_are_answered_as_ever(site: Site) -> None:
    """As text."""
    for path in ("/api", "/api/v1", "/api/v2/vms", "/apix/v1/vms"):
        assert (await site.send("GET", path)).kind == "text/plain"


# Names.


@pytest.mark.parametrize(
    "name", ["a/b", "50%", "%2F", "mit Leerzeichen", "virtuelle-Maschine-\u00e4\u4e2d\U0001f98a",
             "a?b#c", "a+b", "a%FFb"],
)  # fmt: skip
async def test_a_vm_of_any_name_is_found(
    fake: FakeQmp, sockets: Path, tmp_path: Path, name: str
) -> None:
    """Quoted whole, as one part of a path; the answer has it as the label `vm` does."""
    reach = Reach(sockets, tmp_path / "state")
    reach.rename(name, str(sockets / "vm.sock"))
    begin(fake)
    async with serving(reach, tmp_path) as site:
        path = f"/vms/{quote(name, safe='')}"
        vm = await site.get(path)
        job = await site.get(f"{path}/block-jobs/qbe-1")
        lost = await site.get(f"{path}/block-jobs/none")
    await reach.close()

    assert (vm.status, vm.body["vm"]) == (200, name)
    assert (job.status, job.body["vm"]) == (200, name)
    assert (lost.problem, lost.body["vm"]) == ("unknown-job", name)


@pytest.mark.parametrize("job_id", ["a/b", "50%", "\u00e4", "a b"])
async def test_a_job_of_any_name_is_found(site: Site, fake: FakeQmp, job_id: str) -> None:
    """QEMU's own rule for ids is stricter: others may come."""
    start(fake, block_job(job_id))
    answer = await site.get(f"/vms/vm/block-jobs/{quote(job_id, safe='')}")

    assert (answer.status, answer.body["job_id"]) == (200, job_id)


async def test_every_path_stands_under_the_prefix(
    fake: FakeQmp, reach: Reach, tmp_path: Path
) -> None:
    """And only there, problems too."""
    begin(fake)
    async with serving(reach, tmp_path, prefix="/qemu") as site:
        found = [
            (await site.get(path)).status
            for path in ("/vms", "/vms/vm", "/block-jobs", "/vms/vm/block-jobs/qbe-1")
        ]
        lost = await site.get("/vms/none")
        described = (await site.get("/openapi.json")).body["servers"]
        site.prefix = ""
        outside = await site.get("/vms")

    assert found == [200] * 4
    assert (lost.problem, lost.body["instance"]) == ("unknown-vm", "/qemu/api/v1/vms/none")
    assert [each["url"] for each in described] == ["/qemu"]
    assert (outside.status, outside.kind) == (404, "text/plain")


# Problems, in words.


@pytest.mark.parametrize("name", PROBLEMS)
async def test_every_problem_can_be_read_about(site: Site, name: str) -> None:
    """At the path that its type is."""
    kind = PROBLEMS[name]
    answer = await site.get(f"/problems/{name}")

    assert (answer.status, answer.kind) == (200, "text/plain")
    assert answer.body == f"{kind.title} ({kind.status})\n\n{kind.text}\n"


# Many at once.


async def test_who_asks_for_all_vms_shares_the_limit_of_scrapes(
    fake: FakeQmp, reach: Reach, tmp_path: Path
) -> None:
    """A dashboard that asks too often is told so, as Prometheus would be."""
    async with serving(reach, tmp_path, max_requests=1) as site:
        fake.answering.clear()
        slow = asyncio.create_task(site.get("/vms"))
        await until(lambda: fake.received)
        refused = [(await site.get(path)).status for path in ("/vms", "/block-jobs")]
        fake.answering.set()
        first = await slow

    assert (first.status, refused) == (200, [503, 503])


async def test_secrets_of_files_and_jobs_are_not_shown(site: Site, fake: FakeQmp) -> None:
    """In no answer."""
    secret = "SECRETPW"
    files = (f"http://u:{secret}@h/t?token={secret}", f"rbd:p/b:key={secret}")
    plug(fake, Disk(files=files))
    begin(fake, "j", error=f"Could not read http://u:{secret}@h/t", status="concluded")
    texts = [
        str((await site.get(path)).body)
        for path in ("/vms", "/vms/vm", "/block-jobs", "/vms/vm/block-jobs/j")
    ]

    assert secret not in "".join(texts)
    assert "http://h/t" in texts[1]
