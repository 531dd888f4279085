"""The VMs of one exporter: their lives, and the threads that work on them."""

from __future__ import annotations

import random
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.lab import QmpError
from tests.truth.disk import Disk
from tests.truth.layout import furnish
from tests.truth.machine import Ended, Machine
from tests.truth.operations import OPERATIONS
from tests.truth.record import Record
from tests.truth.work import Pace, Work


@dataclass(frozen=True)
class Profile:
    """How a fleet lives, in seconds."""

    name: str
    vms: int
    pace: Pace
    #: Between two scrapes, at least and at most.
    scrape_every: tuple[float, float]
    #: How long a VM lives, at least and at most.
    life: tuple[float, float]
    #: Whether the exporter is stopped and restarted.
    chaos: bool
    #: Between two quiet points, 0 for one at the end alone.
    quiet_every: float


class Gate:
    """Lets all hands rest at once, so that what is shown can be compared with what is."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._resting = 0
        self._working = 0

    def enter(self) -> None:
        with self._changed:
            self._working += 1

    def leave(self) -> None:
        with self._changed:
            self._working -= 1
            self._changed.notify_all()

    def rest(self) -> None:
        """Wait while the gate is closed."""
        with self._changed:
            self._resting += 1
            self._changed.notify_all()
            while self._closed:
                self._changed.wait()
            self._resting -= 1

    def close(self) -> None:
        with self._changed:
            self._closed = True

    def all_rest(self, seconds: float) -> bool:
        """Wait until all rest; return whether they do."""
        with self._changed:
            return self._changed.wait_for(lambda: self._resting >= self._working, seconds)

    def open(self) -> None:
        with self._changed:
            self._closed = False
            self._changed.notify_all()


class Keeper(threading.Thread):
    """Has one VM live again and again."""

    def __init__(
        self, folder: Path, template: Path, record: Record, profile: Profile, number: int, seed: int
    ) -> None:
        super().__init__(name=f"{profile.name}{number}", daemon=True)
        self.profile = profile
        self.gate = Gate()
        #: Held by who must not have the VM ended meanwhile.
        self.lock = threading.RLock()
        self.over = threading.Event()
        self.machine: Machine | None = None
        self.disks: list[Disk] = []
        self.failure = ""
        self._daemon = profile.vms > 2 and number == profile.vms
        self._folder = folder
        self._template = template
        self._record = record
        self._seed = f"{seed} {self.name}"
        self._lives = 0

    def run(self) -> None:
        try:
            rng = random.Random(self._seed)
            while not self.over.is_set():
                self._live(rng)
        except Exception:
            self.failure = traceback.format_exc()
            raise

    def answers(self) -> bool:
        """Whether the VM answers us at this instant."""
        machine = self.machine
        if machine is None:
            return False
        try:
            machine.run("query-version")
        except (Ended, QmpError):
            return False
        return True

    def _live(self, rng: random.Random) -> None:
        self._lives += 1
        with self.lock:
            machine = Machine(self._folder, self._record, self.name, self._lives, self._template)
            groups = furnish(machine, daemon=self._daemon)
            self.disks = [disk for group in groups for disk in group]
            self.machine = machine
        hands = [
            threading.Thread(target=self._work, args=(machine, group, n), daemon=True)
            for n, group in enumerate(groups)
        ]
        for hand in hands:
            self.gate.enter()
            hand.start()
        deadline = time.monotonic() + rng.uniform(*self.profile.life)
        how = rng.choice(("quit", "quit", "TERM", "KILL", "KILL"))
        while time.monotonic() < deadline and not self.over.is_set():
            if machine.over or machine.hangs:
                break
            time.sleep(0.1)
        with self.lock:
            self.machine = None
            if self.over.is_set():
                machine.say("the run is over")
            machine.end(how) if not machine.over else machine.close("died")
        for each in hands:
            each.join()

    def _work(self, machine: Machine, disks: list[Disk], number: int) -> None:
        """Do one operation after the other, until the VM ends."""
        rng = random.Random(f"{self._seed} {machine.number} {number}")
        work = Work(machine, disks, rng, self.profile.pace)
        column = 0 if disks[0].attached else 1
        operations = [each for each, shares in OPERATIONS.items() if shares[column]]
        weights = [OPERATIONS[each][column] for each in operations]
        try:
            while not self.over.is_set():
                self.gate.rest()
                if machine.over:
                    return
                operation, disk = rng.choices(operations, weights)[0], rng.choice(disks)
                with machine.refusable():
                    if disk.layers():
                        operation(work, disk)
                with suppress(QmpError):
                    work.tidy()
                self.over.wait(rng.expovariate(1 / self.profile.pace.between))
        except (Ended, FileNotFoundError):
            pass  # its folder goes with it
        except Exception:  # noqa: BLE001  # the report tells of it
            self.failure = traceback.format_exc()
        finally:
            self.gate.leave()
