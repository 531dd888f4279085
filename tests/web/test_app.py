"""Every page, as a scraper, a proxy and a curious user ask for it."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.api.routes import ROUTES
from exporter.collect.fleet import Fleet
from exporter.config.settings import Config, Group, Settings
from exporter.errors import ConfigError
from exporter.expose import exposition
from exporter.storage.file_stat import FileStat
from exporter.storage.prober import Storage
from exporter.web import server
from exporter.web.app import OTHER_PATHS, Endpoints, Options
from exporter.web.bodies import Bodies
from exporter.web.limits import Limits
from tests.conftest import samples, series
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp, until

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
SECONDS = "X-Prometheus-Scrape-Timeout-Seconds"


class Web:
    """The endpoints over a fleet, with a client."""

    def __init__(self, fleet: Fleet, client: TestClient[Any, Any]) -> None:
        self.fleet = fleet
        self.client = client
        self.endpoints: Endpoints
        #: Raised by the next reload.
        self.mistake: ConfigError | None = None
        self.reloads = 0

    def reload(self) -> None:
        """Count, and do as the test wants."""
        self.reloads += 1
        if self.mistake:
            raise self.mistake

    async def get(self, path: str, **headers: str) -> aiohttp.ClientResponse:
        """Ask for a page; `_` stands for `-` in the name of a header."""
        return await self.client.get(
            path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    async def text(self, path: str, **headers: str) -> str:
        """Return the text of a page that is there."""
        answer = await self.get(path, **headers)
        assert answer.status == 200
        return await answer.text()


Serve = Callable[..., Awaitable[Web]]


@pytest.fixture
async def vm(sockets: Path) -> AsyncIterator[FakeQmp]:
    """A VM with a disk."""
    async with FakeQmp(str(sockets / "web.sock")) as fake:
        plug(fake, Disk())
        yield fake


@pytest.fixture
async def serve(sockets: Path) -> AsyncIterator[Serve]:
    """Serves the fleet of the folder of sockets, with options."""
    served = []

    async def start(limits: Limits | None = None, **options: Any) -> Web:
        group = Group(name="g", settings=Settings(), sockets=(f"{sockets}/*.sock",))
        fleet = Fleet(Config(groups=(group,)), Storage(lambda path: FileStat(visible=True)))
        web = Web(fleet, None)  # type: ignore[arg-type]
        chosen = Options(**options)
        web.endpoints = Endpoints(fleet, chosen, web.reload, limits=limits)
        app = web.endpoints.application()
        web.client = TestClient(
            TestServer(app), auto_decompress=False, skip_auto_headers=("Accept", "Accept-Encoding")
        )
        await web.client.start_server()
        served.append(web)
        return web

    yield start
    for web in served:
        await web.client.close()
        await web.fleet.close()


# The exposition.


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "application/json", "text/html"])
async def test_metrics_are_text_for_whoever_does_not_say_otherwise(
    vm: FakeQmp, serve: Serve, accept: str
) -> None:
    """Version 0.0.4, and a cache is told what the answer depends on."""
    answer = await (await serve()).get("/metrics", Accept=accept)
    text = await answer.text()

    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Vary"] == "Accept, Accept-Encoding"
    assert {"qemu_vm_up", "qemu_block_node_info", "process_cpu_seconds"} <= {
        family.name for family in parse_text(text)
    }
    assert "# EOF" not in text


async def test_metrics_are_openmetrics_for_whoever_prefers_it(vm: FakeQmp, serve: Serve) -> None:
    """Read by a parser that is not ours."""
    answer = await (await serve()).get("/metrics", Accept=f"text/plain;q=0.5,{OPENMETRICS}")
    text = await answer.text()

    assert answer.headers["Content-Type"] == (
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    )
    assert {"qemu_vm_up", "qemu_block_node", "process_cpu_seconds"} <= {
        family.name for family in parse_openmetrics(text)
    }


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=2.0.0",
        "application/openmetrics-text;version=9.9.9;x=SECRET",
        "application/openmetrics-text;version=1.0.0;q=0.1,text/plain;version=7.0.0,*/*;q=0.2",
    ],
)
async def test_a_version_that_is_not_spoken_is_never_echoed(
    vm: FakeQmp, serve: Serve, accept: str
) -> None:
    """The answer is text, and says so."""
    answer = await (await serve()).get("/metrics", Accept=accept)

    assert answer.headers["Content-Type"] == exposition.TEXT


async def test_several_accept_headers_are_one(vm: FakeQmp, serve: Serve) -> None:
    """HTTP allows a list to be split."""
    web = await serve()
    headers = [("Accept", "text/plain;q=0.5"), ("Accept", OPENMETRICS)]
    answer = await web.client.get("/metrics", headers=headers)

    assert answer.headers["Content-Type"] == exposition.OPENMETRICS


async def test_metrics_are_compressed_for_whoever_accepts_it(vm: FakeQmp, serve: Serve) -> None:
    """It is the same body."""
    web = await serve()
    answer = await web.get("/metrics", Accept_Encoding="gzip")
    packed = await answer.read()
    text = gzip.decompress(packed).decode()

    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Content-Length"] == str(len(packed))
    assert len(packed) < len(text) / 2
    assert series(text, "qemu_vm_up") == {'qemu_vm_up{vm="web"}': "1"}


@pytest.mark.parametrize("encoding", ["identity", "gzip;q=0", "br"])
async def test_metrics_are_not_compressed_for_whoever_does_not(
    vm: FakeQmp, serve: Serve, encoding: str
) -> None:
    """Or who says so."""
    answer = await (await serve()).get("/metrics", Accept_Encoding=encoding)

    assert "Content-Encoding" not in answer.headers
    assert series(await answer.text(), "qemu_vm_up")


async def test_a_small_body_is_not_compressed(serve: Serve) -> None:
    """It would be no smaller on the wire."""
    web = await serve(exporter_metrics=False)
    answer = await web.get("/metrics", Accept_Encoding="gzip")

    assert "Content-Encoding" not in answer.headers
    assert await answer.read() == b""


@pytest.mark.parametrize("path", ["/metrics", "/sd", "/config", "/-/healthy", "/-/ready", "/"])
async def test_head_is_get_without_a_body(vm: FakeQmp, serve: Serve, path: str) -> None:
    """With the same headers."""
    web = await serve()
    web.fleet.discover()
    get, head = await web.get(path), await web.client.head(path)

    assert (head.status, await head.read()) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/metrics", "/probe?target=web", "/sd", "/config", "/"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_no_page_can_be_written(vm: FakeQmp, serve: Serve, method: str, path: str) -> None:
    """They are for reading."""
    web = await serve()

    assert (await web.client.request(method, path)).status == 405


async def test_an_unknown_page_is_404(serve: Serve) -> None:
    """Whatever it is called."""
    web = await serve()

    for path in ("/metric", "/metrics/", "/-/reload/", "/api/v1", "/%00", "/..%2fetc/passwd"):
        assert (await web.get(path)).status == 404


async def test_exporter_metrics_can_be_left_out(vm: FakeQmp, serve: Serve) -> None:
    """All of them: its own and the process's."""
    text = await (await serve(exporter_metrics=False)).text("/metrics")

    assert "qemu_exporter" not in text
    assert "process_" not in text
    assert series(text, "qemu_vm_up")


# The deadline.


async def test_a_scrape_is_answered_within_the_time_that_its_header_says(
    vm: FakeQmp, serve: Serve
) -> None:
    """With what arrived until then."""
    vm.answering.clear()
    web = await serve(timeout_seconds=60.0)
    text = await web.text("/metrics", **{SECONDS.replace("-", "_"): "0.2"})
    vm.answering.set()

    assert series(text, "qemu_vm_scrape_error", reason="timeout")


@pytest.mark.parametrize("header", ["", "soon", "-1", "0", "nan", "inf", "1e999", "5s", "\u0663"])
async def test_a_malformed_header_does_not_fail_the_scrape(
    vm: FakeQmp, serve: Serve, header: str
) -> None:
    """It is as if it were not there."""
    web = await serve()
    text = await web.text("/metrics", **{SECONDS.replace("-", "_"): header})

    assert series(text, "qemu_vm_up") == {'qemu_vm_up{vm="web"}': "1"}


# /probe


async def test_a_probe_is_of_one_vm(vm: FakeQmp, serve: Serve, sockets: Path) -> None:
    """In the format that is asked for, and without the exporter's own."""
    async with FakeQmp(str(sockets / "other.sock")):
        answer = await (await serve()).get("/probe?target=web", Accept=OPENMETRICS)
        text = await answer.text()

    assert answer.headers["Content-Type"] == exposition.OPENMETRICS
    assert answer.headers["Vary"] == "Accept, Accept-Encoding"
    assert series(text, "qemu_vm_up") == {'qemu_vm_up{vm="web"}': "1"}
    assert "qemu_exporter" not in text


@pytest.mark.parametrize("path", ["/probe", "/probe?target=", "/probe?vm=web"])
async def test_a_probe_without_a_target_is_400(vm: FakeQmp, serve: Serve, path: str) -> None:
    """And says how to ask."""
    answer = await (await serve()).get(path)

    assert answer.status == 400
    assert await answer.text() == "the target parameter is missing: /probe?target=VM\n"


@pytest.mark.parametrize("target", ["nobody", "/run/web.sock", "web.sock", "../web", "%0a<b>"])
async def test_a_probe_of_an_unknown_target_is_404(vm: FakeQmp, serve: Serve, target: str) -> None:
    """A path that a request brings is never opened; it comes back as plain text, on one line."""
    answer = await (await serve()).get(f"/probe?target={target}")
    text = await answer.text()

    assert answer.status == 404
    assert answer.content_type == "text/plain"
    assert text.startswith("no VM is named '")
    assert text.count("\n") == 1
    assert vm.received == []


async def test_a_probe_of_a_vm_that_is_down_is_an_answer(serve: Serve, sockets: Path) -> None:
    """200, with its reason."""
    (sockets / "dead.sock").touch()
    text = await (await serve()).text("/probe?target=dead")

    assert series(text, "qemu_vm_scrape_error", reason="refused")


async def test_a_probe_can_tell_how_it_went(
    serve: Serve, sockets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log lines, the metrics, and the target; no lines about another VM."""
    caplog.set_level(logging.INFO)
    (sockets / "dead.sock").touch()
    (sockets / "other.sock").touch()
    web = await serve()
    probing = asyncio.create_task(web.text("/probe?target=dead&debug=true"))
    await web.text("/metrics")
    text = await probing

    assert text.startswith("Logs for the probe:\ntime=")
    assert 'msg="vm is down" vm=dead' in text
    assert "vm=other" not in text
    assert "Metrics that would have been returned:\n# HELP qemu_vm_up" in text
    assert text.endswith(
        f"Target:\nsocket: {sockets}/dead.sock\ngroup: g\nconnection: persistent\n"
        "timeout_seconds: 5\ntopology: auto\n\n"
    )


# /sd, /config, health


async def test_service_discovery_lists_every_target(
    vm: FakeQmp, serve: Serve, sockets: Path
) -> None:
    """As Prometheus wants it, without asking a VM; sockets that came since are there."""
    (sockets / "new.sock").touch()
    answer = await (await serve()).get("/sd")

    assert answer.content_type == "application/json"
    assert json.loads(await answer.text()) == [
        {
            "targets": [name],
            "labels": {
                "__meta_qemu_vm": name,
                "__meta_qemu_socket": f"{sockets}/{name}.sock",
                "__meta_qemu_group": "g",
            },
        }
        for name in ("new", "web")
    ]
    assert vm.received == []


async def test_the_configuration_is_shown(serve: Serve, sockets: Path) -> None:
    """As it is in effect."""
    answer = await (await serve()).get("/config")

    assert answer.content_type == "application/yaml"
    [group] = yaml.safe_load(await answer.text())["groups"]
    assert group["sockets"] == [f"{sockets}/*.sock"]


async def test_healthy_says_so_and_costs_nothing(vm: FakeQmp, serve: Serve) -> None:
    """No VM is asked."""
    assert await (await serve()).text("/-/healthy") == "QEMU Block Exporter is Healthy.\n"
    assert vm.received == []


async def test_ready_is_who_has_looked_for_sockets(serve: Serve) -> None:
    """Before, it says that it is not."""
    web = await serve()
    answer = await web.get("/-/ready")
    assert answer.status == 503
    assert (await answer.text()).startswith("QEMU Block Exporter is not ready")
    web.fleet.discover()

    assert await web.text("/-/ready") == "QEMU Block Exporter is Ready.\n"


async def test_the_landing_page_links_every_page(vm: FakeQmp, serve: Serve) -> None:
    """Under the prefix, and tells how many targets there are."""
    web = await serve(route_prefix="/qemu", telemetry_path="/m")
    web.fleet.discover()
    answer = await web.get("/qemu/")
    text = await answer.text()

    assert answer.content_type == "text/html"
    assert "1 targets" in text
    for path in ("/m", "/sd", "/config", "/-/healthy", "/-/ready"):
        assert f'href="/qemu{path}"' in text
        assert (await web.get(f"/qemu{path}")).status == 200


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
        ("/-/healthy", "GET, HEAD, OPTIONS"),
        ("/-/ready", "GET, HEAD, OPTIONS"),
        ("/-/reload", "OPTIONS, POST, PUT"),
        ("/api/v1/vms", "GET, HEAD, OPTIONS"),
        ("/api/v1/vms/web", "GET, HEAD, OPTIONS"),
        ("/api/v1/admin/vms/web/block-jobs", "OPTIONS, POST"),
    ],
)
async def test_options_are_the_methods_that_there_are(
    vm: FakeQmp, serve: Serve, path: str, allow: str
) -> None:
    """HAProxy's `option httpchk` asks so, and takes what is no 2xx or 3xx for down; no VM is asked."""
    web = await serve()
    answer = await web.client.options(path)

    assert (answer.status, answer.headers["Allow"], await answer.read()) == (204, allow, b"")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert vm.received == []


@pytest.mark.parametrize("path", ["/vms", "/vms/web", "/block-jobs", "/openapi.json", "/vms/no"])
async def test_head_of_the_api_is_get_without_a_body(vm: FakeQmp, serve: Serve, path: str) -> None:
    """With the same status and headers."""
    web = await serve()
    get, head = await web.get("/api/v1" + path), await web.client.head("/api/v1" + path)

    assert (head.status, await head.read()) == (get.status, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/nothing", "/api/v1/nothing"])
async def test_no_answer_tells_a_version_in_its_headers(
    vm: FakeQmp, serve: Serve, path: str
) -> None:
    """They are there before a user is let in."""
    answer = await (await serve()).get(path)

    assert answer.headers["Server"] == "qemu-block-exporter"


async def test_a_probe_captures_log_lines_only_where_it_shows_them(
    serve: Serve, sockets: Path, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler more would see every line of the process."""
    (sockets / "dead.sock").touch()
    web = await serve()
    added: list[logging.Handler] = []
    monkeypatch.setattr(root_logger, "addHandler", added.append)
    await web.text("/probe?target=dead")
    assert not added
    await web.text("/probe?target=dead&debug=true")

    assert len(added) == 1


# /-/reload


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_reload_wants_post_or_put(serve: Serve, method: str) -> None:
    """A link that is followed must change nothing."""
    web = await serve(lifecycle=True)
    answer = await web.client.request(method, "/-/reload")

    assert (answer.status, answer.headers["Allow"], web.reloads) == (405, "OPTIONS, POST, PUT", 0)


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_reload_is_refused_where_the_flag_does_not_allow_it(
    serve: Serve, method: str
) -> None:
    """It is off by default."""
    web = await serve()
    answer = await web.client.request(method, "/-/reload")

    assert (answer.status, web.reloads) == (403, 0)
    assert await answer.text() == "Lifecycle API is not enabled.\n"


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_reload_reads_the_configuration_again(serve: Serve, method: str) -> None:
    """And says nothing when all went well."""
    web = await serve(lifecycle=True)
    answer = await web.client.request(method, "/-/reload")

    assert (answer.status, await answer.text(), web.reloads) == (200, "", 1)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    ("header", "value", "why"),
    [
        ("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Site names another site"),
        ("Sec-Fetch-Site", "same-site", "Sec-Fetch-Site names another site"),
        ("Origin", "https://evil.example", "Origin is another site"),
        ("Origin", "null", "Origin is another site"),
        ("Origin", "", "Origin is another site"),
    ],
)
async def test_a_page_of_another_site_does_not_reload(
    serve: Serve, method: str, header: str, value: str, why: str
) -> None:
    """A browser that knows the password sends it along with whatever such a page asks for."""
    web = await serve(lifecycle=True)
    answer = await web.client.request(method, "/-/reload", headers={header: value})

    assert (answer.status, web.reloads) == (403, 0)
    assert await answer.text() == f"Cross-site request: {why}.\n"


@pytest.mark.parametrize("site", ["none", "same-origin"])
async def test_a_page_of_this_site_may_reload(serve: Serve, site: str) -> None:
    """As may whoever uses no browser."""
    web = await serve(lifecycle=True)
    own = f"http://{web.client.host}:{web.client.port}"
    headers = {"Sec-Fetch-Site": site, "Origin": own}
    answer = await web.client.post("/-/reload", headers=headers)

    assert (answer.status, web.reloads) == (200, 1)


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_name_that_was_rebound_to_this_address_does_not_reload(
    serve: Serve, method: str
) -> None:
    """To a browser the page of such a name is of the same site as this exporter."""
    web = await serve(lifecycle=True)
    host = f"evil.example:{web.client.port}"
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    answer = await web.client.request(method, "/-/reload", headers=headers)

    assert (answer.status, web.reloads) == (403, 0)
    assert await answer.text() == (
        "Cross-site request: Host must be an IP address, localhost or the host of "
        "--web.external-url.\n"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]:9709", "localhost:9709"])
async def test_a_page_of_an_address_or_localhost_may_reload(serve: Serve, host: str) -> None:
    """No other site has these."""
    web = await serve(lifecycle=True)
    headers = {"Host": host, "Origin": f"http://{host}"}
    answer = await web.client.post("/-/reload", headers=headers)

    assert (answer.status, web.reloads) == (200, 1)


async def test_any_name_of_this_host_reloads_where_no_browser_asks(serve: Serve) -> None:
    """`curl -X POST http://host1:9709/-/reload`: a browser would say its origin."""
    web = await serve(lifecycle=True)
    answer = await web.client.post("/-/reload", headers={"Host": "host1.example:9709"})

    assert (answer.status, web.reloads) == (200, 1)


async def test_a_reload_that_fails_says_why(serve: Serve) -> None:
    """As Prometheus does."""
    web = await serve(lifecycle=True)
    web.mistake = ConfigError("/etc/x.yml:3:1: wrong")
    answer = await web.client.post("/-/reload")

    assert answer.status == 500
    assert await answer.text() == "failed to reload config: /etc/x.yml:3:1: wrong\n"


# Limits and prefixes.


async def test_more_scrapes_at_once_than_allowed_are_refused(vm: FakeQmp, serve: Serve) -> None:
    """Probes count; other pages do not; when one is done the next may come."""
    web = await serve(max_requests=2, limits=Limits(place_seconds=0.0))
    vm.answering.clear()
    scraping = [asyncio.create_task(web.get(path)) for path in ("/metrics", "/probe?target=web")]
    await until(lambda: web.endpoints._scrapes.active == len(scraping))
    refused = [await web.get("/metrics"), await web.get("/probe?target=web")]
    assert [answer.status for answer in refused] == [503, 503]
    assert await refused[0].text() == (
        "Limit of concurrent requests reached (2), try again later.\n"
    )
    assert (await web.get("/-/healthy")).status == 200
    vm.answering.set()
    assert [(await scrape).status for scrape in scraping] == [200, 200]

    assert (await web.get("/metrics")).status == 200


async def test_one_above_the_limit_waits_for_a_place(vm: FakeQmp, serve: Serve) -> None:
    """Those before it share one sweep, and are done soon."""
    web = await serve(max_requests=2, limits=Limits(place_seconds=60.0))
    vm.answering.clear()
    scraping = [asyncio.create_task(web.get("/metrics")) for _ in range(10)]
    await until(lambda: web.endpoints._scrapes.active == 2)
    vm.answering.set()

    assert [(await scrape).status for scrape in scraping] == [200] * 10


async def test_a_scraper_that_hangs_up_makes_room(vm: FakeQmp, serve: Serve) -> None:
    """Else the limit would be reached by and by."""
    web = await serve(max_requests=1)
    vm.answering.clear()
    scraping = asyncio.create_task(web.get("/metrics"))
    await until(lambda: vm.received)
    scraping.cancel()
    await asyncio.wait((scraping,))
    vm.answering.set()
    async with asyncio.timeout(20):
        while (await web.get("/metrics")).status != 200:
            await asyncio.sleep(0.01)


async def test_a_client_that_does_not_read_holds_no_place_and_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else as many as there are places would keep Prometheus out, each with a body in memory."""
    size = 32 << 20
    monkeypatch.setattr(exposition, "encoded", lambda *_, **__: ([bytes(size)], False))
    web = await serve(limits=Limits(send_seconds=2.0), max_requests=1)
    async with AsyncExitStack() as stack:
        readers = []
        for number in range(3):
            readers.append(await stack.enter_async_context(_asking(web, "/metrics")))
            await until(partial(_sent_or_cut_off, web, caplog, number))
        await until(lambda: len(caplog.records) == len(readers))
        for reader in readers:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(size)
    assert {record.message for record in caplog.records} == {"client cut off: it does not read"}
    assert not web.endpoints._scrapes.active

    assert len(await (await web.get("/metrics")).read()) == size


def _sent_or_cut_off(web: Web, caplog: pytest.LogCaptureFixture, number: int) -> bool:
    return len(web.endpoints._sender._sending) + len(caplog.records) > number


async def test_scrapers_of_one_sweep_share_a_body(
    vm: FakeQmp, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each format: forty that do not read cost no more memory than one."""
    made = []
    whole = exposition.encoded

    def encoded(*blobs: Any, **how: Any) -> tuple[list[bytes], bool]:
        made.append(how)
        return whole(*blobs, **how)

    monkeypatch.setattr(exposition, "encoded", encoded)
    web = await serve()
    vm.answering.clear()
    scraping = [
        asyncio.create_task(web.get("/metrics", Accept=accept))
        for accept in ("text/plain", OPENMETRICS) * 10
    ]
    await until(lambda: web.endpoints._scrapes.active == len(scraping))
    vm.answering.set()
    bodies = {await (await scrape).text() for scrape in scraping}

    assert len(bodies) == len(made) == 2


async def test_bodies_that_nobody_reads_are_bounded(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of those of many sweeps, the one that is sent for longest is given up."""
    size = 32 << 20
    monkeypatch.setattr(exposition, "encoded", lambda *_, **__: ([bytes(size)], False))
    web = await serve(limits=Limits(unsent_bytes=2 * size))
    async with AsyncExitStack() as stack:
        for cut_off in (0, 0, 1, 2):
            web.endpoints._bodies = Bodies()
            reader = await stack.enter_async_context(_asking(web, "/metrics"))
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            assert len(caplog.records) == cut_off

    assert {record.message for record in caplog.records} == {"client cut off: it does not read"}


@asynccontextmanager
async def _asking(web: Web, path: str) -> AsyncIterator[asyncio.StreamReader]:
    """Ask for a page, and read no more of the answer than the test does."""
    address = web.client.server.host, web.client.server.port
    reader, writer = await asyncio.open_connection(*address, limit=64)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with closing(writer):
        yield reader


async def test_no_limit_is_0(vm: FakeQmp, serve: Serve) -> None:
    """As in every exporter."""
    web = await serve(max_requests=0)
    answers = await asyncio.gather(*(web.get("/metrics") for _ in range(60)))

    assert {answer.status for answer in answers} == {200}
    assert vm.commands.count("query-blockstats") == 1


async def test_every_page_stands_under_the_prefix(vm: FakeQmp, serve: Serve) -> None:
    """And nowhere else; the root leads there."""
    web = await serve(route_prefix="/a/b", lifecycle=True)
    web.fleet.discover()
    for path in ("/metrics", "/probe?target=web", "/sd", "/config", "/-/healthy", "/-/ready", "/"):
        assert (await web.get("/a/b" + path)).status == 200
        assert path == "/" or (await web.get(path)).status == 404
    assert (await web.client.post("/a/b/-/reload")).status == 200
    answer = await web.client.get("/", allow_redirects=False)

    assert (answer.status, answer.headers["Location"]) == (302, "/a/b/")


async def test_metrics_can_stand_on_the_root(vm: FakeQmp, serve: Serve) -> None:
    """In place of the landing page."""
    text = await (await serve(telemetry_path="/")).text("/")

    assert samples(text)["qemu_exporter_targets"] == "1"


async def test_the_other_pages_are_known(serve: Serve) -> None:
    """So that the metrics are not put on one of them."""
    app = Endpoints(None, Options(), lambda: None).application()  # type: ignore[arg-type]
    paths = {resource.canonical for resource in app.router.resources()}

    assert paths == OTHER_PATHS | {"/metrics", "/"} | {route.path for route in ROUTES}


# Sockets.


def test_every_address_of_a_name_is_listened_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/hosts may have a name twice."""
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [place, place])
    [sock] = server.listen("localhost:0")
    sock.close()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", ":0", "[::1]:0", "0.0.0.0:0"])
def test_an_address_is_listened_on(address: str) -> None:
    """A name, a number, or any."""
    sockets = server.listen(address)
    assert sockets
    for sock in sockets:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        sock.close()


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_any_address_is_had_without_ipv6(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A kernel may be without it."""
    whole = server._bound

    def no_ipv6(family: int, *more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, "no IPv6")
        return whole(family, *more)

    monkeypatch.setattr(server, "_bound", no_ipv6)
    [sock] = server.listen(":0")
    assert sock.family == socket.AF_INET
    sock.close()
    with pytest.raises(ConfigError, match=r"^--web.listen-address: \[::1\]:0: "):
        server.listen("[::1]:0")


def test_an_address_that_is_had_in_part_is_not_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sockets that were opened are closed again."""
    whole = server._bound
    opened: list[socket.socket] = []

    def first_only(*place: Any) -> socket.socket:
        if opened:
            raise OSError(errno.EADDRINUSE, "in use")
        opened.append(whole(*place))
        return opened[0]

    monkeypatch.setattr(server, "_bound", first_only)
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{number}", 0)) for number in (1, 2)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(ConfigError, match="^--web.listen-address: x:0: Address already in use$"):
        server.listen("x:0")

    assert opened[0].fileno() == -1
