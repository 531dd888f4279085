"""Images that nobody finds by their names: what is refused, and what is not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from exporter.admin import image_names, preconditions
from exporter.admin.preconditions import Found, Range
from exporter.model.state import Counters, FileName, ImageFile, Node, VmState
from exporter.qmp import schema
from tests.snapshots import CHAIN, disk, node, refused, vm


def look(*names: FileName, **more: Any) -> tuple[VmState, Found]:
    """A disk whose images have names of these kinds, from the active one down."""
    snapshot = vm(disk(*more.pop("layers", ()), **more))
    files = [ImageFile(name=name) for name in names]
    counters = Counters(devices=snapshot.counters.devices, files=files)
    snapshot = msgspec.structs.replace(snapshot, counters=counters)
    return snapshot, preconditions.device(snapshot, "disk0")


OWN, MISLEADING = FileName.OWN, (FileName.FDSET, FileName.REMOVED, FileName.OTHER)


@pytest.mark.parametrize("name", FileName)
def test_a_snapshot_needs_the_name_of_the_active_layer(name: FileName) -> None:
    """It goes into the header of the new one; a relative one is made absolute before."""
    case = look(name, OWN, OWN)
    if name not in MISLEADING:
        image_names.may_be_backing(*case)
        return

    assert refused(image_names.may_be_backing, *case) == (
        "unnamed-image",
        f"the name /images/top.qcow2 of layer 0 of disk0 {name.value}",
    )


def test_a_snapshot_does_not_need_the_names_of_other_layers() -> None:
    """They stand in headers already, and may do for QEMU as it runs."""
    image_names.may_be_backing(*look(OWN, FileName.REMOVED, FileName.FDSET))


@pytest.mark.parametrize("name", MISLEADING)
@pytest.mark.parametrize("layer", range(3))
def test_a_commit_needs_the_names_of_all_that_it_works_on(layer: int, name: FileName) -> None:
    """What is merged into a file without a name is gone with the VM."""
    names = [OWN, OWN, OWN]
    names[layer] = name
    snapshot, found = look(*names)
    for top, base in ((0, 1), (0, 2), (1, 2)):
        if not top <= layer <= base:
            image_names.may_be_merged(snapshot, found, Range(top, base))
            continue
        assert refused(image_names.may_be_merged, snapshot, found, Range(top, base)) == (
            "unnamed-image",
            f"the name /images/{CHAIN[layer]}.qcow2 of layer {layer} of disk0 {name.value}",
        )


def test_a_commit_does_not_write_a_relative_name_into_a_header() -> None:
    """The layer above may be in another directory; an active commit writes none."""
    layers = [node(0, "top"), node(1, "mid", "sub/mid.qcow2"), node(2, "base", "sub/base.qcow2")]
    case = look(OWN, FileName.RELATIVE, FileName.RELATIVE, layers=layers)

    image_names.may_be_merged(*case, Range(0, 2))
    problem, detail = refused(image_names.may_be_merged, *case, Range(1, 2))
    assert problem == "unnamed-image"
    assert detail.startswith("the name sub/base.qcow2 of layer 2 of disk0 is relative")


def test_what_cannot_be_seen_is_not_refused() -> None:
    """Nothing is known against it: in a container there is nothing to see."""
    snapshot = vm(disk())
    found = preconditions.device(snapshot, "disk0")

    image_names.may_be_backing(snapshot, found)
    image_names.may_be_merged(snapshot, found, Range(0, 2))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("/dev/fdset/1", True),
        ("b.qcow2", True),
        ("/images/b.qcow2", False),
        ("nbd://host/b", False),
    ],
)
def test_an_image_that_its_name_does_not_tell_may_be_a_shared_layer(file: str, said: bool) -> None:
    """Of a VM whose open files cannot be seen."""
    protocol = Node(layer="0", role="protocol", node_name="p", image=schema.Image("q.raw", "file"))
    why = image_names.unseen(vm(disk(node(0, "top"), protocol, node(1, "base", file))))

    assert why == (f"has an image that its name does not identify, {file}" if said else "")


def test_a_layer_that_is_not_a_file_has_no_relative_name() -> None:
    """Nor is an image needed that is not known: of those others decide."""
    far = [node(0, "top"), node(1, "mid"), node(2, "base", "nbd://host/base")]
    blind = [node(0, "top"), node(1, "mid"), Node(layer="2", role="format", node_name="base")]

    for layers in (far, blind):
        image_names.may_be_merged(*look(OWN, OWN, FileName.UNSEEN, layers=layers), Range(1, 2))
    assert image_names.unseen(vm(disk(*blind))) == ""


def test_names_are_those_of_the_nodes_that_have_counters() -> None:
    """A filter has a node and no file of its own: those behind it are not taken for others."""
    throttle = Node(layer="0", role="filter", node_name="throttle")
    chain = disk(throttle, node(0, "top"), node(1, "base"))
    layers = look(OWN, FileName.REMOVED, layers=chain.nodes)

    image_names.may_be_backing(*layers)
    assert refused(image_names.may_be_merged, *layers, Range(0, 1)) == (
        "unnamed-image",
        f"the name /images/base.qcow2 of layer 1 of disk0 {FileName.REMOVED.value}",
    )
