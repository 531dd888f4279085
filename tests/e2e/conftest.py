"""Labs: one for each test, one for all tests of a module; and nothing is left running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.lab import Lab, Process, laboratory


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Have each module end what it started: Python tells only when it forgets a process, in another test."""
    yield
    left = [each for each in Process.started if each.exit_code is None]
    Process.started.clear()
    for each in left:
        each.kill()
    assert not left, f"left running: {', '.join(each.log.name for each in left)}"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab for one test."""
    with laboratory() as parts:
        yield parts


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    """A lab for all tests of a module."""
    with laboratory() as parts:
        yield parts
