"""Backing chains of any shape: filters are what QEMU's own structure says, wherever they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from exporter.model import build, chain
from exporter.model.state import Device
from exporter.qmp.schema import BlockInfo, BlockStats

#: Drivers that are filters, formats, and one that no list knows.
_DRIVERS = ("throttle", "copy-on-read", "commit_top", "copy-before-write", "brand-new", "qcow2")


@dataclass(frozen=True)
class Item:
    """A node of a chain, from the root down."""

    name: str
    driver: str
    is_filter: bool = False


def stats(items: list[Item], *, named: bool = True) -> dict[str, Any]:
    """Return what query-blockstats tells: a filter lists what it filters twice."""
    below: dict[str, Any] = {}
    for item in reversed(items):
        file = {"node-name": f"{item.name}-file", "stats": {}}
        node: dict[str, Any] = {"stats": {}, "parent": below if item.is_filter else file}
        if below:
            node["backing"] = below
        below = node | ({"node-name": item.name} if named else {})
    return below | {"device": "disk0"}


def block(items: list[Item]) -> dict[str, Any]:
    """Return what query-block tells: an image of each node, filters among them."""
    image: dict[str, Any] = {}
    for item in reversed(items):
        below = {"backing-image": image} if image else {}
        image = {"filename": f"/{item.name}", "format": item.driver, "virtual-size": 1, **below}
    root = {"node-name": items[0].name, "file": f"/{items[0].name}", "drv": items[0].driver}
    return {"device": "disk0", "inserted": {**root, "ro": False, "image": image}}


def device(entry: dict[str, Any], info: dict[str, Any]) -> Device:
    """Return the device that the two answers become."""
    topology = build.Topology({"disk0": msgspec.convert(info, BlockInfo)})
    found = build.devices([msgspec.convert(entry, BlockStats)], topology, lambda _: 0).found
    return found[0]


def layers(each: Device) -> list[tuple[str, str, str]]:
    """Return number, node and file of each layer."""
    return [(n.layer, n.node_name, n.file) for n in each.nodes if n.role == "format"]


def told(*names: str) -> list[tuple[str, str, str]]:
    """What `layers` returns of a chain of these nodes."""
    return [(str(index), name, f"/{name}") for index, name in enumerate(names)]


@st.composite
def chains(draw: st.DrawFn) -> list[Item]:
    """Draw layers with any number of filters above each."""
    items: list[Item] = []
    for layer in range(draw(st.integers(1, 4))):
        drivers = draw(st.lists(st.sampled_from(_DRIVERS), max_size=2))
        items += [Item(f"f{layer}.{n}", driver, True) for n, driver in enumerate(drivers)]
        items.append(Item(f"l{layer}", "qcow2"))
    return items


@given(chains())
def test_filters_anywhere_leave_the_same_layers(items: list[Item]) -> None:
    """Whatever they are called: each layer has its file, and the disk all that it has without."""
    names = [item.name for item in items if not item.is_filter]
    each = device(stats(items), block(items))

    assert layers(each) == told(*names)
    assert each.inserted is True
    assert each.backing_depth == len(names) - 1
    assert (each.node_name, each.driver, each.file) == (names[0], "qcow2", f"/{names[0]}")
    lasting = [i.name for i in items if i.is_filter and i.driver in chain.LASTING_FILTERS]
    assert [node.node_name for node in each.nodes if node.role == "filter"] == lasting


@given(chains())
def test_a_chain_knows_its_root_and_how_deep_each_filter_stands(items: list[Item]) -> None:
    """The root is what QEMU says, not the first filter on the way."""
    found = chain.of_nodes(msgspec.convert(stats(items), BlockStats))

    assert found.root_name == items[0].name
    above = {f"f{layer}.{n}": layer for layer in range(4) for n in range(2)}
    assert {each.node.node_name: each.depth for each in found.filters} == {
        item.name: above[item.name] for item in items if item.is_filter
    }


def test_a_filter_of_a_qemu_that_names_no_node_is_known_by_its_driver() -> None:
    """QEMU 2.x names nothing, and no structure shows what a filter is."""
    items = [Item("f", "mirror_top", True), Item("top", "qcow2"), Item("base", "qcow2")]
    entry, info = stats(items, named=False), block(items)
    del info["inserted"]["node-name"]

    assert [file for _, _, file in layers(device(entry, info))] == ["/top", "/base"]


def test_a_layer_with_several_data_files_is_no_filter() -> None:
    """A VMDK of several extents has no `parent` either."""
    items = [Item("top", "vmdk"), Item("base", "vmdk")]
    entry = stats(items)
    del entry["parent"]

    assert layers(device(entry, block(items))) == told("top", "base")


def test_two_answers_of_different_moments_do_not_mix() -> None:
    """Another root, or another driver than the node has, is another chain."""
    top, middle, base = Item("top", "qcow2"), Item("middle", "qcow2"), Item("base", "qcow2")
    filtered = Item("middle", "commit_top", True)

    for before, after in (
        ([top, base], [middle, base]),
        ([top, middle, base], [top, filtered, base]),
        ([top, middle, base], [top, base]),
    ):
        each = device(stats(before), block(after))
        assert each.inserted is None
        assert [file for _, _, file in layers(each)] == [""] * len(before)


def test_a_filter_of_a_job_that_came_between_the_two_answers_costs_nothing() -> None:
    """Its driver is known, and the layers are the same."""
    plain = [Item("top", "qcow2"), Item("base", "qcow2")]
    busy = [plain[0], Item("cf", "commit_top", True), plain[1]]

    assert layers(device(stats(plain), block(busy))) == told("top", "base")
    assert layers(device(stats(busy), block(plain))) == told("top", "base")


def test_a_bitmap_is_that_of_the_root_node() -> None:
    """query-block lists no other; a filter may have bitmaps of its own."""
    items = [Item("f", "copy-before-write", True), Item("top", "qcow2")]
    info = block(items)
    bitmap = {"name": "b", "count": 0, "granularity": 65536, "recording": True, "busy": False}
    info["inserted"]["dirty-bitmaps"] = [{**bitmap, "persistent": False}]

    assert [b.node_name for b in device(stats(items), info).bitmaps] == ["f"]


def test_the_nodes_of_a_quorum_are_named_where_qemu_tells_them() -> None:
    """QEMU 11.1 lists the children of the root node; nothing is counted of them."""
    items = [Item("q", "quorum")]
    entry, info = stats(items), block(items)
    del entry["parent"]
    names = {"children.0": "one", "children.1": "two"}
    info["inserted"]["children"] = [{"child": c, "node-name": n} for c, n in names.items()]
    each = device(entry, info)

    assert [(n.role, n.node_name) for n in each.nodes] == [
        ("format", "q"), ("protocol", "one"), ("protocol", "two"),
    ]  # fmt: skip
    assert [node.counts for node in each.nodes] == [True, False, False]


def test_how_much_an_inconsistent_bitmap_has_marked_is_not_known() -> None:
    """QEMU says 0 of one that was not saved."""
    items = [Item("top", "qcow2")]
    info = block(items)
    bitmap = {"name": "b", "count": 0, "granularity": 65536, "persistent": True}
    info["inserted"]["dirty-bitmaps"] = [{**bitmap, "inconsistent": True}]
    (found,) = device(stats(items), info).bitmaps

    assert getattr(found.state, "count", None) is None
    assert getattr(found.state, "granularity", None) == 65536
