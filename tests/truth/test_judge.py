"""The judge of `make truth`, on records that were made up."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.truth.judge import FALSE_END, LOST, RIGHT, UNJUDGED, WEAKLY, WRONG, judge
from tests.truth.mutation import flagged, swapped
from tests.truth.oracle import ALIVE, NEVER_RAN, UNKNOWN, truth
from tests.truth.record import Job, Record, Scrape, Span, Verdict, read
from tests.truth.report import Report
from tests.truth.sight import ALIVE_SIGHT, LAST, NONE, PART, WHOLE

#: A record of a run of 40 s, on two VMs.
RECORDED = Path(__file__).parent.parent / "data" / "truth" / "recorded.json"
VM, FLEET = "dense1", "dense"


def job(id: str, created: float, ended: float = 0.0, **more: object) -> Job:
    """Return a backup that QEMU completed, unless told otherwise."""
    made = Job(VM, 1, id, "backup", created, device="dense1-d0", ran=True, ended=ended, gone=ended)
    made.event = "BLOCK_JOB_COMPLETED" if ended else ""
    return replace(made, **more)  # type: ignore[arg-type]


def commit(id: str, created: float, ended: float, pivoted: bool | None, **more: object) -> Job:
    """Return a commit of the active layer that was ready half a second before its end."""
    return job(
        id, created, ended, type="commit", active=True, ready=ended - 0.5, pivoted=pivoted, **more
    )


def verdict(id: str, said: float, result: str, **more: object) -> Verdict:
    """Return what the exporter said of a backup, unless told otherwise."""
    made = Verdict(FLEET, 1, said, said, VM, id, "dense1-d0", "backup", result)
    return replace(made, **more)  # type: ignore[arg-type]


def record(jobs: list[Job], verdicts: list[Verdict], *, life_ended: float = 90.0) -> Record:
    """Return a run of 100 s with a scrape each 5 s, of a VM that began at 2."""
    return Record(
        jobs=jobs,
        verdicts=verdicts,
        scrapes=[
            Scrape(FLEET, at, at + 0.1, [VM] if 2 < at < life_ended else [])
            for at in range(5, 100, 5)
        ],
        lives=[Span(VM, 1, 2.0, life_ended)],
        exporters=[Span(FLEET, 1, 0.0, 100.0)],
    )


def marks(made: Record) -> list[str]:
    """Return what is said of each job and of each verdict without one, in the order of time."""

    def when(each: object) -> float:
        pair = each.pair  # type: ignore[attr-defined]
        return float(pair.job.created if pair.job else pair.verdict.said)

    return [each.mark for each in sorted(judge(made, FLEET), key=when)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (job("a", 10, 11), "completed"),
        (job("a", 10, 11, error="No space left on device"), "failed"),
        (job("a", 10, 11, event="BLOCK_JOB_CANCELLED"), "cancelled"),
        (job("a", 10), ALIVE),
        (job("a", 10, 11, ran=False), NEVER_RAN),
        (job("a", 10, 11, type="mirror", ready=10.5), "completed"),
        (job("a", 10, 11, type="commit"), "completed"),
        (commit("a", 10, 11, True), "completed"),
        (commit("a", 10, 11, False), "cancelled"),
        (commit("a", 10, 11, False, asked="complete"), "cancelled"),
        (commit("a", 10, 11, None, asked="complete"), "completed"),
        (commit("a", 10, 11, None, asked="cancel"), "cancelled"),
        (commit("a", 10, 11, None), UNKNOWN),
        (commit("a", 10, 11, None, error="Input/output error"), "failed"),
        (job("a", 10, 11, type="create", event="concluded"), "completed"),
        (job("a", 10, 11, type="create", aborting=True, error="Operation canceled"), "cancelled"),
        (job("a", 10, 11, type="create", aborting=True, error="No such file"), "failed"),
        (job("a", 10, 11, type="create", aborting=True, asked="cancel"), UNKNOWN),
    ],
)
def test_truth_is_what_qemu_and_its_graph_say(told: Job, expected: str) -> None:
    assert truth(told) == expected


@pytest.mark.parametrize(
    ("told", "said", "mark"),
    [
        (job("a", 10, 11), "completed", RIGHT),
        (job("a", 10, 11), "cancelled", WRONG),
        (job("a", 10, 11), "failed", WRONG),
        (job("a", 10, 11), "unverified", WEAKLY),
        (job("a", 10, 11), "vanished", WEAKLY),
        (job("a", 10), "completed", WRONG),
        (job("a", 10), "vanished", UNJUDGED),
        (job("a", 10, 11, ran=False), "cancelled", FALSE_END),
    ],
)
def test_a_verdict_is_right_wrong_or_weak(told: Job, said: str, mark: str) -> None:
    assert marks(record([told], [verdict("a", 11.01, said)])) == [mark]


def test_an_end_that_was_not_counted_is_lost_and_one_of_no_job_is_false() -> None:
    assert marks(record([job("a", 10, 11)], [])) == [LOST]
    assert marks(record([], [verdict("a", 11.0, "completed")])) == [FALSE_END]
    assert marks(record([job("a", 10, 11)], [verdict("b", 11.0, "completed")])) == [LOST, FALSE_END]
    twice = [verdict("a", 11.01, "completed"), verdict("a", 11.02, "completed")]
    assert sorted(marks(record([job("a", 10, 11)], twice))) == [FALSE_END, RIGHT]


def test_a_commit_after_which_nobody_scraped_is_not_judged() -> None:
    """Neither as weak nor as lost: only a scrape shows its chain."""
    ended = commit("a", 85.5, 88, True)
    weak = verdict("a", 90.0, "unverified", type="commit")
    assert marks(record([ended], [weak])) == [UNJUDGED]
    assert marks(record([ended], [])) == [UNJUDGED]
    # That it is wrong can be known all the same.
    wrong = verdict("a", 90.0, "cancelled", type="commit")
    assert marks(record([ended], [wrong])) == [WRONG]


@pytest.mark.parametrize(
    ("told", "sight"),
    [
        (job("a", 10, 11), WHOLE),
        (job("a", 3, 4), NONE),
        (job("a", 3, 8), PART),
        (job("a", 80, 89.9), LAST),
        (job("a", 80), ALIVE_SIGHT),
    ],
)
def test_sight_is_when_the_exporter_was_connected(told: Job, sight: str) -> None:
    assert [each.sight for each in judge(record([told], []), FLEET)] == [sight]


def test_a_scrape_that_says_down_ends_the_sight() -> None:
    made = record([job("a", 12, 23)], [])
    made.scrapes[2].up = []
    assert [each.sight for each in judge(made, FLEET)] == [PART]


def test_jobs_of_one_id_are_told_apart_by_time() -> None:
    """An event decides at once; a commit waits for the next scrape, past a later job of its id."""
    jobs = [
        commit("a", 10, 11, True),
        commit("a", 12, 13, None, error="Input/output error"),
        commit("a", 16, 17, False),
        commit("a", 18, 19, True),
    ]
    verdicts = [
        verdict("a", 13.01, "failed", type="commit", error="Input/output error"),
        verdict("a", 15.01, "completed", type="commit"),
        verdict("a", 20.01, "cancelled", type="commit"),
        verdict("a", 20.02, "completed", type="commit"),
    ]
    assert marks(record(jobs, verdicts)) == [RIGHT] * 4
    verdicts[2].result, verdicts[3].result = "completed", "cancelled"
    assert marks(record(jobs, verdicts)) == [RIGHT, RIGHT, WRONG, WRONG]


def test_an_exporter_that_was_stopped_counts_when_it_goes_on() -> None:
    made = record(
        [commit("a", 10, 11, True), job("a", 12, 13, type="commit", event="BLOCK_JOB_CANCELLED")],
        [
            verdict("a", 17.01, "cancelled", type="commit"),
            verdict("a", 20.1, "completed", type="commit"),
        ],
    )
    made.stops = [Span(FLEET, 1, 9.0, 17.0)]
    assert marks(made) == [RIGHT, RIGHT]


def test_a_verdict_is_not_about_a_job_that_ended_before_the_exporter_was_there() -> None:
    made = record([job("a", 3, 4), job("a", 30, 31)], [verdict("a", 33.0, "completed")])
    made.exporters = [Span(FLEET, 1, 0.0, 20.0), Span(FLEET, 2, 20.0, 100.0)]
    assert marks(made) == [UNJUDGED, RIGHT]


def test_a_verdict_is_about_the_job_that_it_follows_most_closely() -> None:
    """One shortly before it, of the same id, was not seen at all."""
    jobs = [job("a", 3.0, 3.1), job("a", 3.5, 3.6, event="BLOCK_JOB_CANCELLED")]
    assert marks(record(jobs, [verdict("a", 3.602, "cancelled")])) == [UNJUDGED, RIGHT]
    # A verdict is never about a job that ended after it.
    creates = [job("a", 10, 11, type="create"), job("a", 11.9, 12, type="create")]
    told = [verdict("a", 11.95, "completed", type=""), verdict("a", 12.6, "completed", type="")]
    pairs = [each.pair for each in judge(record(creates, told), FLEET)]
    assert {id(each.job): each.verdict for each in pairs} == {
        id(each): said for each, said in zip(creates, told, strict=True)
    }
    jobs[1].error, jobs[1].event = "Input/output error", "BLOCK_JOB_COMPLETED"
    said = verdict("a", 4.4, "failed", error="Input/output error")
    assert marks(record(jobs, [said])) == [UNJUDGED, RIGHT]


def test_a_job_that_was_not_dismissed_is_told_of_by_the_next_process_too() -> None:
    made = record([job("a", 10, 11, gone=40.0)], [])
    made.exporters = [Span(FLEET, 1, 0.0, 20.0), Span(FLEET, 2, 20.0, 100.0)]
    made.verdicts = [verdict("a", 11.01, "completed"), verdict("a", 25.0, "completed")]
    assert marks(made) == [RIGHT, RIGHT]
    made.verdicts[1].result = "failed"
    assert sorted(marks(made)) == [RIGHT, WRONG]
    del made.verdicts[1]
    assert marks(made) == [RIGHT]


def test_the_device_the_type_and_the_error_are_judged_too() -> None:
    right = job("a", 10, 11)
    assert marks(record([right], [verdict("a", 11.01, "completed", device="")])) == [RIGHT]
    assert marks(record([right], [verdict("a", 11.01, "completed", device="dense1-d1")])) == [WRONG]
    assert marks(record([right], [verdict("a", 11.01, "unverified", device="dense1-d1")])) == [
        WRONG
    ]
    moved = replace(right, moved=True)
    assert marks(record([moved], [verdict("a", 11.01, "completed", device="dense1-d1")])) == [RIGHT]
    failed = job("a", 10, 11, error="No space left on device")
    other = verdict("a", 11.01, "failed", error="Input/output error")
    assert marks(record([failed], [other])) == [WRONG]
    create = job("a", 10, 11, type="create", device="", event="concluded")
    assert marks(record([create], [verdict("a", 11.3, "completed", type="", device="")])) == [RIGHT]


def test_an_end_that_was_told_before_it_came_is_wrong() -> None:
    assert marks(record([job("a", 10, 30)], [verdict("a", 15.0, "completed")])) == [WRONG]


def test_swapped_outcomes_are_flagged() -> None:
    """Of a hundred jobs of few ids, some of them lost, weak or of a commit that waits."""
    rng = random.Random(1)
    jobs: list[Job] = []
    verdicts: list[Verdict] = []
    for n in range(100):
        at = 10 + n * 0.7
        job_id, ended = f"j{n % 3}", at + rng.uniform(0.1, 0.6)
        if rng.random() < 0.3:
            pivoted = rng.random() < 0.5
            jobs.append(commit(job_id, at, ended, pivoted))
            result = rng.choice(("unverified", "completed" if pivoted else "cancelled"))
            verdicts.append(verdict(job_id, (ended // 5 + 1) * 5 + 0.01, result, type="commit"))
        else:
            kind = rng.choice(("completed", "failed", "cancelled"))
            event = "BLOCK_JOB_CANCELLED" if kind == "cancelled" else "BLOCK_JOB_COMPLETED"
            error = "Input/output error" if kind == "failed" else ""
            jobs.append(job(job_id, at, ended, event=event, error=error))
            verdicts.append(verdict(job_id, ended + 0.01, kind, error=error))
    made = record(jobs, verdicts)
    assert set(marks(made)) <= {RIGHT, WEAKLY, UNJUDGED}
    caught, changed = flagged(made, FLEET)
    assert changed > 70
    assert caught / changed >= 0.95


def test_both_kinds_of_swaps_are_made_in_turn() -> None:
    results = ["completed", "completed", "cancelled", "cancelled", "failed", "failed", "unverified"]
    made = record([], [verdict("a", 10.0 + n, result) for n, result in enumerate(results)])
    after = [each.result for each in swapped(made).verdicts]
    assert after == [
        "cancelled", "failed", "completed", "completed", "completed", "completed", "unverified",
    ]  # fmt: skip


def test_swapped_outcomes_of_a_recorded_run_are_flagged() -> None:
    caught, changed = flagged(read(RECORDED), FLEET)
    assert changed > 50
    assert caught / changed >= 0.95


def test_the_report_tells_the_story_of_what_is_wrong() -> None:
    made = record([job("a", 10, 11)], [verdict("a", 11.01, "cancelled")])
    made.say(10.0, VM, "dense1-d0: drive-backup a")
    report = Report(made)
    text = "\n".join(report.lines())
    assert not report.well
    assert "said cancelled, and it was completed" in text
    assert "dense1-d0: drive-backup a" in text
    assert text.splitlines()[-1].startswith("total: 1 jobs seen whole; 0 right, 1 wrong")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = record([job("a", 10, 11)], [verdict("a", 11.01, "cancelled")])
    made.say(10.0, VM, "something")
    made.stops.append(Span(FLEET, 1, 9.0, 17.0))
    made.check("scrapes", 3)
    made.write(tmp_path / "record.json")
    assert read(tmp_path / "record.json") == made
