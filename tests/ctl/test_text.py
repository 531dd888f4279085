"""What reaches a terminal: nothing that it would act on, and numbers that people read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.api.types import Job
from exporter.ctl.text import clean, duration, is_ready, percent, size, state
from tests.fakeapi import ended, job, ready


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Co"])))
def test_nothing_that_a_terminal_acts_on_is_left(given_text: str) -> None:
    """Neither control characters nor those that turn the direction of writing."""
    assert clean(given_text).isprintable()


@given(st.text(), st.integers(2, 50))
def test_a_text_is_never_longer_than_the_limit(given_text: str, limit: int) -> None:
    """Escaping included."""
    assert len(clean(given_text, limit)) <= limit


def test_a_text_that_is_cut_shows_it() -> None:
    """By its last character."""
    assert clean("x" * 10_000, 5) == "xxxx…"
    assert clean("x" * 5, 5) == "xxxxx"


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (20 * 1024**3, "20.0 GiB"),
        (2**63 - 1, "8.0 EiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_sizes_are_read_by_people(size_bytes: int | None, shown: str) -> None:
    """Never as 1024.0 of a unit."""
    assert size(size_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (400_000, "4 d")],
)
def test_durations_are_read_by_people(seconds: float | None, shown: str) -> None:
    """Whole seconds."""
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("each", "shown"),
    [
        (job(offset_bytes=0, length_bytes=0), "-"),
        (job(offset_bytes=None), "-"),
        (job(offset_bytes=999, length_bytes=1000), "99%"),
        (job(offset_bytes=1000, length_bytes=1000), "100%"),
        (job(offset_bytes=2000, length_bytes=1000), "100%"),
        (ready(), "ready"),
        (ready(paused=True), "100%"),
    ],
)
def test_percents_are_whole_and_100_is_all(each: Job, shown: str) -> None:
    """All done is not ready."""
    assert percent(each) == shown


@pytest.mark.parametrize(
    ("each", "shown"),
    [
        (ended("failed"), "failed"),
        (job(status="pending"), "pending"),
        (job(status=None), "running"),
        (job(status=None, paused=True), "paused"),
        (ready(status=None), "ready"),
        (ready(status=None, paused=True), "standby"),
        (job(status=None, busy=None, paused=None, ready=None), "not seen"),
    ],
)
def test_a_state_is_known_without_a_status_too(each: Job, shown: str) -> None:
    """QEMU before 2.12 has none."""
    assert state(each) == shown
    assert is_ready(each) == (shown == "ready")
