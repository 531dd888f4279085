"""One life of a VM: its process, the driver's monitor and the recorder, and its folder of images."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.e2e.lab import Monitor, Process, QmpError, tool, wait_until
from tests.truth.record import Record, Span
from tests.truth.recorder import Recorder

SIZE = 8 << 20
#: Of the template: an overlay whose first MiB has data, at this offset of its file.
_DATA_OFFSET = 5 << 16
#: A sector in the middle of the template's data.
BAD_SECTOR = (_DATA_OFFSET + (1 << 18)) // 512
#: A VM that says nothing for so long hangs, as QEMU 7.2 does after some transactions.
HANG_SECONDS = 15.0


class Ended(Exception):
    """The VM ended, or hangs: there is nothing more to be done to it."""


class Machine:
    """A QEMU, or a storage daemon, from its start to its end."""

    def __init__(
        self, folder: Path, record: Record, name: str, number: int, template: Path
    ) -> None:
        self.name = name
        self.number = number
        self.record = record
        self.template = template
        #: Where its images are.
        self.folder = folder / f"{name}-{number}"
        self.folder.mkdir()
        #: Of the exporter.
        self.socket = folder / f"{name}.sock"
        self.hangs = False
        self._lock = threading.Lock()
        self._count = 0
        self._process: Process | None = None

    def start(self, arguments: list[str], *, daemon: bool = False) -> None:
        """Start it, and wait until it answers."""
        own, recorded = self.folder / "own", self.folder / "rec"
        command = _daemon_command if daemon else _qemu_command
        monitors = [str(self.socket), str(own), str(recorded)]
        began = time.time()
        process = Process(command(self.name, monitors, arguments), self.folder / "log")
        self._process = process
        self.span = Span(self.name, self.number, began)
        try:
            monitor = wait_until(lambda: _connected(process, recorded), f"a monitor of {self.name}")
            self.recorder = Recorder(monitor, self.record, self.name, self.number)
            self.recorder.start()
            self._monitor = Monitor(own)
            self._monitor._socket.settimeout(HANG_SECONDS)
        except BaseException:
            process.kill()
            raise
        self.span.began = time.time()
        self.record.lives.append(self.span)
        self.say(f"life {self.number} began")

    def say(self, what: str) -> None:
        """Add to the story."""
        self.record.say(time.time(), self.name, what)

    def run(self, command: str, **arguments: Any) -> Any:
        """Run a command on the driver's monitor; `_` in names stands for `-`.

        Raises:
            QmpError: QEMU refused it.
            Ended: there is nobody to run it.
        """
        named = {name.rstrip("_").replace("_", "-"): each for name, each in arguments.items()}
        return self.send(command, named)

    def send(self, command: str, arguments: dict[str, Any]) -> Any:
        """Run a command whose arguments have QEMU's own names."""
        with self._lock:
            if self.hangs or self.over:
                raise Ended
            try:
                answer = self._monitor.run(command, arguments)
            except TimeoutError as error:
                self.hangs = True
                self.say(f"hangs in {command}")
                raise Ended from error
            except (EOFError, OSError, ValueError) as error:
                raise Ended from error
            self._monitor.events.clear()
            return answer

    def try_(self, command: str, **arguments: Any) -> bool:
        """Run a command that QEMU may refuse; return whether it did not."""
        try:
            self.run(command, **arguments)
        except QmpError:
            return False
        return True

    def hmp(self, line: str) -> None:
        """Run a line of the human monitor."""
        self.run("human-monitor-command", command_line=line)

    @property
    def over(self) -> bool:
        """Whether it ended, by itself too."""
        return self._process is None or self._process.exit_code is not None

    def file(self, kind: str = "img") -> str:
        """Return a name for a file that is not there yet."""
        with self._lock:
            self._count += 1
            return str(self.folder / f"{kind}-{self._count}.qcow2")

    def unique(self, kind: str) -> str:
        """Return a name that nothing else of this VM has."""
        with self._lock:
            self._count += 1
            return f"{self.name}-{kind}{self.number}-{self._count}"

    def overlay(self) -> str:
        """Return a new image with a MiB of data."""
        file = self.file("top")
        shutil.copy(self.template, file)
        return file

    def end(self, how: str) -> None:
        """End it by `quit`, TERM or KILL."""
        self.say(f"ends by {how}")
        process = self._process
        assert process is not None
        if not self.over and not self.hangs:
            if how == "quit":
                with suppress(Ended, QmpError):
                    self.run("quit")
            else:
                process.signal(signal.SIGKILL if how == "KILL" else signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process._popen.wait(HANG_SECONDS)
        self.close(how)

    def close(self, how: str = "closed") -> None:
        """See that nothing of it is left."""
        if self._process is None:
            return
        died = self.over and how not in ("quit", "TERM", "KILL")
        self._process.kill()
        self.recorder.join(HANG_SECONDS)
        if not self.span.ended:
            self.span.ended, self.span.how = time.time(), "died" if died else how
        if self.hangs:
            self.span.how = "hung"
        self._monitor.close()
        self.say(f"life {self.number} ended ({self.span.how})")
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def refusable(self) -> Iterator[None]:
        """Go on after a command that QEMU refuses."""
        try:
            yield
        except QmpError as error:
            self.say(f"refused: {error}")


def template(folder: Path) -> Path:
    """Make the image that overlays and disks are copies of."""
    path = folder / "template.qcow2"
    create = [tool("qemu-img"), "create", "-q", "-f", "qcow2", str(path), str(SIZE)]
    subprocess.run(create, check=True)
    subprocess.run([tool("qemu-io"), "-c", "write -q -P 7 0 1M", str(path)], check=True)
    return path


def _connected(process: Process, path: Path) -> Monitor | None:
    assert process.exit_code is None, process.said()
    try:
        return Monitor(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


def _qemu_command(name: str, monitors: list[str], arguments: list[str]) -> list[str]:
    command = ["qemu-system-x86_64", "-name", name, "-machine", "pc", "-m", "16", "-S"]
    command += ["-accel", "tcg,tb-size=1", "-nodefaults", "-display", "none"]
    for monitor in monitors:
        command += ["-qmp", f"unix:{monitor},server=on,wait=off"]
    return [*command, *arguments]


def _daemon_command(name: str, monitors: list[str], arguments: list[str]) -> list[str]:
    command = ["qemu-storage-daemon"]
    for number, path in enumerate(monitors):
        command += ["--chardev", f"socket,id=m{number},path={path},server=on,wait=off"]
        command += ["--monitor", f"chardev=m{number}"]
    return [*command, *arguments]


def node(name: str, file: str, backing: str | None = None, *, bad: bool = False) -> dict[str, Any]:
    """Return a qcow2 node; of a bad one a sector cannot be read, once."""
    below: dict[str, Any] = {"driver": "file", "filename": file}
    if bad:
        rule = {"event": "none", "iotype": "read", "once": True, "sector": BAD_SECTOR, "errno": 5}
        below = {"driver": "blkdebug", "image": below, "inject-error": [rule]}
    return {"driver": "qcow2", "node-name": name, "file": below, "backing": backing}


def blockdev(spec: dict[str, Any], *, daemon: bool = False) -> list[str]:
    """Return the arguments for a node."""
    return ["--blockdev" if daemon else "-blockdev", json.dumps(spec)]
