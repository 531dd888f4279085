"""The requests that users can make: one class per verb, which is the body of its request.

A verb is a word in grants, in the audit log and in the operators' commands. /api/v1/openapi.json,
the paths, and the operators' commands that change a job are built from these classes; what a verb
does to a VM is a row in `exporter.admin.job_verbs`.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

if TYPE_CHECKING:
    from exporter.api.types import Job

#: Whether a commit may start while another VM that may share its layers does not answer.
UnseenNeighbours = Literal["refuse", "allow"]

_INT64_MAX = 2**63 - 1
#: Prefix of the ids of jobs that the exporter starts. No other job is ever dismissed automatically.
JOB_ID_PREFIX = "qbe-"
#: QEMU's rule for ids [util/id.c], limited to what can name a file in the state directory.
JobId = Annotated[
    str,
    Meta(
        pattern=r"^qbe-[A-Za-z0-9._-]{1,59}$(?!\n)",
        description="The id of the job, which is also the idempotency key: for 7 days the same id"
        " with the same request never starts a second job. If it is omitted, the exporter chooses"
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
        description="A layer of the device's backing chain: its node name, or its file as shown in"
        " the label `file` of qemu_block_node_info. Never a number: numbers change.",
    ),
]
Speed = Annotated[
    int, Meta(ge=0, le=_INT64_MAX, description="Limit in bytes per second; 0 means no limit.")
]


def _means(text: str) -> Meta:
    return Meta(description=text)


class Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of a request that changes something."""

    verb: ClassVar[str]

    @classmethod
    def summary(cls) -> str:
        """Return what it does, in a sentence: the first line, without QEMU's command.

        >>> Pause.summary()
        'Pause a job.'
        """
        first = inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
        return re.sub(r" \[[\w-]+\]$", "", first)


class Commit(Request, frozen=True):
    """Merge layers of a backing chain: `top` and all above `base` into `base`. [block-commit]

    Without them the whole chain is merged into the lowest layer, and the job waits to be completed.
    """

    verb: ClassVar[str] = "commit"

    action: Annotated[Literal["commit"], _means("The kind of job to start.")]
    device: DeviceName
    job_id: JobId | UnsetType = UNSET
    #: Default: the active layer.
    top: LayerName | UnsetType = UNSET
    #: Default: the lowest layer.
    base: LayerName | UnsetType = UNSET
    speed_bytes_per_second: Speed | UnsetType = UNSET
    unseen_neighbours: Annotated[
        UnseenNeighbours | UnsetType,
        _means(
            "Whether to refuse or allow the commit while another VM that may share a layer does not"
            " answer. Default: as the grant says."
        ),
    ] = UNSET

    def is_shown_by(self, job: Job) -> bool:
        """Whether a job shows that it was started. A record alone proves nothing: it comes first."""
        is_known = job.in_qemu or job.outcome not in {None, "unknown"}
        return is_known and job.device in {None, self.device}


class JobRequest(Request, frozen=True):
    """The body of a request that changes a job.

    Each subclass is one verb: the end of the path, the word in grants, the operators' command.
    """

    #: Keys of `problems.PROBLEMS` with which it may be refused, beyond those common to all verbs.
    problems: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def example(cls) -> Self:
        """Return an example for the description of the API."""
        return cls()

    def is_shown_by(self, job: Job) -> bool:
        """Whether a job shows that this was carried out, for a request without a reply.

        By default nothing does.
        """
        return False


class Complete(JobRequest, frozen=True):
    """Make a ready job pivot to its target. [job-complete]"""

    verb: ClassVar[str] = "complete"
    problems: ClassVar[tuple[str, ...]] = ("not-ready",)

    def is_shown_by(self, job: Job) -> bool:
        """Whether it has completed."""
        return job.outcome == "completed"


class Cancel(JobRequest, frozen=True):
    """Cancel a job. [block-job-cancel]"""

    verb: ClassVar[str] = "cancel"
    problems: ClassVar[tuple[str, ...]] = ("force-required",)

    force: Annotated[
        bool | UnsetType,
        _means(
            "Required for a ready job: false ends it with a consistent copy and without a pivot, true"
            " ends it at once."
        ),
    ] = UNSET

    @classmethod
    def example(cls) -> Self:
        """Return an example with `force`."""
        return cls(force=False)

    def is_shown_by(self, job: Job) -> bool:
        """Whether it was cancelled, and did not end in another way first."""
        return job.outcome == "cancelled"


class Pause(JobRequest, frozen=True):
    """Pause a job. [job-pause]"""

    verb: ClassVar[str] = "pause"

    def is_shown_by(self, job: Job) -> bool:
        """Whether it has not ended, and is paused."""
        return job.outcome is None and job.paused is True


class Resume(JobRequest, frozen=True):
    """Resume a paused job. [job-resume]"""

    verb: ClassVar[str] = "resume"

    def is_shown_by(self, job: Job) -> bool:
        """Whether it has not ended, and is not paused."""
        return job.outcome is None and job.paused is False


class SetSpeed(JobRequest, frozen=True):
    """Limit the speed of a job. [block-job-set-speed]"""

    verb: ClassVar[str] = "speed"

    speed_bytes_per_second: Speed

    @classmethod
    def example(cls) -> Self:
        """Return an example with 100 MiB per second."""
        return cls(speed_bytes_per_second=100 << 20)

    def is_shown_by(self, job: Job) -> bool:
        """Whether it has this limit."""
        return job.speed_limit_bytes_per_second == self.speed_bytes_per_second


class Finalize(JobRequest, frozen=True):
    """Make a pending job apply its changes. [job-finalize]"""

    verb: ClassVar[str] = "finalize"

    def is_shown_by(self, job: Job) -> bool:
        """Whether it has completed."""
        return job.outcome == "completed"


class Dismiss(JobRequest, frozen=True):
    """Remove a concluded job from QEMU. [job-dismiss]"""

    verb: ClassVar[str] = "dismiss"

    def is_shown_by(self, job: Job) -> bool:
        """Whether only its record is left."""
        return job.outcome is not None and job.status is None


#: The requests that change a job, in the order in which they are listed.
JOB_REQUESTS: tuple[type[JobRequest], ...] = tuple(JobRequest.__subclasses__())


class Snapshot(Request, frozen=True):
    """Add a new layer on top of a device. [blockdev-snapshot-sync]

    The exporter creates the file, in a directory that a grant names; it must not exist. The path
    is the idempotency key: for 7 days the same request is answered with 200 while the disk has that
    layer. If the first request did not take effect, the file that was created for it is used,
    provided that it has not been written to.
    """

    verb: ClassVar[str] = "snapshot"

    device: DeviceName
    file: Annotated[
        str, Meta(min_length=2, max_length=1023, pattern="^/", description="An absolute path.")
    ]
    format: Annotated[Literal["qcow2"], _means("The format of the new layer.")] = "qcow2"


VERBS = (Commit.verb, *(each.verb for each in JOB_REQUESTS), Snapshot.verb)
if TYPE_CHECKING:
    #: One of `VERBS`: decoders accept no other word.
    Verb: TypeAlias = str
else:
    Verb = Literal[VERBS]
