"""A proxy before a QEMU's monitor that cuts the connection, or holds it, at a chosen byte."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.lab import Qemu

_CHUNK = 1 << 16


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
    """A socket in the place of a monitor's; the monitor itself moves out of the exporter's sight."""

    def __init__(self, vm: Qemu) -> None:
        self._behind = vm.socket.with_suffix(".behind")
        vm.socket.rename(self._behind)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(vm.socket))
        self._listening.listen()
        #: Every command that was relayed to its last byte, in order.
        self.commands: list[dict[str, Any]] = []
        #: What is to happen next, once.
        self.plan: Plan | None = None
        self._closed = threading.Event()
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
        self._closed.set()
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
