"""What processes use: CPU by the scheduler's own count, memory by the kernel's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

MIB = 1 << 20


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the time that all threads of the processes have run, to the nanosecond.

    A thread that has ended is not counted any more: compare only over a time in which none ends.
    [/proc/PID/task/TID/schedstat]
    """
    nanoseconds = 0
    for pid in pids:
        for thread in os.scandir(f"/proc/{pid}/task"):
            nanoseconds += int(Path(thread.path, "schedstat").read_bytes().split()[0])
    return nanoseconds / 1e9


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in RAM. [VmRSS of /proc/PID/status]"""
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int) -> int:
    """Return the most memory that a process ever had in RAM. [VmHWM of /proc/PID/status]"""
    return _status_bytes(pid, "VmHWM")


def _status_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(f"/proc/{pid}/status has no {field}")
