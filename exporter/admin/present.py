"""Converts snapshots, jobs and records to the types of the HTTP API."""

from __future__ import annotations

from typing import Any

from exporter import api
from exporter.admin.job_records import JobRecord
from exporter.jobs import End
from exporter.model import Device, Job, Node, VmState


def summary(snapshot: VmState) -> api.VmSummary:
    """Return a VM in one line."""
    return api.VmSummary(**_summary(snapshot))


def vm(snapshot: VmState, jobs: list[api.Job]) -> api.Vm:
    """Return a VM with its disks, and the jobs that QEMU has."""
    return api.Vm(
        **_summary(snapshot),
        devices=[device(each) for each in snapshot.devices],
        jobs=jobs,
    )


def device(each: Device) -> api.Device:
    """Return a device with its layers."""
    return api.Device(
        device=each.device,
        inserted=each.inserted,
        read_only={"true": True, "false": False}.get(each.read_only),
        io_status=_leaf(each.block, "io_status"),
        backing_depth=each.backing_depth,
        expected_backing_depth=each.expected_backing_depth,
        layers=[_layer(node) for node in each.nodes if node.role == "format"],
    )


def job(vm: str, each: Job, end: End | None = None) -> api.Job:
    """Return a job, with how it ended if that is known.

    An end that was found by the id may belong to an earlier job.
    """
    told = each.job
    if _leaf(told, "status") != "concluded" or (end is not None and not _is_of(end, each)):
        end = None
    return api.Job(
        vm=vm,
        job_id=each.job_id,
        job_type=each.job_type,
        device=each.device or None,
        status=_leaf(told, "status"),
        ready=_leaf(told, "ready"),
        paused=_leaf(told, "paused"),
        busy=_leaf(told, "busy"),
        offset_bytes=_leaf(told, "offset"),
        length_bytes=_leaf(told, "len"),
        speed_limit_bytes_per_second=_leaf(told, "speed"),
        io_status=_leaf(told, "io_status"),
        auto_finalize=_leaf(told, "auto_finalize"),
        auto_dismiss=_leaf(told, "auto_dismiss"),
        top=int(each.top) if each.top else None,
        base=int(each.base) if each.base else None,
        error=each.error or None,
        first_seen_timestamp_seconds=each.first_seen_timestamp_seconds,
        last_progress_timestamp_seconds=each.last_progress_timestamp_seconds,
        ready_timestamp_seconds=each.ready_timestamp_seconds,
        outcome=end.result if end else None,  # type: ignore[arg-type]  # RESULTS are Outcomes
        ended_timestamp_seconds=end.timestamp_seconds if end else None,
    )


def _is_of(end: End, each: Job) -> bool:
    first_seen = (end.first_seen_timestamp_seconds, each.first_seen_timestamp_seconds)
    return end.type == each.job_type and (None in first_seen or first_seen[0] == first_seen[1])


def ended(vm: str, job_id: str, end: End) -> api.Job:
    """Return a job that QEMU no longer has."""
    return api.Job(
        vm=vm,
        job_id=job_id,
        job_type=end.type,
        device=end.device or None,
        error=end.error or None,
        outcome=end.result,  # type: ignore[arg-type]  # RESULTS are Outcomes
        ended_timestamp_seconds=end.timestamp_seconds,
    )


def recorded(entry: JobRecord) -> api.Job:
    """Return a job as recorded."""
    return api.Job(
        vm=entry.vm,
        job_id=entry.job_id,
        job_type=entry.job_type,
        device=entry.device,
        top=entry.top,
        base=entry.base,
        error=entry.error or None,
        outcome=entry.outcome,
        ended_timestamp_seconds=entry.ended_timestamp_seconds,
    )


def _summary(snapshot: VmState) -> dict[str, Any]:
    up = snapshot.up
    return {
        "vm": snapshot.vm,
        "up": up,
        "reason": snapshot.reason,
        "status": snapshot.status,
        "running": snapshot.running,
        "name": snapshot.name or None,
        "qemu_version": snapshot.qemu_version or None,
        "manager": snapshot.manager or None,
        "socket": snapshot.socket or None,
        "storage_responding": snapshot.storage_responding,
        "device_count": len(snapshot.devices) if up else None,
        "job_count": len(snapshot.jobs) if up else None,
        "backing_depth_max": max(
            (each.backing_depth for each in snapshot.devices if each.backing_depth is not None),
            default=None,
        ),
    }


def _layer(node: Node) -> api.Layer:
    return api.Layer(
        layer=int(node.layer),
        node_name=node.node_name or None,
        driver=node.driver or None,
        file=node.file or None,
        virtual_size_bytes=_leaf(node.image, "virtual_size"),
        allocated_bytes=_leaf(node.image, "actual_size"),
    )


def _leaf(record: object, name: str) -> Any:
    """Return a field of a reply; the structs are built from the table."""
    return getattr(record, name, None)
