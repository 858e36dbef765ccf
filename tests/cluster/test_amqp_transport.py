"""What is RabbitMQ's own: permissions, dead letters, the inspect queue, and a broker that dies and comes back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pika
import pytest
import pytest_asyncio

from broker.kinds import BY_WORD
from broker.topology import DEAD_EXCHANGE, DEAD_QUEUE, EXCHANGE, INSPECT_QUEUE, OPERATOR, VHOST, inbox, routing_key
from node.ports.errors import NoAnswer, PeerUnreachable, TransportError
from node.protocol.ids import NodeId
from node.protocol.messages import Refused, TransportReply, TransportRequest
from tests.cluster.brokers import ADMIN, ONE, PASSWORDS, THREE, TWO, Broker, broker_definitions
from tests.cluster.transports import AmqpCluster, amqp_cluster, codec, seen, until
from tests.unit.broker_samples import claim, prepare, refused

pytestmark = pytest.mark.cluster


@pytest_asyncio.fixture
async def cluster(broker: Broker) -> AsyncIterator[AmqpCluster]:
    async with amqp_cluster(broker) as started:
        yield started


async def test_a_prepare_can_be_fetched_from_inspect_read_and_is_still_there(cluster: AmqpCluster) -> None:
    one, _ = await cluster.start(ONE), await cluster.start(TWO)
    message = prepare(pack_bytes=100)
    await one.request(TWO, message, timeout_s=5)
    for _ in range(2):
        found = await seen(cluster.broker, INSPECT_QUEUE, lambda messages: len(messages) >= 2)
        (asked,) = (item for item in found if item["properties"]["type"] == "gitquorum.prepare.v1")
        properties, body = asked["properties"], json.loads(asked["payload"])
        assert asked["routing_key"] == "node-1.node%2E2.prepare"
        assert properties["message_id"] == properties["correlation_id"] == body["id"]
        assert properties["reply_to"] == "gitquorum.node-1.replies"
        assert (properties["app_id"], properties["user_id"]) == ("gitquorum", "node-1")
        assert (properties["content_type"], properties["delivery_mode"]) == ("application/json", 2)
        assert abs(properties["timestamp"] - time.time()) < 60
        headers = properties["headers"]
        assert (headers["sender"], headers["receiver"]) == ("node-1", "node.2")
        assert (headers["repository"], headers["version"]) == ("alice/project", 1)
        assert headers["ballot"] == "3.node-1.1"
        assert headers["deadline"].endswith("+00:00")
        assert body["body"]["change"]["requests"][0]["txn"] == "tx-1"
        (answer,) = (item for item in found if item["properties"]["type"] == "gitquorum.refused.v1")
        assert answer["properties"]["correlation_id"] == properties["message_id"]


def connect(broker: Broker, user: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(broker.url(user)))


KEY = BY_WORD["prepare"]


def publish(broker: Broker, user: str, key: str, body: bytes) -> None:
    connection = connect(broker, user)
    connection.channel().basic_publish(EXCHANGE, key, body, pika.BasicProperties(user_id=user))
    connection.close()


async def test_what_is_no_envelope_goes_to_the_dead_letters_and_traffic_goes_on(cluster: AmqpCluster) -> None:
    one, two = await cluster.start(ONE), await cluster.start(TWO)
    key = routing_key(ONE, TWO, KEY)
    await asyncio.to_thread(publish, cluster.broker, ONE, key, b"\xff not an envelope")
    await until(lambda: two.counters["dead lettered"] == 1, two.counters)
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)
    assert cluster.received(TWO).refused == {"malformed": 1}
    (dead,) = await seen(cluster.broker, DEAD_QUEUE, bool)
    assert dead["properties"]["headers"]["x-first-death-reason"] == "rejected"


async def test_a_true_message_carried_by_another_broker_user_is_not_taken(cluster: AmqpCluster) -> None:
    two = await cluster.start(TWO)
    sealed = codec(ONE).seal(claim(), TWO, timeout_s=5)
    await asyncio.to_thread(publish, cluster.broker, "node-3", "node-3.node%2E2.claim", sealed.data)
    await until(lambda: two.counters["wrong user"] == 1, two.counters)


async def test_a_reply_of_another_node_than_was_asked_is_not_taken(cluster: AmqpCluster) -> None:
    ids: list[str] = []
    one = await cluster.start(ONE)

    async def silent(sender: NodeId, message: TransportRequest) -> TransportReply:
        ids.extend(one._outstanding)
        await asyncio.sleep(30)
        return refused()

    await cluster.start(TWO, silent)
    asking = asyncio.create_task(one.request(TWO, claim(), timeout_s=2))
    await until(lambda: ids, ids)
    forged = codec(NodeId("node-3")).seal(refused(), ONE, timeout_s=5, correlation=ids[0])
    await asyncio.to_thread(publish, cluster.broker, "node-3", "node-3.node-1.refused", forged.data)
    with pytest.raises(NoAnswer):
        await asking
    await until(lambda: one.counters["wrong answer"] == 1, one.counters)


async def test_connections_bear_readable_names_and_are_two_per_node(cluster: AmqpCluster) -> None:
    await cluster.start(ONE)

    def names() -> set[str]:
        found = cluster.broker.api("connections")
        return {item.get("client_properties", {}).get("connection_name", "") for item in found}

    wanted = {"gitquorum node-1 publish", "gitquorum node-1 consume"}
    for _ in range(100):
        if wanted <= await asyncio.to_thread(names):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(await asyncio.to_thread(names))


async def test_a_deleted_queue_is_declared_again(cluster: AmqpCluster) -> None:
    one, two = await cluster.start(ONE), await cluster.start(TWO)
    await asyncio.to_thread(cluster.broker.api, f"queues/{VHOST}/{inbox(TWO)}", method="DELETE")
    await until(lambda: two._consumer.link.reconnects >= 1 and two.up, two)
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)


async def test_nodes_that_share_a_user_declare_by_themselves_exactly_what_definitions_say(cluster: AmqpCluster) -> None:
    """On a broker that only a URL is known of, nobody loads definitions."""

    def shape() -> tuple[dict[str, Any], set[tuple[str, str, str]], dict[str, str]]:
        queues = {q["name"]: q["arguments"] for q in cluster.broker.api(f"queues/{VHOST}")}
        bindings = cluster.broker.api(f"bindings/{VHOST}")
        exchanges = {e["name"]: e["type"] for e in cluster.broker.api(f"exchanges/{VHOST}") if "gitquorum" in e["name"]}
        return queues, {(b["source"], b["destination"], b["routing_key"]) for b in bindings if b["source"]}, exchanges

    data = broker_definitions()
    said = (
        {q["name"]: q["arguments"] for q in data["queues"]},
        {(b["source"], b["destination"], b["routing_key"]) for b in data["bindings"]}
        - {(DEAD_EXCHANGE, DEAD_QUEUE, "*.ghost.*")},
        {e["name"]: e["type"] for e in data["exchanges"]},
    )
    for queue in said[0]:
        await asyncio.to_thread(cluster.broker.api, f"queues/{VHOST}/{queue}", method="DELETE")
    for exchange in said[2]:
        await asyncio.to_thread(cluster.broker.api, f"exchanges/{VHOST}/{exchange}", method="DELETE")
    assert await asyncio.to_thread(shape) == ({}, set(), {})
    one, *_ = [await cluster.start(node, url=cluster.broker.url(ADMIN)) for node in (ONE, TWO, THREE)]
    assert await asyncio.to_thread(shape) == said
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)


async def test_nodes_do_without_the_dead_letters_where_they_may_not_make_them(cluster: AmqpCluster) -> None:
    await asyncio.to_thread(cluster.broker.api, f"queues/{VHOST}/{DEAD_QUEUE}", method="DELETE")
    one, two = await cluster.start(ONE), await cluster.start(TWO)
    await asyncio.to_thread(publish, cluster.broker, ONE, routing_key(ONE, TWO, KEY), b"no envelope")
    await until(lambda: two.counters["dead lettered"] == 1, two.counters)
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)


async def test_another_inspect_length_makes_the_queue_again_and_zero_removes_it(cluster: AmqpCluster) -> None:
    def lengths() -> list[int]:
        queues = cluster.broker.api(f"queues/{VHOST}")
        return [q["arguments"]["x-max-length"] for q in queues if q["name"] == INSPECT_QUEUE]

    for wanted, expected in ((5, [5]), (0, []), (1000, [1000])):
        transport = await cluster.start(ONE, inspect_length=wanted)
        assert await asyncio.to_thread(lengths) == expected
        await transport.stop()


async def test_inspect_keeps_the_last_messages_only(cluster: AmqpCluster) -> None:
    one, _ = await cluster.start(ONE, inspect_length=5), await cluster.start(TWO, inspect_length=5)
    for number in range(1, 21):
        await one.request(TWO, claim(round_=number), timeout_s=5)

    def newest(messages: list[dict[str, Any]]) -> bool:
        rounds = [each["properties"]["headers"].get("ballot", "").split(".")[0] for each in messages]
        return len(messages) == 5 and rounds[-2] == "20"

    assert len(await seen(cluster.broker, INSPECT_QUEUE, newest)) == 5
    await cluster.start(NodeId("node-3"))


async def test_an_unacknowledged_request_comes_again_after_a_lost_connection(cluster: AmqpCluster) -> None:
    came: list[TransportRequest] = []

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        came.append(message)
        if len(came) == 1:
            two._consumer._session.lose("a test") if two._consumer._session else None
            await asyncio.sleep(0.3)
        return refused()

    one, two = await cluster.start(ONE), await cluster.start(TWO, handler)
    assert isinstance(await one.request(TWO, claim(), timeout_s=10), Refused)
    await until(lambda: len(came) == 2, came)
    assert came[0] == came[1]
    await until(lambda: one.counters["late"] == 1, one.counters)


async def test_an_exception_in_a_callback_does_not_cost_the_connection(
    cluster: AmqpCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await cluster.start(ONE), await cluster.start(TWO)
    before = (one._consumer.link.reconnects, two._consumer.link.reconnects)
    real = one._open

    def broken(delivery: Any) -> Any:
        monkeypatch.setattr(one, "_open", real)
        raise RuntimeError("a bug")

    monkeypatch.setattr(one, "_open", broken)
    with pytest.raises(NoAnswer):
        await one.request(TWO, claim(), timeout_s=0.5)
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)
    assert (one._consumer.link.reconnects, two._consumer.link.reconnects) == before


async def test_a_blocked_publisher_fails_fast_and_says_why(cluster: AmqpCluster) -> None:
    one, _ = await cluster.start(ONE), await cluster.start(TWO)
    one._publisher.link._say(blocked="blocked by the broker: low on memory")
    with pytest.raises(PeerUnreachable, match="low on memory"):
        await one.request(TWO, claim(), timeout_s=10)
    assert not one.up
    assert "low on memory" in one.detail
    one._publisher.link._say(blocked="")
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)


async def test_a_broker_that_is_not_there_is_told_in_one_line_without_the_password(broker: Broker) -> None:
    from broker.amqp import AmqpTransport

    transport = AmqpTransport(
        codec(ONE), url=f"amqp://node-1:{'geheim'}@127.0.0.1:1/gitquorum", members=[ONE, TWO], inspect_length=10
    )

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        return refused()

    await transport.start(handler)
    await until(lambda: "refused" in transport.detail, transport)
    assert not transport.up
    assert "127.0.0.1:1/gitquorum" in transport.detail
    assert "geheim" not in transport.detail + repr(transport)
    with pytest.raises(PeerUnreachable):
        await transport.request(TWO, claim(), timeout_s=10)
    await transport.stop()


async def test_a_wrong_password_is_told(broker: Broker) -> None:
    from broker.amqp import AmqpTransport

    url = broker.url(ONE).replace("password%20of", "wrong")
    transport = AmqpTransport(codec(ONE), url=url, members=[ONE, TWO], inspect_length=10)

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        return refused()

    await transport.start(handler)
    await until(lambda: "ACCESS_REFUSED" in transport.detail or "uthentication" in transport.detail, transport)
    await transport.stop()


async def test_a_killed_broker_fails_requests_fast_and_traffic_is_back_soon_after_it(mortal_broker: Broker) -> None:
    async with amqp_cluster(mortal_broker) as cluster:
        one, _ = await cluster.start(ONE), await cluster.start(TWO)
        await one.request(TWO, prepare(), timeout_s=5)
        await asyncio.to_thread(mortal_broker.kill)
        await until(lambda: not any(transport.up for transport in cluster.transports), cluster.transports)
        began = time.monotonic()
        with pytest.raises(PeerUnreachable, match=r"127\.0\.0\.1"):
            await one.request(TWO, prepare(), timeout_s=10)
        assert time.monotonic() - began < 0.5
        await asyncio.to_thread(mortal_broker.start)
        began = time.monotonic()
        while True:
            try:
                await one.request(TWO, prepare(), timeout_s=1)
                break
            except TransportError:
                assert time.monotonic() - began < 5, one
                await asyncio.sleep(0.05)


async def test_the_operator_sees_the_management_ui_and_nothing_of_the_inboxes(broker: Broker) -> None:
    assert PASSWORDS[OPERATOR]
    overview = await asyncio.to_thread(broker.api, "overview", user=OPERATOR)
    assert overview["rabbitmq_version"]
    with pytest.raises(OSError, match=r"40[013]"):
        await asyncio.to_thread(broker.look, inbox(ONE), 1, OPERATOR)
