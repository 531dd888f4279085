"""Every endpoint, and what stands around them."""

from __future__ import annotations

import asyncio
import html
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from string import Template

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from msgspec import Struct

from exporter import __version__
from exporter.admin import Audit, audit
from exporter.api import ROOT, ROUTES
from exporter.collect import Fleet, printable
from exporter.config import describe
from exporter.errors import ConfigError, Refused
from exporter.expose import FamilyBytes, exposition
from exporter.process import Formatter
from exporter.web.api_read import GRACE_SECONDS, ReadApi
from exporter.web.api_write import WriteApi
from exporter.web.auth import AuthMiddleware
from exporter.web.responses import expect, problems

log = logging.getLogger(__name__)

#: Every path but those of the API, of the metrics, and of the landing page, which these may stand on.
OTHER_PATHS = frozenset({"/probe", "/sd", "/config", "/-/healthy", "/-/ready", "/-/reload"})
#: A client that has not taken its answer by then is cut off.
_SEND_SECONDS = 30.0
_NAME = "QEMU Block Exporter"


class Options(Struct, frozen=True, kw_only=True):
    """The web flags."""

    telemetry_path: str = "/metrics"
    route_prefix: str = ""
    max_requests: int = 40
    exporter_metrics: bool = True
    lifecycle: bool = False
    timeout_seconds: float = 5.0


class Endpoints:
    """The handlers, over one fleet."""

    def __init__(
        self,
        fleet: Fleet,
        options: Options,
        reload: Callable[[], None],
        reading: ReadApi | None = None,
        changing: WriteApi | None = None,
    ) -> None:
        """`reload` reads the configuration again and raises ConfigError where it is wrong."""
        self._fleet = fleet
        self._reading = reading or ReadApi(fleet, None, options.route_prefix)
        self._changing = changing or WriteApi(None, Audit(), prefix=options.route_prefix)
        self._options = options
        self._reload = reload
        self._scrapes = 0

    def application(self, gate: AuthMiddleware | None = None) -> web.Application:
        """Return the application with every route under the prefix, behind a gate if there is one."""
        prefix = self._options.route_prefix
        app = web.Application(middlewares=[problems(prefix + ROOT)])
        for path, handler in (
            (self._options.telemetry_path, self._limited(self.metrics)),
            ("/probe", self._limited(self.probe)),
            ("/sd", self.service_discovery),
            ("/config", self.config),
            ("/-/healthy", self.healthy),
            ("/-/ready", self.ready),
        ):
            app.router.add_get(prefix + path, handler, expect_handler=expect)
        if self._options.telemetry_path != "/":
            app.router.add_get(prefix + "/", self.landing_page, expect_handler=expect)
        app.router.add_route("*", prefix + "/-/reload", self.reload, expect_handler=expect)
        for route in ROUTES:
            read = getattr(self._reading, route.name, None)
            handler = read or self._changing.handler(route)
            limited = self._limited(handler, api=True) if "too-many" in route.problems else handler
            # By itself aiohttp takes no braces, and a VM may be named with them.
            path = prefix + route.path.replace("}", ":[^/]+}")
            app.router.add_route(route.method, path, limited, expect_handler=expect)
        if prefix:
            app.router.add_get("/", self._to_prefix)
        if gate is not None:
            gate.guard(app)
        # Around the gate: who was not let in leaves a line as well.
        app.middlewares.insert(0, self._changing.audited)
        return app

    async def metrics(self, request: web.Request) -> web.Response:
        """Every VM, and the exporter itself."""
        collected = await self._fleet.scrape(self._seconds(request), text=True)
        blobs = [each.blobs for each in collected]
        if self._options.exporter_metrics:
            blobs.append(self._fleet.self_metrics(collected))
        return await self._exposition(request, blobs, process=self._options.exporter_metrics)

    async def probe(self, request: web.Request) -> web.Response:
        """One VM, by its name: never by a path that a request brings."""
        vm = request.query.get("target", "")
        if not vm:
            return _plain("the target parameter is missing: /probe?target=VM", 400)
        with _captured_log(vm) as lines:
            try:
                collected = await self._fleet.probe(vm, self._seconds(request), text=True)
            except KeyError:
                return _plain(f"no VM is named {vm!r}; /sd lists those that are known", 404)
        if request.query.get("debug") != "true":
            return await self._exposition(request, [collected.blobs], process=False)
        member = self._fleet.members.get(vm)
        target = member.target if member else None
        body = exposition.body([collected.blobs], openmetrics=False, process=False).decode()
        about = (
            f"socket: {printable(target.socket)}\ngroup: {target.group}\n"
            f"connection: {target.settings.connection}\n"
            f"timeout_seconds: {target.settings.timeout_seconds:g}\n"
            f"topology: {target.settings.topology}\n"
            if target
            else ""
        )
        return _plain(
            f"Logs for the probe:\n{chr(10).join(lines)}\n\n"
            f"Metrics that would have been returned:\n{body}\n\nTarget:\n{about}"
        )

    async def service_discovery(self, request: web.Request) -> web.Response:
        """Every target for Prometheus's HTTP service discovery, to be relabelled for /probe."""
        self._fleet.discover()
        groups = [
            {
                "targets": [target.vm],
                "labels": {
                    "__meta_qemu_vm": target.vm,
                    "__meta_qemu_socket": printable(target.socket),
                    "__meta_qemu_group": target.group,
                },
            }
            for target in self._fleet.discovery.targets.values()
        ]
        return web.Response(text=json.dumps(groups), content_type="application/json")

    async def config(self, request: web.Request) -> web.Response:
        """The effective configuration."""
        return web.Response(
            text=describe(self._fleet.discovery.config), content_type="application/yaml"
        )

    async def healthy(self, request: web.Request) -> web.Response:
        """Whether the process answers."""
        return _plain(f"{_NAME} is Healthy.")

    async def ready(self, request: web.Request) -> web.Response:
        """Whether the targets have been looked for."""
        if not self._fleet.discovered:
            return _plain(f"{_NAME} is not ready: it has not looked for sockets yet.", 503)
        return _plain(f"{_NAME} is Ready.")

    async def reload(self, request: web.Request) -> web.Response:
        """Read the configuration again, where the flags allow it."""
        if request.method not in (hdrs.METH_POST, hdrs.METH_PUT):
            return _plain("Only POST or PUT requests allowed.", 405, {hdrs.ALLOW: "POST, PUT"})
        if not self._options.lifecycle:
            return _plain("Lifecycle API is not enabled.", 403)
        if why := self._changing.foreign(request):
            return _plain(f"Cross-site request: {why}.", 403)
        try:
            self._reload()
        except ConfigError as error:
            return _plain(f"failed to reload config: {error}", 500)
        return _plain("")

    async def landing_page(self, request: web.Request) -> web.Response:
        """What this is and where to look."""
        prefix = self._options.route_prefix
        links = (
            (self._options.telemetry_path, "Metrics", "every virtual machine"),
            ("/sd", "Targets", "for HTTP service discovery, to be scraped by /probe?target=VM"),
            ("/config", "Configuration", "as it is in effect"),
            (f"{ROOT}/vms", "API", "virtual machines and block jobs, for programs"),
            (f"{ROOT}/openapi.json", "OpenAPI", "the description of the API"),
            ("/-/healthy", "Healthy", "whether the exporter answers"),
            ("/-/ready", "Ready", "whether it has looked for sockets"),
        )
        items = "".join(
            f'<li><a href="{html.escape(prefix + path)}">{name}</a>: {text}</li>'
            for path, name, text in links
        )
        targets = len(self._fleet.discovery.targets)
        page = _PAGE.substitute(name=_NAME, version=__version__, links=items, targets=targets)
        return web.Response(text=page, content_type="text/html")

    async def _to_prefix(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(self._options.route_prefix + "/")

    def _limited(self, handler: Handler, *, api: bool = False) -> Handler:
        """Refuse more scrapes at once than the flags allow; the `api` says so as a problem."""
        limit = self._options.max_requests

        async def limited(request: web.Request) -> web.StreamResponse:
            if limit and self._scrapes >= limit:
                text = f"Limit of concurrent requests reached ({limit}), try again later."
                if api:
                    raise Refused("too-many", text)
                return _plain(text, 503)
            self._scrapes += 1
            try:
                response = await handler(request)
                await _send(request, response)
                return response
            finally:
                self._scrapes -= 1

        return limited

    def _seconds(self, request: web.Request) -> float:
        header = request.headers.get("X-Prometheus-Scrape-Timeout-Seconds")
        # A group of targets may have more time than the flags say.
        limit = max(self._options.timeout_seconds, self._fleet.longest_seconds + GRACE_SECONDS)
        return exposition.scrape_seconds(header, limit)

    async def _exposition(
        self, request: web.Request, blobs: Sequence[FamilyBytes], *, process: bool
    ) -> web.Response:
        openmetrics = exposition.wants_openmetrics(",".join(request.headers.getall("Accept", [])))
        parts, compressed = await asyncio.to_thread(
            exposition.encoded,
            blobs,
            openmetrics=openmetrics,
            process=process,
            gzip=exposition.wants_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")),
        )
        headers = {
            hdrs.CONTENT_TYPE: exposition.OPENMETRICS if openmetrics else exposition.TEXT,
            hdrs.VARY: "Accept, Accept-Encoding",
        }
        if compressed:
            headers[hdrs.CONTENT_ENCODING] = "gzip"
        body = parts[0] if len(parts) == 1 else _each(parts)
        return web.Response(body=body, headers=headers)


async def _send(request: web.Request, response: web.StreamResponse) -> None:
    """Write an answer, and wait until the client has taken it but for a small rest."""
    try:
        async with asyncio.timeout(_SEND_SECONDS):
            writer = await response.prepare(request)
            await response.write_eof()
            if writer is not None:
                await writer.drain()
    except ConnectionError:
        return  # it hung up
    except TimeoutError:
        log.warning("client cut off: it does not read", extra={"client": str(request.remote)})
        if request.transport is not None:
            request.transport.abort()
    finally:
        if isinstance(response, web.Response):
            # The connection would keep it until its next request.
            response.body = None


async def _each(parts: list[bytes]) -> AsyncIterator[bytes]:
    parts.reverse()
    while parts:
        yield parts.pop()


def _plain(text: str, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(text=text + "\n" if text else "", status=status, headers=headers)


@contextmanager
def _captured_log(vm: str) -> Iterator[list[str]]:
    """Collect the log lines about one VM."""
    lines: list[str] = []

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "vm", None) == vm and record.name != audit.log.name:
                lines.append(self.format(record))

    handler = Capture()
    handler.setFormatter(Formatter("logfmt"))
    logger = logging.getLogger("exporter")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>$name</title>
<style>
body { font-family: system-ui, sans-serif; margin: 3rem auto; max-width: 42rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } li { margin: .4rem 0; } footer { color: #666; margin-top: 2rem; }
</style></head>
<body>
<h1>$name</h1>
<p>Block devices, backing layers and block jobs of QEMU virtual machines, for Prometheus.</p>
<p>$targets targets.</p>
<ul>$links</ul>
<footer>Version $version</footer>
</body>
</html>
""")
