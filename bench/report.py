"""Results as they are written down: tables, the bars that they are held to, and the page of both."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Table:
    """A part of the page."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def markdown(self) -> str:
        lines = [f"## {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("| " + " | ".join("---" for _ in self.columns) + " |")
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Bar:
    """What a measured value is held to: at most `bar`, and better `stretch`."""

    what: str
    value: float
    bar: float
    stretch: float | None = None

    @property
    def met(self) -> bool:
        return self.value <= self.bar

    def row(self) -> Sequence[object]:
        verdict = "met" if self.met else "**missed**"
        if self.met and self.stretch is not None:
            verdict = "met, stretch too" if self.value <= self.stretch else "met, stretch missed"
        return self.what, self.value, f"<= {self.bar:g}", _stretch(self.stretch), verdict


@dataclass(slots=True)
class Results:
    """All of one run."""

    tables: list[Table] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    #: Plots: file name -> what it shows.
    plots: dict[str, str] = field(default_factory=dict)

    def page(self, command: str) -> str:
        """Return RESULTS.md."""
        about = f"""# Results

Made by `{command}` in one run on one machine: {machine()}. Times drift with the machine; the
ratios, of what was measured in turns, are what counts. README.md says what each row is.
"""
        columns = ("what", "measured", "bar", "stretch", "verdict")
        bars = Table("Bars", columns, [bar.row() for bar in self.bars]).markdown()
        plots = "".join(f"![{text}]({name})\n\n" for name, text in self.plots.items())
        return "\n".join([about, bars, plots, *(table.markdown() for table in self.tables)])


def _stretch(value: float | None) -> str:
    return "" if value is None else f"<= {value:g}"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def machine() -> str:
    """Return what it was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = sum(
        line.startswith("processor")
        for line in Path("/proc/cpuinfo").read_text("utf-8").split("\n")
    )
    qemu = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout.split("\n")[0]
    return f"{cores} cores ({model}), Python {platform.python_version()}, {qemu}"
