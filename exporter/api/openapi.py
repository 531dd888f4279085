"""The OpenAPI 3.1 description of the HTTP API, built from its routes and types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from exporter import __version__
from exporter.api import types, verbs
from exporter.api.problems import PATH, PROBLEMS
from exporter.api.routes import ROUTES, Route

_PARAMETERS: Mapping[str, dict[str, Any]] = {
    "vm": {
        "description": "The `vm` label of the metrics.",
        "schema": {"type": "string"},
        "example": "web1",
    },
    "job_id": {
        "description": "The `job_id` label of the metrics.",
        "schema": {"type": "string"},
        "example": "qbe-nightly",
    },
    "name": {
        "description": "The last part of a problem's type.",
        "schema": {"enum": [*PROBLEMS]},
        "example": "not-ready",
    },
}
_DRY_RUN = {
    "name": "dry_run",
    "in": "query",
    "description": "Make every check, but change nothing.",
    "schema": {"type": "boolean", "default": False},
    "example": True,
}
_REF = "#/components/schemas/{name}"
_JSON, _PROBLEM, _TEXT = "application/json", "application/problem+json", "text/plain"
#: The problem that serves as an example.
_NOT_READY = "not-ready"

_DEVICE = types.Device(
    device="virtio-disk0", inserted=True, read_only=False, io_status="ok", backing_depth=1,
    expected_backing_depth=0,
    layers=[
        types.Layer(
            layer=number, node_name=f"disk0-{number}", driver="qcow2", file=f"/images/{file}.qcow2",
            virtual_size_bytes=10 << 30, allocated_bytes=allocated,
        )
        for number, (file, allocated) in enumerate([("monday", 3 << 20), ("base", 4 << 30)])
    ],
)  # fmt: skip
_JOB = types.Job(
    vm="web1", job_id="qbe-nightly", job_type="commit", device="virtio-disk0", status="running",
    ready=False, paused=False, busy=True, offset_bytes=1 << 20, length_bytes=3 << 20,
    speed_limit_bytes_per_second=0, io_status="ok", auto_finalize=True, auto_dismiss=False, top=0,
    base=1, first_seen_timestamp_seconds=1790000000.25,
    last_progress_timestamp_seconds=1790000003.5,
)  # fmt: skip
_SUMMARY: dict[str, Any] = {
    "vm": "web1", "up": True, "reason": None, "status": "running", "running": True, "name": "web1",
    "qemu_version": "7.2.22", "manager": None, "socket": "/run/qemu-block-exporter/web1.sock",
    "storage_responding": True, "device_count": 1, "job_count": 1, "backing_depth_max": 1,
}  # fmt: skip
#: An example of each type of request and response body.
EXAMPLES: Mapping[type, msgspec.Struct] = {
    type(each): each
    for each in (
        verbs.Commit(action="commit", device="virtio-disk0", job_id="qbe-nightly"),
        *(each.example() for each in verbs.JOB_REQUESTS),
        verbs.Snapshot(device="virtio-disk0", file="/images/tuesday.qcow2"),
        types.VmList([types.VmSummary(**_SUMMARY)]),
        types.Vm(**_SUMMARY, devices=[_DEVICE], jobs=[_JOB]),
        types.JobList([_JOB]),
        _JOB,
        types.Done(
            vm="web1", action="commit", device="virtio-disk0", job_id="qbe-nightly", dry_run=False,
            replayed=False, command="block-commit",
            arguments={"device": "disk0-0", "job-id": "qbe-nightly"}, warnings=[], job=_JOB,
        ),
        types.Problem(
            type=PATH + _NOT_READY, title=PROBLEMS[_NOT_READY].title,
            status=PROBLEMS[_NOT_READY].status, detail="commit qbe-nightly is not ready: it is running",
            instance="/api/v1/admin/vms/web1/block-jobs/qbe-nightly/complete", vm="web1", job=_JOB,
        ),
    )
}  # fmt: skip

_CHALLENGE = {"WWW-Authenticate": {"description": "Basic", "schema": {"const": "Basic"}}}
_RETRY = {
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 0},
    }
}
_LOCATION = {
    "Location": {
        "description": "The path of the job.",
        "schema": {"type": "string", "format": "uri-reference"},
        "required": True,
    }
}
#: Responses of the middleware that guards every page; they are plain text.
_GATE: Mapping[str, dict[str, Any]] = {
    "401": {
        "description": "Send a valid user and password (unauthorized)",
        "headers": _CHALLENGE,
        "content": {_TEXT: {"schema": {"type": "string"}, "example": "Unauthorized\n"}},
    },
    "417": {
        "description": "The header Expect must be 100-continue",
        "content": {_TEXT: {"schema": {"type": "string"}, "example": "Expectation Failed\n"}},
    },
    "429": {
        "description": "Too many requests: above the rate limit of the web config file, or too many"
        " passwords are waiting to be checked",
        "headers": _RETRY,
        "content": {_TEXT: {"schema": {"type": "string"}, "example": "Too Many Requests\n"}},
    },
}


def description(prefix: str) -> dict[str, Any]:
    """Return the description for an exporter whose paths begin with `prefix`."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "QEMU Block Exporter",
            "version": __version__,
            "description": "Virtual machines, backing chains and block jobs; with"
            " --web.enable-admin-api, also starting and ending jobs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix or "/", "description": "This exporter."}],
        # Users are those of --web.config.file, and there may be none.
        "security": [{"basic": []}, {}],
        "tags": [
            {"name": "reading", "description": "Shows the present state; changes nothing."},
            {"name": "changing", "description": "Changes a VM, as far as grants permit."},
        ],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "A user of --web.config.file.",
                }
            },
        },
    }


def _schemas() -> dict[str, Any]:
    shown = sorted(EXAMPLES, key=lambda each: each.__name__)
    _, schemas = msgspec.json.schema_components(shown, ref_template=_REF)
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    return schemas


def _operation(route: Route) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, **_PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.text,
        "tags": ["changing" if route.changes else "reading"],
    }
    if route.body is not None:
        parameters.append(_DRY_RUN)
        operation["description"] = inspect.cleandoc(route.body.__doc__ or "")
        operation["security"] = [{"basic": []}]
        operation["requestBody"] = {
            "description": "What to do.",
            "required": True,
            "content": _content(route.body),
        }
    if parameters:
        operation["parameters"] = parameters
    responses = {**_successes(route), **_refusals(route), **_GATE}
    operation["responses"] = dict(sorted(responses.items()))
    return operation


def _successes(route: Route) -> dict[str, Any]:
    if route.body is None:
        content = _content(route.answer) if route.answer else _plain(route)
        return {"200": {"description": "As requested.", "content": content}}
    text = "Nothing was sent: a dry run, or the request was accepted before."
    nothing = {"description": text, "content": _content(types.Done)}
    sent: dict[str, Any] = {"description": "Sent.", "content": _content(types.Done)}
    if route.status == 202:
        sent["headers"] = _LOCATION
    return {"200": nothing, str(route.status): sent}


def _refusals(route: Route) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for name in route.problems:
        by_status.setdefault(PROBLEMS[name].status, []).append(name)
    return {
        str(status): {
            "description": "; ".join(f"{PROBLEMS[name].title} ({name})" for name in each),
            "content": _content(types.Problem, _PROBLEM, _problem(each[0], route)),
        }
        for status, each in by_status.items()
    }


def _problem(name: str, route: Route) -> types.Problem:
    """Return an example of the problem `name` as a route responds with it."""
    kind, path = PROBLEMS[name], route.path
    values = {each: _PARAMETERS[each]["example"] for each in re.findall(r"{(\w+)}", path)}
    return types.Problem(
        type=PATH + name, title=kind.title, status=kind.status, detail=kind.text,
        instance=path.format(**values), vm=values.get("vm", msgspec.UNSET),
        outcome="unknown" if kind.status in (502, 504) else msgspec.UNSET,
    )  # fmt: skip


def _content(
    type: type, kind: str = _JSON, example: msgspec.Struct | None = None
) -> dict[str, Any]:
    shown = msgspec.to_builtins(example or EXAMPLES[type])
    return {kind: {"schema": {"$ref": _REF.format(name=type.__name__)}, "example": shown}}


def _plain(route: Route) -> dict[str, Any]:
    """Return the response of the two routes that describe the API itself."""
    if route.name == "openapi":
        return {_JSON: {"schema": {"type": "object"}}}
    kind = PROBLEMS[_NOT_READY]
    text = f"{kind.title} ({kind.status})\n\n{kind.text}\n"
    return {_TEXT: {"schema": {"type": "string"}, "example": text}}
