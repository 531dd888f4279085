"""Every endpoint, and what stands around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from msgspec import Struct

from exporter.admin import Audit
from exporter.api import ROOT, ROUTES
from exporter.collect import Collected, Fleet, printable
from exporter.config import describe
from exporter.errors import ConfigError, Refused
from exporter.expose import exposition
from exporter.web.api_read import GRACE_SECONDS, ReadApi
from exporter.web.api_write import WriteApi
from exporter.web.auth import AuthMiddleware
from exporter.web.bodies import Bodies
from exporter.web.captured_log import captured_log
from exporter.web.landing_page import NAME, landing_page
from exporter.web.limits import Limits
from exporter.web.request_limit import RequestLimit, waited_seconds
from exporter.web.responses import expect, problems
from exporter.web.sending import Portions, Sender

#: Every path but those of the API, of the metrics, and of the landing page, which these may stand on.
OTHER_PATHS = frozenset({"/probe", "/sd", "/config", "/-/healthy", "/-/ready", "/-/reload"})


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
        limits: Limits | None = None,
    ) -> None:
        """`reload` reads the configuration again and raises ConfigError where it is wrong."""
        self._fleet = fleet
        self._reading = reading or ReadApi(fleet, None, options.route_prefix)
        self._changing = changing or WriteApi(None, Audit(), prefix=options.route_prefix)
        self._options = options
        self._reload = reload
        limits = limits or Limits()
        self._scrapes = RequestLimit(options.max_requests, limits.place_seconds)
        self._sender = Sender(limits)
        self._bodies = Bodies()

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
        reading = self._reading.handlers
        for route in ROUTES:
            handler = reading.get(route.name) or self._changing.handler(route)
            if "too-many" in route.problems:
                handler = self._limited(handler, _too_many)
            # By itself aiohttp takes no braces, and a VM may be named with them.
            path = prefix + route.path.replace("}", ":[^/]+}")
            if route.method == hdrs.METH_GET:
                app.router.add_get(path, handler, expect_handler=expect)
            else:
                app.router.add_route(route.method, path, handler, expect_handler=expect)
        if prefix:
            app.router.add_get("/", self._to_prefix)
        _answer_options(app)
        if gate is not None:
            gate.guard(app)
        # Around the gate: who was not let in leaves a line as well.
        app.middlewares.insert(0, self._changing.audited)
        app.middlewares.insert(0, self._sender.sent)
        app.on_response_prepare.append(self._sender.name_server)
        return app

    async def metrics(self, request: web.Request) -> web.Response:
        """Every VM, and the exporter itself."""
        collected = await self._fleet.scrape(self._scrape_seconds(request), text=True)
        return await self._exposition(request, collected, own=self._options.exporter_metrics)

    async def probe(self, request: web.Request) -> web.Response:
        """One VM, by its name: never by a path that a request brings."""
        vm = request.query.get("target", "")
        if not vm:
            return _plain("the target parameter is missing: /probe?target=VM", 400)
        try:
            if request.query.get("debug") == "true":
                return await self._debugged_probe(request, vm)
            collected = await self._fleet.probe(vm, self._scrape_seconds(request), text=True)
        except KeyError:
            return _plain(f"no VM is named {vm!r}; /sd lists those that are known", 404)
        return await self._exposition(request, [collected], own=False)

    async def _debugged_probe(self, request: web.Request, vm: str) -> web.Response:
        with captured_log(vm) as lines:
            collected = await self._fleet.probe(vm, self._scrape_seconds(request), text=True)
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
        return _plain(f"{NAME} is Healthy.")

    async def ready(self, request: web.Request) -> web.Response:
        """Whether the targets have been looked for."""
        if not self._fleet.discovered:
            return _plain(f"{NAME} is not ready: it has not looked for sockets yet.", 503)
        return _plain(f"{NAME} is Ready.")

    async def reload(self, request: web.Request) -> web.Response:
        """Read the configuration again, where the flags allow it."""
        allow: dict[str, str] = {hdrs.ALLOW: "OPTIONS, POST, PUT"}
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers=allow)
        if request.method not in (hdrs.METH_POST, hdrs.METH_PUT):
            return _plain("Only POST or PUT requests allowed.", 405, allow)
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
        page = landing_page(
            [(prefix + path, name, text) for path, name, text in links],
            len(self._fleet.discovery.targets),
        )
        return web.Response(text=page, content_type="text/html")

    async def _to_prefix(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(self._options.route_prefix + "/")

    def _limited(
        self, handler: Handler, refuse: Callable[[str], web.Response] | None = None
    ) -> Handler:
        """Refuse more scrapes at once than the flags allow."""
        return self._scrapes.around(handler, refuse or _unavailable)

    def _scrape_seconds(self, request: web.Request) -> float:
        """Return how long a scrape may still take, by the header that Prometheus sends."""
        header = request.headers.get("X-Prometheus-Scrape-Timeout-Seconds")
        # A group of targets may have more time than the flags say.
        limit = max(self._options.timeout_seconds, self._fleet.longest_seconds + GRACE_SECONDS)
        return max(exposition.scrape_seconds(header, limit) - waited_seconds(request), 0.0)

    async def _exposition(
        self, request: web.Request, collected: Sequence[Collected], *, own: bool
    ) -> web.Response:
        """Return the lines of `collected`, and those of the exporter itself if `own`."""
        openmetrics = exposition.wants_openmetrics(",".join(request.headers.getall("Accept", [])))
        gzip = exposition.wants_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, ""))
        how = (openmetrics, gzip, own)
        body = self._bodies.find(collected, how)
        if body is None:
            blobs = [each.blobs for each in collected]
            if own:
                blobs.append(self._fleet.self_metrics(collected))
            body = self._bodies.make(collected, blobs, how)
        parts, compressed = await body.made()
        headers = {
            hdrs.CONTENT_TYPE: exposition.OPENMETRICS if openmetrics else exposition.TEXT,
            hdrs.VARY: "Accept, Accept-Encoding",
        }
        if compressed:
            headers[hdrs.CONTENT_ENCODING] = "gzip"
        return web.Response(body=Portions(parts, body), headers=headers)


def _answer_options(app: web.Application) -> None:
    """Answer OPTIONS on every path with the methods that are there: load balancers ask so."""
    for resource in app.router.resources():
        methods = {route.method for route in resource}
        if hdrs.METH_ANY in methods or not isinstance(resource, web.Resource):
            continue
        allow = ", ".join(sorted({*methods, hdrs.METH_OPTIONS}))

        async def options(_: web.Request, allow: str = allow) -> web.Response:
            return web.Response(status=204, headers={hdrs.ALLOW: allow})

        resource.add_route(hdrs.METH_OPTIONS, options, expect_handler=expect)


def _unavailable(text: str) -> web.Response:
    return _plain(text, 503)


def _too_many(text: str) -> web.Response:
    raise Refused("too-many", text)


def _plain(text: str, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(text=text + "\n" if text else "", status=status, headers=headers)
