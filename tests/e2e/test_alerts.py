"""The shipped alerts, in a real Prometheus, on what really happens to the jobs of real QEMUs.

Each VM has a disk by -drive and one by -blockdev, a commit on either, and one thing that happens to
both. The rules are the shipped ones with their times divided by SHORTER: a quarter of an hour is 15
seconds here.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.faults import ONCE, by_blockdev, by_drive, file_node
from tests.e2e.lab import (
    MIB,
    Disk,
    Exporter,
    Lab,
    Memory,
    Mount,
    Qemu,
    tool,
    wait_until,
)
from tests.e2e.prometheus import DURATIONS, JOB, Prometheus, shipped_rules, shortened, write_rules
from tests.e2e.reading import value

SHORTER = 60
#: More than an hour of the shipped rules.
PATIENCE_SECONDS = 90.0
#: How a disk is given to QEMU -> its `device` label and its job's id.
DISKS = {"drive": ("disk0", "disk0"), "blockdev": ("virtio-disk1", "merge")}


class Alert(NamedTuple):
    """What tells one alert from another."""

    vm: str
    name: str
    device: str = ""
    job_id: str = ""
    #: What the alert adds: in which state the job waits, or how it ended.
    state: str = ""


@dataclass(frozen=True)
class Case:
    """What happens to the jobs of one VM."""

    vm: str
    #: The alert of each of its two jobs, and what that adds.
    alert: str = ""
    state: str = ""
    #: An alert of the VM as a whole.
    of_vm: str = ""
    #: What the overlay holds; beyond 16 MiB, a job with a speed limit does not copy it at once.
    mib: int = 2
    #: What the base does to writes: options of blkdebug's inject-error.
    fault: dict[str, Any] = field(default_factory=dict)
    commit: dict[str, Any] = field(default_factory=dict)

    @property
    def expected(self) -> set[Alert]:
        jobs = DISKS.values() if self.alert else ()
        found = {Alert(self.vm, self.alert, *job, self.state) for job in jobs}
        return found | ({Alert(self.vm, self.of_vm)} if self.of_vm else set())


#: What the storage that is full has later.
ROOM_MIB = 64
HELD = {"speed": 64 * 1024}
STUCK = (
    Case("error", "QemuBlockJobIoError", "failed", fault=ONCE, commit={"on-error": "stop"}),
    Case("full", "QemuBlockJobIoError", "nospace", commit={"on-error": "stop"}),
    Case("hanging", "QemuBlockJobStalled", "", "QemuVmStorageNotResponding", 20, commit=HELD),
    Case("paused", "QemuBlockJobPaused", "paused", mib=20, commit=HELD),
    Case("ready", "QemuBlockJobReady", "ready"),
    Case("slow", mib=20, commit=HELD),
)
#: Its first commits fail at once, its second ones succeed.
FAILING = Case("failing", fault=ONCE)
EXPECTED = set().union(*(case.expected for case in STUCK))
#: Of no known disk: a commit that nobody could ask for may have been given the name of another one.
FAILED = {Alert(FAILING.vm, "QemuBlockJobFailed", "", "", "failed")}
each_case = pytest.mark.parametrize("case", STUCK, ids=lambda case: case.vm)


class Job:
    """A disk of a VM and the commit of its overlay."""

    def __init__(self, vm: Qemu, kind: str) -> None:
        self.vm = vm
        self.device, self.id = DISKS[kind]
        self.disk = Disk(vm, self.device)

    def start(self, **options: Any) -> None:
        named = {"device": self.device}
        if self.id != self.device:
            named = {"device": self.disk.node_name, "job-id": self.id}
        self.vm.run("block-commit", {**named, **options})

    def until(self, holds: Callable[[dict[str, Any]], object], what: str) -> None:
        """Wait for a state of the job as QEMU tells it."""
        wait_until(lambda: (job := self.vm.job(self.id)) and holds(job), f"{self.vm.name}: {what}")

    def limit(self, speed: int) -> None:
        self.vm.run("block-job-set-speed", {"device": self.id, "speed": speed})

    def complete(self) -> None:
        """Have the disk on its base again."""
        self.until(lambda job: job["ready"], "ready")
        self.vm.run("block-job-complete", {"device": self.id})
        wait_until(lambda: self.vm.job(self.id) is None, "the job is complete")
        assert self.disk.entry["inserted"]["backing_file_depth"] == 0


class Site:
    """The lab with all VMs, the exporter that watches them and the Prometheus that judges."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        # How full a file system is must not depend on the machine.
        self.roomy: Memory = lab.keep(Memory(lab.folder / "roomy", 4096))
        self.small: Memory = lab.keep(Memory(lab.folder / "small", 2))
        self.mount: Mount = lab.keep(Mount(self.roomy.folder))
        bases = {"full": self.small.folder, "hanging": self.mount.folder}
        self.jobs: dict[str, list[Job]] = {}
        for case in (*STUCK, FAILING):
            below = bases.get(case.vm, self.roomy.folder)
            disks = [part for kind in DISKS for part in self._disk(case, kind, below)]
            vm = lab.qemu(case.vm, *disks, machine="pc")
            self.jobs[case.vm] = [Job(vm, kind) for kind in DISKS]
        self.exporter: Exporter = lab.exporter("--collector.topology.max-age=5")
        target = {JOB: self.exporter.url.removeprefix("http://")}
        rules = write_rules(lab.folder, SHORTER)
        self.prometheus: Prometheus = lab.keep(Prometheus(lab.folder, target, rules))
        wait_until(self.prometheus.has_scraped, "four scrapes")
        up = dict.fromkeys(self.jobs, 1)
        wait_until(lambda: self.prometheus.query("qemu_vm_up", "vm") == up, "all are up")

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that fire."""
        found: list[dict[str, Any]] = self.prometheus.api("alerts")["alerts"]
        return [alert for alert in found if alert["state"] == "firing"]

    @contextmanager
    def unseen(self, vm: Qemu) -> Iterator[None]:
        """Have nobody ask a VM anything meanwhile; what is told by events is heard afterwards."""
        with self.exporter.stopped():
            # What was asked before is answered: QEMU takes each command in its turn.
            for _ in range(3):
                vm.run("query-status")
            yield

    def until_roomy(self, vm: str) -> None:
        """Wait until the exporter knows that the bases of a VM have room.

        It looks at storage once in a max-age, and rules are so short here that a disk that goes
        back to its base meanwhile would be on storage that is still known to be full.
        """

        def known() -> bool:
            sizes = [
                value(
                    self.exporter.metrics(),
                    "qemu_block_node_storage_size_bytes",
                    vm=vm, device=job.device, layer="1",
                )
                for job in self.jobs[vm]
            ]  # fmt: skip
            return all(size == ROOM_MIB * MIB for size in sizes)

        wait_until(known, "the exporter knows of the room")

    def until_seen(self, jobs: list[Job]) -> None:
        """Wait until Prometheus knows these jobs and their disks."""
        query = "count by (vm, device) (qemu_block_job_offset_bytes)"
        wanted = {(job.vm.name, job.device) for job in jobs}

        def seen() -> set[tuple[str, str]]:
            found = [each["metric"] for each in self.prometheus.series(query)]
            return {(labels["vm"], labels["device"]) for labels in found}

        wait_until(lambda: wanted <= seen(), "Prometheus has the jobs")

    def until_firing(self, expected: set[Alert], leaving: Iterable[Alert] = ()) -> None:
        """Wait until these alerts fire and no others, but for those that may go at any time."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (firing := self._firing().difference(leaving)) != expected:
            wrong = f"missing {expected - firing}, not expected {firing - expected}"
            assert time.monotonic() < deadline, wrong
            time.sleep(0.5)

    def _firing(self) -> set[Alert]:
        return {named(alert["labels"]) for alert in self.alerts()}

    def _disk(self, case: Case, kind: str, bases: Path) -> list[str]:
        """Return the arguments for a disk of two layers."""
        base = bases / f"{case.vm}-{kind}.qcow2"
        overlay = self.roomy.folder / f"{case.vm}-{kind}-overlay.qcow2"
        create = [tool("qemu-img"), "create", "-q", "-f", "qcow2"]
        subprocess.run([*create, base, "64M"], check=True)
        subprocess.run([*create, overlay, "64M"], check=True)
        write = f"write -q 0 {case.mib * MIB}"
        subprocess.run([tool("qemu-io"), "-c", write, overlay], check=True)
        by = by_drive if kind == "drive" else by_blockdev
        return by(DISKS[kind][0], overlay, file_node(base, case.fault))


def named(labels: dict[str, str]) -> Alert:
    """Return which alert this is."""
    states = [labels[name] for name in ("status", "state", "result") if name in labels]
    return Alert(
        labels.get("vm", ""),
        labels["alertname"],
        labels.get("device", ""),
        labels.get("job_id", ""),
        states[0] if states else "",
    )


@pytest.fixture(scope="module")
def site(shared_lab: Lab) -> Site:
    """All VMs, and nothing happens yet."""
    return Site(shared_lab)


@pytest.fixture(scope="module")
def stuck(site: Site) -> Iterator[list[dict[str, Any]]]:
    """What fires when every job of STUCK has been for long where its case has it."""
    for case in STUCK:
        for job in site.jobs[case.vm]:
            job.start(**case.commit)
    for job in site.jobs["error"] + site.jobs["full"]:
        job.until(lambda job: job["io-status"] != "ok", "stopped by the error")
    for job in site.jobs["paused"]:
        job.vm.run("block-job-pause", {"device": job.id})
    for job in site.jobs["hanging"] + site.jobs["slow"]:
        job.until(lambda job: job["offset"] >= 16 * MIB, "within its limit no more")
    site.until_seen(site.jobs["hanging"])
    with site.mount.stopped():
        for job in site.jobs["hanging"]:
            job.limit(0)
        site.until_firing(EXPECTED, leaving=FAILED)
        yield [alert for alert in site.alerts() if alert["labels"]["vm"] != FAILING.vm]


def test_only_times_are_shorter() -> None:
    """The rules that are tested here are the shipped ones but for how long things last."""
    rules = [*shipped_rules("record"), *shipped_rules("alert")]
    thresholds = {
        rule["record"].removeprefix("qemu_block_threshold:")
        for rule in shipped_rules("record")
        if rule["expr"].startswith("vector") and shortened(rule, SHORTER) != rule
    }
    assert thresholds == DURATIONS
    numbers = re.compile(r"\d+(\.\d+)?(ms|[smhd])?")
    for rule in rules:
        texts = [numbers.sub("", str(each)) for each in (rule, shortened(rule, SHORTER))]
        assert texts[0] == texts[1]
    stall = next(rule for rule in rules if rule.get("alert") == "QemuBlockJobStalled")
    assert shortened(stall, SHORTER) == {**stall, "for": "5000ms"}


def test_a_job_that_fails_while_nobody_can_ask_for_it_fires(site: Site) -> None:
    """It is gone when Prometheus asks next; the exporter has heard of it, and of its error."""
    jobs = site.jobs[FAILING.vm]
    with site.unseen(jobs[0].vm):
        for job in jobs:
            job.start()
        wait_until(lambda: not jobs[0].vm.run("query-jobs"), "both have failed")
    site.until_firing(FAILED)
    never = site.prometheus.series('last_over_time(qemu_block_job_offset_bytes{vm="failing"}[1h])')
    assert never == []
    for alert in site.alerts():
        assert alert["annotations"]["description"].endswith("ago: Input/output error.")
    for job in jobs:
        job.start()
    site.until_seen(jobs)
    for job in jobs:
        job.complete()
    # A failure of no known disk is an alert until it is old, whatever succeeds meanwhile.
    site.until_firing(set(), leaving=FAILED)


@each_case
def test_a_job_that_is_stuck_fires_its_own_alert_and_no_other(
    stuck: list[dict[str, Any]], case: Case
) -> None:
    """By its VM, device and id; a job that is only slow fires none."""
    assert {named(each["labels"]) for each in stuck if each["labels"]["vm"] == case.vm} == (
        case.expected
    )


def test_an_alert_says_which_job_of_which_disk_of_which_vm(stuck: list[dict[str, Any]]) -> None:
    """In a sentence, and nothing in it failed to expand."""
    for alert in stuck:
        about, text = named(alert["labels"]), alert["annotations"]["description"]
        assert f"VM {about.vm}" in text
        assert f"disk {about.device}" in text or not about.device
        assert f"Job {about.job_id} (commit)" in text or not about.job_id
        assert "<" not in text


def release(site: Site, case: Case) -> None:
    """Take away what keeps the jobs of a VM from going on."""
    if case.vm == "hanging":
        site.mount.signal(signal.SIGCONT)
    if case.vm == "full":
        site.small.grow(ROOM_MIB)
        site.until_roomy(case.vm)
    for job in site.jobs[case.vm]:
        if case.vm in {"error", "full", "paused"}:
            job.vm.run("block-job-resume", {"device": job.id})
        if case.commit is HELD:
            job.limit(0)


@pytest.mark.usefixtures("stuck")
def test_an_alert_resolves_when_its_job_goes_on_and_is_completed(site: Site) -> None:
    """All of them, for disks of either kind; and the disks are on their bases."""
    for case in STUCK:
        release(site, case)
        for job in site.jobs[case.vm]:
            job.complete()
    site.until_firing(set())


@pytest.mark.usefixtures("stuck")
def test_no_other_alert_ever_fired(site: Site) -> None:
    """Not even for a moment, on the way there or back, of all tests before this one."""
    fired = site.prometheus.series('count_over_time(ALERTS{alertstate="firing"}[1h])')
    assert {named(each["metric"]) for each in fired} == EXPECTED | FAILED
