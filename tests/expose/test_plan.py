"""From a snapshot to the lines that Prometheus reads."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text_format

from exporter.expose.exposition import body
from exporter.expose.families import join
from exporter.expose.line_template import number
from exporter.expose.plan import Plan, render_exporter
from exporter.expose.samples import escape
from exporter.metrics.table import COLLECTORS
from exporter.metrics.types import Scope
from exporter.model.state import Counters, Device, Export, Exporter, Job, Node, VmEvents, VmState
from exporter.qmp import schema
from tests.conftest import samples, series
from tests.replay import replay, steps

#: Any text that UTF-8 can hold: a QMP reply cannot hold more.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def device(name: str = "disk0", **fields: object) -> schema.BlockStats:
    """A device with the fields of its stats given."""
    stats = schema.Stats()
    for field, value in fields.items():
        setattr(stats, field, value)
    return schema.BlockStats(stats=stats, device=name)


def of(*entries: schema.BlockStats, vm: str = "vm", **more: Any) -> VmState:
    """A VM with these devices, of which nothing else is known."""
    devices = tuple(
        Device(device=entry.device, nodes=(), backing_depth=None, expected_backing_depth=None)
        for entry in entries
    )
    return VmState(vm=vm, up=True, devices=devices, counters=Counters(entries), **more)


def text(*entries: schema.BlockStats, vm: str = "vm", without: tuple[str, ...] = ()) -> str:
    """Return the text exposition of a VM with these devices."""
    return join([Plan(without).render(of(*entries, vm=vm))], openmetrics=False).decode()


def test_a_field_that_qemu_did_not_report_gives_no_sample() -> None:
    """Never a zero for unknown."""
    assert not series(text(device()), "qemu_block_read_bytes_total")


def test_a_zero_that_qemu_reported_is_a_sample() -> None:
    """Known to be none is not unknown."""
    found = series(text(device(rd_bytes=0)), "qemu_block_read_bytes_total")

    assert list(found.values()) == ["0"]


def test_what_one_device_has_and_another_has_not_is_a_sample_of_the_one() -> None:
    """As the idle time of a device that was never used, beside one that was."""
    entries = device("a", idle_time_ns=None), device("b", idle_time_ns=5 * 10**8), device("c")
    found = series(text(*entries), "qemu_block_idle_seconds")

    assert found == {'qemu_block_idle_seconds{vm="vm",device="b"}': "0.5"}


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**64 - 1))
def test_counters_of_many_devices_are_exact(one: int, other: int) -> None:
    """Each as `number` writes it, also where a neighbour's went through a signed type."""
    found = series(
        text(device("a", rd_bytes=one), device("b", rd_bytes=other)), "qemu_block_read_bytes_total"
    )

    assert list(found.values()) == [number(one), number(other)]


@given(st.integers(0, 2**64 - 1))
def test_integers_are_exact(value: int) -> None:
    """Also above 2^53, where a float is not."""
    assert number(value) == str(value)


def test_an_unsigned_value_that_arrives_negative_is_put_right() -> None:
    """QEMU sends write_threshold as int64."""
    assert number(-1) == "18446744073709551615"


@given(st.integers(0, 2**63))
def test_nanoseconds_become_the_nearest_seconds(value: int) -> None:
    """Divided, not multiplied: 1e-9 is no binary number."""
    assert float(number(value, 10**9)) == value / 10**9


def test_histogram_bins_are_cumulative_and_end_at_infinity() -> None:
    """QEMU's bins count each for itself; it has no sum that belongs to them."""
    histogram = schema.Histogram(boundaries=[10_000, 1_000_000], bins=[3, 0, 2])
    found = text(device(rd_latency_histogram=histogram))

    assert [line for line in found.splitlines() if "latency" in line and line[0] != "#"] == [
        'qemu_block_read_latency_seconds_bucket{vm="vm",device="disk0",le="1e-05"} 3',
        'qemu_block_read_latency_seconds_bucket{vm="vm",device="disk0",le="0.001"} 3',
        'qemu_block_read_latency_seconds_bucket{vm="vm",device="disk0",le="+Inf"} 5',
    ]


def test_zone_appends_appear_once_one_was_made() -> None:
    """QEMU 10 reports them for every disk, and hardly any disk has zones."""
    fields: dict[str, Any] = {"zone_append_bytes": 0, "zone_append_operations": 0}
    idle, used = text(device(**fields)), text(device(**fields | {"zone_append_operations": 1}))

    assert "zone_append" not in idle
    assert series(used, "qemu_block_zone_appended_bytes_total")


def test_what_appears_together_appears_whatever_its_unit() -> None:
    """A first append that took no time that the clock could tell has a time of 0."""
    fields: dict[str, Any] = {"zone_append_operations": 1, "zone_append_total_time_ns": 0}
    found = series(text(device(**fields)), "qemu_block_zone_append_time_seconds_total")

    assert list(found.values()) == ["0.0"]


def test_lines_that_are_kept_follow_what_is_known() -> None:
    """The idle time of a device is there from its first request on; other lines stay as they were."""
    entries = [device("a", rd_bytes=1), device("b", rd_bytes=2, idle_time_ns=5)]
    plan, found = Plan(), []
    kept = plan.keep(of(*entries))
    stats: Any = entries[0].stats
    for idle in (None, 7, None):
        stats.idle_time_ns = idle
        found.append(plan.render(of(*entries), kept))
    fresh = [
        plan.render(of(device("a", rd_bytes=1, idle_time_ns=idle), entries[1]))
        for idle in (None, 7)
    ]

    assert found == [fresh[0], fresh[1], fresh[0]]
    assert fresh[0] != fresh[1]


def test_a_collector_that_is_off_gives_nothing() -> None:
    """Whoever does not want a group of families does not store it."""
    assert "read_bytes" in text(device(rd_bytes=1))
    assert "read_bytes" not in text(device(rd_bytes=1), without=("io",))


@pytest.mark.parametrize("collector", COLLECTORS)
async def test_each_collector_has_families_of_its_own(collector: str, sockets: Path) -> None:
    """Turned off, a collector takes series away and leaves all others as they were."""
    names = [s for s in steps("7.2", "a") if s[:3] in ("a02", "a03", "a04", "a09")]
    all_on: Counter[str] = Counter()
    without: Counter[str] = Counter()
    async for _, replayed, _ in replay("7.2", names, sockets):
        # No event was recorded in these steps, and no export.
        stopped = {Scope.VM_EVENT: [VmEvents("STOP", 1)]}
        served = (Export("backup", "nbd", "node"),)
        snapshot = msgspec.structs.replace(replayed, remembered=stopped, exports=served)
        all_on += _families(Plan().render(snapshot))
        without += _families(Plan((collector,)).render(snapshot))

    gone = all_on.keys() - without.keys()
    assert gone
    assert {name: all_on[name] for name in without} == dict(without)


def test_what_is_remembered_is_rendered_again_when_it_is_other_records() -> None:
    """Else its lines are those of the scrape before."""
    plan, kept = Plan(), Plan().keep(of())
    memories = [{Scope.VM_EVENT: [VmEvents("STOP", count)]} for count in (1, 2)]
    lines = [
        join([plan.render(msgspec.structs.replace(of(), remembered=each), kept)], openmetrics=False)
        for each in (memories[0], memories[0], memories[1], None)
    ]

    assert b'qemu_vm_events_total{vm="vm",event="STOP"} 1\n' in lines[0]
    assert lines[1] == lines[0]
    assert b'qemu_vm_events_total{vm="vm",event="STOP"} 2\n' in lines[2]
    assert b"events_total" not in lines[3]


def _families(blobs: tuple[bytes, ...]) -> Counter[str]:
    exposition = join([blobs], openmetrics=False).decode()
    return Counter(sample.split("{")[0] for sample in samples(exposition))


def test_an_unknown_state_is_shown_beside_the_known_ones() -> None:
    """A newer QEMU may have a state that this table has not."""
    snapshot = VmState(vm="vm", up=True, status="brand-new", running=False)
    found = series(join([Plan().render(snapshot)], openmetrics=False).decode(), "qemu_vm_status")

    assert [s for s, value in found.items() if value == "1"] == [
        'qemu_vm_status{vm="vm",status="brand-new"}'
    ]


def test_a_vm_that_is_down_has_its_reason_and_no_block_series() -> None:
    """Never zeros, never old values."""
    snapshot = VmState(vm="vm", up=False, reason="busy", last_seen_timestamp_seconds=7.5)
    found = samples(join([Plan().render(snapshot)], openmetrics=False).decode())

    assert found == {
        'qemu_vm_up{vm="vm"}': "0",
        'qemu_vm_scrape_error{vm="vm",reason="busy"}': "1",
        'qemu_vm_last_seen_timestamp_seconds{vm="vm"}': "7.5",
    }


def test_lines_of_one_family_stand_together() -> None:
    """Both formats demand it, however many VMs there are."""
    blobs = [Plan().render(of(device(rd_bytes=1), vm=vm)) for vm in "ab"]
    names = [
        line.split("{")[0]
        for line in join(blobs, openmetrics=False).decode().splitlines()
        if line[0] != "#"
    ]

    assert names == sorted(names, key=names.index)
    assert len(names) > len(set(names))


@example(vm="100%d", name="%", job_id="%s", error="%%")
@given(vm=TEXT, name=TEXT, job_id=TEXT, error=TEXT)
def test_any_label_text_round_trips_through_both_formats(
    vm: str, name: str, job_id: str, error: str
) -> None:
    """Quotes, backslashes, newlines and control characters come back as they were."""
    job = schema.BlockJob(device=job_id, type="commit")
    jobs = (Job(name, job_id, "commit", job, error=error),)
    snapshot = of(device(name, rd_bytes=1), vm=vm, jobs=jobs)
    blobs = [Plan().render(snapshot)]

    for parse, is_openmetrics in ((text_format, False), (openmetrics, True)):
        exposition = body(blobs, openmetrics=is_openmetrics, process=False).decode()
        found = {s.name: s for family in parse(exposition) for s in family.samples}
        assert found["qemu_block_read_bytes_total"].labels == {"vm": vm, "device": name}
        assert found["qemu_block_job_info"].labels["error"] == error
        assert found["qemu_block_job_info"].labels["job_id"] == job_id


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    """It has no UTF-8; to fail the scrape for it would be worse."""
    assert escape("a\ud800b") == "a?b"


async def test_both_formats_say_the_same(sockets: Path) -> None:
    """The lines are rendered once; only the heads differ."""
    async for _, snapshot, _ in replay("10.0", ["a09-commit-running"], sockets):
        blobs = [Plan().render(snapshot)]
    values = []
    for parse, is_openmetrics in ((text_format, False), (openmetrics, True)):
        exposition = body(blobs, openmetrics=is_openmetrics, process=False).decode()
        values.append(
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in parse(exposition)
                for sample in family.samples
            }
        )

    assert values[0] == values[1]
    assert len(values[0]) > 500


async def test_a_plain_disk_keeps_to_the_budget_of_series(sockets: Path) -> None:
    """At most 60 series a device and 12 a layer; a file that is seen adds 3 to a layer."""
    async for _, _, exposition in replay("10.0", ["a02-running"], sockets):
        found = samples(exposition)
    of_disk = [sample for sample in found if 'device="disk0"' in sample]
    layers = Counter(m[1] for s in of_disk if (m := re.search(r'layer="(\d+)"', s)))

    assert set(layers) == {"0", "1", "2"}
    assert max(layers.values()) + 3 <= 12
    assert 20 < len(of_disk) - sum(layers.values()) <= 60


def test_the_exporter_shows_itself() -> None:
    """Labelled counters have a line for each command."""
    blobs = render_exporter(
        Exporter(
            version="1", python_version="3", targets=2, targets_up=1, target_conflicts=0,
            reload_successful=True, commands={"query-block": 3},
            errors={("query-block", "GenericError"): 1},
        )
    )  # fmt: skip
    found = samples(join([blobs], openmetrics=False).decode())

    assert found['qemu_exporter_qmp_commands_total{command="query-block"}'] == "3"
    assert (
        found['qemu_exporter_qmp_errors_total{command="query-block",class="GenericError"}'] == "1"
    )
    assert found["qemu_exporter_targets_up"] == "1"


def test_a_node_that_nobody_uses_has_neither_device_nor_layer() -> None:
    """As in a storage daemon."""
    node = Node(layer="", role="protocol", node_name="n")
    stats: Any = schema.NodeStats()
    stats.wr_highest_offset = 5
    counters = Counters(free_nodes=[schema.BlockNode(stats=stats)])
    snapshot = VmState(vm="vm", up=True, free_nodes=(node,), counters=counters)
    exposition = join([Plan().render(snapshot)], openmetrics=False)

    name = "qemu_block_node_write_highest_offset_bytes"
    labels = 'vm="vm",device="",layer="",role="protocol",node_name="n"'
    assert samples(exposition.decode())[f"{name}{{{labels}}}"] == "5"
