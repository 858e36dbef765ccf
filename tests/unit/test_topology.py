"""The topology as data: what nodes declare, what definitions.json says, and what a broker user may do."""

import re
from base64 import b64decode
from hashlib import sha256
from typing import Any

import pytest

from broker.kinds import TRANSPORT_REPLIES, TRANSPORT_REQUESTS
from broker.topology import (
    DEAD_EXCHANGE,
    DEAD_QUEUE,
    DELIVERIES_MAX,
    EXCHANGE,
    INSPECT_QUEUE,
    LOOKS_MAX,
    NODE_CHANNELS_MAX,
    NODE_CONNECTIONS_MAX,
    OPERATOR,
    OPERATOR_CHANNELS_MAX,
    OPERATOR_CONNECTIONS_MAX,
    SPARE_QUEUES_MAX,
    VHOST,
    QueueType,
    definitions,
    for_node,
    inbox,
    permissions,
    replies,
    routing_key,
    whole,
)
from node.protocol.ids import NodeId

MEMBERS = [NodeId("node-1"), NodeId("node.2"), NodeId("node-3")]
PASSWORDS = {**{str(node): f"secret of {node}" for node in MEMBERS}, OPERATOR: "look"}


def emitted() -> dict[str, Any]:
    return definitions(MEMBERS, PASSWORDS, 1000)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_definitions_hold_exactly_what_the_nodes_declare(queue_type: QueueType) -> None:
    parts = [for_node(node, 1000, queue_type) for node in MEMBERS]
    queues = {q.name: dict(q.arguments) for part in parts for q in (*part.queues, part.inspect) if q}
    bindings = {(b.source, b.queue, b.key) for part in parts for b in (*part.bindings, *part.inspect_bindings)}
    exchanges = {(e.name, e.type) for part in parts for e in part.exchanges}
    data = definitions(MEMBERS, PASSWORDS, 1000, queue_type=queue_type)
    assert {q["name"]: q["arguments"] for q in data["queues"]} == queues
    assert {(b["source"], b["destination"], b["routing_key"]) for b in data["bindings"]} == bindings
    assert {(e["name"], e["type"]) for e in data["exchanges"]} == exchanges
    assert all(item["durable"] and not item["auto_delete"] for item in data["queues"] + data["exchanges"])


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_every_queue_is_of_the_kind_asked_for_and_bounded_in_length_bytes_and_age(queue_type: QueueType) -> None:
    for queue in definitions(MEMBERS, PASSWORDS, 1000, queue_type=queue_type)["queues"]:
        arguments = queue["arguments"]
        assert arguments["x-queue-type"] == queue_type
        assert min(arguments[name] for name in ("x-max-length", "x-max-length-bytes", "x-message-ttl")) > 0
        assert arguments["x-overflow"] == "drop-head"


def test_quorum_queues_leave_nothing_to_a_servers_defaults_and_looking_does_not_use_messages_up() -> None:
    for queue in definitions(MEMBERS, PASSWORDS, 1000, queue_type="quorum")["queues"]:
        arguments, shelf = queue["arguments"], queue["name"] in (INSPECT_QUEUE, DEAD_QUEUE)
        assert arguments["x-delivery-limit"] == (LOOKS_MAX if shelf else DELIVERIES_MAX)
        assert arguments["x-quorum-initial-group-size"] == 3
        assert arguments["x-queue-leader-locator"] == "balanced"
        assert ("x-dead-letter-strategy" in arguments) == ("x-dead-letter-exchange" in arguments) == (not shelf)


def test_users_and_vhost_have_limits_that_the_traffic_fits_in() -> None:
    data = emitted()
    limits = {user["name"]: user["limits"] for user in data["users"]}
    for node in MEMBERS:
        assert limits[node] == {"max-connections": NODE_CONNECTIONS_MAX, "max-channels": NODE_CHANNELS_MAX}
    assert limits[OPERATOR] == {"max-connections": OPERATOR_CONNECTIONS_MAX, "max-channels": OPERATOR_CHANNELS_MAX}
    (parameter,) = data["parameters"]
    assert (parameter["vhost"], parameter["component"], parameter["name"]) == (VHOST, "vhost-limits", "limits")
    # No user can be kept out by the others: together they may have what each of them may have.
    assert parameter["value"]["max-connections"] == sum(each["max-connections"] for each in limits.values())
    assert parameter["value"]["max-queues"] == len(data["queues"]) + SPARE_QUEUES_MAX


def test_what_nodes_consume_has_a_dead_letter_exchange() -> None:
    data = {q["name"]: q["arguments"] for q in emitted()["queues"]}
    for node in MEMBERS:
        assert data[inbox(node)]["x-dead-letter-exchange"] == data[replies(node)]["x-dead-letter-exchange"] == DEAD_EXCHANGE


def test_the_length_of_the_inspect_queue_is_a_setting_and_zero_leaves_it_out() -> None:
    (inspect,) = (q for q in definitions(MEMBERS, PASSWORDS, 42)["queues"] if q["name"] == INSPECT_QUEUE)
    assert inspect["arguments"]["x-max-length"] == 42
    without = definitions(MEMBERS, PASSWORDS, 0)
    assert INSPECT_QUEUE not in {q["name"] for q in without["queues"]}
    assert INSPECT_QUEUE not in {b["destination"] for b in without["bindings"]}
    assert for_node(MEMBERS[0], 0).inspect is None


def matches(binding: str, key: str) -> bool:
    """AMQP's topic rule, without ``#``."""
    pattern, words = binding.split("."), key.split(".")
    return len(pattern) == len(words) and all(p in ("*", w) for p, w in zip(pattern, words, strict=True))


def test_every_message_goes_to_its_receivers_queue_and_to_inspect_and_nowhere_else() -> None:
    topology = whole(MEMBERS, 1000)
    every = (*topology.bindings, *topology.inspect_bindings)
    for sender in MEMBERS:
        for receiver in MEMBERS:
            for kinds, queue in ((TRANSPORT_REQUESTS, inbox), (TRANSPORT_REPLIES, replies)):
                for kind in kinds:
                    key = routing_key(sender, receiver, kind)
                    reached = sorted(b.queue for b in every if b.source == EXCHANGE and matches(b.key, key))
                    assert reached == sorted([queue(receiver), INSPECT_QUEUE])


def test_every_dead_letter_goes_to_the_dead_letters() -> None:
    topology = whole(MEMBERS, 1000)
    dead = [b for b in topology.bindings if b.source == DEAD_EXCHANGE]
    for sender in MEMBERS:
        for receiver in MEMBERS:
            for kind in (*TRANSPORT_REQUESTS, *TRANSPORT_REPLIES):
                assert [b.queue for b in dead if matches(b.key, routing_key(sender, receiver, kind))] == [DEAD_QUEUE]


def test_a_receiver_without_queues_has_no_inspect_binding_so_mandatory_can_tell() -> None:
    topology = whole(MEMBERS[:2], 1000)
    key = routing_key(MEMBERS[0], MEMBERS[2], TRANSPORT_REQUESTS[0])
    every = (*topology.bindings, *topology.inspect_bindings)
    assert not [b for b in every if b.source == EXCHANGE and matches(b.key, key)]


def test_a_node_may_do_what_it_declares_and_no_more() -> None:
    for node in MEMBERS:
        mine = permissions(node)
        part = for_node(node, 1000)
        own = [*(q.name for q in part.queues if not q.shared), INSPECT_QUEUE]
        shared = [*(e.name for e in part.exchanges), *(q.name for q in part.queues if q.shared)]
        assert own == [inbox(node), replies(node), INSPECT_QUEUE]
        assert shared == [EXCHANGE, DEAD_EXCHANGE, DEAD_QUEUE]
        for name in own + shared:
            assert bool(re.search(mine.configure, name)) == (name in own), "what one may configure one may delete"
            assert re.search(mine.write, name)
        foreign = [queue(other) for other in MEMBERS if other != node for queue in (inbox, replies)]
        for name in [*foreign, "amq.default", "", "amq.topic", "gitquorum.other", inbox(node) + "x", "x" + inbox(node)]:
            assert not any(re.search(p, name) for p in (mine.configure, mine.write, mine.read))
        assert not re.search(mine.read, INSPECT_QUEUE)
        assert re.search(mine.read, inbox(node))
        assert re.search(mine.read, replies(node))


def test_a_dot_in_a_node_id_does_not_stand_for_any_character() -> None:
    assert not re.search(permissions(NodeId("node.2")).read, inbox(NodeId("node-2")))
    assert routing_key(NodeId("a.b"), NodeId("c"), TRANSPORT_REQUESTS[0]).count(".") == 2


def test_topic_permissions_let_a_node_publish_in_its_own_name_and_bind_for_itself_only() -> None:
    for node in MEMBERS:
        topics = {exchange: (write, read) for exchange, write, read in permissions(node).topics}
        write, read = topics[EXCHANGE]
        for other in MEMBERS:
            for kind in (*TRANSPORT_REQUESTS, *TRANSPORT_REPLIES):
                assert bool(re.search(write, routing_key(node, other, kind)))
                assert bool(re.search(write, routing_key(other, node, kind))) == (other == node)
            for binding in (*for_node(other, 10).bindings, *for_node(other, 10).inspect_bindings):
                assert bool(re.search(topics[binding.source][1], binding.key)) == (other == node)
            for key in (routing_key(other, node, TRANSPORT_REQUESTS[0]), routing_key(node, other, TRANSPORT_REQUESTS[0])):
                assert not re.search(topics[DEAD_EXCHANGE][0], key), "dead letters are the broker's to write"
        assert not re.search(read, "#")
        assert not re.search(topics[DEAD_EXCHANGE][1], "#")


def test_passwords_are_salted_hashes_that_verify() -> None:
    for user in emitted()["users"]:
        raw = b64decode(user["password_hash"])
        assert raw[4:] == sha256(raw[:4] + PASSWORDS[user["name"]].encode()).digest()
        assert user["hashing_algorithm"] == "rabbit_password_hashing_sha256"
    assert not any(secret in str(emitted()) for secret in PASSWORDS.values())


def test_only_the_operator_may_look_at_inspect_and_it_may_change_nothing() -> None:
    (entry,) = (p for p in emitted()["permissions"] if p["user"] == OPERATOR)
    assert re.search(entry["read"], INSPECT_QUEUE)
    assert not re.search(entry["read"], inbox(MEMBERS[0]))
    assert entry["configure"] == entry["write"] == "^$"


def test_a_member_without_a_password_and_one_named_like_the_operator_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no broker password for node\.2"):
        definitions(MEMBERS, {"node-1": "x", "node-3": "y"}, 10)
    with pytest.raises(ValueError, match="operator"):
        definitions([NodeId(OPERATOR)], {OPERATOR: "x"}, 10)
