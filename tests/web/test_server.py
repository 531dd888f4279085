"""The serving process: what clients cannot take from it."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress

import pytest
from aiohttp import ClientSession, web

from exporter.web import server
from exporter.web.connections import Connections
from exporter.web.limits import Limits
from tests.fakeqmp import until

_HALF = b"GET / HTTP/1.1\r\nHost: x\r\n"
_WHOLE = _HALF + b"\r\n"


class Served:
    """A server of one page."""

    def __init__(self, connections: Connections, address: tuple[str, int]) -> None:
        self.connections = connections
        self.address = address
        self.received: list[bytes] = []
        #: Answers are given while it is set.
        self.answering = asyncio.Event()
        self.answering.set()

    async def page(self, request: web.Request) -> web.Response:
        """Answer GET at once, and POST with the body read."""
        await self.answering.wait()
        if request.method == "POST":
            self.received.append(await request.read())
        return web.Response(text="page")

    @asynccontextmanager
    async def client(
        self, sent: bytes
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Connect and send so much."""
        reader, writer = await asyncio.open_connection(*self.address)
        with closing(writer):
            writer.write(sent)
            yield reader, writer


Serve = Callable[[Limits], Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves with limits."""
    async with AsyncExitStack() as stack:

        async def start(limits: Limits) -> Served:
            app = web.Application()
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            served = Served(None, ("", 0))  # type: ignore[arg-type]
            app.router.add_route("*", "/", served.page)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            assert runner.server is not None
            served.connections = Connections(runner.server, limits)
            stack.push_async_callback(served.connections.close)
            [sock] = server.listen("127.0.0.1:0")
            served.address = sock.getsockname()
            served.connections.listen(sock)
            return served

        yield start


async def _ended(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the connection is closed."""
    got = b""
    with suppress(ConnectionError):
        while more := await reader.read(1 << 16):
            got += more
    return got


async def test_a_body_is_not_decoded(serve: Serve) -> None:
    """A few kilobytes of gzip would decode to gigabytes, and no endpoint asks for any."""
    served = await serve(Limits())
    sent = gzip.compress(bytes(1 << 20))
    host, port = served.address
    async with ClientSession() as session:
        headers = {"Content-Encoding": "gzip"}
        await session.post(f"http://{host}:{port}/", data=sent, headers=headers)

    assert served.received == [sent]


async def test_a_body_that_no_page_asked_for_is_not_read(serve: Serve) -> None:
    """But for a small part, and what the kernel takes: the answer comes, then the end."""
    served = await serve(Limits(linger_seconds=1.0))
    head = b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk, sent = b"10000\r\n" + bytes(1 << 16) + b"\r\n", 0
    async with served.client(head) as (reader, writer):
        answer = asyncio.ensure_future(_ended(reader))
        with suppress(ConnectionError):
            while True:
                writer.write(chunk)
                await writer.drain()
                sent += len(chunk)
        assert (await answer).endswith(b"page")

    assert sent < 32 << 20


async def test_the_rest_of_a_small_body_is_read_and_the_connection_stays(serve: Serve) -> None:
    """A client that sends one by mistake has its answer, and may go on."""
    served = await serve(Limits())
    async with served.client(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n") as (
        reader,
        writer,
    ):
        await reader.readuntil(b"page")
        writer.write(bytes(40000) + _WHOLE)
        assert await reader.readuntil(b"page")


@pytest.mark.parametrize("sent", [b"", b"GET", _HALF, _HALF + b"X: " + b"x" * 8000])
async def test_a_request_that_is_not_complete_in_time_is_given_up(
    serve: Serve, sent: bytes
) -> None:
    """Thousands of them would hold memory and descriptors for as long as they like."""
    served = await serve(Limits(head_seconds=0.05))
    async with served.client(sent) as (reader, _):
        assert await _ended(reader) == b""
    await until(lambda: not len(served.connections))


async def test_headers_that_come_one_by_one_have_no_more_time(serve: Serve) -> None:
    """A byte now and then would keep a connection for ever."""
    served = await serve(Limits(head_seconds=0.1))
    async with served.client(_HALF) as (reader, writer):
        ended = asyncio.ensure_future(_ended(reader))
        while not ended.done():
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.01)
        assert await ended == b""


async def test_a_second_request_has_as_long_for_its_headers(serve: Serve) -> None:
    """It is no idle connection any more when it begins."""
    served = await serve(Limits(head_seconds=0.1, idle_seconds=3600))
    async with served.client(_WHOLE) as (reader, writer):
        await reader.readuntil(b"page")
        writer.write(_HALF)
        assert await _ended(reader) == b""


async def test_an_idle_connection_is_kept_for_the_next_scrape(serve: Serve) -> None:
    """For longer than headers may take: another one that waits for its headers is gone by then."""
    served = await serve(Limits(head_seconds=0.1, idle_seconds=3600))
    async with served.client(_WHOLE) as (reader, writer):
        await reader.readuntil(b"page")
        for _ in range(2):
            async with served.client(_HALF) as (other, _):
                assert await _ended(other) == b""
            writer.write(_WHOLE)
            assert await reader.readuntil(b"page")


async def test_an_idle_connection_is_closed_in_the_end(serve: Serve) -> None:
    """Nobody may be at the other end."""
    served = await serve(Limits(idle_seconds=0.1))
    async with served.client(_WHOLE) as (reader, _):
        assert (await _ended(reader)).endswith(b"page")
    await until(lambda: not len(served.connections))


async def test_an_answer_may_take_longer_than_headers(serve: Serve) -> None:
    """A VM that does not answer costs seconds."""
    served = await serve(Limits(head_seconds=0.1, idle_seconds=3600))
    served.answering.clear()
    async with served.client(_WHOLE) as (reader, _):
        for _ in range(2):
            async with served.client(_HALF) as (other, _):
                assert await _ended(other) == b""
        served.answering.set()
        assert await reader.readuntil(b"page")


async def test_at_the_cap_who_never_asked_makes_room_and_an_idle_scraper_stays(
    serve: Serve,
) -> None:
    """A flood of half requests keeps nobody out."""
    served = await serve(Limits(connections=4))
    async with AsyncExitStack() as stack:
        scraper, asking = await stack.enter_async_context(served.client(_WHOLE))
        await scraper.readuntil(b"page")
        half = [await stack.enter_async_context(served.client(_HALF)) for _ in range(20)]
        for reader, _ in half[:17]:
            assert await _ended(reader) == b""
        assert len(served.connections) == 4
        async with served.client(_WHOLE) as (reader, _):
            assert await reader.readuntil(b"page")
        asking.write(_WHOLE)
        assert await scraper.readuntil(b"page")


async def test_at_the_cap_no_request_is_given_up_for_another_client(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Who comes then is refused, and a line says so: not one for each."""
    served = await serve(Limits(connections=2))
    served.answering.clear()
    async with AsyncExitStack() as stack:
        asking = [await stack.enter_async_context(served.client(_WHOLE)) for _ in range(2)]
        await until(lambda: len(served.connections) == 2 and not served.connections._new)
        for _ in range(20):
            async with served.client(_WHOLE) as (reader, _):
                assert await _ended(reader) == b""
        served.answering.set()
        for reader, _ in asking:
            assert await reader.readuntil(b"page")

    said = [record.message for record in caplog.records]
    assert set(said) == {"connection refused: all are in use"}
    assert len(said) < 10


async def test_what_is_no_http_leaves_few_lines_and_no_version(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reaches the port can send as much of it as they like."""
    caplog.set_level("INFO")
    served = await serve(Limits())
    for _ in range(100):
        async with served.client(b"GET / HTTP/1.1\nHost: x\r\n\r\n") as (reader, _):
            answer = await _ended(reader)
            assert answer.startswith(b"HTTP/1.0 400 ")
            assert b"Server: qemu-block-exporter\r\n" in answer
            assert b"ython" not in answer

    assert {record.message for record in caplog.records} == {"request is not valid HTTP"}
    assert len(caplog.records) < 10
