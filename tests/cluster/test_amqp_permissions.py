"""What a node's broker user may not do: every attempt is made, by plain AMQP, and refused with the code that is expected.

Shows 2 of the issue: per-node users that cannot read each other's queue or publish in another's name. What they can do all the
same is tried, too. The tables in ``docs/operations-broker.md`` name the same attempts.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from broker.kinds import BY_WORD
from broker.topology import (
    DEAD_EXCHANGE,
    DEAD_QUEUE,
    EXCHANGE,
    INSPECT_QUEUE,
    NODE_CHANNELS_MAX,
    NODE_CONNECTIONS_MAX,
    OPERATOR,
    SPARE_QUEUES_MAX,
    VHOST,
    QueueType,
    inbox,
    replies,
    routing_key,
    vhost_limits,
)
from node.protocol.ids import NodeId
from node.protocol.messages import Refused, TransportReply, TransportRequest
from tests.cluster.brokers import ADMIN, GHOST, MEMBERS, ONE, THREE, TWO, Broker
from tests.cluster.sources import sources
from tests.cluster.transports import amqp_cluster, codec, seen, until
from tests.unit.broker_samples import claim, refused

pytestmark = pytest.mark.cluster

Act = Callable[[Any], object]

ACCESS_REFUSED, PRECONDITION_FAILED, NOT_ALLOWED = 403, 406, 530
KIND = BY_WORD["prepare"]
FOR_TWO = "*.node%2E2.prepare"
PAGE = Path(__file__).parents[2] / "docs" / "operations-broker.md"


def from_node(user: str) -> pika.BasicProperties:
    return pika.BasicProperties(user_id=user)


READING: dict[str, Act] = {
    "get from another's inbox": lambda c: c.basic_get(inbox(TWO)),
    "get from another's replies": lambda c: c.basic_get(replies(TWO)),
    "consume another's inbox": lambda c: c.basic_consume(inbox(TWO), lambda *_: None),
    "consume another's replies": lambda c: c.basic_consume(replies(TWO), lambda *_: None),
    "get from gitquorum.inspect": lambda c: c.basic_get(INSPECT_QUEUE),
    "get from gitquorum.dead-letters": lambda c: c.basic_get(DEAD_QUEUE),
    "bind its own queue to what is meant for another": lambda c: c.queue_bind(inbox(ONE), EXCHANGE, FOR_TWO),
    "bind its own queue to everything": lambda c: c.queue_bind(inbox(ONE), EXCHANGE, "#"),
    "bind its own queue to another's dead letters": lambda c: c.queue_bind(inbox(ONE), DEAD_EXCHANGE, "*.node%2E2.*"),
    "bind its own queue to all dead letters": lambda c: c.queue_bind(inbox(ONE), DEAD_EXCHANGE, "#"),
    "bind an exchange to everything": lambda c: c.exchange_bind(DEAD_EXCHANGE, EXCHANGE, "#"),
}
WRITING: dict[str, Act] = {
    "publish in another's name": lambda c: c.basic_publish(EXCHANGE, routing_key(TWO, ONE, KIND), b"x", from_node(ONE)),
    "publish into another's queue by the default exchange": lambda c: c.basic_publish("", inbox(TWO), b"x"),
    "publish by amq.topic": lambda c: c.basic_publish("amq.topic", routing_key(ONE, TWO, KIND), b"x"),
    "publish a dead letter": lambda c: c.basic_publish(DEAD_EXCHANGE, routing_key(ONE, TWO, KIND), b"x"),
    "purge another's inbox": lambda c: c.queue_purge(inbox(TWO)),
    "purge gitquorum.inspect": lambda c: c.queue_purge(INSPECT_QUEUE),
}
CHANGING: dict[str, Act] = {
    "declare another's queue": lambda c: c.queue_declare(inbox(TWO), durable=True),
    "declare a queue of any other name": lambda c: c.queue_declare("mine", durable=True),
    "declare an exchange of any other name": lambda c: c.exchange_declare("mine", "fanout"),
    "delete another's queue": lambda c: c.queue_delete(inbox(TWO)),
    "delete the exchange of all": lambda c: c.exchange_delete(EXCHANGE),
    "delete the exchange of the dead letters": lambda c: c.exchange_delete(DEAD_EXCHANGE),
    "delete gitquorum.dead-letters": lambda c: c.queue_delete(DEAD_QUEUE),
    "bind another's queue": lambda c: c.queue_bind(inbox(TWO), EXCHANGE, "*.node-1.prepare"),
    "unbind another's queue": lambda c: c.queue_unbind(inbox(TWO), EXCHANGE, FOR_TWO),
    "unbind another's traffic from gitquorum.inspect": lambda c: c.queue_unbind(INSPECT_QUEUE, EXCHANGE, "*.node%2E2.*"),
}
REFUSED = READING | WRITING | CHANGING
FORGED = "publish with another's user_id"
OWN = "*.node-1.*"
ALLOWED: dict[str, Act] = {
    "bind gitquorum.dead-letters with its own word": lambda c: c.queue_bind(DEAD_QUEUE, EXCHANGE, OWN),
    "bind gitquorum.dead with its own word": lambda c: c.exchange_bind(DEAD_EXCHANGE, EXCHANGE, OWN),
    "reject what it sent to itself": lambda c: reject_own(c),
    "let its own inbox dead-letter in another's name": lambda c: dead_letter_as(c, routing_key(THREE, TWO, KIND)),
}
"""What might be thought to be refused, and is not; the page says what follows."""
GUEST = "log in as guest"
MANAGEMENT = "ask the management UI"


def connect(broker: Broker, user: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(broker.url(user)))


def refusal(broker: Broker, user: str, act: Act) -> tuple[int, str]:
    """The code and the words with which the broker closes the channel; 0 when it lets ``user`` do this."""
    with closing(connect(broker, user)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        try:
            act(channel)
        except ChannelClosedByBroker as closed:
            return closed.reply_code, closed.reply_text
    return 0, ""


def reject_own(channel: Any) -> None:
    channel.basic_publish(EXCHANGE, routing_key(ONE, ONE, KIND), b"x", from_node(ONE))
    reject_one(channel)


def reject_one(channel: Any) -> None:
    """The next of node-1's inbox, to wherever that dead-letters."""
    give_up_at = time.monotonic() + 10
    while (method := channel.basic_get(inbox(ONE))[0]) is None:
        assert time.monotonic() < give_up_at, "nothing came"
    channel.basic_reject(method.delivery_tag, requeue=False)


def dead_letter_as(channel: Any, key: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Node-1's inbox made again, so that what is rejected in it goes to all nodes' exchange by ``key``."""
    forging = {"x-dead-letter-exchange": EXCHANGE, "x-dead-letter-routing-key": key}
    channel.queue_delete(inbox(ONE))
    channel.queue_declare(inbox(ONE), durable=True, arguments={**(arguments or {}), **forging})
    for word in ("claim", "prepare"):
        channel.queue_bind(inbox(ONE), EXCHANGE, f"*.node-1.{word}")


def told(broker: Broker, what: str, code: int, words: str) -> None:
    print(f"\nRabbitMQ {broker.version}: {what}: {code} {words}")  # noqa: T201  # shown by pytest -rP


@pytest.mark.parametrize("what", REFUSED)
def test_a_nodes_broker_user_may_not(broker: Broker, what: str) -> None:
    code, words = refusal(broker, ONE, REFUSED[what])
    told(broker, what, code, words)
    assert code == ACCESS_REFUSED, words
    assert words.startswith("ACCESS_REFUSED")


def test_a_forged_user_id_is_refused(broker: Broker) -> None:
    key = routing_key(ONE, THREE, KIND)
    code, words = refusal(broker, ONE, lambda c: c.basic_publish(EXCHANGE, key, b"x", from_node(TWO)))
    told(broker, FORGED, code, words)
    assert code == PRECONDITION_FAILED
    assert "user_id property set to 'node.2' but authenticated user was 'node-1'" in words


@pytest.mark.parametrize("user", [ONE, OPERATOR])
def test_what_was_refused_to_node_1_is_not_refused_to_everybody(broker: Broker, user: str) -> None:
    """The attempts fail for want of a permission, not because they are wrong."""
    allowed = (
        {
            "get from its own inbox": lambda c: c.basic_get(inbox(ONE)),
            "bind its own queue to what is meant for it": lambda c: c.queue_bind(inbox(ONE), EXCHANGE, "*.node-1.prepare"),
            "publish in its own name": lambda c: c.basic_publish(EXCHANGE, routing_key(ONE, TWO, KIND), b"x", from_node(ONE)),
            "purge its own inbox": lambda c: c.queue_purge(inbox(ONE)),
        }
        if user == ONE
        else {"get from gitquorum.inspect": READING["get from gitquorum.inspect"]}
    )
    for what, act in allowed.items():
        assert refusal(broker, user, act) == (0, ""), what
    broker.purge()


@pytest.mark.parametrize("what", ALLOWED)
def test_a_nodes_broker_user_may_also(broker: Broker, what: str) -> None:
    """So that nobody believes otherwise."""
    try:
        assert refusal(broker, ONE, ALLOWED[what]) == (0, "")
    finally:
        with closing(connect(broker, ADMIN)) as connection:
            connection.channel().queue_unbind(DEAD_QUEUE, EXCHANGE, OWN)
            connection.channel().exchange_unbind(DEAD_EXCHANGE, EXCHANGE, OWN)
        broker.purge()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_a_routing_key_in_anothers_name_can_be_had_by_dead_lettering_and_no_node_believes_it(
    broker: Broker, queue_type: QueueType
) -> None:
    """RabbitMQ asks no topic permission of what a queue dead-letters. It keeps ``user_id``, and nobody can sign for another."""
    heard: list[NodeId] = []

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        heard.append(sender)
        return refused()

    key = routing_key(THREE, TWO, BY_WORD["claim"])
    captured = codec(THREE).seal(claim("node-3"), TWO, timeout_s=5).data
    signed_by_one = json.loads(codec(ONE).seal(claim("node-3"), TWO, timeout_s=5).data)
    lie = json.dumps({**signed_by_one, "sender": THREE}, separators=(",", ":")).encode()
    honest = codec(ONE).seal(claim(), TWO, timeout_s=5).data

    def forge(channel: Any) -> None:
        dead_letter_as(channel, key, {"x-queue-type": queue_type})
        for body, properties in ((captured, from_node(ONE)), (captured, None), (lie, from_node(ONE)), (honest, from_node(ONE))):
            channel.basic_publish(EXCHANGE, routing_key(ONE, ONE, BY_WORD["claim"]), body, properties)
            reject_one(channel)

    def forged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [each for each in messages if each["routing_key"] == key]

    async with amqp_cluster(broker, queue_type) as cluster:
        two = await cluster.start(TWO, handler)
        assert await asyncio.to_thread(refusal, broker, ONE, forge) == (0, "")
        copies = forged(await seen(broker, INSPECT_QUEUE, lambda messages: len(forged(messages)) == 4))
        assert [each["properties"].get("user_id") for each in copies] == [ONE, None, ONE, ONE], "the broker carried all four"
        await until(lambda: heard, two.counters)
        await until(lambda: two.counters["dead lettered"] == 3, two.counters)
        assert (two.counters["wrong user"], two.counters["refused"]) == (2, 1), "captured ones; the lie"
        assert cluster.received(TWO).refused == {"bad signature": 1}
        assert heard == [ONE], "a key is no sender: what node-1 signed is node-1's, whatever it says"
    await asyncio.to_thread(broker.purge)


def test_the_operator_may_look_at_the_shelves_and_do_nothing_else(broker: Broker) -> None:
    shelves = {"get from gitquorum.inspect", "get from gitquorum.dead-letters", "purge gitquorum.inspect"}
    for what, act in REFUSED.items():
        expected = 0 if what in shelves else ACCESS_REFUSED  # who may read a queue may empty it
        assert refusal(broker, OPERATOR, act)[0] == expected, what


TRY = """
import sys, pika
try:
    connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        connection.channel()
except pika.exceptions.AMQPError as error:
    print(repr(error))
"""


def refused_when_opening(url: str, channels: int = 0) -> str:
    """How the broker refuses a connection, or that many channels; in a process of its own, since pika leaves sockets behind."""
    done = subprocess.run(
        [sys.executable, "-c", TRY, url, str(channels)], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


HOLD = """
import sys, time, pika
held, give_up_at = [], time.monotonic() + 20
while len(held) < int(sys.argv[2]):
    try:
        held.append(pika.BlockingConnection(pika.URLParameters(sys.argv[1])))
    except pika.exceptions.AMQPError:
        if time.monotonic() > give_up_at:
            raise
        time.sleep(0.2)
print("held", flush=True)
sys.stdin.read()
for connection in held:
    connection.close()
"""


@contextmanager
def holding(url: str, connections: int) -> Iterator[None]:
    """That many at once, by a process of its own."""
    command = [sys.executable, "-c", HOLD, url, str(connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n", "they are fewer than a user may have"
            yield
        finally:
            holder.stdin.close()
            holder.wait(timeout=30)


def in_the_end(attempt: Callable[[], str], wanted: str) -> str:
    """What an attempt is told once RabbitMQ has counted: it counts what was opened and closed a moment later. ``wanted`` is a
    part of it, or empty if nothing is refused."""
    give_up_at = time.monotonic() + 20
    while True:
        words = attempt()
        if (wanted in words if wanted else not words) or time.monotonic() > give_up_at:
            return words
        time.sleep(0.5)


def test_there_is_no_guest_and_a_node_is_nobody_in_the_management_ui(broker: Broker) -> None:
    if not (source := sources().users) or not source.mortal:
        pytest.skip("who else has an account on a broker that was given is not ours to say")
    words = refused_when_opening(f"amqp://guest:guest@{broker.host}:{broker.amqp_port}/{VHOST}")
    told(broker, GUEST, ACCESS_REFUSED, words)
    assert f"({ACCESS_REFUSED})" in words
    with pytest.raises(HTTPError) as unauthorized:
        broker.api("overview", user=ONE)
    told(broker, MANAGEMENT, unauthorized.value.code, "")
    assert unauthorized.value.code == 401
    assert "guest" not in {user["name"] for user in broker.api("users")}


def test_a_node_that_leaks_connections_or_channels_is_stopped_and_its_peers_are_not(broker: Broker) -> None:
    """The ghost leaks: no other test has its user, whose connections and channels are counted for a moment after their end."""
    refused, leaks = f"({NOT_ALLOWED})", broker.url(GHOST)
    assert in_the_end(lambda: refused_when_opening(leaks, channels=NODE_CHANNELS_MAX), "") == ""
    words = in_the_end(lambda: refused_when_opening(leaks, channels=NODE_CHANNELS_MAX + 1), refused)
    told(broker, "one channel too many", NOT_ALLOWED, words)
    assert refused in words
    assert f"the maximum allowed user limit of ({NODE_CHANNELS_MAX})" in words
    with holding(leaks, NODE_CONNECTIONS_MAX):
        words = in_the_end(lambda: refused_when_opening(leaks), refused)
        told(broker, "one connection too many", NOT_ALLOWED, words)
        assert refused in words
        assert f"user connection limit ({NODE_CONNECTIONS_MAX}) is reached" in words
        room = NODE_CHANNELS_MAX // 2  # those that an earlier test closed, and those that the next one opens
        assert refused_when_opening(broker.url(TWO), channels=room) == ""


def test_the_vhost_takes_some_queues_by_hand_and_then_no_more(broker: Broker) -> None:
    limit = vhost_limits(MEMBERS).queues
    assert limit is not None

    def declare_too_many(channel: Any) -> None:
        for number in range(limit + 1):
            channel.queue_declare(f"by-hand-{number}", durable=True, arguments={"x-max-length": 1})

    try:
        code, words = refusal(broker, ADMIN, declare_too_many)
        told(broker, "one queue too many", code, words)
        assert code == PRECONDITION_FAILED
        names = [queue["name"] for queue in broker.api(f"queues/{VHOST}?columns=name")]
        assert len(names) == limit
        assert sum(name.startswith("by-hand-") for name in names) >= SPARE_QUEUES_MAX
    finally:
        broker.purge()


def test_the_live_broker_has_the_limits_that_the_topology_states(broker: Broker) -> None:
    (vhost,) = broker.api(f"vhost-limits/{VHOST}")
    assert vhost["value"] == dict(vhost_limits(MEMBERS))
    limits = {each["user"]: each["value"] for each in broker.api("user-limits")}
    for node in MEMBERS:
        assert limits[node] == {"max-connections": NODE_CONNECTIONS_MAX, "max-channels": NODE_CHANNELS_MAX}


async def test_an_inspect_queue_that_a_node_deletes_is_no_loss_to_the_others(broker: Broker) -> None:
    """The one thing of everybody's that a node may delete, since its length is a node's setting."""
    async with amqp_cluster(broker) as cluster:
        two, three = await cluster.start(TWO), await cluster.start(THREE)
        assert await asyncio.to_thread(refusal, broker, ONE, lambda c: c.queue_delete(INSPECT_QUEUE)) == (0, "")
        assert isinstance(await two.request(THREE, claim("node.2"), timeout_s=5), Refused)
        assert three.up
        two._consumer._session.lose("a test") if two._consumer._session else None
        await until(lambda: two._consumer.link.reconnects >= 1 and two.up, two)
        assert INSPECT_QUEUE in {queue["name"] for queue in await asyncio.to_thread(broker.api, f"queues/{VHOST}")}


def test_the_manual_names_every_attempt() -> None:
    page = PAGE.read_text()
    missing = [what for what in (*REFUSED, *ALLOWED, FORGED, GUEST, MANAGEMENT) if what not in page]
    assert not missing
