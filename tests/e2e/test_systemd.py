"""The Debian package and its service under a real systemd, with real QEMU, in the sandbox of the unit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bcrypt
import pytest

from tests.conftest import samples
from tests.e2e.host import Host, booted
from tests.e2e.lab import has_client, wait_until
from tests.packages import ROOT, Packages, run

# A busy machine takes its time to build the package, boot the host and install.
pytestmark = [pytest.mark.boots, pytest.mark.timeout(400)]
NAME = "qemu-block-exporter"
SERVICE, SOCKET = f"{NAME}.service", f"{NAME}.socket"
URL = "http://127.0.0.1:9709"
DROP_IN = f"/etc/systemd/system/{SERVICE}.d/test.conf"
#: Where the image of each VM is.
IMAGES = {
    "plain": "/var/lib/vms/plain.qcow2",
    "home": "/home/vms/home.qcow2",
    "tmp": "/tmp/tmp.qcow2",
    "dev": "/dev/dev.qcow2",
    "closed": "/var/lib/vms/closed.qcow2",
}


#: Talks to a VM until it is ended.
_CLIENT = f"""
import socket, time
monitor = socket.socket(socket.AF_UNIX)
monitor.connect("/run/{NAME}/tmp.sock")
monitor.recv(1)
open("/run/greeted", "w").close()
time.sleep(999)
"""


class Service:
    """The service on its host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @property
    def pid(self) -> str:
        return self.host.property("MainPID", SERVICE)

    def metrics(self) -> dict[str, str]:
        """Scrape."""
        return samples(self.host.ask(f"{URL}/metrics"))

    def up(self) -> set[str]:
        """Return the VMs that answer."""
        found = self.metrics()
        return {vm for vm in IMAGES if found.get(f'qemu_vm_up{{vm="{vm}"}}') == "1"}

    def left(self, vm: str) -> None:
        """Wait until a VM has seen that the service has ended."""
        path = f"/run/{NAME}/{vm}.sock"
        wait_until(
            lambda: not has_client(self.host.run("cat", "/proc/net/unix"), path), f"{vm} is left"
        )

    def storage(self) -> set[str]:
        """Return the VMs whose storage is seen and answers."""
        found = self.metrics()
        return {vm for vm in IMAGES if found.get(f'qemu_vm_storage_responding{{vm="{vm}"}}') == "1"}

    def reasons(self) -> dict[str, str]:
        """Return why each VM that is down is."""
        found = [
            re.fullmatch(r'qemu_vm_scrape_error\{vm="(\w+)",reason="(\w+)"\}', key)
            for key in self.metrics()
        ]
        return {match[1]: match[2] for match in found if match}

    @contextmanager
    def configured(self, unit: str = "", arguments: str = "") -> Iterator[None]:
        """Restart it with lines of a drop-in and with flags, and put all back."""
        self.host.write(DROP_IN, f"[Service]\n{unit}\n")
        self.host.write(f"/etc/default/{NAME}", f'ARGS="{arguments}"\n')
        self.host.systemctl("daemon-reload")
        try:
            self.host.systemctl("restart", SERVICE)
            yield
        finally:
            self.host.run("cp", f"/etc/default/{NAME}.dist", f"/etc/default/{NAME}")
            self.host.run("rm", DROP_IN)
            self.host.systemctl("daemon-reload")
            self.host.systemctl("restart", SERVICE)


@pytest.fixture(scope="module")
def service(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A host with the package and a few VMs, each with one disk of two layers."""
    with booted(tmp_path_factory.mktemp("host")) as host:
        shutil.copy(packages.deb, host.root / "root/package.deb")
        host.run("dpkg", "--force-unsafe-io", "--install", "/root/package.deb")
        host.run("cp", f"/etc/default/{NAME}", f"/etc/default/{NAME}.dist")
        host.run("useradd", "--system", "--gid=kvm", "--no-create-home", "qemu-vm")
        host.run("install", "--directory", "--mode=0711", "/var/lib/vms", "/home/vms")
        for vm, image in IMAGES.items():
            host.run("sh", "-ec", f"qemu-img create -q -f qcow2 {image}.base 8M; "
                     f"qemu-img create -q -f qcow2 -b {image}.base -F qcow2 {image}; "
                     f"chown qemu-vm:kvm {image} {image}.base; chmod 660 {image} {image}.base")  # fmt: skip
            host.start(
                f"vm-{vm}", "/usr/bin/qemu-system-x86_64", "-name", vm, "-machine", "none", "-accel", "tcg,tb-size=1",
                "-m", "16", "-nodefaults", "-display", "none", "-drive", f"if=none,id=disk0,file={image},format=qcow2",
                "-qmp", f"unix:/run/{NAME}/{vm}.sock,server=on,wait=off",
                User="qemu-vm", Group="kvm", UMask="0022" if vm == "closed" else "0007",
            )  # fmt: skip
        running = Service(host)
        wait_until(
            lambda: len(running.reasons()) == 1 and len(running.storage()) == 3, "the VMs are seen"
        )
        yield running


def test_the_package_starts_the_service_as_a_user_of_its_own(service: Service) -> None:
    """It said READY, is there after a boot, and its socket is a choice."""
    host = service.host
    status = dict(
        line.split(":\t")
        for line in host.run("cat", f"/proc/{service.pid}/status").splitlines()
        if ":\t" in line
    )

    assert host.property("ActiveState", SERVICE) == "active"
    assert host.property("StatusText", SERVICE).startswith("version ")
    assert host.systemctl("is-enabled", SERVICE) == "enabled\n"
    assert host.run("systemctl", "is-enabled", SOCKET, check=False) == "disabled\n"
    assert host.run("stat", "-c", "%U:%G %a", f"/run/{NAME}") == f"{NAME}:kvm 3770\n"
    assert host.run("stat", "-c", "%U %a", f"/var/lib/{NAME}") == f"{NAME} 700\n"
    assert host.run("id", "-un", status["Uid"].split()[0]) == f"{NAME}\n"
    assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (0, "1", "2")


def test_systemd_finds_nothing_to_say_about_the_units(service: Service) -> None:
    """Neither an unknown setting nor a program that is not there."""
    for arguments in (SERVICE, SOCKET), ("--user", SERVICE):
        verify = ["env", "XDG_RUNTIME_DIR=/run", "systemd-analyze", "verify", "--man=no"]
        assert not service.host.run(*verify, *arguments)


def test_the_exposure_is_below_two() -> None:
    """And its verdict is OK."""
    unit = ROOT / "deploy/systemd" / SERVICE
    said = run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=19", "--no-pager", unit]
    )
    verdict = re.search(r"exposure level for \S+: ([\d.]+) (\w+)", said)

    assert verdict is not None
    assert float(verdict[1]) < 2.0
    assert verdict[2] == "OK"


def test_a_vm_whose_socket_has_the_group_is_up_and_its_storage_is_seen(service: Service) -> None:
    """Also where its images are in /home. What QEMU made with umask 022 says how it is."""
    found = service.metrics()

    assert service.up() == {"plain", "home", "tmp", "dev"}
    assert service.storage() == {"plain", "home", "dev"}
    assert service.reasons() == {"closed": "permission"}
    assert any(
        key.startswith('qemu_block_node_storage_available_bytes{vm="plain"') for key in found
    )


#: What each setting takes from the exporter, as deploy/systemd/README.md has it.
@pytest.mark.parametrize(
    ("setting", "storage", "stopped", "busy"),
    [
        ("ProtectProc=default", {"home", "dev"}, "stopped", "busy"),
        ("ProtectProc=invisible", {"home", "dev"}, "greeting_timeout", "busy"),
        ("ProcSubset=pid", {"home", "dev"}, "stopped", "busy"),
        ("RestrictAddressFamilies=~AF_NETLINK", {"home", "dev"}, "stopped", "busy"),
        ("ProtectHome=yes", {"dev"}, "stopped", "busy"),
        ("PrivateDevices=yes", {"home"}, "stopped", "busy"),
        ("PrivateTmp=no", {"home", "dev", "tmp"}, "stopped", "busy"),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else "",
)
def test_what_each_setting_of_the_sandbox_takes_away(
    service: Service, setting: str, storage: set[str], stopped: str, busy: str
) -> None:
    """What is reported of a VM that is stopped, and of one whose socket another client has."""
    host = service.host
    with service.configured(setting, "--qmp.timeout=5"):
        wait_until(lambda: service.up() == IMAGES.keys() - {"closed"}, "all are up")
        assert service.storage() - {"plain"} == storage
        host.systemctl("stop", SERVICE)
        host.start("client", "/usr/bin/python3", "-c", _CLIENT)
        wait_until(lambda: "greeted" in host.run("ls", "/run").split(), "the client is greeted")
        host.systemctl("kill", "--signal=STOP", "vm-plain")
        pid = host.property("MainPID", "vm-plain")
        wait_until(lambda: host.run("ps", "-o", "s=", "-p", pid).strip() == "T", "the VM stops")
        host.systemctl("start", SERVICE)
        try:
            reasons = wait_until(
                lambda: len(found := service.reasons()) == 3 and found, "both are seen to be down"
            )
        finally:
            host.systemctl("kill", "--signal=CONT", "vm-plain")
            host.systemctl("stop", "client")
            host.run("rm", "-f", "/run/greeted")

    assert reasons == {"closed": "permission", "plain": stopped, "tmp": busy}
    assert setting.partition("=")[0] in (ROOT / "deploy/systemd/README.md").read_text()


def test_a_mount_that_hangs_neither_keeps_it_from_starting_nor_goes_unseen(
    service: Service,
) -> None:
    """One that comes later is seen in the sandbox; a dead one is not touched when it is set up.

    It holds no image. Of VMs whose images are known nothing ages; of others nobody can tell that.
    """
    host = service.host
    with service.configured(arguments="--collector.topology.max-age=1"):
        host.run("mkdir", "/srv/behind", "/srv/share")
        uncached = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
        host.start("share", "bindfs", "-f", "-o", uncached, "/srv/behind", "/srv/share")
        wait_until(
            lambda: "/srv/share" in host.run("cat", f"/proc/{service.pid}/mountinfo"),
            "the mount is there",
        )
        wait_until(lambda: "plain" in service.storage(), "its images are known")
        host.systemctl("kill", "--signal=STOP", "share")
        try:
            stamp = 'qemu_vm_topology_timestamp_seconds{vm="plain"}'
            since = float(service.metrics()[stamp])
            wait_until(lambda: float(service.metrics()[stamp]) > since + 4, "QEMU is asked again")
            assert "plain" in service.storage()
            host.systemctl("restart", SERVICE)
            wait_until(lambda: service.metrics().get('qemu_vm_up{vm="plain"}') == "1", "it is up")
            assert not {'qemu_vm_storage_responding{vm="plain"}', stamp} & service.metrics().keys()
        finally:
            host.systemctl("kill", "--signal=CONT", "share")
        wait_until(lambda: "plain" in service.storage(), "it answers again")
        host.systemctl("stop", "share")


def test_a_reload_reads_the_configuration_again_in_the_same_process(service: Service) -> None:
    """One that is wrong is logged and said in a metric; systemd sees a service that is well."""
    host = service.host
    host.write("/etc/qbe.yml", f"groups: [{{name: all, sockets: ['/run/{NAME}/*.sock']}}]\n")
    with service.configured(arguments="--config.file=/etc/qbe.yml"):
        before = service.pid
        host.write("/etc/qbe.yml", "groups: wrong\n")
        host.systemctl("reload", SERVICE)
        wait_until(
            lambda: service.metrics()["qemu_exporter_config_last_reload_successful"] == "0",
            "it is read",
        )
        host.write("/etc/qbe.yml", f"groups: [{{name: few, sockets: ['/run/{NAME}/home.sock']}}]\n")
        host.systemctl("reload", SERVICE)
        wait_until(lambda: service.metrics()["qemu_exporter_targets"] == "1", "it is read")

        assert service.pid == before
        assert host.property("ActiveState", SERVICE) == "active"
    assert "configuration not reloaded" in host.log(SERVICE)


def test_the_watchdog_hears_of_a_service_that_is_well_and_ends_one_that_hangs(
    service: Service,
) -> None:
    """By SIGABRT, and it is started again."""
    host = service.host
    assert host.property("WatchdogUSec", SERVICE) == "30s"
    with service.configured("WatchdogSec=2\nRestartSec=0"):
        first = host.property("WatchdogTimestampMonotonic", SERVICE)
        wait_until(
            lambda: host.property("WatchdogTimestampMonotonic", SERVICE) != first,
            "the watchdog is fed",
        )
        before = service.pid
        host.run("kill", "-STOP", before)
        wait_until(lambda: service.pid not in {before, "0"}, "it is started again")

        wait_until(lambda: host.property("ActiveState", SERVICE) == "active", "it runs")
    assert f"{SERVICE}: Watchdog timeout (limit 2s)!" in host.log(SERVICE)


def test_a_service_that_fails_is_started_again_and_one_that_is_ended_is_not(
    service: Service,
) -> None:
    """Whatever ended it; what the administrator wanted is no failure."""
    host = service.host
    with service.configured("RestartSec=0"):
        before = service.pid
        host.run("kill", "-KILL", before)
        wait_until(lambda: service.pid not in {before, "0"}, "it is started again")
        wait_until(lambda: host.property("ActiveState", SERVICE) == "active", "it runs")
        assert host.property("NRestarts", SERVICE) == "1"

        host.run("kill", "-TERM", service.pid)
        wait_until(lambda: host.property("ActiveState", SERVICE) == "inactive", "it ends")
        assert host.property("Result", SERVICE) == "success"


def test_by_its_socket_it_starts_when_it_is_asked_and_no_scrape_is_refused(
    service: Service,
) -> None:
    """systemd has the port while the service is not there."""
    host = service.host
    with service.configured():
        host.systemctl("stop", SERVICE)
        host.write(f"/etc/default/{NAME}", 'ARGS="--web.systemd-socket"\n')
        host.systemctl("start", SOCKET)
        try:
            assert host.property("ActiveState", SERVICE) == "inactive"
            service.left("plain")
            assert service.metrics()['qemu_vm_up{vm="plain"}'] == "1"
            assert host.property("ActiveState", SERVICE) == "active"
            host.run("kill", "-TERM", service.pid)
            wait_until(lambda: host.property("ActiveState", SERVICE) == "inactive", "it ends")
            service.left("plain")
            assert service.metrics()['qemu_vm_up{vm="plain"}'] == "1"
        finally:
            host.systemctl("stop", SERVICE, SOCKET)


def test_the_admin_api_works_in_the_sandbox_and_snapshots_with_what_snapshots_conf_adds(
    service: Service,
) -> None:
    """A commit is on record in the state directory; a snapshot needs a directory that can be written to."""
    host = service.host
    password = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    host.write("/etc/qbe-web.yml", f"basic_auth_users:\n  ops: {password}\n")
    host.write("/etc/qbe.yml", f"groups: [{{name: all, sockets: ['/run/{NAME}/*.sock']}}]\nadmin:\n  grants:\n"
               "    - {users: [ops], verbs: [commit, snapshot], vms: ['*'], directories: [/srv/overlays],\n"
               "       same_files: true}\n")  # fmt: skip
    host.run(
        "install", "--directory", "--mode=0770", f"--owner={NAME}", "--group=kvm", "/srv/overlays"
    )
    flags = "--web.enable-admin-api --web.config.file=/etc/qbe-web.yml --config.file=/etc/qbe.yml"
    admin = f"{URL}/api/v1/admin/vms"
    with service.configured(arguments=flags):
        wait_until(
            lambda: 'qemu_vm_up{vm="home"} 1' in host.ask(f"{URL}/metrics", "ops:secret"),
            "it is up",
        )
        niceness = host.run("ps", "-L", "-o", "ni=", "-p", service.pid).split()
        # One of the other VMs may not be opened, so that nobody knows its layers.
        commit = {
            "action": "commit",
            "device": "disk0",
            "job_id": "qbe-sandbox",
            "unseen_neighbours": "allow",
        }
        accepted = json.loads(
            host.ask(f"{admin}/home/block-jobs", "ops:secret", json.dumps(commit))
        )
        snapshot = json.dumps({"device": "disk0", "file": "/srv/overlays/plain.qcow2"})
        refused = json.loads(host.ask(f"{admin}/plain/snapshots", "ops:secret", snapshot))

        assert "10" in niceness, "the thread that checks passwords does not give way"
        assert accepted.get("job_id") == "qbe-sandbox", accepted
        assert "qbe-sandbox" in host.run("find", f"/var/lib/{NAME}", "-user", NAME)
        assert "cannot be written to from here" in refused["detail"]
    with service.configured(_without_head("snapshots.conf"), flags):
        wait_until(
            lambda: 'qemu_vm_up{vm="plain"} 1' in host.ask(f"{URL}/metrics", "ops:secret"),
            "it is up",
        )
        made = json.loads(host.ask(f"{admin}/plain/snapshots", "ops:secret", snapshot))

        assert "type" not in made, made
        assert (
            host.run("stat", "-c", "%U:%G %a", "/srv/overlays/plain.qcow2") == f"{NAME}:kvm 660\n"
        )


def _without_head(name: str) -> str:
    return (ROOT / "deploy/systemd" / name).read_text().replace("[Service]", "")


def test_the_service_of_one_user_collects_that_users_vms(service: Service) -> None:
    """Under the user's own systemd, without root."""
    host = service.host
    host.run("useradd", "--create-home", "joe")
    host.run("install", "--directory", "--owner=joe", "--mode=0700", "/run/user/4711")
    host.start(
        "joe",
        "/lib/systemd/systemd",
        "--user",
        User="joe",
        Delegate="yes",
        Environment="XDG_RUNTIME_DIR=/run/user/4711",
    )
    user = [
        "runuser",
        "-u",
        "joe",
        "--",
        "env",
        "XDG_RUNTIME_DIR=/run/user/4711",
        "systemctl",
        "--user",
    ]
    wait_until(
        lambda: host.run(*user, "is-system-running", check=False) == "running\n",
        "the user's systemd runs",
    )
    host.run("install", "--directory", "--owner=joe", "/home/joe/.config")
    host.write(
        "/home/joe/.config/qemu-block-exporter.env", "ARGS=--web.listen-address=127.0.0.1:9710\n"
    )
    host.run(*user, "start", NAME)
    host.start(
        "vm-joe", "/usr/bin/qemu-system-x86_64", "-machine", "none", "-accel", "tcg,tb-size=1", "-display", "none",
        "-qmp", f"unix:/run/user/4711/{NAME}/mine.sock,server=on,wait=off", User="joe",
    )  # fmt: skip

    wait_until(
        lambda: 'qemu_vm_up{vm="mine"} 1' in host.ask("http://127.0.0.1:9710/metrics"),
        "the VM is up",
    )
    assert host.run(*user, "show", "--value", "-p", "StatusText", NAME).startswith("version ")
    host.run(*user, "stop", NAME)
    host.systemctl("stop", "vm-joe", "joe")


def test_an_upgrade_restarts_the_service_with_the_flags_that_it_had(service: Service) -> None:
    """What the administrator wrote stays, without a question."""
    host = service.host
    before = service.pid
    host.write(f"/etc/default/{NAME}", 'ARGS="--web.disable-exporter-metrics"\n')
    host.run("dpkg", "--force-unsafe-io", "--install", "/root/package.deb")

    assert service.pid not in {before, "0"}
    assert "qemu_exporter_targets" not in service.metrics()


def test_the_page_on_upgrades_leads_back_to_an_older_version_and_forth_again(
    service: Service, packages: Packages, tmp_path: Path
) -> None:
    """By its own commands: the flags stay, and the new version judges the configuration before it is installed."""
    host, page = service.host, (ROOT / "deploy" / "UPGRADING.md").read_text()
    run(["dpkg-deb", "-R", packages.deb, tmp_path / "old"])
    control = tmp_path / "old/DEBIAN/control"
    control.write_text(
        re.sub("^Version: .*$", "Version: 0.0.1-1", control.read_text(), flags=re.MULTILINE)
    )
    run(
        [
            "dpkg-deb",
            "--root-owner-group",
            "-b",
            tmp_path / "old",
            host.root / f"root/{NAME}_OLD_amd64.deb",
        ]
    )
    shutil.copy(packages.deb, host.root / f"root/{NAME}_NEW_amd64.deb")
    host.write("/etc/apt/apt.conf.d/yes", 'APT::Get::Assume-Yes "true";\n')
    host.write("/root/good.yml", "groups: [{name: all, sockets: ['/run/*.sock']}]\n")
    host.write("/root/web.yml", "http_server_config: {http2: true}\n")
    host.write("/root/wrong.yml", "of_the_future: 1\n")
    check = block(page, "The new version can check").replace(
        "--web.config.file=FILE", "--web.config.file=web.yml"
    )
    forth, back = re.findall(r"^\| Debian package \| `(apt install [^`]+)`", page, re.MULTILINE)

    def shell(command: str, **more: bool) -> str:
        return host.run(
            "sh", "-ec", f"cd /root; PATH=/usr/sbin:/usr/bin:/sbin:/bin; {command}", **more
        )

    shell(check.replace("FILE", "good.yml"))
    assert "of_the_future" in shell(f"({check.replace('FILE', 'wrong.yml')}) 2>&1", check=False)
    for command, version in (
        (back, "0.0.1-1"),
        (forth, host.run("dpkg-query", "-Wf", "${Version}", NAME)),
    ):
        before = service.pid
        shell(command)
        assert host.run("dpkg-query", "-Wf", "${Version}", NAME) == version
        assert service.pid not in {before, "0"}
        assert "qemu_exporter_targets" not in service.metrics()


def block(page: str, after: str) -> str:
    """Return the commands that stand first on a page after some words."""
    found = re.search(r"\n\n((?:    .*\n)+)", page[page.index(after) :])
    assert found is not None
    return re.sub("^    ", "", found[1], flags=re.MULTILINE)


def test_a_package_that_is_purged_leaves_nothing_but_its_user(
    service: Service, tmp_path: Path
) -> None:
    """Removed, it leaves its configuration and state. A socket that was enabled goes with it too."""
    host = service.host
    host.systemctl("enable", SOCKET)
    host.run("dpkg", "--force-unsafe-io", "--install", "/root/package.deb")
    assert host.systemctl("is-enabled", SOCKET) == "enabled\n"
    ours = [
        "find",
        "/etc",
        "/lib",
        "/usr",
        "/var",
        "-xdev",
        "-name",
        f"*{NAME}*",
        "-not",
        "-path",
        "/var/log/*",
    ]
    host.run("systemctl", "stop", *(f"vm-{vm}" for vm in IMAGES))
    host.run("rm", f"/etc/default/{NAME}.dist")
    host.run("dpkg", "--force-unsafe-io", "--remove", NAME)
    left = host.run(*ours).split()

    assert host.property("ActiveState", SERVICE) == "inactive"
    assert f"/etc/default/{NAME}" in left
    assert f"/var/lib/{NAME}" in left
    assert not [path for path in left if path.startswith("/usr")]
    host.run("dpkg", "--force-unsafe-io", "--purge", NAME)
    assert not [path for path in host.run(*ours).split() if not path.startswith("/work")]
    assert host.run("getent", "passwd", NAME).startswith(f"{NAME}:")


def test_the_page_leads_to_a_service_and_to_a_port_by_socket_without_the_package(
    service: Service,
) -> None:
    """Its commands, as they stand there, on a host on which nothing is left; the package's program is moved."""
    host, page = service.host, (ROOT / "deploy" / "systemd" / "README.md").read_text()
    host.run("userdel", NAME)
    shutil.copytree(ROOT / "deploy" / "systemd", host.root / "root/systemd")
    host.run("sh", "-ec", f"cd /opt; dpkg -x /root/package.deb parts; mkdir -p {NAME}/bin;"
             f"sed s,/usr/lib,/opt/parts/usr/lib, parts/usr/bin/{NAME} > {NAME}/bin/{NAME}; chmod 755 {NAME}/bin/{NAME}")  # fmt: skip
    host.run("sh", "-ec", f"cd /root/systemd; {block(page, '# As a service')}")
    assert "qemu_exporter_targets 0" in host.ask(f"{URL}/metrics")
    assert host.run("stat", "-c", "%U:%G %a", f"/run/{NAME}") == f"{NAME}:kvm 3770\n"
    assert host.systemctl("is-enabled", SERVICE) == "enabled\n"

    host.run("sh", "-ec", block(page, "## The port by a socket unit"))
    assert host.property("ActiveState", SERVICE) == "inactive"
    assert "qemu_exporter_targets 0" in host.ask(f"{URL}/metrics")
    assert (
        host.run("systemctl", "is-enabled", SERVICE, SOCKET, check=False) == "disabled\nenabled\n"
    )


def test_the_folder_for_containers_is_one_in_which_the_group_makes_its_sockets(
    service: Service,
) -> None:
    """By the commands of the page, and again after a boot: it is a file of tmpfiles.d."""
    host, page = service.host, (ROOT / "deploy" / "docker" / "README.md").read_text()
    host.systemctl("disable", "--now", SERVICE, SOCKET)
    host.run("rmdir", f"/run/{NAME}")
    commands = [line for line in block(page, "## 1.").splitlines() if "tmpfiles" in line]
    assert len(commands) == 2
    host.run("sh", "-ec", "\n".join(commands))

    assert host.run("stat", "-c", "%U:%G %a", f"/run/{NAME}") == "root:kvm 3770\n"
