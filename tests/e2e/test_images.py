"""Images that nobody finds by their names, and mounts that hang and hold no image, on real QEMU."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.api import Admin, admin, grant
from tests.e2e.cutting import Proxy
from tests.e2e.lab import HASTY, Exporter, Lab, Mount, Qemu, drive, plug, tool
from tests.e2e.reading import info, value
from tests.e2e.witness import files, state

#: What is older than three times this is dropped.
AGE_SECONDS = 1
REFRESH = f"--collector.topology.max-age={AGE_SECONDS}"
STAMP, VALID = "qemu_vm_topology_timestamp_seconds", "qemu_block_node_file_name_valid"
RESPONDING, AVAILABLE = "qemu_vm_storage_responding", "qemu_block_node_storage_available_bytes"


def handed(device: str, image: Path, number: int) -> tuple[list[str], list[str]]:
    """Return how a shell opens an image for QEMU, and the arguments for a disk on it."""
    nodes = [
        {"driver": "file", "node-name": f"{device}-file", "filename": f"/dev/fdset/{number}"},
        {"driver": "qcow2", "node-name": f"{device}-0", "file": f"{device}-file"},
    ]
    arguments = [part for node in nodes for part in ("-blockdev", json.dumps(node))]
    file = number + 6  # of one digit: a shell takes no other
    more = ["-add-fd", f"fd={file},set={number}"]
    return [f"{file}<>{image}"], [*more, *arguments, *plug(device, f"{device}-0")]


def in_shell(lab: Lab, name: str, opened: Sequence[str], *arguments: str, before: str = "") -> Qemu:
    """Start a VM that is handed open files, or in a folder."""
    command = lab.qemu_command(name, *arguments, machine="pc")
    script = f'{before}exec "$@" {" ".join(opened)}'
    return lab.start(name, ["sh", "-c", script, "sh", *command])


def is_refreshed(exporter: Exporter, vm: str = "vm") -> str:
    """See that query-block goes on being asked for longer than its answers are kept, and what it tells."""
    first = exporter.until(lambda text: value(text, STAMP, vm=vm))
    since = value(first, STAMP, vm=vm) or 0.0
    return exporter.until(lambda text: (value(text, STAMP, vm=vm) or 0.0) > since + 4 * AGE_SECONDS)


def by_device(text: str, name: str) -> dict[str, float | None]:
    """Return a value of the active layer of each disk of the VM."""
    devices = ("kept", "temporary", "handed", "relative")
    told = {each: value(text, name, vm="vm", device=each, layer="0") for each in devices}
    return {device: each for device, each in told.items() if each is not None}


@pytest.fixture
def vm(lab: Lab) -> Qemu:
    """A VM with one disk whose image has a name, and three whose images have none."""
    images = {each: lab.image(each) for each in ("kept", "base", "handed", "relative")}
    opened, arguments = handed("handed", images["handed"], 2)
    relative = images["relative"].name
    return in_shell(
        lab, "vm", opened, *drive("kept", images["kept"]),
        *drive("temporary", images["base"], "snapshot=on"), *drive("relative", Path(relative)), *arguments,
        before=f"cd {lab.folder}; ",
    )  # fmt: skip


def test_images_without_a_name_cost_no_disk_anything(lab: Lab, vm: Qemu) -> None:
    """All that query-block tells goes on, of these disks and of the others; they are told."""
    exporter = lab.exporter(REFRESH)
    text = is_refreshed(exporter)

    assert value(text, RESPONDING) == 1
    assert by_device(text, VALID) == {"kept": 1, "temporary": 0, "handed": 0, "relative": 0}
    assert by_device(text, AVAILABLE).keys() == {"kept", "temporary", "handed", "relative"}
    assert value(text, VALID, device="temporary", layer="1") == 1
    for device in ("kept", "temporary", "relative"):
        assert info(text, "qemu_block_device_info", device=device)["file"]
    assert 'file=relative.qcow2 why="its name is relative' in exporter.said()

    (lab.folder / "kept.qcow2").unlink()
    text = exporter.until(lambda text: by_device(text, VALID)["kept"] == 0)
    assert value(is_refreshed(exporter), RESPONDING) == 1
    assert by_device(text, AVAILABLE).keys() == {"kept", "temporary", "handed", "relative"}


def test_an_image_that_was_replaced_is_told(lab: Lab) -> None:
    """Its name leads to another file by now, and back again."""
    image, other = lab.image("disk"), lab.image("other")
    lab.qemu("vm", *drive("disk0", image))
    exporter = lab.exporter(REFRESH)
    exporter.until(lambda text: value(text, VALID) == 1)
    image.rename(lab.folder / "moved.qcow2")
    other.rename(image)
    exporter.until(lambda text: value(text, VALID) == 0)
    (lab.folder / "moved.qcow2").rename(image)
    exporter.until(lambda text: value(text, VALID) == 1)


def refused(lab: Lab, user: Admin, vm: Qemu, device: str, why: str) -> None:
    """See that a snapshot of a disk is refused, by the name of its image, and leaves nothing."""
    before = state(vm), files(lab)
    for dry_run in (True, False):
        answer = user.snapshot("vm", device, lab.folder / "new.qcow2", dry_run=dry_run)
        assert (answer.status, answer.problem) == (409, "unnamed-image"), answer.body
        assert why in answer.body["detail"]
    assert (state(vm), files(lab)) == before


def test_a_snapshot_needs_an_image_with_a_name(lab: Lab, vm: Qemu) -> None:
    """Its name would stand in the header; QEMU removes each layer on top of snapshot=on."""
    user = admin(lab, grant(directories=[str(lab.folder)]))

    refused(lab, user, vm, "temporary", "leads to no file any more")
    refused(lab, user, vm, "handed", "the name /dev/fdset/2 of layer 0 of handed means something")
    (lab.folder / "kept.qcow2").unlink()
    refused(lab, user, vm, "kept", "leads to no file any more")


def test_a_snapshot_of_an_image_with_a_relative_name_names_it_from_everywhere(
    lab: Lab, vm: Qemu
) -> None:
    """So that the chain can be opened by others, also from another directory."""
    user = admin(lab, grant(directories=[str(lab.folder)]))
    below = lab.folder / "below"
    below.mkdir()
    answer = user.snapshot("vm", "relative", below / "new.qcow2")
    assert answer.status == 201, answer.body
    command = [tool("qemu-img"), "info", "-U", "--output=json", f"{below}/new.qcow2"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, cwd="/").stdout)

    assert told["backing-filename"] == str(lab.folder / "relative.qcow2")


def test_a_relative_name_that_leads_elsewhere_is_no_backing_file(lab: Lab) -> None:
    """QEMU leaves its directory when it becomes a daemon: another image may be there."""
    image = lab.image("disk")
    pid = lab.folder / "pid"
    command = lab.qemu_command("vm", *drive("disk0", Path(image.name)))
    subprocess.run([*command, "-daemonize", "-pidfile", str(pid)], cwd=lab.folder, check=True)
    process = int(pid.read_text())
    try:
        user = admin(lab, grant(directories=[str(lab.folder)]))
        answer = user.snapshot("vm", "disk0", lab.folder / "new.qcow2")
        text = user.exporter.metrics()
    finally:
        os.kill(process, 9)

    assert (answer.status, answer.problem) == (409, "unnamed-image"), answer.body
    assert "the name disk.qcow2 of layer 0 of disk0 leads to no file" in answer.body["detail"]
    assert value(text, VALID) == 0
    assert not (lab.folder / "new.qcow2").exists()


def start_with_handed(lab: Lab, name: str, image: Path) -> Qemu:
    """Start a VM whose disk is on a layer with a name, over one that it was handed."""
    top = lab.folder / f"{name}-top.qcow2"
    below = ["-u", "-b", "/dev/fdset/1", "-F", "qcow2"]
    create = [tool("qemu-img"), "create", "-q", "-f", "qcow2", *below, str(top), "64M"]
    subprocess.run(create, check=True)
    opened, arguments = handed("base", image, 1)
    node = {
        "driver": "qcow2", "node-name": "top-0", "backing": "base-0",
        "file": {"driver": "file", "filename": str(top)},
    }  # fmt: skip
    arguments = [*arguments[:-2], "-blockdev", json.dumps(node), *plug("disk0", "top-0")]
    return in_shell(lab, name, opened, *arguments)


def test_a_set_of_descriptors_is_no_shared_layer(lab: Lab) -> None:
    """Each process has sets of its own: what is open is compared, and a name of its own is asked for."""
    for name in ("one", "two"):
        start_with_handed(lab, name, lab.image(name))
    chain = lab.chain("named", 2)
    lab.qemu("three", *drive("disk0", chain[0]))
    user = admin(lab)
    answer = user.commit("one", "disk0", dry_run=True)

    assert (answer.status, answer.problem) == (409, "unnamed-image"), answer.body
    assert user.commit("three", "disk0", dry_run=True).status == 200


def test_a_layer_that_another_vm_was_handed_is_shared(lab: Lab) -> None:
    """No name tells so."""
    top, base = lab.chain("named", 2)
    lab.qemu("one", *drive("disk0", top, "file.locking=off", "backing.file.locking=off"))
    opened, arguments = handed("disk0", base, 1)
    arguments[3] = json.dumps(json.loads(arguments[3]) | {"locking": "off"})
    in_shell(lab, "two", opened, *arguments)
    answer = admin(lab).commit("one", "disk0", dry_run=True)

    assert (answer.status, answer.problem) == (409, "shared-layer"), answer.body
    assert "two" in answer.body["detail"]


# A mount that hangs.


def in_own_namespace(lab: Lab, name: str, image: Path) -> Qemu:
    """Start a VM as libvirt does, in a mount namespace of its own."""
    command = lab.qemu_command(name, *drive("disk0", image))
    return lab.start(name, ["unshare", "-m", "--propagation", "private", "--", *command])


def test_a_mount_that_hangs_and_holds_no_image_costs_no_vm_anything(lab: Lab) -> None:
    """In a namespace of its own or not, met before or while it hangs, behind a proxy or not."""
    mount = lab.keep(Mount(lab.folder))
    (lab.folder / "behind" / "nobody's").touch()
    proxied = lab.qemu("proxied", *drive("disk0", lab.image("proxied")))
    proxied.socket.rename(proxied.socket.with_suffix(".behind"))
    lab.keep(Proxy(proxied))
    in_own_namespace(lab, "own", lab.image("own"))
    lab.qemu("plain", *drive("disk0", lab.image("plain")))
    user = admin(lab, grant(directories=[str(lab.folder)]), flags=[REFRESH])
    vms = ("proxied", "own", "plain")
    user.exporter.until(lambda text: all(value(text, STAMP, vm=vm) for vm in vms))
    with mount.stopped():
        in_own_namespace(lab, "late", lab.image("late"))
        for vm in (*vms, "late"):
            text = is_refreshed(user.exporter, vm)
            assert value(text, RESPONDING, vm=vm) == 1
            assert value(text, "qemu_block_device_inserted", vm=vm) == 1
            new = lab.folder / f"{vm}-new.qcow2"
            answer = user.snapshot(vm, "disk0", new, dry_run=True)
            assert (answer.status, vm) in ((200, vm), (422, "proxied")), answer.body
        user.exporter.close()
        late = lab.exporter(REFRESH)
        text = late.until(lambda text: all(value(text, STAMP, vm=vm) for vm in vms))
        assert {value(text, RESPONDING, vm=vm) for vm in vms} == {1}


def test_a_mount_that_only_the_vm_has_is_found_hanging(lab: Lab) -> None:
    """Here there is no way to it by any name; a scrape freezes no guest all the same."""
    mount = lab.keep(Mount(lab.folder))
    image = lab.image("behind/disk")
    vm = in_own_namespace(lab, "vm", mount.folder / image.name)
    subprocess.run([tool("umount"), "-l", mount.folder], check=True)
    exporter = lab.exporter(REFRESH, HASTY)
    text = is_refreshed(exporter)
    assert (value(text, RESPONDING), value(text, VALID)) == (1, 1)
    with mount.stopped():
        for _ in range(3):
            text = exporter.fresh()
            assert vm.run("query-status")["status"] == "running"
            assert value(text, RESPONDING) == 0
    exporter.until(lambda text: value(text, RESPONDING) == 1)
