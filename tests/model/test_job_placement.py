"""Where a job works, by QEMU's own graph of the block layer."""

from __future__ import annotations

from typing import Any

import msgspec

from exporter.model.job_placement import Merge, Place, place_job
from exporter.qmp import schema


def graph(*edges: str) -> schema.Graph:
    """Build a graph of `parent -name-> child`; `job:` and `dev:` tell what is no node."""
    types = {"job": "block-job", "dev": "block-backend"}
    ids: dict[str, int] = {}
    links = []
    for edge in edges:
        parent, name, child = edge.split(" ", 2)
        for end in (parent, child):
            ids.setdefault(end, len(ids) + 1)
        links.append({"parent": ids[parent], "child": ids[child], "name": name.replace("_", " ")})
    nodes = []
    for end, number in ids.items():
        kind, colon, name = end.partition(":")
        nodes.append(
            {"id": number, "type": types.get(kind, "block-driver") if colon else "block-driver",
             "name": name if colon else end}
        )  # fmt: skip
    return msgspec_graph({"nodes": nodes, "edges": links})


def msgspec_graph(tree: dict[str, Any]) -> schema.Graph:
    """Decode a graph as a session does."""
    found: schema.Graph = msgspec.convert(tree, schema.Graph)
    return found


def device_of(*asked: Any) -> str:
    """Return the device of the place of a job, which is found."""
    place = place_job(*asked)
    assert place is not None
    return place.device


def disk(device: str, *layers: str, qdev: str = "") -> schema.BlockStats:
    """An entry of query-blockstats with a chain of named layers."""
    entry: schema.BlockStats | None = None
    for name in reversed(layers):
        entry = schema.BlockStats(stats=schema.Stats(), node_name=name, backing=entry)
    assert entry is not None
    entry.device, entry.qdev = device, qdev
    return entry


CHAIN = ("dev:disk0 root filter", "filter backing top", "top backing mid", "mid backing base")


def test_an_active_commit_works_from_its_source_down_to_its_target() -> None:
    """The filter above the disk is the job's main node."""
    found = graph(
        *CHAIN, "job:j main_node filter", "job:j source top", "job:j intermediate_node mid",
        "job:j target base",
    )  # fmt: skip

    place = place_job("j", found, [disk("disk0", "top", "mid", "base")])
    assert place == Place("disk0", "0", "2", Merge(["top", "mid", "base"], used=True))


def test_an_intermediate_commit_leaves_the_active_layer_out() -> None:
    """Its nodes are below the root, and still of that disk."""
    found = graph(
        "dev:disk0 root top", "top backing f", "f backing mid", "mid backing base",
        "job:j main_node f", "job:j intermediate_node mid", "job:j base base",
    )  # fmt: skip

    assert place_job("j", found, [disk("disk0", "top", "mid", "base")]) == Place("disk0", "1", "2")


def test_a_device_without_a_drive_name_is_found_by_its_path() -> None:
    """As all disks of libvirt."""
    path = "/machine/peripheral/virtio-disk0/virtio-backend"
    found = graph(f"dev:{path} root top", "job:j source top")

    assert device_of("j", found, [disk("", "top", qdev=path)]) == "virtio-disk0"


def test_a_shared_base_does_not_make_the_other_disk_the_jobs() -> None:
    """The disk whose root is nearest above the job's nodes is the one."""
    found = graph(
        "dev:a root a0", "a0 backing base", "dev:b root b0", "b0 backing base",
        "job:j main_node b0", "job:j source b0", "job:j base base",
    )  # fmt: skip

    assert device_of("j", found, [disk("a", "a0", "base"), disk("b", "b0", "base")]) == "b"


def test_the_target_of_a_mirror_is_not_the_disk_that_it_works_on() -> None:
    """It may be attached to the same VM."""
    found = graph(
        "dev:copy root target", "dev:disk0 root top", "job:j source top", "job:j target target"
    )

    entries = [disk("copy", "target"), disk("disk0", "top")]
    assert device_of("j", found, entries) == "disk0"


def test_without_the_graph_the_id_tells_if_it_is_a_devices_name() -> None:
    """QEMU before 4.0; the id is the drive's name unless somebody said otherwise."""
    entries = [disk("disk0", "top")]

    assert device_of("disk0", None, entries) == "disk0"
    assert device_of("backup-1", None, entries) == ""


def test_a_job_on_no_device_has_none() -> None:
    """As all jobs of a storage daemon."""
    assert place_job("j", graph("job:j source top"), []) == Place()


def test_of_a_commit_that_is_ending_half_of_the_layers_are_not_told() -> None:
    """Its other edges are gone already."""
    found = graph("dev:disk0 root top", "top backing base", "job:j base base")
    place = place_job("j", found, [disk("disk0", "top", "base")])

    assert place == Place("disk0")


def test_a_mirror_to_another_image_merges_nothing() -> None:
    """It has a source and a target as well, but one does not stand on the other."""
    found = graph(
        "dev:disk0 root filter", "filter backing top", "top backing base", "copy backing base",
        "job:j main_node filter", "job:j source top", "job:j target copy",
    )  # fmt: skip
    place = place_job("j", found, [disk("disk0", "top", "base")])

    assert place is not None
    assert place.merge is None


def test_a_commit_into_a_filter_merges_into_the_layer_below_it() -> None:
    """Filters are not layers: the disk is on that layer when the commit is completed."""
    found = graph(
        "dev:disk0 root job_filter", "job_filter backing top", "top backing throttle",
        "throttle file base", "job:j main_node job_filter", "job:j source top",
        "job:j target throttle",
    )  # fmt: skip
    entry = disk("disk0", "top", "throttle", "base")
    assert entry.backing is not None
    entry.backing.parent = entry.backing.backing  # as a filter lists what is below it

    place = place_job("j", found, [entry])
    assert place == Place("disk0", "0", "1", Merge(["top", "base"], used=True))
