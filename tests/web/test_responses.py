"""How the HTTP API answers: JSON, and problems of RFC 9457, whatever was raised."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from exporter import api
from exporter.errors import ActionError, LayerLost, OutcomeUnknown, Refused, Rejected
from exporter.web.responses import AUDIT, answer, problem, problems

JOB = api.Job(vm="vm", job_id="j", job_type="commit", device=None)
#: What the audit line of the last request is told.
told: dict[str, object] = {}
ERRORS: dict[str, ActionError] = {
    "refused": Refused("device-busy", "why", JOB),
    "managed": Refused("managed-vm", "why", manager="libvirt"),
    "rejected": Rejected("in QEMU's words"),
    "unknown": OutcomeUnknown("why"),
    "late": OutcomeUnknown("why", late=True),
    "lost": LayerLost("why"),
}


async def fail(request: web.Request) -> web.Response:
    """Raise what is asked for."""
    told.clear()
    request[AUDIT] = told
    raise ERRORS[request.match_info["name"]]


async def unaudited(request: web.Request) -> web.Response:
    """Raise where no audit line is gathered."""
    raise ERRORS["refused"]


async def found(request: web.Request) -> web.Response:
    """Answer."""
    return answer(JOB, 202)


async def slow(request: web.Request) -> web.Response:
    """Give up on a body."""
    return problem(request, "body-timeout", "why")


async def broken(request: web.Request) -> web.Response:
    """Have a defect."""
    raise RuntimeError("SECRETPW")


async def teapot(request: web.Request) -> web.Response:
    """Raise another status of HTTP's."""
    raise web.HTTPFound("/elsewhere")


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    """Pages below a root, and one beside it."""
    app = web.Application(middlewares=[problems("/root")])
    app.router.add_get("/root/fail/{vm}/{name}", fail)
    for path, handler in (
        ("/root/unaudited", unaudited), ("/root/found", found), ("/root/slow", slow),
        ("/root/broken", broken), ("/root/teapot", teapot), ("/rooted", found),
    ):  # fmt: skip
        app.router.add_get(path, handler)
    async with TestClient(TestServer(app)) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "status", "type_", "more", "line"),
    [
        ("refused", 409, "device-busy", {"job": msgspec.to_builtins(JOB)},
         {"result": "refused", "problem": "device-busy", "detail": "why"}),
        ("managed", 403, "managed-vm", {"manager": "libvirt"},
         {"result": "refused", "problem": "managed-vm", "detail": "why"}),
        ("rejected", 422, "refused-by-qemu", {},
         {"result": "rejected", "answer": "in QEMU's words", "detail": "in QEMU's words"}),
        ("unknown", 502, "unknown-outcome", {"outcome": "unknown"},
         {"result": "unknown", "detail": "why"}),
        ("late", 504, "no-answer", {"outcome": "unknown"},
         {"result": "unknown", "detail": "why"}),
        ("lost", 502, "layer-lost", {},
         {"result": "done", "problem": "layer-lost", "detail": "why"}),
    ],
)  # fmt: skip
async def test_an_error_is_a_problem_and_is_told_to_the_audit_line(
    client: TestClient[Any, Any],
    name: str,
    status: int,
    type_: str,
    more: dict[str, Any],
    line: dict[str, object],
) -> None:
    """With the VM of the path, and what belongs to it."""
    async with client.get(f"/root/fail/a%2Fb/{name}") as response:
        body = await response.json(content_type="application/problem+json")

    assert (response.status, told) == (status, line)
    assert body.pop("title")
    assert body == {
        "type": f"/api/v1/problems/{type_}",
        "status": status,
        "detail": str(ERRORS[name]),
        "instance": f"/root/fail/a/b/{name}",
        "vm": "a/b",
        **more,
    }


async def test_an_error_of_a_page_that_reads_has_no_line(client: TestClient[Any, Any]) -> None:
    """It is a problem all the same."""
    async with client.get("/root/unaudited") as response:
        body = await response.json(content_type="application/problem+json")

    assert (response.status, body["type"]) == (409, "/api/v1/problems/device-busy")
    assert "vm" not in body


async def test_what_is_not_there_and_what_is_not_done_are_problems(
    client: TestClient[Any, Any],
) -> None:
    """The methods that there are are told."""
    async with client.get("/root/none") as lost, client.put("/root/found") as wrong:
        bodies = [
            await each.json(content_type="application/problem+json") for each in (lost, wrong)
        ]

    assert [body["detail"] for body in bodies] == ["nothing is at /root/none", "PUT: use GET, HEAD"]
    assert wrong.headers["Allow"] == "GET, HEAD"


async def test_pages_beside_the_api_are_left_alone(client: TestClient[Any, Any]) -> None:
    """Their 404 is that of any web server."""
    for path in ("/none", "/root", "/rooted/none"):
        async with client.get(path) as response:
            assert (response.status, response.content_type) == (404, "text/plain")
    async with client.get("/rooted") as response:
        assert response.status == 202


async def test_an_answer_is_json(client: TestClient[Any, Any]) -> None:
    """Every member is there, with null for what is not known."""
    async with client.get("/root/found") as response:
        body = await response.json()

    assert (response.status, body) == (202, msgspec.to_builtins(JOB))
    assert body["device"] is None


async def test_a_connection_with_a_body_that_was_not_read_is_closed(
    client: TestClient[Any, Any],
) -> None:
    """Its rest would be taken for the next request."""
    async with client.get("/root/slow") as response:
        assert (response.status, response.headers["Connection"]) == (408, "close")


async def test_what_else_is_raised_is_raised_on(client: TestClient[Any, Any]) -> None:
    """A redirection is for the browser."""
    async with client.get("/root/teapot", allow_redirects=False) as response:
        assert response.status == 302


async def test_a_defect_is_answered_as_a_problem_and_tells_nothing_of_itself(
    client: TestClient[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A client reads it like any other; the operator finds one line in the log."""
    async with client.get("/root/broken") as response:
        told = await response.json(content_type="application/problem+json")

    assert (response.status, told["type"]) == (500, "/api/v1/problems/internal-error")
    assert told["outcome"] == "unknown"
    assert "SECRETPW" not in str(told)
    (line,) = [each for each in caplog.records if each.name.startswith("exporter")]
    assert "defect" in line.getMessage()
    assert "SECRETPW" not in str(vars(line))


def test_an_error_without_a_request_of_its_own_kind_cannot_be() -> None:
    """Every error of an action has an answer; a new one needs one too."""
    assert {type(error) for error in ERRORS.values()} == set(ActionError.__subclasses__())
