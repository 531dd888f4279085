"""The HTTP API asked for whatever its own description allows, and for what it does not.

The description is the running program's, the VM is real, and an ear at the wire hears each command
that leaves. What is asked for is the same in each run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi import checks

from exporter.api.routes import ROUTES
from exporter.qmp import commands
from tests.e2e.api import ALL, Admin, admin, grant
from tests.e2e.lab import MIB, Lab, Qemu, blockdev, drive, plug, wait_until
from tests.e2e.proxy import Recorder, recorded
from tests.e2e.raw import Wire, basic

#: Who asks -> what a grant lets them do.
GRANTED = {
    ALL: {route.name for route in ROUTES if route.changes},
    "pauser": {"pause", "resume", "speed"},
    "guest": set(),
}
#: What may be asked for -> the commands that it may send to this QEMU.
MEANS = {
    "commit": {"block-commit"},
    "complete": {"job-complete"},
    "cancel": {"block-job-cancel"},
    "pause": {"job-pause"},
    "resume": {"job-resume"},
    "finalize": {"job-finalize"},
    "dismiss": {"job-dismiss"},
    "speed": {"block-job-set-speed"},
    "snapshot": {"blockdev-snapshot-sync"},
}
#: Statuses of what may have been sent: accepted, refused by QEMU, unknown.
SENT = {201, 202, 422, 502, 504}
#: Beside these, nothing is ever a server's error.
DESIGNED = {502, 503, 504}
OF_JOBS = ["complete", "pause", "resume", "speed", "finalize", "cancel", "dismiss"]
#: No commit works on a disk before it has had its snapshots.
ORDER = ["snapshot", "commit", *OF_JOBS]
OPERATIONS = [route.name for route in ROUTES if not route.changes] + ORDER
JOBS = ["qbe-ready", "qbe-slow", "qbe-1", "qbe-2"]
DISKS = ["disk0", "disk1", "disk2", "disk3"]
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
the_same_each_time = settings(
    max_examples=8,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # to shrink would ask a VM that is another by then
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Site:
    """An exporter, the description that it serves, and an ear at the wire to its VM."""

    admin: Admin
    recorder: Recorder
    schema: Any
    session: requests.Session
    made: str

    @property
    def sent(self) -> list[str]:
        """The commands so far that changed something."""
        return [name for name, _ in self.recorder.commands if name in commands.WRITE_COMMANDS]

    def operation(self, name: str) -> Any:
        """Return an operation by its id."""
        return self.schema.find_operation_by_id(name)


@pytest.fixture(scope="module")
def site(shared_lab: Lab) -> Iterator[Site]:
    """A VM with disks of both kinds, with chains, a commit that runs and one that is ready."""
    lab = shared_lab
    disks: list[str] = []
    for number in (0, 2, 3):
        active = lab.chain(f"disk{number}", 3)[0]
        disks += [*drive(f"disk{number}", active), *plug(f"virtio{number}", f"disk{number}")]
    vm = lab.qemu("vm", *disks, *blockdev("disk1", *lab.chain("disk1", 3)), machine="pc")
    recorder = recorded(lab, vm)
    made = lab.folder / "made"
    made.mkdir()
    root = admin(
        lab,
        grant(directories=[str(made)], same_files=True),
        {"users": ["pauser"], "vms": ["v*"], "verbs": sorted(GRANTED["pauser"])},
        flags=[f"--qmp.sockets={lab.folder}/wire/*.sock"],
        sockets=False,
        users=["guest"],
    )
    assert root.commit("vm", "disk2", job_id="qbe-slow", speed_bytes_per_second=1).status == 202
    assert root.commit("vm", "disk3", job_id="qbe-ready").status == 202
    root.until("vm", "qbe-ready", ready=True)
    schema = schemathesis.openapi.from_dict(root.get("/openapi.json").body)
    schema.config.update(base_url=root.exporter.url)
    with requests.Session() as session:
        session.trust_env = False
        yield Site(root, recorder, schema, session, str(made))
    # It still serves, and has the VM.
    assert root.get("/vms/vm").body["up"] is True


def check(
    site: Site, case: Case[Any], user: str, more: Mapping[str, str | bytes] | None = None
) -> Any:
    """Ask, and see that the answer is as described and that nothing left that may not."""
    before = len(site.sent)
    response = case.call(
        session=site.session, headers={"Authorization": basic(user), **(more or {})}
    )
    name = case.operation.definition.raw["operationId"]
    may = MEANS.get(name, set()) if name in GRANTED[user] else set()
    # Whose job has ended is let go of at any time; the last test sees that those are all.
    sent = [each for each in site.sent[before:] if each != "job-dismiss"]
    answered = f"{response.status_code} {response.text[:500]}"
    shown = f"{user}: {case.as_curl_command()} with {more} -> {answered}; sent: {sent}"
    kind = response.headers.get("content-type", [""])[0]

    assert response.status_code < 500 or response.status_code in DESIGNED, shown
    assert response.status_code < 500 or kind == "application/problem+json", shown
    assert set(sent) <= may, shown
    assert len(sent) <= (response.status_code in SENT), shown
    assert not [each for each in response.headers if each.startswith("access-control")], shown
    case.validate_response(response, checks=CHECKS)
    return response


def text_of_headers() -> st.SearchStrategy[str]:
    """Return what a client may put into a header."""
    letters = st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")
    return st.text(letters, max_size=20).map(str.strip)


def odd_headers() -> st.SearchStrategy[dict[str, str]]:
    """Return headers that change what is meant, or try to, or mean nothing."""
    known = {
        "Accept": ["", "*/*", "text/html", "application/xml;q=x", ";;;"],
        "Accept-Encoding": ["gzip", "br;q=0", "identity;q=0, *;q=0"],
        "Content-Type": ["text/plain", "application/json; charset=utf-7", "application/json;", "/"],
        "Expect": ["100-continue"],
        "If-None-Match": ["*"],
        "Origin": ["null", "https://evil.example", "http://[", ""],
        "Range": ["bytes=0-1", "bytes=-0"],
        "Sec-Fetch-Site": ["cross-site", "none", ""],
        "X-Forwarded-For": ["::1"],
        "X-Forwarded-Host": ["evil.example"],
        "X-HTTP-Method-Override": ["DELETE"],
        "X-Prometheus-Scrape-Timeout-Seconds": ["nan", "-1", "1e400", "x"],
    }
    pairs = [
        st.tuples(st.just(name), st.sampled_from(values) | text_of_headers())
        for name, values in known.items()
    ]
    return st.lists(st.one_of(pairs), max_size=3).map(dict)


def aim(case: Case[Any], draw: Callable[[Any], Any], made: str) -> None:
    """Have a request be about what there is, most of the time."""
    own = f"qbe-{case.operation.definition.raw['operationId']}"
    jobs = [*JOBS, *[own] * len(JOBS)]
    for name, real in (("vm", ["vm"]), ("job_id", jobs)):
        if name in (case.path_parameters or {}) and draw(st.integers(0, 4)):
            case.path_parameters[name] = draw(st.sampled_from(real))
    body = case.body
    if isinstance(body, dict):
        real_ones = {
            "device": DISKS,
            "job_id": JOBS,
            "file": [f"{made}/{number}.qcow2" for number in range(40)],
            "top": [f"disk1-{layer}" for layer in range(3)],
            "base": [f"disk1-{layer}" for layer in range(3)],
        }
        for name in sorted(body.keys() & real_ones.keys()):
            if draw(st.integers(0, 4)):
                body[name] = draw(st.sampled_from(real_ones[name]))


def prepare(vm: Qemu, verb: str) -> None:
    """Start a job, named by a verb, that is in the state in which this can be done to it."""
    for node in ("from", "to"):
        vm.run("blockdev-add", {"driver": "null-co", "node-name": f"{verb}-{node}", "size": MIB})
    job_id = f"qbe-{verb}"
    mirror = {"device": f"{verb}-from", "target": f"{verb}-to", "sync": "full", "job-id": job_id}
    kept = {"auto-finalize": verb != "finalize", "auto-dismiss": verb != "dismiss"}
    vm.run("blockdev-mirror", {**mirror, **kept})
    before = {"resume": "job-pause", "finalize": "job-complete", "dismiss": "job-complete"}

    def has(status: str) -> bool:
        return (vm.job(job_id) or {}).get("status") == status

    wait_until(lambda: has("ready"), f"{job_id} is ready")
    if verb in before:
        vm.run(before[verb], {"id": job_id})
        after = {"resume": "standby", "finalize": "pending", "dismiss": "concluded"}[verb]
        wait_until(lambda: has(after), f"{job_id} is {after}")


@pytest.mark.parametrize("user", GRANTED)
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_the_description_allows_is_answered_as_described(
    site: Site, shared_lab: Lab, name: str, user: str
) -> None:
    """Of data that is valid, most of it about disks and jobs that there are."""
    if name in OF_JOBS and user == ALL:
        prepare(shared_lab.vms["vm"], name)

    @settings(the_same_each_time, max_examples=40 if name in GRANTED[user] else 8)
    @given(site.operation(name).as_strategy(GenerationMode.POSITIVE), st.data())
    def ask(case: Case[Any], data: Any) -> None:
        aim(case, data.draw, site.made)
        check(site, case, user)

    ask()


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize("user", [ALL, "guest"])
def test_what_the_description_does_not_allow_is_refused(site: Site, name: str, user: str) -> None:
    """Of data that is not valid: nothing is done, and the answer says what is wrong."""

    @the_same_each_time
    @given(site.operation(name).as_strategy(GenerationMode.NEGATIVE))
    def ask(case: Case[Any]) -> None:
        response = check(site, case, user)
        # A value that is too long may be in a body that is too large: schemathesis knows no 413.
        if response.status_code != 413:
            case.validate_response(response, checks=[checks.negative_data_rejection])

    ask()


@pytest.mark.parametrize("name", OPERATIONS)
def test_headers_change_nothing_of_that(site: Site, name: str) -> None:
    """Odd ones, beside what is valid: the answer is one of those described."""

    @the_same_each_time
    @given(site.operation(name).as_strategy(GenerationMode.POSITIVE), odd_headers(), st.data())
    def ask(case: Case[Any], headers: dict[str, str], data: Any) -> None:
        aim(case, data.draw, site.made)
        latin = {key: value.encode("latin-1") for key, value in headers.items()}
        check(site, case, "pauser", latin)

    ask()


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_stands_at_the_edge_of_the_description_is_answered_as_described(
    site: Site, name: str
) -> None:
    """The longest and the shortest, what is left out, what stands twice, and other methods."""
    cases = site.schema.iter_coverage_cases(
        site.operation(name),
        generation_modes=list(GenerationMode),
        generation_config=site.schema.config.generation,
    )
    answers = [check(site, case, "guest") for case in cases]

    assert answers


SEGMENTS = [
    "", ".", "..", "%2e%2e", "%2F", "%00", "%FF", "%", "admin", "vms", "vm", "block-jobs", "qbe-ready",
    "complete", "snapshots", "problems", "openapi.json", "*", "{vm}", "%7Bvm%7D", "a b", ";", "é",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "PROPFIND"]


def test_paths_that_are_none_are_refused(site: Site) -> None:
    """By any method: with a problem, or by the parser of HTTP where it is none at all."""
    paths = st.lists(st.sampled_from(SEGMENTS) | st.text(max_size=5), max_size=7).map("/".join)
    before = len(site.sent)

    @settings(the_same_each_time, max_examples=300)
    @given(st.sampled_from(METHODS), paths, st.sampled_from(["", "?", "?dry_run=true", "?\0", "#"]))
    def ask(method: str, path: str, query: str) -> None:
        if set(path) & set("\r\n"):
            return
        with Wire(site.admin.exporter) as wire:
            wire.send(
                wire.head(
                    method,
                    f"/api/v1/{path}{query}",
                    Authorization=basic("guest"),
                    Content_Type="application/json",
                    Content_Length="2",
                )
                + b"{}"
            )
            reply = wire.reply(bare=method == "HEAD")

        assert reply.status < 500
        assert reply.status in (200, 400) or method == "HEAD" or reply.problem
        assert (reply.status == 405) == ("allow" in reply.headers)

    ask()

    assert [each for each in site.sent[before:] if each != "job-dismiss"] == []


def test_every_command_that_was_heard_has_a_line_in_the_audit_trail(site: Site) -> None:
    """As many as say that something was sent, of each verb and of what is done unasked."""

    def told(action: str) -> int:
        sent = rf"msg=action action={action} result=(?:done|rejected|unknown) "
        return len(re.findall(sent, site.admin.exporter.said()))

    def heard_and_told() -> list[tuple[int, int]]:
        unasked = {"dismiss": told("auto_dismiss")}
        return [
            (site.recorder.count(*means), told(verb) + unasked.get(verb, 0))
            for verb, means in MEANS.items()
        ]

    # What is done unasked may just be under way.
    wait_until(lambda: all(heard == said for heard, said in heard_and_told()), "the same of each")


def test_each_verb_reached_the_vm_and_nothing_without_one(site: Site) -> None:
    """All that was asked for above: some of it was allowed, or the rest would prove nothing."""
    heard = site.recorder.names

    assert heard & commands.WRITE_COMMANDS.keys() == {
        each for means in MEANS.values() for each in means
    }
