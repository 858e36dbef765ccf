"""The asking half of direct HTTP, against a server that a test holds in its hands."""

import asyncio

import pytest
from aiohttp import web

from broker import direct
from broker.codec import Codec
from broker.direct import HttpPeers
from node.ports.errors import PeerUnreachable
from node.protocol.ids import NodeId
from node.protocol.messages import Fetch
from tests.unit.broker_samples import keyrings
from tests.unit.journal_values import REPO, pack

ONE, TWO = NodeId("node-1"), NodeId("node-2")


async def test_a_fetch_does_not_wait_for_ever_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """[all connections to the peer carry packs that move, slowly]"""
    monkeypatch.setattr(direct, "BULK_CONNECTIONS_PER_PEER", 1)
    monkeypatch.setattr(direct, "TURN_S", 0.2)
    ref, inline = pack(1)
    go_on = asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(inline.pack[:1])
        await go_on.wait()
        await response.write(inline.pack[1:])
        return response

    app = web.Application()
    app.router.add_post("/replicate/fetch", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    codec = Codec("test", ONE, 1, keyrings("node-1", "node-2")[ONE], wall_ms=lambda: 1_000_000)
    peers = HttpPeers(codec, {TWO: f"http://{host}:{port}"})
    try:
        first = peers.fetch(TWO, Fetch(REPO, ref, False), stall_s=30.0)
        got = await anext(first)  # it has the only connection
        async with asyncio.timeout(10):
            with pytest.raises(PeerUnreachable, match="node-2 cannot be reached"):
                await anext(peers.fetch(TWO, Fetch(REPO, ref, False), stall_s=30.0))
        go_on.set()
        assert got + b"".join([chunk async for chunk in first]) == inline.pack
    finally:
        go_on.set()
        await peers.stop()
        await runner.cleanup()
