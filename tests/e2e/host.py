"""A host with a real systemd: this machine's files with all that is written kept apart, and a PID 1 of its own.

systemd-nspawn boots it. What is installed, enabled and started in it is gone with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests import machine
from tests.e2e.lab import PATIENCE_SECONDS, ROOT, Process, tool, wait_until

#: What it has of this checkout, to read: a checkout may be below /tmp, and the host has its own.
_BINDS = {"/opt/exporter": ROOT / "exporter", "/opt/venv": Path(sys.prefix)}
#: Asks for a page in the host, where nothing but Python need be installed.
_ASK = """
import base64, sys, urllib.error, urllib.request as u
url, user, body = sys.argv[1:]
head = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
head |= {"Content-Type": "application/json"} if body else {}
try:
    answer = u.urlopen(u.Request(url, body.encode() or None, head), timeout=30)
except urllib.error.HTTPError as error:
    answer = error
sys.stdout.write(answer.read().decode())
"""


class Host:
    """The host, booted."""

    def __init__(self, root: Path, nspawn: Process) -> None:
        #: Its files, as they are seen from outside.
        self.root = root
        self._nspawn = nspawn
        try:
            self._init = wait_until(self._find_init, "systemd starts")
            wait_until(lambda: self._state() in {"running", "degraded"}, "the host is booted")
        except BaseException:
            self._nspawn.kill()
            raise

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in it, and return what it says."""
        # Its root too: in a chroot, that of the namespace of its mounts is another.
        inside = [tool("nsenter"), "-t", str(self._init), "-a", "-r", *command]
        environment = {
            "PATH": os.environ["PATH"],
            "DEBIAN_FRONTEND": "noninteractive",
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            inside, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment,
            timeout=PATIENCE_SECONDS * 2, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def systemctl(self, *arguments: str) -> str:
        return self.run("systemctl", *arguments)

    def property(self, name: str, unit: str) -> str:
        """Return what systemd knows of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def ask(self, url: str, user: str = "", body: str = "") -> str:
        """Return the page at a URL of this host; a `body` is posted."""
        return self.run("/usr/bin/python3", "-c", _ASK, url, user, body)

    def write(self, path: str, text: str) -> None:
        """Write a file; not below what is mounted over: /run, /tmp and /dev."""
        inside = self.root / path.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text)

    def log(self, unit: str) -> str:
        """Return what a unit logged."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "-u", unit, "-o", "cat", "--no-pager")

    def start(self, name: str, *command: str, **properties: str) -> None:
        """Run a program as a unit of this name."""
        more = [f"--property={key}={value}" for key, value in properties.items()]
        self.run("systemd-run", "--quiet", f"--unit={name}", *more, *command)

    def exporter(self, *flags: str, **properties: str) -> None:
        """Run this checkout's exporter, as the user and with the folder of sockets that its package has."""
        name = "qemu-block-exporter"
        # This Python may be root's own.
        self.run("chmod", "o+x", "/root")
        # A minimal Debian 13 does not have it.
        self.run("groupadd", "--system", "--force", "kvm")
        self.run("useradd", "--system", "--gid=kvm", "--no-create-home", name)
        self.run("install", "-d", "-m3770", f"-o{name}", "-gkvm", f"/run/{name}")
        command = ["/opt/venv/bin/python", "-m", "exporter", *flags]
        self.start(
            "exporter",
            *command,
            **{"WorkingDirectory": "/opt", "User": name, "StateDirectory": name, **properties},
        )
        wait_until(lambda: "msg=listening" in self.log("exporter"), "the exporter listens")

    def close(self) -> None:
        """Shut it down."""
        self._nspawn.signal(signal.SIGTERM)
        try:
            self._nspawn.wait()
        finally:
            self._nspawn.kill()

    def _state(self) -> str:
        # While nobody listens in the host yet, this says "offline" or "unknown".
        return self.run("systemctl", "is-system-running", check=False).strip()

    def _find_init(self) -> int | None:
        assert self._nspawn.exit_code is None, self._nspawn.said()
        below = [self._nspawn.pid]
        while below:
            process = below.pop()
            try:
                name = Path(f"/proc/{process}/comm").read_text().strip()
                children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            except FileNotFoundError:
                continue
            if name == "systemd":
                return process
            below += map(int, children)
        return None


@contextmanager
def booted(folder: Path) -> Iterator[Host]:
    """Boot a host, and leave nothing of it behind."""
    if lacking := machine.lacks_to_boot():
        pytest.fail(lacking, pytrace=False)
    with ExitStack() as stack:
        _mount(stack, folder, "-t", "tmpfs", "-o", "size=2g", "tmpfs")
        for name in ("written", "work", "root"):
            (folder / name).mkdir()
        layers = f"lowerdir=/,upperdir={folder}/written,workdir={folder}/work"
        root = folder / "root"
        _mount(stack, root, "-t", "overlay", "-o", layers, "overlay")
        # An id of its own, so that it does not take this for its first boot.
        (root / "etc/machine-id").write_text(f"{os.urandom(16).hex()}\n")
        # Containers' images forbid what packages do on a host; and nobody reads manuals here.
        for path in ("usr/sbin/policy-rc.d", "var/lib/man-db/auto-update"):
            (root / path).unlink(missing_ok=True)
        command = [
            "systemd-nspawn",
            "--register=no",
            "--keep-unit",
            "--quiet",
            f"--directory={root}",
        ]
        command += [
            "--private-network",
            "--bind=/dev/fuse",
            "--console=pipe",
            "--boot",
            "systemd.unit=sysinit.target",
        ]
        command[-2:-2] = [f"--bind-ro={here}:{there}" for there, here in _BINDS.items()]
        # systemd-nspawn makes groups below the one that it is in.
        groups = [
            stack.enter_context(_control_group(each, folder)) for each in machine.hierarchies()
        ]
        join = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        nspawn = Process(["sh", "-ec", f'{join}exec "$@"', "sh", *command], folder / "nspawn.log")
        host = Host(root, nspawn)
        stack.callback(host.close)
        yield host


def _mount(stack: ExitStack, folder: Path, *arguments: str) -> None:
    subprocess.run([tool("mount"), *arguments, str(folder)], check=True)
    stack.callback(subprocess.run, [tool("umount"), "-l", str(folder)], check=True)


@contextmanager
def _control_group(hierarchy: Path, folder: Path) -> Iterator[Path]:
    """Make a control group of the host's own, and remove it with all below it."""
    group = hierarchy / f"qbe-{os.getpid()}-{folder.name}"
    group.mkdir()
    try:
        yield group
    finally:
        wait_until(lambda: _is_removed(group), "the control group is left")


def _is_removed(group: Path) -> bool:
    """End what is still in a control group, and remove it once it is empty."""
    for below, _, _ in os.walk(group, topdown=False):
        for process in map(int, Path(below, "cgroup.procs").read_text().split()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with suppress(OSError):
            os.rmdir(below)
    return not group.exists()
