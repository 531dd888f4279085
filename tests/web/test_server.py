"""The serving process: what it does not do for a client."""

from __future__ import annotations

import gzip

from aiohttp import ClientSession, web

from exporter.web.server import runner_of


async def test_a_body_is_not_decoded() -> None:
    """A few kilobytes of gzip would decode to gigabytes, and no endpoint asks for any."""
    sent = gzip.compress(bytes(1 << 20))
    received = []

    async def take(request: web.Request) -> web.Response:
        received.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = runner_of(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with ClientSession() as session:
            headers = {"Content-Encoding": "gzip"}
            await session.post(f"http://{host}:{port}/", data=sent, headers=headers)
    finally:
        await runner.cleanup()

    assert received == [sent]
