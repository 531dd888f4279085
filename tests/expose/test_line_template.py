"""Lines of numbers that a scrape fills in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import ProtocolError
from exporter.expose.line_template import flatten, template

NUMBERS = st.none() | st.integers(-(2**63), 2**64 - 1)
LABELS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\\n'), max_size=8)


@given(
    st.lists(st.tuples(LABELS, NUMBERS, NUMBERS), min_size=1, max_size=5),
    st.sampled_from([1, 10**9]),
)
def test_each_value_stands_behind_its_labels(records: list[tuple[Any, ...]], divisor: int) -> None:
    """Whatever the labels hold, and wherever a value is missing."""
    identities = tuple(f'l="{label}"' for label, _, _ in records)
    flat, missing = flatten([record[1:] for record in records], divisor)
    first, second = template(("a", "b"), identities, missing, divisor).fill(flat)

    for name, column, lines in (("a", 1, first), ("b", 2, second)):
        known = [
            (identity, record[column] % 2**64)
            for identity, record in zip(identities, records, strict=True)
            if record[column] is not None
        ]
        wanted = [f"{name}{{{i}}} {v if divisor == 1 else v / divisor}" for i, v in known]
        assert lines.decode().split("\n")[:-1] == wanted


def test_lines_fit_only_the_same_records_with_the_same_values_missing() -> None:
    """Else they are made anew."""
    made = template(("a",), ("x", "y"), (1,), 1)

    assert made.fits(("x", "y"), (1,))
    assert not made.fits(("x", "y"), ())
    assert not made.fits(("x", "z"), (1,))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**400])
def test_a_number_of_more_than_64_bits_is_refused(value: int) -> None:
    """QEMU sends none."""
    with pytest.raises(ProtocolError, match="64 bits"):
        flatten([(1, None), (2, value)], 1)
