"""The recipes for QEMU and storage daemons by systemd, and for Proxmox VE as far as its parts can be had.

libvirt's have a file of their own. What Proxmox VE's tools do is played: they are not to be had.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

from tests.conftest import series
from tests.e2e.host import Host, booted
from tests.e2e.lab import JOIN_SECONDS, ROOT, wait_until
from tests.e2e.reading import info, labels_of, value

pytestmark = pytest.mark.boots

RECIPES = ROOT / "deploy" / "recipes"
URL = "http://127.0.0.1:9709/metrics"
#: Connects for each command as PVE::QMPClient does: tries again where the queue is full, has 5 s to be answered.
_QM = """
import json, os, socket, sys, time
number = 0
while number < 400 or not os.path.exists(sys.argv[2]):
    number += 1
    since = time.monotonic()
    while True:
        monitor = socket.socket(socket.AF_UNIX)
        monitor.setblocking(False)
        try:
            monitor.connect(sys.argv[1])
            break
        except BlockingIOError:
            monitor.close()
            assert time.monotonic() - since < 5, "no connection"
            time.sleep(0.1)
    monitor.settimeout(5)
    lines = monitor.makefile("rb")
    for command in ("qmp_capabilities", "query-status"):
        monitor.sendall(json.dumps({"execute": command, "arguments": {}, "id": command}).encode())
        while (answer := json.loads(lines.readline())).get("id") != command:
            pass
        assert "return" in answer, answer
    lines.close()
    monitor.close()
print("connected", number)
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a VM, a storage daemon, and a VM as Proxmox VE starts it: as root, in a folder of root's."""
    with booted(tmp_path_factory.mktemp("host")) as host:
        for path in (RECIPES / "qemu").iterdir():
            host.write(f"/etc/systemd/system/{path.name}", path.read_text())
        # Both in one configuration, as a host never has them.
        plain = {"name": "plain", "sockets": ["/run/qemu-block-exporter/*.sock"]}
        recipe = yaml.safe_load((RECIPES / "proxmox" / "config.yml").read_text())
        host.write("/etc/qbe.json", json.dumps({"groups": [plain, *recipe["groups"]]}))
        drop_in = dict(
            re.findall(
                r"^(\w+)=(.*)", (RECIPES / "proxmox" / "root.conf").read_text(), re.MULTILINE
            )
        )
        # What of the unit's sandbox is about whom the exporter may be.
        host.exporter(
            "--config.file=/etc/qbe.json", CapabilityBoundingSet="", PrivateUsers="yes", **drop_in
        )
        host.run("mkdir", "/run/qemu-server")
        host.run("useradd", "--system", "--gid=kvm", "--no-create-home", "qemu")
        host.systemctl("daemon-reload")
        for name in ("web1", "store", "100"):
            host.run("qemu-img", "create", "-q", "-f", "qcow2", f"/srv/{name}.qcow2", "64M")
            host.run("chown", "qemu:kvm", f"/srv/{name}.qcow2")
        host.write(
            "/etc/qemu/web1.env",
            "ARGS=-S -accel tcg -m 16 -drive file=/srv/web1.qcow2,format=qcow2,if=virtio\n",
        )
        node = "--blockdev driver=file,filename=/srv/store.qcow2,node-name=file --blockdev driver=qcow2,file=file,node-name=store"
        host.write("/etc/qemu/store.env", f"ARGS={node}\n")
        host.systemctl("start", "qemu@web1", "qemu-storage-daemon@store")
        host.start(
            "vm100", "/usr/bin/qemu-system-x86_64", "-name", "mail,debug-threads=on", "-S", "-nodefaults",
            "-display", "none", "-accel", "tcg", "-m", "16", "-chardev",
            "socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
            "-drive", "file=/srv/100.qcow2,format=qcow2,if=none,id=drive-scsi0",
        )  # fmt: skip
        wait_until(lambda: all_up(host.ask(URL)), "all are seen")
        yield host


def fresh(host: Host) -> str:
    """Scrape in a sweep of its own, in which all answer."""
    host.run("sleep", str(JOIN_SECONDS + 0.02))
    return str(wait_until(lambda: all_up(host.ask(URL)), "all are seen"))


def all_up(exposition: str) -> str:
    return exposition if value(exposition, "qemu_exporter_targets_up") == 3 else ""


def test_a_virtual_machine_by_a_unit_is_seen(host: Host) -> None:
    """Its socket is for the group, and its name is the unit's."""
    text = fresh(host)

    assert info(text, "qemu_vm_info", vm="web1")["name"] == "web1"
    assert info(text, "qemu_block_device_info", vm="web1")["file"] == "/srv/web1.qcow2"


def test_a_storage_daemon_by_a_unit_shows_its_nodes(host: Host) -> None:
    """Without a flag, by the query of the page."""
    highest = series(
        fresh(host), "qemu_block_node_write_highest_offset_bytes", vm="store", device=""
    )

    assert len(highest) == 2
    assert not labels_of(fresh(host), "qemu_vm_status", vm="store")


def test_a_virtual_machine_of_proxmox_has_its_id_and_its_name(host: Host) -> None:
    """Through a socket that root alone may write to, by a root who has lost all else."""
    text = fresh(host)

    assert info(text, "qemu_vm_info", vm="100")["name"] == "mail"
    assert info(text, "qemu_block_device_info", vm="100")["device"] == "drive-scsi0"
    assert host.run("stat", "-c", "%U %a", "/run/qemu-server/100.qmp") == "root 755\n"


def test_a_tool_that_connects_for_each_command_never_fails(host: Host) -> None:
    """While the exporter does the same, and is answered too."""
    enough = "/run/scraped-enough"
    host.start(
        "qm",
        "/usr/bin/python3",
        "-c",
        _QM,
        "/var/run/qemu-server/100.qmp",
        enough,
        RemainAfterExit="yes",
    )
    for _ in range(20):
        host.ask(URL)
    # It was at it all the while.
    assert host.property("SubState", "qm") == "running", host.log("qm")
    host.run("touch", enough)
    wait_until(lambda: host.property("SubState", "qm") != "running", "the tool ends")

    assert host.property("Result", "qm") == "success", host.log("qm")
    assert "connected" in host.log("qm").split()
    assert value(fresh(host), "qemu_vm_up", vm="100") == 1


def test_systemd_finds_nothing_to_say_about_the_units(host: Host) -> None:
    """Neither an unknown setting nor a program that is not there."""
    assert not host.run(
        "systemd-analyze",
        "verify",
        "--man=no",
        "qemu@web1.service",
        "qemu-storage-daemon@store.service",
    )


def test_the_configuration_for_proxmox_is_one() -> None:
    """As the program itself says."""
    check = [
        sys.executable,
        "-m",
        "exporter",
        "--config.check",
        f"--config.file={RECIPES}/proxmox/config.yml",
    ]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
