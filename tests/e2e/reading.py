"""How an exposition is read: values, labels, and counters that never fall."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.conftest import samples, series


def value(exposition: str, name: str, **labels: str) -> float | None:
    """Return the value of the one series that has these labels, None where there is none."""
    found = series(exposition, name, **labels)
    assert len(found) <= 1, found
    return float(next(iter(found.values()))) if found else None


def known_value(exposition: str, name: str, **labels: str) -> float:
    """Return the value of the one series that has these labels, of which there is one."""
    found = value(exposition, name, **labels)
    assert found is not None, (name, labels)
    return found


def labels_of(exposition: str, name: str, **labels: str) -> list[dict[str, str]]:
    """Return the labels of each series of a family that is 1."""
    found = series(exposition, name, **labels)
    return [
        dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', sample))
        for sample, each in found.items()
        if float(each) == 1
    ]


def info(exposition: str, name: str, **labels: str) -> dict[str, str]:
    """Return the labels of the one series of an info or status family that is 1."""
    found = labels_of(exposition, name, **labels)
    assert len(found) == 1, found
    return found[0]


def names(exposition: str) -> set[str]:
    """Return the name of every sample."""
    return {re.split(r"[{ ]", sample, maxsplit=1)[0] for sample in samples(exposition)}


def assert_never_lower(history: Sequence[str], **labels: str) -> None:
    """See that no counter was ever lower than in the exposition before, and none was away."""
    wanted = [f'{label}="{each}"' for label, each in labels.items()]
    before: dict[str, float] = {}
    for exposition in history:
        now = {
            sample: float(each)
            for sample, each in samples(exposition).items()
            if re.match(r"qemu_block_\w+_total\{", sample)
            # Those of a node or of a job go with it.
            and not sample.startswith(("qemu_block_node_", "qemu_block_job_"))
            and all(label in sample for label in wanted)
        }
        assert before.keys() <= now.keys(), before.keys() - now.keys()
        lower = {sample: each for sample, each in now.items() if each < before.get(sample, 0)}
        assert not lower, lower
        before = now
    assert before, "there is no such counter"
