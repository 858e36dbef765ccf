"""Exchanges, queues, bindings, users and permissions, as data: what nodes declare and what ``definitions.json`` says.

One topic exchange; the key of every message is ``<sender>.<receiver>.<kind>``, so that the broker itself can refuse a node
that publishes in another's name (topic permissions), and a queue is bound to what is meant for its node only. A key is routing,
not proof: a node that makes its own inbox again may let it dead-letter by any key, and RabbitMQ asks no permission of that.
Who spoke is said by the signature, and by ``user_id``, which the broker vouches for and dead-lettering keeps. Every queue is
bounded in length, bytes and age, and every argument is written out: nothing hangs on a server's defaults (RabbitMQ 4 may
default to quorum queues, and gives those a delivery limit). Queues are classic; quorum ones are for a RabbitMQ cluster, where
the queues shall outlive a broker. Users and vhost have limits, so that one broken node cannot use up the broker.

``gitquorum.inspect`` gets a copy of the traffic by bindings of its own, one per receiver and declared together with that
receiver's queues. One binding ``#`` would be simpler, but then every message had a queue to go to, and ``mandatory`` could
never report a receiver that has none.

A node declares its own queues at every reconnect, and they are what its user may configure: it cannot delete what others need.
The inspect queue is the exception, since its length is a node's setting. The exchanges and the dead letters come with
``definitions``; a node makes them only where they are missing and its user may, that is on a broker that one user shares.
"""

import os
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from broker.kinds import TRANSPORT_REPLIES, TRANSPORT_REQUESTS, Kind
from node.protocol.ids import NodeId

VHOST = "gitquorum"
EXCHANGE = "gitquorum"
DEAD_EXCHANGE = "gitquorum.dead"
DEAD_QUEUE = "gitquorum.dead-letters"
INSPECT_QUEUE = "gitquorum.inspect"
OPERATOR = "gitquorum-operator"
"""A user for people: may look at ``gitquorum.inspect`` and the dead letters, and at the management UI."""

_MINUTE_MS = 60_000
_WEEK_MS = 7 * 24 * 60 * _MINUTE_MS
_MIB = 1024 * 1024
QUEUE_LENGTH_MAX = 10_000
QUEUE_BYTES_MAX = 256 * _MIB
DEAD_LENGTH_MAX = 1_000
SHELF_BYTES_MAX = 64 * _MIB
"""For the two queues that only people read."""

QueueType = Literal["classic", "quorum"]
QUORUM_MEMBERS = 3
"""Replicas of a quorum queue; RabbitMQ 3.10 would take five, and 4.x three."""
DELIVERIES_MAX = 20
"""How often a request or reply may come back unsettled before it is dead-lettered: one that ends its node each time."""
LOOKS_MAX = 1_000_000
"""The same for the queues that people look at: every look puts all messages back, and must not use them up."""

NODE_CONNECTIONS_MAX = 16
"""A node has two. Those of a node that was cut off stay until the broker misses their heartbeats (about 18 s), and it may
have come back several times by then; a node that leaks connections stops here, and its peers do not notice."""
NODE_CHANNELS_MAX = 64
"""A node has two, and three more for a moment while it declares; four for each connection."""
OPERATOR_CONNECTIONS_MAX = 16
OPERATOR_CHANNELS_MAX = 64
"""The management UI opens one of each for every look."""
SPARE_QUEUES_MAX = 16
"""Queues that somebody adds by hand, beside those that ``whole`` names; no node may declare any."""


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    type: str = "topic"


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue: a wake-up channel, never the truth."""

    name: str
    arguments: Mapping[str, Any]
    shared: bool = False
    """Whether it is everybody's: then a node only makes it where it is missing, and where it may."""


@dataclass(frozen=True, slots=True)
class Binding:
    source: str
    queue: str
    key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """What exists in the vhost, or the part of it that one node declares."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]
    inspect: Queue | None = None
    """Apart from the others: its length is a setting, and it never stands in the way of the protocol."""
    inspect_bindings: tuple[Binding, ...] = ()


@dataclass(frozen=True, slots=True)
class Permissions:
    """Of one user, as the regular expressions RabbitMQ wants; ``topics`` are (exchange, write, read)."""

    user: str
    configure: str
    write: str
    read: str
    topics: tuple[tuple[str, str, str], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Limits:
    """What RabbitMQ lets one user, or the whole vhost, have open at once."""

    connections: int
    channels: int | None = None
    """Of a user only."""
    queues: int | None = None
    """Of a vhost only."""

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """By RabbitMQ's names."""
        named = {"max-connections": self.connections, "max-channels": self.channels, "max-queues": self.queues}
        return iter((name, value) for name, value in named.items() if value is not None)


def inbox(node: NodeId) -> str:
    """Where claim, prepare, abort and commit for ``node`` arrive."""
    return f"gitquorum.{node}.inbox"


def replies(node: NodeId) -> str:
    """Where the answers to ``node``'s own requests arrive."""
    return f"gitquorum.{node}.replies"


def routing_key(sender: NodeId, receiver: NodeId, kind: Kind) -> str:
    return f"{_word(sender)}.{_word(receiver)}.{kind.word}"


def for_node(node: NodeId, inspect_length: int, queue_type: QueueType = "classic") -> Topology:
    """What ``node`` declares when it connects: what is shared, and its own queues."""
    return whole([node], inspect_length, queue_type)


def whole(members: Sequence[NodeId], inspect_length: int, queue_type: QueueType = "classic") -> Topology:
    """All of it. ``inspect_length`` 0 leaves the inspect queue out."""
    consumed, shelf = _kind(queue_type, DELIVERIES_MAX, dead_letters=True), _kind(queue_type, LOOKS_MAX)
    queues = [Queue(DEAD_QUEUE, _bounds(DEAD_LENGTH_MAX, SHELF_BYTES_MAX, _WEEK_MS) | shelf, shared=True)]
    bindings, watched = [], []
    for node in members:
        for queue, kinds in ((inbox(node), TRANSPORT_REQUESTS), (replies(node), TRANSPORT_REPLIES)):
            queues.append(Queue(queue, _bounds(QUEUE_LENGTH_MAX, QUEUE_BYTES_MAX, _MINUTE_MS) | consumed))
            bindings += [Binding(EXCHANGE, queue, f"*.{_word(node)}.{kind.word}") for kind in kinds]
        bindings.append(Binding(DEAD_EXCHANGE, DEAD_QUEUE, _any_key(node)))
        watched.append(Binding(EXCHANGE, INSPECT_QUEUE, _any_key(node)))
    inspect = Queue(INSPECT_QUEUE, _bounds(inspect_length, SHELF_BYTES_MAX, _WEEK_MS) | shelf) if inspect_length else None
    return Topology(
        (Exchange(EXCHANGE), Exchange(DEAD_EXCHANGE)),
        tuple(queues),
        tuple(bindings),
        inspect,
        tuple(watched) if inspect else (),
    )


def permissions(node: NodeId) -> Permissions:
    """Of the broker user that bears the node's name: as little as ``for_node`` and the traffic need.

    A queue is declared with a dead-letter exchange: that takes write on the exchange. A queue is bound: that takes write on
    the queue, read on the exchange, and read on the topic; hence a node cannot bind its queue to what is meant for another,
    alive or dead. Whoever may configure something may also delete it: of the shared parts that is the inspect queue only.

    Not kept from it, since it must be able to declare and bind again what somebody deleted: other arguments of its own queues,
    a dead-letter key in another's name among them, and its own word as a binding of the shared queues and exchanges.
    """
    own = "|".join(re.escape(queue) for queue in (inbox(node), replies(node)))
    shared = "|".join(re.escape(name) for name in (EXCHANGE, DEAD_EXCHANGE, DEAD_QUEUE, INSPECT_QUEUE))
    word = re.escape(_word(node))
    in_own_name = rf"^{word}\.[^.]+\.[a-z]+$"
    for_own_name = rf"^\*\.{word}\.([a-z]+|\*)$"
    return Permissions(
        user=str(node),
        configure=f"^({own}|{re.escape(INSPECT_QUEUE)})$",
        write=f"^({own}|{shared})$",
        read=f"^({own}|{re.escape(EXCHANGE)}|{re.escape(DEAD_EXCHANGE)})$",
        topics=((EXCHANGE, in_own_name, for_own_name), (DEAD_EXCHANGE, "^$", for_own_name)),
    )


def operator_permissions() -> Permissions:
    shelves = "|".join(re.escape(name) for name in (INSPECT_QUEUE, DEAD_QUEUE))
    return Permissions(OPERATOR, configure="^$", write="^$", read=f"^({shelves})$")


def node_limits() -> Limits:
    return Limits(NODE_CONNECTIONS_MAX, channels=NODE_CHANNELS_MAX)


def operator_limits() -> Limits:
    return Limits(OPERATOR_CONNECTIONS_MAX, channels=OPERATOR_CHANNELS_MAX)


def vhost_limits(members: Sequence[NodeId]) -> Limits:
    """All users' connections together; every queue of ``whole`` and some by hand."""
    queues = len(whole(members, 1).queues) + 1
    return Limits(len(members) * NODE_CONNECTIONS_MAX + OPERATOR_CONNECTIONS_MAX, queues=queues + SPARE_QUEUES_MAX)


def definitions(
    members: Sequence[NodeId], passwords: Mapping[str, str], inspect_length: int, *, queue_type: QueueType = "classic"
) -> dict[str, Any]:
    """``definitions.json`` for RabbitMQ 3.10 and 4.x: vhost, users, permissions, limits, policies, and the whole topology.

    ``passwords`` by user: every member's, and ``OPERATOR``'s if there shall be one. Only salted hashes are written.
    """
    if missing := sorted(set(members) - set(passwords)):
        raise ValueError(f"no broker password for {', '.join(missing)}")
    if OPERATOR in members:
        raise ValueError(f"{OPERATOR!r} cannot be a node's id: it is the operator's broker user")
    granted = [permissions(node) for node in members]
    users = [_user(str(node), passwords[node], [], node_limits()) for node in members]
    if OPERATOR in passwords:
        granted.append(operator_permissions())
        users.append(_user(OPERATOR, passwords[OPERATOR], ["monitoring"], operator_limits()))
    topology = whole(members, inspect_length, queue_type)
    queues = [*topology.queues, *([topology.inspect] if topology.inspect else [])]
    return {
        "vhosts": [{"name": VHOST}],
        "users": users,
        "permissions": [
            {"user": p.user, "vhost": VHOST, "configure": p.configure, "write": p.write, "read": p.read} for p in granted
        ],
        "topic_permissions": [
            {"user": p.user, "vhost": VHOST, "exchange": exchange, "write": write, "read": read}
            for p in granted
            for exchange, write, read in p.topics
        ],
        "parameters": [
            {"vhost": VHOST, "component": "vhost-limits", "name": "limits", "value": dict(vhost_limits(members))},
        ],
        "policies": [_policy()],
        "exchanges": [_exchange(exchange) for exchange in topology.exchanges],
        "queues": [_queue(queue) for queue in queues],
        "bindings": [_binding(binding) for binding in (*topology.bindings, *topology.inspect_bindings)],
    }


def _word(node: NodeId) -> str:
    """A node id as one word of a routing key: dots separate words, and ids may hold dots but no percent sign."""
    return node.replace(".", "%2E")


def _any_key(node: NodeId) -> str:
    """Whatever is meant for ``node``; a dead letter keeps the key it came with."""
    return f"*.{_word(node)}.*"


def _bounds(length: int, size_bytes: int, age_ms: int) -> dict[str, Any]:
    # drop-head: what is old is worth least; a sender hears of nothing lost here, it hears of votes.
    return {
        "x-max-length": length,
        "x-max-length-bytes": size_bytes,
        "x-message-ttl": age_ms,
        "x-overflow": "drop-head",
    }


def _kind(queue_type: QueueType, deliveries_max: int, *, dead_letters: bool = False) -> dict[str, Any]:
    """All that RabbitMQ 3.10 and 4.x both know for this kind of queue, and give different defaults."""
    letters = {"x-dead-letter-exchange": DEAD_EXCHANGE} if dead_letters else {}
    if queue_type == "classic":
        return {"x-queue-type": "classic", **letters}
    if dead_letters:
        # At least once is for what must not be lost, and asks for another x-overflow.
        letters["x-dead-letter-strategy"] = "at-most-once"
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": deliveries_max,
        "x-quorum-initial-group-size": QUORUM_MEMBERS,
        "x-queue-leader-locator": "balanced",
        **letters,
    }


def _policy() -> dict[str, Any]:
    """A second belt, for queues somebody adds by hand: RabbitMQ applies the lower of policy and argument."""
    return {
        "vhost": VHOST,
        "name": "gitquorum-bounds",
        "pattern": r"^gitquorum\.",
        "apply-to": "queues",
        "priority": 0,
        "definition": {"max-length": QUEUE_LENGTH_MAX, "max-length-bytes": QUEUE_BYTES_MAX, "overflow": "drop-head"},
    }


def _exchange(exchange: Exchange) -> dict[str, Any]:
    return {
        "name": exchange.name,
        "vhost": VHOST,
        "type": exchange.type,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": {},
    }


def _queue(queue: Queue) -> dict[str, Any]:
    return {"name": queue.name, "vhost": VHOST, "durable": True, "auto_delete": False, "arguments": dict(queue.arguments)}


def _binding(binding: Binding) -> dict[str, Any]:
    return {
        "source": binding.source,
        "vhost": VHOST,
        "destination": binding.queue,
        "destination_type": "queue",
        "routing_key": binding.key,
        "arguments": {},
    }


def _user(name: str, password: str, tags: list[str], limits: Limits) -> dict[str, Any]:
    salt = os.urandom(4)
    hashed = b64encode(salt + sha256(salt + password.encode()).digest()).decode()
    return {
        "name": name,
        "password_hash": hashed,
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
        "limits": dict(limits),
    }
