"""The collector of cycles sees little, and leaks little."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from exporter import garbage
from exporter.garbage import Keeper


class Cycle:
    """Something that only the collector frees."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    """Put the collector back."""
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_what_a_sweep_left_is_collected() -> None:
    """Requests leave cycles behind."""
    keeper = Keeper()
    left = weakref.ref(Cycle())
    assert left() is not None
    keeper.settle(0)

    assert left() is None


def test_what_stays_is_out_of_sight() -> None:
    """To look at a thousand VMs stops the event loop for longer than anybody should wait."""
    keeper = Keeper()
    stays = [Cycle() for _ in range(1000)]
    keeper.settle(0)

    assert not any(type(each) is Cycle for each in gc.get_objects())
    assert gc.get_freeze_count() > len(stays)


def test_what_left_with_its_vm_is_found_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """VMs that come and go do not fill the memory."""
    monkeypatch.setattr(garbage, "_GONE_LIMIT", 10)
    keeper = Keeper()
    vm = Cycle()
    left = weakref.ref(vm)
    keeper.settle(0)
    del vm
    keeper.settle(9)
    assert left() is not None
    keeper.settle(1)

    assert left() is None
