"""What is checked at a quiet point, when no job runs: that the counters of /metrics are the trace of the
ends that were counted, that chains are QEMU's, and that the API tells of the newest job of each id."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import Any

from tests.e2e.lab import QmpError
from tests.truth.disk import Disk, files
from tests.truth.fleet import Keeper
from tests.truth.machine import Ended, Machine
from tests.truth.oracle import NEVER_RAN, truth
from tests.truth.record import WEAK, Job, Record, Verdict
from tests.truth.scrape import family
from tests.truth.watcher import Watcher

_RESULTS = ("completed", "failed", "cancelled", "unverified", "vanished")
#: The exporter remembers the ends of so many ids at least.
_RECENT_IDS = 20
_PATIENCE_SECONDS = 12.0


def quiet(watcher: Watcher, keepers: list[Keeper], record: Record) -> None:
    """Have all hands rest, compare, and let them go on."""
    with watcher.lock:
        for keeper in keepers:
            keeper.lock.acquire()
        try:
            for keeper in keepers:
                keeper.gate.close()
            until = time.monotonic() + _PATIENCE_SECONDS
            resting = [k for k in keepers if k.gate.all_rest(max(0.0, until - time.monotonic()))]
            watcher.fresh()
            text = watcher.fresh()
            verdicts = watcher.verdicts()
            for keeper in resting:
                machine = keeper.machine
                if text and machine and not machine.over and not machine.hangs:
                    with suppress(Ended):
                        _compare(watcher, keeper, machine, text, verdicts, record)
        finally:
            for keeper in keepers:
                keeper.gate.open()
                keeper.lock.release()


def _compare(
    watcher: Watcher, keeper: Keeper, machine: Machine, text: str, verdicts: list[Verdict],
    record: Record,
) -> None:  # fmt: skip
    vm = machine.name
    shown = {row["vm"] for row, up in family(text, "qemu_vm_up") if up == 1}
    if vm not in shown:
        return  # what is checked of each scrape says so
    mine = [each for each in verdicts if each.vm == vm]
    record.check("quiet points")
    problems = [*_counters(text, vm, mine), *_chains(text, keeper.disks, machine, record)]
    problems += told_wrongly(watcher, machine, mine, record)
    record.problems += [f"quiet point of {vm}: {each}" for each in problems]


def _counters(text: str, vm: str, mine: list[Verdict]) -> list[str]:
    """Compare the counters, the time of the last end and the last error with the trace."""
    account = max((each.account for each in mine), default=0)
    mine = [each for each in mine if each.account == account]
    counted = Counter((each.type, each.result) for each in mine)
    shown: Counter[tuple[str, str]] = Counter()
    for result in _RESULTS:
        for row, value in family(text, f"qemu_block_jobs_{result}_total"):
            if row["vm"] == vm and value:
                shown[row["job_type"], result] = int(value)
    if not shown:
        return []  # a VM of a new account: nothing of it has ended yet
    found = [] if shown == counted else [f"counters {dict(shown)}, counted {dict(counted)}"]
    last = {(each.device, each.type, each.result): each.at for each in mine}
    for row, at in family(text, "qemu_block_job_last_finished_timestamp_seconds"):
        if row["vm"] == vm:
            told = last.get((row["device"], row["job_type"], row["result"]))
            if told is None or abs(told - at) > 0.002:
                found.append(f"last finished {row} at {at}, counted {told}")
    errors = {
        (each.device, each.type): each.error
        for each in mine
        if each.result == "failed" and each.error
    }
    for row, _ in family(text, "qemu_block_job_last_error_info"):
        if row["vm"] == vm and errors.get((row["device"], row["job_type"])) != row["error"]:
            found.append(f"last error {row}, counted {errors}")
    return found


def _chains(text: str, disks: list[Disk], machine: Machine, record: Record) -> list[str]:
    """Compare depth and files with query-block, and depth with the graph."""
    depths = {
        row["device"]: int(value)
        for row, value in family(text, "qemu_block_device_backing_depth")
        if row["vm"] == machine.name
    }
    layers: dict[str, dict[int, str]] = {}
    for row, _ in family(text, "qemu_block_node_info"):
        if row["vm"] == machine.name and row.get("role") == "format":
            layers.setdefault(row["device"], {})[int(row["layer"])] = row["file"]
    entries: list[dict[str, Any]] = machine.run("query-block")
    found = []
    for disk in disks:
        if not disk.attached or disk.unplugged:
            continue
        names = disk.layers()
        entry = next(
            (e for e in entries
             if disk.label == e["device"] or f"/{disk.label}/" in f"/{e.get('qdev', '')}/"), {},
        )  # fmt: skip
        record.check("chains at quiet points")
        # A disk that has just been unplugged has no chain, and no depth.
        if depths.get(disk.label) != (len(names) - 1 if names else None):
            found.append(f"depth of {disk.label} {depths.get(disk.label)}, in the graph {names}")
        shown = [file for _, file in sorted(layers.get(disk.label, {}).items())]
        right = files(entry)
        if len(shown) != len(right) or any(r and s != r for s, r in zip(shown, right, strict=True)):
            found.append(f"files of {disk.label} {shown}, in query-block {right}")
    return found


def told_wrongly(
    watcher: Watcher, machine: Machine, mine: list[Verdict], record: Record, since: float = 0.0
) -> list[str]:
    """Return what the API says wrongly of the newest job of each id, of jobs created since."""
    newest: dict[str, Job] = {}
    for job in record.jobs:
        if (job.vm, job.life) == (machine.name, machine.number):
            newest.pop(job.id, None)
            newest[job.id] = job
    with suppress(QmpError):
        listed = {each["id"]: each for each in machine.run("query-jobs")}
    since = max(since, watcher.span.began)
    found = []
    for job in list(newest.values())[-_RECENT_IDS:]:
        if truth(job) == NEVER_RAN or not job.ended or job.created < since:
            continue
        if not any(each.id == job.id and each.said >= job.created for each in mine):
            continue
        told = watcher.ask(f"/api/v1/vms/{machine.name}/block-jobs/{job.id}")
        record.check("jobs asked of the API")
        if told is None:
            found.append(f"API does not know {job.id}, which was counted")
            continue
        if told["job_type"] not in (job.type, "") or (
            told["outcome"] not in WEAK and told["outcome"] not in (truth(job), None)
        ):
            said = [f"{each.type} {each.result}" for each in mine if each.id == job.id]
            found.append(
                f"API on {job.id}: {told['job_type']} {told['outcome']} ({told.get('status')}), it was "
                f"{job.type} {truth(job)}{' and is listed' if job.id in listed else ''}; counted {said}"
            )
    return found
