"""A disk that is throttled by a filter at its root, on real QEMU: what is done goes on below it."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.api import Admin, admin
from tests.e2e.lab import MIB, Disk, Lab, Qemu, plug
from tests.e2e.witness import Content, files, raw, state

#: The throttle group lets no more through.
LIMIT = 5 * MIB


def test_a_snapshot_and_a_commit_go_below_the_filter_of_a_disk(lab: Lab) -> None:
    """What the guest writes is limited as before, and which layers there are is understood."""
    base = lab.image("base")
    file = {"driver": "file", "filename": str(base)}
    below = {"driver": "qcow2", "node-name": "layer", "file": file}
    above = {"driver": "throttle", "node-name": "held", "throttle-group": "group", "file": "layer"}
    vm = lab.qemu(
        "vm",
        *("-object", f"throttle-group,id=group,x-bps-write={LIMIT}"),
        *("-blockdev", json.dumps(below), "-blockdev", json.dumps(above)),
        *plug("disk0", "held"),
        machine="pc",
    )
    user, overlay = admin(lab), lab.folder / "new.qcow2"
    content = Content(Disk(vm, "disk0"), lab.folder, bytes(64 * MIB))
    content.write(0, 1 << 16)
    before = state(vm), files(lab)
    assert user.snapshot("vm", "disk0", overlay, dry_run=True).status == 200
    assert (state(vm), files(lab)) == before

    assert user.snapshot("vm", "disk0", overlay).status == 201
    root, active, lowest = chain(vm)
    assert (root, lowest) == ("held", "layer")
    assert active.startswith("qbe-")
    assert user.layers("vm", "disk0") == [str(overlay), str(base)]
    assert limits(user) == LIMIT
    content.write(1 << 15, 1 << 16)

    assert user.commit("vm", "disk0", job_id="qbe-merge").status == 202
    user.until("vm", "qbe-merge", ready=True, device="disk0")
    content.write(8 * MIB, 1 << 16)
    assert user.change("vm", "qbe-merge", "complete").status == 202
    user.until("vm", "qbe-merge", outcome="completed")
    assert chain(vm) == ["held", "layer"]
    assert user.layers("vm", "disk0") == [str(base)]
    assert limits(user) == LIMIT
    assert vm.run("qom-get", {"path": "/objects/group", "property": "x-bps-write"}) == LIMIT
    content.write(9 * MIB, 1 << 16)
    vm.quit()
    assert raw(base) == content.expected


def chain(vm: Qemu) -> list[str]:
    """Return the nodes of the disk from its root down to its base."""
    graph = vm.run("x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    # On QEMU 5.2 a job has a root of its own until it is dismissed.
    root = Disk(vm, "disk0").node_name
    found = [node for node, name in names.items() if name == root]
    while following := [
        edge["child"]
        for edge in graph["edges"]
        if edge["parent"] == found[-1]
        and (edge["name"] == "backing" or names[edge["parent"]] == "held")
    ]:
        found += following
    return [names[each] for each in found]


def limits(user: Admin) -> Any:
    """Return what the exporter says that the guest may write in a second."""
    name = "qemu_block_throttle_write_bytes_per_second{"
    lines = [line for line in user.exporter.fresh().splitlines() if line.startswith(name)]
    assert len(lines) == 1, lines
    return float(lines[0].rpartition(" ")[2])
