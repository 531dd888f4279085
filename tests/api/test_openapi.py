"""The description of the HTTP API: valid, whole, and of the routes that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest
import schemathesis
from aiohttp import web

from exporter.admin.audit import Audit
from exporter.api import openapi
from exporter.api.problems import PROBLEMS
from exporter.api.routes import ROOT, ROUTES, Route
from exporter.api.verbs import VERBS
from exporter.collect.fleet import Fleet
from exporter.config.settings import Config
from exporter.web.api_read import ReadApi
from exporter.web.app import Endpoints, Options

DESCRIPTION = openapi.description("")
SCHEMAS: dict[str, Any] = DESCRIPTION["components"]["schemas"]
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, item in DESCRIPTION["paths"].items()
    for method, operation in item.items()
}
METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
#: Problems that no operation has -> when they come.
OF_NO_OPERATION = {
    "method-not-allowed": "where a path has no operation of this method",
}
by_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
by_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def inside(value: object, *path: object) -> Iterator[tuple[tuple[object, ...], dict[str, Any]]]:
    """Yield each object of a JSON document, but for examples, with the way to it."""
    if isinstance(value, dict):
        yield path, value
        for name, each in value.items():
            if name != "example":
                yield from inside(each, *path, name)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from inside(each, *path, number)


def validator(name: str) -> jsonschema_rs.Validator:
    """Return the validator of one type."""
    return jsonschema_rs.validator_for(
        {"$ref": f"#/components/schemas/{name}", "components": DESCRIPTION["components"]}
    )


# It is valid.


@pytest.mark.parametrize("prefix", ["", "/qemu"])
def test_the_description_is_openapi_3_1(prefix: str) -> None:
    """By the meta-schema of the OpenAPI Initiative, wherever the exporter stands."""
    described = openapi.description(prefix)
    schemathesis.openapi.from_dict(described).validate()

    assert described["openapi"] == "3.1.0"
    assert described["servers"][0]["url"] == (prefix or "/")


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_type_is_a_json_schema(name: str) -> None:
    """Of draft 2020-12, which OpenAPI 3.1 is made of, with no keyword that is not one."""
    jsonschema_rs.meta.validate(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMAS[name]}
    )


def test_every_reference_leads_somewhere() -> None:
    """And every type is referred to."""
    found = {value["$ref"] for _, value in inside(DESCRIPTION) if "$ref" in value}

    assert found == {f"#/components/schemas/{name}" for name in SCHEMAS}


def test_names_of_operations_are_theirs_alone() -> None:
    """They are what generated clients call their methods."""
    names = [operation["operationId"] for operation in OPERATIONS.values()]

    assert len(set(names)) == len(names) == len(ROUTES)


# It is whole.


@by_operation
def test_each_operation_says_what_it_is(operation: dict[str, Any]) -> None:
    """So does each parameter, each body and each answer."""
    parts = [*operation.get("parameters", ()), *operation["responses"].values()]
    if "requestBody" in operation:
        parts.append(operation["requestBody"])

    assert operation["summary"].endswith(".")
    assert not [part for part in parts if not part.get("description")]


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_type_says_what_it_is_and_so_does_each_member(name: str) -> None:
    """In words for those who read it."""
    schema = SCHEMAS[name]
    silent = [key for key, each in schema["properties"].items() if not each.get("description")]

    assert schema["description"]
    assert "\n " not in schema["description"]
    assert silent == []


@by_operation
def test_each_body_and_answer_has_an_example_that_is_valid(operation: dict[str, Any]) -> None:
    """What is shown to readers is what is meant."""
    parts = [*operation["responses"].values(), operation.get("requestBody", {})]
    contents = [content for part in parts for content in part.get("content", {}).values()]
    bare = [each for each in contents if "example" not in each]

    assert bare == (
        [{"schema": {"type": "object"}}] if operation["operationId"] == "openapi" else []
    )
    for content in contents:
        reference = content["schema"].get("$ref", "").rpartition("/")[2]
        if reference:
            validator(reference).validate(content["example"])


@by_operation
def test_the_example_of_a_problem_is_one_that_the_operation_has(operation: dict[str, Any]) -> None:
    """With its status, and with the outcome where nobody knows it."""
    for status, response in operation["responses"].items():
        for kind, content in response["content"].items():
            if kind == "application/problem+json":
                example = content["example"]
                name = example["type"].rpartition("/")[2]
                assert (str(example["status"]), PROBLEMS[name].status) == (status, int(status))
                assert f"({name})" in response["description"]
                assert ("outcome" in example) == (status in ("502", "504"))


def test_each_example_is_read_as_its_type() -> None:
    """By the decoder that reads requests."""
    for kind, example in openapi.EXAMPLES.items():
        assert msgspec.json.decode(msgspec.json.encode(example), type=kind) == example


@by_operation
def test_each_parameter_has_an_example_that_is_valid(operation: dict[str, Any]) -> None:
    """As in a URL."""
    for parameter in operation.get("parameters", ()):
        jsonschema_rs.validate(parameter["schema"], parameter["example"])


@by_operation
def test_each_answer_that_is_no_success_is_a_problem_or_the_gates(
    operation: dict[str, Any],
) -> None:
    """The gate stands before every page, and answers in plain text."""
    kinds = {
        status: list(answer["content"])
        for status, answer in operation["responses"].items()
        if int(status) >= 400
    }
    gate = {"401", "417", "429"}
    assert gate <= kinds.keys()

    for status, kind in kinds.items():
        assert kind == (["text/plain"] if status in gate else ["application/problem+json"])


# It is of the routes that there are.


def routes(app: web.Application, prefix: str) -> set[tuple[str, str]]:
    """Return the method and path of each route of the API; HEAD and OPTIONS follow from these."""
    found = set()
    for route in app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        if path.startswith(prefix + ROOT) and route.method not in {"HEAD", "OPTIONS"}:
            found.add((route.method, path.removeprefix(prefix)))
    return found


@pytest.mark.parametrize("prefix", ["", "/qemu"])
async def test_what_is_described_is_served_and_the_other_way_round(prefix: str) -> None:
    """Every route of the application below /api/v1, by method and path."""
    fleet = Fleet(Config(groups=()))
    options = Options(route_prefix=prefix)
    app = Endpoints(fleet, options, lambda: None).application()
    await fleet.close()

    assert routes(app, prefix) == {tuple(name.split(" ")) for name in OPERATIONS}


@by_route
def test_what_changes_something_is_answered_where_it_is_audited(route: Route) -> None:
    """What reads has a method of its own, and nothing else is taken for one that does."""
    assert hasattr(ReadApi, route.name) != route.changes


@by_route
def test_each_path_has_its_parameters(route: Route) -> None:
    """All of those in it and no other."""
    operation = OPERATIONS[f"{route.method} {route.path}"]
    told = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"]

    assert told == re.findall(r"{(\w+)}", route.path)


@by_route
def test_what_changes_something_is_posted_and_can_be_tried(route: Route) -> None:
    """And what reads is asked for by GET, and needs no grant."""
    operation = OPERATIONS[f"{route.method} {route.path}"]
    names = {each["name"] for each in operation.get("parameters", ())}

    assert route.method == ("POST" if route.changes else "GET")
    assert ("dry_run" in names) == route.changes
    assert ("not-granted" in route.problems) == route.changes


# Problems.


@by_route
def test_each_problem_of_a_route_is_one(route: Route) -> None:
    """By its name, once."""
    assert set(route.problems) <= PROBLEMS.keys()
    assert len(set(route.problems)) == len(route.problems)


def test_each_problem_is_one_of_a_route() -> None:
    """Or has a reason to be none."""
    used = {name for route in ROUTES for name in route.problems}

    assert PROBLEMS.keys() - used == OF_NO_OPERATION.keys()


@by_route
def test_each_problem_of_a_route_is_in_its_description(route: Route) -> None:
    """Below its status, by name."""
    responses = OPERATIONS[f"{route.method} {route.path}"]["responses"]

    for name in route.problems:
        assert f"({name})" in responses[str(PROBLEMS[name].status)]["description"]


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_problem_has_a_status_and_says_what_to_do(name: str) -> None:
    """Of errors, with a name that can stand in a path."""
    kind = PROBLEMS[name]

    assert 400 <= kind.status < 600
    assert (kind.status == 500) is (name == "internal-error")
    assert re.fullmatch(r"[a-z-]+", name)
    assert kind.title
    assert kind.text.endswith(".")


def test_every_action_is_counted_and_described() -> None:
    """The verbs of grants are the operations that change something."""
    changing = {route.name for route in ROUTES if route.changes}
    trail = Audit(VERBS)

    assert changing == set(VERBS) == {action for action, _ in trail.counts}
