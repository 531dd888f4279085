"""Work in slices of the event loop."""

from __future__ import annotations

import asyncio

from exporter import concurrency
from exporter.concurrency import LoopPacer


async def test_a_few_go_on_in_each_turn_and_others_are_served_between_them() -> None:
    """A thousand VMs that answer at once leave room for a request."""
    loop, slow = asyncio.get_running_loop(), LoopPacer()
    order: list[str] = []

    async def work() -> None:
        await slow.turn()
        order.append("work")

    def other() -> None:
        order.append("other")
        if order.count("work") < 12:
            loop.call_soon(other)

    working = [asyncio.create_task(work()) for _ in range(12)]
    loop.call_soon(other)
    await asyncio.gather(*working)
    runs = "".join(each[0] for each in order).split("o")

    assert max(map(len, runs)) <= concurrency._AT_ONCE
    assert order.count("work") == 12


async def test_who_waits_longest_goes_first() -> None:
    """Nobody starves."""
    slow = LoopPacer()
    order: list[int] = []

    async def work(number: int) -> None:
        await slow.turn()
        order.append(number)

    await asyncio.gather(*[work(number) for number in range(20)])

    assert order == list(range(20))


async def test_who_gave_up_costs_the_others_nothing() -> None:
    """A scrape that was cancelled leaves its place in the line."""
    slow = LoopPacer()
    gone = [asyncio.create_task(slow.turn()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    async with asyncio.timeout(20):
        await slow.turn()

    assert await asyncio.gather(*gone, return_exceptions=True)
