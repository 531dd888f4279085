"""Exporters that go through libvirt, beside this one, on the same virtual machines.

The libvirtd is one of its own: that of an unprivileged session, as the user nobody, with its state
in a folder that is thrown away.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.fleets import Fleet, make_chain, tool
from bench.measure import cpu, interleave, wall
from bench.report import Bar, Results, Table
from bench.subjects import Client, Exporter, Scraped, Subject

_DEBIAN = "prometheus-libvirt-exporter"
_USER = "nobody"
_START_SECONDS = 60.0
_MONITORS = ("exporter", "raw")
_DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>{emulator}</emulator>{disks}</devices>
<qemu:commandline>{monitors}</qemu:commandline></domain>"""
_DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{image}'/><target dev='vd{letter}' bus='virtio'/></disk>"""
_MONITOR = "<qemu:arg value='-qmp'/><qemu:arg value='unix:{path},server=on,wait=off'/>"


class Peer(Scraped):
    """Another exporter, and the libvirtd that it asks."""

    def __init__(
        self, name: str, command: Sequence[str], url: str, libvirtd: int, env: Mapping[str, str]
    ) -> None:
        process = subprocess.Popen(
            [*_as_user(), *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        super().__init__(name, process, url)
        self.pids.append(libvirtd)
        _until(self._answers, f"{name} answers at {url}")

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise SystemExit(f"bench: {self.name} ended with {self.process.returncode}")
        try:
            with urllib.request.urlopen(self.url, timeout=60):
                return True
        except OSError:
            return False


def libvirt(results: Results, count: int, more: Sequence[Sequence[str]], rounds: int = 8) -> None:
    """Measure Debian's exporter, where it is installed, and `more` of (name, command, URL)."""
    if not shutil.which("libvirtd") or not shutil.which(_DEBIAN):
        results.tables.append(
            Table(
                "Exporters through libvirt",
                ("not measured",),
                [("`make bench-peers` installs it",)],
            )
        )
        return
    with ExitStack() as stack:
        fleet, libvirtd, env = stack.enter_context(domains(count, 2, 3))
        url = f"http://127.0.0.1:{_free_port()}/metrics"
        address = f"--web.listen-address={url.split('/')[2]}"
        debian = [tool(_DEBIAN), "--libvirt.uri=qemu:///session", address]
        subjects: list[Subject] = [
            stack.enter_context(Exporter(fleet.sockets("exporter"))),
            stack.enter_context(Client("raw", fleet.sockets("raw"))),
            stack.enter_context(Peer(_DEBIAN, debian, url, libvirtd, env)),
            *(
                stack.enter_context(Peer(name, shlex.split(command), at, libvirtd, env))
                for name, command, at in more
            ),
        ]
        interleave(subjects, fleet.pids, 2, 2.0)
        costs = interleave(subjects, fleet.pids, rounds, 4.0)
    ours = costs["exporter"]
    results.tables.append(
        Table(
            f"Exporters through libvirt, {count} VMs x 2 disks x 3 layers",
            ("exporter", "wall ms", "p95", "CPU us a VM, with libvirtd", "of ours, wall"),
            [
                (
                    name, cost.median(wall) * 1e3, cost.p95(wall) * 1e3,
                    cost.mean(cpu) / count * 1e6, cost.median(wall) / ours.median(wall),
                )
                for name, cost in costs.items()
            ],
            "The same QEMUs, started by a libvirtd of the bench's own, asked by libvirt's monitor"
            " and by two more.",
        )
    )  # fmt: skip
    value = ours.median(wall) / costs[_DEBIAN].median(wall)
    what = f"wall of /metrics, {count} VMs, of Debian's libvirt exporter's"
    results.bars.append(Bar(what, value, 1 / 5, 1 / 10))


@contextmanager
def domains(count: int, disks: int, layers: int) -> Iterator[tuple[Fleet, int, Mapping[str, str]]]:
    """Start a libvirtd with VMs that stand still; yield them, its process, and its environment."""
    user = pwd.getpwnam(_USER)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qbe-bench-")))
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        for name in ("run", "config/libvirt", "cache", "images", *_MONITORS):
            (folder / name).mkdir(parents=True)
        (folder / "config/libvirt/qemu.conf").write_text(
            'stdio_handler = "file"\nseccomp_sandbox = 0\n', "utf-8"
        )
        model = make_chain(folder / "images", layers)
        names = [f"vm{index:04}" for index in range(count)]
        for name in names:
            for disk in range(disks):
                shutil.copyfile(model, folder / "images" / f"{name}-{disk}.qcow2")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
        log = stack.enter_context((folder / "libvirtd.log").open("wb"))
        libvirtd = subprocess.Popen(
            [*_as_user(), tool("libvirtd")], env=env, stdout=log, stderr=log, cwd=folder
        )
        stack.callback(_end, libvirtd, folder)
        _until((folder / "run/libvirt/libvirt-sock").exists, "libvirtd listens")
        for name in names:
            xml = folder / f"{name}.xml"
            xml.write_text(_domain(folder, name, disks), "utf-8")
            xml.chmod(0o644)
            _virsh(env, "create", str(xml), "--paused")
        pids = [int(path.read_text("utf-8")) for path in _pid_files(folder)]
        assert len(pids) == count, f"{len(pids)} of {count} domains run"
        yield Fleet(folder, [], count, pids), libvirtd.pid, env


def _domain(folder: Path, name: str, disks: int) -> str:
    images = (folder / "images" / f"{name}-{disk}.qcow2" for disk in range(disks))
    return _DOMAIN.format(
        name=name,
        emulator=tool("qemu-system-x86_64"),
        disks="".join(
            _DISK.format(image=image, letter=letter)
            for image, letter in zip(images, "abcdefgh", strict=False)
        ),
        monitors="".join(
            _MONITOR.format(path=folder / monitor / f"{name}.sock") for monitor in _MONITORS
        ),
    )


def _pid_files(folder: Path) -> list[Path]:
    return sorted((folder / "run/libvirt/qemu/run").glob("*vm*.pid"))


def _as_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam(_USER)
    return [tool("setpriv"), f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _virsh(env: Mapping[str, str], *arguments: str) -> None:
    command = [*_as_user(), tool("virsh"), "-q", "-c", "qemu:///session", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: virsh {arguments[0]}: {done.stderr.strip()}")


def _end(libvirtd: subprocess.Popen[bytes], folder: Path) -> None:
    libvirtd.kill()
    libvirtd.wait()
    for path in _pid_files(folder):
        try:
            os.kill(int(path.read_text("utf-8")), 9)
        except (ProcessLookupError, ValueError):
            continue


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _until(holds: object, what: str) -> None:
    assert callable(holds)
    deadline = time.monotonic() + _START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: never came: {what}")
        time.sleep(0.05)
