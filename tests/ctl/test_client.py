"""The HTTP API, asked: each answer is told from no answer, and that from a request that never left."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from exporter.api.verbs import Commit, Pause
from exporter.ctl import client as client_module
from exporter.ctl.client import Client, NoAnswer, NotSent, Refused
from exporter.ctl.credentials import Credentials, load
from tests.fakeapi import FakeApi, job, problem, vm

COMMIT = Commit(action="commit", device="disk0", job_id="qbe-1")


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    """A client of `api`."""
    async with Client(api.url, load(None), 30.0) as made:
        yield made


@pytest.mark.parametrize("name", ["a/b?c#d", "..", "%2F", "[red]", "ä \x1b\n", "x" * 10_000])
async def test_any_name_is_one_part_of_the_path(name: str, api: FakeApi, client: Client) -> None:
    """Nothing in it leads elsewhere."""
    api.vms = [vm(name)]

    if len(name) < 5000:
        assert (await client.vm(name)).vm == name
    else:
        with pytest.raises((Refused, NoAnswer)):
            await client.vm(name)
        return
    assert (await client.start(name, COMMIT, dry_run=False)).job_id == "qbe-1"


async def test_a_prefix_is_kept(api: FakeApi) -> None:
    """With and without a slash at its end."""
    api.prefix = "/qemu"
    for url in (api.url, f"{api.url}/"):
        async with Client(url, load(None), 30.0) as made:
            assert (await made.vms()).vms[0].vm == "web"


async def test_a_request_says_what_it_is(api: FakeApi, client: Client) -> None:
    """The API takes nothing else."""
    await client.change("web", "qbe-1", Pause(), dry_run=True)

    assert api.headers[0]["Content-Type"] == "application/json"
    assert api.asked == [("POST", "/api/v1/admin/vms/web/block-jobs/qbe-1/pause", {})]
    assert "qbe-1" not in api.lives


async def test_a_refusal_is_a_problem(api: FakeApi, client: Client) -> None:
    """With all that the API says."""
    api.posts = [problem("device-busy", 409, job=job())]
    with pytest.raises(Refused) as caught:
        await client.start("web", COMMIT, dry_run=False)

    assert caught.value.problem.job == job()


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (web.Response(status=401, text="Unauthorized\n"), 401, "Unauthorized"),
        (web.Response(status=403, text="<h1>", content_type="text/html"), 403, "HTTP status 403"),
        (web.Response(status=503, body=b""), 503, "HTTP status 503"),
        (web.Response(status=302, headers={"Location": "/x"}), 302, "moved to /x"),
        (web.Response(status=400, text="\x1b[2J\n"), 400, "\\x1b[2J"),
        (
            web.Response(status=409, body=b"{", content_type="application/problem+json"),
            409,
            "HTTP status 409",
        ),
    ],
)
async def test_whatever_says_no_is_a_refusal(
    answer: web.Response, status: int, detail: str, api: FakeApi, client: Client
) -> None:
    """The layer before the API, and proxies."""
    api.posts = [answer]
    with pytest.raises(Refused) as caught:
        await client.start("web", COMMIT, dry_run=False)

    made = caught.value.problem
    assert (made.type, made.status, made.detail) == ("about:blank", status, detail)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        problem("outcome-unknown", 502, outcome="unknown"),
        problem("outcome-unknown", 504, outcome="unknown"),
        web.Response(status=502, text="Bad Gateway"),
        web.Response(status=504),
        web.Response(text="<h1>log in</h1>", content_type="text/html"),
        web.Response(body=b'{"vm": 7}', content_type="application/json"),
        web.Response(body=b"\xff", content_type="application/json"),
    ],
)
async def test_no_answer_is_told_from_a_refusal(
    answer: web.Response | None, api: FakeApi, client: Client
) -> None:
    """And nothing is sent a second time."""
    api.posts = [answer]
    with pytest.raises(NoAnswer):
        await client.start("web", COMMIT, dry_run=False)

    assert len(api.asked) == 1


async def test_an_answer_that_comes_too_late_is_none(api: FakeApi) -> None:
    """The request left."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with Client(f"http://127.0.0.1:{silent.getsockname()[1]}", load(None), 0.2) as made:
            with pytest.raises(NoAnswer, match="no reply in time"):
                await made.vms()


async def test_an_answer_without_end_is_none(
    api: FakeApi, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not read on."""
    monkeypatch.setattr(client_module, "_LIMIT_BYTES", 10)
    with pytest.raises(NoAnswer, match="more than 10 bytes"):
        await client.vms()


async def test_a_request_that_never_left_is_told_too(api: FakeApi, client: Client) -> None:
    """Nobody listens."""
    await api.stop()
    with pytest.raises(NotSent, match=r"^http://127.0.0.1:\d+: Connection refused$"):
        await client.start("web", COMMIT, dry_run=False)


async def test_a_host_without_address_is_told() -> None:
    """By its name."""
    async with Client("http://host.invalid", load(None), 30.0) as made:
        with pytest.raises(NotSent, match=r"^http://host.invalid: "):
            await made.vms()


async def test_user_and_password_are_sent(api: FakeApi) -> None:
    """In UTF-8, as the exporter reads them."""
    sent_with = Credentials(tls=ssl.create_default_context(), username="me", password="ä")
    async with Client(api.url, sent_with, 30.0) as made:
        await made.vms()

    assert api.headers[0]["Authorization"] == "Basic bWU6w6Q="


async def test_a_server_is_known_by_its_certificate(api: FakeApi, tmp_path: Path) -> None:
    """Or by the name that the file says; one that is not known gets nothing."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("exporter.example").configure_cert(context)
    await api.stop()
    await api.start(ssl=context)
    url = api.url.replace("http:", "https:")
    (tmp_path / "good.yml").write_text(
        "tls_config: {ca_file: ca.pem, server_name: exporter.example}"
    )
    (tmp_path / "other-name.yml").write_text("tls_config: {ca_file: ca.pem}")

    async with Client(url, load(str(tmp_path / "good.yml")), 30.0) as made:
        assert len((await made.vms()).vms) == 1
    for sent_with in (load(str(tmp_path / "other-name.yml")), load(None)):
        async with Client(url, sent_with, 30.0) as made:
            with pytest.raises(NotSent, match="certificate"):
                await made.start("web", COMMIT, dry_run=False)
    assert len(api.asked) == 1


async def test_a_server_without_tls_is_told(api: FakeApi) -> None:
    """Nothing was sent to it."""
    async with Client(api.url.replace("http:", "https:"), load(None), 30.0) as made:
        with pytest.raises(NotSent, match="TLS failed: "):
            await made.start("web", COMMIT, dry_run=False)


async def test_a_request_that_is_given_up_leaves_nothing_behind(api: FakeApi) -> None:
    """Ctrl-C may come at any time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with Client(f"http://127.0.0.1:{silent.getsockname()[1]}", load(None), 30.0) as made:
            asking = asyncio.create_task(made.vms())
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
