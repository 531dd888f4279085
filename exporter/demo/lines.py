"""The demo's live lines: the state of each VM, from the exporter's own exposition."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exporter.demo.scenarios import MIB

_SAMPLE = re.compile(r"^(qemu_\w+)\{(.*)\} (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_BAR_WIDTH = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of an exposition."""

    labels: dict[str, str]
    value: float


#: VM -> name of the metric -> samples.
Samples = dict[str, dict[str, list[Sample]]]


def live_lines(exposition: str, vms: Iterable[str]) -> list[str]:
    """Return a line for each VM."""
    samples, names = _parse(exposition), list(vms)
    width = max(map(len, names), default=0)
    return [f"{vm:{width}}  {_line(samples[vm])}" for vm in names]


def _parse(exposition: str) -> Samples:
    samples: Samples = defaultdict(lambda: defaultdict(list))
    for line in exposition.splitlines():
        if match := _SAMPLE.match(line):
            labels = dict(_LABEL.findall(match[2]))
            samples[labels.get("vm", "")][match[1]].append(Sample(labels, float(match[3])))
    return samples


def _line(samples: dict[str, list[Sample]]) -> str:
    if not any(sample.value for sample in samples["qemu_vm_up"]):
        reasons = [each.labels["reason"] for each in samples["qemu_vm_scrape_error"]]
        return f"down: {', '.join(reasons) or 'not collected yet'}"
    read = sum(each.value for each in samples["qemu_block_read_bytes_total"])
    written = sum(each.value for each in samples["qemu_block_written_bytes_total"])
    jobs = samples["qemu_block_job_length_bytes"]
    now = _job(samples, jobs[0].labels) if jobs else _rest(samples)
    return f"{now:66}  I/O: read {read / MIB:.0f}, written {written / MIB:.0f} MiB"


def _job(samples: dict[str, list[Sample]], job: dict[str, str]) -> str:
    def value(metric: str) -> float:
        return _first(samples[f"qemu_block_job_{metric}"])

    done, whole = value("offset_bytes"), value("length_bytes")
    part = done / whole if whole else 1.0
    bar = ("#" * int(part * _BAR_WIDTH)).ljust(_BAR_WIDTH, ".")
    states = [s.labels["status"] for s in samples["qemu_block_job_status"] if s.value]
    return (
        f"{job['device']:12} {job['job_type']} [{bar}] {part:4.0%}"
        f"{done / MIB:6.1f} of{whole / MIB:5.1f} MiB, {', '.join(states)}"
    )


def _rest(samples: dict[str, list[Sample]]) -> str:
    depths = samples["qemu_block_device_backing_depth"]
    if not depths:
        return "no disk"
    deepest = max(depths, key=lambda sample: sample.value)
    return f"{deepest.labels['device']:12} no job, {deepest.value:.0f} backing files"


def _first(samples: Sequence[Sample]) -> float:
    return samples[0].value if samples else 0.0
