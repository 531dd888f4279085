"""The workflow by the HTTP API on real QEMU: every byte is where it has to be, and each end is told."""

from __future__ import annotations

import itertools
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import series
from tests.e2e.api import Admin, Answer, admin
from tests.e2e.faults import ONCE, by_blockdev, by_drive, file_node
from tests.e2e.lab import MIB, Disk, Lab, Qemu, blockdev, drive, plug, wait_until
from tests.e2e.reading import value
from tests.e2e.witness import Content, audited, counted, opened, raw, records, scraped, state

KIB = 1 << 10
#: How a disk is given to QEMU -> its `device` label.
DISKS = {"drive": "disk0", "blockdev": "virtio-disk1"}
by_both = pytest.mark.parametrize("kind", DISKS)
#: What holds a job back: a byte a second.
SLOW: dict[str, Any] = {"speed_bytes_per_second": 1}
JOB = "qbe-merge"


class Place:
    """A VM with a disk of each kind, who may do everything with it, and the disk that it is about."""

    def __init__(self, lab: Lab, user: Admin, vm: Qemu, device: str) -> None:
        self.lab = lab
        self.user = user
        self.vm = vm
        self.disk = Disk(vm, device)
        self.overlay = lab.folder / f"{vm.name}-overlay.qcow2"

    @property
    def probed(self) -> str:
        """What is shown of the VM now: a scrape may join one that began before."""
        return self.user.exporter.get(f"/probe?target={self.vm.name}")

    @property
    def record(self) -> dict[str, Any] | None:
        """What is on record of the job."""
        return records(self.lab).get((self.vm.name, JOB))

    @property
    def job(self) -> Any:
        return self.user.job(self.vm.name, JOB)

    @property
    def chain(self) -> list[str]:
        """The files of the disk's layers, on which QEMU and the API have to agree."""
        image: dict[str, Any] | None = self.disk.entry["inserted"]["image"]
        told = []
        while image:
            told.append(image["filename"])
            image = image.get("backing-image")
        assert self.user.layers(self.vm.name, self.disk.device) == told
        return told

    def lines(self, **wanted: str) -> list[dict[str, str]]:
        """Return the audit lines of the VM."""
        return audited(self.user.exporter, vm=self.vm.name, **wanted)

    def snapshot(self, *, dry_run: bool = False) -> Answer:
        name, device = self.vm.name, self.disk.device
        return self.user.snapshot(name, device, self.overlay, dry_run=dry_run)

    def overlaid(self) -> None:
        """Put a layer with a MiB of data on the disk."""
        assert self.snapshot().status == 201
        self.disk.write(0, MIB)

    def commit(self, *, dry_run: bool = False, **more: object) -> Answer:
        more = {"job_id": JOB, **more}
        return self.user.commit(self.vm.name, self.disk.device, dry_run=dry_run, **more)

    def change(self, verb: str, job_id: str = JOB, *, dry_run: bool = False, **body: Any) -> Answer:
        return self.user.change(self.vm.name, job_id, verb, dry_run=dry_run, **body)

    def started(self, **more: Any) -> None:
        answer = self.commit(**more)
        assert answer.status == 202, answer

    def changed(self, verb: str, job_id: str = JOB, **body: Any) -> Answer:
        answer = self.change(verb, job_id, **body)
        assert answer.status == 202, answer
        return answer

    def hurry(self) -> None:
        """Let a job that was held back go on."""
        self.changed("speed", speed_bytes_per_second=0)

    def until(self, job_id: str = JOB, **members: object) -> Any:
        return self.user.until(self.vm.name, job_id, **members)

    def ready(self) -> None:
        self.until(ready=True)

    def settled(self, outcome: str) -> dict[str, Any]:
        """Wait until the job is let go of; see that its outcome is told, and return the record."""

        def gone() -> bool:
            return self.job is not None and self.vm.run("query-jobs") == []

        wait_until(gone, "the job is dismissed")
        wait_until(lambda: self.record and self.record["dismissed"], "that is on record")
        job, record = self.job, self.record
        assert record is not None
        assert (job["outcome"], job["status"]) == (outcome, None)
        assert (job["device"], job["error"]) == (self.disk.device, record["error"] or None)
        assert (record["outcome"], record["ended_timestamp_seconds"]) == (
            outcome,
            job["ended_timestamp_seconds"],
        )
        results = ("completed", "failed", "cancelled", "unverified", "vanished")
        text = self.probed
        counts = {each: value(text, f"qemu_block_jobs_{each}_total") for each in results}
        assert counts == {each: float(each == outcome) for each in results}
        (line,) = self.lines(action="auto_dismiss")
        assert (line["job_id"], line["outcome"], line["user"]) == (JOB, outcome, "")
        return record

    def concluded(self) -> None:
        """Wait for the end of the job, which nobody lets go of."""
        wait_until(lambda: self.vm.job(JOB)["status"] == "concluded", "the job is concluded")


def place_in(lab: Lab, user: Admin, kind: str, *chain: Path, name: str = "vm") -> Place:
    """Start a VM, with this chain of images, the active one first, for the disk that it is about."""
    images = {each: [lab.image(f"{name}-{DISKS[each]}", 16 * MIB)] for each in DISKS}
    images[kind] = list(chain) or images[kind]
    vm = lab.qemu(
        name,
        *drive("disk0", images["drive"][0]),
        *plug("virtio-disk0", "disk0"),
        *blockdev("virtio-disk1", *images["blockdev"]),
        machine="pc",
    )
    return Place(lab, user, vm, DISKS[kind])


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def shared_user(shared_lab: Lab) -> Admin:
    """Who may do everything, for all tests that do not need an exporter of their own."""
    return admin(shared_lab)


@pytest.fixture
def name() -> str:
    """The name of a VM that no other test has."""
    return f"vm{next(NUMBERS)}"


@pytest.fixture
def place(shared_lab: Lab, shared_user: Admin, kind: str, name: str) -> Place:
    """A VM of its own, with empty disks."""
    return place_in(shared_lab, shared_user, kind, name=name)


@pytest.mark.parametrize("connection", ["persistent", "per-scrape"])
@by_both
def test_the_whole_workflow_leaves_every_byte_in_the_base(
    lab: Lab, kind: str, connection: str
) -> None:
    """Snapshot, write, commit, ready, complete, while it is scraped all the time."""
    place = place_in(lab, admin(lab, flags=[f"--qmp.connection={connection}"]), kind)
    vm, exporter = place.vm, place.user.exporter
    (base,) = place.chain
    content = Content(place.disk, lab.folder, bytes(16 * MIB))
    with scraped(exporter) as texts:
        content.write(0, 200 * KIB)
        content.write(3 * MIB + 4 * KIB, MIB)
        content.write(8 * MIB, 2 * MIB)

        before = state(vm)
        tried = place.snapshot(dry_run=True)
        assert (tried.status, tried.body["dry_run"]) == (200, True)
        assert state(vm) == before
        assert not place.overlay.exists()

        made = place.snapshot()
        assert (made.status, made.body["command"]) == (201, "blockdev-snapshot-sync")
        assert place.chain == [str(place.overlay), base]
        content.write(100 * KIB, 300 * KIB)
        content.write(3 * MIB + 512, 3 * KIB)
        content.zero(8 * MIB + 512 * KIB, MIB)
        content.write(15 * MIB, MIB)

        before = state(vm)
        tried = place.commit(dry_run=True, **SLOW)
        assert (tried.status, tried.body["dry_run"], tried.body["job"]) == (200, True, None)
        assert state(vm) == before
        assert place.record is None

        started = place.commit(**SLOW)
        assert started.status == 202
        assert started.body["arguments"] == tried.body["arguments"]
        assert started.headers["Location"] == f"/api/v1/vms/vm/block-jobs/{JOB}"
        content.write(8 * MIB + 256 * KIB, 512 * KIB)
        content.write(12 * MIB, 64 * KIB)
        again = place.commit(**SLOW)
        assert (again.status, again.body["replayed"]) == (200, True)
        place.hurry()
        job = place.until(ready=True)
        assert (job["status"], job["device"]) == ("ready", place.disk.device)
        assert (job["top"], job["base"]) == (0, 1)
        content.write(0, 4 * KIB)
        content.write(5 * MIB, 128 * KIB)

        before = state(vm)
        assert place.change("complete", dry_run=True).status == 200
        assert state(vm) == before

        assert place.changed("complete").body["command"] == "job-complete"
        assert place.settled("completed")["started"]
        assert place.chain == [base]
        content.write(6 * MIB, 4 * KIB)

        names = state(vm)[0]
        assert place.disk.node_name in names
        assert made.body["arguments"].get("snapshot-node-name") not in names
        assert str(place.overlay) not in opened(vm)

    for text in texts:
        assert value(text, "qemu_vm_up") == 1
        assert not series(text, "qemu_vm_scrape_error")
    done = {line["action"]: line["user"] for line in place.lines(result="done")}
    asked = dict.fromkeys(("snapshot", "commit", "speed", "complete"), "root")
    assert done == {**asked, "auto_dismiss": ""}
    for result in ("dry_run", "replayed", "done"):
        assert counted(exporter, "commit", result) == 1

    vm.quit()
    assert raw(Path(base)) == content.expected


@pytest.mark.parametrize(("kind", "by"), [("drive", "file"), ("blockdev", "node_name")])
def test_a_commit_of_layers_in_the_middle_leaves_every_byte(
    shared_lab: Lab, shared_user: Admin, name: str, kind: str, by: str
) -> None:
    """The two below the active layer go into the lowest, and nobody has to complete that."""
    images = shared_lab.chain(name, 4)
    before = raw(images[0])
    place = place_in(shared_lab, shared_user, kind, *images, name=name)
    content = Content(place.disk, shared_lab.folder, before)
    content.write(MIB, 4 * MIB)
    devices = place.user.get(f"/vms/{name}").body["devices"]
    layers = next(each["layers"] for each in devices if each["device"] == place.disk.device)

    place.started(top=layers[1][by], base=layers[3][by], **SLOW)
    content.write(9 * MIB, 4 * MIB)
    job = place.job
    assert (job["ready"], job["top"], job["base"]) == (False, 1, 3)
    place.hurry()
    place.settled("completed")
    content.write(13 * MIB, MIB)
    assert place.chain == [str(images[0]), str(images[3])]
    # QEMU keeps the nodes that were given to it by name.
    still = [str(each) in opened(place.vm) for each in images[1:3]]
    assert still == [kind == "blockdev"] * 2

    place.vm.quit()
    assert raw(images[0]) == content.expected


@by_both
def test_a_commit_into_a_base_that_is_named_stops_there(
    shared_lab: Lab, shared_user: Admin, name: str, kind: str
) -> None:
    """The layers below it stay as they are, and every byte is what it was."""
    images = shared_lab.chain(name, 4)
    before, below = raw(images[0]), images[3].read_bytes()
    place = place_in(shared_lab, shared_user, kind, *images, name=name)
    content = Content(place.disk, shared_lab.folder, before)
    content.write(7 * MIB, MIB)

    place.started(base=str(images[2]))
    place.ready()
    content.write(11 * MIB, 2 * MIB)
    place.changed("complete")
    place.settled("completed")
    assert place.chain == [str(images[2]), str(images[3])]

    place.vm.quit()
    assert raw(images[2]) == content.expected
    assert images[3].read_bytes() == below


#: What became of a commit while the exporter was away -> how it is told.
FATES = {"ran": "completed", "completed": "completed", "cancelled": "cancelled"}


@pytest.mark.parametrize(
    ("end", "connection"),
    [("stop", "persistent"), ("crash", "persistent"), ("crash", "per-scrape")],
)
def test_an_exporter_that_was_away_tells_how_each_commit_ended(
    lab: Lab, end: str, connection: str
) -> None:
    """The account of the one before it knows the layers: what pivoted is completed, not unverified."""
    flags = [f"--qmp.connection={connection}"]
    user = admin(lab, flags=flags)
    places = {
        (fate, kind): place_in(lab, user, kind, name=f"{fate}-{kind}")
        for fate in FATES
        for kind in DISKS
    }
    vms = [place.vm for place in places.values()]
    chains = {}
    for (fate, kind), place in places.items():
        below = place.chain
        place.overlaid()
        chains[fate, kind] = place.chain if fate == "cancelled" else below
        place.started(**(SLOW if fate == "ran" else {}))
        if fate != "ran":
            place.ready()
    stopped(user, end, *vms)
    for (fate, _), place in places.items():
        if fate == "completed":
            place.vm.run("job-complete", {"id": JOB})
        elif fate == "cancelled":
            place.vm.run("block-job-cancel", {"device": JOB, "force": False})
        if fate != "ran":
            place.concluded()

    user = admin(lab, flags=flags)
    for (fate, kind), place in places.items():
        place.user = user
        if fate == "ran":
            assert place.job["outcome"] is None
            place.hurry()
            place.ready()
            place.changed("complete")
        assert place.settled(FATES[fate])["user"] == "root"
        assert place.chain == chains[fate, kind]

    place = places["completed", "drive"]
    job = place.job
    stopped(user, end, *vms)
    place.user = admin(lab, flags=flags)
    again = place.commit()
    assert (again.status, again.body["replayed"], again.body["command"]) == (200, True, None)
    assert again.body["job"] == place.job == job
    assert place.vm.run("query-jobs") == []


def stopped(user: Admin, how: str, *vms: Qemu) -> None:
    """End the exporter, as a service is ended or as one that crashes, and have it leave the VMs."""
    if how == "crash":
        user.exporter.crash()
    else:
        user.exporter.signal(signal.SIGTERM)
        assert user.exporter.wait() == 0
    for vm in vms:
        vm.left()


def reborn(place: Place, *chain: Path) -> None:
    """Kill the VM in the middle of its job, and start it again on its socket."""
    place.vm.kill()
    for kind in ("sock", "own"):
        (place.lab.folder / f"{place.vm.name}.{kind}").unlink()
    place.vm = place_in(place.lab, place.user, "drive", *chain, name=place.vm.name).vm


def test_a_job_of_a_vm_that_was_killed_has_vanished_and_is_not_started_again(
    shared_lab: Lab, shared_user: Admin, name: str
) -> None:
    """The same request to the VM that has its socket now is told what became of the first."""
    images = shared_lab.chain(name, 2)
    place = place_in(shared_lab, shared_user, "drive", *images, name=name)
    place.started(**SLOW)
    reborn(place, *images)

    job = place.until(outcome="vanished")
    assert job["status"] is None
    wait_until(lambda: place.record and place.record["outcome"], "that is on record")
    again = place.commit(**SLOW)
    assert (again.status, again.body["replayed"]) == (200, True)
    assert again.body["job"]["outcome"] == "vanished"
    assert place.vm.run("query-jobs") == []
    assert value(place.probed, "qemu_block_jobs_vanished_total", job_type="commit") == 1


def test_a_job_that_was_gone_before_the_exporter_was_back_has_an_outcome_that_nobody_knows(
    lab: Lab,
) -> None:
    """It is not called a success, and not started again."""
    images = lab.chain("disk", 2)
    place = place_in(lab, admin(lab), "drive", *images)
    place.started(**SLOW)
    stopped(place.user, "crash")
    reborn(place, *images)

    place.user = admin(lab)
    place.until(outcome="unknown")
    again = place.commit(**SLOW)
    assert (again.status, again.body["replayed"]) == (200, True)
    assert again.body["job"]["outcome"] == "unknown"
    assert place.vm.run("query-jobs") == []
    assert value(place.probed, "qemu_block_jobs_completed_total", job_type="commit") is None


@pytest.mark.parametrize("kind", ["blockdev"])
@pytest.mark.parametrize("same_id", [True, False])
def test_of_requests_at_the_same_time_one_is_done(place: Place, same_id: bool) -> None:
    """The others are the same one again, or find a job on the disk."""
    place.overlaid()
    ids = [JOB if same_id else f"{JOB}-{number}" for number in range(8)]
    with ThreadPoolExecutor(len(ids)) as pool:
        answers = list(pool.map(lambda job_id: place.commit(job_id=job_id, **SLOW), ids))

    told = sorted((answer.status, answer.problem) for answer in answers)
    others = (200, "") if same_id else (409, "device-busy")
    assert told == sorted([(202, ""), *[others] * 7])
    (job,) = place.vm.run("query-jobs")
    done = next(answer for answer in answers if answer.status == 202)
    assert job["id"] == done.body["job_id"]
    assert [vm for vm, _ in records(place.lab)].count(place.vm.name) == 1


@by_both
def test_a_commit_that_fails_is_told_with_the_error_of_qemu(
    shared_lab: Lab, shared_user: Admin, name: str, kind: str
) -> None:
    """It stays until that is on record; the chain is as it was, and another id tries again."""
    base, overlay = (shared_lab.image(f"{name}-{each}", 16 * MIB) for each in ("base", "overlay"))
    by = by_drive if kind == "drive" else by_blockdev
    vm = shared_lab.qemu(name, *by("disk0", overlay, file_node(base, ONCE)), machine="pc")
    place = Place(shared_lab, shared_user, vm, "disk0")
    place.disk.write(0, MIB)
    before = state(vm)[2]

    place.started()
    assert place.settled("failed")["error"] == "Input/output error"
    assert state(vm)[2] == before
    again = place.commit()
    assert (again.body["replayed"], again.body["job"]["outcome"]) == (True, "failed")
    place.started(job_id="qbe-second")
    place.until("qbe-second", ready=True)


@pytest.mark.parametrize(
    ("kind", "force"), [("drive", None), ("drive", False), ("blockdev", False), ("blockdev", True)]
)
def test_a_commit_that_is_cancelled_leaves_the_chain_as_it_was(
    place: Place, force: bool | None
) -> None:
    """While it copies, or when it is ready by force or without; and no byte is lost."""
    content = Content(place.disk, place.lab.folder, bytes(16 * MIB))
    content.write(0, MIB)
    assert place.snapshot().status == 201
    content.write(512 * KIB, MIB)
    before = state(place.vm)[2]
    if force is None:
        place.started(**SLOW)
    else:
        place.started()
        place.ready()

    body: dict[str, Any] = {} if force is None else {"force": force}
    assert place.changed("cancel", **body).body["command"] == "block-job-cancel"
    place.settled("cancelled")
    assert state(place.vm)[2] == before
    content.write(2 * MIB, MIB)

    place.vm.quit()
    assert raw(place.overlay) == content.expected


@pytest.mark.parametrize("kind", ["blockdev"])
def test_pause_resume_and_speed_take_effect_in_qemu(place: Place) -> None:
    """What an answer says of the job is what QEMU says of it."""
    place.overlaid()
    place.started(**SLOW)

    def told(name: str) -> Any:
        job: dict[str, Any] | None = place.vm.job(JOB)
        assert job is not None
        return job[name]

    assert told("speed") == 1
    assert place.changed("pause").body["job"]["paused"] is told("paused") is True
    answer = place.changed("speed", speed_bytes_per_second=MIB)
    assert answer.body["job"]["speed_limit_bytes_per_second"] == told("speed") == MIB
    assert told("paused") is True
    assert place.changed("resume").body["job"]["paused"] is told("paused") is False

    place.hurry()
    place.ready()
    place.changed("pause")
    place.until(status="standby", paused=True)
    place.changed("resume")
    place.until(status="ready", paused=False)


@pytest.mark.parametrize(("kind", "job_id"), [("drive", "theirs"), ("blockdev", "qbe-theirs")])
def test_a_job_of_another_client_is_completed_finalized_and_dismissed_when_asked_for(
    place: Place, job_id: str
) -> None:
    """And never unasked: it stays while a job of ours is let go of."""
    before = place.chain
    place.overlaid()
    device = place.disk.entry["device"] or place.disk.node_name
    kept = {"auto-finalize": False, "auto-dismiss": False}
    place.vm.run("block-commit", {"device": device, "job-id": job_id, **kept})
    job = place.until(job_id, ready=True)
    assert (job["auto_finalize"], job["auto_dismiss"]) == (False, False)

    place.changed("complete", job_id)
    place.until(job_id, status="pending")
    assert len(place.chain) == 2
    assert place.changed("finalize", job_id).body["command"] == "job-finalize"
    place.until(job_id, status="concluded", outcome="completed")
    assert place.chain == before

    ours = Place(
        place.lab,
        place.user,
        place.vm,
        next(device for device in DISKS.values() if device != place.disk.device),
    )
    ours.overlay = place.lab.folder / f"{place.vm.name}-ours.qcow2"
    ours.overlaid()
    ours.started()
    ours.ready()
    ours.changed("complete")
    ours.until(status=None, outcome="completed")
    assert [job["id"] for job in place.vm.run("query-jobs")] == [job_id]
    assert [line["job_id"] for line in place.lines(action="auto_dismiss")] == [JOB]

    assert place.changed("dismiss", job_id).body["command"] == "job-dismiss"
    assert place.vm.run("query-jobs") == []
    assert value(place.probed, "qemu_block_jobs_completed_total", job_type="commit") == 2
    assert (place.vm.name, job_id) not in records(place.lab)


BOUNDARIES = [0.0005, 0.01, 0.2]


def histograms(vm: Qemu) -> list[list[int]]:
    """Return the boundaries that QEMU keeps histograms of reads by, device by device."""
    stats = [entry["stats"] for entry in vm.run("query-blockstats")]
    bins = [each["rd_latency_histogram"] for each in stats if "rd_latency_histogram" in each]
    return [each["boundaries"] for each in bins]


@pytest.mark.parametrize(
    ("users", "connection", "allow_managed"),
    [(False, "persistent", False), (True, "per-scrape", True)],
)
def test_latency_histograms_that_the_configuration_asks_for_are_set_once(
    lab: Lab, users: bool, connection: str, allow_managed: bool
) -> None:
    """On each disk; on a VM that libvirt runs only where that is allowed, and never by a second try."""
    vm = lab.qemu(
        "vm",
        *drive("disk0", lab.image("disk0")),
        *plug("virtio-disk0", "disk0"),
        *blockdev("virtio-disk1", lab.image("disk1")),
        *drive("bare", lab.image("bare")),
        *["-drive", "if=none,id=cd0,media=cdrom", "-device", "ide-cd,drive=cd0"],
        machine="pc",
    )
    nodes = blockdev("virtio-disk0", lab.image("managed"), name="libvirt-1")
    managed = lab.qemu("managed", *nodes, machine="pc")
    flags = [f"--qmp.connection={connection}"]
    config = {
        "latency_histograms": {"boundaries_seconds": BOUNDARIES, "allow_managed": allow_managed}
    }
    if users:
        exporter = admin(lab, flags=flags, config=config).exporter
    else:
        (lab.folder / "config.json").write_text(json.dumps(config))
        exporter = lab.exporter(f"--config.file={lab.folder / 'config.json'}", *flags)
    devices = {("vm", "disk0"), ("vm", "virtio-disk1")}
    devices |= {("managed", "virtio-disk0")} if allow_managed else set()

    def probed() -> str:
        return exporter.get("/probe?target=vm") + exporter.get("/probe?target=managed")

    def all_set() -> bool:
        probed()
        lines = audited(exporter, action="latency_histogram")
        return {(line["vm"], line["device"]) for line in lines} == devices

    wait_until(all_set, "the histograms are set")
    for text in [probed() for _ in range(3)]:
        for operation in ("read", "write", "flush"):
            name = f"qemu_block_{operation}_latency_seconds_bucket"
            assert len(series(text, name)) == len(devices) * (len(BOUNDARIES) + 1)
            for each, device in devices:
                assert value(text, name, vm=each, device=device, le="0.0005") == 0
                assert value(text, name, vm=each, device=device, le="+Inf") == 0
    nanoseconds = [500_000, 10_000_000, 200_000_000]
    assert histograms(vm) == [nanoseconds] * 2
    assert histograms(managed) == [nanoseconds] * allow_managed
    # Of a drive that no device of the guest stands on, QEMU keeps none.
    lines = audited(exporter, action="latency_histogram")
    assert len(lines) == len(devices)
    assert {line["command"] for line in lines} == {"block-latency-histogram-set"}
    assert {line["user"] for line in lines} == {""}
    assert counted(exporter, "latency_histogram", "done") == len(devices)

    Disk(vm, "disk0").write(0, MIB)
    text = probed()
    name = "qemu_block_write_latency_seconds_bucket"
    assert value(text, name, vm="vm", device="disk0", le="+Inf") == 1
    assert value(text, name, vm="vm", device="virtio-disk1", le="+Inf") == 0
