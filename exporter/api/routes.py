"""Every path of the HTTP API, one line each; the OpenAPI description is made of them."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.api import types

ROOT = "/api/v1"
ADMIN = f"{ROOT}/admin"
#: What may stand in the way of any request, of any to change something, and of changing a job.
_ANY = ("unauthorized", "internal-error")
_CHANGE = (
    "bad-request", "admin-api-disabled", "cross-site", "not-granted", "managed-vm", "unknown-vm",
    "body-timeout", "wrong-vm-state", "too-large", "wrong-content-type", "refused-by-qemu",
    "not-supported", "unknown-outcome", "vm-down", "storage-hangs", "not-recorded", "no-answer",
    "another-vm",
)  # fmt: skip
_JOB = (*_CHANGE, "unknown-job", "wrong-job-state", "already-asked")
_DEVICE = (*_CHANGE, "unknown-device", "device-busy", "wrong-device-state")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path and method."""

    method: str
    path: str
    #: The method of `web.reading.Reading` that answers, or the verb; and the operationId.
    name: str
    text: str
    #: What is answered, and with which status.
    answer: type | None
    status: int = 200
    #: What is asked for, in the body.
    body: type[types.Request] | None = None
    #: Of `problems.PROBLEMS`.
    problems: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether it is there to change something."""
        return self.body is not None


def _get(path: str, name: str, text: str, answer: type | None, *problems: str) -> Route:
    return Route(
        method="GET", path=ROOT + path, name=name, text=text, answer=answer,
        problems=(*_ANY, *problems),
    )  # fmt: skip


def _post(
    path: str, name: str, text: str, body: type[types.Request], *problems: str, status: int = 202
) -> Route:
    return Route(
        method="POST", path=ADMIN + path, name=name, text=text, answer=types.Done, status=status,
        body=body, problems=(*_ANY, *problems),
    )  # fmt: skip


_OF_JOB = "/vms/{vm}/block-jobs/{job_id}"
# fmt: off
ROUTES = (
    _get("/openapi.json", "openapi", "This description.", None),
    _get("/problems/{name}", "problem", "What a problem means, and what to do.", None, "not-found"),
    _get("/vms", "vms", "Every virtual machine.", types.VmList, "too-many"),
    _get("/vms/{vm}", "vm", "A virtual machine with its disks, their layers, and its block jobs.", types.Vm, "unknown-vm"),
    _get("/block-jobs", "all_jobs", "The block jobs of all virtual machines.", types.JobList, "too-many"),
    _get("/vms/{vm}/block-jobs", "jobs", "The block jobs of a virtual machine.", types.JobList, "unknown-vm", "vm-down"),
    _get(_OF_JOB, "job", "A block job, or how it ended.", types.Job, "unknown-vm", "unknown-job", "vm-down"),
    _post("/vms/{vm}/block-jobs", "commit", "Start a commit.", types.Commit, *_DEVICE, "unknown-layer", "nothing-to-commit", "shared-layer", "unnamed-image", "unseen-neighbours", "already-asked", "job-id-taken"),
    _post(f"{_OF_JOB}/complete", "complete", "Let a job that is ready pivot to its target.", types.Complete, *_JOB, "not-ready"),
    _post(f"{_OF_JOB}/cancel", "cancel", "End a job before its time.", types.Cancel, *_JOB, "force-required"),
    _post(f"{_OF_JOB}/pause", "pause", "Let a job rest.", types.Pause, *_JOB),
    _post(f"{_OF_JOB}/resume", "resume", "Let a paused job go on.", types.Resume, *_JOB),
    _post(f"{_OF_JOB}/finalize", "finalize", "Let a pending job make its changes.", types.Finalize, *_JOB),
    _post(f"{_OF_JOB}/dismiss", "dismiss", "Let go of a job that has ended.", types.Dismiss, *_JOB),
    _post(f"{_OF_JOB}/speed", "speed", "Limit the speed of a job.", types.SetSpeed, *_JOB),
    _post("/vms/{vm}/snapshots", "snapshot", "Put a new layer on a disk.", types.Snapshot, *_DEVICE, "file-exists", "bad-file", "unnamed-image", "layer-lost", status=201),
)
# fmt: on
