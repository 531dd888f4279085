"""Drive, judge, report, and fail where anything is wrong.

python -m tests.truth [--seconds N] [--seed N] [--profile dense|calm|both] [--json FILE]
python -m tests.truth --judge FILE
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.lab import laboratory
from tests.truth.driver import PROFILES, drive
from tests.truth.record import Record, read
from tests.truth.report import Report

#: Images are written all the time: in memory, where there is one.
_MEMORY = Path("/dev/shm")


def main() -> int:
    """Return 0 if nothing was wrong."""
    flags = _flags()
    record = read(flags.judge) if flags.judge else _run(flags)
    report = Report(record)
    for line in report.lines():
        sys.stdout.write(f"{line}\n")
    return 0 if report.well else 1


def _run(flags: argparse.Namespace) -> Record:
    seed = int(time.time()) if flags.seed is None else flags.seed
    again = f"--seconds={flags.seconds:g} --seed={seed} --profile={flags.profile}"
    sys.stdout.write(f"python -m tests.truth {again}\n")
    sys.stdout.flush()
    if _MEMORY.is_dir():
        tempfile.tempdir = str(_MEMORY)
    with laboratory() as lab:
        record = drive(lab.folder, PROFILES[flags.profile], seed, flags.seconds)
    if flags.json:
        record.write(flags.json)
    return record


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.truth", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, help="of all that is chosen; by default the time")
    parser.add_argument("--profile", choices=PROFILES, default="both")
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--judge", type=Path, help="judge such a record instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
