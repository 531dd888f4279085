"""What must be so before a VM is changed: each guard alone, on both sides of its boundary."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from exporter import api
from exporter.admin import preconditions, present
from exporter.admin.preconditions import Found, Range
from exporter.errors import Refused
from exporter.model import chain
from exporter.model.state import Device, Node, VmState
from exporter.qmp import schema
from exporter.qmp.commands import DiskName, LayerName, Qemu
from tests.snapshots import CHAIN, STATUSES, disk, job, node, refused, vm


def qemu(migration: str = "") -> Qemu:
    """What a QEMU can do, and whether it is being migrated."""
    return Qemu((7, 2, 0), (), migration=migration)


def found(*layers: str | Node, **more: Any) -> Found:
    """A device as the guards of requests have it."""
    return preconditions.device(vm(disk(*layers, **more)), "disk0")


def commit(**more: Any) -> api.Commit:
    """A request."""
    return api.Commit(action="commit", device="disk0", **more)


# The VM.


@pytest.mark.parametrize(
    "status",
    [
        "colo",
        "finish-migrate",
        "inmigrate",
        "internal-error",
        "postmigrate",
        "restore-vm",
        "save-vm",
    ],
)
def test_the_disks_of_a_vm_on_its_way_are_left_alone(status: str) -> None:
    """They belong to another QEMU, or must stay as they are."""
    assert refused(preconditions.steady, vm(status=status), qemu()) == (
        "wrong-vm-state",
        f"vm is in the state {status}",
    )


@pytest.mark.parametrize(
    "status",
    ["debug", "io-error", "guest-panicked", "paused", "prelaunch", "running", "shutdown",
     "suspended", "watchdog", None],
)  # fmt: skip
def test_a_vm_in_any_other_state_may_be_changed(status: str | None) -> None:
    """The storage daemon has no state at all."""
    preconditions.steady(vm(status=status), qemu())


@pytest.mark.parametrize(
    "migration",
    ["setup", "active", "device", "pre-switchover", "wait-unplug", "postcopy-active",
     "postcopy-paused", "postcopy-recover", "cancelling", "colo", "a state of QEMU to come"],
)  # fmt: skip
def test_a_vm_that_is_being_migrated_is_left_alone_while_it_runs(migration: str) -> None:
    """Its RunState is that of any other; the other side opens the disks as they were."""
    assert refused(preconditions.steady, vm(), qemu(migration)) == (
        "wrong-vm-state",
        f"vm is being migrated: {migration}",
    )


@pytest.mark.parametrize("migration", ["", "none", "completed", "failed", "cancelled"])
def test_a_vm_that_stayed_or_has_arrived_may_be_changed(migration: str) -> None:
    """One that has left is known by its RunState; who was never migrated has no status."""
    preconditions.steady(vm(), qemu(migration))
    assert (
        refused(preconditions.steady, vm(status="postmigrate"), qemu(migration))[0]
        == "wrong-vm-state"
    )


def test_a_vm_that_came_by_a_migration_and_has_not_run_is_left_alone() -> None:
    """Its disks may still be the source's: QEMU before 10.0 does not say."""
    arrived = replace(qemu("completed"), may_be_inactive=True)
    problem, detail = refused(preconditions.steady, vm(status="paused"), arrived)

    assert problem == "wrong-vm-state"
    assert "late-block-activate" in detail


def test_a_managed_vm_is_refused_unless_a_grant_says_otherwise() -> None:
    """Its manager keeps its own account of the disks."""
    managed = vm(manager="libvirt")

    assert refused(preconditions.unmanaged, managed, allow_managed=False) == (
        "managed-vm",
        "vm is managed by libvirt",
    )
    preconditions.unmanaged(managed, allow_managed=True)
    preconditions.unmanaged(vm(), allow_managed=False)


def test_storage_that_hangs_is_refused_and_what_cannot_be_seen_is_a_warning() -> None:
    """Nobody guesses."""
    assert refused(preconditions.storage, vm(storage_responding=False)) == (
        "storage-hangs",
        "storage of vm does not answer",
    )
    assert preconditions.storage(vm()) == []
    assert preconditions.storage(vm(storage_responding=None)) == [
        "image files are not visible to the exporter: whether their storage answers is unknown"
    ]


@pytest.mark.parametrize("responding", [True, None, False])
def test_storage_of_which_something_went_wrong_is_refused_with_that(
    responding: bool | None,
) -> None:
    """Whether it answers is not known then, or why it does not."""
    problem, detail = refused(
        preconditions.storage, vm(storage_responding=responding, storage_error="/mnt: no thread")
    )

    assert problem == "storage-hangs"
    assert detail.endswith(": /mnt: no thread")


def test_a_vm_that_would_crash_is_refused_though_its_storage_answers() -> None:
    """The draining of a job would ask for the image that is corrupt."""
    crashing = vm(would_crash=True)

    assert refused(preconditions.storage, crashing)[0] == "wrong-vm-state"


# The device.


def test_a_device_is_found_with_what_qemu_calls_it() -> None:
    """A `-drive` by its name; its layers without the protocol nodes below them."""
    protocol = Node(layer="0", role="protocol", node_name="top-file")
    each = disk(node(0, "top"), protocol, node(1, "base"))

    assert preconditions.device(vm(disk(name="cd0"), each), "disk0") == Found(
        each, DiskName("disk0", "top"), (each.nodes[0], each.nodes[2])
    )


def test_a_device_without_a_name_is_known_by_the_node_it_stands_on() -> None:
    """As a `-blockdev` disk is; a filter above its chain is that node, and no layer."""
    below = schema.BlockNode(stats=schema.NodeStats(), node_name="top")
    entry = schema.BlockStats(
        stats=schema.Stats(), qdev="disk0", node_name="filter", parent=below, backing=below
    )
    told = preconditions.device(vm(disk(), entries=[entry]), "disk0")

    assert (told.disk, told.disk.device_or_node) == (DiskName("", "filter"), "filter")
    assert [each.node_name for each in told.layers] == list(CHAIN)


def test_a_new_layer_goes_below_the_filters_of_a_device() -> None:
    """A filter that was below the layer would no longer filter what the guest writes."""
    filtered = Found(disk(), DiskName("", "filter"), disk().nodes)
    named = Found(disk(), DiskName("disk0", "filter"), disk().nodes)

    assert (filtered.top_disk, named.top_disk) == (DiskName("", "top"), DiskName("", "top"))


def test_a_commit_into_a_layer_below_a_filter_names_the_filter() -> None:
    """Only the one right above the base; QEMU merges through it, and it stays."""
    between = chain.Filter(schema.BlockNode(stats=schema.NodeStats(), node_name="throttle"), 2)
    nodes = disk().nodes
    filtered = Found(disk(), DiskName("disk0", "top"), nodes, (between,))

    assert filtered.base(2) == LayerName("throttle", "/images/base.qcow2")
    assert filtered.base(1) == LayerName("mid", "/images/mid.qcow2")


def test_a_new_layer_goes_on_a_device_whose_root_is_a_layer() -> None:
    """As QEMU names it: an old one has no names of nodes, or does not tell them."""
    old = Found(disk(node(0, "", "/old")), DiskName("disk0", ""), (node(0, "", "/old"),))

    assert found().top_disk == DiskName("disk0", "top")
    assert old.top_disk == DiskName("disk0", "")


def test_a_new_layer_goes_on_the_device_where_its_layers_have_no_names() -> None:
    """Whatever the root is called: there is no other name for the active layer."""
    nameless = Found(disk(), DiskName("disk0", "root"), (node(0, "", "/old"),))

    assert nameless.top_disk == DiskName("disk0", "root")


def test_query_block_says_which_node_a_device_stands_on() -> None:
    """What query-blockstats tells is for when it is not known."""
    block = msgspec.convert(
        {"device": "", "inserted": {
            "file": "/f", "drv": "qcow2", "ro": False, "node-name": "root",
            "image": {"filename": "/f", "format": "qcow2"},
        }},
        schema.BlockInfo,
    )  # fmt: skip

    assert found(block=block).disk == DiskName("disk0", "root")


def test_a_device_that_is_not_there_is_refused() -> None:
    """By the name that was asked for."""
    assert refused(preconditions.device, vm(), "vda") == (
        "unknown-device",
        "vm has no device 'vda'",
    )


@pytest.mark.parametrize("empty", [{"inserted": False}, {"nodes": ()}], ids=["tray", "chain"])
def test_a_device_without_a_medium_is_refused(empty: dict[str, Any]) -> None:
    """There is nothing to commit and nothing to put a layer on."""
    each = msgspec.structs.replace(disk(), **empty)

    assert refused(preconditions.device, vm(each), "disk0") == (
        "wrong-device-state",
        "disk0 has no medium",
    )


def test_an_image_that_qemu_has_closed_is_not_called_an_empty_tray() -> None:
    """It does so with one that it finds corrupt: the layers are there, and their depth is not."""
    closed = disk(inserted=False, backing_depth=None)
    empty = msgspec.structs.replace(closed, nodes=())

    assert "closed" in refused(preconditions.device, vm(closed), "disk0")[1]
    assert refused(preconditions.device, vm(empty), "disk0")[1] == "disk0 has no medium"


@pytest.mark.parametrize("inserted", [True, None])
def test_a_medium_that_nobody_denies_is_taken_for_there(inserted: bool | None) -> None:
    """query-block may not have been asked."""
    assert preconditions.device(vm(disk(inserted=inserted)), "disk0").device.device == "disk0"


def test_a_layer_is_named_as_qemu_names_it_with_its_credentials() -> None:
    """That is for QEMU alone; a layer of which query-block did not tell has no file."""
    secret = msgspec.structs.replace(
        node(1, "base"), image=schema.Image("http://u:PW@h/b", "raw"), file="http://h/b"
    )
    blind = Node(layer="0", role="format", node_name="top")
    told = found(blind, secret)

    assert (told.image(0), told.image(1)) == (
        LayerName("top", ""),
        LayerName("base", "http://u:PW@h/b"),
    )


@pytest.mark.parametrize("status", STATUSES)
def test_a_device_is_busy_until_its_job_has_ended(status: str) -> None:
    """One that is concluded holds nothing any more, and waits only to be dismissed."""
    snapshot = vm(jobs=(job("j1", status=status),))
    if status in ("concluded", "null"):
        preconditions.idle(snapshot, "disk0")
        return
    with pytest.raises(Refused) as caught:
        preconditions.idle(snapshot, "disk0")

    assert (caught.value.problem, str(caught.value)) == ("device-busy", "commit j1 is running on disk0")
    assert isinstance(caught.value.more["job"], api.Job)
    assert (caught.value.more["job"].vm, caught.value.more["job"].job_id) == ("vm", "j1")


def test_a_job_on_another_device_is_in_nobodys_way() -> None:
    """Nor is one that is no block job and has no device at all."""
    elsewhere = job(device="disk1"), job("x", "snapshot-save", "")
    preconditions.idle(vm(jobs=elsewhere), "disk0")

    here = job("j2")
    assert refused(preconditions.idle, vm(jobs=(*elsewhere, here)), "disk0")[0] == "device-busy"


@pytest.mark.parametrize("status", STATUSES)
def test_a_job_without_a_place_may_work_on_any_disk(status: str) -> None:
    """Nobody guesses; once it has ended it stands in no way."""
    snapshot = vm(jobs=(job("x", "backup", "", status=status),))
    if status in ("concluded", "null"):
        preconditions.idle(snapshot, "disk0")
        return
    with pytest.raises(Refused) as caught:
        preconditions.idle(snapshot, "disk0")

    assert (caught.value.problem, str(caught.value)) == (
        "device-busy",
        "backup x is running on an unidentified disk",
    )
    assert isinstance(caught.value.more["job"], api.Job)
    assert caught.value.more["job"].job_id == "x"


def test_layers_of_a_device_that_is_read_only_or_corrupt_are_left_alone() -> None:
    """QEMU would reopen the base and write to it."""
    corrupt: Any = {"type": "qcow2", "data": {"corrupt": True}}
    plain: Any = {"type": "raw"}
    sound: Any = {"type": "qcow2", "data": {"corrupt": False}}

    assert refused(preconditions.writable, found(read_only="true")) == (
        "wrong-device-state",
        "disk0 is read-only",
    )
    assert refused(
        preconditions.writable,
        found(node(0, "top"), node(1, "base", **{"format-specific": corrupt})),
    ) == ("wrong-device-state", "layer 1 of disk0 is corrupt")
    preconditions.writable(found(read_only="false"))
    preconditions.writable(found(read_only=""))
    preconditions.writable(found(node(0, "top", **{"format-specific": sound})))
    preconditions.writable(found(node(0, "top", **{"format-specific": plain})))


@pytest.mark.parametrize("active", [True, False, None])
def test_a_disk_that_is_not_active_is_left_alone(active: bool | None) -> None:
    """Its images are another QEMU's until a migration is over; QEMU before 10.0 does not say."""
    inserted: dict[str, Any] = {"file": "/b", "drv": "qcow2", "ro": False}
    inserted |= {"image": {"filename": "/b", "format": "qcow2"}}
    inserted |= {} if active is None else {"active": active}
    block = msgspec.convert({"device": "disk0", "inserted": inserted}, schema.BlockInfo)

    if active is False:
        problem, detail = refused(preconditions.writable, found(block=block))
        assert (problem, detail.partition(":")[0]) == ("wrong-device-state", "disk0 is not active")
    else:
        preconditions.writable(found(block=block))


@pytest.mark.parametrize("blind", [0, 1, 2])
def test_a_chain_that_is_not_known_in_full_is_left_alone(blind: int) -> None:
    """A layer without its file is compared with no other disk's: it may be shared."""
    layers: list[str | Node] = [*CHAIN]
    layers[blind] = Node(layer=str(blind), role="format", node_name=CHAIN[blind])

    assert refused(preconditions.writable, found(*layers)) == (
        "wrong-device-state",
        (
            "the files of disk0 are not known: query-block was not asked (--collector.topology),"
            " or disagrees with query-blockstats"
        ),
    )


# The layers.


def test_a_commit_takes_the_whole_chain_unless_it_is_told_what() -> None:
    """By node name, or by file."""
    layers = found()

    assert preconditions.commit_range(layers, commit()) == Range(0, 2)
    assert preconditions.commit_range(layers, commit(base="mid")) == Range(0, 1)
    assert preconditions.commit_range(layers, commit(top="mid")) == Range(1, 2)
    assert preconditions.commit_range(
        layers, commit(top="/images/top.qcow2", base="/images/mid.qcow2")
    ) == Range(0, 1)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (commit(top="nope"), "top: disk0 has no layer 'nope'"),
        (commit(base="nope"), "base: disk0 has no layer 'nope'"),
        (commit(base="2"), "base: disk0 has no layer '2'"),
        (commit(base="http://u:PW@h/b?key=PW"), "base: disk0 has no layer 'http://h/b'"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(request_: api.Commit, said: str) -> None:
    """Its number is no name; a credential in what was asked for is not repeated."""
    assert refused(preconditions.commit_range, found(), request_) == ("unknown-layer", said)


def test_a_name_of_two_layers_is_refused() -> None:
    """Nobody guesses which was meant."""
    twice = found(node(0, "a", "/one"), node(1, "b", "/one"), node(2, "c", "/two"))
    old = found(node(0, "", "/one"), node(1, "", "/two"))

    assert refused(preconditions.commit_range, twice, commit(base="/one")) == (
        "unknown-layer",
        "base: '/one' is more than one layer",
    )
    assert preconditions.commit_range(twice, commit(base="b")) == Range(0, 1)
    assert preconditions.commit_range(old, commit(base="/two")) == Range(0, 1)


def test_a_node_name_comes_before_a_file_of_that_name() -> None:
    """The name of the one layer may be the file of the other."""
    odd = found(node(0, "x", "b"), node(1, "y", "/y"), node(2, "b", "/b"))

    assert preconditions.commit_range(odd, commit(base="b")) == Range(0, 2)


@pytest.mark.parametrize(
    ("layers", "request_", "said"),
    [
        (("only",), commit(), "disk0 has one layer and no backing file"),
        (CHAIN, commit(top="mid", base="mid"), "layer 1 of disk0 is not above layer 1"),
        (CHAIN, commit(top="base", base="top"), "layer 2 of disk0 is not above layer 0"),
        (CHAIN, commit(base="top"), "layer 0 of disk0 is not above layer 0"),
    ],
)
def test_layers_that_are_one_or_the_wrong_way_round_are_refused(
    layers: tuple[str, ...], request_: api.Commit, said: str
) -> None:
    """There is nothing to commit."""
    assert refused(preconditions.commit_range, found(*layers), request_) == (
        "nothing-to-commit",
        said,
    )


@pytest.mark.parametrize(("expected", "base"), [(0, "base"), (1, "mid"), (2, "top"), (9, "top")])
def test_a_commit_ends_above_the_backing_files_that_a_device_has_by_right(
    expected: int, base: str
) -> None:
    """The deepest layer that may be written to, and the one below it."""
    layers = found(expected_backing_depth=expected)
    deepest = 2 - expected
    if deepest > 0:
        assert preconditions.commit_range(layers, commit(base=base)) == Range(0, deepest)
    for below in CHAIN[max(1, deepest + 1) :]:
        problem, detail = refused(preconditions.commit_range, layers, commit(base=below))
        assert problem == "shared-layer"
        assert f"expected_backing_depth of disk0 is {expected}: layer {CHAIN.index(below)} " in detail


names = st.sampled_from(["", "a", "b", "c", "/x", "/y", "json:"])


@given(
    st.lists(st.tuples(names, names), min_size=1, max_size=6),
    st.none() | names,
    st.none() | names,
    st.none() | st.integers(0, 7),
)
def test_a_commit_never_leaves_the_chain_or_enters_what_is_shared(
    layers: list[tuple[str, str]], top: str | None, base: str | None, expected: int | None
) -> None:
    """Whatever the layers and the request are called: what is taken has one meaning."""
    nodes = [node(depth, name, file) for depth, (name, file) in enumerate(layers)]
    chosen = found(*nodes, expected_backing_depth=expected)
    request = commit()
    request = msgspec.structs.replace(request, top=UNSET if top is None else top)
    request = msgspec.structs.replace(request, base=UNSET if base is None else base)
    last = len(layers) - 1
    try:
        taken = preconditions.commit_range(chosen, request)
    except Refused:
        return

    assert 0 <= taken.top < taken.base <= last - (expected or 0)
    for said, number, default in ((top, taken.top, 0), (base, taken.base, last)):
        if said is None:
            assert number == default
            continue
        by_name = [depth for depth, (name, _) in enumerate(layers) if name == said]
        by_file = [depth for depth, (_, file) in enumerate(layers) if file == said]
        assert [number] == (by_name or by_file)


# Layers of others.


def others(*devices: Device, of: str = "vm") -> list[tuple[str, Device]]:
    """Devices of a VM as all VMs know them."""
    return [(of, each) for each in devices]


def unshared(
    known: list[tuple[str, Device]],
    mine: Found | None = None,
    layers: Range | None = None,
    identities: Mapping[Any, object] | None = None,
    opened: Mapping[str, AbstractSet[object]] | None = None,
) -> None:
    """See that the layers of a device, all of them where nothing else is said, are its own."""
    mine = mine or found()
    layers = layers or Range(0, len(mine.layers) - 1)
    preconditions.unshared(vm(), mine, layers, known, identities or {}, opened or {})


@pytest.mark.parametrize("of", ["vm", "other"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_that_another_disk_reads_is_neither_written_to_nor_removed(
    of: str, layer: int
) -> None:
    """On this VM or another: whatever stands between top and base, both included."""
    shared = node(1, "x", f"/images/{CHAIN[layer]}.qcow2")
    known = others(disk(node(0, "y"), shared, name="disk1"), of=of)

    assert refused(unshared, known) == (
        "shared-layer",
        f"/images/{CHAIN[layer]}.qcow2 is layer 1 of disk1 of {of} too",
    )


def test_a_layer_below_the_base_and_above_the_top_may_be_shared() -> None:
    """A commit does not touch it."""
    known = others(disk(node(0, "y"), node(1, "x", "/images/base.qcow2"), name="disk1"), of="b")
    known += others(disk(node(0, "z", "/images/top.qcow2"), name="disk2"), of="b")
    files = {f"/images/{name}.qcow2": name for name in ("top", "mid", "low", "base", "y")}

    unshared(known, found("top", "mid", "low", "base"), Range(1, 2), files)


def test_a_device_does_not_stand_in_its_own_way() -> None:
    """One of the same name on another VM does."""
    unshared(others(disk()), identities={"/images/base.qcow2": (1, 2)})

    assert refused(unshared, others(disk(), of="b"))[0] == "shared-layer"


def test_a_node_of_two_disks_is_shared_whatever_its_file() -> None:
    """Node names are of one VM: the same name on another says nothing."""
    blind = Node(layer="1", role="format", node_name="base")
    known = disk(node(0, "y"), blind, name="disk1")

    assert refused(unshared, others(known)) == (
        "shared-layer",
        "base is layer 1 of disk1 of vm too",
    )
    unshared(others(known, of="b"))


@pytest.mark.parametrize("of", ["vm", "other"])
@pytest.mark.parametrize("prefix", ["", "file:"])
def test_one_file_under_two_names_is_shared(of: str, prefix: str) -> None:
    """Links of either kind, and bind mounts, give it another: the file itself is compared."""
    known = others(disk(node(0, "y"), node(1, "x", f"{prefix}/links/b"), name="disk1"), of=of)
    files = {"/images/base.qcow2": (8, 1, 5), "/links/b": (8, 1, 5), "/images/y.qcow2": (8, 1, 6)}

    assert refused(unshared, known, identities=files) == (
        "shared-layer",
        f"{prefix}/links/b is layer 1 of disk1 of {of} too",
    )
    unshared(known, identities={**files, "/links/b": (8, 2, 5)})
    unshared(known, identities={"/images/base.qcow2": (8, 1, 5)})


@pytest.mark.parametrize("name", ["nbd://host:10809/base", "nbd:unix:/run/nbd", "rbd:pool/base"])
def test_a_layer_that_is_no_file_is_shared_by_its_name(name: str) -> None:
    """Of storage on a network there is nothing else to compare."""
    mine = found(node(0, "top"), node(1, "base", name))

    def known(other: str) -> list[tuple[str, Device]]:
        return others(disk(node(0, "y"), node(1, "x", other), name="disk1"), of="b")

    assert refused(unshared, known(name), mine) == (
        "shared-layer",
        f"{name} is layer 1 of disk1 of b too",
    )
    unshared(known(f"{name}2"), mine)


def test_a_relative_name_is_compared_within_one_vm_alone() -> None:
    """It begins where that QEMU was started, and nobody knows where that was."""
    mine = found(node(0, "top", "t.qcow2"), node(1, "base", "b.qcow2"))
    known = disk(node(0, "y", "y.qcow2"), node(1, "x", "b.qcow2"), name="disk1")

    assert refused(unshared, others(known), mine) == (
        "shared-layer",
        "b.qcow2 is layer 1 of disk1 of vm too",
    )
    unshared(others(known, of="b"), mine)


def test_the_set_of_a_descriptor_is_that_of_its_process() -> None:
    """Two VMs have sets of the same number for two files; within one VM it is one."""
    mine = found(node(0, "top"), node(1, "base", "/dev/fdset/1"))
    known = disk(node(0, "y"), node(1, "x", "/dev/fdset/1"), name="disk1")

    unshared(others(known, of="b"), mine)
    assert refused(unshared, others(known), mine) == (
        "shared-layer",
        "/dev/fdset/1 is layer 1 of disk1 of vm too",
    )


def test_a_file_that_another_vm_has_open_is_shared_whatever_its_name() -> None:
    """By the file that is open, as each of them has it."""
    mine = {("vm", f"/images/{name}.qcow2"): (8, 1, number) for number, name in enumerate(CHAIN)}
    known = disk(node(0, "y", "/dev/fdset/1"), name="disk1")
    base = mine["vm", "/images/base.qcow2"]

    assert refused(unshared, others(known, of="b"), identities=mine, opened={"b": {base}}) == (
        "shared-layer",
        "/images/base.qcow2 is open in b too",
    )
    named = {**mine, ("b", "/dev/fdset/1"): base}
    assert refused(unshared, others(known, of="b"), identities=named, opened={"b": {base}}) == (
        "shared-layer",
        "/dev/fdset/1 is layer 0 of disk1 of b too",
    )
    unshared(others(known, of="b"), identities=named, opened={"b": {(8, 1, 99)}, "vm": {base}})


def test_a_name_that_is_another_file_to_another_vm_is_not_shared() -> None:
    """Each is in a mount namespace of its own, and what is open there is seen."""
    mine = {("vm", f"/images/{name}.qcow2"): (8, 1, number) for number, name in enumerate(CHAIN)}
    known = others(disk(node(0, "y", "/images/base.qcow2"), name="disk1"), of="b")

    unshared(known, identities=mine, opened={"b": {(8, 2, 1)}})
    assert refused(unshared, known, identities=mine)[0] == "shared-layer"
    # Where not all that is touched is known, a name is all there is.
    del mine["vm", "/images/base.qcow2"]
    assert refused(unshared, known, identities=mine, opened={"b": {(8, 2, 1)}})[0] == "shared-layer"


def test_that_one_vm_has_none_of_the_layers_open_says_nothing_of_the_next() -> None:
    """Each is compared, by what is known of it."""
    mine = {("vm", f"/images/{name}.qcow2"): (8, 1, number) for number, name in enumerate(CHAIN)}
    shared = disk(node(0, "y", "/images/base.qcow2"), name="disk1")
    known = [*others(shared, of="b"), *others(shared, of="c")]

    assert refused(unshared, known, identities=mine, opened={"b": {(8, 2, 1)}}) == (
        "shared-layer",
        "/images/base.qcow2 is layer 0 of disk1 of c too",
    )


def test_another_disk_of_the_same_vm_is_compared_by_name_whatever_is_open() -> None:
    """Both are open in one process: that tells them apart no better."""
    mine = {("vm", f"/images/{name}.qcow2"): (8, 1, number) for number, name in enumerate(CHAIN)}
    known = others(disk(node(0, "y", "/images/base.qcow2"), name="disk1"))

    assert refused(unshared, known, identities=mine, opened={"vm": {(8, 2, 1)}}) == (
        "shared-layer",
        "/images/base.qcow2 is layer 0 of disk1 of vm too",
    )


def test_as_many_neighbours_as_are_named_are_not_counted_as_more() -> None:
    """Five of them."""
    unseen = [f"b{number} does not answer" for number in range(5)]

    assert refused(preconditions.seen, unseen, allowed=False) == (
        "unseen-neighbours",
        "; ".join(unseen),
    )
    assert preconditions.seen(unseen, allowed=True) == unseen
    assert preconditions.seen([], allowed=False) == []


def test_the_name_of_a_driver_alone_is_not_compared() -> None:
    """Two layers may look the same without what is not shown of them; a node below is no layer."""
    mine = found(node(0, "", "json:"), node(1, "", "json:"))
    protocol = Node(layer="0", role="protocol", node_name="p", file="/images/base.qcow2")
    alike = disk(node(0, "", "json:"), protocol, name="disk1")

    unshared(others(alike, of="b"), mine)
    unshared(others(alike), mine)
    unshared(others(alike, of="b"))


@pytest.mark.parametrize(
    "reason", ["timeout", "stopped", "protocol", "busy", "no_socket", "refused"]
)
def test_a_vm_that_does_not_answer_is_one_of_which_nothing_is_known(reason: str) -> None:
    """But where nobody listens there is no VM."""
    gone = reason in ("no_socket", "refused")
    down = VmState(vm="vm", up=False, reason=reason)

    assert preconditions.unsaid(down) == ("" if gone else f"does not answer ({reason})")


def test_a_vm_of_which_not_every_layer_is_known_may_have_any() -> None:
    """Its storage hangs, or query-block is not asked; nodes below the layers do not count."""
    blind = Node(layer="1", role="format", node_name="x")
    protocol = Node(layer="0", role="protocol", node_name="p")

    assert preconditions.unsaid(vm(disk(), disk(node(0, "y"), blind, name="disk1"))) == (
        "does not report the files of all its disks"
    )
    assert preconditions.unsaid(vm(disk(), disk(node(0, "y"), protocol, name="disk1"))) == ""
    assert preconditions.unsaid(VmState(vm="vm", up=True)) == ""


# Jobs.


def test_a_job_is_found_by_its_id() -> None:
    """A block job: of others nothing is asked here."""
    one, two = job("a"), job("b", "mirror")
    saving = job("snap", "snapshot-save")
    snapshot = vm(jobs=(one, two, saving))

    assert preconditions.job(snapshot, "b") is two
    for missing in ("c", "snap"):
        assert refused(preconditions.job, snapshot, missing) == (
            "unknown-job",
            f"vm has no block job {missing!r}",
        )


def test_a_job_that_is_gone_is_refused_with_how_it_ended_where_that_is_known() -> None:
    """Of one that was only asked for, nobody says that it was there."""
    asked = present.job("vm", job("j"))
    ended = msgspec.structs.replace(asked, outcome="completed")

    assert refused(preconditions.job, vm(), "j", ended)[1] == "vm no longer has a block job 'j'"
    assert refused(preconditions.job, vm(), "j", asked)[1] == "vm has no block job 'j'"
