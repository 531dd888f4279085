"""The exporter of one fleet: started, scraped, stopped and started again; its verdicts are read here."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from tests.e2e.lab import Exporter
from tests.truth.record import JOIN_SECONDS, Record, Scrape, Span, Verdict
from tests.truth.scrape import Checker

#: A VM that is well answers sooner, and one that hangs does not hold a scrape up for long.
_FLAGS = ("--qmp.timeout=10", "--log.level=info")


class Watcher:
    """One exporter after the other, over the sockets of a fleet."""

    def __init__(
        self, folder: Path, record: Record, fleet: str, flags: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        self.record = record
        self.fleet = fleet
        self.checker = Checker(record)
        #: Held by who must not have the exporter ended meanwhile.
        self.lock = threading.RLock()
        self._scraping = threading.Lock()
        self._number = 0
        self._flags = flags

    def start(self) -> None:
        """Start an exporter."""
        self._number += 1
        place = self.folder / f"exporter-{self._number}"
        place.mkdir()
        self._trace = place / "trace"
        before = [sys.executable, "-m", "tests.truth.traced", str(self._trace)]
        sockets = f"--qmp.sockets={self.folder}/*.sock"
        self.span = Span(self.fleet, self._number, time.time())
        self.exporter = Exporter(place, [sockets, *_FLAGS, *self._flags], before)
        self.record.exporters.append(self.span)
        self.checker.forget()
        self.record.say(time.time(), "", f"exporter {self._number} of {self.fleet} began")

    def end(self, *, crash: bool = False) -> None:
        """End it, and take its verdicts."""
        self.exporter.signal(signal.SIGCONT)
        try:
            if crash:
                self.exporter.crash()
            self.exporter.close()
        except AssertionError as error:
            self.record.problems.append(f"the exporter did not end well: {error}")
        self.span.ended, self.span.how = time.time(), "KILL" if crash else "TERM"
        self.record.say(time.time(), "", f"exporter {self._number} of {self.fleet} ended")
        self.record.verdicts += self.verdicts()
        shutil.rmtree(self._trace.parent, ignore_errors=True)

    def again(self, *, crash: bool) -> None:
        """End it and start another."""
        with self.lock:
            self.end(crash=crash)
            self.start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Stop it meanwhile."""
        with self.lock:
            span = Span(self.fleet, self._number, time.time())
            with self.exporter.stopped():
                yield
            span.ended = time.time()
            self.record.stops.append(span)
            took = span.ended - span.began
            self.record.say(span.began, "", f"{self.fleet}: exporter stopped for {took:.1f} s")

    def verdicts(self) -> list[Verdict]:
        """Return all that the exporter that runs has said so far."""
        if not self._trace.exists():
            return []
        lines = self._trace.read_text("utf-8").splitlines()
        return [self._verdict(json.loads(line)) for line in lines]

    def scrape(self) -> str:
        """Scrape once; return nothing where the exporter was ended meanwhile."""
        with self._scraping:
            number, began = self._number, time.time()
            try:
                text = self.exporter.metrics()
            except (OSError, HTTPException):
                return ""
            if number != self._number:
                return ""
            ended = time.time()
            up = self.checker.take(text, self.fleet, number, began, ended)
            self.record.scrapes.append(Scrape(self.fleet, began, ended, up))
            self.record.say(began, "", f"{self.fleet}: scrape, {ended - began:.2f} s")
            return text

    def fresh(self) -> str:
        """Scrape in a sweep that begins after this call."""
        time.sleep(JOIN_SECONDS + 0.05)
        return self.scrape()

    def ask(self, path: str) -> dict[str, object] | None:
        """Return an answer of the API, None where there is no such thing."""
        try:
            answer: dict[str, object] = json.loads(self.exporter.get(path))
        except HTTPError as error:
            error.close()
            return None
        return answer

    def _verdict(self, line: dict[str, object]) -> Verdict:
        # Ids carry the name of their VM: "dense1-c3-17", and so do those that are a device's name.
        vm = str(line["id"]).partition("-")[0]
        name = f"{self.fleet}"
        # Accounts of two processes are different ones.
        account = self._number * 1_000_000 + int(str(line.pop("account")))
        return Verdict(exporter=name, account=account, vm=vm, **line)  # type: ignore[arg-type]


def scraping(
    watcher: Watcher, rng: random.Random, over: threading.Event, every: tuple[float, float]
) -> None:
    """Scrape at random times until it is over."""
    while not over.is_set():
        watcher.scrape()
        over.wait(rng.uniform(*every))


def chaos(watcher: Watcher, rng: random.Random, over: threading.Event) -> None:
    """Stop the exporter now and then, and end it more rarely."""
    while not over.wait(rng.expovariate(1 / 30)):
        if rng.random() < 0.7:
            seconds = rng.uniform(0.5, 2.0) if rng.random() < 0.15 else rng.uniform(0.1, 0.4)
            with watcher.held():
                time.sleep(seconds)
        else:
            watcher.again(crash=rng.random() < 0.5)
