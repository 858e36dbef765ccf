"""A URL with several brokers: one that is dead is passed over, and the next is taken when the one in use dies.

Two brokers that know nothing of each other stand in for a RabbitMQ cluster: enough for what a node does, which is to connect.
"""

import asyncio
import time

import pytest

from node.command.sockets import free_ports
from node.protocol.messages import Refused
from tests.cluster.brokers import ONE, TWO, Broker
from tests.cluster.transports import amqp_cluster, until
from tests.unit.broker_samples import claim

pytestmark = pytest.mark.cluster


def url_of(user: str, *brokers: Broker | int) -> str:
    """Of the brokers in this order; a number is a port where none is."""
    first = next(each for each in brokers if isinstance(each, Broker))
    dead = first.url(user).replace(f"{first.host}:{first.amqp_port}", "127.0.0.1:{}")
    return ",".join(each.url(user) if isinstance(each, Broker) else dead.format(each) for each in brokers)


async def test_a_dead_first_broker_is_passed_over_at_once(broker: Broker) -> None:
    (dead,) = free_ports(1)
    async with amqp_cluster(broker) as cluster:
        began = time.monotonic()
        one, _ = [await cluster.start(node, url=url_of(node, dead, broker)) for node in (ONE, TWO)]
        assert time.monotonic() - began < 5
        assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)
        assert one.detail == f"{broker.host}:{broker.amqp_port}/gitquorum"
        assert min(one._consumer.link.reconnects, one._publisher.link.reconnects) >= 1, "each tried the dead one"


async def test_the_next_broker_is_taken_when_the_one_in_use_dies(broker: Broker, mortal_broker: Broker) -> None:
    async with amqp_cluster(broker) as cluster:
        one, two = [await cluster.start(node, url=url_of(node, mortal_broker, broker)) for node in (ONE, TWO)]
        assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)
        assert str(mortal_broker.amqp_port) in one.detail
        await asyncio.to_thread(mortal_broker.kill)
        began = time.monotonic()
        await until(lambda: all(each.up and str(broker.amqp_port) in each.detail for each in (one, two)), (one, two), 5.0)
        assert isinstance(await one.request(TWO, claim(round_=2), timeout_s=5), Refused)
        print(f"\nthe next broker was in use {time.monotonic() - began:.2f} s after the first was killed")  # noqa: T201
