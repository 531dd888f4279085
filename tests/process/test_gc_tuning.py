"""The collector of cycles sees little, and leaks little."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from exporter.process import gc_tuning
from exporter.process.gc_tuning import GcTuner


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
    keeper = GcTuner()
    left = weakref.ref(Cycle())
    assert left() is not None
    keeper.settle(0)

    assert left() is None


@pytest.mark.parametrize("batches", [1, 100])
def test_what_stays_is_out_of_sight(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at a thousand VMs stops the event loop for longer than anybody should wait."""
    monkeypatch.setattr(gc_tuning, "_LITTLE", 2000)
    keeper = GcTuner()
    stays = []
    for _ in range(batches):
        stays += [Cycle() for _ in range(3000 // batches)]
        keeper.settle(0)

    assert sum(type(each) is Cycle for each in gc.get_objects()) < 2000
    assert gc.get_freeze_count() > 1000


def test_what_is_alive_after_one_sweep_is_collected_after_another() -> None:
    """As a request that was under way: nothing of it piles up over the months."""
    keeper = GcTuner()
    request = Cycle()
    left = weakref.ref(request)
    keeper.settle(0)
    del request
    gc.collect()

    assert left() is None


def test_what_left_with_its_vm_is_found_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """VMs that come and go do not fill the memory."""
    monkeypatch.setattr(gc_tuning, "_GONE_LIMIT", 10)
    monkeypatch.setattr(gc_tuning, "_LITTLE", 0)
    keeper = GcTuner()
    vm = Cycle()
    left = weakref.ref(vm)
    keeper.settle(0)
    del vm
    keeper.settle(9)
    assert left() is not None
    keeper.settle(1)

    assert left() is None
