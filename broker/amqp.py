"""``ports.Transport`` over RabbitMQ: requests out by ``publisher.py``, requests and replies in by ``consumer.py``.

The broker may lose, duplicate and delay anything, and this file promises no more: a request ends with its reply, with
``PeerUnreachable`` when it certainly was not delivered, or with ``NoAnswer`` at its deadline. Replies are found by
correlation id among the requests that wait; one that nobody waits for any more is dropped and counted.

Bounds: ``OUTSTANDING_MAX`` requests and ``OUTSTANDING_BYTES_MAX`` of them wait at once, ``HANDLERS_MAX`` requests of others
are handled at once (the broker sends no more than ``PREFETCH`` before the first is acknowledged).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from broker.codec import Codec, EnvelopeRefused, Opened, Sealed
from broker.connection import LinkLost
from broker.consumer import PREFETCH, Consumer, Delivery
from broker.kinds import TRANSPORT_REQUESTS, Kind
from broker.publisher import Publisher
from broker.topology import QueueType, for_node
from node.ports.errors import NoAnswer, PeerUnreachable
from node.ports.transport import Handler
from node.protocol.ids import NodeId
from node.protocol.messages import TransportReply, TransportRequest

OUTSTANDING_MAX = 4096
OUTSTANDING_BYTES_MAX = 256 * 1024 * 1024
HANDLERS_MAX = 4 * PREFETCH
REPLY_WAIT_S = 5.0
"""How long an answer waits for the publish connection to come back before it is given up; its effects stand."""
STOP_WAIT_S = 3.0
"""How long handlers under way may take when the transport is stopped."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Outstanding:
    """A request that waits for its reply."""

    to: NodeId
    kind: Kind
    size: int
    reply: "asyncio.Future[TransportReply]"


class AmqpTransport:
    """Claim, prepare, abort and commit through a broker."""

    name = "rabbitmq"

    def __init__(
        self,
        codec: Codec,
        *,
        url: str,
        members: Sequence[NodeId],
        inspect_length: int,
        queue_type: QueueType = "classic",
    ) -> None:
        """``url`` names this node's own broker user and vhost, on one broker or, with commas, on several of one cluster.

        Nothing is connected before ``start``.
        """
        self.counters: Counter[str] = Counter()
        """What went unheard: late, returned, dead lettered, wrong answer, wrong user, unsent reply, failed handler."""
        self._codec = codec
        self._members = frozenset(members)
        self._handler: Handler | None = None
        self._outstanding: dict[str, _Outstanding] = {}
        self._outstanding_bytes = 0
        self._handling: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(HANDLERS_MAX)
        self._publisher = Publisher(url, codec.me, self._on_return)
        self._consumer = Consumer(
            url, for_node(codec.me, inspect_length, queue_type), codec.me, on_request=self._on_request, on_reply=self._on_reply
        )

    def __repr__(self) -> str:
        return f"<AmqpTransport {self._codec.me}: {self.detail}; {len(self._outstanding)} waiting>"

    @property
    def up(self) -> bool:
        return self._publisher.link.up and self._consumer.link.up

    @property
    def detail(self) -> str:
        links = (self._publisher.link, self._consumer.link)
        for link in links:
            if link.problem:
                return f"{link.place}: {link.name}: {link.problem}"
        return " and ".join(dict.fromkeys(link.place for link in links))

    async def start(self, handler: Handler) -> None:
        self._handler = handler
        self._consumer.link.start()
        self._publisher.link.start()

    async def stop(self) -> None:
        await self._consumer.cancel()
        await self._finish_handlers()
        for waiting in list(self._outstanding.values()):
            _fail(waiting, NoAnswer("this node is stopping"))
        await asyncio.gather(self._publisher.link.stop(), self._consumer.link.stop())

    async def request(self, to: NodeId, message: TransportRequest, *, timeout_s: float) -> TransportReply:
        if not self.up:
            raise PeerUnreachable(self.detail)
        if to not in self._members:
            raise PeerUnreachable(f"{to} is no member")
        try:
            sealed = self._codec.seal(message, to, timeout_s=timeout_s)
        except EnvelopeRefused as refusal:
            raise PeerUnreachable(str(refusal)) from refusal
        waiting = self._expect(sealed)
        try:
            self._publisher.publish(sealed, message)
            async with asyncio.timeout(timeout_s):
                return await waiting.reply
        except LinkLost as error:
            raise PeerUnreachable(f"{self._publisher.link.place}: {error}") from error
        except TimeoutError as error:
            raise NoAnswer(f"no answer from {to} within {timeout_s:.1f} s") from error
        finally:
            del self._outstanding[sealed.id]
            self._outstanding_bytes -= waiting.size

    def _expect(self, sealed: Sealed) -> _Outstanding:
        full = len(self._outstanding) >= OUTSTANDING_MAX
        if full or self._outstanding_bytes + len(sealed.data) > OUTSTANDING_BYTES_MAX:
            raise PeerUnreachable("transport overloaded")
        waiting = _Outstanding(sealed.receiver, sealed.kind, len(sealed.data), asyncio.get_running_loop().create_future())
        self._outstanding[sealed.id] = waiting
        self._outstanding_bytes += waiting.size
        return waiting

    # ------------------------------------------------------------ replies

    def _on_return(self, message_id: str) -> None:
        self.counters["returned"] += 1
        waiting = self._outstanding.get(message_id)
        if waiting is not None:
            _fail(waiting, PeerUnreachable(f"{waiting.to} has no queue at the broker"))

    def _on_reply(self, delivery: Delivery) -> None:
        opened = self._open(delivery)
        if opened is None:
            return
        waiting = self._outstanding.get(opened.correlation)
        if waiting is None or waiting.reply.done():
            self.counters["late"] += 1
        elif opened.sender != waiting.to or opened.kind.word not in waiting.kind.answers:
            self._dead_letter(delivery, "wrong answer", f"{opened.kind.word} from {opened.sender}")
            return
        else:
            waiting.reply.set_result(cast(TransportReply, opened.message))
        delivery.ack()

    # ------------------------------------------------------------ requests of others

    def _on_request(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._serve(delivery), name=f"{self._codec.me} serves a request")
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def _serve(self, delivery: Delivery) -> None:
        async with self._slots:
            opened = self._open(delivery)
            if opened is None:
                return
            if opened.kind not in TRANSPORT_REQUESTS or self._handler is None:
                self._dead_letter(delivery, "no request", opened.kind.word)
                return
            try:
                reply = await self._handler(opened.sender, cast(TransportRequest, opened.message))
            except Exception:  # a handler does not raise; if it does, its message must not come back for ever
                _log.exception("handler of %s failed", opened.kind.word)
                self._dead_letter(delivery, "failed handler", opened.kind.word)
                return
            await self._answer(opened, reply)
            delivery.ack()

    async def _answer(self, opened: Opened, reply: TransportReply) -> None:
        """Publish the reply, waiting a little for a connection: without one it is lost, and the sender hears nothing."""
        try:
            async with asyncio.timeout(REPLY_WAIT_S):
                await self._publisher.link.available.wait()
            sealed = self._codec.seal(reply, opened.sender, timeout_s=REPLY_WAIT_S, correlation=opened.id)
            self._publisher.publish(sealed, reply)
        except (TimeoutError, LinkLost, EnvelopeRefused) as error:
            self.counters["unsent reply"] += 1
            _log.warning("reply to %s of %s not sent: %s", opened.kind.word, opened.sender, error or "not connected")

    def _open(self, delivery: Delivery) -> Opened | None:
        """The verified message; what is none goes to the dead letters."""
        try:
            opened = self._codec.open(delivery.body)
        except EnvelopeRefused as refusal:
            self._dead_letter(delivery, "refused", str(refusal))
            return None
        if self._publisher.link.user == self._codec.me and delivery.user != opened.sender:
            # The broker vouches for user_id. Where this node has a broker user of its own name, so has everybody.
            self._dead_letter(delivery, "wrong user", f"{opened.sender}'s message came from {delivery.user}")
            return None
        return opened

    def _dead_letter(self, delivery: Delivery, reason: str, detail: str) -> None:
        self.counters["dead lettered"] += 1
        self.counters[reason] += 1
        _log.warning("a message to the dead letters: %s: %s", reason, detail)
        delivery.reject()

    async def _finish_handlers(self) -> None:
        if not self._handling:
            return
        _, late = await asyncio.wait(self._handling, timeout=STOP_WAIT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _fail(waiting: _Outstanding, error: Exception) -> None:
    if not waiting.reply.done():
        waiting.reply.set_exception(error)
