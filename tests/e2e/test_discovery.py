"""VMs that come and go while the exporter runs, and a configuration that is read again."""

from __future__ import annotations

import signal
import urllib.error
from collections.abc import Callable

import pytest

from tests.conftest import samples
from tests.e2e.lab import MIB, Disk, Exporter, Lab, Qemu, drive
from tests.e2e.reading import info, value


def start(lab: Lab, name: str) -> Qemu:
    """Start a VM with a disk of its own."""
    return lab.qemu(name, *drive("disk0", lab.image(f"{name}-disk")))


def about(exposition: str, vm: str) -> set[str]:
    """Return every sample that is about a VM."""
    return {sample for sample in samples(exposition) if f'vm="{vm}"' in sample}


def up(exposition: str, vm: str) -> float | None:
    return value(exposition, "qemu_vm_up", vm=vm)


def written(exposition: str, vm: str) -> float | None:
    return value(exposition, "qemu_block_written_bytes_total", vm=vm)


def test_a_vm_that_starts_is_in_the_next_scrape(lab: Lab) -> None:
    """Without a restart or a reload, and complete at once."""
    exporter = lab.exporter()
    assert value(exporter.metrics(), "qemu_exporter_targets") == 0
    start(lab, "vm")
    text = exporter.fresh()
    assert value(text, "qemu_exporter_targets") == value(text, "qemu_exporter_targets_up") == 1
    assert up(text, "vm") == 1
    assert written(text, "vm") == 0
    assert info(text, "qemu_block_device_info", vm="vm")["device"] == "disk0"
    assert info(text, "qemu_vm_info", vm="vm")["name"] == "vm"


def test_a_vm_that_quits_leaves_nothing_in_the_next_scrape(lab: Lab) -> None:
    """Its socket is gone: it is no target, and another one goes on."""
    vm = start(lab, "vm")
    start(lab, "other")
    exporter = lab.exporter()
    assert about(exporter.metrics(), "vm")
    vm.quit()
    text = exporter.fresh()
    assert not about(text, "vm")
    assert up(text, "other") == 1
    assert value(text, "qemu_exporter_targets") == 1


def test_a_vm_that_is_killed_is_down_and_its_successor_is_up(lab: Lab) -> None:
    """A socket that stays is a VM that should be there; a new one on it starts from 0."""
    vm = start(lab, "vm")
    exporter = lab.exporter()
    Disk(vm, "disk0").write(0, MIB)
    before = exporter.metrics()
    assert written(before, "vm") == MIB

    vm.kill()
    down = exporter.fresh()
    assert up(down, "vm") == 0
    assert info(down, "qemu_vm_scrape_error", vm="vm")["reason"] == "refused"
    seen = "qemu_vm_last_seen_timestamp_seconds"
    assert value(down, seen) == value(before, seen)
    assert not [sample for sample in about(down, "vm") if sample.startswith("qemu_block_")]

    successor = start(lab, "vm")
    text = exporter.fresh()
    assert up(text, "vm") == 1
    assert written(text, "vm") == 0
    Disk(successor, "disk0").write(0, 2 * MIB)
    assert written(exporter.fresh(), "vm") == 2 * MIB


def test_a_vm_that_is_replaced_between_two_scrapes_shows_the_new_one(lab: Lab) -> None:
    """Nothing that was known of the old one stays: not its name, its file or its counters."""
    vm = start(lab, "vm")
    exporter = lab.exporter()
    Disk(vm, "disk0").write(0, MIB)
    exporter.metrics()
    vm.kill()
    image = lab.image("successor")
    lab.qemu("vm", *drive("disk0", image), "-uuid", "12345678-1234-1234-1234-123456789abc")
    text = exporter.fresh()
    assert up(text, "vm") == 1
    assert written(text, "vm") == 0
    assert info(text, "qemu_block_device_info", vm="vm")["file"] == str(image)
    assert info(text, "qemu_vm_info", vm="vm")["uuid"] == "12345678-1234-1234-1234-123456789abc"


def test_a_vm_that_is_renamed_by_its_socket_takes_its_new_name(lab: Lab) -> None:
    """The label is the socket's stem: the old series end as the new ones begin."""
    vm = start(lab, "old")
    exporter = lab.exporter()
    assert up(exporter.metrics(), "old") == 1
    vm.socket.rename(lab.folder / "new.sock")
    # The connection under the old name has to be left first: the monitor serves one client.
    text = exporter.until(lambda text: up(text, "new") == 1)
    assert not about(text, "old")


def by_signal(exporter: Exporter) -> None:
    exporter.signal(signal.SIGHUP)


def by_request(exporter: Exporter) -> None:
    assert exporter.get("/-/reload", "POST") == ""


@pytest.mark.parametrize("reload", [by_signal, by_request])
def test_a_reload_takes_the_new_configuration(lab: Lab, reload: Callable[[Exporter], None]) -> None:
    """Targets and settings change; a VM that both configurations have keeps its connection."""
    start(lab, "kept")
    start(lab, "dropped")
    start(lab, "added")
    config = lab.folder / "config.yml"

    def configure(vm: str, more: str = "") -> None:
        sockets = f"[{lab.folder}/kept.sock, {lab.folder}/{vm}.sock]"
        config.write_text(f"groups: [{{name: lab, sockets: {sockets}}}]\n{more}")

    configure("dropped")
    flags = (f"--config.file={config}", "--web.enable-lifecycle")
    exporter = lab.exporter(*flags, sockets=False)
    before = exporter.metrics()
    assert (up(before, "kept"), up(before, "dropped"), up(before, "added")) == (1, 1, None)

    configure("added")
    reload(exporter)
    text = exporter.until(lambda text: up(text, "added") == 1)
    assert up(text, "kept") == 1
    assert not about(text, "dropped")
    assert value(text, "qemu_exporter_config_last_reload_successful") == 1
    # A connection for each VM that was ever there, and none anew.
    commands = "qemu_exporter_qmp_commands_total"
    assert value(text, commands, command="qmp_capabilities") == 3


def test_a_configuration_that_is_wrong_changes_nothing(lab: Lab) -> None:
    """The exporter goes on by the old one, says so, and takes a right one again."""
    start(lab, "vm")
    config = lab.folder / "config.yml"
    right = f"groups: [{{sockets: ['{lab.folder}/*.sock']}}]\n"
    config.write_text(right)
    flags = (f"--config.file={config}", "--web.enable-lifecycle")
    exporter = lab.exporter(*flags, sockets=False)
    exporter.metrics()

    config.write_text("groups: [{socket: typo}]\n")
    with pytest.raises(urllib.error.HTTPError) as refused:
        by_request(exporter)
    with refused.value:
        assert refused.value.code == 500
    text = exporter.fresh()
    assert up(text, "vm") == 1
    assert value(text, "qemu_exporter_config_last_reload_successful") == 0
    assert "socket" in exporter.said().partition("not reloaded")[2]

    config.write_text(right)
    by_request(exporter)
    assert value(exporter.fresh(), "qemu_exporter_config_last_reload_successful") == 1
