"""A snapshot as the HTTP API shows it: what is not known is null, never 0 and never empty."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from exporter import api
from exporter.admin import present
from exporter.admin.job_records import JobRecord
from exporter.jobs.outcomes import End
from exporter.jobs.verdict import RESULTS
from exporter.model.state import Device, Job, Node, VmState
from exporter.qmp import schema
from tests.disks import block_job
from tests.snapshots import disk, vm

END = End("commit", "disk0", "failed", 7.0, "No space left on device")
ENTRY = JobRecord(
    vm="vm",
    job_id="qbe-1",
    job_type="commit",
    device="disk0",
    user="alice",
    request={"action": "commit", "device": "disk0"},
    requested_timestamp_seconds=5.0,
    top=0,
    base=1,
)


def job(**more: Any) -> Job:
    """A commit of the whole of disk0."""
    told = msgspec.convert(block_job("qbe-1", **more), schema.BlockJob)
    return Job("disk0", "qbe-1", "commit", told, "0", "1")


def test_a_vm_that_is_down_has_its_name_and_why() -> None:
    """And nothing else: no 0 that an alert would take for a number."""
    down = msgspec.to_builtins(present.vm(VmState(vm="vm", up=False, reason="busy"), []))
    known = {name: value for name, value in down.items() if value is not None}

    assert known == {"vm": "vm", "up": False, "reason": "busy", "devices": [], "jobs": []}


def test_a_vm_that_is_up_is_counted() -> None:
    """The deepest chain among those that are known."""
    blind = msgspec.structs.replace(disk(name="b"), backing_depth=None)
    shown = present.summary(vm(disk(), disk("x", name="a"), blind, jobs=(job(),)))

    assert (shown.device_count, shown.job_count, shown.backing_depth_max) == (3, 1, 2)
    assert present.summary(vm(blind)).backing_depth_max is None


def test_what_a_vm_does_not_say_is_null() -> None:
    """Its name and its manager are empty inside, and nothing outside."""
    shown = present.summary(vm())

    assert (shown.name, shown.manager, shown.qemu_version, shown.socket) == (None,) * 4


@pytest.mark.parametrize(("word", "shown"), [("true", True), ("false", False), ("", None)])
def test_whether_a_device_is_read_only_is_a_boolean(word: str, shown: bool | None) -> None:
    """The label of the metric is a word."""
    assert present.device(disk(read_only=word)).read_only is shown


def test_the_layers_of_a_device_are_those_that_hold_data() -> None:
    """Neither filters nor the nodes of files."""
    nodes = (
        Node(layer="0", role="format", node_name="top"),
        Node(layer="0", role="protocol", node_name="top-file"),
        Node(layer="1", role="format", node_name=""),
        Node(layer="", role="filter", node_name="throttle"),
    )
    each = Device(device="d", nodes=nodes, backing_depth=1, expected_backing_depth=None)
    shown = present.device(each)

    assert [(layer.layer, layer.node_name) for layer in shown.layers] == [(0, "top"), (1, None)]
    assert (shown.layers[0].file, shown.layers[0].driver) == (None, None)
    assert shown.expected_backing_depth is None


def test_a_job_has_what_qemu_says_of_it() -> None:
    """By the names of the metrics."""
    shown = present.job("vm", job(speed=9, ready=True, status="ready"))

    assert (shown.offset_bytes, shown.length_bytes, shown.speed_limit_bytes_per_second) == (
        25, 100, 9,
    )  # fmt: skip
    assert (shown.status, shown.ready, shown.top, shown.base) == ("ready", True, 0, 1)
    assert (shown.outcome, shown.error, shown.ended_timestamp_seconds) == (None, None, None)


def test_what_an_old_qemu_does_not_say_of_a_job_is_null() -> None:
    """QEMU 2.0 has neither status nor ready, and nobody knows where the job works."""
    old = msgspec.convert({"device": "j", "type": "commit", "offset": 0}, schema.BlockJob)
    shown = present.job("vm", Job("", "j", "commit", old))

    assert (shown.device, shown.status, shown.ready, shown.top, shown.base) == (None,) * 5
    assert shown.offset_bytes == 0


@pytest.mark.parametrize("status", ["created", "running", "ready", "standby", "pending", "null"])
def test_an_end_is_not_that_of_a_job_that_goes_on(status: str) -> None:
    """It is that of an earlier job with the same id."""
    shown = present.job("vm", job(status=status), END)

    assert (shown.outcome, shown.ended_timestamp_seconds) == (None, None)


@pytest.mark.parametrize(("kind", "first_seen"), [("backup", None), ("commit", 1.0)])
def test_an_end_is_not_that_of_a_later_job_with_the_same_id(
    kind: str, first_seen: float | None
) -> None:
    """Another type, or first seen at another time."""
    listed = msgspec.structs.replace(job(status="concluded"), first_seen_timestamp_seconds=2.0)
    end = End(kind, "disk0", "completed", 7.0, "", first_seen)
    same = End("commit", "disk0", "completed", 7.0, "", 2.0)

    assert present.job("vm", listed, end).outcome is None
    assert present.job("vm", listed, same).outcome == "completed"


def test_a_job_that_waits_to_be_dismissed_has_its_end() -> None:
    """QEMU has it still, and it has ended."""
    shown = present.job("vm", job(status="concluded"), END)

    assert (shown.status, shown.outcome, shown.ended_timestamp_seconds) == (
        "concluded", "failed", 7.0,
    )  # fmt: skip


def test_a_job_that_qemu_has_no_more_is_how_it_ended() -> None:
    """Whoever started it."""
    shown = msgspec.to_builtins(present.ended("vm", "j", END))

    assert {name: value for name, value in shown.items() if value is not None} == {
        "vm": "vm", "job_id": "j", "job_type": "commit", "device": "disk0", "outcome": "failed",
        "error": "No space left on device", "ended_timestamp_seconds": 7.0,
    }  # fmt: skip


def test_a_job_on_record_is_as_the_account_has_it() -> None:
    """Without an outcome as long as it has none."""
    shown = msgspec.to_builtins(present.recorded(ENTRY))
    ended = present.recorded(ENTRY.with_end(END))

    assert {name: value for name, value in shown.items() if value is not None} == {
        "vm": "vm", "job_id": "qbe-1", "job_type": "commit", "device": "disk0", "top": 0, "base": 1,
    }  # fmt: skip
    assert (ended.outcome, ended.error, ended.ended_timestamp_seconds) == (
        "failed", "No space left on device", 7.0,
    )  # fmt: skip


@pytest.mark.parametrize("result", RESULTS)
def test_every_result_is_an_outcome_of_the_api(result: str) -> None:
    """A new one is described, or this fails."""
    shown = present.ended("vm", "j", End("commit", "", result, 1.0, ""))

    assert msgspec.convert(msgspec.to_builtins(shown), api.Job).outcome == result
