"""The session of QEMU 2.0 that this project began with, number by number."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import samples
from tests.replay import replay

LAYER = 'vm="vm",device="disk0",layer="{}",role="format",node_name=""'
JOB = 'vm="vm",device="disk0",job_id="disk0",job_type="commit"'


async def exposition(step: str, folder: Path) -> dict[str, str]:
    """Return the samples of one step of the session."""
    async for _, _, text in replay("2.0", [step], folder):
        return samples(text)
    raise AssertionError


async def test_each_layer_has_its_own_io_while_the_commit_runs(sockets: Path) -> None:
    """disk0's own 217 reads, and the backing layer's 3522, are series of layer 0 and 1."""
    found = await exposition("committing", sockets)

    assert found['qemu_block_reads_completed_total{vm="vm",device="disk0"}'] == "217"
    for layer, reads, offset in (("0", "217", "30065970688"), ("1", "3522", "30066015744")):
        labels = LAYER.format(layer)
        assert found[f"qemu_block_node_reads_completed_total{{{labels}}}"] == reads
        assert found[f"qemu_block_node_write_highest_offset_bytes{{{labels}}}"] == offset


async def test_the_commit_is_at_its_end_and_not_said_to_be_ready(sockets: Path) -> None:
    """32212254720 of 32212254720; this QEMU does not say ready, so nobody else does."""
    found = await exposition("committing", sockets)

    assert found[f"qemu_block_job_offset_bytes{{{JOB}}}"] == "32212254720"
    assert found[f"qemu_block_job_length_bytes{{{JOB}}}"] == "32212254720"
    assert f"qemu_block_job_ready{{{JOB}}}" not in found


async def test_after_the_pivot_the_disk_is_on_its_base(sockets: Path) -> None:
    """query-block alone was asked then: it names the file, and there is nothing below it."""
    found = await exposition("after-pivot", sockets)

    info = next(sample for sample in found if sample.startswith("qemu_block_device_info{"))
    assert 'file="/var/lib/libvirt/images/guest.qcow2"' in info
    assert found['qemu_block_device_backing_depth{vm="vm",device="disk0"}'] == "0"
    counted = {sample for sample in found if "_total{" in sample and found[sample] != "0"}
    assert not counted | {sample for sample in found if "_job_" in sample}
