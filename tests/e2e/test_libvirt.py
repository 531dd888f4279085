"""Both recipes for libvirt under a real libvirtd of the whole system, with its own systemd, hook and proxy."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import quote

import bcrypt
import pytest

from tests.conftest import series
from tests.e2e.host import Host, booted
from tests.e2e.lab import JOIN_SECONDS, ROOT, wait_until
from tests.e2e.reading import assert_never_lower, info, labels_of, value

pytestmark = pytest.mark.boots

RECIPES = ROOT / "deploy" / "recipes"
SOCKETS = "/run/qemu-block-exporter"
IMAGES = "/var/lib/libvirt/images"
HOOK = "/etc/libvirt/hooks/qemu.d/qemu-block-exporter"
URL = "http://127.0.0.1:9709"
WEB = {"basic_auth_users": {"ops": bcrypt.hashpw(b"ops", bcrypt.gensalt(4)).decode()}}
GRANT = {"users": ["ops"], "verbs": ["complete", "cancel", "commit"], "vms": ["*"]}
#: A domain of each recipe; the second has a name that systemd has to escape.
OWN, PROXIED = "web1", "data-base 2"
both = pytest.mark.parametrize("name", [OWN, PROXIED])
_DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}</devices>{monitor}</domain>"""
_DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{file}'/><target dev='{target}' bus='virtio'/></disk>"""


class Libvirt:
    """The host, its libvirtd and the exporter on it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.history: list[str] = []

    def virsh(self, *arguments: str) -> str:
        return self.host.run("virsh", "-q", *arguments)

    def metrics(self) -> str:
        """Scrape."""
        self.history.append(self.host.ask(f"{URL}/metrics", "ops:ops"))
        return self.history[-1]

    def until(self, holds: Callable[[str], object]) -> str:
        """Scrape until something holds, and return the exposition in which it first did."""
        wait_until(lambda: holds(self.metrics()), "a scrape in which it holds")
        return self.history[-1]

    def fresh(self) -> str:
        """Scrape in a sweep that begins after this call."""
        time.sleep(JOIN_SECONDS + 0.02)
        return self.metrics()

    @contextmanager
    def scraped(self) -> Iterator[None]:
        """Scrape without a pause meanwhile."""
        ended = threading.Event()

        def scrape() -> None:
            while not ended.wait(0.3):
                self.metrics()

        thread = threading.Thread(target=scrape)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def define(self, name: str, *disks: str, recipe: str = "") -> None:
        """Define a domain with disks of 16 MiB of data each."""
        for disk in disks:
            file = f"{IMAGES}/{name}-{disk}.qcow2"
            self.host.run("qemu-img", "create", "-q", "-f", "qcow2", file, "64M")
            self.host.run("qemu-io", "-c", "write -q 0 16M", file)
        xml = _DOMAIN.format(
            name=name,
            disks="".join(
                _DISK.format(file=f"{IMAGES}/{name}-{disk}.qcow2", target=disk) for disk in disks
            ),
            monitor=recipe.replace("NAME", name),
        )
        self.host.write("/root/domain.xml", xml)
        self.virsh("define", "/root/domain.xml")

    def start(self, name: str) -> None:
        """Start a domain, and wait for its socket where it is a proxy's."""
        self.virsh("start", name)
        wait_until(lambda: self.listens(name), "somebody listens")

    def write(self, name: str, device: str) -> None:
        """Write 16 MiB to a disk, as its guest would."""
        line = f'qemu-io -d /machine/peripheral/{device}/virtio-backend "write -q 0 16M"'
        self.virsh("qemu-monitor-command", name, "--hmp", line)

    def job(self, name: str, kind: str, device: str, command: str, disk: str, *more: str) -> None:
        """Have libvirt run a job on a disk, slowly until a scrape has shown it."""
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(self.virsh, command, name, disk, *more, "--wait", "--bandwidth", "1")
            seen = {"vm": name, "device": device, "job_type": kind}
            wait_until(lambda: self._shows("qemu_block_job_offset_bytes", seen), f"{kind} is seen")
            self.virsh("blockjob", name, disk, "--bandwidth", "1000")
            done.result()

    def _shows(self, family: str, labels: dict[str, str]) -> bool:
        return bool(series(self.history[-1], family, **labels))

    def has_socket(self, name: str) -> bool:
        return self.host.run("ls", "-F", SOCKETS).count(f"{name}.sock=") == 1

    def listens(self, name: str) -> bool:
        """Whether a domain's socket can be connected to: it is there a moment before."""
        lines = self.host.run("cat", "/proc/net/unix").splitlines()
        mine = [line.split() for line in lines if line.endswith(f"{SOCKETS}/{name}.sock")]
        return any(flags == "00010000" for _, _, _, flags, *_ in mine)

    def pid(self, name: str) -> int:
        """Return the process of a domain."""
        return int(self.host.run("cat", f"/run/libvirt/qemu/{name}.pid"))


@pytest.fixture(scope="module")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    """A host on which all is done that the recipes say, a domain of each, and the exporter."""
    with booted(tmp_path_factory.mktemp("host")) as host:
        # Control groups, and the kernel's own modules of security, are not this host's to give.
        host.write("/etc/libvirt/qemu.conf", 'cgroup_controllers = []\nsecurity_driver = "none"\n')
        for name in ("web", "config"):
            content = WEB if name == "web" else {"admin": {"grants": [GRANT]}}
            host.write(f"/etc/qbe/{name}.json", json.dumps(content))
        recipe = RECIPES / "libvirt"
        host.write(
            "/etc/systemd/system/qemu-qmp-proxy@.service",
            (recipe / "qemu-qmp-proxy@.service").read_text(),
        )
        host.write(HOOK, (recipe / "hook").read_text())
        host.run("chmod", "755", HOOK)
        host.systemctl("daemon-reload")
        host.systemctl("start", "libvirtd.service")
        host.exporter("--web.config.file=/etc/qbe/web.json", "--config.file=/etc/qbe/config.json",
                      "--web.enable-admin-api", "--qmp.timeout=10")  # fmt: skip
        running = Libvirt(host)
        running.define(OWN, "vda", "vdb", recipe=(recipe / "monitor.xml").read_text())
        running.define(PROXIED, "vda", "vdb")
        for name in (OWN, PROXIED):
            running.start(name)
        yield running
        # They are no children of the libvirtd's, and would outlive it.
        for name in running.virsh("list", "--name").splitlines():
            running.virsh("destroy", name)


@both
def test_a_domain_is_seen_with_all_its_disks(libvirt: Libvirt, name: str) -> None:
    """By libvirt's names, as libvirt's, complete with chains."""
    text = libvirt.metrics()
    vm = info(text, "qemu_vm_info", vm=name)
    devices = {each["device"] for each in labels_of(text, "qemu_block_device_info", vm=name)}

    assert value(text, "qemu_vm_up", vm=name) == value(text, "qemu_vm_running", vm=name) == 1
    assert (vm["name"], vm["manager"]) == (name, "libvirt")
    assert vm["uuid"] == libvirt.virsh("domuuid", name).strip()
    assert devices == {"virtio-disk0", "virtio-disk1"}
    assert value(text, "qemu_vm_storage_responding", vm=name) == 1


def test_a_socket_has_the_group_of_its_folder_whoever_made_it(libvirt: Libvirt) -> None:
    """QEMU's own is libvirt's user's, the proxy's is root's; and the group may write to both."""
    owners = {
        name: libvirt.host.run("stat", "-c", "%U:%G %A", f"{SOCKETS}/{name}.sock").strip()
        for name in (OWN, PROXIED)
    }

    assert owners == {OWN: "libvirt-qemu:kvm srwxrwxr-x", PROXIED: "root:kvm srw-rw----"}


@both
def test_libvirt_says_that_the_domain_is_tainted(libvirt: Libvirt, name: str) -> None:
    """By its own words, which the page has."""
    told = {
        OWN: "custom configuration parameters specified",
        PROXIED: "custom monitor control commands issued",
    }
    libvirt.metrics()
    page = (RECIPES / "libvirt.md").read_text()

    assert f"tainted: {told[name]}" in libvirt.virsh("dominfo", name)
    assert told[name] in page


@both
def test_libvirt_goes_on_with_its_work_while_it_is_scraped(libvirt: Libvirt, name: str) -> None:
    """A snapshot and its commit, a copy and a pull: each succeeds, and each outcome is in the metrics."""
    libvirt.history.clear()
    with libvirt.scraped():
        libvirt.virsh(
            "snapshot-create-as",
            name,
            "--disk-only",
            "--no-metadata",
            "--diskspec",
            "vdb,snapshot=no",
        )
        deep = libvirt.until(lambda text: depth(text, name) == 1)
        libvirt.write(name, "virtio-disk0")
        libvirt.job(name, "commit", "virtio-disk0", "blockcommit", "vda", "--active", "--pivot")
        libvirt.until(lambda text: ended(text, name, "commit"))
        libvirt.virsh(
            "snapshot-create-as",
            name,
            "--disk-only",
            "--no-metadata",
            "--diskspec",
            "vdb,snapshot=no",
            "two",
        )
        libvirt.job(name, "stream", "virtio-disk0", "blockpull", "vda")
        libvirt.until(lambda text: ended(text, name, "stream"))
        copy = f"{IMAGES}/{name}-copy.qcow2"
        libvirt.job(
            name, "mirror", "virtio-disk1", "blockcopy", "vdb", copy, "--transient-job", "--pivot"
        )
        text = libvirt.until(lambda text: ended(text, name, "mirror"))

    assert info(deep, "qemu_block_device_info", vm=name, device="virtio-disk0")["file"].startswith(
        IMAGES
    )
    assert not labels_of(text, "qemu_vm_scrape_error", vm=name)
    assert depth(text, name) == 0
    assert value(text, "qemu_vm_running", vm=name) == 1
    assert {value(scrape, "qemu_vm_up", vm=name) for scrape in libvirt.history} == {1}
    assert_never_lower(libvirt.history, vm=name)
    assert info(text, "qemu_block_device_info", vm=name, device="virtio-disk1")["file"] == copy


@both
def test_the_admin_api_leaves_the_domain_to_libvirt(libvirt: Libvirt, name: str) -> None:
    """What is granted on all VMs is not granted on this one."""
    url = f"{URL}/api/v1/admin/vms/{quote(name)}/block-jobs"
    refused = json.loads(
        libvirt.host.ask(url, "ops:ops", '{"action": "commit", "device": "virtio-disk0"}')
    )

    assert (refused["status"], refused["type"].rpartition("/")[2]) == (403, "managed-vm")


@pytest.mark.parametrize(("name", "recipe"), [("new one", ""), ("new", "monitor.xml")])
def test_domains_come_and_go_within_one_scrape(libvirt: Libvirt, name: str, recipe: str) -> None:
    """The socket comes with the domain and goes with it, and so does what is told of it."""
    libvirt.define(name, "vda", recipe=(RECIPES / "libvirt" / recipe).read_text() if recipe else "")
    assert not series(libvirt.metrics(), "qemu_vm_up", vm=name)
    libvirt.start(name)
    started = libvirt.fresh()
    libvirt.virsh("destroy", name)
    wait_until(lambda: not libvirt.has_socket(name), "the socket goes")
    gone = libvirt.fresh()

    assert value(started, "qemu_vm_up", vm=name) == 1
    assert info(started, "qemu_block_device_info", vm=name)["file"] == f"{IMAGES}/{name}-vda.qcow2"
    assert f'vm="{name}"' not in gone
    assert value(gone, "qemu_vm_up", vm=OWN) == value(gone, "qemu_vm_up", vm=PROXIED) == 1


def test_a_libvirtd_that_is_restarted_finds_its_proxies_started_anew(libvirt: Libvirt) -> None:
    """A domain with a monitor of its own does not notice, and both run on."""
    before = [libvirt.pid(name) for name in (OWN, PROXIED)]
    libvirt.host.systemctl("restart", "libvirtd.service")
    assert value(libvirt.fresh(), "qemu_vm_up", vm=OWN) == 1
    libvirt.until(lambda text: value(text, "qemu_vm_up", vm=PROXIED) == 1)

    assert [libvirt.pid(name) for name in (OWN, PROXIED)] == before


def test_a_qemu_that_is_stopped_is_told_apart_by_a_monitor_of_its_own_alone(
    libvirt: Libvirt,
) -> None:
    """Behind a proxy it is a VM that does not answer; and both are back when QEMU is."""
    host = libvirt.host
    pids = [str(libvirt.pid(name)) for name in (OWN, PROXIED)]
    host.run("kill", "-STOP", *pids)
    try:
        text = libvirt.fresh()
    finally:
        host.run("kill", "-CONT", *pids)
    reasons = [info(text, "qemu_vm_scrape_error", vm=name)["reason"] for name in (OWN, PROXIED)]

    assert reasons == ["stopped", "timeout"]
    libvirt.until(
        lambda text: value(text, "qemu_vm_up", vm=OWN) == value(text, "qemu_vm_up", vm=PROXIED) == 1
    )


def test_the_unit_of_the_proxy_is_one_and_is_confined(libvirt: Libvirt) -> None:
    """systemd has nothing to say about it, and finds it safe."""
    unit = libvirt.host.run("systemd-escape", "--template=qemu-qmp-proxy@.service", PROXIED).strip()
    verify = ["systemd-analyze", "verify", "--man=no", unit]
    security = libvirt.host.run("systemd-analyze", "security", "--no-pager", "--threshold=20", unit)

    assert not libvirt.host.run(*verify)
    assert " OK " in security.splitlines()[-1]


def depth(exposition: str, name: str) -> float | None:
    return value(exposition, "qemu_block_device_backing_depth", vm=name, device="virtio-disk0")


def ended(exposition: str, name: str, kind: str) -> bool:
    """Whether a job of this kind was completed, or ended behind a proxy just while it was asked for."""
    well = [f"qemu_block_jobs_{result}_total" for result in ("completed", "vanished")]
    return any(
        value(exposition, family, vm=name, job_type=kind) == 1
        for family in well[: 1 + (name == PROXIED)]
    )
