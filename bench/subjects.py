"""What is measured: the exporter, and the clients that it is compared with, as processes."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

#: As Prometheus asks.
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4",
    "Accept-Encoding": "gzip",
    "X-Prometheus-Scrape-Timeout-Seconds": "60",
}
_START_SECONDS = 60.0


class Subject:
    """A process that can be told to ask the whole fleet once."""

    def __init__(self, name: str, process: subprocess.Popen[Any]) -> None:
        self.name = name
        self.process = process
        #: All processes whose CPU it is.
        self.pids = [process.pid]

    def sweep(self) -> float:
        """Ask the fleet once, and return how long that took, in seconds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


class Client(Subject):
    """One of `bench.clients`."""

    def __init__(self, kind: str, sockets: str) -> None:
        command = [sys.executable, "-m", "bench.clients", kind, sockets]
        pipe = subprocess.PIPE
        super().__init__(kind, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        assert self._read() == "ready\n", f"{kind} did not start"

    def sweep(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._read())

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline())


class Scraped(Subject):
    """Anything that answers a scrape at a URL."""

    #: Bytes of the last answer as they came.
    body_bytes = 0

    def __init__(self, name: str, process: subprocess.Popen[Any], url: str = "") -> None:
        super().__init__(name, process)
        self.url = url

    def sweep(self) -> float:
        request = urllib.request.Request(self.url, headers=HEADERS)
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=120) as answer:
            body = answer.read()
        took = time.perf_counter() - began
        self.body_bytes = len(body)
        return took


class Exporter(Scraped):
    """The exporter, on the sockets of one glob."""

    def __init__(
        self,
        sockets: str,
        *flags: str,
        name: str = "exporter",
        module: Sequence[str] = ("exporter",),
    ) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="qbe-bench-", suffix=".log")  # noqa: SIM115
        command = [sys.executable, "-m", *module, "--web.listen-address=127.0.0.1:0"]
        command += [f"--qmp.sockets={sockets}", "--qmp.timeout=30", *flags]
        super().__init__(name, subprocess.Popen(command, stderr=self._log))
        self.url = f"http://{self._address()}/metrics"

    def text(self) -> str:
        """Return a whole exposition."""
        with urllib.request.urlopen(self.url, timeout=120) as answer:
            body: bytes = answer.read()
        return body.decode()

    def value(self, series: str) -> float:
        """Return the value of one series."""
        for line in self.text().splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        raise LookupError(f"the exporter has no {series}")

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._log.close()

    def said(self) -> str:
        """Return its log."""
        return Path(self._log.name).read_text("utf-8")

    def _address(self) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            if found := re.search(r"listening address=(\S+)", self.said()):
                return found[1]
            time.sleep(0.02)
        raise SystemExit(f"bench: the exporter did not start:\n{self.said()}")
