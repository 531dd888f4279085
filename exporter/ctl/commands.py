"""The names of the operators' commands, for lists of them without loading the rest."""

from __future__ import annotations

from exporter.api import JOB_REQUESTS, JobRequest


def _help(kind: type[JobRequest]) -> str:
    summary = kind.summary().removesuffix(".")
    return summary[0].lower() + summary[1:]


OPERATING = {
    "vms": "list the VMs, and why some are down",
    "jobs": "list block jobs, or watch them",
    "chain": "show the disks of a VM with their backing chains",
    "commit": "merge layers of a disk's backing chain, and optionally wait for the job",
    **{kind.verb: _help(kind) for kind in JOB_REQUESTS},
    "snapshot": "add a new layer on top of a disk",
}

#: Scripts rely on these.
EXIT_CODES_HELP = """\
exit codes:
  0    success: completed, accepted, or ready if that was waited for
  1    refused, or the exporter cannot be reached: this request changed nothing
       (or standard output cannot be written)
  2    wrong usage
  3    the job did not complete: it failed, was cancelled or vanished
  4    outcome unknown: no reply came, or the end of the job was not observed
  130  Ctrl-C (143: SIGTERM): a job that was being waited for goes on
"""
