"""Replies of any shape are parsed or refused, and never make two equal series."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import ProtocolError
from exporter.expose.families import join
from exporter.expose.plan import Plan
from exporter.model import build
from exporter.model.build import Topology
from exporter.model.chain import walk
from exporter.model.device_names import join_key
from exporter.model.state import Device, VmState
from exporter.qmp import queries, schema
from exporter.qmp.queries import Query
from tests.conftest import samples, series

NAMES = st.sampled_from(["", "disk0", "disk1", "a\nb", '"'])
QDEVS = st.sampled_from(["", "ide0-0-0", "/machine/peripheral/disk0/virtio-backend"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda child: (
        st.lists(child, max_size=3)
        | st.dictionaries(
            st.sampled_from(["return", "error", "event", "stats", "device", "inserted", "class"]),
            child,
            max_size=4,
        )
    ),
    max_leaves=15,
)
ENTRY = st.recursive(
    st.builds(lambda name: {"node-name": name, "stats": {"wr_highest_offset": 1}}, NAMES),
    lambda child: st.builds(
        lambda name, parent, backing: {
            "node-name": name,
            "stats": {"rd_bytes": 7, "wr_highest_offset": -1},
            "parent": parent,
            **({"backing": backing} if backing else {}),
        },
        NAMES, child, st.none() | child,
    ),
    max_leaves=6,
)  # fmt: skip


def entries(*values: Any, query: Query[Any] = queries.BLOCKSTATS) -> Any:
    """Decode entries of query-blockstats."""
    return query.decoder.decode(json.dumps({"return": values})).return_


def blocks(*values: Any) -> list[schema.BlockInfo]:
    """Decode entries of query-block."""
    return msgspec.convert(values, list[schema.BlockInfo])


def image(filename: str, **more: Any) -> dict[str, Any]:
    """An ImageInfo."""
    return {"filename": filename, "format": "qcow2", "virtual-size": 1, **more}


def inserted(filename: str, node: str = "n0", **more: Any) -> dict[str, Any]:
    """A BlockDeviceInfo."""
    found = image(filename, **more.pop("image", {}))
    return {
        "file": filename,
        "drv": "qcow2",
        "ro": False,
        "node-name": node,
        "image": found,
        **more,
    }


def devices(stats: list[Any], info: list[Any], **topology: Any) -> tuple[Device, ...]:
    """Parse two replies that belong together."""
    by_key = {join_key(block): block for block in blocks(*info)}
    known = Topology(blocks=by_key, **topology)
    return build.devices(entries(*stats), known, lambda device: 0).found


def rendered(found: build.Devices, told: list[schema.BlockStats]) -> str:
    """Return the text of a VM with these devices."""
    counters = build.count(found, told, walk(told))
    snapshot = VmState(vm="v", up=True, devices=found.found, counters=counters)
    return join([Plan().render(snapshot)], openmetrics=False).decode()


@given(JSON)
def test_any_json_is_decoded_or_refused(tree: Any) -> None:
    """No reply, however odd, raises anything that is not expected."""
    wire = json.dumps(tree)
    for query in (
        queries.BLOCKSTATS,
        queries.BLOCK,
        queries.BLOCK_JOBS,
        queries.STATUS,
        queries.GRAPH,
    ):
        try:
            query.decoder.decode(wire)
        except msgspec.DecodeError:
            continue


@settings(max_examples=300)
@given(
    st.lists(st.tuples(NAMES, QDEVS, ENTRY), max_size=4),
    st.sampled_from([queries.BLOCKSTATS, queries.LAYERSTATS]),
)
def test_no_two_series_are_ever_equal(
    found: list[tuple[str, str, dict[str, Any]]], query: Query[Any]
) -> None:
    """What would make two equal series is refused for that VM instead."""
    stats = [{**entry, "device": device, "qdev": qdev} for device, qdev, entry in found]
    told = entries(*stats, query=query)
    try:
        parsed = build.devices(told, None, lambda device: 0)
    except ProtocolError:
        return

    samples(rendered(parsed, told))  # asserts that no series stands twice


def test_a_device_and_its_image_are_joined_by_name() -> None:
    """The order of the two replies does not matter."""
    stats: list[dict[str, Any]] = [
        {"device": d, "node-name": f"n-{d}", "stats": {}} for d in ("a", "b")
    ]
    info = [{"device": d, "inserted": inserted(f"/{d}", f"n-{d}")} for d in ("b", "a")]

    assert [(d.device, d.file) for d in devices(stats, info)] == [("a", "/a"), ("b", "/b")]


def test_a_chain_that_query_block_tells_differently_is_not_published() -> None:
    """Around a pivot one command of a scrape may see the old chain and the next the new one."""
    stats = [{"device": "a", "node-name": "new", "stats": {"rd_bytes": 1}}]
    known = Topology(blocks={"a": blocks({"device": "a", "inserted": inserted("/a", "old")})[0]})
    told = entries(*stats)
    found = build.devices(told, known, lambda device: 0)

    assert (found.found[0].block, found.found[0].file) == (None, "")
    assert 'qemu_block_read_bytes_total{vm="v",device="a"} 1' in rendered(found, told)


def test_an_empty_drive_is_a_device_without_medium_and_without_depth() -> None:
    """As the cdrom of a VM that has none in it."""
    (found,) = devices([{"device": "cd", "stats": {}}], [{"device": "cd", "removable": True}])

    assert (found.inserted, found.backing_depth, found.removable) == (False, None, "true")


def test_limits_of_a_filter_come_from_its_group() -> None:
    """query-block has only zeros for a device below a throttle filter."""
    filter_name = 'json:{"throttle-group": "grp1", "driver": "throttle", "file": {}}'
    below = {"node-name": "n0", "stats": {}}
    stats = [{"device": "a", "node-name": "f", "stats": {}, "parent": below, "backing": below}]
    top = {"format": "throttle", "backing-image": image("/a")}
    info = [{"device": "a", "inserted": inserted(filter_name, "f", bps=0, image=top)}]
    limits = {"grp1": schema.limits_of_group({"bps-write": 5, "iops-total": 7, "iops-size": 0})}
    known = Topology(blocks={"a": blocks(*info)[0]}, limits=limits)
    told = entries(*stats)
    lines = rendered(build.devices(told, known, lambda device: 0), told)
    labels = 'vm="v",device="a",throttle_group="grp1"'

    assert {s: v for s, v in samples(lines).items() if "_throttle_" in s} == {
        f"qemu_block_throttle_write_bytes_per_second{{{labels}}}": "5",
        f"qemu_block_throttle_total_operations_per_second{{{labels}}}": "7",
    }


def test_a_burst_has_its_length_only_where_there_is_a_burst() -> None:
    """QEMU reports a length of 1 for every limit of a group."""
    limits: Any = schema.limits_of_group(
        {"bps-read-max": 0, "bps-read-max-length": 1, "bps-write-max": 9, "bps-write-max-length": 2}
    )

    assert (limits.bps_rd_max_length, limits.bps_wr_max_length) == (None, 2)


def test_bitmaps_without_a_name_belong_to_jobs_and_are_left_out() -> None:
    """A backup keeps two of them for itself."""
    bitmap = {
        "granularity": 65536,
        "count": 1,
        "recording": True,
        "busy": False,
        "persistent": True,
    }
    info = {**inserted("/a"), "dirty-bitmaps": [{**bitmap, "name": "daily"}, bitmap]}
    stats = [{"device": "a", "node-name": "n0", "stats": {}}]
    (found,) = devices(stats, [{"device": "a", "inserted": info}])

    assert [(b.bitmap, b.node_name) for b in found.bitmaps] == [("daily", "n0")]


def test_free_nodes_are_those_that_no_device_uses() -> None:
    """A storage daemon has nothing but these."""
    used = {"node-name": "format", "stats": {}, "parent": {"node-name": "file", "stats": {}}}
    free = {"node-name": "spare", "stats": {}}
    nodes = entries(used, used["parent"], free, query=queries.NODESTATS)

    found, counters = build.free_nodes(nodes, entries({"device": "a", **used}))
    assert list(counters) == nodes[2:]
    assert [(node.node_name, node.role, node.layer) for node in found] == [
        ("spare", "protocol", "")
    ]


@pytest.mark.parametrize(
    ("package", "node", "manager"),
    [
        ("pve-qemu-kvm_9.2.0-5", "drive-scsi0", "proxmox"),
        ("Debian 1:7.2", "libvirt-1-format", "libvirt"),
        ("", "incus_root", "incus"),
        ("", "#block123", ""),
    ],
)
def test_the_manager_is_known_by_its_names(package: str, node: str, manager: str) -> None:
    """The names of nodes, and the package string of the greeting."""
    assert build.manager(package, entries({"node-name": node, "stats": {}})) == manager


def test_a_job_that_is_no_block_job_has_a_ratio_and_no_bytes() -> None:
    """snapshot-save and create are only in query-jobs; a total of 0 is no ratio."""
    other = schema.JobInfo(
        id="s", type="snapshot-save", status="running", current_progress=1, total_progress=4
    )
    (job,) = build.jobs([], [other], {})
    text = join([Plan().render(VmState(vm="v", up=True, jobs=(job,)))], openmetrics=False).decode()

    assert list(series(text, "qemu_block_job_progress_ratio").values()) == ["0.25"]
    assert not series(text, "qemu_block_job_offset_bytes")
    assert series(text, "qemu_block_job_status", status="running")
    assert (
        build.jobs([], [msgspec.structs.replace(other, total_progress=0)], {})[0].progress_ratio
        is None
    )


def test_two_jobs_of_one_id_are_refused() -> None:
    """QEMU never has them; two equal series would cost the whole scrape."""
    job = schema.BlockJob(device="j", type="commit")
    with pytest.raises(ProtocolError, match="two jobs"):
        build.jobs([job, job], [], {})


def test_two_equal_intervals_are_one() -> None:
    """QEMU takes stats-intervals of one length twice; two equal series would cost the scrape."""
    timed = {"interval_length": 60, "avg_rd_latency_ns": 5}
    stats = [{"device": "a", "stats": {"timed_stats": [timed, timed]}}]
    found = build.intervals(entries(*stats)[0])

    assert [interval.interval_seconds for interval in found] == ["60"]


def test_a_device_and_a_drive_of_one_name_have_each_their_own_image() -> None:
    """They are joined by both names that QEMU has for them."""
    stats = [
        {"device": "disk0", "node-name": "n0", "stats": {}},
        {"device": "", "qdev": "disk0", "node-name": "n1", "stats": {}},
    ]
    info = [
        {"device": "disk0", "inserted": inserted("/drive", "n0")},
        {"device": "", "qdev": "disk0", "inserted": inserted("/device", "n1")},
    ]

    assert [(d.device, d.file) for d in devices(stats, info)] == [
        ("disk0", "/drive"),
        ("peripheral/disk0", "/device"),
    ]


def test_a_drive_is_joined_where_query_block_alone_knows_its_qdev() -> None:
    """QEMU 2.10 to 2.12: query-blockstats has no qdev before 3.0."""
    stats = [{"device": "disk0", "node-name": "n0", "stats": {}}]
    info = [{"device": "disk0", "qdev": "x", "inserted": inserted("/drive", "n0")}]

    assert [(d.device, d.file) for d in devices(stats, info)] == [("disk0", "/drive")]
