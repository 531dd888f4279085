"""Ends that are counted when the chain is seen next."""

from __future__ import annotations

from exporter.jobs.evidence import Change, Commit, Sighting, Span
from exporter.jobs.outcomes import Outcomes
from exporter.jobs.verdict import State
from exporter.model.job_placement import Merge, Place


def commit(serial: int, device: str, span: Span | None) -> Commit:
    """A commit whose end was told in the first round."""
    return Commit(
        f"c{serial}", 0.0, serial, State.SAID, device, span, None, ours=False, round=1, order=serial
    )


def test_a_commit_that_is_located_late_is_a_rival_on_its_own_disk_alone() -> None:
    """Its end came before the answers that tell its disk; the commits of other disks stand."""
    outcomes = Outcomes()
    outcomes.wait(commit(1, "disk1", Span(["top1", "base1"], 0, 1)), 0.0)
    outcomes.note(Change(1, 1, 1, "disk1"))
    outcomes.wait(commit(2, "", None), 0.0)
    outcomes.note(Change(2, 1, 2, ""))
    place = Place("disk2", "0", "1", Merge(["top2", "base2"], used=True))

    outcomes.locate(1, {("c2", "commit"): place}, {"disk2": ["top2", "base2"]})
    outcomes.judge(Sighting(2, {"disk1": ["base1"], "disk2": ["base2"]}, None), 0.0)

    assert {job_id: (end.device, end.result) for job_id, end in outcomes.ends.items()} == {
        "c1": ("disk1", "completed"),
        "c2": ("disk2", "completed"),
    }
