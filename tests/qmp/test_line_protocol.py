"""A socket as lines, taken over from a stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import ProtocolError
from exporter.qmp.line_protocol import LineProtocol
from tests.fakeqmp import until


class Ends:
    """A connection whose one end is read as lines."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far: socket.socket
    ) -> None:
        self.reader, self.writer, self.far = reader, writer, far
        self.seen: list[bytes] = []
        self.lines = LineProtocol(self.seen.append, writer.transport)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    """A connection that is not taken over yet."""
    near, far = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=near)
    yield Ends(reader, writer, far)
    far.close()
    writer.close()
    await writer.wait_closed()


async def test_what_the_stream_had_read_already_is_not_lost(ends: Ends) -> None:
    """Events may come with the answer that ends the negotiation; half a line too."""
    ends.far.sendall(b"one\ntw")
    await asyncio.sleep(0.01)
    await ends.lines.take_over(ends.reader)
    ends.far.sendall(b"o\nthree\n")
    await until(lambda: len(ends.seen) == 3)

    assert ends.seen == [b"one", b"two", b"three"]


async def test_the_end_of_the_connection_is_the_end_of_the_lines(ends: Ends) -> None:
    """Also of one that ended before it was taken over."""
    ends.far.sendall(b"one\nrest")
    ends.far.shutdown(socket.SHUT_WR)
    await asyncio.sleep(0.01)
    await ends.lines.take_over(ends.reader)
    async with asyncio.timeout(20):
        await ends.lines.ended

    assert ends.seen == [b"one"]


async def test_whoever_closes_the_stream_is_told_when_it_is_closed(ends: Ends) -> None:
    """The stream's own protocol hears of it, though it reads no more."""
    await ends.lines.take_over(ends.reader)
    ends.writer.close()
    async with asyncio.timeout(20):
        await ends.writer.wait_closed()

    assert ends.lines.ended.done()


async def test_a_line_beyond_the_limit_ends_it(ends: Ends) -> None:
    """And what follows is not looked at."""
    ends.lines = LineProtocol(ends.seen.append, ends.writer.transport, limit_bytes=10)
    await ends.lines.take_over(ends.reader)
    ends.far.sendall(b"x" * 11)
    with pytest.raises(ProtocolError, match="more than 10 bytes"):
        async with asyncio.timeout(20):
            await ends.lines.ended
    ends.far.sendall(b"\nmore\n")
    await asyncio.sleep(0.01)

    assert ends.seen == []


async def test_what_a_line_brings_out_ends_it(ends: Ends) -> None:
    """The session is told why."""

    def refuse(line: bytes) -> None:
        raise ProtocolError("nonsense")

    ends.lines._on_line = refuse
    await ends.lines.take_over(ends.reader)
    ends.far.sendall(b"one\n")
    with pytest.raises(ProtocolError, match="nonsense"):
        async with asyncio.timeout(20):
            await ends.lines.ended


@given(st.lists(st.binary(max_size=6), max_size=8), st.lists(st.integers(1, 5), min_size=1))
def test_lines_are_the_same_however_they_are_cut(words: list[bytes], cuts: list[int]) -> None:
    """The network may cut anywhere."""
    text = b"".join(word.replace(b"\n", b"") + b"\n" for word in words)

    async def read() -> list[bytes]:
        near, far = socket.socketpair()
        with near, far:
            _, writer = await asyncio.open_connection(sock=near)
            seen: list[bytes] = []
            found = LineProtocol(seen.append, writer.transport)
            start = 0
            while start < len(text):
                size = cuts[start % len(cuts)]
                found._feed(text[start : start + size])
                start += size
            writer.close()
            await writer.wait_closed()
        return seen

    assert asyncio.run(read()) == text.split(b"\n")[:-1]
