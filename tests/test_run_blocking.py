"""Work that waits for a disk: whatever hangs there, all else goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from exporter.concurrency import run_blocking
from tests.fakeqmp import until

#: More than either pool has threads.
MANY = 50


class Disk:
    """Hangs until it is told otherwise."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.waiting = 0

    def write(self) -> str:
        """Wait for the disk."""
        self.waiting += 1
        self.free.wait()
        return "written"


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A disk that hangs for as long as the test, at most."""
    hanging = Disk()
    yield hanging
    hanging.free.set()


async def test_what_a_function_returns_is_returned() -> None:
    """With all that it was called with."""
    assert await run_blocking(dict, [("a", 1)], b=2) == {"a": 1, "b": 2}


async def test_what_a_function_raises_is_raised() -> None:
    """As if it had been called here."""
    with pytest.raises(FileNotFoundError):
        await run_blocking(open, "/gone")


async def test_what_hangs_keeps_nobody_else_waiting(disk: Disk) -> None:
    """However much of it there is, scrapes and passwords have threads that it does not take."""
    hanging = [asyncio.create_task(run_blocking(disk.write)) for _ in range(MANY)]
    await until(lambda: disk.waiting)
    async with asyncio.timeout(20):
        done = await asyncio.gather(*(asyncio.to_thread(str, n) for n in range(MANY)))
    waited = [task.done() for task in hanging]
    disk.free.set()

    assert done == [str(number) for number in range(MANY)]
    assert waited == [False] * MANY
    assert await asyncio.gather(*hanging) == ["written"] * MANY


async def test_what_hangs_takes_few_threads(disk: Disk) -> None:
    """The others wait for one."""
    before = threading.active_count()
    hanging = [asyncio.create_task(run_blocking(disk.write)) for _ in range(MANY)]
    await until(lambda: disk.waiting)
    taken = threading.active_count() - before
    disk.free.set()
    await asyncio.gather(*hanging)

    assert taken <= 4
