"""The receiving half: one connection that declares the topology and consumes this node's inbox and replies.

A delivery is acknowledged when its effects are durable and its answer is published, or rejected to the dead-letter exchange
when it is no envelope of ours; what is neither comes back after a reconnect, to a handler that answers it from its record.
``redelivered`` is not looked at: it is unset on duplicates that a publisher makes.

Its partner (``amqp.py``) gets each delivery and owes it exactly one ``ack`` or ``reject``.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pika.exceptions import AMQPError, ChannelWrongStateError

from broker.connection import Link, LinkLost, Session
from broker.topology import INSPECT_QUEUE, Exchange, Queue, Topology, inbox, replies
from node.protocol.ids import NodeId

PREFETCH = 64
"""Requests in work at once; with 1 instead of 64, throughput halves."""
REPLIES_PREFETCH = 256
CANCEL_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message from a queue. Its tag belongs to the channel it came by: after a reconnect settling it does nothing."""

    user: str | None
    body: bytes
    _channel: Any
    _tag: int

    def ack(self) -> None:
        self._settle(lambda: self._channel.basic_ack(self._tag))

    def reject(self) -> None:
        """To the dead letters."""
        self._settle(lambda: self._channel.basic_reject(self._tag, requeue=False))

    def _settle(self, how: Callable[[], None]) -> None:
        try:
            how()
        except AMQPError as error:
            _log.info("a delivery could not be settled and will come again: %s", error)


class Consumer:
    """Declares ``topology``, then feeds ``on_request`` and ``on_reply`` while ``link.up``; both run on the loop: be short."""

    def __init__(
        self,
        url: str,
        topology: Topology,
        me: NodeId,
        *,
        on_request: Callable[[Delivery], None],
        on_reply: Callable[[Delivery], None],
    ) -> None:
        self.link = Link(url, f"gitquorum {me} consume", self._set_up)
        self._me = me
        self._topology = topology
        self._on_request = on_request
        self._on_reply = on_reply
        self._session: Session | None = None
        self._channel: Any = None

    async def cancel(self) -> None:
        """Take no more requests; replies still come."""
        if self._session is None or not self.link.up:
            return
        channel = self._channel
        try:
            await self._session.call(
                lambda done: channel.basic_cancel(_tag("inbox", self._me), done), what="cancelling", timeout_s=CANCEL_TIMEOUT_S
            )
        except LinkLost as error:
            _log.info("no need to cancel: %s", error)

    async def _set_up(self, session: Session) -> None:
        channel = await session.channel()
        channel.add_on_cancel_callback(session.guard(lambda _frame: session.lose("a queue was deleted")))
        await declare(session, channel, self._topology)
        await self._declare_dead_letters(session)
        await self._declare_inspect(session)
        self._session, self._channel = session, channel
        await self._consume(session, replies(self._me), _tag("replies", self._me), REPLIES_PREFETCH, self._on_reply)
        await self._consume(session, inbox(self._me), _tag("inbox", self._me), PREFETCH, self._on_request)

    async def _consume(
        self, session: Session, queue: str, tag: str, prefetch: int, deliver: Callable[[Delivery], None]
    ) -> None:
        channel = self._channel

        def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            deliver(Delivery(properties.user_id, body, channel, method.delivery_tag))

        await session.call(lambda done: channel.basic_qos(0, prefetch, False, done), what="basic.qos")
        await session.call(
            lambda done: channel.basic_consume(queue, session.guard(on_message), consumer_tag=tag, callback=done),
            what=f"consuming {queue}",
        )

    async def _declare_dead_letters(self, session: Session) -> None:
        """On spare channels, as the inspect queue: without them the protocol goes on."""
        for queue in self._topology.queues:
            if not queue.shared:
                continue
            bindings = tuple(each for each in self._topology.bindings if each.queue == queue.name)
            try:
                await _make_missing(session, partial(_declare_queue, queue), f"queue {queue.name}")
                await declare(session, await session.channel(spare=True), Topology((), (), bindings), spare=True)
            except LinkLost as error:
                if session.lost.done():
                    raise
                _log.warning("no %s: %s", queue.name, error)

    async def _declare_inspect(self, session: Session) -> None:
        """On spare channels: whatever is wrong with the inspect queue, the protocol goes on without it."""
        try:
            if self._topology.inspect is None:
                await _delete(session, INSPECT_QUEUE)
            else:
                await self._make_inspect(session)
        except LinkLost as error:
            if session.lost.done():
                raise
            _log.warning("no %s: %s", INSPECT_QUEUE, error)

    async def _make_inspect(self, session: Session) -> None:
        part = Topology((), (self._topology.inspect,) if self._topology.inspect else (), self._topology.inspect_bindings)
        try:
            await declare(session, await session.channel(spare=True), part, spare=True)
        except LinkLost as error:
            if "PRECONDITION_FAILED" not in str(error):
                raise
            # Its length is a setting, and was another one when the queue was made. What it held is only for looking at.
            _log.info("making %s again with new bounds", INSPECT_QUEUE)
            await _delete(session, INSPECT_QUEUE)
            await declare(session, await session.channel(spare=True), part, spare=True)


async def declare(session: Session, channel: Any, topology: Topology, *, spare: bool = False) -> None:
    """Make what is missing; what exists with the same arguments is left as it is. Shared queues are left out.

    Raises:
        LinkLost: refused, for example because a queue exists with other arguments; the text says which.
    """
    watched = channel if spare else None
    shared = {queue.name for queue in topology.queues if queue.shared}
    for exchange in topology.exchanges:
        await _make_missing(session, partial(_declare_exchange, exchange), f"exchange {exchange.name}")
    for queue in topology.queues:
        if queue.name not in shared:
            await session.call(partial(_declare_queue, queue, channel), what=f"declaring queue {queue.name}", channel=watched)
    for binding in topology.bindings:
        if binding.queue not in shared:
            await session.call(
                lambda done, b=binding: channel.queue_bind(b.queue, b.source, b.key, callback=done),
                what=f"binding {binding.queue} to {binding.key}",
                channel=watched,
            )
    if spare:
        _put_away(channel)


def _put_away(channel: Any) -> None:
    """Close a spare one; it may be closed already, when its connection broke after the last answer."""
    with suppress(ChannelWrongStateError):
        channel.close()


async def _make_missing(session: Session, act: Callable[[Any, Any, bool], None], what: str) -> None:
    """Look whether it is there, which everybody may; only if not, declare it. On spare channels: not there closes one."""
    try:
        channel = await session.channel(spare=True)
        await session.call(lambda done: act(channel, done, True), what=f"looking for {what}", channel=channel)
    except LinkLost as error:
        if session.lost.done() or "NOT_FOUND" not in str(error):
            raise
        channel = await session.channel(spare=True)
        await session.call(lambda done: act(channel, done, False), what=f"declaring {what}", channel=channel)
    _put_away(channel)


def _declare_exchange(exchange: Exchange, channel: Any, done: Any, passive: bool) -> None:
    channel.exchange_declare(exchange.name, exchange.type, passive=passive, durable=True, callback=done)


def _declare_queue(queue: Queue, channel: Any, done: Any, passive: bool = False) -> None:
    channel.queue_declare(queue.name, passive=passive, durable=True, arguments=dict(queue.arguments), callback=done)


async def _delete(session: Session, queue: str) -> None:
    channel = await session.channel(spare=True)
    await session.call(lambda done: channel.queue_delete(queue, callback=done), what=f"deleting queue {queue}", channel=channel)
    _put_away(channel)


def _tag(queue: str, node: NodeId) -> str:
    return f"{node} {queue}"
