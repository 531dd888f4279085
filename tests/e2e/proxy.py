"""A wire between the exporter and QEMU that remembers what the exporter said."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.e2e.lab import Lab, Qemu


class Recorder:
    """Stands at a path where the exporter looks for a VM, and hands everything on."""

    def __init__(self, path: Path, behind: Path) -> None:
        self._behind = str(behind)
        #: What was said on each connection and not looked at yet.
        self._said: list[bytearray] = []
        self._commands: list[tuple[str, dict[str, Any]]] = []
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def commands(self) -> list[tuple[str, dict[str, Any]]]:
        """Every command that left the exporter, with its arguments, in order.

        What is no JSON from end to end fails here: nothing is overlooked.
        """
        with self._lock:
            for said in self._said:
                self._commands += _parsed(said.decode())
                said.clear()
            return list(self._commands)

    @property
    def names(self) -> set[str]:
        """The names of all commands that left the exporter."""
        return {name for name, _ in self.commands}

    def count(self, *names: str) -> int:
        """How often one of these was sent."""
        return sum(name in names for name, _ in self.commands)

    def close(self) -> None:
        with self._lock:
            for each in (self._server, *self._open):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                qemu = socket.socket(socket.AF_UNIX)
                said = bytearray()
                with self._lock:
                    self._open += [client, qemu]
                    self._said.append(said)
                try:
                    qemu.connect(self._behind)
                except OSError:
                    client.close()
                    continue
                for parts in ((client, qemu, said), (qemu, client, None)):
                    threading.Thread(target=self._hand_on, args=parts, daemon=True).start()

    def _hand_on(self, source: socket.socket, sink: socket.socket, said: bytearray | None) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if said is not None:
                    # First: what QEMU has done was said.
                    with self._lock:
                        said += data
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _parsed(text: str) -> list[tuple[str, dict[str, Any]]]:
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        request, end = decoder.raw_decode(text)
        found.append((request["execute"], request.get("arguments", {})))
        text = text[end:]
    return found


def recorded(lab: Lab, vm: Qemu) -> Recorder:
    """Put a recorder before a VM; the exporter has to look in the folder `wire`."""
    folder = lab.folder / "wire"
    folder.mkdir(exist_ok=True)
    recorder: Recorder = lab.keep(Recorder(folder / vm.socket.name, vm.socket))
    return recorder
