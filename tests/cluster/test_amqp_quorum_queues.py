"""Quorum queues, on one live broker: every argument is legal there, and the transport keeps what it promises.

What they are for, outliving a broker of a RabbitMQ cluster, needs several brokers; see ``docs/operations-broker.md``.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pika
import pytest
import pytest_asyncio

from broker.kinds import BY_WORD
from broker.topology import DEAD_QUEUE, DELIVERIES_MAX, INSPECT_QUEUE, VHOST, inbox, routing_key
from node.ports.errors import PeerUnreachable
from node.protocol.ids import NodeId
from node.protocol.messages import Refused, TransportReply, TransportRequest
from tests.cluster.brokers import ADMIN, GHOST, ONE, THREE, TWO, Broker, broker_definitions
from tests.cluster.test_amqp_transport import publish
from tests.cluster.transports import AmqpCluster, amqp_cluster, seen, until
from tests.unit.broker_samples import claim, prepare, refused

pytestmark = pytest.mark.cluster


@pytest_asyncio.fixture
async def cluster(broker: Broker) -> AsyncIterator[AmqpCluster]:
    async with amqp_cluster(broker, "quorum") as started:
        yield started


async def test_the_broker_takes_every_argument_and_has_the_queues_that_were_declared(cluster: AmqpCluster) -> None:
    """Made by the nodes themselves: a broker that did not know an argument would close their channel."""
    wanted = {queue["name"]: queue["arguments"] for queue in broker_definitions("quorum")["queues"]}
    for name in wanted:
        await asyncio.to_thread(cluster.broker.api, f"queues/{VHOST}/{name}", method="DELETE")
    for node in (ONE, TWO, THREE):
        await cluster.start(node, url=cluster.broker.url(ADMIN))
    found = await asyncio.to_thread(cluster.broker.api, f"queues/{VHOST}")
    assert {queue["name"]: queue["arguments"] for queue in found} == wanted
    assert {queue["type"] for queue in found} == {"quorum"}


async def test_requests_are_answered_and_seen_and_a_missing_peer_is_unreachable_at_once(cluster: AmqpCluster) -> None:
    one, _ = await cluster.start(ONE), await cluster.start(TWO)
    assert isinstance(await one.request(TWO, prepare(pack_bytes=100_000), timeout_s=5), Refused)
    with pytest.raises(PeerUnreachable):
        await one.request(GHOST, claim(), timeout_s=10)
    for _ in range(3):
        found = await seen(cluster.broker, INSPECT_QUEUE, lambda messages: len(messages) >= 2)
        assert [each["properties"]["type"] for each in found] == ["gitquorum.prepare.v1", "gitquorum.refused.v1"]


async def test_looking_at_inspect_more_often_than_a_delivery_limit_loses_nothing(cluster: AmqpCluster) -> None:
    """RabbitMQ 4 would drop a message after 20 looks by default."""
    one, _ = await cluster.start(ONE), await cluster.start(TWO)
    await one.request(TWO, claim(), timeout_s=5)
    for _ in range(DELIVERIES_MAX + 5):
        assert len(await seen(cluster.broker, INSPECT_QUEUE, lambda messages: len(messages) >= 2)) == 2


async def test_inspect_keeps_the_last_messages_only(cluster: AmqpCluster) -> None:
    one, _ = await cluster.start(ONE, inspect_length=5), await cluster.start(TWO, inspect_length=5)
    for number in range(1, 11):
        await one.request(TWO, claim(round_=number), timeout_s=5)
    assert len(await seen(cluster.broker, INSPECT_QUEUE, lambda messages: len(messages) >= 5)) == 5


async def test_what_is_no_envelope_goes_to_the_dead_letters(cluster: AmqpCluster) -> None:
    one, two = await cluster.start(ONE), await cluster.start(TWO)
    await asyncio.to_thread(publish, cluster.broker, ONE, routing_key(ONE, TWO, BY_WORD["prepare"]), b"no envelope")
    await until(lambda: two.counters["dead lettered"] == 1, two.counters)
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)

    (letter,) = await seen(cluster.broker, DEAD_QUEUE, bool)
    assert letter["properties"]["headers"]["x-first-death-reason"] == "rejected"


async def test_a_request_that_always_comes_back_is_dead_lettered_in_the_end(cluster: AmqpCluster) -> None:
    """One that ends its node each time must not do so for ever."""

    def take(channel: Any) -> int | None:
        """A delivery's tag; none if nothing comes within 5 s: a quorum queue gives back what it agreed on."""
        give_up_at = time.monotonic() + 5.0
        while time.monotonic() < give_up_at:
            method, _, _ = channel.basic_get(inbox(TWO))
            if method is not None:
                return int(method.delivery_tag)
            time.sleep(0.01)
        return None

    def come_back() -> int:
        """Take it and put it back, as a node does that dies over it; how often that went."""
        with closing(pika.BlockingConnection(pika.URLParameters(cluster.broker.url(ADMIN)))) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish("", inbox(TWO), b"poison")
            times = 0
            while times <= 2 * DELIVERIES_MAX and (tag := take(channel)) is not None:
                channel.basic_reject(tag, requeue=True)
                times += 1
        return times

    assert await asyncio.to_thread(come_back) == DELIVERIES_MAX + 1, "the first delivery, and as many returns"


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


async def test_a_queue_of_the_other_kind_is_told_by_name_and_not_touched(cluster: AmqpCluster) -> None:
    cluster.queue_type = "classic"
    with pytest.raises(AssertionError, match="not within"):
        await cluster.start(ONE, timeout_s=1.0)
    (one,) = cluster.transports
    await until(lambda: "PRECONDITION_FAILED" in one.detail, one)
    assert f"for queue '{inbox(ONE)}'" in one.detail
    await asyncio.to_thread(cluster.broker.api, f"queues/{VHOST}/{inbox(ONE)}", method="DELETE")
    await asyncio.to_thread(cluster.broker.api, f"queues/{VHOST}/gitquorum.node-1.replies", method="DELETE")
    await until(lambda: one.up, one)
