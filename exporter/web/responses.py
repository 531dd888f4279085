"""How the HTTP API answers: JSON, and problems of RFC 9457."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from exporter import api
from exporter.admin import audit
from exporter.api import PATH, PROBLEMS
from exporter.errors import ActionError, LayerLost, OutcomeUnknown, Refused, Rejected
from exporter.redact import redact_filename

#: Where the audit line of a request is gathered.
AUDIT = web.RequestKey("audit", dict[str, object])
_PROBLEM_JSON = "application/problem+json"
log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


def answer(value: Any, status: int = 200) -> web.Response:
    """Return a value as JSON."""
    return web.Response(body=_encode(value), status=status, content_type="application/json")


def problem(request: web.Request, name: str, detail: str, **more: Any) -> web.Response:
    """Return one of `problems.PROBLEMS`, with `more` members of `api.Problem`."""
    kind = PROBLEMS[name]
    if vm := request.match_info.get("vm"):
        more["vm"] = vm
    told = api.Problem(
        type=PATH + name,
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=request.path,
        **more,
    )
    response = web.Response(body=_encode(told), status=kind.status, content_type=_PROBLEM_JSON)
    if kind.status in (408, 413):
        response.force_close()  # the rest of the body is not read
    return response


def failed(request: web.Request, error: ActionError) -> web.Response:
    """Return why a request was not accepted, and have the audit line say it."""
    about: dict[str, object] = request.get(AUDIT, {})
    about["detail"] = str(error)
    if isinstance(error, Rejected):
        about |= {"result": audit.REJECTED, "answer": str(error)}
        return problem(request, "refused-by-qemu", str(error))
    if isinstance(error, OutcomeUnknown):
        about["result"] = audit.UNKNOWN
        name = "no-answer" if error.late else "unknown-outcome"
        return problem(request, name, str(error), outcome="unknown")
    if isinstance(error, LayerLost):
        about |= {"result": audit.DONE, "problem": "layer-lost"}
        return problem(request, "layer-lost", str(error))
    assert isinstance(error, Refused)
    about |= {"result": audit.REFUSED, "problem": error.problem}
    return problem(request, error.problem, str(error), **error.more)


async def expect(request: web.Request) -> None:
    """Refuse what a client expects but that its body is asked for, which is done when it is read.

    aiohttp's own asks for it before anybody looked who that is, and fails where it is no text.
    """
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="Expectation Failed\n")


async def ask_for_body(request: web.Request) -> None:
    """Let a client go on that waits for this before it sends its body."""
    if hdrs.EXPECT in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer, nothing was sent


def problems(root: str) -> Middleware:
    """Return the middleware that answers below `root` as the API does, whatever was raised."""

    @web.middleware
    async def told(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith(root + "/"):
            return await handler(request)
        try:
            return await handler(request)
        except ActionError as error:
            return failed(request, error)
        except web.HTTPNotFound:
            return problem(request, "not-found", f"nothing is at {request.path}")
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            response = problem(request, "method-not-allowed", f"{request.method}: use {allowed}")
            response.headers[hdrs.ALLOW] = allowed
            return response
        except web.HTTPException:
            raise
        except Exception as error:
            # What a VM said, or a user, must not end in an answer that no client understands.
            log.error(
                "request not answered: a defect of this program, please report it",
                extra={"path": redact_filename(request.path), "err": type(error).__name__},
            )
            log.debug("the defect", exc_info=True)
            request.get(AUDIT, {})["result"] = audit.UNKNOWN
            told = "the exporter could not answer this request: its log has more"
            return problem(request, "internal-error", told, outcome="unknown")

    return told
