"""Cost against the number of VMs, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.measure import Cost, Costs, asked_cpu, cpu, wall

mpl.rcParams["svg.hashsalt"] = "qemu-block-exporter"  # the same numbers make the same file


def cost_against_count(found: Mapping[int, Mapping[str, Costs]], folder: Path) -> None:
    """Write wall.svg, cpu.svg and qemu.svg."""
    _plot(found, folder / "wall.svg", "wall of a scrape, ms", wall, per_vm=False)
    _plot(found, folder / "cpu.svg", "CPU of the client a VM, us", cpu, per_vm=True)
    _plot(found, folder / "qemu.svg", "CPU of QEMU a VM, us", asked_cpu, per_vm=True)


def _plot(
    found: Mapping[int, Mapping[str, Costs]],
    path: Path,
    title: str,
    of: Callable[[Cost], float],
    *,
    per_vm: bool,
) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    counts = sorted(found)
    for name in found[counts[0]]:
        values = [found[n][name].mean(of) * (1e6 / n if per_vm else 1e3) for n in counts]
        axes.plot(counts, values, marker="o", label=name)
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{n:,}" for n in counts])
    axes.minorticks_off()
    if not per_vm:
        axes.set_yscale("log")
    axes.set_xlabel("VMs of 2 disks x 3 layers")
    axes.set_title(title)
    axes.set_ylim(bottom=None if not per_vm else 0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
