"""VMs that cannot be collected: each says why, and costs the others nothing.

One fleet has two VMs down in each way, by the real thing wherever there is one. It is scraped while
all are well that can be, when they are down, once more, and when what can be mended is mended. Until then
those that are down never answer: each scrape does.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import samples
from tests.e2e.lab import HASTY, PATIENCE_SECONDS, Lab, Monitor, Mount, Qemu, drive, wait_until
from tests.e2e.reading import known_value, labels_of, value

HEALTHY = ("healthy-a", "healthy-b")
DOWN = {
    "missing-a": "no_socket",
    "missing-b": "no_socket",
    "killed-before": "refused",
    "killed-after": "refused",
    "forbidden-a": "permission",
    "forbidden-b": "permission",
    "busy-a": "busy",
    "busy-b": "busy",
    "stopped-before": "stopped",
    "stopped-after": "stopped",
    "starting-a": "greeting_timeout",
    "starting-b": "greeting_timeout",
    "hanging-a": "timeout",
    "hanging-b": "timeout",
    "hmp": "protocol",
    "vnc": "protocol",
}
#: In these the exporter has a session while they are well.
WELL_BEFORE = ("killed-after", "stopped-after", "hanging-a", "hanging-b")
MENDED = ("stopped-before", "stopped-after", "busy-a", "busy-b", "hanging-a", "hanging-b")
#: Without an answer for so long a Prometheus gives up.
SCRAPE_TIMEOUT = {"X_Prometheus_Scrape_Timeout_Seconds": str(PATIENCE_SECONDS)}
each_down = pytest.mark.parametrize("vm", DOWN)


@dataclass
class Story:
    """What the scrapes said."""

    well: str = ""
    down: str = ""
    again: str = ""
    mended: str = ""


def without_privilege() -> list[str]:
    """Return what to start the exporter with, so that a mode of 0 keeps it out."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def starting(lab: Lab, name: str, port: int) -> None:
    """Start a VM that waits for its disk: its monitor listens, and does not greet yet."""
    disk = f"if=none,id=disk0,format=raw,file=nbd:127.0.0.1:{port}"
    lab.process(name, lab.qemu_command(name, "-drive", disk))
    wait_until((lab.folder / f"{name}.sock").is_socket, f"the socket of {name}")


def configuration(lab: Lab, folder: Path) -> str:
    """Name every VM in a file, so that those without a socket are targets as well."""
    path = lab.folder / "config.yml"
    named = [f"{{vm: {vm}, socket: {folder}/{vm}.sock}}" for vm in (*HEALTHY, *DOWN)]
    path.write_text(f"groups: [{{targets: [{', '.join(named)}]}}]\n")
    return f"--config.file={path}"


@pytest.fixture(scope="module")
def story(shared_lab: Lab) -> Story:
    """Let it all happen."""
    lab = shared_lab
    mount = lab.keep(Mount(lab.folder))
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        vms = {}
        for vm in (*HEALTHY, *DOWN):
            if vm.startswith("starting"):
                starting(lab, vm, silent_server.getsockname()[1])
            elif not vm.startswith(("missing", "hmp", "vnc")):
                folder = "behind/" if vm.startswith("hanging") else ""
                image = lab.image(folder + vm)
                seen = mount.folder / image.name if folder else image
                vms[vm] = lab.qemu(vm, *drive("disk0", seen))
        # What people take for a QMP socket.
        lab.qemu(
            "odd",
            *("-monitor", f"unix:{lab.folder}/hmp.sock,server=on,wait=off"),
            *("-vnc", f"unix:{lab.folder}/vnc.sock"),
        )

        for vm in ("forbidden-a", "forbidden-b"):
            vms[vm].socket.chmod(0)
        others = [Monitor(vms[vm].socket) for vm in ("busy-a", "busy-b")]
        for other in others:
            lab.keep(other)
        vms["killed-before"].kill()
        vms["stopped-before"].stop()

        flags = (configuration(lab, lab.folder), HASTY)
        # Without the canary: that it is no VM that hangs is not the matter here.
        more = ("--collector.topology=always",)
        exporter = lab.exporter(*flags, *more, sockets=False, before=without_privilege())
        told = Story()
        told.well = exporter.fresh(**SCRAPE_TIMEOUT)
        vms["killed-after"].kill()
        vms["stopped-after"].stop()
        with mount.stopped():
            for vm in ("hanging-a", "hanging-b"):
                # Somebody else's command stops the VM.
                vms[vm].monitor.send("query-block")
                wait_until(partial(waits_for_storage, vms[vm]), f"{vm} hangs")
            told.down = exporter.fresh(**SCRAPE_TIMEOUT)
            told.again = exporter.fresh(**SCRAPE_TIMEOUT)
        for other in others:
            other.close()
        for vm in ("stopped-before", "stopped-after"):
            vms[vm].signal(signal.SIGCONT)
        told.mended = exporter.until(
            lambda text: all(value(text, "qemu_vm_up", vm=vm) for vm in MENDED)
        )
    return told


def waits_for_storage(vm: Qemu) -> bool:
    """Whether the main loop of a VM waits for an answer of a FUSE file system, as the kernel says."""
    return Path(f"/proc/{vm.pid}/wchan").read_text() == "request_wait_answer"


def about(exposition: str, vm: str) -> set[str]:
    """Return every sample that is about a VM."""
    return {sample for sample in samples(exposition) if f'vm="{vm}"' in sample}


@each_down
def test_a_vm_that_is_down_says_exactly_why(story: Story, vm: str) -> None:
    """One reason, from the first scrape on that it is down in."""
    first = [] if vm in WELL_BEFORE else [story.well]
    for text in (*first, story.down, story.again):
        assert value(text, "qemu_vm_up", vm=vm) == 0
        reasons = labels_of(text, "qemu_vm_scrape_error", vm=vm)
        assert [found["reason"] for found in reasons] == [DOWN[vm]]


@each_down
def test_a_vm_that_is_down_has_no_series_of_what_is_not_known(story: Story, vm: str) -> None:
    """Neither zeros nor old values: that it is down, why, and when it was seen."""
    allowed = {"qemu_vm_up", "qemu_vm_scrape_error", "qemu_vm_scrape_duration_seconds"}
    if vm in WELL_BEFORE:
        allowed.add("qemu_vm_last_seen_timestamp_seconds")
    for text in (story.down, story.again):
        assert {sample.partition("{")[0] for sample in about(text, vm)} == allowed


@pytest.mark.parametrize("vm", HEALTHY)
def test_a_healthy_vm_is_complete_in_the_same_scrape(story: Story, vm: str) -> None:
    """Series for series what it was when more VMs were well."""
    assert value(story.down, "qemu_vm_up", vm=vm) == 1
    assert value(story.down, "qemu_block_device_backing_depth", vm=vm) == 0
    assert about(story.well, vm) == about(story.down, vm) == about(story.again, vm)


def test_vms_are_up_while_they_are_well(story: Story) -> None:
    """The first scrape, and the count of targets in each."""
    for vm in (*HEALTHY, *WELL_BEFORE):
        assert value(story.well, "qemu_vm_up", vm=vm) == 1
    up = [
        value(text, "qemu_exporter_targets_up") for text in (story.well, story.down, story.mended)
    ]
    healthy = len(HEALTHY)
    assert up == [healthy + len(WELL_BEFORE), healthy, healthy + len(MENDED)]
    assert value(story.down, "qemu_exporter_targets") == healthy + len(DOWN)


def test_a_vm_that_owes_an_answer_is_not_asked_again(story: Story) -> None:
    """Commands would pile up in QEMU and be executed later."""
    commands = "qemu_exporter_qmp_commands_total"
    asked = [
        known_value(text, commands, command="query-status") for text in (story.down, story.again)
    ]
    assert asked[1] - asked[0] == len(HEALTHY)


@pytest.mark.parametrize("vm", MENDED)
def test_a_vm_that_is_mended_is_up_and_complete(story: Story, vm: str) -> None:
    """Its counters and its chain are back."""
    assert value(story.mended, "qemu_block_written_bytes_total", vm=vm) == 0
    assert value(story.mended, "qemu_block_device_backing_depth", vm=vm) == 0


def test_nothing_is_left_of_an_earlier_reason(story: Story) -> None:
    """A VM that is up has none."""
    for vm in (*HEALTHY, *MENDED):
        assert not labels_of(story.mended, "qemu_vm_scrape_error", vm=vm)
