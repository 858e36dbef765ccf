"""The command's own container, on a real Docker engine: on loopback only, back on its ports after a kill, gone at the end."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from broker.topology import INSPECT_QUEUE, OPERATOR, definitions, inbox
from node.command.docker import Container
from node.command.sockets import free_ports, speaks_amqp, wait_for
from node.protocol.ids import NodeId
from tests.cluster.sources import sources

pytestmark = pytest.mark.cluster

ONE = NodeId("node-1")


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    own = sources().own
    if own is None or own.kind != "docker":
        pytest.skip("no Docker engine is used in this run")
    made = Container(tmp_path / "broker", own.image)
    yield made
    made.remove()
    assert not made.exists()


def ports_of(container: Container) -> set[str]:
    done = subprocess.run(["docker", "port", container.name], capture_output=True, text=True, timeout=20, check=True)
    return {line.split(" -> ")[1] for line in done.stdout.splitlines()}


def test_a_killed_container_comes_back_on_its_ports_with_its_users_and_what_was_durable(container: Container) -> None:
    amqp, management = free_ports(2)
    container.create(definitions([ONE], {ONE: "secret", OPERATOR: "look"}, 10), amqp, management)
    assert wait_for(lambda: speaks_amqp("127.0.0.1", amqp), 60)
    assert ports_of(container) == {f"127.0.0.1:{amqp}", f"127.0.0.1:{management}"}

    def count(queue: str) -> int:
        connection = pika.BlockingConnection(pika.URLParameters(f"amqp://node-1:secret@127.0.0.1:{amqp}/gitquorum"))
        channel = connection.channel()
        found = channel.queue_declare(queue, passive=True).method.message_count
        if queue == inbox(ONE) and not found:
            channel.confirm_delivery()
            properties = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish("gitquorum", "node-1.node-1.prepare", b"durable", properties, mandatory=True)
        connection.close()
        return int(found)

    assert count(inbox(ONE)) == 0
    container.kill()
    assert not container.running()
    assert not speaks_amqp("127.0.0.1", amqp)
    container.start()
    assert wait_for(lambda: speaks_amqp("127.0.0.1", amqp), 60)
    assert (count(inbox(ONE)), count(INSPECT_QUEUE)) == (1, 1)
