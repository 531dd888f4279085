"""The response bodies of the HTTP API. /api/v1/openapi.json is built from these types and `verbs`.

Names are those of the metrics: `device`, `job_id`, `layer` are the labels. Unknown values are
null: never 0, never "".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from exporter.api.verbs import Verb

#: How a job ended; `unknown` if its end was not observed. See `exporter.jobs` for the others.
Outcome = Literal["completed", "failed", "cancelled", "unverified", "vanished", "unknown"]


def _means(text: str) -> Meta:
    return Meta(description=text)


class Layer(Struct, frozen=True, kw_only=True):
    """A layer of a backing chain."""

    layer: Annotated[int, _means("Its depth; 0 is the active one.")]
    node_name: Annotated[str | None, _means("QEMU's name for it, as a commit takes it.")]
    driver: Annotated[str | None, _means("Its format, such as qcow2.")]
    file: Annotated[str | None, _means("Its file, without credentials.")]
    virtual_size_bytes: Annotated[int | None, _means("The size that the guest sees.")]
    allocated_bytes: Annotated[int | None, _means("The space that it takes on the storage.")]


class Device(Struct, frozen=True, kw_only=True):
    """A disk or drive of a VM, with its backing chain from the active layer down."""

    device: Annotated[str, _means("The label `device` of the metrics.")]
    inserted: Annotated[bool | None, _means("Whether it has a medium.")]
    read_only: Annotated[bool | None, _means("Whether the guest is not allowed to write to it.")]
    io_status: Annotated[
        str | None, _means("ok, failed or nospace: whether an I/O error stopped the guest.")
    ]
    backing_depth: Annotated[int | None, _means("How many layers are below the active one.")]
    expected_backing_depth: Annotated[
        int | None, _means("How many of them the configuration expects.")
    ]
    layers: Annotated[list[Layer], _means("From the active layer down.")]


class Job(Struct, frozen=True, kw_only=True):
    """A block job in QEMU, or the record of a job that the exporter started and that has ended."""

    vm: Annotated[str, _means("The label `vm` of the metrics.")]
    job_id: Annotated[str, _means("The label `job_id` of the metrics.")]
    job_type: Annotated[str, _means("commit, mirror, stream, backup and so on.")]
    device: Annotated[str | None, _means("The device that it works on.")]
    status: Annotated[str | None, _means("JobStatus; null when QEMU no longer has it.")] = None
    ready: Annotated[bool | None, _means("Whether QEMU says that it can be completed.")] = None
    paused: Annotated[bool | None, _means("Whether it is paused.")] = None
    busy: Annotated[bool | None, _means("Whether it is working at this instant.")] = None
    offset_bytes: Annotated[
        int | None,
        _means(
            "Bytes processed so far. Reaching length_bytes does not mean that the job is ready."
        ),
    ] = None
    length_bytes: Annotated[
        int | None, _means("Bytes to process in total, as known now; it can grow.")
    ] = None
    speed_limit_bytes_per_second: Annotated[int | None, _means("0 means no limit.")] = None
    io_status: Annotated[
        str | None, _means("ok, failed or nospace: whether an I/O error stopped it.")
    ] = None
    auto_finalize: Annotated[
        bool | None, _means("Whether it applies its changes without waiting in `pending`.")
    ] = None
    auto_dismiss: Annotated[
        bool | None, _means("Whether it disappears from QEMU as soon as it has ended.")
    ] = None
    top: Annotated[int | None, _means("The topmost layer that it merges; 0 is the active one.")] = (
        None
    )
    base: Annotated[int | None, _means("The layer that it merges into.")] = None
    error: Annotated[str | None, _means("Why it failed, without credentials.")] = None
    first_seen_timestamp_seconds: Annotated[
        float | None, _means("When this process first saw it.")
    ] = None
    last_progress_timestamp_seconds: Annotated[
        float | None, _means("When its progress was last seen changing.")
    ] = None
    ready_timestamp_seconds: Annotated[float | None, _means("When it was first seen ready.")] = None
    outcome: Annotated[Outcome | None, _means("How it ended; null while it has not.")] = None
    ended_timestamp_seconds: Annotated[
        float | None, _means("When it ended; null while it has not.")
    ] = None

    @property
    def in_qemu(self) -> bool:
        """Whether QEMU has the job; otherwise only the request is known."""
        return self.status is not None or self.busy is not None or self.ready is not None


class VmSummary(Struct, frozen=True, kw_only=True):
    """A VM, without its disks and jobs."""

    vm: Annotated[str, _means("The label `vm` of the metrics.")]
    up: Annotated[bool, _means("Whether it answers.")]
    reason: Annotated[str | None, _means("Why it does not: a `reason` of qemu_vm_scrape_error.")]
    status: Annotated[str | None, _means("RunState, such as running or paused.")]
    running: Annotated[bool | None, _means("Whether the guest is running.")]
    name: Annotated[str | None, _means("Its name in QEMU: -name.")]
    qemu_version: Annotated[str | None, _means("Such as 7.2.22.")]
    manager: Annotated[str | None, _means("libvirt, proxmox or incus; null if none is known.")]
    socket: Annotated[str | None, _means("The path of its monitor socket.")]
    storage_responding: Annotated[bool | None, _means("Whether the storage of its images answers.")]
    device_count: Annotated[int | None, _means("How many disks and drives it has.")]
    job_count: Annotated[int | None, _means("How many block jobs it has.")]
    backing_depth_max: Annotated[int | None, _means("The depth of its deepest backing chain.")]


class Vm(VmSummary, frozen=True, kw_only=True):
    """A VM with its disks and jobs."""

    devices: Annotated[list[Device], _means("Its disks and drives.")]
    jobs: Annotated[list[Job], _means("Its jobs.")]


class VmList(Struct, frozen=True):
    """Every target."""

    vms: Annotated[list[VmSummary], _means("By name.")]


class JobList(Struct, frozen=True):
    """The block jobs in QEMU, and those on record that the exporter started."""

    jobs: Annotated[list[Job], _means("By VM.")]


class Done(Struct, frozen=True, kw_only=True):
    """The result of an accepted request."""

    vm: Annotated[str, _means("The VM in question.")]
    action: Annotated[Verb, _means("The requested action.")]
    device: Annotated[str | None, _means("The device in question.")]
    job_id: Annotated[str | None, _means("The job in question.")]
    dry_run: Annotated[bool, _means("Everything was checked, but nothing was sent.")]
    replayed: Annotated[bool, _means("The same request was accepted before: nothing was sent now.")]
    command: Annotated[str | None, _means("The QMP command; null if `replayed`.")]
    arguments: Annotated[dict[str, Any], _means("Its arguments, without credentials.")]
    warnings: Annotated[list[str], _means("What could not be checked.")]
    job: Annotated[Job | None, _means("The job right afterwards.")]


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was not accepted. [RFC 9457]"""

    type: Annotated[
        str,
        _means("A path on this host, where a text explains the problem and what to do about it."),
    ]
    title: Annotated[str, _means("The kind of problem.")]
    status: Annotated[int, _means("The HTTP status.")]
    detail: Annotated[str, _means("What is wrong with this request.")]
    instance: Annotated[str, _means("The path of the request.")]
    vm: Annotated[str | UnsetType, _means("The VM in question.")] = UNSET
    outcome: Annotated[
        Literal["unknown"] | UnsetType,
        _means("The command was sent, but no reply came: check the job, do not retry blindly."),
    ] = UNSET
    job: Annotated[Job | UnsetType, _means("The conflicting job.")] = UNSET
    manager: Annotated[
        str | UnsetType, _means("What manages the VM: libvirt, proxmox or incus.")
    ] = UNSET
