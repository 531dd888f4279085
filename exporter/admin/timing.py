"""Waits and intervals of requests and of the reconciler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Timing:
    """Waits and intervals in seconds. They are read each time they are needed."""

    #: How long a request waits for the VM while a scrape or another request talks to it.
    lease_wait_seconds: float = 10.0
    #: After a lost connection: how long, and at which intervals, to look whether the command was done.
    lookup_seconds: float = 3.0
    lookup_pause_seconds: float = 0.2
    #: After this time a completing job is no longer idle, unless QEMU did not carry out the complete.
    completing_seconds: float = 5.0
    #: How often to look at VMs that have open records: there may be no Prometheus that does.
    look_seconds: float = 5.0
    #: When to retry after a QEMU refused to keep histograms.
    histogram_retry_seconds: float = 3600.0
    #: And after a VM was not asked because of its state.
    histogram_pause_seconds: float = 60.0
