"""How a job ended in truth, by QEMU's events, by its graph, and by what was asked of it.

BLOCK_JOB_COMPLETED without an error does not say whether a commit of the active layer was completed
or cancelled when it was ready: the graph right after it does, and where that was not to be had, what
the driver asked of the job. All other ends are what their event says.
"""

from __future__ import annotations

from tests.truth.record import CANCELLED, COMPLETED, FAILED, PLAIN, Job

#: It was still there when its VM ended.
ALIVE = "alive"
#: It was created, and its command was refused: it must not be counted.
NEVER_RAN = "never ran"
#: The VM ended before anybody could look.
UNKNOWN = "unknown"
#: The error that QEMU gives to a job that was cancelled: strerror(ECANCELED).
_CANCELED = "Operation canceled"


def truth(job: Job) -> str:
    """Return how a job ended."""
    if not job.ran:
        return NEVER_RAN
    if not job.ended:
        return ALIVE
    if job.type in PLAIN:
        return _plain(job)
    if job.event == "BLOCK_JOB_CANCELLED":
        return CANCELLED
    if job.error:
        return FAILED
    return _active(job) if job.active and job.ready else COMPLETED


def _plain(job: Job) -> str:
    if not job.aborting:
        return COMPLETED
    if job.error:
        return CANCELLED if job.error == _CANCELED else FAILED
    # Its error is in query-jobs alone, which nobody asked in time.
    return UNKNOWN if job.asked == "cancel" else FAILED


def _active(job: Job) -> str:
    if job.pivoted is not None:
        return COMPLETED if job.pivoted else CANCELLED
    return {"complete": COMPLETED, "cancel": CANCELLED}.get(job.asked, UNKNOWN)
