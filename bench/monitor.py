"""A QMP client for what the bench does to a VM, with none of the exporter's code."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_START_SECONDS = 60.0


class Monitor:
    """One connection to a VM, which may still be starting."""

    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.run("qmp_capabilities")

    def run(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a command and return its answer."""
        request = {"execute": command, "arguments": dict(arguments or {})}
        self._socket.sendall(json.dumps(request).encode())
        while "event" in (answer := json.loads(self._lines.readline())):
            pass
        if "return" not in answer:
            raise SystemExit(f"bench: {command}: {answer}")
        return answer["return"]

    def chain(self, device: str) -> list[str]:
        """Return the node names of a disk's images, the active one first."""
        entry = next(e for e in self.run("query-block") if e["device"] == device)
        by_file = {n["file"]: n["node-name"] for n in self.run("query-named-block-nodes")
                   if n["drv"] == "qcow2"}  # fmt: skip
        image, names = entry["inserted"]["image"], []
        while image is not None:
            names.append(by_file[image["filename"]])
            image = image.get("backing-image")
        return names

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
