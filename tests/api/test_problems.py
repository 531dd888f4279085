"""Problems: each that can be answered is explained, and each that is explained can be answered."""

from __future__ import annotations

import ast
import re
from http import HTTPStatus
from pathlib import Path

import pytest

from exporter.api.problems import PATH, PROBLEMS
from exporter.api.routes import ROUTES

ROOT = Path(__file__).parent.parent.parent / "exporter"
#: Answered by what stands around the API, as text: the users' gate, and the limit of scrapes.
OF_OTHERS = {"unauthorized", "too-many"}


def raised() -> set[str]:
    """Return the first argument of each `Refused` and `problem` in the program."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            place = {"Refused": 0, "_refused": 0, "problem": 1}.get(node.func.id)
            if place is None or len(node.args) <= place:
                continue
            found |= {
                each.value
                for each in ast.walk(node.args[place])
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
    return found


def test_every_problem_that_is_raised_is_explained() -> None:
    """A name that is misspelt would be an error of the program, when it is least wanted."""
    assert raised() <= PROBLEMS.keys()


def test_every_problem_that_is_explained_is_raised() -> None:
    """What can never be met is not in the contract."""
    # Two are chosen by whether the VM still has the connection.
    by_name = {"no-answer", "unknown-outcome"}

    assert raised() | by_name | OF_OTHERS == PROBLEMS.keys()


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_says_what_to_do(name: str) -> None:
    """Under a name that can be a path, with a status of HTTP's for a failure."""
    kind = PROBLEMS[name]

    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert HTTPStatus(kind.status).value >= 400
    assert kind.title[0].isupper()
    assert not kind.title.endswith(".")
    assert kind.text.endswith(".")
    assert PATH + name == f"/api/v1/problems/{name}"


def test_every_route_names_problems_that_there_are() -> None:
    """And every problem stands in the way of some route."""
    named = {name for route in ROUTES for name in route.problems}
    general = {"not-found", "method-not-allowed"}

    assert named | general == PROBLEMS.keys()
