"""The OpenAPI 3.1 description of the HTTP API, made of its routes and types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from exporter import __version__, api
from exporter.problems import PROBLEMS
from exporter.web.routes import ROUTES, Route

_PARAMETERS: Mapping[str, dict[str, Any]] = {
    "vm": {"description": "The `vm` label of the metrics.", "schema": {"type": "string"}},
    "job_id": {"description": "The `job_id` label of the metrics.", "schema": {"type": "string"}},
    "name": {"description": "The last part of a problem's type.", "schema": {"enum": [*PROBLEMS]}},
}
_DRY_RUN = {
    "name": "dry_run",
    "in": "query",
    "description": "Make every check, and change nothing.",
    "schema": {"type": "boolean", "default": False},
}
_REF = "#/components/schemas/{name}"
_JSON, _PROBLEM = "application/json", "application/problem+json"


def description(prefix: str) -> dict[str, Any]:
    """Return the description, for an exporter whose paths begin with `prefix`."""
    types = {route.body for route in ROUTES} | {route.answer for route in ROUTES}
    shown = sorted((each for each in types if each), key=lambda each: each.__name__)
    _, schemas = msgspec.json.schema_components([*shown, api.Problem], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "QEMU Block Exporter",
            "version": __version__,
            "description": "Virtual machines, backing chains and block jobs; and, where"
            " --web.enable-admin-api is given, the jobs' start and end.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix or "/"}],
        "security": [{"basic": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, **_PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.text}
    if route.body is not None:
        parameters.append(_DRY_RUN)
        operation["requestBody"] = {"required": True, "content": _content(route.body)}
    if parameters:
        operation["parameters"] = parameters
    operation["responses"] = _responses(route)
    return operation


def _responses(route: Route) -> dict[str, Any]:
    meaning = {200: "As asked."}
    if route.body is not None:
        meaning = {200: "Nothing was sent: a dry run, or accepted before.", route.status: "Sent."}
    content = _content(route.answer) if route.answer else None
    responses: dict[str, Any] = {}
    for status, text in meaning.items():
        responses[str(status)] = {"description": text} | ({"content": content} if content else {})
    by_status: dict[int, list[str]] = {}
    for name in route.problems:
        by_status.setdefault(PROBLEMS[name].status, []).append(name)
    for status, names in sorted(by_status.items()):
        text = "; ".join(f"{PROBLEMS[name].title} ({name})" for name in names)
        responses[str(status)] = {"description": text}
        if names not in (["unauthorized"], ["too-many"]):
            responses[str(status)]["content"] = _content(api.Problem, _PROBLEM)
    return responses


def _content(type: type, kind: str = _JSON) -> dict[str, Any]:
    return {kind: {"schema": {"$ref": _REF.format(name=type.__name__)}}}
