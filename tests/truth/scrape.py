"""What is checked of each exposition while jobs run: equal series, counters that fell, VMs that are down,
and the device of each job that runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable

from tests.truth.record import JOIN_SECONDS, Job, Record

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_COUNTER = re.compile(r"qemu_block_(?!node_)\w+_total\{")
#: Longer than the threads that make the record are behind the events.
_CLOCK_SECONDS = 0.2


def labels(sample: str) -> dict[str, str]:
    """Return the labels of a sample."""
    return dict(_LABEL.findall(sample))


def samples(exposition: str) -> Iterable[tuple[str, float]]:
    """Yield each sample with its value."""
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            sample, _, value = line.rpartition(" ")
            yield sample, float(value)


def family(exposition: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Return the samples of one family."""
    return [
        (labels(sample), value)
        for sample, value in samples(exposition)
        if sample.partition("{")[0] == name
    ]


class Checker:
    """Compares each exposition with the one before it, and with what QEMU said meanwhile."""

    def __init__(self, record: Record) -> None:
        self._record = record
        #: Of each VM its life and its counters, as last seen.
        self._counters: dict[str, tuple[int, dict[str, float]]] = {}
        #: Asks a VM whether it answers.
        self.answers: Callable[[str], bool] = lambda _: False

    def forget(self) -> None:
        """Another exporter begins anew."""
        self._counters = {}

    def take(self, text: str, fleet: str, number: int, began: float, ended: float) -> list[str]:
        """Check an exposition, and return the VMs that are up in it."""
        record = self._record
        where = f"scrape of {fleet} at {began:.3f}"
        seen: dict[str, float] = {}
        for sample, value in samples(text):
            if sample in seen:
                record.problems.append(f"{where}: {sample} stands twice")
            seen[sample] = value
        record.check("scrapes")
        ups = {labels(s)["vm"]: v for s, v in seen.items() if s.startswith("qemu_vm_up{")}
        self._look_for_down(where, fleet, ups, began, ended)
        self._look_for_falls(where, seen, began, ended)
        self._look_at_devices(where, seen, began, ended)
        return [vm for vm, up in ups.items() if up == 1]

    def _whole_life(self, vm: str, began: float, ended: float) -> int:
        """Return the number of the life that lasted all the time that the answer may be of, else 0."""
        for span in self._record.lives:
            old_enough = span.name == vm and span.began < began - JOIN_SECONDS - _CLOCK_SECONDS
            if old_enough and (not span.ended or span.ended > ended):
                return span.number
        return 0

    def _look_for_down(
        self, where: str, fleet: str, ups: dict[str, float], began: float, ended: float
    ) -> None:
        for vm in {span.name for span in self._record.lives if span.name.startswith(fleet)}:
            if ups.get(vm) == 1 or not self._whole_life(vm, began, ended):
                continue
            if self.answers(vm):
                time.sleep(0.5)  # one that dies by itself may have just been asked
                if self._whole_life(vm, began, ended) and self.answers(vm):
                    how = "down" if vm in ups else "missing"
                    self._record.problems.append(f"{where}: {vm} is {how}, and it answers")

    def _look_for_falls(
        self, where: str, seen: dict[str, float], began: float, ended: float
    ) -> None:
        counters: dict[str, dict[str, float]] = {}
        for sample, value in seen.items():
            if _COUNTER.match(sample):
                counters.setdefault(labels(sample)["vm"], {})[sample] = value
        for vm, now in counters.items():
            life = self._whole_life(vm, began, ended)
            before_life, before = self._counters.get(vm, (0, {}))
            if life and life == before_life:
                self._record.check("counters that did not fall", len(now))
                for sample, value in now.items():
                    if value < before.get(sample, 0):
                        self._record.problems.append(
                            f"{where}: {sample} fell from {before[sample]} to {value}"
                        )
            self._counters[vm] = life, now

    def _look_at_devices(
        self, where: str, seen: dict[str, float], began: float, ended: float
    ) -> None:
        shown = [labels(s) for s in seen if s.startswith("qemu_block_job_offset_bytes{")]
        if not shown:
            return
        recent: dict[tuple[str, str], list[Job]] = {}
        for job in self._record.jobs[-3000:]:
            if not job.gone or job.gone > began - 2 * JOIN_SECONDS:
                recent.setdefault((job.vm, job.id), []).append(job)
        for each in shown:
            jobs = recent.get((each["vm"], each["job_id"]), [])
            jobs = [job for job in jobs if job.created <= ended]
            self._record.check("jobs shown")
            if not jobs:
                self._record.problems.append(f"{where}: there is no such job: {each}")
            elif not each["device"]:
                known = "no device" if not any(job.device for job in jobs) else "device not known"
                self._record.check(f"jobs shown: {known}")
            elif not any(job.device == each["device"] or job.moved for job in jobs):
                self._record.problems.append(f"{where}: job on {jobs[-1].device}: {each}")
