"""A run: the fleets, what happens to their exporters, and all that was seen of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.truth.fleet import Keeper, Profile
from tests.truth.machine import template
from tests.truth.quiet import quiet
from tests.truth.record import Record
from tests.truth.watcher import Watcher, chaos, scraping
from tests.truth.work import Pace

DENSE = Profile("dense", 6, Pace(2.5, 2.0), (0.1, 8.0), (40.0, 110.0), True, 45.0)
CALM = Profile("calm", 5, Pace(15.0, 6.0), (60.0, 60.0), (3600.0, 7200.0), False, 0.0)
PROFILES = {"dense": (DENSE,), "calm": (CALM,), "both": (DENSE, CALM)}


class Fleet:
    """The VMs of a profile, and the exporter that watches them."""

    def __init__(self, folder: Path, record: Record, profile: Profile, seed: int) -> None:
        self.folder = folder / profile.name
        self.folder.mkdir()
        self.profile = profile
        self.record = record
        self.watcher = Watcher(self.folder, record, profile.name)
        made = template(self.folder)
        self.keepers = [
            Keeper(self.folder, made, record, profile, number + 1, seed)
            for number in range(profile.vms)
        ]
        by_name = {each.name: each for each in self.keepers}
        self.watcher.checker.answers = lambda vm: by_name[vm].answers()
        self._seed = f"{seed} {profile.name}"
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self.watcher.start()
        for keeper in self.keepers:
            keeper.start()
        self._spawn(scraping, random.Random(f"{self._seed} scrapes"), self.profile.scrape_every)
        if self.profile.chaos:
            self._spawn(chaos, random.Random(f"{self._seed} chaos"))

    def tend(self, seconds: float) -> None:
        """Wait so long, with a quiet point now and then."""
        deadline = time.monotonic() + seconds
        every = self.profile.quiet_every or float("inf")
        due = time.monotonic() + every
        while (now := time.monotonic()) < deadline:
            if now >= due:
                quiet(self.watcher, self.keepers, self.record)
                due = time.monotonic() + every
            time.sleep(0.1)
        self._over.set()
        for thread in self._threads:
            thread.join()
        quiet(self.watcher, self.keepers, self.record)

    def close(self) -> None:
        """End the VMs, let the exporter see that, and end it."""
        self._over.set()
        for keeper in self.keepers:
            keeper.over.set()
            keeper.gate.open()
        for keeper in self.keepers:
            with suppress(RuntimeError):
                keeper.join()
            if keeper.failure:
                self.record.problems.append(f"the driver of {keeper.name} failed: {keeper.failure}")
        with suppress(OSError):
            self.watcher.fresh()
        self.watcher.end()

    def _spawn(self, work: Callable[..., None], rng: random.Random, *more: object) -> None:
        thread = threading.Thread(
            target=work, args=(self.watcher, rng, self._over, *more), daemon=True
        )
        thread.start()
        self._threads.append(thread)


def drive(folder: Path, profiles: tuple[Profile, ...], seed: int, seconds: float) -> Record:
    """Run for so long, and return all that was seen."""
    record = Record(seed=seed)
    fleets = [Fleet(folder, record, profile, seed) for profile in profiles]
    started: list[Fleet] = []
    try:
        for fleet in fleets:
            started.append(fleet)
            fleet.start()
        tending = [
            threading.Thread(target=fleet.tend, args=(seconds,), daemon=True) for fleet in fleets
        ]
        for thread in tending:
            thread.start()
        for thread in tending:
            thread.join()
    finally:
        for fleet in started:
            fleet.close()
    return record
