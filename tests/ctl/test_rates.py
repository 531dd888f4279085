"""How fast a job is."""

from __future__ import annotations

from exporter.ctl.rates import Rates
from tests.fakeapi import ended, job, ready


def test_a_rate_needs_two_polls() -> None:
    """One says nothing."""
    rates, now = Rates(), job(offset_bytes=100, length_bytes=1000)
    rates.update([now], 5.0)

    assert (rates.bytes_per_second(now), rates.seconds_left(now)) == (None, None)


def test_a_rate_spans_the_last_polls() -> None:
    """And what is left follows from it."""
    rates = Rates()
    for second in range(30):
        now = job(offset_bytes=0 if second < 15 else (second - 15) * 10, length_bytes=200)
        rates.update([now], float(second))

    assert rates.bytes_per_second(now) == 10.0
    assert rates.seconds_left(now) == 6.0


def test_a_job_without_progress_has_a_rate_and_no_end() -> None:
    """0 B/s is what the operator looks for."""
    rates, now = Rates(), job(offset_bytes=100)
    rates.update([now], 1.0)
    rates.update([now], 2.0)

    assert (rates.bytes_per_second(now), rates.seconds_left(now)) == (0.0, None)


def test_another_job_of_the_same_name_begins_anew() -> None:
    """Its position is behind that of the first; a rate is never below 0."""
    rates = Rates()
    rates.update([job(offset_bytes=100)], 1.0)
    rates.update([job(offset_bytes=5)], 2.0)

    assert rates.bytes_per_second(job()) is None


def test_a_job_that_is_gone_is_forgotten() -> None:
    """As one that has arrived or ended: it only keeps up with the guest, or does nothing."""
    rates = Rates()
    for jobs in ([job(), job("qbe-2")], [job(), job("qbe-2")], [ended("failed"), ready("qbe-2")]):
        rates.update(jobs, 1.0)

    assert not rates._seen


def test_polls_at_the_same_time_give_no_rate() -> None:
    """Nor an error."""
    rates = Rates()
    rates.update([job(offset_bytes=1)], 1.0)
    rates.update([job(offset_bytes=2)], 1.0)

    assert rates.bytes_per_second(job()) is None
