"""Every reason why a request may be refused: its HTTP status, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Where the text of each problem is served; the `type` of a problem is a path below it.
PATH = "/api/v1/problems/"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of problem. [RFC 9457 section 3.1.1]"""

    status: int
    title: str
    #: What it means, and what to do about it.
    text: str


#: Name -> kind; part of the public contract.
PROBLEMS: Mapping[str, ProblemType] = {
    "bad-request": ProblemType(
        400, "Bad request", "The body must be JSON as /api/v1/openapi.json describes it."
    ),
    "unauthorized": ProblemType(401, "Unauthorized", "Send a valid user and password."),
    "admin-api-disabled": ProblemType(
        403, "Admin API is not enabled", "Start the exporter with --web.enable-admin-api."
    ),
    "cross-site": ProblemType(
        403,
        "Cross-site request",
        "The request came from a page of another site. Use the commands of qemu-block-exporter, or curl.",
    ),
    "not-granted": ProblemType(
        403, "Not granted", "No grant in the configuration permits this user to do this to this VM."
    ),
    "managed-vm": ProblemType(
        403,
        "VM is managed",
        "Another program manages this VM and keeps its own records of the disks: changing them"
        " behind its back can lose data. Use its tools, or a grant with allow_managed.",
    ),
    "not-found": ProblemType(404, "Not found", "There is nothing at this path."),
    "unknown-vm": ProblemType(404, "Unknown VM", "See /api/v1/vms for the known VMs."),
    "unknown-device": ProblemType(
        404, "Unknown device", "See /api/v1/vms/VM for its devices: use the label `device`."
    ),
    "unknown-job": ProblemType(
        404, "Unknown job", "QEMU has no block job with this id; it may have ended already."
    ),
    "unknown-layer": ProblemType(
        404, "Unknown layer", "See /api/v1/vms/VM for the layers: use a node name, or a file."
    ),
    "method-not-allowed": ProblemType(405, "Method not allowed", "See the Allow header."),
    "body-timeout": ProblemType(408, "Body too slow", "Send the body at once."),
    "not-ready": ProblemType(
        409,
        "Job is not ready",
        "Only a job that QEMU reports as ready can be completed; 100 % is not ready. Wait for it.",
    ),
    "wrong-job-state": ProblemType(
        409, "Job is in another state", "The request is not possible in this state of the job."
    ),
    "already-asked": ProblemType(
        409,
        "Already requested",
        "An earlier request for this job is still under way, such as a complete. Look at the job.",
    ),
    "force-required": ProblemType(
        409,
        'Explicit "force" required',
        'The job is ready. Set "force" to false to end it without a pivot and with a consistent copy,'
        " or to true to end it at once.",
    ),
    "device-busy": ProblemType(
        409,
        "A job is running on this device",
        "A device can have one job at a time: wait for that job, or end it.",
    ),
    "nothing-to-commit": ProblemType(
        409,
        "Nothing to commit",
        "The disk has a single layer, or top and base are the same layer or in the wrong order.",
    ),
    "wrong-device-state": ProblemType(
        409,
        "Device is in another state",
        "The request is not possible in this state of the device.",
    ),
    "wrong-vm-state": ProblemType(
        409, "VM is in another state", "Its disks must not be changed in this state."
    ),
    "another-vm": ProblemType(
        409,
        "Another VM has the path of this one",
        "The path of the socket no longer leads to the VM that was last seen there: another process"
        " has recreated the socket, or it was removed. Nothing was sent. Look at the VM, and repeat"
        " the request if it is the one that you mean.",
    ),
    "shared-layer": ProblemType(
        409,
        "Layer is shared",
        "Another disk reads a layer that would be written to or removed: its data would be lost.",
    ),
    "unseen-neighbours": ProblemType(
        409,
        "Another VM may share a layer",
        "A commit is refused while the layers of another VM on this host are unknown: it may read one"
        " that would be written to or removed. Find out what is wrong with that VM; or, if you know that"
        ' it shares no layer, send "unseen_neighbours": "allow" (on the command line:'
        " --allow-unseen-neighbours).",
    ),
    "unnamed-image": ProblemType(
        409,
        "Image cannot be found by its name",
        "The name of an image is written into the header of the layer above it. This image was removed"
        " or replaced since QEMU opened it, or never had a name that others can open"
        " (snapshot=on, /dev/fdset/N): data would be lost. Copy the disk to a file with a name"
        " (drive-mirror, drive-backup).",
    ),
    "job-id-taken": ProblemType(
        409, "Job id is taken", "Another request or job has this id: choose a new one."
    ),
    "file-exists": ProblemType(
        409,
        "File exists",
        "A snapshot never writes to an existing file: name one that does not exist. The only exception is"
        " a file that was created for the same request and has not been written to since.",
    ),
    "too-large": ProblemType(
        413, "Body too large", "The body of a request may have at most 16 kB."
    ),
    "wrong-content-type": ProblemType(
        415, "Wrong content type", "Send Content-Type: application/json."
    ),
    "too-many": ProblemType(
        503, "Too many requests at once", "See --web.max-requests; try again later."
    ),
    "internal-error": ProblemType(
        500,
        "Bug in the exporter",
        "Please report it, with the line in the exporter's log. A request to change something may have"
        " been carried out: check the job or the disk.",
    ),
    "refused-by-qemu": ProblemType(
        422,
        "QEMU refused",
        "QEMU answered with the error that the detail quotes; nothing was changed.",
    ),
    "bad-file": ProblemType(
        422, "File cannot be created", "The file must be in a directory where the VM can open it."
    ),
    "not-supported": ProblemType(422, "Not supported", "This version of QEMU cannot do it."),
    "layer-lost": ProblemType(
        502,
        "New layer was removed",
        "QEMU has put the layer on the disk and removed its file, as it does on top of snapshot=on:"
        " all that is written from now on is lost when the VM ends. Copy the disk to a file with a name"
        " (drive-mirror, drive-backup).",
    ),
    "unknown-outcome": ProblemType(
        502,
        "Outcome is unknown",
        "The command was sent, but the connection was lost before QEMU answered: it may have been"
        " carried out. Check the job or the disk. The same commit with the same job_id, and the same"
        " snapshot, is never carried out twice.",
    ),
    "vm-down": ProblemType(503, "VM does not answer", "Nothing was sent."),
    "storage-hangs": ProblemType(
        503,
        "Storage does not answer",
        "The command would wait for the storage, and the whole VM would stop until the storage answers."
        " Nothing was sent.",
    ),
    "not-recorded": ProblemType(
        503,
        "State directory cannot be written",
        "Each commit and snapshot must be recorded before it is sent. Nothing was sent.",
    ),
    "no-answer": ProblemType(
        504,
        "No answer in time",
        "The command was sent, but QEMU has not answered yet: it may still carry it out. Check the job"
        " or the disk.",
    ),
}
