"""What users may ask for: one class for each verb, which is the body of its request.

A verb is a word in grants, in the audit trail and in the operators' commands. /api/v1/openapi.json,
the paths, and the operators' commands that change a job are made of these classes; what a verb
does to a VM is a row in `exporter.admin.job_verbs`.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

if TYPE_CHECKING:
    from exporter.api.types import Job

#: Whether a commit may start while another VM, which may share its layers, does not answer.
UnseenNeighbours = Literal["refuse", "allow"]

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

    verb: ClassVar[str]

    @classmethod
    def summary(cls) -> str:
        """Return what it does, in a sentence: the first line, without QEMU's command.

        >>> Pause.summary()
        'Let a job rest.'
        """
        first = inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
        return re.sub(r" \[[\w-]+\]$", "", first)


class Commit(Request, frozen=True):
    """Merge layers of a backing chain: `top` and all above `base` into `base`. [block-commit]

    Without them the whole chain goes into the lowest layer, and the job waits to be completed.
    """

    verb: ClassVar[str] = "commit"

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

    def is_shown_by(self, job: Job) -> bool:
        """Whether a job shows that it was started. The record alone was written before that."""
        is_known = job.in_qemu or job.outcome not in {None, "unknown"}
        return is_known and job.device in {None, self.device}


class JobRequest(Request, frozen=True):
    """The body of a request that changes a job.

    A class is one verb: the end of the path, the word in grants, the operators' command.
    """

    #: What it may be refused with, beyond what any of them may: of `problems.PROBLEMS`.
    problems: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def example(cls) -> Self:
        """Return one as the description of the API shows it."""
        return cls()

    def is_shown_by(self, job: Job) -> bool:
        """Whether a job shows that this was done, where no answer came. By default nothing does."""
        return False


class Complete(JobRequest, frozen=True):
    """Let a job that is ready pivot to its target. [job-complete]"""

    verb: ClassVar[str] = "complete"
    problems: ClassVar[tuple[str, ...]] = ("not-ready",)

    def is_shown_by(self, job: Job) -> bool:
        """It has ended well."""
        return job.outcome == "completed"


class Cancel(JobRequest, frozen=True):
    """End a job before its time. [block-job-cancel]"""

    verb: ClassVar[str] = "cancel"
    problems: ClassVar[tuple[str, ...]] = ("force-required",)

    force: Annotated[
        bool | UnsetType,
        _told(
            "Must be said of a job that is ready: false lets it end consistently without a pivot, true ends it at once."
        ),
    ] = UNSET

    @classmethod
    def example(cls) -> Self:
        """Return one that says how."""
        return cls(force=False)

    def is_shown_by(self, job: Job) -> bool:
        """It was cancelled, and did not end in another way first."""
        return job.outcome == "cancelled"


class Pause(JobRequest, frozen=True):
    """Let a job rest. [job-pause]"""

    verb: ClassVar[str] = "pause"

    def is_shown_by(self, job: Job) -> bool:
        """It is there, and paused."""
        return job.outcome is None and job.paused is True


class Resume(JobRequest, frozen=True):
    """Let a paused job go on. [job-resume]"""

    verb: ClassVar[str] = "resume"

    def is_shown_by(self, job: Job) -> bool:
        """It is there, and not paused."""
        return job.outcome is None and job.paused is False


class SetSpeed(JobRequest, frozen=True):
    """Limit the speed of a job. [block-job-set-speed]"""

    verb: ClassVar[str] = "speed"

    speed_bytes_per_second: Speed

    @classmethod
    def example(cls) -> Self:
        """Return one of 100 MiB a second."""
        return cls(speed_bytes_per_second=100 << 20)

    def is_shown_by(self, job: Job) -> bool:
        """It has this limit."""
        return job.speed_limit_bytes_per_second == self.speed_bytes_per_second


class Finalize(JobRequest, frozen=True):
    """Let a job that is pending make its changes. [job-finalize]"""

    verb: ClassVar[str] = "finalize"

    def is_shown_by(self, job: Job) -> bool:
        """It has ended well."""
        return job.outcome == "completed"


class Dismiss(JobRequest, frozen=True):
    """Let go of a job that is concluded. [job-dismiss]"""

    verb: ClassVar[str] = "dismiss"

    def is_shown_by(self, job: Job) -> bool:
        """It is on record alone."""
        return job.outcome is not None and job.status is None


#: What may be done to a job, in the order in which it is listed.
JOB_REQUESTS: tuple[type[JobRequest], ...] = tuple(JobRequest.__subclasses__())


class Snapshot(Request, frozen=True):
    """Put a new layer on a device. [blockdev-snapshot-sync]

    The file is made by the exporter, in a directory that a grant names; it must not exist. The
    path is the idempotency key: for 7 days the same request is answered with 200 while the disk has
    that layer; where the first one did not take effect, the file that was made for it is used, if
    nobody has written to it.
    """

    verb: ClassVar[str] = "snapshot"

    device: DeviceName
    file: Annotated[
        str, Meta(min_length=2, max_length=1023, pattern="^/", description="An absolute path.")
    ]
    format: Annotated[Literal["qcow2"], _told("The format of the new layer.")] = "qcow2"


VERBS = (Commit.verb, *(each.verb for each in JOB_REQUESTS), Snapshot.verb)
if TYPE_CHECKING:
    #: One of `VERBS`: decoders take no other word.
    Verb: TypeAlias = str
else:
    Verb = Literal[VERBS]
