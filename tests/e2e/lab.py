"""Real parts: QEMU with a monitor for the tests and one for the exporter, and the exporter itself.

The exporter is a process of its own and is seen through HTTP alone. QEMU is driven by a QMP client
that shares no code with it.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
#: Far longer than anything takes, on a machine that is busy with something else.
PATIENCE_SECONDS = 40.0
#: Longest that a VM may take to answer the exporter: one that is well never does.
TIMEOUT_SECONDS = PATIENCE_SECONDS / 2
#: The same where a VM is not to answer: those that are well answer sooner all the same.
HASTY = "--qmp.timeout=5"
#: A scrape joins a sweep that began less than a second ago.
JOIN_SECONDS = 1.0
#: The version that QEMU must have, where one is meant: `make test-qemu` says so. Else any.
QEMU_VERSION = os.environ.get("QEMU_VERSION", "")


def tool(name: str) -> str:
    """Return the path of a program that these tests need: to be without is to fail."""
    path = shutil.which(name)
    assert path, f"the end-to-end tests need {name} and it is not installed"
    return path


class _Closable(Protocol):
    def close(self) -> None: ...


Closes = TypeVar("Closes", bound=_Closable)


def wait_until(holds: Callable[[], Any], what: str) -> Any:
    """Return the first true value of `holds`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := holds()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)
    return value


def version_of(program: str) -> str:
    """Return the version of one of QEMU's programs, as "7.2.22"."""
    said = subprocess.run([tool(program), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r" (\d+\.[\d.]+)\s", said.stdout)
    assert found, f"{program} must tell a version, got {said.stdout!r}"
    return found[1]


def as_user(name: str) -> list[str]:
    """Return the arguments that have QEMU run as another user."""
    command = [tool("qemu-system-x86_64"), "-help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # -runas is deprecated since -run-with has `user` (QEMU 9.1), and gone from 10.0 on.
    return ["-run-with", f"user={name}"] if "user=username" in said else ["-runas", name]


def has_client(table: str, path: str) -> bool:
    """Whether, by /proc/net/unix, anybody is connected to a socket, or waits for it."""
    states = [line.split()[5] for line in table.splitlines() if line.endswith(f" {path}")]
    # One that only listens is in the state 01.
    return any(state != "01" for state in states)


class Process:
    """A program that is stopped and reaped, whatever happens to it."""

    #: All that were started in a module of tests.
    started: ClassVar[list[Process]] = []

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [tool(command[0]), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
            )
        self.started.append(self)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        return self._popen.poll()

    def said(self) -> str:
        """Return what the program has written so far."""
        return self.log.read_text("utf-8", "replace")

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self) -> int:
        """Wait for its end."""
        return self._popen.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        """End it, stopped or not."""
        self._popen.kill()
        self._popen.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        self.kill()

    def stop(self) -> None:
        """Hold it by SIGSTOP."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", "the process stops")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold it by SIGSTOP meanwhile."""
        self.stop()
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]


class QmpError(Exception):
    """QEMU refused a command."""


class Monitor:
    """A QMP client of the tests' own."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_SECONDS)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")
        #: Every event so far, in order.
        self.events: list[dict[str, Any]] = []
        try:
            # A QEMU that is just starting may tell of an event first. [monitor_qapi_event_emit]
            self.greeting = self._read_until("QMP")
            self.run("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def run(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run a command and return its answer."""
        self.send(command, arguments)
        return self.answer(command)

    def answer(self, command: str) -> Any:
        """Return the answer to a command that was sent."""
        answer = self._read_until("return", "error")
        if "error" in answer:
            raise QmpError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def send(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        """Send a command, and do not wait for its answer."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._socket.sendall(json.dumps(request).encode())

    def event(self, name: str, **data: str) -> dict[str, Any]:
        """Wait for an event that has these data, and that was not returned before."""
        while True:
            for event in self.events:
                told = event.get("data", {})
                if event["event"] == name and data.items() <= told.items():
                    self.events.remove(event)
                    return event
            message = self._read()
            assert "event" in message, message
            self.events.append(message)

    @property
    def has_heard(self) -> bool:
        """Whether QEMU has said something that was not read yet."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def hmp(self, line: str) -> str:
        """Run a line of the human monitor, and return what it says."""
        return str(self.run("human-monitor-command", {"command-line": line}))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _read_until(self, *keys: str) -> dict[str, Any]:
        """Return the next message that has one of these; events before it are kept."""
        while not (message := self._read()).keys() & set(keys):
            if "event" in message:
                self.events.append(message)
        return message

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise EOFError("QEMU hung up")
        message: dict[str, Any] = json.loads(line)
        return message


class Qemu(Process):
    """A virtual machine, or a storage daemon, with a monitor for the exporter and one for us."""

    def __init__(self, folder: Path, name: str, command: Sequence[str]) -> None:
        self.name = name
        #: The exporter's.
        self.socket = folder / f"{name}.sock"
        own = folder / f"{name}.own"
        super().__init__(command, folder / f"{name}.log")
        try:
            self.monitor: Monitor = wait_until(lambda: self._connect(own), f"the monitor of {name}")
        except BaseException:
            self.kill()
            raise
        if QEMU_VERSION not in {"", self.version}:
            self.close()
            raise AssertionError(f"QEMU must be {QEMU_VERSION}, got {self.version}")

    @property
    def version(self) -> str:
        """The version that it said in its greeting, as "7.2.22"."""
        version = self.monitor.greeting["QMP"]["version"]["qemu"]
        return f"{version['major']}.{version['minor']}.{version['micro']}"

    def run(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        return self.monitor.run(command, arguments)

    def hmp(self, line: str) -> str:
        return self.monitor.hmp(line)

    @property
    def has_client(self) -> bool:
        """Whether anybody is connected to the exporter's monitor, or waits for it."""
        return has_client(Path("/proc/net/unix").read_text("utf-8", "replace"), str(self.socket))

    def left(self) -> None:
        """Wait until QEMU has seen that its last client left: until then the next one finds it busy."""
        wait_until(lambda: not self.has_client, f"{self.name} is left")

    def quit(self) -> None:
        """Let it end by itself."""
        self.run("quit")
        assert self.wait() == 0, self.said()

    def job(self, job_id: str) -> Any:
        """Return a block job as QEMU tells it, None when it is gone."""
        jobs: list[dict[str, Any]] = self.run("query-block-jobs")
        return next((job for job in jobs if job["device"] == job_id), None)

    def close(self) -> None:
        self.kill()
        self.monitor.close()

    def _connect(self, path: Path) -> Monitor | None:
        assert self.exit_code is None, f"{self.name} did not start: {self.said()}"
        try:
            return Monitor(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None


class Disk:
    """A disk of a VM, by the name that its `device` label has to have."""

    def __init__(self, vm: Qemu, device: str) -> None:
        self.vm = vm
        self.device = device

    @property
    def entry(self) -> dict[str, Any]:
        """What query-block says of it."""
        return next(entry for entry in self.vm.run("query-block") if self._is_it(entry))

    @property
    def stats(self) -> dict[str, Any]:
        """What query-blockstats says of it."""
        entries = self.vm.run("query-blockstats")
        stats: dict[str, Any] = next(entry for entry in entries if self._is_it(entry))["stats"]
        return stats

    @property
    def node_name(self) -> str:
        """The node at its root, at this instant."""
        return str(self.entry["inserted"]["node-name"])

    def write(self, offset: int, size: int) -> None:
        """Write as a guest does: through the device, counted."""
        before = self.stats["wr_bytes"]
        backend = self.device
        if not self.entry["device"]:
            backend = f"-d {self.device}/virtio-backend"
        assert self.vm.hmp(f'qemu-io {backend} "aio_write {offset} {size}"') == ""
        wait_until(lambda: self.stats["wr_bytes"] == before + size, "the bytes are written")

    def _is_it(self, entry: dict[str, Any]) -> bool:
        path = f"/machine/peripheral/{self.device}/virtio-backend"
        return bool(entry["device"] == self.device or entry.get("qdev") == path)


def drive(device: str, image: Path, *options: str) -> list[str]:
    """Return the arguments for a disk by -drive."""
    more = "".join(f",{option}" for option in options)
    return ["-drive", f"if=none,id={device},file={image},format=qcow2{more}"]


def blockdev(device: str, *images: Path, name: str = "") -> list[str]:
    """Return the arguments for a disk by -blockdev and -device, as libvirt has them.

    Its nodes, from the active layer down, are named NAME-0, NAME-1 and so on.
    """
    arguments: list[str] = []
    below: str = ""
    for layer, image in reversed(list(enumerate(images))):
        node_name = f"{name or device}-{layer}"
        node = {
            "driver": "qcow2",
            "node-name": node_name,
            "file": {"driver": "file", "filename": str(image)},
            "backing": below or None,
        }
        arguments += ["-blockdev", json.dumps(node)]
        below = node_name
    return [*arguments, *plug(device, below)]


def plug(device: str, node_name: object) -> list[str]:
    """Return the arguments for a virtio disk on a node or drive."""
    return ["-device", f"virtio-blk-pci,id={device},drive={node_name}"]


class Exporter(Process):
    """The program under test."""

    def __init__(self, folder: Path, flags: Sequence[str], before: Sequence[str] = ()) -> None:
        #: Every exposition that was read, in order.
        self.history: list[str] = []
        self._scraped_at = 0.0
        #: What it is asked with, where it has users.
        self.authorization = ""
        self._crashed = False
        command = [*before, sys.executable, "-m", "exporter"]
        address = "--web.listen-address=127.0.0.1:0"
        super().__init__([*command, address, *flags], folder / "exporter.log")
        try:
            self.url = wait_until(self._listens_at, "the exporter listens")
        except BaseException:
            self.kill()
            raise

    def get(self, path: str = "/metrics", method: str = "GET", **headers: str) -> str:
        """Return the body at a path."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.authorization:
            named["Authorization"] = self.authorization
        request = urllib.request.Request(self.url + path, headers=named, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            body: bytes = answer.read()
        return body.decode()

    def metrics(self, **headers: str) -> str:
        """Scrape."""
        text = self.get(**headers)
        self._scraped_at = time.monotonic()
        self.history.append(text)
        return text

    def fresh(self, **headers: str) -> str:
        """Scrape in a sweep that begins after this call, where nobody else scrapes."""
        time.sleep(max(0.0, self._scraped_at + JOIN_SECONDS + 0.02 - time.monotonic()))
        return self.metrics(**headers)

    def until(self, holds: Callable[[str], object], seconds: float = PATIENCE_SECONDS) -> str:
        """Scrape until something holds, and return the exposition in which it first did."""
        deadline = time.monotonic() + seconds
        while not holds(text := self.metrics()):
            assert time.monotonic() < deadline, f"not in {seconds} s; the log:\n{self.said()}"
            time.sleep(0.1)
        return text

    def crash(self) -> None:
        """End it in the middle of whatever it does."""
        self._crashed = True
        self.kill()

    def close(self) -> None:
        """End it as a service is ended, and see that it had nothing to complain about itself."""
        if self.exit_code is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.wait()
        finally:
            self.kill()
        assert code == (-signal.SIGKILL if self._crashed else 0), self.said()
        assert not re.search(r"defect|Traceback|never retrieved|was destroyed", self.said())

    def _listens_at(self) -> str | None:
        assert self.exit_code is None, f"the exporter did not start: {self.said()}"
        found = re.search(r"msg=listening address=(\S+)", self.said())
        return f"http://{found[1]}" if found else None


class Mount(Process):
    """A folder seen through a file system whose server can be stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "mount"
        behind = folder / "behind"
        self.folder.mkdir()
        behind.mkdir()
        uncached = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
        command = ["bindfs", "-f", "-o", uncached, str(behind), str(self.folder)]
        super().__init__(command, folder / "bindfs.log")
        try:
            wait_until(self._is_there, "the mount")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let all who wait for it go on, and take it away."""
        self.signal(signal.SIGCONT)
        subprocess.run([tool("umount"), "-l", self.folder], check=False)
        self.kill()

    def _is_there(self) -> bool:
        assert self.exit_code is None, f"bindfs did not start: {self.said()}"
        return self.folder.is_mount()


class Memory:
    """A folder on a file system of a size of its own, in memory."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={mib}m", "tmpfs")

    def grow(self, mib: int) -> None:
        """Give it more room."""
        self._mount("-o", f"remount,size={mib}m")

    def close(self) -> None:
        subprocess.run([tool("umount"), "-l", self.folder], check=True)

    def _mount(self, *arguments: str) -> None:
        subprocess.run([tool("mount"), *arguments, self.folder], check=True)


class Lab:
    """A folder, and all that a test starts in it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.vms: dict[str, Qemu] = {}
        self._stack = stack

    def image(self, name: str, size: int = 64 * MIB, backing: Path | None = None) -> Path:
        """Create a qcow2 image."""
        path = self.folder / f"{name}.qcow2"
        below = ["-b", str(backing), "-F", "qcow2"] if backing else []
        create = [tool("qemu-img"), "create", "-q", "-f", "qcow2", *below, str(path)]
        subprocess.run([*create, *([] if backing else [str(size)])], check=True)
        return path

    def chain(self, name: str, layers: int) -> list[Path]:
        """Create a chain of images, the active one first, each with two MiB of its own."""
        images: list[Path] = []
        for layer in reversed(range(layers)):
            images.insert(0, self.image(f"{name}-{layer}", backing=images[0] if images else None))
            write = f"write -q {layer * 4 * MIB} {2 * MIB}"
            subprocess.run([tool("qemu-io"), "-c", write, images[0]], check=True)
        return images

    def qemu(self, name: str, *arguments: str, machine: str = "none") -> Qemu:
        """Start a VM that executes nothing: what is read and written, the test reads and writes."""
        return self.start(name, self.qemu_command(name, *arguments, machine=machine))

    def qemu_command(self, name: str, *arguments: str, machine: str = "none") -> list[str]:
        """Return the command that starts a VM."""
        monitors = [f"unix:{self.folder}/{name}.{kind},server=on,wait=off" for kind in _MONITORS]
        command = ["qemu-system-x86_64", "-name", name, "-machine", machine, "-m", "16"]
        command += ["-accel", "tcg,tb-size=1", "-nodefaults", "-display", "none"]
        command += [*(() if machine == "none" else ("-S",))]
        command += [part for monitor in monitors for part in ("-qmp", monitor)]
        return [*command, *arguments]

    def storage_daemon(self, name: str, *arguments: str) -> Qemu:
        """Start a qemu-storage-daemon."""
        command = ["qemu-storage-daemon"]
        for kind in _MONITORS:
            path = self.folder / f"{name}.{kind}"
            command += ["--chardev", f"socket,id={kind},path={path},server=on,wait=off"]
            command += ["--monitor", f"chardev={kind}"]
        return self.start(name, [*command, *arguments])

    def exporter(self, *flags: str, sockets: bool = True, before: Sequence[str] = ()) -> Exporter:
        """Start the exporter, on all sockets of the folder or on what `flags` say."""
        chosen = [f"--qmp.sockets={self.folder}/*.sock"] if sockets else []
        patient = f"--qmp.timeout={TIMEOUT_SECONDS}"
        return self.keep(Exporter(self.folder, [*chosen, patient, *flags], before))

    def start(self, name: str, command: Sequence[str]) -> Qemu:
        """Start a VM by a command of one's own."""
        self.vms[name] = self.keep(Qemu(self.folder, name, command))
        return self.vms[name]

    def process(self, name: str, command: Sequence[str]) -> Process:
        """Start a program of which nothing is known."""
        return self.keep(Process(command, self.folder / f"{name}.log"))

    def keep(self, part: Closes) -> Closes:
        """Close something when the lab closes."""
        self._stack.callback(part.close)
        return part


_MONITORS = ("sock", "own")


@contextmanager
def laboratory() -> Iterator[Lab]:
    """Set a lab up, and leave nothing of it behind."""
    with ExitStack() as stack:
        # A short path: a socket's may have 107 bytes.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qbe-"))
        os.chmod(folder, 0o755)
        yield Lab(Path(folder), stack)
