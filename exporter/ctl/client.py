"""A client of an exporter's HTTP API.

ExporterError
 +- Refused     the answer is an error: this request changed nothing
 +- NotSent     no connection: this request changed nothing
 +- NoAnswer    the request was sent, and its outcome is unknown
"""

from __future__ import annotations

import os
import ssl
from base64 import b64encode
from typing import Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from exporter.api import (
    Commit,
    Done,
    Job,
    JobList,
    JobRequest,
    Problem,
    Request,
    Snapshot,
    Vm,
    VmList,
)
from exporter.ctl.credentials import Credentials
from exporter.ctl.text import SENTENCE_LIMIT, clean
from exporter.errors import ExporterError

T = TypeVar("T")

#: Longest response body; that of a thousand VMs with all their jobs is a hundredth of it.
_LIMIT_BYTES = 64 * 1024 * 1024
#: How long connecting may take: if that fails, the request has not been sent.
_CONNECT_SECONDS = 10.0
#: A proxy that answers with one of these may have passed the request on, without getting a reply.
_UNSURE = frozenset({500, 502, 504})


class Refused(ExporterError):
    """The exporter, or a proxy before it, refused the request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem


class NotSent(ExporterError):
    """The exporter cannot be reached."""


class NoAnswer(ExporterError):
    """The request was sent, but no reply came that tells its outcome."""

    def __init__(self, detail: str, problem: Problem | None = None) -> None:
        super().__init__(detail)
        #: What the exporter answered, if it did.
        self.problem = problem


class Client:
    """A client of one exporter. A request that changes something is never sent twice.

    Every method raises `Refused`, `NotSent` and `NoAnswer`.
    """

    def __init__(self, url: str, credentials: Credentials, timeout_seconds: float) -> None:
        self._url = url.rstrip("/")
        self._server_name = credentials.server_name
        self._headers = {"Accept": "application/json, application/problem+json"}
        if credentials.username is not None:
            user = f"{credentials.username}:{credentials.password}".encode()
            self._headers["Authorization"] = f"Basic {b64encode(user).decode()}"
        connect_seconds = min(_CONNECT_SECONDS, timeout_seconds * 0.75)
        self._session = aiohttp.ClientSession(
            # On a reused connection, one that the server closed would look like a missing reply.
            connector=aiohttp.TCPConnector(ssl=credentials.tls, force_close=True),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=connect_seconds),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def vms(self) -> VmList:
        """Return all VMs."""
        return await self._get("/vms", VmList)

    async def vm(self, vm: str) -> Vm:
        """Return a VM with its disks."""
        return await self._get(f"/vms/{_quoted(vm)}", Vm)

    async def jobs(self, vm: str | None = None) -> JobList:
        """Return the jobs of a VM, or of all."""
        return await self._get(f"/vms/{_quoted(vm)}/block-jobs" if vm else "/block-jobs", JobList)

    async def job(self, vm: str, job_id: str) -> Job:
        """Return a job, or its record."""
        return await self._get(f"/vms/{_quoted(vm)}/block-jobs/{_quoted(job_id)}", Job)

    async def start(self, vm: str, request: Commit, *, dry_run: bool) -> Done:
        """Start a job."""
        return await self._post(f"/vms/{_quoted(vm)}/block-jobs", request, dry_run)

    async def change(self, vm: str, job_id: str, request: JobRequest, *, dry_run: bool) -> Done:
        """Change a job."""
        path = f"/vms/{_quoted(vm)}/block-jobs/{_quoted(job_id)}/{request.verb}"
        return await self._post(path, request, dry_run)

    async def snapshot(self, vm: str, request: Snapshot, *, dry_run: bool) -> Done:
        """Add a new layer on top of a disk."""
        return await self._post(f"/vms/{_quoted(vm)}/snapshots", request, dry_run)

    async def _get(self, path: str, kind: type[T]) -> T:
        return await self._ask("GET", f"/api/v1{path}", kind)

    async def _post(self, path: str, request: Request, dry_run: bool) -> Done:
        query = "?dry_run=true" if dry_run else ""
        body = msgspec.json.encode(request)
        return await self._ask("POST", f"/api/v1/admin{path}{query}", Done, body)

    async def _ask(self, method: str, path: str, kind: type[T], body: bytes | None = None) -> T:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method,
                URL(self._url + path, encoded=True),
                data=body,
                headers=headers,
                allow_redirects=False,
                server_hostname=self._server_name,
            ) as answer:
                content = await _read(answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSent(f"{self._url}: {_reason(error)}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoAnswer(f"{self._url}: {_reason(error)}") from error
        if answer.status < 300:
            try:
                return msgspec.json.decode(content, type=kind)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise NoAnswer(
                    f"{self._url}: the answer does not follow this API: {error}"
                ) from error
        problem = _problem(answer, content, path)
        ours = problem.type != "about:blank"
        unsure = answer.status in _UNSURE and not ours and method == "POST"
        if problem.outcome == "unknown" or unsure:
            raise NoAnswer(f"{problem.title}: {problem.detail}", problem)
        raise Refused(problem)


def _quoted(name: str) -> str:
    return quote(name, safe="")


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_chunked(1 << 16):
        content += chunk
        if len(content) > _LIMIT_BYTES:
            raise aiohttp.ClientPayloadError(f"more than {_LIMIT_BYTES} bytes")
    return bytes(content)


def _problem(answer: aiohttp.ClientResponse, content: bytes, path: str) -> Problem:
    """Return the problem in an answer; an answer that is not from the API becomes a Problem too."""
    if answer.content_type == "application/problem+json":
        try:
            return msgspec.json.decode(content, type=Problem)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            pass
    title = answer.reason or str(answer.status)
    detail = f"HTTP status {answer.status}"
    if location := answer.headers.get("Location"):
        detail = f"moved to {location}"
    elif answer.content_type == "text/plain":
        detail = content.decode("utf-8", "replace").strip() or detail
    return Problem(
        type="about:blank",
        title=title,
        status=answer.status,
        detail=clean(detail, SENTENCE_LIMIT),
        instance=path,
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no reply in time"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted: {cause.verify_message.rstrip('.')}"
            " (set ca_file in --http.config.file to the CA that signed it)"
        )
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason}"
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__
