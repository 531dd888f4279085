"""How long things take that are done to VMs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Timing:
    """Waits and intervals, in seconds; those who wait look at them each time."""

    #: Longest that a request waits for the VM: a scrape, or another request, is talking to it.
    lease_wait_seconds: float = 10.0
    #: After a lost connection: how long, and how far apart, it is looked whether the command was done.
    lookup_seconds: float = 3.0
    lookup_pause_seconds: float = 0.2
    #: A job that was told to complete is no longer at rest by then, unless QEMU did not take it.
    completing_seconds: float = 5.0
    #: How often a VM is looked at that has jobs of ours: there may be no Prometheus that does.
    look_seconds: float = 5.0
    #: When a QEMU that would not keep histograms is asked again.
    histogram_retry_seconds: float = 3600.0
    #: And one that was not asked, because of the state that it is in.
    histogram_pause_seconds: float = 60.0
