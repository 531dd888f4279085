"""What the HTTP API answers. /api/v1/openapi.json is made of these types and those in `verbs`.

Names are those of the metrics: `device`, `job_id`, `layer` are the labels. What is not known is
null: never 0, never "".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from exporter.api.verbs import Verb

#: How a job ended; `unknown` where nobody saw it, see `exporter.jobs` for the others.
Outcome = Literal["completed", "failed", "cancelled", "unverified", "vanished", "unknown"]


def _told(text: str) -> Meta:
    return Meta(description=text)


class Layer(Struct, frozen=True, kw_only=True):
    """A layer of a backing chain."""

    layer: Annotated[int, _told("Its depth; 0 is the active one.")]
    node_name: Annotated[str | None, _told("QEMU's name for it, which a commit can be told.")]
    driver: Annotated[str | None, _told("Its format, such as qcow2.")]
    file: Annotated[str | None, _told("Its file, without credentials.")]
    virtual_size_bytes: Annotated[int | None, _told("The size that the guest sees.")]
    allocated_bytes: Annotated[int | None, _told("What it takes on the storage.")]


class Device(Struct, frozen=True, kw_only=True):
    """A disk or drive of a VM, with its backing chain from the active layer down."""

    device: Annotated[str, _told("The label `device` of the metrics.")]
    inserted: Annotated[bool | None, _told("Whether it has a medium.")]
    read_only: Annotated[bool | None, _told("Whether the guest cannot write to it.")]
    io_status: Annotated[
        str | None, _told("ok, failed or nospace: whether an I/O error stopped the guest.")
    ]
    backing_depth: Annotated[int | None, _told("How many layers are below the active one.")]
    expected_backing_depth: Annotated[
        int | None, _told("How many of them the configuration says are there by right.")
    ]
    layers: Annotated[list[Layer], _told("From the active layer down.")]


class Job(Struct, frozen=True, kw_only=True):
    """A block job that QEMU has, or the record of one that was started here and has ended."""

    vm: Annotated[str, _told("The label `vm` of the metrics.")]
    job_id: Annotated[str, _told("The label `job_id` of the metrics.")]
    job_type: Annotated[str, _told("commit, mirror, stream, backup and so on.")]
    device: Annotated[str | None, _told("The device that it works on.")]
    status: Annotated[str | None, _told("JobStatus; null when QEMU has it no more.")] = None
    ready: Annotated[bool | None, _told("Whether QEMU says that it can be completed.")] = None
    paused: Annotated[bool | None, _told("Whether it rests.")] = None
    busy: Annotated[bool | None, _told("Whether it works at this instant.")] = None
    offset_bytes: Annotated[
        int | None, _told("Work done so far, of length_bytes. All of it is not ready.")
    ] = None
    length_bytes: Annotated[int | None, _told("All work, as far as it is known: it can grow.")] = (
        None
    )
    speed_limit_bytes_per_second: Annotated[int | None, _told("0 is no limit.")] = None
    io_status: Annotated[
        str | None, _told("ok, failed or nospace: whether an I/O error stopped it.")
    ] = None
    auto_finalize: Annotated[
        bool | None, _told("Whether it makes its changes without waiting in `pending`.")
    ] = None
    auto_dismiss: Annotated[
        bool | None, _told("Whether it is gone from QEMU as soon as it has ended.")
    ] = None
    top: Annotated[int | None, _told("The layer that it merges, 0 the active one.")] = None
    base: Annotated[int | None, _told("The layer that it merges into.")] = None
    error: Annotated[str | None, _told("Why it failed, without credentials.")] = None
    first_seen_timestamp_seconds: Annotated[
        float | None, _told("When this process first saw it.")
    ] = None
    last_progress_timestamp_seconds: Annotated[
        float | None, _told("When its progress was last seen to change.")
    ] = None
    ready_timestamp_seconds: Annotated[float | None, _told("When it was first seen ready.")] = None
    outcome: Annotated[Outcome | None, _told("How it ended; null while it has not.")] = None
    ended_timestamp_seconds: Annotated[
        float | None, _told("When it ended; null while it has not.")
    ] = None

    @property
    def in_qemu(self) -> bool:
        """Whether QEMU has the job; where it has not, all that is known is what was asked for."""
        return self.status is not None or self.busy is not None or self.ready is not None


class VmSummary(Struct, frozen=True, kw_only=True):
    """A VM in one line."""

    vm: Annotated[str, _told("The label `vm` of the metrics.")]
    up: Annotated[bool, _told("Whether it answers.")]
    reason: Annotated[str | None, _told("Why it does not: a `reason` of qemu_vm_scrape_error.")]
    status: Annotated[str | None, _told("RunState, such as running or paused.")]
    running: Annotated[bool | None, _told("Whether the guest runs.")]
    name: Annotated[str | None, _told("What QEMU was told that it is called.")]
    qemu_version: Annotated[str | None, _told("Such as 7.2.22.")]
    manager: Annotated[str | None, _told("libvirt, proxmox, incus; null where none is known.")]
    socket: Annotated[str | None, _told("Where its monitor is.")]
    storage_responding: Annotated[bool | None, _told("Whether the storage of its images answers.")]
    device_count: Annotated[int | None, _told("How many disks and drives it has.")]
    job_count: Annotated[int | None, _told("How many block jobs it has.")]
    backing_depth_max: Annotated[int | None, _told("The depth of its deepest backing chain.")]


class Vm(VmSummary, frozen=True, kw_only=True):
    """A VM with its disks and jobs."""

    devices: Annotated[list[Device], _told("Its disks and drives.")]
    jobs: Annotated[list[Job], _told("Its jobs.")]


class VmList(Struct, frozen=True):
    """Every target."""

    vms: Annotated[list[VmSummary], _told("By name.")]


class JobList(Struct, frozen=True):
    """Block jobs, those that QEMU has and those started here of which a record is kept."""

    jobs: Annotated[list[Job], _told("By VM.")]


class Done(Struct, frozen=True, kw_only=True):
    """What became of a request that was accepted."""

    vm: Annotated[str, _told("The VM that was asked for.")]
    action: Annotated[Verb, _told("What was asked for.")]
    device: Annotated[str | None, _told("The device that it is about.")]
    job_id: Annotated[str | None, _told("The job that it is about.")]
    dry_run: Annotated[bool, _told("All was checked, and nothing sent.")]
    replayed: Annotated[bool, _told("The same request was accepted before: nothing was sent now.")]
    command: Annotated[str | None, _told("The QMP command; null where `replayed`.")]
    arguments: Annotated[dict[str, Any], _told("Its arguments, without credentials.")]
    warnings: Annotated[list[str], _told("What could not be checked.")]
    job: Annotated[Job | None, _told("The job right afterwards.")]


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was not accepted. [RFC 9457]"""

    type: Annotated[
        str, _told("A path below this host, with the text of what it means and what to do.")
    ]
    title: Annotated[str, _told("What it is.")]
    status: Annotated[int, _told("The HTTP status.")]
    detail: Annotated[str, _told("What it was this time.")]
    instance: Annotated[str, _told("The path that was asked for.")]
    vm: Annotated[str | UnsetType, _told("The VM that was asked for.")] = UNSET
    outcome: Annotated[
        Literal["unknown"] | UnsetType,
        _told("The command left, and no answer came: look the job up, do not retry blindly."),
    ] = UNSET
    job: Annotated[Job | UnsetType, _told("The job that stands in the way.")] = UNSET
    manager: Annotated[str | UnsetType, _told("Who runs the VM: libvirt, proxmox, incus.")] = UNSET
