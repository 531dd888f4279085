"""Who means no good: other sites' pages, odd requests, floods. Nothing of it reaches QEMU."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from exporter.admin.audit import Audit
from exporter.admin.job_records import JobRecords
from exporter.admin.requests import AdminRequests
from exporter.admin.snapshot_records import SnapshotRecords
from exporter.admin.timing import Timing
from exporter.collect.fleet import Fleet
from exporter.config.settings import Config
from exporter.qmp import commands
from exporter.web.api_write import WriteApi
from exporter.web.app import Endpoints, Options
from tests.e2e.api import Admin, admin, grant
from tests.e2e.lab import MIB, Disk, Lab, drive, plug, wait_until
from tests.e2e.proxy import Recorder, recorded
from tests.e2e.raw import ADMIN, Reply, Wire, ask, basic, post
from tests.e2e.reading import value

#: The ready job, and what could be asked of it.
JOB = "qbe-ready"
COMPLETE = f"{ADMIN}/block-jobs/{JOB}/complete"
COMMIT = f"{ADMIN}/block-jobs"
SNAPSHOT = f"{ADMIN}/snapshots"


@dataclass(frozen=True)
class Site:
    """An exporter whose VM has a job that is ready, and an ear at the wire to the VM."""

    admin: Admin
    recorder: Recorder
    folder: Path

    def sent(self) -> list[str]:
        """Return the commands that changed something, in order."""
        return [name for name, _ in self.recorder.commands if name in commands.WRITE_COMMANDS]


def start(lab: Lab) -> Site:
    """Set up a site, and a commit that waits to be completed."""
    active, *_ = lab.chain("disk0", 2)
    idle = drive("disk1", lab.image("disk1"))
    disks = *drive("disk0", active), *plug("virtio0", "disk0"), *idle, *plug("virtio1", "disk1")
    recorder = recorded(lab, lab.qemu("vm", *disks, machine="pc"))
    root = admin(
        lab,
        grant(directories=[str(lab.folder / "made")], same_files=True),
        flags=[f"--qmp.sockets={lab.folder}/wire/*.sock"],
        sockets=False,
        users=["guest"],
    )
    (lab.folder / "made").mkdir()
    assert root.commit("vm", "disk0", job_id=JOB).status == 202
    root.until("vm", JOB, ready=True)
    return Site(root, recorder, lab.folder)


@pytest.fixture(scope="module")
def shared_site(shared_lab: Lab) -> Site:
    """A site for all tests that change nothing: none may."""
    return start(shared_lab)


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """A site to which nothing is to happen: afterwards nothing was sent, and the job is ready."""
    before = shared_site.sent()
    yield shared_site
    job = shared_site.admin.job("vm", JOB)

    assert shared_site.sent() == before
    assert (job["ready"], job["status"]) == (True, "ready")
    assert os.listdir(shared_site.folder / "made") == []


def problem(reply: Reply) -> tuple[int, str]:
    """Return what a refusal says."""
    return reply.status, reply.problem


# Pages of other sites.


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Sec_Fetch_Site": "of tomorrow"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "file://"},
        {"Origin": "http://[half"},
        {"Sec_Fetch_Site": "same-origin", "Origin": "https://evil.example"},
    ],
    ids=str,
)
def test_a_page_of_another_site_changes_nothing(site: Site, headers: dict[str, Any]) -> None:
    """Though the browser sends the user's password along with what the page asks for."""
    assert problem(post(site.admin.exporter, COMPLETE, **headers)) == (403, "cross-site")


@pytest.mark.parametrize("name", ["Host", "host"])
def test_a_page_cannot_call_itself_by_the_name_of_this_host(site: Site, name: str) -> None:
    """What a browser says of where a page is from is compared with where it asks."""
    exporter = site.admin.exporter
    host = exporter.url.removeprefix("http://")
    lure = f"http://{host}.evil.example"

    assert problem(post(exporter, COMPLETE, Origin=lure)) == (403, "cross-site")
    assert problem(post(exporter, COMPLETE, Origin=f"http://{host}@evil.example")) == (
        403,
        "cross-site",
    )


def test_the_exporters_own_page_may_ask(site: Site) -> None:
    """A browser says so of it."""
    exporter = site.admin.exporter
    own = {"Origin": exporter.url, "Sec_Fetch_Site": "same-origin"}
    reply = post(exporter, f"{COMPLETE}?dry_run=true", **own)

    assert (reply.status, reply.json["dry_run"]) == (200, True)


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain; charset=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "application/jsonp",
        "text/json",
        "",
    ],
)
def test_a_form_changes_nothing(site: Site, kind: str) -> None:
    """What a page may send without asking this host first is never of the type that is needed."""
    reply = post(site.admin.exporter, COMPLETE, Content_Type=kind)

    assert problem(reply) == (415, "wrong-content-type")


@pytest.mark.parametrize("path", [COMPLETE, COMMIT, SNAPSHOT, "/api/v1/vms", "/metrics"])
@pytest.mark.parametrize("user", ["root", "guest", "nobody", ""])
def test_no_answer_lets_a_page_of_another_site_read_or_ask_more(
    site: Site, path: str, user: str
) -> None:
    """Neither a preflight nor a request is answered with a CORS header, whoever asks for what."""
    exporter = site.admin.exporter
    preflight: dict[str, Any] = {
        "Origin": "https://evil.example",
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "content-type,authorization",
        "Access_Control_Request_Private_Network": "true",
        "Authorization": basic(user) if user else "",
    }
    replies = [
        ask(exporter, method, path, **preflight) for method in ("OPTIONS", "GET", "POST", "PUT")
    ]
    headers = {name for reply in replies for name in reply.headers}

    assert replies[0].status == (401 if user in {"nobody", ""} else 204)
    assert not [name for name in headers if name.startswith("access-control-")]


# Bodies.


def test_a_body_that_says_that_it_is_large_is_not_read(site: Site) -> None:
    """The answer comes before its first byte, and the connection ends."""
    with Wire(site.admin.exporter) as wire:
        json_of = {"Content_Type": "application/json", "Content_Length": str(MIB)}
        wire.send(wire.head("POST", COMPLETE, **json_of))
        reply = wire.reply()

        assert problem(reply) == (413, "too-large")
        assert wire.ended


def test_a_body_that_does_not_say_that_it_is_large_is_not_read_to_the_end(site: Site) -> None:
    """The answer comes when it is too long, though its end never comes."""
    with Wire(site.admin.exporter) as wire:
        json_of = {"Content_Type": "application/json", "Transfer_Encoding": "chunked"}
        wire.send(wire.head("POST", COMPLETE, **json_of))
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        wire.send(chunk)
        wire.send(chunk)
        reply = wire.reply()

        assert problem(reply) == (413, "too-large")
        assert wire.ended


def test_what_is_large_is_not_read_of_one_who_may_do_nothing(site: Site) -> None:
    """Nor of one without a password."""
    with Wire(site.admin.exporter) as wire:
        told = {"Content_Type": "application/json", "Content_Length": str(MIB)}
        wire.send(wire.head("POST", COMPLETE, Authorization=basic("evil"), **told))

        assert wire.reply().status == 401


async def test_a_body_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes when its time is up, and the connection ends."""
    monkeypatch.setattr("exporter.web.api_write.BODY_SECONDS", 0.02)
    fleet = Fleet(Config(groups=()))
    actions = AdminRequests(
        fleet, JobRecords(str(tmp_path)), SnapshotRecords(str(tmp_path)), Timing()
    )
    changing = WriteApi(actions, Audit(), prefix="")
    app = Endpoints(fleet, Options(), lambda: None, changing=changing).application()
    async with TestServer(app) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        head = f"POST {COMPLETE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: 2\r\n\r\n{{".encode())
        status, _, rest = (await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")
        writer.close()
    await fleet.close()

    assert status == "HTTP/1.1 408 Request Timeout"
    assert "Connection: close" in rest.split("\r\n")


@pytest.mark.parametrize("user", ["root", "guest", "evil"])
def test_a_client_that_waits_to_be_asked_for_its_body_is_asked_by_those_who_want_it(
    site: Site, user: str
) -> None:
    """Not before it is known who it is, and that it is no form and not too large."""
    exporter = site.admin.exporter
    waits = {"Authorization": basic(user), "Expect": "100-continue"}
    of_json = {"Content_Type": "application/json", "Content_Length": "2"}
    with Wire(exporter) as wire:
        wire.send(wire.head("POST", f"{COMPLETE}?dry_run=true", **waits, **of_json))
        first = wire.reply()
        if first.status == 100:
            wire.send(b"{}")
            first = wire.reply()
            assert user != "evil"

        assert first.status == {"root": 200, "guest": 403, "evil": 401}[user]
    large = {**waits, "Content_Type": "application/json", "Content_Length": str(MIB)}
    form = {**waits, "Content_Type": "text/plain", "Content_Length": "2"}
    for headers, status in ((large, 413), (form, 415)):
        with Wire(exporter) as wire:
            wire.send(wire.head("POST", COMPLETE, **headers))

            assert wire.reply().status == (401 if user == "evil" else status)


@pytest.mark.parametrize("path", [COMPLETE, "/api/v1/vms", "/metrics"])
@pytest.mark.parametrize("value", ["x", "\xff", "100-continue, x", "100-continue\xe9"])
def test_nobody_can_expect_anything_else(site: Site, path: str, value: str) -> None:
    """Nor learn anything by it, or have the exporter fail."""
    method = "POST" if path == COMPLETE else "GET"
    with Wire(site.admin.exporter) as wire:
        head = wire.head(method, path, Content_Length="0", Content_Type="application/json")
        wire.send(head[:-2] + b"Expect: " + value.encode("latin-1") + b"\r\n\r\n")
        reply = wire.reply()

    assert (reply.status, reply.body) == (417, b"Expectation Failed\n")


def test_a_body_that_is_cut_off_does_nothing(site: Site) -> None:
    """Half of it is not taken for the whole."""
    with Wire(site.admin.exporter) as wire:
        wire.send(wire.head("POST", COMPLETE, Content_Type="application/json", Content_Length="9"))
        wire.send(b"{}")


BROKEN = {
    "nothing": b"",
    "half": b"{",
    "more": b"{}{}",
    "text": b"complete",
    "no UTF-8": b'{"force": "\xff"}',
    "UTF-16": "{}".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "array": b"[]",
    "null": b"null",
    "number": b"1",
    "comment": b"{/**/}",
    "single quotes": b"{'force': true}",
    "deep arrays": b"[" * 16_000,
    "deep objects": b'{"a":' * 3_200,
    "deep and closed": b'{"a":' + b"[" * 7_000 + b"]" * 7_000 + b"}",
    "unknown member": b'{"forse": true}',
    "wrong type": b'{"force": "false"}',
    "null member": b'{"force": null}',
    "number for a flag": b'{"force": 1}',
    "a member twice": b'{"force": false, "force": true}',
    "a member twice by escapes": b'{"force": false, "f\\u006frce": true}',
    "NaN": b'{"force": NaN}',
    "lone surrogate": b'{"force": "\\ud800"}',
    "NUL in a name": b'{"force\\u0000": true}',
}


@pytest.mark.parametrize("body", BROKEN)
def test_a_body_that_is_not_what_was_asked_for_does_nothing(site: Site, body: str) -> None:
    """Whatever it could have meant."""
    reply = post(site.admin.exporter, f"{ADMIN}/block-jobs/{JOB}/cancel", BROKEN[body])

    assert problem(reply) == (400, "bad-request")


@pytest.mark.parametrize(
    "number",
    ["-1", "9223372036854775808", "1" + "0" * 4000, "1e400", "-1e400", "1.5", "1e-400", "NaN",
     "Infinity", '"1"', "true", "null", "[1]", "0x10", "01", "1_000"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_number_that_is_none_for_qemu_does_nothing(site: Site, number: str) -> None:
    """Too large, too small, no integer, or written as JSON does not write it."""
    body = f'{{"speed_bytes_per_second": {number}}}'.encode()
    reply = post(site.admin.exporter, f"{ADMIN}/block-jobs/{JOB}/speed", body)

    assert problem(reply) == (400, "bad-request")


# Names.

FORGED = "x\nlevel=ERROR msg=forged\r\ntime=2026\x1b[31m\x9b31m\u2028\u0085\x7fmsg=forged"


@pytest.mark.parametrize("name", ["disk0\n", "disk0\0", "disk0\0x", " disk0", "DISK0", FORGED])
def test_a_device_is_found_by_its_name_and_nothing_like_it(site: Site, name: str) -> None:
    """No end of a string before its end."""
    answer = site.admin.commit("vm", name)

    assert (answer.status, answer.problem) == (404, "unknown-device")


@pytest.mark.parametrize(
    "job_id",
    ["qbe-a\n", "qbe-a\0", "qbe-", "disk0", "qbe-/../x", "qbe-..\\x", "QBE-a", "qbe-é", "qbe-" + "a" * 60],
)  # fmt: skip
def test_a_job_has_an_id_that_qemu_takes_and_that_can_name_a_file(site: Site, job_id: str) -> None:
    """Each is refused before anything is looked at."""
    answer = site.admin.commit("vm", "disk0", job_id=job_id)

    assert (answer.status, answer.problem) == (400, "bad-request")


@pytest.mark.parametrize(
    ("vm", "job_id"),
    [
        ("vm%00", JOB),
        ("vm%0A", JOB),
        ("%2e%2e%2fvm", JOB),
        ("..%2F..%2Fwire%2Fvm.sock", JOB),
        ("%2e%2e", JOB),
        ("vm%2F", JOB),
        ("%FF", JOB),
        ("%ED%A0%80", JOB),
        ("vm%252F", JOB),
        ("vm;a=b", JOB),
        ("*", JOB),
        ("vm", f"{JOB}%00"),
        ("vm", f"{JOB}%0A"),
        ("vm", f"%2e%2e%2f{JOB}"),
        ("vm", f"..%2F{JOB}"),
        ("vm", f"{JOB}%20"),
        ("vm", "*"),
        ("vm", "%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
        ("vm", "x" * 4000),
        ("x" * 4000, JOB),
    ],
)
def test_a_path_leads_to_what_it_names_and_nowhere_else(site: Site, vm: str, job_id: str) -> None:
    """Each part is one name, however it is written."""
    path = f"/vms/{vm}/block-jobs/{job_id}"
    changed = post(site.admin.exporter, f"/api/v1/admin{path}/complete")
    read = ask(site.admin.exporter, "GET", f"/api/v1{path}")

    assert changed.status == read.status == 404
    assert {changed.problem, read.problem} <= {"unknown-vm", "unknown-job", "not-found"}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("{made}/../stolen.qcow2", "bad-file"),
        ("{made}/./x.qcow2", "bad-file"),
        ("{made}//x.qcow2", "bad-file"),
        ("{made}/x\0.qcow2", "bad-file"),
        ("{made}/x\n.qcow2", "bad-file"),
        ("{made}/", "bad-file"),
        ("{made}/..", "bad-file"),
        ("{made}x/y.qcow2", "not-granted"),
        ("{made}/" + "y" * 900, "bad-file"),
        ("/etc/x.qcow2", "not-granted"),
        ("/proc/self/fd/x", "not-granted"),
        ("relative.qcow2", "bad-request"),
        ("json:{{}}", "bad-request"),
        ("nbd://host/x", "bad-request"),
        ("/" + "x" * 1100, "bad-request"),
    ],
)
def test_a_file_is_made_in_a_granted_directory_or_not_at_all(
    site: Site, file: str, expected: str
) -> None:
    """However its name is written: neither there nor elsewhere, and QEMU hears of none."""
    before = sorted(os.listdir(site.folder))
    name = file.format(made=site.folder / "made")
    answer = site.admin.post("/vms/vm/snapshots", {"device": "disk1", "file": name})

    assert answer.problem == expected
    assert sorted(os.listdir(site.folder)) == before


@pytest.mark.parametrize(
    "query",
    ["dryrun=true", "dry_run=1", "dry_run=TRUE", "dry_run=", "dry_run", "dry-run=true",
     "Dry_run=true", "dry_run=true&dry_run=false", "dry_run=false&dry_run=false",
     "dry_run=true&x=1", "force=true", "%64ry_run=yes", "dry_run[]=true", "=", "dry_run=true%00"],
)  # fmt: skip
def test_a_word_that_is_misspelt_does_nothing(site: Site, query: str) -> None:
    """What was to be tried is never done for real."""
    reply = post(site.admin.exporter, f"{COMPLETE}?{query}")

    assert problem(reply) == (400, "bad-request")


@pytest.mark.parametrize("path", [COMPLETE, COMMIT, SNAPSHOT])
@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "LOCK"]
)
def test_a_change_is_posted(site: Site, method: str, path: str) -> None:
    """Every other method is told so; OPTIONS asks for nothing else."""
    reply = ask(site.admin.exporter, method, path, Content_Type="application/json")

    status = 204 if method == "OPTIONS" else 405
    assert (reply.status, reply.headers["allow"]) == (status, "OPTIONS, POST")


@pytest.mark.parametrize(
    "line", ["X {path} HTTP/1.1", "post {path} HTTP/1.1", "POST {path} HTTP/9.9", "POST{path}", ""]
)
def test_what_is_no_request_is_refused(site: Site, line: str) -> None:
    """And the connection ends."""
    with Wire(site.admin.exporter) as wire:
        head = wire.head("POST", COMPLETE, Content_Type="application/json", Content_Length="2")
        rest = head.partition(b"\r\n")[2] + b"{}"
        wire.send(line.format(path=COMPLETE).encode() + b"\r\n" + rest)

        assert wire.reply().status == 400
        assert wire.ended


@pytest.mark.parametrize(
    "more",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: -2\r\n",
        b"Content-Length: 2\r\n folded: x\r\n",
        b"Na me: x\r\n",
        b"Content-Length : 2\r\n",
        b"Name: a\0b\r\n",
        b"Name: " + b"x" * 70_000 + b"\r\n",
    ],
    ids=lambda more: more[:40].decode(),
)
def test_a_request_that_can_be_read_in_two_ways_does_nothing(site: Site, more: bytes) -> None:
    """A proxy before us could have read the other, and taken the rest for another's request."""
    with Wire(site.admin.exporter) as wire:
        head = wire.head("POST", COMPLETE, Content_Type="application/json")
        wire.send(head.removesuffix(b"\r\n") + more + b"\r\n{}")

        assert wire.reply().status == 400


def test_a_method_is_not_changed_by_a_header(site: Site) -> None:
    """As some frameworks do."""
    override: dict[str, Any] = {"X_HTTP_Method_Override": "POST", "X_Method_Override": "POST"}
    reply = ask(site.admin.exporter, "GET", COMPLETE, **override)

    assert reply.status == 405


def test_a_line_of_the_log_is_one_line(site: Site) -> None:
    """Whatever a request names: no line of another's making, nothing that a terminal would obey."""
    site.admin.commit("vm", FORGED)
    post(site.admin.exporter, "/api/v1/admin/vms/a%0Alevel=ERROR%20msg=forged%1b%c2%9b/snapshots")
    post(site.admin.exporter, f"{ADMIN}%C2%9B31m/snapshots", Authorization=basic("\x9b\nroot"))
    lines = site.admin.exporter.log.read_text("utf-8").split("\n")

    assert not [line for line in lines if line and not line.startswith("time=")]
    assert not [line for line in lines if not line.isprintable()]


def test_no_password_is_in_the_log(site: Site) -> None:
    """Neither a good one nor a bad one."""
    post(site.admin.exporter, COMPLETE, Authorization=basic("root", "S3CRET"), Origin="null")
    post(site.admin.exporter, COMPLETE, Origin="null")

    assert not re.search(r"S3CRET|rootroot|cm9vd", site.admin.exporter.said())


def test_one_without_a_grant_changes_nothing(site: Site) -> None:
    """Whatever is asked for; and is told of no job's state."""
    guest = Admin(site.admin.exporter, "guest")
    answers = [
        guest.change("vm", JOB, "complete"),
        guest.change("vm", JOB, "cancel", force=True),
        guest.commit("vm", "disk0"),
        guest.snapshot("vm", "disk0", site.folder / "made" / "x.qcow2"),
        guest.change("other", JOB, "complete"),
        guest.change("vm", JOB, "complete", dry_run=True),
    ]

    assert {(answer.status, answer.problem) for answer in answers} == {(403, "not-granted")}
    assert not [answer for answer in answers if "job" in answer.body]


# Floods.

#: Requests, and the wrong pairs of user and password in them; half of the users exist.
REQUESTS, PAIRS, CONNECTIONS, AT_ONCE = 10_000, 500, 10, 20


def flood(site: Site, number: int) -> Counter[int]:
    """Send a part of the requests on one connection, some at once; return the statuses."""
    pairs = [basic(("root", f"user{n}")[n % 2], f"wrong{n}") for n in range(PAIRS)]
    mine = itertools.islice(
        itertools.cycle(pairs), number * 7, number * 7 + REQUESTS // CONNECTIONS
    )
    statuses: Counter[int] = Counter()
    with Wire(site.admin.exporter) as wire:
        for _ in range(REQUESTS // CONNECTIONS // AT_ONCE):
            tokens = itertools.islice(mine, AT_ONCE)
            wire.send(b"".join(wire.head("GET", "/metrics", Authorization=t) for t in tokens))
            statuses.update(wire.reply().status for _ in range(AT_ONCE))
    return statuses


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in RAM."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_ten_thousand_wrong_passwords_keep_no_good_user_out(site: Site) -> None:
    """Each is refused, one who is right is served meanwhile, and memory stays as it was."""
    exporter = site.admin.exporter
    exporter.metrics()
    before = resident_bytes(exporter.pid)
    good: Counter[int] = Counter()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        parts = [threads.submit(flood, site, number) for number in range(CONNECTIONS)]
        while not all(part.done() for part in parts):
            good[ask(exporter, "GET", "/metrics").status] += 1
        statuses = sum((part.result() for part in parts), Counter[int]())

    assert statuses.total() == REQUESTS
    assert statuses.keys() <= {401, 429}
    assert statuses[401] > 0
    assert good.keys() == {200}
    assert resident_bytes(exporter.pid) - before < 16 * MIB


def test_one_of_a_hundred_who_complete_a_job_at_once_does(lab: Lab) -> None:
    """QEMU hears it once, the disk pivots once, and that is counted once."""
    mine = start(lab)
    with ThreadPoolExecutor(100) as threads:
        asked = [threads.submit(mine.admin.change, "vm", JOB, "complete") for _ in range(100)]
        answers = [each.result() for each in asked]
    exporter = mine.admin.exporter
    mine.admin.until("vm", JOB, outcome="completed")
    wait_until(lambda: mine.recorder.count("job-dismiss"), "the exporter lets go of the job")
    exposition = exporter.fresh()
    statuses = Counter(answer.status for answer in answers)
    done = {"action": "complete", "result": "done"}

    assert statuses.pop(202) == 1
    assert statuses.keys() <= {404, 409}
    assert mine.sent() == ["block-commit", "job-complete", "job-dismiss"]
    assert value(exposition, "qemu_exporter_actions_total", **done) == 1
    assert value(exposition, "qemu_block_jobs_completed_total", job_type="commit") == 1
    file = Disk(lab.vms["vm"], "disk0").entry["inserted"]["file"]
    assert file == str(lab.folder / "disk0-1.qcow2")
    assert mine.admin.layers("vm", "disk0") == [file]
