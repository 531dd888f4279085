"""Exports: when they are asked for, and that nothing else rests on their answer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from exporter.collect.discovery import Target
from exporter.collect.vm import Vm
from exporter.config.settings import Settings
from exporter.expose.plan import Plan
from exporter.model.state import VmState
from exporter.qmp.client import CommandStats
from exporter.storage.prober import Storage
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp, until

_COMMAND = "query-block-exports"


class Clock:
    """A monotonic clock that goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("exporter.collect.exports.time", _Time(clock))
    return clock


class _Time:
    def __init__(self, clock: Clock) -> None:
        self.monotonic = clock


def export(name: str, node: str = "node") -> dict[str, Any]:
    """Return an export as QEMU tells of it."""
    return {"id": name, "type": "nbd", "node-name": node, "shutting-down": False}


def collector(fake: FakeQmp, **settings: Any) -> Vm:
    """Return a collector of a VM."""
    target = Target(vm="vm", socket=fake.path, group="", settings=Settings(**settings))
    return Vm(target, CommandStats(), Storage())


def asked(fake: FakeQmp) -> int:
    """Return how often exports were asked for."""
    return fake.commands.count(_COMMAND)


def exports(snapshot: VmState) -> list[str]:
    """Return the samples."""
    text = b"".join(Plan().render(snapshot)).decode()
    return [line for line in text.splitlines() if line.startswith("qemu_block_export_info")]


async def test_exports_are_asked_for_on_connecting_and_every_max_age(
    sockets: Path, clock: Clock
) -> None:
    """Also of a VM without a device, of which query-block is never asked."""
    async with FakeQmp(f"{sockets}/vm.sock") as fake:
        fake.replies[_COMMAND] = {"return": [export("one"), export("two", "disk")]}
        vm = collector(fake, topology_max_age_seconds=60.0)
        snapshot = await vm.collect(5)
        assert exports(snapshot) == [
            'qemu_block_export_info{vm="vm",export="one",type="nbd",node_name="node"} 1',
            'qemu_block_export_info{vm="vm",export="two",type="nbd",node_name="disk"} 1',
        ]
        clock.now += 59
        assert len((await vm.collect(5)).exports) == 2
        assert (asked(fake), fake.commands.count("query-block")) == (1, 0)
        clock.now += 1
        fake.replies[_COMMAND] = {"return": []}
        assert (await vm.collect(5)).exports == ()
        assert asked(fake) == 2
        fake.hang_up()
        await vm.collect(5)
        assert asked(fake) == 3
        await vm.close()


async def test_an_export_that_ended_is_gone_in_the_next_scrape(sockets: Path, clock: Clock) -> None:
    """QEMU sends BLOCK_EXPORT_DELETED."""
    async with FakeQmp(f"{sockets}/vm.sock") as fake:
        fake.replies[_COMMAND] = {"return": [export("one")]}
        vm = collector(fake)
        await vm.collect(5)
        fake.replies[_COMMAND] = {"return": []}
        await fake.event("BLOCK_EXPORT_DELETED", id="one")
        await fake.event("RESUME")
        await until(lambda: vm._topology._outdated)
        assert (await vm.collect(5)).exports == ()
        assert asked(fake) == 2
        await vm.close()


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"class": "GenericError", "desc": "no"}},
        {"return": [export("one"), export("one")]},
        {"return": {}},
        None,
    ],
    ids=["refused", "twice", "odd", "unknown"],
)
async def test_an_answer_that_is_none_costs_its_own_series_alone(
    sockets: Path, clock: Clock, answer: Any
) -> None:
    """QEMU before 5.2 does not know the command: it is asked once a connection."""
    async with FakeQmp(f"{sockets}/vm.sock") as fake:
        if answer is not None:
            fake.replies[_COMMAND] = answer
        plug(fake, Disk())
        vm = collector(fake)
        for _ in range(3):
            snapshot = await vm.collect(5)
            assert snapshot.up
            assert snapshot.devices[0].inserted is True
            assert exports(snapshot) == []
        assert asked(fake) == 1
        await vm.close()


async def test_a_collector_that_is_off_asks_nothing(sockets: Path, clock: Clock) -> None:
    """--no-collector.export."""
    async with FakeQmp(f"{sockets}/vm.sock") as fake:
        fake.replies[_COMMAND] = {"return": [export("one")]}
        vm = collector(fake, without=frozenset({"export"}))
        assert (await vm.collect(5)).exports == ()
        assert asked(fake) == 0
        await vm.close()


async def test_an_answer_that_did_not_come_is_asked_for_again(sockets: Path, clock: Clock) -> None:
    """A VM that was too slow is not without exports until max-age is over."""
    async with FakeQmp(f"{sockets}/vm.sock") as fake:
        fake.replies[_COMMAND] = {"return": [export("one")]}
        vm = collector(fake)
        fake.answering.clear()
        assert not (await vm.collect(0.2)).up
        fake.answering.set()
        deadline = time.monotonic() + 20
        while not (snapshot := await vm.collect(5)).up:
            assert time.monotonic() < deadline
        assert len(snapshot.exports) == 1
        await vm.close()
