"""How jobs ended, on real QEMU: what was done to each is what is counted, once."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import series
from tests.e2e.lab import MIB, Exporter, Lab, Qemu, drive, tool, wait_until
from tests.e2e.reading import labels_of, value

RESULTS = ("completed", "failed", "cancelled", "unverified", "vanished")
#: Slow enough to be there until somebody ends it.
SLOW = {"speed": 1}
KEPT = {"auto-dismiss": False}
#: Of a small disk, a mirror that is slow may be ready all the same; to cancel that is to complete it.
NOW = {"force": True}


class Relay:
    """A socket before that of a VM, whose connections can be cut."""

    def __init__(self, path: Path, behind: Path) -> None:
        self._behind = behind
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open = True
        self._pairs: list[socket.socket] = []
        self._answers = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def looks_at(self, job: str) -> int:
        """How often QEMU has told on which nodes a job works."""
        lines = bytes(self._answers).split(b"\n")[:-1]
        graphs = [json.loads(line)["return"] for line in lines if b'"edges":' in line]
        return sum(
            any(node["type"] == "block-job" and node["name"] == job for node in graph["nodes"])
            for graph in graphs
        )

    def wait_for_look(self, job: str, *, after: int) -> None:
        """Wait until QEMU has told that more often than `after` times."""
        wait_until(lambda: self.looks_at(job) > after, f"the exporter looks at {job}")

    @property
    def lists(self) -> int:
        """How many jobs query-jobs has told of."""
        return self._answers.count(b'"current-progress":')

    def cut(self) -> None:
        """Cut all connections, and refuse new ones until `mend`."""
        self._open = False
        for each in self._pairs:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def mend(self) -> None:
        self._open = True

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self._open:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._behind))
                self._pairs += [client, server]
                for parts in ((client, server, bytearray()), (server, client, self._answers)):
                    threading.Thread(target=self._copy, args=parts, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket, said: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                said += data
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Work:
    """A VM with disks, and what was done to its jobs."""

    def __init__(self, lab: Lab, exporter: Exporter, vm: Qemu, name: str) -> None:
        self.lab = lab
        self.exporter = exporter
        self.vm = vm
        self.name = name
        #: (job type, result) -> jobs.
        self.done: Counter[tuple[str, str]] = Counter()
        self._files = 0

    def run(self, command: str, **arguments: Any) -> None:
        self.vm.run(command, {name.replace("_", "-"): each for name, each in arguments.items()})

    def file(self) -> str:
        self._files += 1
        return str(self.lab.folder / f"{self.name}-{self._files}.img")

    def snapshot(self, *devices: str) -> None:
        """Put a layer with data on top of each."""
        for device in devices:
            file = self.file()
            self.run("blockdev-snapshot-sync", device=device, snapshot_file=file)
            self.vm.hmp(f'qemu-io {device} "write 0 4M"')

    def start(self, command: str, device: str, **more: Any) -> None:
        if command.startswith("drive-"):
            more = {"target": self.file(), "format": "qcow2", "sync": "full", **more}
        self.run(command, device=device, **more)

    def target(self, errno: int) -> str:
        """Make a node that can be written to once."""
        file = self.file()
        with open(file, "wb") as image:
            image.truncate(8 * MIB)
        name = f"target-{self._files}"
        first = {"event": "write_aio", "state": 1, "new_state": 2}
        rule = {"event": "write_aio", "state": 2, "errno": errno, "immediately": False}
        self.vm.run(
            "blockdev-add",
            {
                "driver": "raw",
                "node-name": name,
                "file": {
                    "driver": "blkdebug",
                    "set-state": [first],
                    "inject-error": [rule],
                    "image": {"driver": "file", "filename": file},
                },
            },
        )
        return name

    def ready(self, *devices: str) -> None:
        for device in devices:
            wait_until(partial(self._is, device, "ready"), f"{device} is ready")

    def concluded(self, *jobs: str) -> None:
        for job in jobs:
            wait_until(partial(self._is, job, "concluded"), f"{job} is concluded")

    def gone(self) -> None:
        wait_until(lambda: not self.vm.run("query-jobs"), "all jobs are gone")

    def end(self, how: str, *devices: str, **more: Any) -> None:
        for device in devices:
            name = "id" if how == "dismiss" else "device"
            self.run(f"block-job-{how}", **{name: device}, **more)

    def count(self, job_type: str, result: str, jobs: int = 1) -> None:
        self.done[job_type, result] += jobs

    def check(self, text: str) -> None:
        """See that what is counted is what was done, one by one, and nothing else."""
        counted = Counter(
            {
                (labels["job_type"], result): int(value_)
                for result in RESULTS
                for labels, value_ in counters(text, f"qemu_block_jobs_{result}_total", self.name)
                if int(value_)
            }
        )
        assert counted == self.done

    def _is(self, job: str, status: str) -> bool:
        jobs = self.vm.run("query-jobs")
        return any(each["id"] == job and each["status"] == status for each in jobs)


def counters(text: str, name: str, vm: str) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the labels and the value of each sample of a family of one VM."""
    for sample, each in series(text, name, vm=vm).items():
        labels = dict(part.split("=") for part in sample[sample.index("{") + 1 : -1].split(","))
        yield {label: text.strip('"') for label, text in labels.items()}, each


@pytest.fixture
def base(lab: Lab) -> Path:
    """An image of which each disk has a copy."""
    image = lab.image("base", 8 * MIB)
    subprocess.run([tool("qemu-io"), "-c", "write -q 0 7M", image], check=True)
    return image


def disks(lab: Lab, base: Path, name: str, count: int) -> list[str]:
    """Return the arguments for so many disks, named disk0 and so on."""
    arguments: list[str] = []
    for number in range(count):
        image = lab.folder / f"{name}-disk{number}.qcow2"
        shutil.copy(base, image)
        arguments += drive(f"disk{number}", image)
    return arguments


def failing_base(lab: Lab, base: Path, device: str, kind: str) -> list[str]:
    """Return the arguments for a disk on a base that can be read or written once."""
    below = lab.folder / f"{device}-base.qcow2"
    shutil.copy(base, below)
    # It names no base: that is said below, and once.
    above = lab.image(device, 8 * MIB)
    subprocess.run([tool("qemu-io"), "-c", "write -q 2M 3M", above], check=True)
    first = f"backing.file.set-state.0.event={kind}_aio,backing.file.set-state.0.state=1"
    first = f"{first},backing.file.set-state.0.new_state=2"
    rule = f"backing.file.inject-error.0.event={kind}_aio,backing.file.inject-error.0.errno=5"
    rule = f"{first},{rule},backing.file.inject-error.0.state=2"
    return drive(
        device,
        above,
        "backing.driver=qcow2,backing.file.driver=blkdebug",
        f"backing.file.image.driver=file,backing.file.image.filename={below}",
        f"{rule},backing.file.inject-error.0.iotype={kind}",
    )


def test_every_end_of_every_job_is_counted_once(lab: Lab, base: Path) -> None:
    """Jobs that a scrape saw and jobs that none did, with and without a connection."""
    vm = lab.qemu(
        "behind",
        *disks(lab, base, "behind", 12),
        *failing_base(lab, base, "unwritable", "write"),
        *failing_base(lab, base, "unreadable", "read"),
    )
    began = time.time()
    vm.socket.rename(lab.folder / "behind.monitor")
    relay = lab.keep(Relay(lab.folder / "vm.sock", lab.folder / "behind.monitor"))
    exporter = lab.exporter()
    work = Work(lab, exporter, vm, "vm")
    disk = [f"disk{number}" for number in range(12)]
    work.snapshot(*disk)
    exporter.metrics()

    between_two_scrapes(work, relay, disk)
    work.check(exporter.fresh())
    seen_by_a_scrape(work, disk)
    work.check(exporter.fresh())
    failed(work, disk, relay)
    work.check(text := exporter.fresh())
    errors = {
        (labels["device"], labels["job_type"]): labels["error"]
        for labels in labels_of(text, "qemu_block_job_last_error_info")
    }
    assert errors["disk0", "backup"] == "No space left on device"
    assert errors["unwritable", "commit"] == errors["unreadable", "stream"] == "Input/output error"
    kept(work, disk)
    work.check(exporter.fresh())
    no_block_jobs(work, relay)
    work.check(exporter.fresh())
    connection_lost(work, relay, disk)
    work.check(exporter.fresh())
    write_threshold(work)
    assert sum(work.done.values()) >= 50
    finished = series(exporter.metrics(), "qemu_block_job_last_finished_timestamp_seconds")
    assert all(began < float(at) < time.time() for at in finished.values())


def between_two_scrapes(work: Work, relay: Relay, disk: list[str]) -> None:
    """Jobs that start and end while nobody looks."""
    for each in disk[:4]:
        work.start("block-commit", each)
    work.ready(*disk[:4])
    work.end("complete", *disk[:4])
    work.count("commit", "completed", 4)
    for command, devices in {
        "block-commit": disk[4:6],
        "block-stream": disk[6:7],
        "drive-mirror": disk[7:8],
        "drive-backup": disk[8:9],
    }.items():
        for each in devices:
            work.start(command, each, **SLOW)
        work.end("cancel", *devices, **NOW)
        work.count(command.partition("-")[2], "cancelled", len(devices))
    for each in disk[9:11]:
        work.start("drive-mirror", each)
    work.ready(*disk[9:11])
    work.end("complete", disk[9])
    work.end("cancel", disk[10])
    work.count("mirror", "completed", 2)
    work.gone()
    # Layers that no scrape sees.
    work.snapshot(*disk[:4])
    for each in disk[:4]:
        looks = relay.looks_at(each)
        work.start("block-commit", each)
        work.ready(each)
        # Of one that is gone before the exporter has looked at it nobody can tell how it ended.
        relay.wait_for_look(each, after=looks)
    work.end("complete", *disk[:3])
    work.end("cancel", disk[3])
    work.count("commit", "completed", 3)
    work.count("commit", "cancelled")
    work.gone()
    work.start("drive-backup", disk[10])
    work.start("block-stream", disk[11])
    work.count("backup", "completed")
    work.count("stream", "completed")
    work.gone()


def seen_by_a_scrape(work: Work, disk: list[str]) -> None:
    """The same, with a scrape in the middle of each."""
    work.snapshot(*disk)
    work.snapshot(*disk[4:6])
    for each in disk[:4]:
        work.start("block-commit", each)
    for each in disk[4:6]:
        nodes = work.vm.run("query-block")
        image = next(n for n in nodes if n["device"] == each)["inserted"]["image"]
        work.start("block-commit", each, top=image["backing-image"]["filename"], **SLOW)
    work.start("block-stream", disk[6], **SLOW)
    work.start("block-stream", disk[7], **SLOW)
    work.start("drive-backup", disk[8], **SLOW)
    work.start("drive-backup", disk[9], **SLOW)
    work.start("drive-mirror", disk[10], **SLOW)
    work.start("drive-mirror", disk[11])
    work.ready(*disk[:4], disk[11])
    text = work.exporter.fresh()
    assert len(series(text, "qemu_block_job_first_seen_timestamp_seconds")) == 12
    assert len(series(text, "qemu_block_job_last_progress_timestamp_seconds")) == 12
    assert len(series(text, "qemu_block_job_ready_timestamp_seconds")) == 5
    work.end("complete", *disk[:2], disk[11])
    work.end("cancel", *disk[2:4])
    work.end("cancel", disk[5], disk[6], disk[8], disk[10], **NOW)
    work.end("set-speed", disk[4], disk[7], disk[9], speed=0)
    work.gone()
    work.count("commit", "completed", 3)
    work.count("commit", "cancelled", 3)
    for kind in ("stream", "backup"):
        work.count(kind, "completed")
        work.count(kind, "cancelled")
    work.count("mirror", "cancelled")
    work.count("mirror", "completed")


def failed(work: Work, disk: list[str], relay: Relay) -> None:
    """I/O errors, and targets that have no space."""
    slow: list[str] = []
    for number, errno in enumerate((28, 5)):
        for command in ("blockdev-backup", "blockdev-mirror"):
            each = disk[number + (2 if command == "blockdev-mirror" else 0)]
            more = SLOW if command == "blockdev-backup" else {}
            looks = relay.looks_at(each)
            work.start(command, each, target=work.target(errno), sync="full", **more)
            if more:
                relay.wait_for_look(each, after=looks)
                slow.append(each)
            work.count(command.partition("-")[2], "failed")
    for command, each in {"block-commit": "unwritable", "block-stream": "unreadable"}.items():
        looks = relay.looks_at(each)
        work.start(command, each, **SLOW)
        relay.wait_for_look(each, after=looks)
        slow.append(each)
        work.count(command.partition("-")[2], "failed")
    # On which disk a job works that is gone at once nobody can tell.
    work.end("set-speed", *slow, speed=0)
    work.gone()


def kept(work: Work, disk: list[str]) -> None:
    """Jobs that stay until they are dismissed are counted when they end, and no more."""
    work.snapshot(disk[2])
    work.exporter.fresh()
    for each in disk[:2]:
        work.start("drive-backup", each, **KEPT)
    work.start("block-commit", disk[2], **KEPT)
    work.start("drive-mirror", disk[3], **KEPT, **SLOW)
    work.start("blockdev-mirror", disk[4], target=work.target(28), sync="full", **KEPT)
    work.ready(disk[2])
    work.end("complete", disk[2])
    work.end("cancel", disk[3], **NOW)
    work.concluded(*disk[:5])
    work.count("backup", "completed", 2)
    work.count("commit", "completed")
    work.count("mirror", "cancelled")
    work.count("mirror", "failed")
    for _ in range(2):
        work.check(work.exporter.fresh())
    work.end("dismiss", *disk[:5])
    work.gone()


def no_block_jobs(work: Work, relay: Relay) -> None:
    """They have no event but that of their status."""

    def create(job: str, filename: str) -> None:
        options = {"driver": "file", "filename": filename, "size": MIB}
        work.run("blockdev-create", job_id=job, options=options)

    create("good", work.file())
    create("bad", "/nowhere/at/all")
    work.concluded("good", "bad")
    work.exporter.fresh()
    work.run("job-dismiss", id="good")
    work.run("job-dismiss", id="bad")
    lists = relay.lists
    create("unseen", work.file())
    work.concluded("unseen")
    wait_until(lambda: relay.lists > lists, "the exporter asks for it")
    work.run("job-dismiss", id="unseen")
    work.count("create", "completed", 2)
    work.count("create", "failed")


def connection_lost(work: Work, relay: Relay, disk: list[str]) -> None:
    """What cannot be known is no success, whatever a chain looks like afterwards."""
    work.snapshot(*disk[:4])
    for each in disk[:3]:
        work.start("block-commit", each)
    work.start("block-stream", disk[3], **SLOW)
    work.start("drive-backup", disk[4], **SLOW)
    work.start("drive-mirror", disk[5], **SLOW)
    work.start("drive-mirror", disk[6], **SLOW, **KEPT)
    work.start("drive-backup", disk[7], **SLOW, **KEPT)
    work.ready(*disk[:3])
    work.exporter.fresh()
    relay.cut()
    down = work.exporter.fresh()
    assert value(down, "qemu_vm_up", vm="vm") == 0
    assert not series(down, "qemu_block_jobs_completed_total")
    work.end("complete", disk[0])
    work.end("cancel", disk[1])
    work.end("cancel", disk[3], disk[6], **NOW)
    work.end("set-speed", disk[4], disk[7], speed=0)
    work.concluded(disk[6], disk[7])
    wait_until(lambda: not work._is(disk[4], "running"), "the backup ends")
    relay.mend()
    text = work.exporter.until(lambda text: value(text, "qemu_vm_up", vm="vm"))
    assert value(text, "qemu_block_job_ready", device=disk[2]) == 1
    work.exporter.fresh()
    work.end("dismiss", disk[6], disk[7])
    work.end("complete", disk[2])
    work.end("cancel", disk[5], **NOW)
    work.gone()
    work.count("commit", "completed")
    work.count("commit", "unverified")
    work.count("commit", "vanished")
    work.count("stream", "vanished")
    work.count("backup", "vanished")
    work.count("backup", "completed")
    work.count("mirror", "cancelled", 2)


def write_threshold(work: Work) -> None:
    """An event that no query tells of."""
    block = next(each for each in work.vm.run("query-block") if each["device"] == "disk8")
    threshold = {"node-name": block["inserted"]["node-name"], "write-threshold": MIB}
    work.vm.run("block-set-write-threshold", threshold)
    text = work.exporter.fresh()
    name = "qemu_block_write_thresholds_exceeded_total"
    assert value(text, name, device="disk8") == 0
    work.vm.hmp('qemu-io disk8 "write 2M 64k"')
    assert value(work.exporter.fresh(), name, device="disk8") == 1


@pytest.mark.parametrize("connection", ["persistent", "per-scrape"])
def test_jobs_of_a_vm_that_was_killed_have_vanished(lab: Lab, base: Path, connection: str) -> None:
    """The next QEMU on the socket is another one, whatever its chains look like."""
    arguments = disks(lab, base, "vm", 4)
    vm = lab.qemu("vm", *arguments)
    exporter = lab.exporter(f"--qmp.connection={connection}")
    work = Work(lab, exporter, vm, "vm")
    work.snapshot("disk0", "disk1")
    work.start("block-commit", "disk0")
    work.start("block-stream", "disk1", **SLOW)
    work.start("drive-backup", "disk2", **SLOW)
    work.start("drive-mirror", "disk3", **SLOW)
    work.ready("disk0")
    exporter.metrics()
    vm.kill()
    down = exporter.fresh()
    assert not series(down, "qemu_block_jobs_vanished_total")
    vm.socket.unlink()
    (lab.folder / "vm.own").unlink()
    work.vm = lab.qemu("vm", *arguments)
    for job_type in ("commit", "stream", "backup", "mirror"):
        work.count(job_type, "vanished")
    exporter.until(lambda text: value(text, "qemu_vm_up", vm="vm"))
    if connection == "per-scrape":
        work.vm.left()
    work.check(exporter.fresh())


def test_without_a_connection_between_scrapes_nothing_is_completed(lab: Lab, base: Path) -> None:
    """A commit whose chain shows a pivot may have been: another one may have done it too."""
    vm = lab.qemu("vm", *disks(lab, base, "vm", 5))
    exporter = lab.exporter("--qmp.connection=per-scrape")
    work = Work(lab, exporter, vm, "vm")
    work.snapshot("disk0", "disk1", "disk2")
    work.start("block-commit", "disk0")
    work.start("block-commit", "disk1")
    work.start("block-stream", "disk2", **SLOW)
    work.start("drive-backup", "disk3", **SLOW)
    work.start("drive-mirror", "disk4", **SLOW)
    work.ready("disk0", "disk1")
    exporter.until(lambda text: value(text, "qemu_vm_up"))
    vm.left()
    work.check(exporter.fresh())
    # With a connection it would hear of it.
    vm.left()
    work.end("complete", "disk0")
    work.end("cancel", "disk1", "disk2", "disk3", "disk4")
    work.gone()
    exporter.fresh()
    vm.left()
    work.count("commit", "unverified")
    for job_type in ("commit", "stream", "backup", "mirror"):
        work.count(job_type, "vanished")
    work.check(exporter.fresh())


# Commits whose chain is changed again before the next scrape.


class Disk:
    """A disk of one VM, whose layers come and go faster than anybody scrapes."""

    def __init__(self, work: Work, device: str = "disk0") -> None:
        self.work = work
        self.device = device

    def status(self, job: str, status: str) -> None:
        self.work.vm.monitor.event("JOB_STATUS_CHANGE", id=job, status=status)

    def layer(self) -> str:
        """Put a layer on it, and return its file."""
        file = self.work.file()
        self.work.run("blockdev-snapshot-sync", device=self.device, snapshot_file=file)
        return file

    def commit(self, job: str, how: str, **more: Any) -> None:
        """Commit its layers, and end the job as soon as QEMU says that it is ready."""
        self.work.start("block-commit", self.device, job_id=job, **more)
        self.work.vm.monitor.event("BLOCK_JOB_READY", device=job)
        self.work.end(how, job)
        self.status(job, "null")

    def run(self, command: str, job: str, **more: Any) -> None:
        """Start a job that ends by itself, and wait until it has."""
        self.work.start(command, self.device, job_id=job, **more)
        self.status(job, "null")

    @property
    def layers(self) -> list[str]:
        """The files of its chain."""
        block = next(e for e in self.work.vm.run("query-block") if e["device"] == self.device)
        image = block["inserted"]["image"]
        files = []
        while image is not None:
            files.append(image["filename"])
            image = image.get("backing-image")
        return files


@pytest.fixture
def disk(lab: Lab, base: Path) -> Disk:
    """A disk of a VM that is scraped, and that nobody scrapes from here on."""
    vm = lab.qemu("vm", *disks(lab, base, "vm", 2))
    exporter = lab.exporter()
    exporter.until(lambda text: value(text, "qemu_vm_up"))
    return Disk(Work(lab, exporter, vm, "vm"))


def results(text: str, job_type: str = "commit") -> Counter[str]:
    """Return how many jobs of a type had each result."""
    return Counter(
        {
            result: int(each)
            for result in RESULTS
            for labels, each in counters(text, f"qemu_block_jobs_{result}_total", "vm")
            if labels["job_type"] == job_type and int(each)
        }
    )


ROUNDS = 40


@pytest.mark.parametrize(("how", "result"), [("complete", "completed"), ("cancel", "cancelled")])
def test_a_commit_that_is_ended_at_once_when_it_is_ready_is_told_apart(
    disk: Disk, how: str, result: str
) -> None:
    """No scrape has seen its layer, and none will."""
    for number in range(ROUNDS):
        disk.layer()
        disk.work.vm.hmp(f'qemu-io {disk.device} "write 0 4M"')
        disk.commit(f"j{number}", how)
    counted = results(disk.work.exporter.fresh())

    assert counted.keys() <= {result, "unverified"}, counted
    assert counted.total() == ROUNDS
    assert counted[result] >= ROUNDS - 2, counted


def test_a_cancelled_commit_is_not_completed_by_what_takes_its_top_away_later(disk: Disk) -> None:
    """A mirror to another image: the overlay was never merged."""
    disk.layer()
    disk.commit("c", "cancel")
    disk.work.start("drive-mirror", disk.device, job_id="m", sync="top")
    disk.work.vm.monitor.event("BLOCK_JOB_READY", device="m")
    disk.work.end("complete", "m")
    disk.status("m", "null")
    text = disk.work.exporter.fresh()

    assert results(text).keys() <= {"cancelled", "unverified"}
    assert results(text).total() == 1
    assert results(text, "mirror") == {"completed": 1}


def test_a_cancelled_commit_is_not_completed_by_a_later_one(disk: Disk) -> None:
    """Which merges the same layers, under another one."""
    top = disk.layer()
    disk.commit("c", "cancel")
    disk.layer()
    disk.run("block-commit", "d", top=top)
    counted = results(disk.work.exporter.fresh())

    assert counted["completed"] == 1
    assert counted["cancelled"] + counted["unverified"] == 1


def test_a_completed_commit_is_not_cancelled_where_its_base_was_merged_too(disk: Disk) -> None:
    """Chains are compared by the layer that was merged, not by that which stayed."""
    middle = disk.layer()
    disk.layer()
    disk.commit("c", "complete", base=middle)
    disk.layer()
    disk.run("block-commit", "d", top=middle)
    counted = results(disk.work.exporter.fresh())

    assert counted.keys() <= {"completed", "unverified"}
    assert counted.total() == 2
    assert counted["completed"]


@pytest.mark.parametrize("how", ["complete", "cancel"])
def test_what_happened_while_the_exporter_was_held_is_not_told_wrongly(
    disk: Disk, how: str
) -> None:
    """Many jobs of one disk, whose events come all at once; each changes what the others left."""
    middle = disk.layer()
    disk.work.exporter.fresh()
    with disk.work.exporter.stopped():
        disk.layer()
        disk.commit("a", how, base=middle)
        if how == "complete":
            disk.layer()
        disk.work.start("drive-mirror", disk.device, job_id="m", sync="top")
        disk.work.vm.monitor.event("BLOCK_JOB_READY", device="m")
        disk.work.end("complete", "m")
        disk.status("m", "null")
        disk.layer()
        disk.commit("b", how, base=middle)
        disk.layer()
        disk.run("block-commit", "d", top=middle)
    counted = results(disk.work.exporter.fresh())

    assert counted.total() == 3
    assert counted.keys() <= {
        "completed",
        "unverified",
        *(["cancelled"] if how == "cancel" else []),
    }
    assert counted["completed"] <= (3 if how == "complete" else 1)


def test_the_device_of_a_commit_that_another_one_may_have_been_is_not_told(disk: Disk) -> None:
    """One of two disks has lost its top, and either of two commits may have done it."""
    other = Disk(disk.work, "disk1")
    disk.layer()
    other.layer()
    disk.work.exporter.fresh()
    with disk.work.exporter.stopped():
        other.commit("y", "complete")
        disk.commit("x", "cancel")
    text = disk.work.exporter.fresh()
    told = [
        (labels["device"], labels["result"])
        for labels, _ in counters(text, "qemu_block_job_last_finished_timestamp_seconds", "vm")
    ]

    assert results(text) == {"unverified": 2}
    assert told == [("", "unverified")]


def test_a_job_id_is_a_device_only_where_qemu_has_chosen_it(disk: Disk) -> None:
    """A backup of one disk may have the name of another."""
    for _ in range(5):
        disk.work.start("drive-backup", "disk1", job_id="disk0")
        disk.status("disk0", "null")
    text = disk.work.exporter.fresh()
    told = {
        labels["device"]
        for labels, _ in counters(text, "qemu_block_job_last_finished_timestamp_seconds", "vm")
    }

    assert results(text, "backup") == {"completed": 5}
    assert told <= {"disk1", ""}


def test_a_later_job_with_the_same_id_has_its_own_outcome(disk: Disk) -> None:
    """Ids are the names of devices, unless somebody chooses others."""

    def outcome() -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(
            disk.work.exporter.get("/api/v1/vms/vm/block-jobs/disk0")
        )
        return {name: shown[name] for name in ("job_type", "outcome")}

    disk.layer()
    disk.commit("disk0", "complete")
    disk.work.start("drive-backup", "disk0", **SLOW)
    disk.work.end("cancel", "disk0")
    disk.status("disk0", "null")
    cancelled, failed = ({"job_type": "backup", "outcome": how} for how in ("cancelled", "failed"))
    wait_until(lambda: outcome() == cancelled, "its end is told")
    disk.layer()
    disk.commit("disk0", "complete")
    target = disk.work.target(28)
    disk.work.start("blockdev-backup", "disk0", target=target, sync="full", **KEPT)
    disk.status("disk0", "concluded")
    wait_until(lambda: outcome() == failed, "its end is told")
    disk.work.end("dismiss", "disk0")


def test_a_job_that_is_not_a_block_job_has_its_type_and_its_end(disk: Disk) -> None:
    """By query-jobs, before anybody dismisses it; nobody scrapes meanwhile."""
    for number in range(3):
        options = {"driver": "file", "filename": disk.work.file(), "size": 256 * MIB}
        options["preallocation"] = "full"
        disk.work.run("blockdev-create", job_id=f"c{number}", options=options)
        disk.work.run("job-cancel", id=f"c{number}")
        disk.status(f"c{number}", "concluded")
        disk.work.run("job-dismiss", id=f"c{number}")
    text = disk.work.exporter.fresh()

    assert results(text, "create").keys() <= {"cancelled", "unverified"}
    assert results(text, "create").total() == 3
    assert not results(text, "")


BARE = [
    "--blockdev", "driver=qcow2,node-name=b,file.driver=file,file.filename={0}",
    "--blockdev", "driver=qcow2,node-name=m,file.driver=file,file.filename={1},backing=b",
    "--blockdev", "driver=qcow2,node-name=t,file.driver=file,file.filename={2},backing=m",
]  # fmt: skip


@pytest.mark.parametrize("how", ["storage daemon", "vm"])
def test_a_commit_of_nodes_under_no_device_is_judged_by_what_stands_on_them(
    lab: Lab, how: str
) -> None:
    """An export, which is no device: the graph shows what it stands on."""
    images = list(reversed(lab.chain("free", 3)))
    arguments = [part.format(*images) for part in BARE]
    if how == "vm":
        vm = lab.qemu("vm", *[part.replace("--", "-") for part in arguments])
    else:
        vm = lab.storage_daemon("vm", *arguments)
    address = {"type": "unix", "data": {"path": str(lab.folder / "nbd")}}
    vm.run("nbd-server-start", {"addr": address})
    vm.run("block-export-add", {"type": "nbd", "id": "e", "node-name": "t", "writable": True})
    exporter = lab.exporter()
    exporter.until(lambda text: value(text, "qemu_vm_up"))
    work = Work(lab, exporter, vm, "vm")
    for number, end in enumerate(("cancel", "cancel", "complete")):
        job = f"j{number}"
        work.run("block-commit", job_id=job, device="t", base_node="b")
        vm.monitor.event("BLOCK_JOB_READY", device=job)
        exporter.fresh()
        work.end(end, job)
        vm.monitor.event("JOB_STATUS_CHANGE", id=job, status="null")

    assert results(exporter.fresh()) == {"cancelled": 2, "completed": 1}
