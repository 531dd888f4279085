"""What stands before every page: who gets which answer, with which headers, and how often."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from exporter.collect.fleet import Fleet
from exporter.config.settings import Config, Group, Settings
from exporter.web import auth
from exporter.web.app import OTHER_PATHS, Endpoints, Options
from exporter.web.auth import AuthMiddleware, Bucket, credentials, user_of
from exporter.web.config import RateLimit
from exporter.web.passwords import Passwords
from exporter.web.watched_config import WatchedWebConfig
from tests.pki import hashed

USERS = f"basic_auth_users:\n  prometheus: {hashed('right')}\n  operator: {hashed('other')}\n"
HEADERS = "http_server_config: {headers: {X-Frame-Options: deny, X-XSS-Protection: 1}}\n"


def basic(text: str | bytes) -> str:
    """Return an Authorization header."""
    raw = text.encode() if isinstance(text, str) else text
    return f"Basic {base64.b64encode(raw).decode()}"


RIGHT = basic("prometheus:right")


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Site:
    """Pages behind a gate."""

    def __init__(
        self, file: Path, client: TestClient[Any, Any], gate: AuthMiddleware, clock: Clock
    ) -> None:
        self._file = file
        self.client = client
        self.gate = gate
        self.clock = clock

    def write(self, text: str) -> None:
        """Write the web config file anew."""
        self._file.write_text(text)

    async def get(
        self, authorization: str = "", path: str = "/who", method: str = "GET"
    ) -> aiohttp.ClientResponse:
        """Ask for a page."""
        headers = {"Authorization": authorization} if authorization else {}
        return await self.client.request(method, path, headers=headers)

    async def status(self, *args: str) -> int:
        """Return the status of a page."""
        return (await self.get(*args)).status


Serve = Callable[..., Awaitable[Site]]


async def who(request: web.Request) -> web.Response:
    """Say who asks."""
    return web.Response(text=f"<{user_of(request)}>")


async def broken(request: web.Request) -> web.Response:
    """Fail."""
    raise RuntimeError


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Serves pages behind the gate of a web config file."""
    served = []

    async def start(
        text: str, app: web.Application | None = None, passwords: Passwords | None = None
    ) -> Site:
        file = tmp_path / "web.yml"
        file.write_text(text)
        clock = Clock()
        gate = AuthMiddleware(WatchedWebConfig(str(file)), passwords, clock)
        if app is None:
            app = web.Application()
            app.router.add_get("/who", who)
            app.router.add_get("/broken", broken)
        gate.guard(app)
        client = TestClient(TestServer(app))
        await client.start_server()
        served.append(client)
        return Site(file, client, gate, clock)

    yield start
    for client in served:
        await client.close()


# Users.


async def test_a_user_is_let_in_and_known_by_name(serve: Serve) -> None:
    """To every handler."""
    site = await serve(USERS)

    assert await (await site.get(RIGHT)).text() == "<prometheus>"
    assert await (await site.get(basic("operator:other"))).text() == "<operator>"
    assert site.gate.users == {"prometheus", "operator"}


async def test_nobody_else_is_let_in(serve: Serve) -> None:
    """The answer is that of other exporters, whatever was wrong."""
    site = await serve(USERS)
    for authorization in ("", basic("prometheus:wrong"), basic("nobody:right")):
        answer = await site.get(authorization)

        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Basic"
        assert await answer.text() == "Unauthorized\n"


async def test_without_users_everybody_is_let_in_and_nobody_is_known(serve: Serve) -> None:
    """An Authorization header says nothing then."""
    site = await serve("")

    assert await (await site.get()).text() == "<>"
    assert await (await site.get(RIGHT)).text() == "<>"
    assert await (await site.get("nonsense")).text() == "<>"
    assert site.gate.users == frozenset()


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic",
        "Basic ",
        "Basic x",
        "Basic !!!!",
        "Basic cHJvbWV0aGV1czpyaWdodA",
        "Basic  cHJvbWV0aGV1czpyaWdodA==",
        "Basic cHJvbWV0aGV1czpyaWdodA== x",
        "Basic cHJvbWV0aGV1czpyaWdodA==, Basic x",
        "Bearer cHJvbWV0aGV1czpyaWdodA==",
        "cHJvbWV0aGV1czpyaWdodA==",
        basic("prometheus"),
        basic("prometheus "),
        basic(""),
        basic(":"),
        basic(":right"),
        basic("prometheus:"),
        basic("prometheus:right:"),
        basic("Prometheus:right"),
        basic("prometheus\0:right"),
        basic("prometheus:right\0"),
        basic("prometheus:" + "x" * 5000),
        basic(b"\xff\xfe:\xfd"),
        basic(b"\xed\xa0\x80:right"),
        "Basic \u00e9",
        "Basic \udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ],
)
async def test_a_header_that_is_wrong_is_refused_as_a_password_is(
    serve: Serve, authorization: str
) -> None:
    """It never breaks anything."""
    assert await (await serve(USERS)).status(authorization) == 401


async def test_two_headers_are_refused(serve: Serve) -> None:
    """A proxy before us may have read the other one."""
    site = await serve(USERS)
    headers = [("Authorization", RIGHT), ("Authorization", basic("prometheus:wrong"))]
    answer = await site.client.get("/who", headers=headers)

    assert answer.status == 401


@pytest.mark.parametrize("scheme", ["basic", "BASIC"])
async def test_the_scheme_may_be_written_in_any_case(serve: Serve, scheme: str) -> None:
    """RFC 9110 has it so."""
    assert await (await serve(USERS)).status(RIGHT.replace("Basic", scheme)) == 200


async def test_a_password_and_a_name_may_have_any_letters(serve: Serve) -> None:
    """In UTF-8, colons in the password included."""
    site = await serve(f"basic_auth_users:\n  josé: {hashed('p:é:')}\n")

    assert await (await site.get(basic("josé:p:é:"))).text() == "<josé>"


@given(st.text(), st.binary())
def test_credentials_come_back_as_they_were_sent(name: str, password: bytes) -> None:
    """Whatever they are, if the name has no colon."""
    sent = basic(name.encode("utf-8", "replace") + b":" + password)
    wanted, _, rest = name.encode("utf-8", "replace").partition(b":")
    expected = rest + b":" + password if ":" in name else password

    assert credentials(sent) == (wanted.decode(), expected)


@given(st.text())
def test_any_header_is_credentials_or_none(header: str) -> None:
    """No text breaks the parser."""
    for text in (header, f"Basic {header}", f"Basic {header}=="):
        found = credentials(text)
        assert found is None or isinstance(found[1], bytes)


async def test_every_page_of_the_exporter_is_behind_the_gate(serve: Serve) -> None:
    """Those that there are not too: who may not ask learns nothing."""
    group = Group(name="g", settings=Settings(), sockets=("/nowhere/*.sock",))
    fleet = Fleet(Config(groups=(group,)))
    reloads: list[int] = []
    options = Options(lifecycle=True)
    app = Endpoints(fleet, options, lambda: reloads.append(1)).application()
    site = await serve(USERS + HEADERS, app)
    for path in (*OTHER_PATHS, "/", "/metrics", "/gone", "/../etc/passwd", "//", "/probe?target=x"):
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            assert await site.status("", path, method) == 401
    assert not reloads

    assert await site.status(RIGHT, "/-/reload", "POST") == 200
    assert reloads
    assert await site.status(RIGHT, "/gone") == 404
    assert await site.status(RIGHT, "/metrics", "POST") == 405
    answer = await site.get(RIGHT, "/metrics")
    assert answer.headers["X-Frame-Options"] == "deny"
    assert "qemu_exporter_build_info" in await answer.text()
    await fleet.close()


async def test_users_change_without_a_restart(serve: Serve) -> None:
    """With the next request after the file did."""
    site = await serve(USERS)
    assert await site.status(RIGHT) == 200
    site.write(f"basic_auth_users:\n  prometheus: {hashed('new')}\n")

    assert await site.status(RIGHT) == 401
    assert await site.status(basic("prometheus:new")) == 200
    assert await site.status(basic("operator:other")) == 401
    assert site.gate.users == {"prometheus"}


async def test_a_file_that_breaks_changes_nothing(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and not with every request."""
    site = await serve(USERS)
    site.write("basic_auth_users: 7\n")

    with caplog.at_level(logging.INFO):
        for _ in range(5):
            assert await site.status(RIGHT) == 200
            assert await site.status() == 401
    said = [record.message for record in caplog.records if record.name.startswith("exporter")]
    assert said == ["web configuration not reloaded"]


# Headers.


@pytest.mark.parametrize(
    ("authorization", "path", "status"),
    [(RIGHT, "/who", 200), ("", "/who", 401), (RIGHT, "/gone", 404), (RIGHT, "/broken", 500)],
)
async def test_headers_are_on_every_answer(
    serve: Serve, authorization: str, path: str, status: int
) -> None:
    """On those of errors too."""
    answer = await (await serve(USERS + HEADERS)).get(authorization, path)

    assert answer.status == status
    assert answer.headers["X-Frame-Options"] == "deny"
    assert answer.headers["X-XSS-Protection"] == "1"


async def test_headers_change_without_a_restart(serve: Serve) -> None:
    """They come and go."""
    site = await serve("")
    assert "X-Frame-Options" not in (await site.get()).headers
    site.write(HEADERS)
    assert "X-Frame-Options" in (await site.get()).headers
    site.write("")
    assert "X-Frame-Options" not in (await site.get()).headers


# The rate limit.


def test_a_bucket_gives_a_burst_and_then_one_each_interval() -> None:
    """As Go's does."""
    clock = Clock()
    bucket = Bucket(RateLimit(2.0, 3), clock)

    assert [bucket.wait_seconds() for _ in range(5)] == [0, 0, 0, 2, 2]
    clock.now = 1.5
    assert bucket.wait_seconds() == 0.5
    clock.now = 2.0
    assert [bucket.wait_seconds() for _ in range(2)] == [0, 2]
    clock.now = 7.0
    assert [bucket.wait_seconds() for _ in range(3)] == [0, 0, 1]


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    """However long nobody came."""
    clock = Clock()
    bucket = Bucket(RateLimit(0.5, 2), clock)
    clock.now = 1e6

    assert [bucket.wait_seconds() for _ in range(3)] == [0, 0, 0.5]


async def test_more_requests_than_the_limit_are_told_to_come_later(serve: Serve) -> None:
    """Before anybody's password is looked at, with the headers."""
    site = await serve(USERS + HEADERS + "rate_limit: {interval: 10s, burst: 2}\n")
    assert [await site.status(RIGHT), await site.status()] == [200, 401]
    answer = await site.get(RIGHT)

    assert answer.status == 429
    assert answer.headers["Retry-After"] == "10"
    assert answer.headers["X-Frame-Options"] == "deny"
    assert await answer.text() == "Too Many Requests\n"
    site.clock.now = 10
    assert await site.status(RIGHT) == 200


async def test_the_limit_changes_without_a_restart(serve: Serve) -> None:
    """Another change of the file fills no bucket."""
    limit = "rate_limit: {interval: 10s, burst: 1}\n"
    site = await serve(limit)
    assert [await site.status(), await site.status()] == [200, 429]
    site.write(limit + HEADERS)
    assert await site.status() == 429
    site.write("rate_limit: {interval: 10s, burst: 2}\n")
    assert [await site.status() for _ in range(3)] == [200, 200, 429]
    site.write("")
    assert [await site.status() for _ in range(3)] == [200, 200, 200]


# Those who have to wait for others.


async def test_who_cannot_be_checked_now_is_told_to_come_later(serve: Serve) -> None:
    """That is no 401, which Prometheus's user would take for a wrong password."""
    answer = await (await serve(USERS, passwords=Passwords(waiting_of_one=0))).get(RIGHT)

    assert answer.status == 429
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::2:3:4:5", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        (None, "", True),
    ],
)
def test_one_client_of_ipv6_has_a_whole_network(
    one: str | None, other: str | None, same: bool
) -> None:
    """It would have 2^64 turns otherwise."""
    assert (auth._network(one) == auth._network(other)) is same
