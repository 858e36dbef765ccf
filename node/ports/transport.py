"""Between nodes: requests that go through a queue, and questions that are asked directly."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from node.protocol.ids import NodeId
from node.protocol.messages import (
    DirectReply,
    DirectRequest,
    Fetch,
    TransportReply,
    TransportRequest,
)

Handler = Callable[[NodeId, TransportRequest], Awaitable[TransportReply]]
"""What a transport calls for each verified request, any number at once. Its effects are durable when it returns; it does
not raise. The transport then sends the reply, and only then acknowledges the delivery."""


DirectHandler = Callable[[NodeId, DirectRequest], Awaitable[DirectReply]]
"""The same for questions asked by direct HTTP (all but ``Fetch``)."""


FetchHandler = Callable[[NodeId, Fetch], Awaitable[AsyncIterator[bytes] | None]]
"""The bytes asked for, or ``None`` when they are not here."""


class Transport(Protocol):
    """Claim, prepare, abort, commit: AMQP or direct HTTP. At most once *and* at least once: loss and duplicates happen."""

    name: str
    """``rabbitmq`` or ``direct``, for people."""

    @property
    def up(self) -> bool:
        """Whether a request sent now has a chance."""
        ...

    @property
    def detail(self) -> str:
        """One line for people: where the broker is, why it is not up."""
        ...

    async def start(self, handler: Handler) -> None:
        """Begin to serve and to connect; returns before a broker is reached, and reconnects for ever."""
        ...

    async def stop(self) -> None:
        """Stop taking requests, finish what is under way (bounded), end every task."""
        ...

    async def request(self, to: NodeId, message: TransportRequest, *, timeout_s: float) -> TransportReply:
        """Send one request, wait for its reply.

        Raises:
            PeerUnreachable: at once if not connected.
            NoAnswer: after ``timeout_s``.
        """
        ...


class Peers(Protocol):
    """Questions, staging and packs, by direct HTTP whatever the transport is."""

    async def ask(self, to: NodeId, message: DirectRequest, *, timeout_s: float) -> DirectReply:
        """Raises ``PeerUnreachable`` or ``NoAnswer``."""
        ...

    def fetch(self, to: NodeId, message: Fetch, *, stall_s: float) -> AsyncIterator[bytes]:
        """The bytes from ``message.offset`` on; raises ``TransportError`` when nothing came for ``stall_s``."""
        ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DirectAnswer:
    """What ``POST /replicate/{kind}`` answers: a signed envelope, a stream of pack bytes, or a refusal."""

    status: int
    body: bytes | AsyncIterator[bytes]
    content_type: str = "application/json"
    retry_after_s: int | None = None
    """With a 503: when to ask again."""


class DirectEndpoint(Protocol):
    """The serving half of direct HTTP, behind the one port of the front end (``api/replicate.py`` calls it)."""

    async def serve(self, kind: str, body: bytes) -> DirectAnswer:
        """``kind`` is the last part of the path. Never raises; a bad envelope is a refusal, and counted."""
        ...
