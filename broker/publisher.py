"""The sending half: one connection that only publishes, so that an alarm that blocks publishers does not stop deliveries.

No publisher confirms: the vote is the confirm, and a broker's word that it took a message says nothing about the peer
(a classic queue lost 2,978 of 2,978 unconfirmed messages to a ``kill -9``; a publish to a missing queue is confirmed).
``mandatory`` instead: what has no queue to go to comes back at once. Not known here: who waits for what (``amqp.py``).
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pika
from pika.exceptions import AMQPError

from broker.codec import Sealed
from broker.connection import Link, LinkLost, Session
from broker.topology import EXCHANGE, replies, routing_key
from node.protocol.ids import NodeId
from node.protocol.messages import Commit, Message, Prepare

EXPIRATION_MS = 24 * 60 * 60 * 1000
"""Housekeeping only, and for copies on ``gitquorum.inspect``: queues that are consumed have a shorter limit of their own
(``topology.py``), and deadlines travel in the signed envelope."""

PERSISTENT = (Prepare, Commit)
VERSIONED = ("position", "base", "committed")
"""Where a message has the position that it is about, the first of these."""


class Publisher:
    """Publishes while ``link.up``; ``on_return(message_id)`` hears of what could not be routed."""

    def __init__(self, url: str, me: NodeId, on_return: Callable[[str], None]) -> None:
        self.link = Link(url, f"gitquorum {me} publish", self._set_up)
        self._me = me
        self._on_return = on_return
        self._channel: Any = None

    async def _set_up(self, session: Session) -> None:
        channel = await session.channel()
        channel.add_on_return_callback(
            session.guard(lambda _channel, _method, properties, _body: self._on_return(properties.message_id or ""))
        )
        self._channel = channel

    def publish(self, sealed: Sealed, message: Message) -> None:
        """Hand one envelope to the broker; nothing is known of it afterwards.

        Raises:
            LinkLost: it was not sent.
        """
        if not self.link.up:
            raise LinkLost(self.link.problem)
        key = routing_key(self._me, sealed.receiver, sealed.kind)
        properties = self._properties(sealed, message)
        try:
            self._channel.basic_publish(EXCHANGE, key, sealed.data, properties, mandatory=True)
        except AMQPError as error:  # closed a moment ago; the link learns of it in a moment
            raise LinkLost(str(error) or type(error).__name__) from error

    def _properties(self, sealed: Sealed, message: Message) -> pika.BasicProperties:
        return pika.BasicProperties(
            content_type="application/json",
            type=sealed.kind.name,
            message_id=sealed.id,
            correlation_id=sealed.correlation,
            reply_to=replies(self._me) if sealed.kind.answers else None,
            app_id="gitquorum",
            user_id=self.link.user,
            timestamp=sealed.sent_at_ms // 1000,
            expiration=str(EXPIRATION_MS),
            delivery_mode=2 if isinstance(message, PERSISTENT) else 1,
            headers=_headers(self._me, sealed, message),
        )


def _headers(me: NodeId, sealed: Sealed, message: Message) -> dict[str, Any]:
    """For people who look at a queue; no node reads them, since no signature covers them."""
    deadline = datetime.fromtimestamp(sealed.deadline_at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    headers: dict[str, Any] = {"sender": str(me), "receiver": str(sealed.receiver), "deadline": deadline}
    if (repository := getattr(message, "repository", None)) is not None:
        headers["repository"] = repository
    if (ballot := getattr(message, "ballot", None)) is not None:
        headers["ballot"] = str(ballot)
    if (version := _version(message)) is not None:
        headers["version"] = version
    return headers


def _version(message: Message) -> int | None:
    """The version a message is about; of a prepare without computing the digest that the position holds."""
    if isinstance(message, Prepare):
        return message.change.base.version + 1
    for name in VERSIONED:
        if (position := getattr(message, name, None)) is not None:
            return int(position.version)
    return None
