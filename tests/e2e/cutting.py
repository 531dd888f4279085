"""VMs whose exporter is cut off: a proxy before the monitor of each ends the connection at a byte."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.api import Admin, Answer, admin
from tests.e2e.lab import Lab, Qemu, QmpError, drive, wait_until

_CHUNK = 1 << 16
#: The suffix of a monitor's real socket.
_BEHIND = ".behind"
#: Of a commit: bytes per second, so few that it runs until it is ended.
_SPEED = 1024


@dataclass(eq=False)
class Plan:
    """What is done to the first connection on which `marker` passes, counted from its first byte."""

    marker: bytes
    #: After so many bytes to QEMU, or so many from QEMU; None for never.
    sent: int | None = None
    answered: int | None = None
    #: Called there. The connection is cut unless this returns true: then it goes on.
    then: Callable[[], object] = lambda: None
    #: Whether it came to that.
    reached: threading.Event = field(default_factory=threading.Event)
    #: What was sent from the marker on in one write, and how much came before the next one.
    command: bytes = b""
    answer_bytes: int = 0


class Proxy:
    """A socket where the exporter looks for a monitor's, which is elsewhere."""

    def __init__(self, vm: Qemu) -> None:
        self._behind = vm.socket.with_suffix(_BEHIND)
        vm.socket.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(vm.socket))
        self._listening.listen()
        #: Every command that was relayed to its last byte, in order.
        self.commands: list[dict[str, Any]] = []
        #: What is to happen next, once.
        self.plan: Plan | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(
        self,
        marker: bytes,
        *,
        sent: int | None = None,
        answered: int | None = None,
        then: Callable[[], object] = lambda: None,
    ) -> Plan:
        """Have something happen to the next connection on which `marker` passes."""
        self.plan = Plan(marker, sent, answered, then)
        return self.plan

    def count(self, name: str) -> int:
        """Return how many commands of this name reached QEMU whole."""
        return sum(command["execute"] == name for command in self.commands)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                front, _ = self._listening.accept()
                threading.Thread(target=self._relay, args=(front,), daemon=True).start()

    def _relay(self, front: socket.socket) -> None:
        with front, socket.socket(socket.AF_UNIX) as back, contextlib.suppress(OSError):
            back.connect(str(self._behind))
            _Connection(self, front, back).run()


class _Connection:
    """One client of the proxy, relayed until a side ends it or a plan does."""

    def __init__(self, proxy: Proxy, front: socket.socket, back: socket.socket) -> None:
        self._proxy, self._front, self._back = proxy, front, back
        self._plan: Plan | None = None
        #: Bytes since the marker.
        self._sent = self._answered = 0
        #: What was relayed to QEMU and is no whole command yet.
        self._rest = ""

    def run(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._front, selectors.EVENT_READ, self._up)
            ready.register(self._back, selectors.EVENT_READ, self._down)
            while all(key.data() for key, _ in ready.select()):
                pass

    def _up(self) -> bool:
        data = self._front.recv(_CHUNK)
        plan, new = self._plan, self._proxy.plan
        if new is not None and (at := data.find(new.marker)) >= 0:
            self._plan = plan = new
            self._proxy.plan = None
            self._sent = self._answered = 0
            self._to_qemu(data[:at])
            data = plan.command = data[at:]
        elif plan is None:
            return self._to_qemu(data)
        elif not plan.answer_bytes:
            plan.answer_bytes = self._answered
        cut, self._sent = self._sent, self._sent + len(data)
        if plan.sent is None or plan.sent > self._sent:
            return self._to_qemu(data)
        length = max(0, plan.sent - cut)
        self._to_qemu(data[:length])
        return self._happens(plan) and self._to_qemu(data[length:])

    def _down(self) -> bool:
        data = self._back.recv(_CHUNK)
        plan = self._plan
        before, self._answered = self._answered, self._answered + len(data) if plan else 0
        if plan is None or plan.answered is None or plan.answered > self._answered:
            return self._to_client(data)
        length = max(0, plan.answered - before)
        self._to_client(data[:length])
        return self._happens(plan) and self._to_client(data[length:])

    def _happens(self, plan: Plan) -> bool:
        plan.sent = plan.answered = None
        goes_on = bool(plan.then())
        plan.reached.set()
        return goes_on

    def _to_client(self, data: bytes) -> bool:
        self._front.sendall(data)
        return bool(data)

    def _to_qemu(self, data: bytes) -> bool:
        self._back.sendall(data)
        self._rest += data.decode()
        with contextlib.suppress(ValueError):
            while self._rest:
                command, end = json.JSONDecoder().raw_decode(self._rest)
                self._proxy.commands.append(command)
                self._rest = self._rest[end:].lstrip()
        return bool(data)


@dataclass
class Machine:
    """A VM behind a proxy, with one disk on two layers, and a user."""

    vm: Qemu
    proxy: Proxy
    user: Admin
    lab: Lab
    #: The disk's chain, the active layer first.
    files: list[str]
    jobs: int = 0

    def new_id(self) -> str:
        """Return an id as long as every other."""
        self.jobs += 1
        return f"qbe-{self.vm.name}-{self.jobs:04}"

    def commit(self, job_id: str, speed: int = _SPEED) -> Answer:
        more: dict[str, Any] = {"speed_bytes_per_second": speed} if speed else {}
        return self.user.commit(self.vm.name, "disk0", job_id=job_id, **more)

    def change(self, job_id: str, verb: str, **body: Any) -> Answer:
        return self.user.change(self.vm.name, job_id, verb, **body)

    def started(self, job_id: str) -> int:
        """Return how many jobs of an id QEMU has had."""
        self.vm.run("query-status")
        return sum(
            event["event"] == "JOB_STATUS_CHANGE"
            and event["data"] == {"id": job_id, "status": "created"}
            for event in self.vm.monitor.events
        )

    def state(self, job_id: str) -> str:
        """Return the status of a job, empty where QEMU has none."""
        job = self.vm.job(job_id)
        return str(job["status"]) if job else ""

    def active(self) -> str:
        """Return the file of the active layer."""
        entry = self.vm.run("query-block")[0]
        return str(entry["inserted"]["file"])

    def restart(self) -> None:
        """Start another QEMU on the disk as it is."""
        self.vm.kill()
        self.proxy.close()
        self.vm = _behind(self.lab, self.vm.name, Path(self.files[0]))
        self.proxy = self.lab.keep(Proxy(self.vm))

    def end(self, job_id: str) -> None:
        """Have no job of this id."""
        # The exporter lets go of it as well.
        with contextlib.suppress(QmpError):
            self.vm.run("block-job-cancel", {"device": job_id, "force": True})
        wait_until(lambda: self.state(job_id) in ("", "concluded"), "the job ends")
        with contextlib.suppress(QmpError):
            self.vm.run("job-dismiss", {"id": job_id})
        assert self.state(job_id) == ""

    def overlay(self) -> None:
        """Put a layer on the disk."""
        self.files.insert(0, str(self.lab.folder / f"{self.vm.name}-over{len(self.files)}.qcow2"))
        new = {"device": "disk0", "snapshot-file": self.files[0], "format": "qcow2"}
        self.vm.run("blockdev-snapshot-sync", new)


def machine(lab: Lab, user: Admin, name: str) -> Machine:
    """Start a VM behind a proxy."""
    images = lab.chain(name, 2)
    vm = _behind(lab, name, images[0])
    return Machine(vm, lab.keep(Proxy(vm)), user, lab, [str(image) for image in images])


def _behind(lab: Lab, name: str, image: Path) -> Qemu:
    """Start a VM whose monitor is not where it is looked for."""
    # Not moved there later: the kernel would go on calling it by its first name.
    command = lab.qemu_command(name, *drive("disk0", image))
    return lab.start(name, [part.replace(f"{name}.sock", f"{name}{_BEHIND}") for part in command])


class Fleet:
    """Some machines of one exporter."""

    def __init__(self, lab: Lab, count: int, *flags: str) -> None:
        self.lab, self._flags = lab, flags
        self.user = admin(lab, flags=flags)
        self.machines = [machine(lab, self.user, f"vm{n:02}") for n in range(count)]

    def restart(self) -> None:
        """End the exporter as a service is ended, if it has not died, and start another one."""
        self.user.exporter.close()
        for each in self.machines:
            each.vm.left()
        self.user = admin(self.lab, flags=self._flags)
        for each in self.machines:
            each.user = self.user

    def each(self, points: Sequence[Any], probe: Callable[[Machine, Any], Any]) -> list[Any]:
        """Return what becomes of each point, each machine at one of them at a time."""

        def some(index: int) -> list[Any]:
            return [probe(self.machines[index], p) for p in points[index :: len(self.machines)]]

        with ThreadPoolExecutor(len(self.machines)) as pool:
            return [one for many in pool.map(some, range(len(self.machines))) for one in many]
