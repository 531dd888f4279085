"""A session with virt-qemu-qmp-proxy, which is no QEMU: what is behind it answers one query at a time.

`tests/e2e/test_libvirt.py` has the real one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exporter.errors import ProtocolError, TargetTimeout
from exporter.qmp.client import CommandStats
from exporter.qmp.limits import SessionLimits
from exporter.qmp.queries import BLOCK_JOBS, BLOCKSTATS, NAME, STATUS
from exporter.qmp.session import Session
from tests.fakeqmp import FakeQmp, until

GREETING = (
    b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "qemu-7.2.22"}, \
"capabilities": ["oob"]}}\r\n'
)
EVENT = b'{"event": "RTC_CHANGE", "timestamp": {"seconds": 1, "microseconds": 2}, "data": {"offset": 0}}\r\n'
QUOTED = b'{"event": "BLOCK_JOB_READY", "data": "{\\"device\\": \\"job \\u00e4\\"}"}\r\n'


class Proxy(FakeQmp):
    """Takes all that it has read for one command, and waits for the rest where it is none."""

    async def _talk(self, reader: asyncio.StreamReader) -> None:
        text = ""
        while data := await reader.read(1024):
            text += data.decode()
            try:
                request = json.loads(text)
            except ValueError:
                continue
            text = ""
            await self._answer(request)


@pytest.fixture
async def proxy(sockets: Path) -> AsyncIterator[Proxy]:
    """The proxy of a domain."""
    server = Proxy(str(sockets / "vm.sock"))
    async with server:
        server.greeting = GREETING
        yield server


@pytest.fixture
async def session(sockets: Path) -> AsyncIterator[Session]:
    """A session that is not connected yet."""
    session = Session(str(sockets / "vm.sock"), CommandStats(), lambda name, data: None)
    yield session
    await session.close()


async def test_each_query_waits_for_the_answer_to_the_one_before(
    proxy: Proxy, session: Session
) -> None:
    """All are asked, in order, batch after batch."""
    await session.connect(20, keep_waiting=True)
    for _ in range(2):
        answers = await session.ask(STATUS, NAME, BLOCKSTATS, BLOCK_JOBS, timeout_seconds=20)

        assert answers.complete
        assert answers.get(BLOCK_JOBS) == []
    assert (
        proxy.commands == ["query-status", "query-name", "query-blockstats", "query-block-jobs"] * 2
    )


async def test_events_before_the_greeting_are_of_no_interest(
    proxy: Proxy, session: Session
) -> None:
    """Nor between it and the end of the negotiation: all is asked for anew after it."""
    proxy.greeting = EVENT * 2 + GREETING + EVENT
    proxy.replies["qmp_capabilities"] = EVENT + b'{"return": {}}\r\n'
    await session.connect(20, keep_waiting=True)

    assert (await session.ask(STATUS, NAME, timeout_seconds=20)).complete


async def test_events_without_end_are_no_greeting(
    proxy: Proxy, sockets: Path
) -> None:
    """As many as a session takes between two scrapes, and no more."""
    limits = SessionLimits(events=10)
    session = Session(str(sockets / "vm.sock"), CommandStats(), lambda *_: None, limits=limits)
    proxy.greeting = EVENT * 11

    with pytest.raises(ProtocolError, match="does not speak QMP"):
        await session.connect(20, keep_waiting=True)
    await session.close()


async def test_the_data_of_an_event_is_taken_out_of_its_text(proxy: Proxy, sockets: Path) -> None:
    """The proxy quotes what QEMU has as an object."""
    seen: list[tuple[str, bytes]] = []
    proxy.replies["query-status"] = (
        QUOTED + b'{"return": {"running": true, "status": "running"}}\r\n'
    )
    session = Session(
        str(sockets / "vm.sock"), CommandStats(), lambda name, data: seen.append((name, data))
    )
    await session.connect(20, keep_waiting=True)
    await session.ask(STATUS, timeout_seconds=20)
    await session.close()

    assert seen == [("BLOCK_JOB_READY", b'{"device": "job \xc3\xa4"}')]


async def test_a_batch_that_was_given_up_is_owed_to_its_end(proxy: Proxy, session: Session) -> None:
    """Nothing is asked beside it, and what comes late is mistaken for nothing."""
    await session.connect(20, keep_waiting=True)
    proxy.answering.clear()
    for _ in range(2):
        with pytest.raises(TargetTimeout):
            await session.ask(STATUS, NAME, timeout_seconds=0.05)
    await until(lambda: proxy.commands)
    assert proxy.commands == ["query-status"]
    proxy.answering.set()
    await until(lambda: not session.owes_answers)

    assert (await session.ask(BLOCK_JOBS, timeout_seconds=20)).get(BLOCK_JOBS) == []
    assert proxy.commands == ["query-status", "query-name", "query-block-jobs"]


async def test_who_leaves_in_the_middle_of_a_batch_asks_no_more_of_it(
    proxy: Proxy, session: Session
) -> None:
    """The answer that is owed is waited for, because a VM that hangs keeps the question."""
    await session.connect(20, keep_waiting=False)
    proxy.answering.clear()
    with pytest.raises(TargetTimeout):
        await session.ask(STATUS, NAME, timeout_seconds=0.05)
    await session.leave()
    assert proxy.serves
    proxy.answering.set()
    await until(lambda: not proxy.serves)

    assert proxy.commands == ["query-status"]
