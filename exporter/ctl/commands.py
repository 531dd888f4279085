"""The operators' commands by name, for whoever lists them without loading the rest."""

from __future__ import annotations

from exporter.api import JOB_REQUESTS, JobRequest


def _help(kind: type[JobRequest]) -> str:
    summary = kind.summary().removesuffix(".")
    return summary[0].lower() + summary[1:]


OPERATING = {
    "vms": "list the VMs, and why those that are down are",
    "jobs": "list block jobs, or watch them",
    "chain": "show the disks of a VM with their backing chains",
    "commit": "merge layers of a disk's backing chain, and wait for it if asked to",
    **{kind.verb: _help(kind) for kind in JOB_REQUESTS},
    "snapshot": "put a new layer on a disk",
}

#: What a script can rely on.
EXIT_CODES_HELP = """\
exit codes:
  0    done: completed, accepted, or ready where only that was waited for
  1    refused, or the exporter cannot be reached: this request changed nothing
       (or standard output cannot be written)
  2    wrong usage
  3    the job ended badly: failed, cancelled or vanished
  4    how it went is not known: no answer came, or nobody saw how the job ended
  130  Ctrl-C (143: SIGTERM): a job that was waited for goes on
"""
