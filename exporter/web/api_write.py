"""The part of the HTTP API that changes VMs: who asks, from where, for what, and what came of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from urllib.parse import quote

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from exporter import api
from exporter.admin import AdminRequests, Audit, audit
from exporter.api import ADMIN, ROOT, ROUTES, Route
from exporter.errors import Refused
from exporter.redact import redact_filename
from exporter.web.responses import AUDIT, answer, ask_for_body
from exporter.web.same_site import SameSite

#: Largest body, and longest that it may take.
BODY_LIMIT_BYTES = 16 * 1024
BODY_SECONDS = 10.0
#: What of a request stands in its audit line.
_TOLD = frozenset({"device", "job_id", "file", "force", "speed_bytes_per_second"})
#: And of this, which may be a file name as QEMU has it, what is public.
_LAYERS = frozenset({"top", "base"})


class WriteApi:
    """The handlers of `ROUTES` that change something."""

    def __init__(
        self,
        actions: AdminRequests | None,
        trail: Audit,
        *,
        prefix: str,
        origins: Iterable[str] = (),
        user_of: Callable[[web.Request], str] = lambda _: "",
    ) -> None:
        """`actions` is None where nothing may be changed; `origins` are hosts that are this one."""
        self._actions = actions
        self._trail = trail
        self._prefix = prefix
        self._site = SameSite(origins)
        self._user_of = user_of

    @web.middleware
    async def audited(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Leave a line of each request to change something, whatever became of it."""
        if not request.path.startswith(self._prefix + ADMIN + "/"):
            return await handler(request)
        began = time.monotonic()
        about: dict[str, object] = {}
        request[AUDIT] = about
        status = 500
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as error:
            status = error.status
            raise
        except BaseException:
            # A defect, or the end of the process: what was asked for may have been sent.
            about.setdefault("result", audit.UNKNOWN)
            raise
        finally:
            self._record(request, about, status, time.monotonic() - began)
        return response

    def _record(
        self, request: web.Request, about: dict[str, object], status: int, seconds: float
    ) -> None:
        resource = request.match_info.route.resource
        path = resource.canonical.removeprefix(self._prefix) if resource else ""
        names = [r.name for r in ROUTES if (r.path, r.method) == (path, request.method)]
        result = str(about.pop("result", audit.REFUSED))
        told: dict[str, object] = dict(request.match_info)
        if not names:
            told |= {"method": request.method, "path": redact_filename(request.path)}
        told |= about | {"status": status, "duration_seconds": round(seconds, 6)}
        who = {"user": self._user_of(request), "client": str(request.remote)}
        self._trail.record(names[0] if names else "other", result, who | told)

    def handler(self, route: Route) -> Handler:
        """Return the handler of a route."""

        async def handle(request: web.Request) -> web.Response:
            about: dict[str, object] = request[AUDIT]
            actions = self._allowed(request)
            dry_run = about["dry_run"] = _dry_run(request)
            asked = _decoded(await _body(request), route)
            asked_for = msgspec.to_builtins(asked)
            about |= {name: value for name, value in asked_for.items() if name in _TOLD}
            about |= {name: redact_filename(asked_for[name]) for name in _LAYERS & asked_for.keys()}
            done = await self._act(actions, route, request, asked, dry_run=dry_run)
            if done.job_id:
                about["job_id"] = done.job_id
            if done.replayed or dry_run:
                about["result"] = audit.REPLAYED if done.replayed else audit.DRY_RUN
                return answer(done)
            about |= {"result": audit.DONE, "command": done.command, "answer": "ok"}
            response = answer(done, route.status)
            if done.job_id:
                vm, job_id = quote(done.vm, safe=""), quote(done.job_id, safe="")
                path = f"{self._prefix}{ROOT}/vms/{vm}/block-jobs/{job_id}"
                response.headers[hdrs.LOCATION] = path
            return response

        return handle

    async def _act(
        self,
        actions: AdminRequests,
        route: Route,
        request: web.Request,
        asked: api.Request,
        *,
        dry_run: bool,
    ) -> api.Done:
        user, vm = self._user_of(request), request.match_info["vm"]
        match asked:
            case api.Commit():
                return await actions.commit(user, vm, asked, dry_run=dry_run)
            case api.Snapshot():
                return await actions.snapshot(user, vm, asked, dry_run=dry_run)
            case api.JobRequest():
                job_id = request.match_info["job_id"]
                return await actions.change(user, vm, job_id, asked, dry_run=dry_run)
        raise AssertionError(f"{route.name} has a path and nothing that does it")

    def foreign(self, request: web.Request) -> str:
        """Return what shows that a page of another site asks, "" where nothing does."""
        return self._site.foreign(request)

    def _allowed(self, request: web.Request) -> AdminRequests:
        if self._actions is None:
            raise Refused("admin-api-disabled", "start the exporter with --web.enable-admin-api")
        if why := self.foreign(request):
            raise Refused("cross-site", why)
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
            raise Refused("wrong-content-type", "the body must not be encoded (Content-Encoding)")
        if request.content_type != "application/json":
            raise Refused("wrong-content-type", "Content-Type must be application/json")
        return self._actions


def _decoded(body: bytes, route: Route) -> api.Request:
    assert route.body is not None
    try:
        asked: api.Request = msgspec.json.decode(body, type=route.body)
        json.loads(body, object_pairs_hook=_each_once)
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError) as error:
        raise Refused("bad-request", f"body: {error}") from None
    return asked


def _each_once(members: list[tuple[str, object]]) -> None:
    """Refuse an object that says one thing twice: whoever stands before us may read the other."""
    if len(dict(members)) < len(members):
        raise ValueError("a member stands twice")


async def _body(request: web.Request) -> bytes:
    """Read a small body within a short time.

    Raises:
        Refused: it is larger, or takes longer.
    """
    too_large = Refused("too-large", f"the body is larger than {BODY_LIMIT_BYTES} bytes")
    if (request.content_length or 0) > BODY_LIMIT_BYTES:
        raise too_large
    await ask_for_body(request)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > BODY_LIMIT_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refused("body-timeout", f"the body took more than {BODY_SECONDS:g} s") from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Refused("bad-request", f"the body is cut: {type(error).__name__}") from None
    return bytes(body)


def _dry_run(request: web.Request) -> bool:
    # A word that is misspelt must not do for real what was to be tried.
    for name in request.query:
        if name != "dry_run":
            raise Refused("bad-request", f"there is no parameter {name!r}")
    values = request.query.getall("dry_run", ["false"])
    if len(values) != 1 or values[0] not in ("true", "false"):
        raise Refused("bad-request", "dry_run is true or false")
    return values[0] == "true"
