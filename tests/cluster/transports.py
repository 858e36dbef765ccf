"""Small clusters of bare transports, over a real RabbitMQ (``brokers.py``) or real loopback HTTP: for the contract tests."""

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from broker.amqp import AmqpTransport
from broker.codec import Codec
from broker.direct import DirectTransport, HttpPeers
from broker.direct_server import DirectServer
from broker.topology import QueueType
from node.command.sockets import free_ports
from node.ports.transport import DirectHandler, FetchHandler, Handler
from node.protocol.ids import NodeId
from node.protocol.messages import Pong, TransportReply, TransportRequest
from tests.cluster.brokers import MEMBERS, Broker
from tests.unit.broker_samples import keyrings, refused

RINGS = keyrings(*MEMBERS)


def codec(node: NodeId, cluster: str = "test") -> Codec:
    return Codec(cluster, node, 1, RINGS[node], members=MEMBERS)


async def yes(sender: NodeId, message: TransportRequest) -> TransportReply:
    """The simplest peer: refuses, and says by its round what it was asked."""
    return refused(message.ballot.round if hasattr(message, "ballot") else 0)


async def pong(sender: NodeId, message: object) -> Pong:
    return Pong("journal", 1, 0, True)


async def nothing(sender: NodeId, message: object) -> None:
    return None


# ---------------------------------------------------------------- direct


@dataclass
class DirectCluster:
    """Transports over HTTP, each with a tiny web application in front of its ``DirectServer``."""

    name: str = "direct"
    urls: dict[NodeId, str] = field(default_factory=dict)
    servers: dict[NodeId, DirectServer] = field(default_factory=dict)
    peers: dict[NodeId, HttpPeers] = field(default_factory=dict)
    runners: dict[NodeId, web.AppRunner] = field(default_factory=dict)

    async def start(
        self,
        node: NodeId,
        handler: Handler = yes,
        *,
        its_codec: Codec | None = None,
        direct: DirectHandler = pong,
        fetch: FetchHandler = nothing,
    ) -> DirectTransport:
        used = its_codec or codec(node)
        self.servers[node] = DirectServer(used, transport_handler=handler, direct_handler=direct, fetch_handler=fetch)
        await self.listen(node)
        self.peers[node] = HttpPeers(used, self.urls)
        transport = DirectTransport(used, self.peers[node])
        await transport.start(handler)
        return transport

    async def listen(self, node: NodeId) -> None:
        async def replicate(request: web.Request) -> web.StreamResponse:
            answer = await self.servers[node].serve(request.match_info["kind"], await request.read())
            if isinstance(answer.body, bytes):
                return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type)
            response = web.StreamResponse(status=answer.status)
            await response.prepare(request)
            async for chunk in answer.body:
                await response.write(chunk)
            await response.write_eof()
            return response

        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/replicate/{kind}", replicate)
        runner = web.AppRunner(app, shutdown_timeout=0.2)
        await runner.setup()
        port = int(self.urls[node].rsplit(":", 1)[1])
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self.runners[node] = runner

    async def stop(self) -> None:
        for peers in self.peers.values():
            await peers.stop()
        for runner in self.runners.values():
            await runner.cleanup()

    def received(self, node: NodeId) -> Codec:
        return self.servers[node]._codec


@asynccontextmanager
async def direct_cluster() -> Any:
    ports = free_ports(len(MEMBERS))
    cluster = DirectCluster(urls={node: f"http://127.0.0.1:{port}" for node, port in zip(MEMBERS, ports, strict=True)})
    try:
        yield cluster
    finally:
        await cluster.stop()


# ---------------------------------------------------------------- rabbitmq


@dataclass
class AmqpCluster:
    broker: Broker
    queue_type: QueueType = "classic"
    name: str = "rabbitmq"
    transports: list[AmqpTransport] = field(default_factory=list)
    codecs: dict[NodeId, Codec] = field(default_factory=dict)

    async def start(
        self,
        node: NodeId,
        handler: Handler = yes,
        *,
        its_codec: Codec | None = None,
        inspect_length: int = 1000,
        url: str | None = None,
        timeout_s: float = 15.0,
    ) -> AmqpTransport:
        """``url`` if it is not the broker's, with this node's user."""
        used = its_codec or codec(node)
        self.codecs[node] = used
        transport = AmqpTransport(
            used,
            url=url or self.broker.url(node),
            members=MEMBERS,
            inspect_length=inspect_length,
            queue_type=self.queue_type,
        )
        self.transports.append(transport)
        await transport.start(handler)
        await until(lambda: transport.up, transport, timeout_s)
        return transport

    async def stop(self) -> None:
        await asyncio.gather(*(transport.stop() for transport in self.transports))

    def received(self, node: NodeId) -> Codec:
        return self.codecs[node]


@asynccontextmanager
async def amqp_cluster(broker: Broker, queue_type: QueueType = "classic") -> Any:
    await asyncio.to_thread(broker.purge, queue_type)
    cluster = AmqpCluster(broker, queue_type)
    try:
        yield cluster
    finally:
        await cluster.stop()


async def seen(broker: Broker, queue: str, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """What lies in a queue, once that is ``enough``: copies and dead letters come, and what was looked at is put back, a moment
    after the broker told whoever waits for the message itself."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 15.0
    while not enough(found := await asyncio.to_thread(broker.look, queue)):
        assert loop.time() < end, f"not within 15 s, in {queue}: {[each['routing_key'] for each in found]}"
        await asyncio.sleep(0.1)
    return found


async def until(condition: Any, what: object, timeout_s: float = 15.0) -> None:
    """Wait for a condition, or say what it was that did not become so."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while not condition():
        assert loop.time() < end, f"not within {timeout_s} s: {what!r}"
        await asyncio.sleep(0.02)
