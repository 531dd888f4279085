"""Every path of the HTTP API, one line each; the OpenAPI description is built from them."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.api import types, verbs

ROOT = "/api/v1"
ADMIN = f"{ROOT}/admin"
#: Problems of any request, of any request to change something, and of requests to change a job.
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
    #: The operationId: the verb, or the name of a method of `web.ReadApi`.
    name: str
    text: str
    #: The type of the response body, and its status.
    answer: type | None
    status: int = 200
    #: The type of the request body.
    body: type[verbs.Request] | None = None
    #: Keys of `problems.PROBLEMS`.
    problems: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether a request may change something."""
        return self.body is not None


def _get(path: str, name: str, text: str, answer: type | None, *problems: str) -> Route:
    return Route(
        method="GET", path=ROOT + path, name=name, text=text, answer=answer,
        problems=(*_ANY, *problems),
    )  # fmt: skip


def _post(
    path: str, name: str, text: str, body: type[verbs.Request], *problems: str, status: int = 202
) -> Route:
    return Route(
        method="POST", path=ADMIN + path, name=name, text=text, answer=types.Done, status=status,
        body=body, problems=(*_ANY, *problems),
    )  # fmt: skip


_OF_JOB = "/vms/{vm}/block-jobs/{job_id}"
# fmt: off
ROUTES = (
    _get("/openapi.json", "openapi", "This description.", None),
    _get("/problems/{name}", "problem", "What a problem means, and what to do about it.", None, "not-found"),
    _get("/vms", "vms", "Every virtual machine.", types.VmList, "too-many"),
    _get("/vms/{vm}", "vm", "A virtual machine with its disks, their layers, and its block jobs.", types.Vm, "unknown-vm"),
    _get("/block-jobs", "all_jobs", "The block jobs of all virtual machines.", types.JobList, "too-many"),
    _get("/vms/{vm}/block-jobs", "jobs", "The block jobs of a virtual machine.", types.JobList, "unknown-vm", "vm-down"),
    _get(_OF_JOB, "job", "A block job, or how it ended.", types.Job, "unknown-vm", "unknown-job", "vm-down"),
    _post("/vms/{vm}/block-jobs", "commit", "Start a commit.", verbs.Commit, *_DEVICE, "unknown-layer", "nothing-to-commit", "shared-layer", "unnamed-image", "unseen-neighbours", "already-asked", "job-id-taken"),
    *(_post(f"{_OF_JOB}/{each.verb}", each.verb, each.summary(), each, *_JOB, *each.problems) for each in verbs.JOB_REQUESTS),
    _post("/vms/{vm}/snapshots", "snapshot", "Add a new layer on top of a disk.", verbs.Snapshot, *_DEVICE, "file-exists", "bad-file", "unnamed-image", "layer-lost", status=201),
)
# fmt: on
