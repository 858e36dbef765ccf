"""Small clusters of bare transports, over a real private RabbitMQ or real loopback HTTP: what the contract tests run on."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

from aiohttp import web

from broker.amqp import AmqpTransport
from broker.codec import Codec
from broker.direct import DirectTransport, HttpPeers
from broker.direct_server import DirectServer
from broker.topology import OPERATOR, VHOST, definitions, inbox, replies
from node.command.rabbitmq import Endpoints, PrivateRabbitmq
from node.ports import DirectHandler, FetchHandler, Handler
from node.protocol.ids import NodeId
from node.protocol.messages import Pong, TransportReply, TransportRequest
from tests.unit.broker_samples import keyrings, refused

ONE, TWO, THREE, GHOST = (NodeId(name) for name in ("node-1", "node.2", "node-3", "ghost"))
MEMBERS = (ONE, TWO, THREE, GHOST)
"""The ghost is a member that was never started: nothing listens, and it has no queues. ``node.2`` has a dot in its id."""
RINGS = keyrings(*MEMBERS)
PASSWORDS = {**{str(node): f"password of {node}" for node in MEMBERS}, OPERATOR: "look", "admin": "admin"}


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
    from node.command.rabbitmq import _free_ports

    ports = _free_ports(len(MEMBERS))
    cluster = DirectCluster(urls={node: f"http://127.0.0.1:{port}" for node, port in zip(MEMBERS, ports, strict=True)})
    try:
        yield cluster
    finally:
        await cluster.stop()


# ---------------------------------------------------------------- rabbitmq


def broker_definitions() -> dict[str, Any]:
    """The real ones, without the ghost's queues, and with an administrator who cleans up between tests."""
    data = definitions(MEMBERS, PASSWORDS, 1000)
    ghostly = {inbox(GHOST), replies(GHOST)}
    data["queues"] = [queue for queue in data["queues"] if queue["name"] not in ghostly]
    data["bindings"] = [
        binding
        for binding in data["bindings"]
        if binding["destination"] not in ghostly and not binding["routing_key"].startswith("*.ghost.")
    ]
    data["users"].append({**data["users"][0], "name": "admin", "tags": ["administrator"]} | _hash_of("admin"))
    data["permissions"].append({"user": "admin", "vhost": VHOST, "configure": ".*", "write": ".*", "read": ".*"})
    return data


def _hash_of(user: str) -> dict[str, Any]:
    (entry,) = definitions([NodeId(user)], {user: PASSWORDS[user]}, 0)["users"]
    return {"password_hash": entry["password_hash"]}


@dataclass
class Broker:
    """A private RabbitMQ, and its management API."""

    server: PrivateRabbitmq
    endpoints: Endpoints

    def url(self, user: str) -> str:
        return f"amqp://{quote(user)}:{quote(PASSWORDS[user])}@127.0.0.1:{self.endpoints.amqp_port}/{VHOST}"

    def api(self, path: str, *, user: str = "admin", method: str = "GET", body: Any = None) -> Any:
        from base64 import b64encode

        request = Request(
            f"http://127.0.0.1:{self.endpoints.management_port}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + b64encode(f"{user}:{PASSWORDS[user]}".encode()).decode(),
                "Content-Type": "application/json",
            },
        )
        with urlopen(request, timeout=10) as response:
            text = response.read()
        return json.loads(text) if text else None

    def look(self, queue: str, count: int = 1000, user: str = OPERATOR) -> list[dict[str, Any]]:
        """What lies in a queue, which keeps it."""
        body = {"count": count, "ackmode": "ack_requeue_true", "encoding": "auto"}
        found: list[dict[str, Any]] = self.api(f"queues/{VHOST}/{queue}/get", user=user, method="POST", body=body)
        return found

    def purge(self) -> None:
        self.api("definitions", method="POST", body=broker_definitions())  # what an earlier test deleted
        for queue in self.api(f"queues/{VHOST}?columns=name"):
            self.api(f"queues/{VHOST}/{queue['name']}/contents", method="DELETE")


@dataclass
class AmqpCluster:
    broker: Broker
    name: str = "rabbitmq"
    transports: list[AmqpTransport] = field(default_factory=list)
    codecs: dict[NodeId, Codec] = field(default_factory=dict)

    async def start(
        self, node: NodeId, handler: Handler = yes, *, its_codec: Codec | None = None, inspect_length: int = 1000
    ) -> AmqpTransport:
        used = its_codec or codec(node)
        self.codecs[node] = used
        transport = AmqpTransport(used, url=self.broker.url(node), members=MEMBERS, inspect_length=inspect_length)
        self.transports.append(transport)
        await transport.start(handler)
        await until(lambda: transport.up, transport)
        return transport

    async def stop(self) -> None:
        await asyncio.gather(*(transport.stop() for transport in self.transports))

    def received(self, node: NodeId) -> Codec:
        return self.codecs[node]


@asynccontextmanager
async def amqp_cluster(broker: Broker) -> Any:
    await asyncio.to_thread(broker.purge)
    cluster = AmqpCluster(broker)
    try:
        yield cluster
    finally:
        await cluster.stop()


def private_broker(folder: Path) -> Iterator[Broker]:
    server = PrivateRabbitmq(folder)
    try:
        yield Broker(server, server.start(broker_definitions()))
    finally:
        server.kill()


async def until(condition: Any, what: object, timeout_s: float = 15.0) -> None:
    """Wait for a condition, or say what it was that did not become so."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while not condition():
        assert loop.time() < end, f"not within {timeout_s} s: {what!r}"
        await asyncio.sleep(0.02)
