"""The texts about jobs, requests and refusals, and about what to do next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from exporter.api import Done, Job, Outcome, Problem
from exporter.ctl.text import SENTENCE_LIMIT, clean, percent, state

PROGRAM = "qemu-block-exporter"
_EXIT_CODES: dict[Outcome, int] = {
    "completed": 0,
    "failed": 3,
    "cancelled": 3,
    "vanished": 3,
    "unverified": 4,
    "unknown": 4,
}


def exit_code(job: Job) -> int:
    """Return the exit code for a job that was waited for."""
    if job.outcome is None:
        return 3 if job.status == "concluded" and job.error else 0
    return _EXIT_CODES[job.outcome]


@dataclass(frozen=True)
class Prompt:
    """How the operator calls this program again, for the same exporter."""

    #: Flags that were given and that the next command needs too.
    flags: tuple[str, ...] = ()

    def line(self, *words: str, flag: str | None = None) -> str:
        """Return a command that can be pasted into a shell."""
        command, *names = words
        ended = ["--"] if any(name.startswith("-") for name in names) else []
        extra = [flag] if flag else []
        return clean(
            shlex.join([PROGRAM, command, *self.flags, *extra, *ended, *names]), SENTENCE_LIMIT
        )


def about(job: Job) -> str:
    """Return a job in a sentence.

    >>> about(Job(vm="web", job_id="qbe-1", job_type="commit", device="disk0", status="running"))
    'job qbe-1 (commit of disk0 of web) is running'
    """
    disk = f" of {clean(job.device)}" if job.device else ""
    what = f"job {clean(job.job_id)} ({clean(job.job_type)}{disk} of {clean(job.vm)})"
    error = f": {clean(job.error, SENTENCE_LIMIT)}" if job.error else ""
    if job.outcome is None and not job.in_qemu:
        return f"{what} is on record; it is not known whether QEMU has it{error}"
    if job.outcome is None:
        done = percent(job)
        far = f" at {done}" if done.endswith("%") else ""
        return f"{what} is {clean(state(job))}{far}{error}"
    return f"{what} {_ENDED[job.outcome]}{error}"


_ENDED: dict[Outcome, str] = {
    "completed": "is completed",
    "failed": "failed",
    "cancelled": "was cancelled",
    "vanished": "vanished without a final status: the connection was down, or the VM restarted",
    "unverified": "ended, and nothing shows whether it was completed",
    "unknown": "ended, and its outcome was not observed",
}


def done(answer: Done) -> str:
    """Return the result of an accepted request in a sentence."""
    disk = f" of {clean(answer.device)}" if answer.device else ""
    job = f" (job {clean(answer.job_id)})" if answer.job_id else ""
    what = f"{answer.action}{disk} of {clean(answer.vm)}{job}"
    if answer.dry_run:
        command = f": {_command(answer)}" if answer.command else ""
        return f"dry run: {what} would be accepted; nothing was sent{command}"
    if answer.replayed:
        now = f"; {about(answer.job)}" if answer.job else ""
        return f"accepted before: {what}; nothing was sent now{now}"
    return f"accepted: {what}"


def _command(answer: Done) -> str:
    text = f"{answer.command} {json.dumps(answer.arguments, ensure_ascii=False)}"
    return clean(text, SENTENCE_LIMIT)


def refusal(problem: Problem) -> str:
    """Return why a request was refused, with the state of the conflicting job."""
    title, detail = clean(problem.title), clean(problem.detail, SENTENCE_LIMIT)
    parts = [part for part in (title, detail if detail != title else "") if part]
    text = ": ".join(["refused", *(parts or [str(problem.status)])])
    return f"{text}\n{about(problem.job)}" if isinstance(problem.job, Job) else text


def name(problem: Problem) -> str:
    """Return the name of a problem, such as `not-ready`; "" if it is not one of the API's."""
    before, found, after = problem.type.rpartition("/problems/")
    return after if found and before.endswith("/api/v1") else ""


def next_step(problem: Problem, prompt: Prompt, vm: str | None, job_id: str | None) -> str:
    """Return what can be done about a refusal; "" if nothing is known."""
    kind = name(problem)
    step = _NEXT.get(kind) if kind else _BY_STATUS.get(problem.status)
    if isinstance(problem.job, Job):
        job_id = problem.job.job_id
    return step(_Case(problem, prompt, vm or "VM", job_id or "JOB")) if step else ""


@dataclass(frozen=True)
class _Case:
    problem: Problem
    prompt: Prompt
    vm: str
    job_id: str


#: What manages a VM -> its commands for disks.
_MANAGERS = {
    "libvirt": "virsh blockcommit and virsh blockjob",
    "proxmox": "qm listsnapshot and qm delsnapshot",
    "incus": "incus snapshot",
}


def _credentials(prompt: Prompt) -> str:
    if any(flag.startswith("--http.config.file=") for flag in prompt.flags):
        return "wrong user or password: see --http.config.file"
    return "set user and password in --http.config.file"


def _managed(case: _Case) -> str:
    manager = case.problem.manager
    tool = _MANAGERS.get(manager) if isinstance(manager, str) else None
    return (
        f"use the manager's own tool ({tool or 'see MANAGER in vms'}), or ask for a grant"
        " with allow_managed"
    )


def _held(case: _Case) -> str:
    if "is used as backing hd of" not in case.problem.detail:
        return ""
    return (
        "a merged layer was opened with -blockdev: QEMU keeps its node, which holds those below it;"
        " remove it with blockdev-del"
    )


def _unnamed(case: _Case) -> str:
    # QEMU before 2.7 names jobs itself.
    return "commit with --no-job-id" if "job_id" in case.problem.detail else ""


def _look(command: str, *, flag: str | None = None) -> Callable[[_Case], str]:
    return lambda case: f"see {case.prompt.line(command, case.vm, flag=flag)}"


_COPY = "copy the disk to a file with a name of its own: drive-mirror, or drive-backup"
_NEXT: dict[str, Callable[[_Case], str]] = {
    "not-ready": lambda case: (
        f"wait for it: {case.prompt.line('complete', case.vm, case.job_id, flag='--when-ready')}"
    ),
    "force-required": lambda _: (
        "add one of the two: --no-force ends it with a consistent copy and without a pivot, --force"
        " ends it at once"
    ),
    "managed-vm": _managed,
    "not-granted": lambda _: (
        "see admin.grants in the exporter's configuration: who may do what to which VMs"
    ),
    "job-id-taken": lambda _: "leave out --job-id to get a new id",
    "device-busy": _look("jobs"),
    "wrong-job-state": _look("jobs"),
    "already-asked": _look("jobs"),
    "unknown-job": _look("jobs"),
    "unknown-device": _look("chain"),
    "unknown-layer": _look("chain"),
    "nothing-to-commit": _look("chain"),
    "shared-layer": _look("chain"),
    "unseen-neighbours": lambda case: (
        f"see why: {case.prompt.line('vms')}; --allow-unseen-neighbours commits anyway"
    ),
    "unnamed-image": lambda _: _COPY,
    "layer-lost": lambda _: _COPY,
    "unknown-vm": lambda case: f"see {case.prompt.line('vms')}",
    "another-vm": lambda case: (
        f"another process has its socket's path: see {case.prompt.line('vms')}, and repeat the"
        " command if that is the VM that you mean"
    ),
    "vm-down": lambda case: f"see why: {case.prompt.line('vms')}",
    "storage-hangs": lambda _: "nothing is sent until the storage of its images answers again",
    "file-exists": lambda _: "name a file that does not exist: it is created",
    "refused-by-qemu": _held,
    "not-supported": _unnamed,
    "unauthorized": lambda case: _credentials(case.prompt),
    "not-found": lambda _: _URL,
    "too-many": lambda _: _LATER,
}
_URL = "is --url that of an exporter, with its route prefix?"
_LATER = "too many requests: try again later"
#: For answers of the middleware before the API, or of a proxy.
_BY_STATUS: dict[int, Callable[[_Case], str]] = {
    401: lambda case: _credentials(case.prompt),
    404: lambda _: _URL,
    429: lambda _: _LATER,
}
