"""Labs: one for each test, one for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.lab import Lab, laboratory


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
