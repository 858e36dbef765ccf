"""What the management UI shows of a cluster (Shows 2): queues, connections and users, by the names of the nodes."""

from collections import Counter
from typing import Any

import pytest

from broker.topology import DEAD_QUEUE, INSPECT_QUEUE, OPERATOR, VHOST, inbox, replies
from node.protocol.ids import NodeId
from tests.cluster.harness import NODES, Cluster, Work, wait
from tests.cluster.test_inspect import Management

pytestmark = pytest.mark.cluster

NAMES = [NodeId(f"node-{number}") for number in NODES]


def rows(management: Management, path: str) -> list[dict[str, Any]]:
    answer = management.ask("GET", f"/api/{path}")
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.json
    return found


def test_there_is_one_inbox_per_node_with_its_replies_and_what_people_read_and_nothing_else(own_rabbitmq: Cluster) -> None:
    queues = {each["name"]: each for each in rows(Management(own_rabbitmq), f"queues/{VHOST}")}
    of_nodes = {queue(node) for node in NAMES for queue in (inbox, replies)}
    assert set(queues) == of_nodes | {INSPECT_QUEUE, DEAD_QUEUE}
    once = Counter(dict.fromkeys(of_nodes, 1))
    wait(lambda: +consumers(own_rabbitmq) == once, 15, f"each is consumed once; seen: {consumers(own_rabbitmq)}")


def consumers(cluster: Cluster) -> Counter[str]:
    return Counter({each["name"]: each.get("consumers", 0) for each in rows(Management(cluster), f"queues/{VHOST}")})


def test_every_node_has_one_pair_of_connections_with_its_name_and_its_own_user(own_rabbitmq: Cluster, work: Work) -> None:
    name = own_rabbitmq.create(label="overview")
    work.commit()
    work.git("push", own_rabbitmq.url(1, name), "HEAD:main")

    def named() -> Counter[tuple[str, str]]:
        found = rows(Management(own_rabbitmq), "connections")
        # The UI itself has none, or unnamed ones while somebody looks into a queue.
        return Counter(
            (each["client_properties"]["connection_name"], each["user"])
            for each in found
            if each.get("client_properties", {}).get("product") == "gitquorum"
        )

    wanted = Counter((f"gitquorum {node} {half}", str(node)) for node in NAMES for half in ("publish", "consume"))
    wait(lambda: named() == wanted, 20, f"two connections per node; seen: {named()}")
    assert OPERATOR not in {user for _, user in named()}
