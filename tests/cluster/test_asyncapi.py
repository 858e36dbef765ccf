"""Real messages, taken from gitquorum.inspect, are what docs/asyncapi.json says: payload, headers and properties.

From queues of both kinds: a quorum queue adds headers of its own to what was looked at before.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from broker.asyncapi import KINDS, document
from broker.kinds import BY_MESSAGE, BY_NAME, TRANSPORT_REPLIES, TRANSPORT_REQUESTS
from broker.topology import DEAD_QUEUE, INSPECT_QUEUE
from node.ports.errors import NoAnswer
from node.protocol.ids import NodeId
from node.protocol.messages import TransportReply, TransportRequest
from tests.asyncapi_check import validator
from tests.cluster.brokers import ONE, TWO, Broker
from tests.cluster.harness import Cluster, Work
from tests.cluster.test_inspect import Management
from tests.cluster.transports import AmqpCluster, amqp_cluster, seen
from tests.unit.broker_samples import EVERY_KIND, claim

pytestmark = pytest.mark.cluster

SAMPLES = {BY_MESSAGE[type(message)]: message for message in EVERY_KIND}


def checked(messages: list[dict[str, Any]]) -> Counter[str]:
    """How many messages of each kind there were, all of them as described."""
    page, found = document(), Counter[str]()
    for each in messages:
        properties = each["properties"]
        word = BY_NAME[properties["type"]].word
        described = page["components"]["messages"][word]
        payload = json.loads(each["payload"])
        validator(word, "payload").validate(payload)
        validator(word, "headers").validate(properties["headers"])
        assert properties["type"] == described["bindings"]["amqp"]["messageType"] == described["name"]
        assert properties["content_type"] == described["contentType"]
        assert properties["correlation_id"] == payload["correlation"]
        request = word in {kind.word for kind in TRANSPORT_REQUESTS}
        operation = page["operations"][f"{'send' if request else 'answer'}{word.capitalize()}"]
        sent = operation["bindings"]["amqp"]
        assert (properties["delivery_mode"], properties["expiration"]) == (sent["deliveryMode"], str(sent["expiration"]))
        assert properties["timestamp"] > 0
        assert each["routing_key"].split(".")[-1] == word
        assert len(each["payload"]) <= described["x-bytes-max"]
        found[word] += 1
    return found


@pytest_asyncio.fixture(params=["classic", "quorum"])
async def cluster(request: pytest.FixtureRequest, broker: Broker) -> AsyncIterator[AmqpCluster]:
    async with amqp_cluster(broker, request.param) as started:
        yield started


async def test_a_message_of_every_kind_through_a_real_broker_is_as_described(cluster: AmqpCluster) -> None:
    answers = iter(TRANSPORT_REPLIES)

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        return SAMPLES[next(answers)]  # type: ignore[return-value]

    one, _ = await cluster.start(ONE), await cluster.start(TWO, handler)
    for kind in TRANSPORT_REQUESTS:
        await one.request(TWO, SAMPLES[kind], timeout_s=5)  # type: ignore[arg-type]
    messages = 2 * len(TRANSPORT_REQUESTS)
    for _ in range(2):
        looked = await seen(cluster.broker, INSPECT_QUEUE, lambda looked: len(looked) >= messages)
        assert set(checked(looked)) == {kind.word for kind in KINDS}, "every kind was seen"
    added = {name for each in looked for name in each["properties"]["headers"] if name.startswith("x-")}
    print(f"\n{cluster.queue_type}: headers that RabbitMQ added: {sorted(added)}")  # noqa: T201
    assert ("x-delivery-count" in added) == (cluster.queue_type == "quorum")


async def test_a_dead_letter_that_was_a_message_keeps_its_headers_beside_rabbitmqs(cluster: AmqpCluster) -> None:
    async def broken(sender: NodeId, message: TransportRequest) -> TransportReply:
        raise RuntimeError("a bug")

    one, _ = await cluster.start(ONE), await cluster.start(TWO, broken)
    with pytest.raises(NoAnswer):
        await one.request(TWO, claim(), timeout_s=1)
    (letter,) = await seen(cluster.broker, DEAD_QUEUE, bool)
    headers = letter["properties"]["headers"]
    assert headers["x-first-death-reason"] == "rejected"
    for word in ("claim", "anything"):
        validator(word, "headers").validate(headers)
        validator(word, "payload").validate(json.loads(letter["payload"]))


def test_what_a_living_cluster_says_is_as_described(own_rabbitmq: Cluster, work: Work) -> None:
    """Three nodes take pushes in turn, two of them are away for one: all but a refusal happens, whatever the timing."""
    name = own_rabbitmq.create(label="asyncapi")
    for node in (1, 2, 3, 1):
        work.commit()
        work.git("push", own_rabbitmq.url(node, name), "HEAD:main")
    own_rabbitmq.pause(2)
    own_rabbitmq.pause(3)
    work.commit()
    work.git("push", own_rabbitmq.url(1, name), "HEAD:main", ok=False)
    own_rabbitmq.resume(2)
    own_rabbitmq.resume(3)
    own_rabbitmq.agree(name)
    messages = Management(own_rabbitmq).messages()
    about = [each for each in messages if each["properties"]["headers"].get("repository") == name]
    found = checked(messages)
    print(f"\n{len(messages)} messages, {len(about)} of them of this test: {dict(found)}")  # noqa: T201
    assert {"claim", "promise", "prepare", "vote", "commit", "acknowledged", "abort"} <= set(checked(about))
