"""Every reason for which a request is not accepted: its HTTP status, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Where the text of each can be read; the `type` of a problem is a path below it.
PATH = "/api/v1/problems/"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of problem. [RFC 9457 section 3.1.1]"""

    status: int
    title: str
    #: What it means, and what to do.
    text: str


#: Name -> kind; part of the public contract.
PROBLEMS: Mapping[str, ProblemType] = {
    "bad-request": ProblemType(
        400, "Bad request", "The body is no JSON, or not what /api/v1/openapi.json asks for."
    ),
    "unauthorized": ProblemType(401, "Unauthorized", "Send a user and password that exist."),
    "admin-api-disabled": ProblemType(
        403, "Admin API is not enabled", "Start the exporter with --web.enable-admin-api."
    ),
    "cross-site": ProblemType(
        403, "Cross-site request", "A page of another site asked for it. Use the shell, or curl."
    ),
    "not-granted": ProblemType(
        403, "Not granted", "No grant of the configuration lets this user do this to this VM."
    ),
    "managed-vm": ProblemType(
        403,
        "VM is managed",
        "Another program runs this VM, and keeps its own account of the disks: to change them"
        " behind its back can lose data. Use its tools, or a grant with allow_managed.",
    ),
    "not-found": ProblemType(404, "Not found", "There is nothing at this path."),
    "unknown-vm": ProblemType(404, "Unknown VM", "See /api/v1/vms for those that are known."),
    "unknown-device": ProblemType(
        404, "Unknown device", "See /api/v1/vms/VM for its devices: the label `device`."
    ),
    "unknown-job": ProblemType(
        404, "Unknown job", "QEMU has no block job with this id; it may have ended already."
    ),
    "unknown-layer": ProblemType(
        404, "Unknown layer", "See /api/v1/vms/VM for the layers: name a node, or a file."
    ),
    "method-not-allowed": ProblemType(405, "Method not allowed", "See the header Allow."),
    "body-timeout": ProblemType(408, "Body too slow", "Send the body at once."),
    "not-ready": ProblemType(
        409,
        "Job is not ready",
        "Only what QEMU itself calls ready can be completed; 100 % is not ready. Wait for it.",
    ),
    "wrong-job-state": ProblemType(
        409, "Job is in another state", "What was asked for is not possible in this state."
    ),
    "already-asked": ProblemType(
        409, "Already asked for", "This was sent to QEMU for this job before. Look at the job."
    ),
    "force-required": ProblemType(
        409,
        "Say whether by force",
        'The job is ready. "force": false lets it end without a pivot and with a consistent copy,'
        ' "force": true ends it at once.',
    ),
    "device-busy": ProblemType(
        409, "A job works on this device", "One job at a time: wait for it, or end it."
    ),
    "nothing-to-commit": ProblemType(
        409,
        "Nothing to commit",
        "The disk has one layer, or those that were named are one, or in the wrong order.",
    ),
    "wrong-device-state": ProblemType(
        409, "Device is in another state", "What was asked for is not possible in this state."
    ),
    "wrong-vm-state": ProblemType(
        409, "VM is in another state", "Its disks must not be changed in this state."
    ),
    "another-vm": ProblemType(
        409,
        "Another VM has the path of this one",
        "The path of the socket does not lead to the VM that was seen there last: another process"
        " has made the socket anew, or it was removed. Nothing was sent. Look at the VM, and ask"
        " again if it is the one that you mean.",
    ),
    "shared-layer": ProblemType(
        409,
        "Layer is shared",
        "Another disk reads a layer that would be written to or removed: its data would be lost.",
    ),
    "unseen-neighbours": ProblemType(
        409,
        "Another VM may share a layer",
        "A commit is refused while a VM of this host does not say which layers it has: it may read one"
        " that would be written to or removed. See what is wrong with that VM, or, where you know that it"
        ' shares none, send "unseen_neighbours": "allow" (the shell: --allow-unseen-neighbours).',
    ),
    "unnamed-image": ProblemType(
        409,
        "Image cannot be found by its name",
        "The name of an image is written into the header of the layer above it. This one was removed"
        " or replaced since QEMU opened it, or never had a name that leads others to it"
        " (snapshot=on, /dev/fdset/N): data would be lost. Copy the disk to a file with a name"
        " (drive-mirror, drive-backup).",
    ),
    "job-id-taken": ProblemType(
        409, "Job id is taken", "Another request, or another job, has this id: choose a new one."
    ),
    "file-exists": ProblemType(
        409,
        "File exists",
        "A snapshot never writes to what is there: name a file that does not exist. Only a file that"
        " was made for the same request, and that nobody has written to since, is used.",
    ),
    "too-large": ProblemType(413, "Body too large", "A request takes at most 16 kB."),
    "wrong-content-type": ProblemType(
        415, "Wrong content type", "Send Content-Type: application/json."
    ),
    "too-many": ProblemType(
        503, "Too many requests at once", "See --web.max-requests; try again later."
    ),
    "internal-error": ProblemType(
        500,
        "Defect of the exporter",
        "Please report it, with the line in the exporter's log. A request to change something may have"
        " been carried out: look the job up, or the disk.",
    ),
    "refused-by-qemu": ProblemType(
        422,
        "QEMU refused",
        "QEMU answered with the error that the detail quotes; nothing was done.",
    ),
    "bad-file": ProblemType(
        422, "File cannot be made", "The file must be made where the VM can open it."
    ),
    "not-supported": ProblemType(422, "Not supported", "This QEMU cannot do it."),
    "layer-lost": ProblemType(
        502,
        "New layer was removed",
        "QEMU has put the layer on the disk and removed its file, as it does on top of snapshot=on:"
        " what is written from now on is gone with the VM. Copy the disk to a file with a name"
        " (drive-mirror, drive-backup).",
    ),
    "unknown-outcome": ProblemType(
        502,
        "Outcome is unknown",
        "The command left, and the connection was lost before QEMU answered: it may have been"
        " done. Look the job up, or the disk; the same commit with the same job_id, and the same snapshot,"
        " is never carried out twice.",
    ),
    "vm-down": ProblemType(503, "VM does not answer", "Nothing was sent."),
    "storage-hangs": ProblemType(
        503,
        "Storage does not answer",
        "The command would wait for the storage, and stop the whole VM until it answers."
        " Nothing was sent.",
    ),
    "not-recorded": ProblemType(
        503,
        "State directory cannot be written",
        "Each commit and snapshot is recorded before it is sent. Nothing was sent.",
    ),
    "no-answer": ProblemType(
        504,
        "No answer in time",
        "The command left, and QEMU has not answered yet: it may still do it. Look the job up, or the"
        " disk.",
    ),
}
