"""Whose layers are whose, on real QEMU: one file under many names, and disks that came since."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.api import Admin, admin
from tests.e2e.lab import HASTY, Lab, Qemu, drive
from tests.e2e.reading import value
from tests.e2e.witness import files, records, state


def unlocked(node_name: str, file: object, backing: str | None = None) -> dict[str, Any]:
    """Return a node for a qcow2 image that QEMU's own locks do not guard."""
    if not isinstance(file, dict):
        file = {"driver": "file", "filename": str(file), "locking": "off"}
    return {"driver": "qcow2", "node-name": node_name, "file": file, "backing": backing}


def started(lab: Lab, name: str, top: Path, base: object) -> Qemu:
    """Start a VM whose disk is `top` on `base`, without locks."""
    nodes = [unlocked("base", base), unlocked("top", top, "base")]
    arguments = [part for node in nodes for part in ("-blockdev", json.dumps(node))]
    disk = ["-device", "virtio-blk-pci,id=disk0,drive=top"]
    return lab.qemu(name, *arguments, *disk, machine="pc")


def refused(lab: Lab, user: Admin, vm: Qemu, device: str) -> str:
    """See that a commit is refused for a layer that is shared, and return what is said of it."""
    before = state(vm), files(lab), set(records(lab))
    for dry_run in (True, False):
        answer = user.commit("vm", device, dry_run=dry_run)
        assert (answer.status, answer.problem) == (409, "shared-layer"), answer.body
    assert (state(vm), files(lab), set(records(lab))) == before
    return str(answer.body["detail"])


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_base_that_another_vm_has_under_another_name(lab: Lab, make: Any) -> None:
    """It is one file, whichever link leads to it; one that is alike and another is none of it."""
    base = lab.image("base")
    link = lab.folder / "link.qcow2"
    make(base, link)
    vm = started(lab, "vm", lab.image("mine", backing=base), base)
    other = started(lab, "other", lab.image("theirs", backing=base), link)
    user = admin(lab)

    said = refused(lab, user, vm, "disk0")
    assert said == f"{link} is layer 1 of disk0 of other too"
    other.quit()
    other.socket.unlink(missing_ok=True)
    started(lab, "third", lab.image("third-top", backing=base), lab.image("third"))
    user.exporter.close()
    vm.left()
    user = admin(lab)
    assert user.commit("vm", "disk0", job_id="qbe-merge").status == 202
    user.until("vm", "qbe-merge", ready=True)


def test_a_base_on_a_network_that_another_vm_has_too(lab: Lab) -> None:
    """It has no file here; its name is one, and that of an export beside it is another."""
    names = ("common", "alone")
    images = {name: lab.image(name) for name in names}
    socket = lab.folder / "nbd"
    exports = [
        part
        for name in names
        for part in (
            "--blockdev",
            json.dumps(
                {
                    "driver": "file",
                    "node-name": name,
                    "filename": str(images[name]),
                    "read-only": False,
                }
            ),
            "--export",
            f"nbd,id={name},node-name={name},name={name},writable=on",
        )
    ]
    served = ["--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=9"]
    daemon = lab.storage_daemon("daemon", *served, *exports)
    daemon.socket.unlink()

    def remote(export: str) -> dict[str, object]:
        server = {"type": "unix", "path": str(socket)}
        return {"driver": "nbd", "export": export, "server": server}

    vm = started(lab, "vm", lab.image("mine", backing=images["common"]), remote("common"))
    theirs = started(lab, "other", lab.image("theirs", backing=images["alone"]), remote("alone"))
    user = admin(lab)
    assert user.commit("vm", "disk0", dry_run=True).status == 200
    theirs.quit()
    started(lab, "third", lab.image("third", backing=images["common"]), remote("common"))

    assert refused(lab, user, vm, "disk0").endswith(" is layer 1 of disk0 of third too")


def test_a_disk_that_another_vm_was_given_after_it_was_looked_at(lab: Lab) -> None:
    """What was true of the last scrape need not be now: all are looked at before each commit."""
    base = lab.image("base")
    vm = started(lab, "vm", lab.image("mine", backing=base), base)
    other = lab.qemu("other", *drive("disk0", lab.image("own")), machine="pc")
    user = admin(lab)
    user.exporter.fresh()
    assert user.commit("vm", "disk0", dry_run=True).status == 200

    other.run("blockdev-add", unlocked("base", base))
    other.run("blockdev-add", unlocked("hot", lab.image("theirs", backing=base), "base"))
    other.run("device_add", {"driver": "virtio-blk-pci", "id": "late", "drive": "hot"})
    assert refused(lab, user, vm, "disk0") == f"{base} is layer 1 of late of other too"


def test_a_vm_that_does_not_say_what_it_has_is_named(lab: Lab) -> None:
    """What it had is known and counts; what it may have got since shows in the files that it has open."""
    base, own = lab.image("base"), lab.chain("own", 2)[0]
    nodes = [unlocked("base", base), unlocked("top", lab.image("mine", backing=base), "base")]
    disks = [part for node in nodes for part in ("-blockdev", json.dumps(node))]
    disks += ["-device", "virtio-blk-pci,id=disk0,drive=top", *drive("disk1", own)]
    vm = lab.qemu("vm", *disks, machine="pc")
    other = started(lab, "other", lab.image("theirs", backing=base), base)
    user = admin(lab, flags=[HASTY])
    user.exporter.metrics()

    with other.stopped():
        user.exporter.fresh()
        said = refused(lab, user, vm, "disk0")
        answer = user.commit("vm", "disk1", dry_run=True)
    assert said == f"{base} is layer 1 of disk0 of other too"
    # It is stopped, and has none of these files open.
    assert (answer.status, answer.body["warnings"]) == (200, [])
    user.exporter.until(lambda text: value(text, "qemu_vm_up", vm="other"))
    answer = user.commit("vm", "disk1", job_id="qbe-own")
    assert (answer.status, answer.body["warnings"]) == (202, [])
