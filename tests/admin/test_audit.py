"""The audit trail: a line and a count of each request, whoever asked and whatever came of it."""

from __future__ import annotations

import io
import json
import logging

import pytest

from exporter.admin.audit import DONE, OWN, REFUSED, RESULTS, Audit
from exporter.process.logs import Formatter, set_up_logging


def test_each_action_and_result_is_there_from_the_start() -> None:
    """At 0, in the order in which they are named."""
    trail = Audit(("commit", "pause"))

    assert list(trail.counts.items()) == [
        ((action, result), 0) for action in ("commit", "pause") for result in RESULTS
    ]


def test_without_users_there_is_what_is_done_unasked() -> None:
    """Nothing else can be done."""
    assert {action for action, _ in Audit().counts} == set(OWN)


def test_a_request_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """With all that is said about it."""
    trail = Audit(("commit",))
    trail.record("commit", DONE, {"user": "alice", "vm": "vm"})
    trail.record("commit", DONE, {"user": "bob"})
    [first, _] = caplog.records

    assert trail.counts["commit", DONE] == 2
    assert sum(trail.counts.values()) == 2
    assert (first.name, first.levelname, first.getMessage()) == (
        "exporter.admin.audit",
        "INFO",
        "action",
    )
    assert vars(first) | {
        "action": "commit", "result": "done", "user": "alice", "vm": "vm",
    } == vars(first)  # fmt: skip


@pytest.mark.parametrize(("action", "result"), [("other", REFUSED), ("commit", "odd"), ("x", "y")])
def test_what_is_no_action_is_told_and_not_counted(
    caplog: pytest.LogCaptureFixture, action: str, result: str
) -> None:
    """Whatever a client asks for makes no series."""
    trail = Audit(("commit",))
    trail.record(action, result, {})

    assert len(caplog.records) == 1
    assert trail.counts == Audit(("commit",)).counts


@pytest.mark.parametrize("kind", ["logfmt", "json"])
@pytest.mark.parametrize("level", ["debug", "info", "warn", "error"])
def test_a_line_is_written_whatever_the_level_of_others(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, kind: str, level: str
) -> None:
    """Once, as all lines are."""
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    set_up_logging(level, kind)
    Audit().record("auto_dismiss", DONE, {"vm": "a b\nc"})
    [line] = written.getvalue().splitlines()

    if kind == "json":
        told = json.loads(line)
        assert (told["action"], told["result"], told["vm"]) == ("auto_dismiss", "done", "a b\nc")
    else:
        assert line.endswith(r'msg=action action=auto_dismiss result=done vm="a b\nc"')


@pytest.mark.parametrize("kind", ["logfmt", "json"])
def test_whatever_is_said_stays_within_its_line(kind: str) -> None:
    """No name ends it, forges a member of it, or is obeyed by a terminal."""
    odd = "".join(map(chr, [*range(0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0xFEFF, 0xE000, 0xD800]))
    record = logging.makeLogRecord({"msg": "action", "vm": f"x result=done {odd}"})
    line = Formatter(kind).format(record)

    assert line.isprintable()
    assert " result=done" not in line.partition('"')[0]
