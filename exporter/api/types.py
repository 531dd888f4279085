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
#: Whether a commit may start while another VM, which may share its layers, does not answer.
UnseenNeighbours = Literal["refuse", "allow"]
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
        " with the same request never starts a second job. Where it is left out the exporter chooses"
        " one, and a retry is not safe.",
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


def _told(text: str) -> Meta:
    return Meta(description=text)


class Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of a request that changes something."""


class Commit(Request, frozen=True):
    """Merge layers of a backing chain: `top` and all above `base` into `base`. [block-commit]

    Without them the whole chain goes into the lowest layer, and the job waits to be completed.
    """

    action: Annotated[Literal["commit"], _told("What is to be started.")]
    device: DeviceName
    job_id: JobId | UnsetType = UNSET
    #: The active layer where it is left out.
    top: LayerName | UnsetType = UNSET
    #: The lowest layer where it is left out.
    base: LayerName | UnsetType = UNSET
    speed_bytes_per_second: Speed | UnsetType = UNSET
    unseen_neighbours: Annotated[
        UnseenNeighbours | UnsetType,
        _told(
            "What to do where another VM does not answer, which may share a layer: refuse, or allow"
            " the commit all the same. Without it, what the grant says."
        ),
    ] = UNSET


class Complete(Request, frozen=True):
    """Let a job that is ready pivot to its target. [job-complete]"""


class Cancel(Request, frozen=True):
    """End a job before its time. [block-job-cancel]"""

    force: Annotated[
        bool | UnsetType,
        _told(
            "Must be said of a job that is ready: false lets it end consistently without a pivot, true ends it at once."
        ),
    ] = UNSET


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

    The file is made by the exporter, in a directory that a grant names; it must not exist. The
    path is the idempotency key: for 7 days the same request is answered with 200 while the disk has
    that layer; where the first one did not take effect, the file that was made for it is used, if
    nobody has written to it.
    """

    device: DeviceName
    file: Annotated[
        str, Meta(min_length=2, max_length=1023, pattern="^/", description="An absolute path.")
    ]
    format: Annotated[Literal["qcow2"], _told("The format of the new layer.")] = "qcow2"


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
