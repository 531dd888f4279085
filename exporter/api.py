"""What the HTTP API takes and gives. /api/v1/openapi.json is made of these types.

Names are those of the metrics: `device`, `job_id`, `layer` are the labels. What is not known is
null: never 0, never "".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from msgspec import UNSET, Meta, Struct, UnsetType

Verb = Literal[
    "commit",
    "complete",
    "cancel",
    "pause",
    "resume",
    "finalize",
    "dismiss",
    "speed",
    "snapshot",
]
VERBS: tuple[Verb, ...] = get_args(Verb)
#: How a job ended; `unknown` where nobody saw it, see `exporter.jobs` for the others.
Outcome = Literal["completed", "failed", "cancelled", "unverified", "vanished", "unknown"]

_INT64_MAX = 2**63 - 1
#: What ids of jobs that are started here begin with: no other job is ever dismissed unasked.
JOB_ID_PREFIX = "qbe-"
#: QEMU's rule for ids [util/id.c], and what names a file in the state directory.
JobId = Annotated[
    str,
    Meta(
        pattern=r"^qbe-[A-Za-z0-9._-]{1,59}$(?!\n)",
        description="The id of the job, which is the idempotency key too: for 7 days the same id"
        " with the same request never starts a second job.",
    ),
]
DeviceName = Annotated[
    str, Meta(min_length=1, max_length=1024, description="The `device` label of the metrics.")
]
LayerName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4096,
        description="A layer of the device's backing chain: its node name, or its file as the"
        " label `file` of qemu_block_node_info shows it. Never a number: those change.",
    ),
]
Speed = Annotated[
    int, Meta(ge=0, le=_INT64_MAX, description="Limit in bytes per second; 0 is no limit.")
]


class Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of a request that changes something."""


class Commit(Request, frozen=True):
    """Merge layers of a backing chain: `top` and all above `base` into `base`. [block-commit]

    Without them the whole chain goes into the lowest layer, and the job waits to be completed.
    """

    action: Literal["commit"]
    device: DeviceName
    #: Chosen by the exporter where it is left out; then a retry is not safe.
    job_id: JobId | UnsetType = UNSET
    #: The active layer where it is left out.
    top: LayerName | UnsetType = UNSET
    #: The lowest layer where it is left out.
    base: LayerName | UnsetType = UNSET
    speed_bytes_per_second: Speed | UnsetType = UNSET


class Complete(Request, frozen=True):
    """Let a job that is ready pivot to its target. [job-complete]"""


class Cancel(Request, frozen=True):
    """End a job before its time. [block-job-cancel]"""

    #: Must be said of a job that is ready: false lets it end consistently without a pivot, true
    #: ends it at once.
    force: bool | UnsetType = UNSET


class Pause(Request, frozen=True):
    """Let a job rest. [job-pause]"""


class Resume(Request, frozen=True):
    """Let a paused job go on. [job-resume]"""


class Finalize(Request, frozen=True):
    """Let a job that is `pending` make its changes. [job-finalize]"""


class Dismiss(Request, frozen=True):
    """Let go of a job that is `concluded`. [job-dismiss]"""


class SetSpeed(Request, frozen=True):
    """Limit the speed of a job. [block-job-set-speed]"""

    speed_bytes_per_second: Speed


class Snapshot(Request, frozen=True):
    """Put a new layer on a device. [blockdev-snapshot-sync]

    The file is made by the exporter, in a directory that a grant names; it must not exist.
    """

    device: DeviceName
    #: An absolute path.
    file: Annotated[str, Meta(min_length=2, max_length=1023, pattern="^/")]
    format: Literal["qcow2"] = "qcow2"


class Layer(Struct, frozen=True, kw_only=True):
    """A layer of a backing chain."""

    #: `0` the active one.
    layer: int
    node_name: str | None
    driver: str | None
    #: Without credentials.
    file: str | None
    virtual_size_bytes: int | None
    allocated_bytes: int | None


class Device(Struct, frozen=True, kw_only=True):
    """A disk or drive of a VM, with its backing chain from the active layer down."""

    device: str
    inserted: bool | None
    read_only: bool | None
    #: ok, failed, nospace.
    io_status: str | None
    backing_depth: int | None
    expected_backing_depth: int | None
    layers: list[Layer]


class Job(Struct, frozen=True, kw_only=True):
    """A block job that QEMU has, or the record of one that was started here and has ended."""

    vm: str
    job_id: str
    job_type: str
    device: str | None
    #: JobStatus; null when QEMU has it no more.
    status: str | None = None
    ready: bool | None = None
    paused: bool | None = None
    busy: bool | None = None
    offset_bytes: int | None = None
    length_bytes: int | None = None
    speed_limit_bytes_per_second: int | None = None
    io_status: str | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None
    #: Layers, 0 the active one.
    top: int | None = None
    base: int | None = None
    error: str | None = None
    first_seen_timestamp_seconds: float | None = None
    last_progress_timestamp_seconds: float | None = None
    ready_timestamp_seconds: float | None = None
    #: Null while it has not ended.
    outcome: Outcome | None = None
    ended_timestamp_seconds: float | None = None


class VmSummary(Struct, frozen=True, kw_only=True):
    """A VM in one line."""

    vm: str
    up: bool
    #: Why it is not up: a `reason` of qemu_vm_scrape_error.
    reason: str | None
    #: RunState.
    status: str | None
    running: bool | None
    name: str | None
    qemu_version: str | None
    #: libvirt, proxmox, incus; null where none is known.
    manager: str | None
    socket: str | None
    storage_responding: bool | None
    device_count: int | None
    job_count: int | None
    #: The deepest backing chain.
    backing_depth_max: int | None


class Vm(VmSummary, frozen=True, kw_only=True):
    """A VM with its disks and jobs."""

    devices: list[Device]
    jobs: list[Job]


class VmList(Struct, frozen=True):
    """Every target."""

    vms: list[VmSummary]


class JobList(Struct, frozen=True):
    """Block jobs, those that QEMU has and those started here of which a record is kept."""

    jobs: list[Job]


class Done(Struct, frozen=True, kw_only=True):
    """What became of a request that was accepted."""

    vm: str
    action: Verb
    device: str | None
    job_id: str | None
    #: All was checked, and nothing sent.
    dry_run: bool
    #: The same request was accepted before: nothing was sent now.
    replayed: bool
    #: The QMP command, with its arguments as far as they are public; null where `replayed`.
    command: str | None
    arguments: dict[str, Any]
    #: What could not be checked.
    warnings: list[str]
    #: The job right afterwards.
    job: Job | None


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was not accepted. [RFC 9457]"""

    type: str
    title: str
    status: int
    detail: str
    #: The path that was asked for.
    instance: str
    vm: str | UnsetType = UNSET
    #: `unknown`: the command left, and no answer came: look the job up, do not retry blindly.
    outcome: Literal["unknown"] | UnsetType = UNSET
    #: The job that stands in the way.
    job: Job | UnsetType = UNSET
    #: Who runs the VM: libvirt, proxmox, incus.
    manager: str | UnsetType = UNSET
