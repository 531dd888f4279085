"""The part of the HTTP API that changes VMs: statuses, problems, and a line of each request."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from exporter import api
from exporter.admin.audit import OWN, RESULTS
from exporter.api.routes import ROUTES, Route
from exporter.api.verbs import VERBS
from exporter.collect.vm import Vm
from exporter.process.logs import Formatter
from exporter.qmp.commands import Command
from exporter.web import api_write as module
from tests.conftest import series
from tests.disks import Disk, block_job, plug, start
from tests.fakeqmp import FakeQmp, dying, until
from tests.reach import Answer, Reach, Site, begin, grant, serving

SECRET = "SECRETPW"
POSTS = [route for route in ROUTES if route.body is not None]
JSON = "application/json"


@pytest.fixture
async def reach(reach: Reach, tmp_path: Path) -> Reach:
    """The fleet, with a directory for snapshots."""
    reach.grant(grant(directories=(str(tmp_path),), same_files=True))
    return reach


@pytest.fixture
async def site(fake: FakeQmp, reach: Reach, tmp_path: Path) -> AsyncIterator[Site]:
    """The API, with two users, of whom bob may do nothing."""
    async with serving(reach, tmp_path, "alice", "bob") as served:
        yield served


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """The audit lines."""
    return Lines(caplog)


class Lines:
    """Audit lines, as what each says, without what another run would say otherwise."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._plain = frozenset(vars(logging.makeLogRecord({}))) | {"message"}

    @property
    def all(self) -> list[dict[str, Any]]:
        """Return all of them."""
        records = [each for each in self._caplog.records if each.name == "exporter.admin.audit"]
        return [
            {name: value for name, value in vars(record).items() if name not in self._plain}
            for record in records
        ]

    def one(self) -> dict[str, Any]:
        """Return the only one."""
        [line] = self.all
        assert line.pop("duration_seconds") >= 0
        assert line.pop("client") == "127.0.0.1"
        return line

    def text(self, kind: str) -> str:
        """Return them as they are written."""
        records = [each for each in self._caplog.records if each.name == "exporter.admin.audit"]
        return "\n".join(Formatter(kind).format(each) for each in records)


def body_of(route: Route, folder: Path) -> dict[str, Any]:
    """Return a body that is right."""
    bodies: Mapping[str, dict[str, Any]] = {
        "commit": {"action": "commit", "device": "disk0", "job_id": "qbe-1"},
        "snapshot": {"device": "disk0", "file": str(folder / "new.qcow2")},
        "cancel": {"force": True},
        "speed": {"speed_bytes_per_second": 5},
    }
    return bodies.get(route.name, {})


def path_of(route: Route, vm: str = "vm", job_id: str = "j") -> str:
    """Return the path of a route below the one of the admin API."""
    return route.path.removeprefix("/api/v1/admin").format(vm=vm, job_id=job_id)


def prepare(fake: FakeQmp, route: Route) -> None:
    """Have a job that the verb of a route may be done to."""
    states: Mapping[str, dict[str, Any]] = {
        "complete": {"status": "ready", "ready": True},
        "resume": {"paused": True},
        "finalize": {"status": "pending"},
        "dismiss": {"status": "concluded"},
    }
    if route.name not in ("commit", "snapshot"):
        begin(fake, "j", **states.get(route.name, {}))


async def ask(site: Site, route: Route, folder: Path, **more: Any) -> Answer:
    """Send what a route takes."""
    return await site.post(path_of(route), body_of(route, folder), **more)


# Every endpoint.


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.name)
async def test_what_is_done_is_answered_and_has_a_line(
    site: Site, fake: FakeQmp, tmp_path: Path, lines: Lines, route: Route
) -> None:
    """Where the job can be looked at is said; who did what, from where, and QEMU's answer too."""
    prepare(fake, route)
    answer = await ask(site, route, tmp_path)
    done = msgspec.convert(answer.body, api.Done)
    line = lines.one()
    body = body_of(route, tmp_path)
    job_id = {"commit": "qbe-1", "snapshot": None}.get(route.name, "j")
    told: dict[str, object] = {} if job_id is None else {"job_id": job_id}

    assert (answer.status, answer.kind) == (route.status, JSON)
    assert (done.action, done.job_id, done.dry_run) == (route.name, job_id, False)
    assert answer.headers.get("Location") == (
        None if job_id is None else f"/api/v1/vms/vm/block-jobs/{job_id}"
    )
    assert line == {
        "action": route.name, "result": "done", "user": "alice", "vm": "vm", "dry_run": False,
        "status": route.status, "command": done.command, "answer": "ok", **told,
        **{name: value for name, value in body.items() if name != "action"},
    }  # fmt: skip
    assert site.reach.counts == {(route.name, "done"): 1}
    if job_id is not None:
        assert (await site.send("GET", answer.headers["Location"])).status == 200


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.name)
async def test_what_is_tried_is_200_and_has_a_line(
    site: Site, fake: FakeQmp, tmp_path: Path, lines: Lines, route: Route
) -> None:
    """It says that it was a dry run."""
    prepare(fake, route)
    answer = await ask(site, route, tmp_path, params={"dry_run": "true"})
    line = lines.one()

    assert (answer.status, answer.body["dry_run"], fake.changes) == (200, True, [])
    assert "Location" not in answer.headers
    assert (line["result"], line["dry_run"], line["status"]) == ("dry_run", True, 200)
    assert "command" not in line
    assert site.reach.counts == {(route.name, "dry_run"): 1}


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.name)
async def test_who_is_nobody_leaves_a_line(
    site: Site, fake: FakeQmp, tmp_path: Path, lines: Lines, route: Route
) -> None:
    """Without a user, whatever name was given; with what is in the path."""
    job = {} if "{job_id}" not in route.path else {"job_id": "j"}
    for more in ({"user": ""}, {"password": SECRET}, {"user": "mallory"}):
        answer = await ask(site, route, tmp_path, **more)
        assert answer.status == 401

    assert len(lines.all) == 3
    for line in lines.all:
        assert {**line, "duration_seconds": 0.0} == {
            "action": route.name, "result": "refused", "user": "", "client": "127.0.0.1",
            "vm": "vm", "status": 401, "duration_seconds": 0.0, **job,
        }  # fmt: skip
    assert SECRET not in lines.text("json")
    assert site.reach.counts == {(route.name, "refused"): 3}
    assert fake.received == []


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.name)
async def test_who_has_no_grant_is_403(
    site: Site, fake: FakeQmp, tmp_path: Path, lines: Lines, route: Route
) -> None:
    """The line has his name."""
    answer = await ask(site, route, tmp_path, user="bob")
    line = lines.one()

    assert (answer.status, answer.problem, answer.body["vm"]) == (403, "not-granted", "vm")
    assert (line["user"], line["result"], line["problem"], line["status"]) == (
        "bob", "refused", "not-granted", 403,
    )  # fmt: skip
    assert line["detail"] == answer.body["detail"]
    assert fake.received == []


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.name)
async def test_nothing_is_changed_where_the_api_is_off(
    fake: FakeQmp, sockets: Path, tmp_path: Path, lines: Lines, route: Route
) -> None:
    """Each request is told so, and has its line; it is not counted: there is nothing to count."""
    reach = Reach(sockets, None)
    async with serving(reach, tmp_path, "alice") as site:
        answer = await ask(site, route, tmp_path)
    await reach.close()

    assert (answer.status, answer.problem) == (403, "admin-api-disabled")
    assert lines.one()["problem"] == "admin-api-disabled"
    assert (reach.counts, fake.received) == ({}, [])


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.name)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_what_changes_is_posted(
    site: Site, tmp_path: Path, lines: Lines, route: Route, method: str
) -> None:
    """Another method is a problem, and has a line like all that is asked for below this path."""
    answer = await site.send(method, "/api/v1/admin" + path_of(route))

    assert (answer.status, answer.problem) == (405, "method-not-allowed")
    assert answer.headers["Allow"] == "OPTIONS, POST"
    line = lines.one()
    assert (line["action"], line["method"], site.reach.counts) == ("other", method, {})
    assert line["path"] == "/api/v1/admin" + path_of(route)


@pytest.mark.parametrize(
    "path", ["/vms/vm", "/vms//block-jobs", "/vms/vm/block-jobs/j/start", "/x", "/vms/vm/qmp"]
)
async def test_what_is_not_there_is_a_problem_with_a_line(
    site: Site, lines: Lines, path: str
) -> None:
    """There is no way to send another command."""
    answer = await site.post(path)

    assert (answer.status, answer.problem) == (404, "not-found")
    assert lines.one() == {
        "action": "other", "result": "refused", "user": "alice", "status": 404,
        "method": "POST", "path": f"/api/v1/admin{path}",
    }  # fmt: skip


async def test_a_probe_that_tells_how_it_went_does_not_tell_of_requests(
    site: Site, fake: FakeQmp, tmp_path: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may look is not told who asked for what, from where, at the same time."""
    caplog.set_level(logging.INFO)
    fake.answering.clear()
    probing = asyncio.create_task(site.send("GET", "/probe?target=vm&debug=true"))
    await until(lambda: fake.received)
    assert (await site.commit(user="bob")).status == 403
    fake.answering.set()
    told = (await probing).body
    line = lines.one()

    assert (line["user"], line["vm"]) == ("bob", "vm")
    assert told.startswith("Logs for the probe:\n")
    assert "msg=action" not in told
    assert "bob" not in told


async def test_reading_leaves_no_line(site: Site, lines: Lines) -> None:
    """Scrapes and dashboards would bury the others."""
    for path in ("/vms", "/vms/vm", "/block-jobs", "/vms/none"):
        await site.get(path)

    assert lines.all == []


# Bodies and parameters.

BAD_BODIES = [
    (b"", "body: Input data was truncated"),
    (b"{", "body: Input data was truncated"),
    (b"[]", "body: Expected `object`, got `array`"),
    (b"null", "body: Expected `object`, got `null`"),
    (b"{}", "body: Object missing required field `action`"),
    (b'{"action":"commit"}', "body: Object missing required field `device`"),
    (b'{"action":"stream","device":"d"}', "body: Invalid enum value 'stream' - at `$.action`"),
    (b'{"action":"commit","device":1}', "body: Expected `str`, got `int` - at `$.device`"),
    (
        b'{"action":"commit","device":""}',
        "body: Expected `str` of length >= 1 - at `$.device`",
    ),
    (
        b'{"action":"commit","device":"d","execute":"quit"}',
        "body: Object contains unknown field `execute`",
    ),
    (
        b'{"action":"commit","device":"d","speed_bytes_per_second":-1}',
        "body: Expected `int` >= 0 - at `$.speed_bytes_per_second`",
    ),
    (
        b'{"action":"commit","device":"d","speed_bytes_per_second":9223372036854775808}',
        "body: Expected `int` <= 9223372036854775807 - at `$.speed_bytes_per_second`",
    ),
    (
        b'{"action":"commit","device":"d","base":null}',
        "body: Expected `str`, got `null` - at `$.base`",
    ),
    (b"\xff", "body: JSON is malformed: invalid character (byte 0)"),
    (b"[" * 10_000, "body: "),
]


@pytest.mark.parametrize(("body", "detail"), BAD_BODIES)
async def test_a_body_that_is_wrong_is_a_problem(
    site: Site, fake: FakeQmp, lines: Lines, body: bytes, detail: str
) -> None:
    """It names the place; nothing is asked of the VM."""
    answer = await site.post("/vms/vm/block-jobs", body)

    assert (answer.status, answer.problem) == (400, "bad-request")
    assert answer.body["detail"].startswith(detail)
    assert lines.one()["problem"] == "bad-request"
    assert fake.received == []


@pytest.mark.parametrize(
    "job_id",
    ["", "qbe-", "j", "qbe-a b", "qbe-a/b", "qbe-..%2f", "QBE-1", "qbe-1\n", "qbe-" + "x" * 60,
     "qbe-\u00e4"],
)  # fmt: skip
async def test_an_id_that_qemu_or_the_account_would_not_take_is_wrong(
    site: Site, fake: FakeQmp, job_id: str
) -> None:
    """It becomes the name of a file."""
    body = {"action": "commit", "device": "disk0", "job_id": job_id}
    answer = await site.post("/vms/vm/block-jobs", body)

    assert (answer.status, answer.problem, fake.received) == (400, "bad-request", [])


@pytest.mark.parametrize("job_id", ["qbe-1", "qbe-" + "x" * 59, "qbe-A.b_c-1"])
async def test_any_other_id_is_taken(site: Site, job_id: str) -> None:
    """As it is."""
    body = {"action": "commit", "device": "disk0", "job_id": job_id}

    assert (await site.post("/vms/vm/block-jobs", body)).body["job_id"] == job_id


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("dry_run=1", "dry_run is true or false"),
        ("dry_run=True", "dry_run is true or false"),
        ("dry_run=", "dry_run is true or false"),
        ("dry_run", "dry_run is true or false"),
        ("dry_run=true&dry_run=false", "dry_run is true or false"),
        ("dryrun=true", "there is no parameter 'dryrun'"),
        ("dry-run=true", "there is no parameter 'dry-run'"),
        ("dry_run=true&force=true", "there is no parameter 'force'"),
    ],
)
async def test_a_word_that_is_misspelt_does_nothing_for_real(
    site: Site, fake: FakeQmp, query: str, detail: str
) -> None:
    """What was to be tried is not done."""
    body = {"action": "commit", "device": "disk0"}
    answer = await site.post(f"/vms/vm/block-jobs?{query}", body)

    assert (answer.status, answer.problem, answer.body["detail"]) == (400, "bad-request", detail)
    assert fake.received == []


async def test_a_dry_run_can_be_denied(site: Site, fake: FakeQmp) -> None:
    """Then it is done."""
    body = {"action": "commit", "device": "disk0"}

    assert (await site.post("/vms/vm/block-jobs?dry_run=false", body)).status == 202
    assert len(fake.changes) == 1


@pytest.mark.parametrize("size", [module.BODY_LIMIT_BYTES, module.BODY_LIMIT_BYTES + 1])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_has_a_largest_size(site: Site, size: int, chunked: bool) -> None:
    """Whether it says so before or not."""
    whole = b"{}".ljust(size)

    async def pieces() -> AsyncIterator[bytes]:
        yield whole[:-1]
        yield whole[-1:]

    headers = {"Content-Type": JSON}
    data: Any = pieces() if chunked else whole
    path = "/api/v1/admin/vms/vm/block-jobs"
    answer = await site.send("POST", path, data=data, headers=headers)
    right = size <= module.BODY_LIMIT_BYTES

    assert (answer.status, answer.problem) == (400, "bad-request") if right else (413, "too-large")


async def test_a_body_that_does_not_come_is_waited_for_a_while(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the connection is closed."""
    monkeypatch.setattr(module, "BODY_SECONDS", 0.01)
    closed = False

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        while not closed:
            await asyncio.sleep(0.01)

    path = "/api/v1/admin/vms/vm/block-jobs"
    answer = await site.send("POST", path, data=never())
    closed = True

    assert (answer.status, answer.problem) == (408, "body-timeout")
    assert answer.headers["Connection"] == "close"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
async def test_only_json_is_taken(site: Site, fake: FakeQmp, kind: str) -> None:
    """A page of another site can send anything else without being asked."""
    path = "/api/v1/admin/vms/vm/block-jobs"
    answer = await site.send("POST", path, data=b"{}", headers={"Content-Type": kind})

    assert (answer.status, answer.problem, fake.received) == (415, "wrong-content-type", [])


async def test_an_encoded_body_is_not_taken(site: Site, fake: FakeQmp) -> None:
    """A few bytes may decode to very many."""
    body = gzip.compress(b'{"action": "commit", "device": "disk0"}')
    path = "/api/v1/admin/vms/vm/block-jobs"
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await site.send("POST", path, data=body, headers=headers)

    assert (answer.status, answer.problem, fake.received) == (415, "wrong-content-type", [])


async def test_json_may_say_its_charset(site: Site) -> None:
    """As many clients do."""
    headers = {"Content-Type": "application/json; charset=utf-8"}

    assert (await site.commit(headers=headers)).status == 202


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://[::1"},
        {"Origin": "http://rebound.example:9709", "Host": "rebound.example:9709"},
    ],
)
async def test_a_page_of_another_site_changes_nothing(
    site: Site, fake: FakeQmp, headers: dict[str, str]
) -> None:
    """Though a browser sends the password along."""
    answer = await site.commit(headers=headers)

    assert (answer.status, answer.problem, fake.received) == (403, "cross-site", [])


async def test_pages_of_this_site_may_ask(fake: FakeQmp, reach: Reach, tmp_path: Path) -> None:
    """By the name that it is reached by, behind a proxy too."""
    async with serving(reach, tmp_path, "alice", origins=["qemu.example"]) as site:
        statuses = [
            (await site.commit(headers=headers, params={"dry_run": "true"})).status
            for headers in (
                {"Sec-Fetch-Site": "same-origin"},
                {"Sec-Fetch-Site": "none"},
                {"Origin": "https://qemu.example"},
                {"Origin": "http://192.0.2.1:1", "Host": "192.0.2.1:1"},
            )
        ]

    assert statuses == [200] * 4


async def test_a_reload_may_be_asked_for_by_the_name_of_a_proxy(
    fake: FakeQmp, reach: Reach, tmp_path: Path
) -> None:
    """The same sites may as of all else that is changed."""
    async with serving(reach, tmp_path, "alice", origins=["qemu.example"], lifecycle=True) as site:
        statuses = [
            (await site.send("POST", "/-/reload", headers={"Origin": origin})).status
            for origin in ("https://qemu.example", "https://evil.example")
        ]

    assert statuses == [200, 403]


# Answers.


async def test_the_same_request_again_is_200(site: Site, lines: Lines) -> None:
    """The line says that nothing was sent."""
    await site.commit()
    again = await site.commit()
    line = lines.all[1]

    assert (again.status, again.body["replayed"], again.body["command"]) == (200, True, None)
    assert (line["result"], line["status"], line["job_id"]) == ("replayed", 200, "qbe-1")
    assert site.reach.counts == {("commit", "done"): 1, ("commit", "replayed"): 1}


async def test_what_qemu_refuses_is_422_in_its_words(
    site: Site, fake: FakeQmp, lines: Lines
) -> None:
    """Without credentials."""
    desc = f"Could not open 'http://u:{SECRET}@host/x.qcow2': refused"
    fake.replies["block-commit"] = {"error": {"class": "GenericError", "desc": desc}}
    answer = await site.commit()
    line = lines.one()

    assert (answer.status, answer.problem) == (422, "refused-by-qemu")
    assert answer.body["detail"].startswith("Could not open 'http://host/x.qcow2'")
    assert (line["result"], line["status"], line["answer"]) == (
        "rejected", 422, answer.body["detail"],
    )  # fmt: skip
    assert SECRET not in json.dumps(answer.body) + lines.text("json")
    assert site.reach.counts == {("commit", "rejected"): 1}


async def test_a_connection_that_is_lost_is_502(site: Site, fake: FakeQmp, lines: Lines) -> None:
    """Nobody knows the outcome, and that is said in a member of its own."""
    site.reach.timing.lookup_pause_seconds = 0.0
    fake.replies["block-commit"] = dying(fake)
    answer = await site.commit()

    assert (answer.status, answer.problem) == (502, "unknown-outcome")
    assert answer.body["outcome"] == "unknown"
    assert (lines.one()["result"], site.reach.counts) == ("unknown", {("commit", "unknown"): 1})


async def test_an_answer_that_does_not_come_is_504(
    site: Site, fake: FakeQmp, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still be done."""

    def hold(_: Mapping[str, Any]) -> bytes:
        fake.answering.clear()
        return b""

    fake.replies["block-commit"] = hold
    execute = Vm.execute

    async def hastily(self: Vm, command: Command, timeout_seconds: float) -> None:
        await execute(self, command, 0.01)

    monkeypatch.setattr(Vm, "execute", hastily)
    answer = await site.commit()
    fake.answering.set()

    assert (answer.status, answer.problem, answer.body["outcome"]) == (504, "no-answer", "unknown")
    assert lines.one()["result"] == "unknown"


async def test_a_job_that_stands_in_the_way_is_part_of_the_problem(
    site: Site, fake: FakeQmp
) -> None:
    """As the API shows it elsewhere."""
    start(fake, block_job("j", "mirror"))
    answer = await site.post("/vms/vm/block-jobs/j/complete")

    assert (answer.status, answer.problem) == (409, "not-ready")
    assert answer.body["job"]["job_id"] == "j"
    assert answer.body["instance"] == "/api/v1/admin/vms/vm/block-jobs/j/complete"
    msgspec.convert(answer.body, api.Problem)


@pytest.mark.parametrize(
    "name", ["a/b", "50%", "mit Leerzeichen", "\u00e4\u4e2d\U0001f98a", "a%FFb"]
)
async def test_a_vm_of_any_name_is_changed(
    fake: FakeQmp, reach: Reach, sockets: Path, tmp_path: Path, lines: Lines, name: str
) -> None:
    """The job is where the answer says; the line has the name as it is."""
    reach.rename(name, str(sockets / "vm.sock"))
    async with serving(reach, tmp_path, "alice", prefix="/p") as site:
        answer = await site.commit(quote(name, safe=""))
        site.prefix = ""
        job = await site.send("GET", answer.headers["Location"])

    assert (answer.status, answer.body["vm"]) == (202, name)
    assert answer.headers["Location"] == f"/p/api/v1/vms/{quote(name, safe='')}/block-jobs/qbe-1"
    assert (job.status, job.body["vm"]) == (200, name)
    assert lines.all[0]["vm"] == name


# Lines.


@pytest.mark.parametrize("kind", ["logfmt", "json"])
async def test_a_line_is_one_line_whatever_is_asked_for(
    site: Site, lines: Lines, kind: str
) -> None:
    """Nothing in it moves the cursor, ends it, or turns the direction of a terminal."""
    odd = "a\nlevel=INFO msg=forged\r\x1b[2J\x00\x7f\x9b\u2028\u202e\u0085\ue000"
    body = {"action": "commit", "device": odd, "base": odd}
    await site.post(f"/vms/{quote('x' + odd, safe='')}/block-jobs", body)
    await site.post("/vms/vm/block-jobs", body)
    text = lines.text(kind)

    assert len(text.splitlines()) == 2
    assert all(c.isprintable() for c in text.replace("\n", ""))


async def test_a_credential_that_is_asked_with_is_in_no_line(
    site: Site, fake: FakeQmp, lines: Lines
) -> None:
    """Who names a layer as QEMU does brings its password along."""
    plug(fake, Disk(files=(f"http://u:{SECRET}@h/top", f"rbd:p/b:key={SECRET}")))
    texts = []
    for name in (f"http://u:{SECRET}@h/top", f"rbd:p/b:key={SECRET}"):
        for which in ("top", "base"):
            body = {"action": "commit", "device": "disk0", which: name}
            texts.append((await site.post("/vms/vm/block-jobs", body)).body["detail"])

    assert len(lines.all) == 4
    assert SECRET not in lines.text("json") + "".join(texts)


async def test_a_line_is_written_whatever_the_level_of_others(
    site: Site, root_logger: logging.Logger, lines: Lines
) -> None:
    """--log.level=error hides no change of a VM."""
    root_logger.setLevel(logging.ERROR)
    await site.commit()

    assert len(lines.all) == 1


# Counters.


async def test_each_action_and_result_is_counted_from_the_start(site: Site) -> None:
    """At 0: a counter that is born as 1 has no increase."""
    text = (await site.send("GET", "/metrics", headers={"Accept": "text/plain"})).body
    counted = series(text, "qemu_exporter_actions_total")
    expected = {
        f'qemu_exporter_actions_total{{action="{action}",result="{result}"}}': "0"
        for action in (*VERBS, *OWN)
        for result in RESULTS
    }

    assert counted == expected


async def test_a_request_is_counted_in_the_metrics(site: Site) -> None:
    """As the line says it."""
    await site.commit()
    text = (await site.send("GET", "/metrics", headers={"Accept": "text/plain"})).body

    assert series(text, "qemu_exporter_actions_total", action="commit", result="done") == {
        'qemu_exporter_actions_total{action="commit",result="done"}': "1"
    }


async def test_where_the_api_is_off_only_what_is_done_unasked_is_counted(
    fake: FakeQmp, sockets: Path, tmp_path: Path
) -> None:
    """No user can do anything."""
    reach = Reach(sockets, None)
    async with serving(reach, tmp_path) as site:
        text = (await site.send("GET", "/metrics", headers={"Accept": "text/plain"})).body
    await reach.close()
    names = {sample.partition('"')[2].partition('"')[0] for sample in series(
        text, "qemu_exporter_actions_total")}  # fmt: skip

    assert names == set(OWN)
