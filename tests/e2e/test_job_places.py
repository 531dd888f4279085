"""On which disk a job works: said from the first exposition that shows the job, and never changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import samples
from tests.e2e.lab import Disk, Exporter, Lab, blockdev, drive, plug, wait_until
from tests.e2e.reading import labels_of


@dataclass(frozen=True)
class Case:
    """A job on a disk of three layers of its own."""

    #: Also the job's id, which is no device's name.
    name: str
    command: str
    job_type: str
    #: The layers that the job's info names, from top down to base.
    layers: tuple[str, str]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def by_node(self) -> bool:
        """Whether the disk is one by -blockdev."""
        return self.name.endswith("-node")

    @property
    def device(self) -> str:
        return f"disk-{self.name}"

    @property
    def job_id(self) -> str:
        return f"job-{self.name}"


CASES = (
    Case("active", "block-commit", "commit", ("0", "2")),
    Case("active-node", "block-commit", "commit", ("0", "2")),
    Case("filter", "block-commit", "commit", ("0", "2"), {"filter-node-name": "above"}),
    Case("filter-node", "block-commit", "commit", ("0", "2"), {"filter-node-name": "above-node"}),
    Case("middle", "block-commit", "commit", ("1", "2"), {"top": "middle-1.qcow2"}),
    Case("middle-node", "block-commit", "commit", ("1", "2"), {"top-node": "middle-node-1"}),
    Case("stream", "block-stream", "stream", ("0", "2")),
    Case("stream-node", "block-stream", "stream", ("0", "2")),
    Case("mirror", "drive-mirror", "mirror", ("0", ""), {"sync": "full", "target": "mirror"}),
    Case("mirror-node", "blockdev-mirror", "mirror", ("0", ""), {"sync": "full"}),
    Case("backup", "drive-backup", "backup", ("0", ""), {"sync": "full", "target": "backup"}),
    Case("backup-node", "blockdev-backup", "backup", ("0", ""), {"sync": "full"}),
)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def start(case: Case, vm: Any, lab: Lab) -> None:
    """Start a job that goes on until it is cancelled: at most a byte a second."""
    disk = Disk(vm, case.device)
    arguments: dict[str, Any] = {
        "device": disk.node_name if case.by_node else case.device,
        "job-id": case.job_id,
        "speed": 1,
        **case.arguments,
    }
    if "top" in arguments:
        arguments["top"] = str(lab.folder / arguments["top"])
    if case.command in ("drive-mirror", "drive-backup"):
        file = str(lab.folder / f"copy-of-{case.name}.qcow2")
        arguments |= {"target": file, "format": "qcow2"}
    if case.command in ("blockdev-mirror", "blockdev-backup"):
        file = str(lab.image(f"copy-of-{case.name}"))
        node = {"driver": "qcow2", "node-name": f"target-{case.name}"}
        vm.run("blockdev-add", {**node, "file": {"driver": "file", "filename": file}})
        arguments["target"] = node["node-name"]
    vm.run(case.command, arguments)


def arguments_of(case: Case, lab: Lab) -> list[str]:
    """Create the images of a case and return the arguments that make a disk of them."""
    images = lab.chain(case.name, 3)
    if not case.by_node:
        return [*drive(case.device, images[0]), *plug(f"front-{case.name}", case.device)]
    return blockdev(case.device, *images, name=case.name)


@pytest.fixture(scope="module")
def history(shared_lab: Lab) -> list[str]:
    """Every exposition, from before the first job to after the last one."""
    vm = shared_lab.qemu(
        "vm", *[part for case in CASES for part in arguments_of(case, shared_lab)], machine="pc"
    )
    exporter: Exporter = shared_lab.exporter()
    exporter.metrics()
    # One at a time, so that a scrape may fall between any two.
    for case in CASES:
        start(case, vm, shared_lab)
        exporter.metrics()
    exporter.fresh()
    vm.run("block-job-pause", {"device": "job-active"})
    vm.run("block-job-set-speed", {"device": "job-stream", "speed": 2})
    exporter.fresh()
    for case in CASES:
        vm.run("block-job-cancel", {"device": case.job_id, "force": True})
        exporter.metrics()
    wait_until(lambda: not vm.run("query-block-jobs"), "all jobs are cancelled")
    exporter.fresh()
    return exporter.history


def of_job(exposition: str, case: Case) -> list[str]:
    """Return every sample of a job."""
    mark = f'job_id="{case.job_id}"'
    return [sample for sample in samples(exposition) if mark in sample]


@each_case
def test_a_jobs_disk_is_named_from_first_to_last(history: list[str], case: Case) -> None:
    """Each sample of the job has the disk's label, in each exposition that has the job."""
    shown = [found for exposition in history if (found := of_job(exposition, case))]
    assert shown, "the job was never shown"
    place = f'device="{case.device}",job_id="{case.job_id}",job_type="{case.job_type}"'
    strays = {sample for found in shown for sample in found if place not in sample}
    assert not strays


@each_case
def test_a_jobs_layers_are_told_while_it_lives(history: list[str], case: Case) -> None:
    """The info names the layers, by their numbers in the chain, and does not change."""
    infos = [
        found
        for exposition in history
        for found in labels_of(exposition, "qemu_block_job_info", job_id=case.job_id)
    ]
    assert infos, "the job was never shown"
    assert {(found["top"], found["base"]) for found in infos} == {case.layers}


@each_case
def test_the_chain_stands_still_while_a_job_works(history: list[str], case: Case) -> None:
    """A job's filter is no layer: neither the depth nor a layer's file flickers."""
    of_disk = f'device="{case.device}"'
    families = ("qemu_block_device_backing_depth{", "qemu_block_device_info{")
    told = {
        frozenset(
            (sample, value)
            for sample, value in samples(exposition).items()
            if sample.startswith(families) and of_disk in sample
        )
        for exposition in history
    }
    assert len(told) == 1, told


def test_all_jobs_are_there_together_and_gone_together(history: list[str]) -> None:
    """Each job is shown while QEMU has it, and none afterwards."""
    counts = [sum(bool(of_job(exposition, case)) for case in CASES) for exposition in history]
    assert (counts[0], max(counts), counts[-1]) == (0, len(CASES), 0)
