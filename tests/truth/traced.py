"""The exporter as it is, with each end that it counts written down.

    python -m tests.truth.traced FILE PYTHON -m exporter FLAG...

Each line of FILE is one call of `exporter.outcomes.Outcomes.count`, the one place through which every
end of a job goes into a counter. The exporter's own code is unchanged.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from exporter.cli import entry
from exporter.jobs.outcomes import Outcomes

_EXPECTED = 6  # job_id, device, job_type, result, now, error


def hook(path: str) -> None:
    """Have every count written to a file.

    Raises:
        SystemExit: the exporter counts no more as it did when this was written.
    """
    count: Callable[..., None] | None = getattr(Outcomes, "count", None)
    names = list(inspect.signature(count).parameters)[1:] if count else []
    if count is None or len(names) < _EXPECTED or names[0] != "job_id" or names[3] != "result":
        sys.exit(
            f"Outcomes.count must take (job_id, device, job_type, result, now, error), got {names}"
        )
    signature = inspect.signature(count)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    numbers = itertools.count(1)
    # Kept, so that no two of them can have one address.
    accounts: dict[int, tuple[int, object]] = {}

    def counted(self: Outcomes, *arguments: Any, **named: Any) -> None:
        count(self, *arguments, **named)
        bound = signature.bind(self, *arguments, **named)
        bound.apply_defaults()
        job_id, device, job_type, result, now, error = list(bound.arguments.values())[1:7]
        if id(self) not in accounts:
            accounts[id(self)] = next(numbers), self
        line = {
            "account": accounts[id(self)][0], "said": time.time(), "at": now, "id": job_id,
            "device": device, "type": job_type, "result": str(result), "error": error or "",
        }  # fmt: skip
        os.write(file, (json.dumps(line) + "\n").encode())

    Outcomes.count = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    hook(sys.argv[1])
    sys.exit(entry.main(sys.argv[sys.argv.index("exporter") + 1 :]))
