"""The workflow by the HTTP API on real QEMU: every byte is where it has to be, and each end is told."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import series
from tests.e2e.api import Admin, admin
from tests.e2e.faults import ONCE, by_blockdev, by_drive, file_node
from tests.e2e.lab import MIB, Disk, Exporter, Lab, Qemu, blockdev, drive, plug, wait_until
from tests.e2e.reading import value
from tests.e2e.witness import (
    Content,
    audited,
    counted,
    opened,
    raw,
    records,
    scraped,
    state,
)

KIB = 1 << 10
SIZE = 16 * MIB
#: How a disk is given to QEMU -> its `device` label.
DISKS = {"drive": "disk0", "blockdev": "virtio-disk1"}
by_both = pytest.mark.parametrize("kind", DISKS)
by_each_connection = pytest.mark.parametrize("connection", ["persistent", "per-scrape"])
#: What holds a job back: a byte a second.
SLOW = {"speed_bytes_per_second": 1}
JOB = "qbe-merge"
#: A look at the VM of its own: a scrape may join one that began before.
PROBE = "/probe?target=vm"


def machine(lab: Lab, drive_images: Sequence[Path], blockdev_images: Sequence[Path]) -> Qemu:
    """Start a VM with a disk of each kind, each on a chain of images, the active one first."""
    return lab.qemu(
        "vm",
        *drive("disk0", drive_images[0]),
        *plug("virtio-disk0", "disk0"),
        *blockdev("virtio-disk1", *blockdev_images),
        machine="pc",
    )


@pytest.fixture
def vm(lab: Lab) -> Qemu:
    """A VM with an empty disk of each kind."""
    return machine(lab, [lab.image("disk0", SIZE)], [lab.image("virtio-disk1", SIZE)])


@pytest.fixture
def disk(vm: Qemu, kind: str) -> Disk:
    """The disk that a test is about."""
    return Disk(vm, DISKS[kind])


@pytest.fixture
def user(lab: Lab, vm: Qemu) -> Admin:
    """Who may do everything."""
    return admin(lab)


def restarted(lab: Lab, exporter: Exporter) -> Admin:
    """Start the exporter again, which has ended."""
    assert exporter.exit_code is not None
    return admin(lab)


def chain_of(lab: Lab, disk: Disk, user: Admin) -> list[str]:
    """Return the files of a chain, on which QEMU and the API have to agree."""
    image: dict[str, Any] | None = disk.entry["inserted"]["image"]
    told = []
    while image:
        told.append(Path(image["filename"]).stem)
        image = image.get("backing-image")
    shown = [Path(file).stem for file in user.layers("vm", disk.device)]
    assert shown == told
    return told


def overlaid(lab: Lab, user: Admin, disk: Disk) -> None:
    """Put a layer with a MiB of data on a disk."""
    answer = user.snapshot("vm", disk.device, lab.folder / f"{disk.device}-overlay.qcow2")
    assert answer.status == 201, answer
    disk.write(0, MIB)


def commit(user: Admin, disk: Disk, **more: object) -> None:
    """Start a commit."""
    answer = user.commit("vm", disk.device, job_id=JOB, **more)
    assert answer.status == 202, answer


def settled(lab: Lab, user: Admin, disk: Disk, outcome: str) -> dict[str, Any]:
    """Wait until QEMU has no job any more, see that the outcome is told, and return the record."""

    def gone() -> bool:
        user.job("vm", JOB)
        return not disk.vm.run("query-jobs")

    wait_until(gone, "the job is dismissed")
    wait_until(lambda: records(lab)[JOB]["dismissed"], "that is on record")
    job = user.job("vm", JOB)
    assert (job["outcome"], job["status"], job["device"]) == (outcome, None, disk.device)
    name = f"qemu_block_jobs_{outcome}_total"
    text = user.exporter.get(PROBE)
    assert value(text, name, vm="vm", job_type="commit") == 1
    others = {"completed", "failed", "cancelled", "unverified", "vanished"} - {outcome}
    assert all(value(text, f"qemu_block_jobs_{other}_total", vm="vm") == 0 for other in others)
    record: dict[str, Any] = records(lab)[JOB]
    assert record["outcome"] == outcome
    assert record["ended_timestamp_seconds"] == job["ended_timestamp_seconds"]
    return record


@by_each_connection
@by_both
def test_the_whole_workflow_leaves_every_byte_in_the_base(
    lab: Lab, vm: Qemu, disk: Disk, connection: str
) -> None:
    """Snapshot, write, commit, ready, complete: while it is scraped all the time."""
    user = admin(lab, flags=[f"--qmp.connection={connection}"])
    base, overlay = disk.device, lab.folder / "overlay.qcow2"
    content = Content(disk, lab.folder, bytes(SIZE))
    with scraped(user.exporter) as texts:
        content.write(0, 200 * KIB)
        content.write(3 * MIB + 4 * KIB, MIB)
        content.write(8 * MIB, 2 * MIB)

        before = state(vm)
        tried = user.snapshot("vm", disk.device, overlay, dry_run=True)
        assert (tried.status, tried.body["dry_run"]) == (200, True)
        assert state(vm) == before
        assert not overlay.exists()

        made = user.snapshot("vm", disk.device, overlay)
        assert (made.status, made.body["command"]) == (201, "blockdev-snapshot-sync")
        assert chain_of(lab, disk, user) == ["overlay", base]
        content.write(100 * KIB, 300 * KIB)
        content.write(3 * MIB + 512, 3 * KIB)
        content.zero(8 * MIB + 512 * KIB, MIB)
        content.write(15 * MIB, MIB)

        before = state(vm)
        tried = user.commit("vm", disk.device, job_id=JOB, dry_run=True, **SLOW)
        assert (tried.status, tried.body["dry_run"], tried.body["job"]) == (200, True, None)
        assert state(vm) == before
        assert records(lab) == {}

        started = user.commit("vm", disk.device, job_id=JOB, **SLOW)
        assert started.status == 202
        assert started.body["arguments"] == tried.body["arguments"]
        assert started.headers["Location"] == f"/api/v1/vms/vm/block-jobs/{JOB}"
        content.write(8 * MIB + 256 * KIB, 512 * KIB)
        content.write(12 * MIB, 64 * KIB)
        again = user.commit("vm", disk.device, job_id=JOB, **SLOW)
        assert (again.status, again.body["replayed"]) == (200, True)
        assert user.change("vm", JOB, "speed", speed_bytes_per_second=0).status == 202
        job = user.until("vm", JOB, ready=True)
        assert (job["status"], job["device"]) == ("ready", disk.device)
        assert (job["top"], job["base"]) == (0, 1)
        content.write(0, 4 * KIB)
        content.write(5 * MIB, 128 * KIB)

        before = state(vm)
        assert user.change("vm", JOB, "complete", dry_run=True).status == 200
        assert state(vm) == before

        completed = user.change("vm", JOB, "complete")
        assert (completed.status, completed.body["command"]) == (202, "job-complete")
        user.until("vm", JOB, outcome="completed")
        settled(lab, user, disk, "completed")
        assert chain_of(lab, disk, user) == [base]
        content.write(6 * MIB, 4 * KIB)

        names = {node["node-name"] for node in vm.run("query-named-block-nodes", {"flat": True})}
        assert disk.node_name in names
        assert made.body["arguments"].get("snapshot-node-name") not in names
        assert str(overlay) not in opened(vm)

    for text in texts:
        assert value(text, "qemu_vm_up", vm="vm") == 1
        assert not series(text, "qemu_vm_scrape_error")
    done = {line["action"]: line for line in audited(user.exporter, result="done", vm="vm")}
    assert set(done) == {"snapshot", "commit", "speed", "complete", "auto_dismiss"}
    assert {line["user"] for line in done.values()} == {"root", ""}
    assert done["auto_dismiss"]["user"] == ""
    for action, result in (("commit", "dry_run"), ("commit", "replayed"), ("commit", "done")):
        assert counted(user.exporter, action, result) == 1

    vm.quit()
    assert raw(lab.folder / f"{base}.qcow2") == content.expected


@pytest.mark.parametrize(("kind", "by"), [("drive", "file"), ("blockdev", "node_name")])
def test_a_commit_of_layers_in_the_middle_leaves_every_byte(lab: Lab, kind: str, by: str) -> None:
    """The two below the active layer go into the lowest, without a word more."""
    chosen = lab.chain(DISKS[kind], 4)
    images = {each: [lab.image(each)] for each in DISKS.values() if each != DISKS[kind]}
    images[DISKS[kind]] = chosen
    before = raw(chosen[0])
    vm = machine(lab, images["disk0"], images["virtio-disk1"])
    user, disk = admin(lab), Disk(vm, DISKS[kind])
    content = Content(disk, lab.folder, before)
    content.write(MIB, 4 * MIB)
    devices = user.get("/vms/vm").body["devices"]
    layers = next(each["layers"] for each in devices if each["device"] == disk.device)
    top, base = layers[1][by], layers[3][by]

    commit(user, disk, top=top, base=base, **SLOW)
    content.write(9 * MIB, 4 * MIB)
    job = user.job("vm", JOB)
    assert (job["ready"], job["top"], job["base"]) == (False, 1, 3)
    assert user.change("vm", JOB, "speed", speed_bytes_per_second=0).status == 202
    settled(lab, user, disk, "completed")
    content.write(13 * MIB, MIB)
    assert chain_of(lab, disk, user) == [chosen[0].stem, chosen[3].stem]
    # QEMU keeps the nodes that were given to it by name.
    still = [str(each) in opened(vm) for each in chosen[1:3]]
    assert still == [kind == "blockdev"] * 2

    vm.quit()
    assert raw(chosen[0]) == content.expected


@by_both
def test_a_commit_into_a_base_that_is_named_stops_there(lab: Lab, kind: str) -> None:
    """The layers below it stay, and every byte is what it was."""
    chosen = lab.chain(DISKS[kind], 4)
    images = {each: [lab.image(each)] for each in DISKS.values() if each != DISKS[kind]}
    images[DISKS[kind]] = chosen
    before, below = raw(chosen[0]), chosen[3].read_bytes()
    vm = machine(lab, images["disk0"], images["virtio-disk1"])
    user, disk = admin(lab), Disk(vm, DISKS[kind])
    content = Content(disk, lab.folder, before)
    content.write(7 * MIB, MIB)

    commit(user, disk, base=str(chosen[2]))
    user.until("vm", JOB, ready=True)
    content.write(11 * MIB, 2 * MIB)
    assert user.change("vm", JOB, "complete").status == 202
    settled(lab, user, disk, "completed")
    assert chain_of(lab, disk, user) == [chosen[2].stem, chosen[3].stem]

    vm.quit()
    assert raw(chosen[2]) == content.expected
    assert chosen[3].read_bytes() == below


@pytest.mark.parametrize(("kind", "end"), [("drive", "stop"), ("blockdev", "crash")])
def test_an_exporter_that_was_away_while_a_commit_ran_tells_how_it_ended(
    lab: Lab, user: Admin, disk: Disk, end: str
) -> None:
    """The account of the one before it knows the layers: the commit is completed, not unverified."""
    overlaid(lab, user, disk)
    commit(user, disk, **SLOW)
    stop(user.exporter, end)

    user = restarted(lab, user.exporter)
    assert user.job("vm", JOB)["outcome"] is None
    assert user.change("vm", JOB, "speed", speed_bytes_per_second=0).status == 202
    user.until("vm", JOB, ready=True)
    assert user.change("vm", JOB, "complete").status == 202
    settled(lab, user, disk, "completed")
    assert chain_of(lab, disk, user) == [disk.device]


@pytest.mark.parametrize(
    ("kind", "end", "connection"),
    [
        ("drive", "stop", "persistent"),
        ("drive", "crash", "per-scrape"),
        ("blockdev", "crash", "persistent"),
    ],
)
def test_an_exporter_that_was_away_when_a_commit_concluded_tells_how_it_ended(
    lab: Lab, vm: Qemu, disk: Disk, end: str, connection: str
) -> None:
    """The job has waited for it in QEMU, is judged by its chain, and is then let go of."""
    flags = [f"--qmp.connection={connection}"]
    user = admin(lab, flags=flags)
    overlaid(lab, user, disk)
    commit(user, disk)
    user.until("vm", JOB, ready=True)
    stop(user.exporter, end)
    vm.run("job-complete", {"id": JOB})
    wait_until(lambda: vm.job(JOB)["status"] == "concluded", "the job is concluded")

    user = admin(lab, flags=flags)
    record = settled(lab, user, disk, "completed")
    assert (record["error"], record["user"]) == ("", "root")
    assert chain_of(lab, disk, user) == [disk.device]
    assert [line["job_id"] for line in audited(user.exporter, action="auto_dismiss")] == [JOB]


@pytest.mark.parametrize("kind", ["blockdev"])
def test_an_exporter_that_was_away_when_a_commit_was_cancelled_does_not_call_it_completed(
    lab: Lab, vm: Qemu, disk: Disk, user: Admin
) -> None:
    """A ready job that ends without a pivot leaves the same traces but for the chain."""
    overlaid(lab, user, disk)
    commit(user, disk)
    user.until("vm", JOB, ready=True)
    stop(user.exporter, "stop")
    vm.run("block-job-cancel", {"device": JOB, "force": False})
    wait_until(lambda: vm.job(JOB)["status"] == "concluded", "the job is concluded")

    user = restarted(lab, user.exporter)
    settled(lab, user, disk, "cancelled")
    assert chain_of(lab, disk, user) == [f"{disk.device}-overlay", disk.device]


def stop(exporter: Exporter, end: str) -> None:
    """End the exporter as a service is ended, or as one that crashes."""
    if end == "crash":
        exporter.crash()
    else:
        exporter.signal(signal.SIGTERM)
        assert exporter.wait() == 0


@pytest.mark.parametrize("kind", ["drive"])
def test_an_outcome_is_known_after_a_restart_and_its_request_is_not_repeated(
    lab: Lab, user: Admin, disk: Disk
) -> None:
    """The job is long gone; the same id with the same request says how it ended."""
    overlaid(lab, user, disk)
    commit(user, disk)
    user.until("vm", JOB, ready=True)
    user.change("vm", JOB, "complete")
    settled(lab, user, disk, "completed")
    ended = user.job("vm", JOB)["ended_timestamp_seconds"]
    stop(user.exporter, "stop")

    user = restarted(lab, user.exporter)
    again = user.commit("vm", disk.device, job_id=JOB)
    assert (again.status, again.body["replayed"], again.body["command"]) == (200, True, None)
    job = user.job("vm", JOB)
    assert job == again.body["job"]
    assert (job["outcome"], job["ended_timestamp_seconds"]) == ("completed", ended)
    assert disk.vm.run("query-jobs") == []


@by_both
def test_a_commit_that_fails_is_told_with_the_error_of_qemu(lab: Lab, kind: str) -> None:
    """It stays until that is on record, and the chain is as it was."""
    base, overlay = lab.image("base", SIZE), lab.image("overlay", SIZE)
    by = by_drive if kind == "drive" else by_blockdev
    vm = lab.qemu("vm", *by("disk0", overlay, file_node(base, ONCE)), machine="pc")
    user, disk = admin(lab), Disk(vm, "disk0")
    disk.write(0, MIB)
    before = state(vm)[1]

    commit(user, disk)
    record = settled(lab, user, disk, "failed")
    assert record["error"] == user.job("vm", JOB)["error"] == "Input/output error"
    assert state(vm)[1] == before
    assert audited(user.exporter, action="auto_dismiss", outcome="failed", job_id=JOB)

    again = user.commit("vm", "disk0", job_id=JOB)
    assert (again.body["replayed"], again.body["job"]["outcome"]) == (True, "failed")
    assert user.commit("vm", "disk0", job_id="qbe-second").status == 202
    user.until("vm", "qbe-second", ready=True)


@pytest.mark.parametrize(
    ("kind", "force"), [("drive", None), ("drive", False), ("blockdev", False), ("blockdev", True)]
)
def test_a_commit_that_is_cancelled_leaves_the_chain_as_it_was(
    lab: Lab, user: Admin, disk: Disk, force: bool | None
) -> None:
    """While it copies, or when it is ready by force or without; and no byte is lost."""
    content = Content(disk, lab.folder, bytes(SIZE))
    content.write(0, MIB)
    overlay = lab.folder / "overlay.qcow2"
    assert user.snapshot("vm", disk.device, overlay).status == 201
    content.write(512 * KIB, MIB)
    before = state(disk.vm)[2]
    commit(user, disk, **(SLOW if force is None else {}))
    if force is not None:
        user.until("vm", JOB, ready=True)

    body = {} if force is None else {"force": force}
    answer = user.change("vm", JOB, "cancel", **body)
    assert (answer.status, answer.body["command"]) == (202, "block-job-cancel")
    settled(lab, user, disk, "cancelled")
    assert state(disk.vm)[2] == before
    content.write(2 * MIB, MIB)

    disk.vm.quit()
    assert raw(overlay) == content.expected


@pytest.mark.parametrize("kind", ["blockdev"])
def test_pause_resume_and_speed_take_effect_in_qemu(lab: Lab, user: Admin, disk: Disk) -> None:
    """What the answer says of the job is what QEMU says."""
    overlaid(lab, user, disk)
    commit(user, disk, **SLOW)
    assert disk.vm.job(JOB)["speed"] == 1

    answer = user.change("vm", JOB, "pause")
    assert (answer.status, answer.body["job"]["paused"]) == (202, True)
    assert disk.vm.job(JOB)["paused"] is True

    answer = user.change("vm", JOB, "speed", speed_bytes_per_second=MIB)
    assert answer.body["job"]["speed_limit_bytes_per_second"] == MIB
    assert disk.vm.job(JOB)["speed"] == MIB
    assert disk.vm.job(JOB)["paused"] is True

    answer = user.change("vm", JOB, "resume")
    assert (answer.status, answer.body["job"]["paused"]) == (202, False)
    assert disk.vm.job(JOB)["paused"] is False

    assert user.change("vm", JOB, "speed", speed_bytes_per_second=0).status == 202
    user.until("vm", JOB, ready=True)
    assert user.change("vm", JOB, "pause").status == 202
    user.until("vm", JOB, status="standby")
    assert user.change("vm", JOB, "resume").status == 202
    user.until("vm", JOB, status="ready")


@pytest.mark.parametrize(("kind", "job_id"), [("drive", "theirs"), ("blockdev", "qbe-theirs")])
def test_a_job_of_another_client_is_completed_finalized_and_dismissed_when_asked_for(
    lab: Lab, user: Admin, disk: Disk, job_id: str
) -> None:
    """And never unasked: it stays concluded while a job of ours is dismissed."""
    ours = Disk(disk.vm, next(name for name in DISKS.values() if name != disk.device))
    overlaid(lab, user, ours)
    overlaid(lab, user, disk)
    device = disk.entry["device"] or disk.node_name
    kept = {"auto-finalize": False, "auto-dismiss": False}
    disk.vm.run("block-commit", {"device": device, "job-id": job_id, **kept})
    job = user.until("vm", job_id, ready=True)
    assert (job["auto_finalize"], job["auto_dismiss"]) == (False, False)

    assert user.change("vm", job_id, "complete").status == 202
    user.until("vm", job_id, status="pending")
    assert len(chain_of(lab, disk, user)) == 2
    answer = user.change("vm", job_id, "finalize")
    assert (answer.status, answer.body["command"]) == (202, "job-finalize")
    user.until("vm", job_id, status="concluded", outcome="completed")
    assert chain_of(lab, disk, user) == [disk.device]

    commit(user, ours)
    user.until("vm", JOB, ready=True)
    assert user.change("vm", JOB, "complete").status == 202
    user.until("vm", JOB, status=None, outcome="completed")
    assert disk.vm.job(job_id)["status"] == "concluded"
    assert user.job("vm", job_id)["status"] == "concluded"

    answer = user.change("vm", job_id, "dismiss")
    assert (answer.status, answer.body["command"]) == (202, "job-dismiss")
    assert disk.vm.run("query-jobs") == []
    text = user.exporter.get(PROBE)
    assert value(text, "qemu_block_jobs_completed_total", vm="vm", job_type="commit") == 2
    assert set(records(lab)) == {JOB}


BOUNDARIES = [0.0005, 0.01, 0.2]


def histograms(vm: Qemu) -> list[list[int]]:
    """Return the boundaries that QEMU keeps histograms of reads by, device by device."""
    stats = [entry["stats"] for entry in vm.run("query-blockstats")]
    bins = [each["rd_latency_histogram"] for each in stats if "rd_latency_histogram" in each]
    return [each["boundaries"] for each in bins]


@pytest.mark.parametrize(
    ("by", "connection", "allow_managed"),
    [
        ("flags", "persistent", False),
        ("admin", "per-scrape", False),
        ("admin", "persistent", True),
    ],
)
def test_latency_histograms_that_the_configuration_asks_for_are_set_once(
    lab: Lab, vm: Qemu, by: str, connection: str, allow_managed: bool
) -> None:
    """On each disk of each kind, with or without users; on a managed VM only where that is allowed."""
    empty = ["-drive", "if=none,id=cd0,media=cdrom", "-device", "ide-cd,drive=cd0"]
    nodes = blockdev("virtio-disk0", lab.image("libvirt"), name="libvirt-1")
    managed = lab.qemu("managed", *nodes, *empty, machine="pc")
    flags = [f"--qmp.connection={connection}"]
    wanted = {"boundaries_seconds": BOUNDARIES, "allow_managed": allow_managed}
    config = {"latency_histograms": wanted}
    if by == "admin":
        exporter = admin(lab, flags=flags, config=config).exporter
    else:
        (lab.folder / "config.json").write_text(json.dumps(config))
        exporter = lab.exporter(f"--config.file={lab.folder / 'config.json'}", *flags)
    devices = {("vm", "disk0"), ("vm", "virtio-disk1")}
    devices |= {("managed", "virtio-disk0")} if allow_managed else set()

    def probed() -> str:
        return exporter.get(PROBE) + exporter.get("/probe?target=managed")

    def all_set() -> bool:
        probed()
        lines = audited(exporter, action="latency_histogram")
        return {(line["vm"], line["device"]) for line in lines} == devices

    wait_until(all_set, "the histograms are set")
    for text in [probed() for _ in range(3)]:
        for operation in ("read", "write", "flush"):
            name = f"qemu_block_{operation}_latency_seconds_bucket"
            for vm_name, device in devices:
                shown = series(text, name, vm=vm_name, device=device)
                assert set(shown.values()) == {"0"}
                assert len(shown) == len(BOUNDARIES) + 1
            assert value(text, name, vm="vm", device="disk0", le="0.0005") == 0
            assert bool(series(text, name, vm="managed")) == allow_managed
    assert histograms(vm) == [[500_000, 10_000_000, 200_000_000]] * 2
    assert histograms(managed) == [[500_000, 10_000_000, 200_000_000]] * allow_managed
    lines = audited(exporter, action="latency_histogram", result="done")
    assert len(lines) == len(devices)
    assert {line["command"] for line in lines} == {"block-latency-histogram-set"}
    assert counted(exporter, "latency_histogram", "done") == len(devices)

    Disk(vm, "disk0").write(0, MIB)
    text = exporter.get(PROBE)
    name = "qemu_block_write_latency_seconds_bucket"
    assert value(text, name, vm="vm", device="disk0", le="+Inf") == 1
    assert value(text, name, vm="vm", device="virtio-disk1", le="+Inf") == 0
