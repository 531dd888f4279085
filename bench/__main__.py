"""Measure, write RESULTS.md, and fail where a bar is missed.

python -m bench [--quick] [--only PART ...] [--peer NAME COMMAND URL ...]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import parts, peers, plots
from bench.hostile import hostile
from bench.measure import Costs
from bench.parts import Size
from bench.rendering import rendering
from bench.report import Results, Table

_HERE = Path(__file__).parent
_SIZES = (
    Size(10, 2, 3, 20, 1.3),
    Size(50, 2, 3, 24, 1.7),
    Size(200, 2, 3, 16, 4.0),
    Size(1000, 2, 3, 12, 16.0),
)
_WIDE = Size(20, 8, 3, 16, 1.7)


def main() -> int:
    flags = _flags()
    results = Results()
    began = time.monotonic()
    for name, part in _parts(flags).items():
        if not flags.only or name in flags.only:
            print(f"{time.monotonic() - began:6.0f} s  {name}", file=sys.stderr, flush=True)
            part(results)
    command = "make bench" if sys.argv[1:] == [] else f"python -m bench {' '.join(sys.argv[1:])}"
    page = results.page(command)
    if flags.quick or flags.only:
        print(page)  # no whole run: it replaces none
    else:
        (_HERE / "RESULTS.md").write_text(page, "utf-8")
    bars = [bar.row() for bar in results.bars]
    print(Table("Bars", ("what", "measured", "bar", "stretch", "verdict"), bars).markdown())
    return 0 if all(bar.met for bar in results.bars) else 1


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small fleets and few rounds")
    parser.add_argument("--only", action="append", help="one part alone", metavar="PART")
    parser.add_argument(
        "--peer", nargs=3, action="append", default=[], metavar=("NAME", "COMMAND", "URL"),
        help="another exporter of the libvirt fleet: COMMAND starts it, URL is scraped",
    )  # fmt: skip
    return parser.parse_args()


def _parts(flags: argparse.Namespace) -> Mapping[str, Callable[[Results], object]]:
    quick: bool = flags.quick
    sizes = _SIZES[:2] if quick else _SIZES

    def fleets(results: Results) -> None:
        found: dict[int, Mapping[str, Costs]] = {}
        for size in sizes:
            found[size.count] = parts.real_fleet(results, size)
        parts.bars_of_fleets(results, found)
        if not quick:
            plots.cost_against_count(found, _HERE)
            results.plots["wall.svg"] = "Wall of a scrape against the number of VMs"
            results.plots["cpu.svg"] = "CPU of the client a VM against the number of VMs"
            results.plots["qemu.svg"] = "CPU of QEMU a VM against the number of VMs"

    return {
        "rendering": rendering,
        "fleets": fleets,
        "wide": lambda results: parts.real_fleet(results, _WIDE),
        "stopped": parts.one_stopped,
        "simulated": lambda results: parts.simulated_fleet(
            results, (50, 200) if quick else (50, 200, 1000), 8 if quick else 16
        ),
        "peers": lambda results: peers.libvirt(results, 10 if quick else 50, flags.peer),
        "hostile": hostile,
        "endurance": lambda results: parts.endurance(results, 1000 if quick else 10_000),
    }


if __name__ == "__main__":
    sys.exit(main())
