"""The way to the peers, watched: every request of this node is counted by the circuit breakers and by the retry budget.

Both are decorators of a port, so nobody who asks has to think of it. What the breaker does not admit never leaves this node
and fails at once, as if the connection had been refused: to the protocol that is a message that was lost. Kinds that are not
listed pass always: heartbeats, which are the way back, and whatever a node needs before it may answer anything else.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from node.breaker import SLOW_S, Breakers
from node.ports.errors import PeerUnreachable, TransportError
from node.ports.surroundings import Clock
from node.ports.transport import Handler, Peers, Transport
from node.protocol.ids import NodeId
from node.protocol.messages import (
    DirectReply,
    DirectRequest,
    Fetch,
    History,
    Ping,
    Query,
    Stage,
    Summaries,
    Transaction,
    TransportReply,
    TransportRequest,
)
from node.retries import RetryBudget

GUARDED = (Query, History, Summaries, Stage, Transaction, Fetch)
QUICK = (Ping, Query, Transaction)
"""Answered at once by a peer that is well; of others a late answer says nothing about the peer."""

DOUBT_S = 0.15
"""A vote that is not there by then: the peer is asked at once whether it is alive, instead of at the next heartbeat."""


class Watch:
    """Around one request."""

    def __init__(self, breakers: Breakers, clock: Clock) -> None:
        self._breakers = breakers
        self._clock = clock

    @contextmanager
    def request(self, to: NodeId, *, quick: bool, ping: bool = False, own_fault: bool = False) -> Iterator[None]:
        """``own_fault``: a failure would be this node's, whose broker is away."""
        breakers, began_at = self._breakers, self._clock.now()
        slow = repeating(SLOW_S, lambda: breakers.slow(to, began_at, self._clock.now())) if quick else None
        if not ping:
            breakers.began(to)
        try:
            yield
        except TransportError as error:
            if not own_fault:
                breakers.failed(to, str(error), began_at, self._clock.now())
            raise
        else:
            now = self._clock.now()
            breakers.answered(to, now - began_at if quick else 0.0, now, ping=ping)
        finally:
            if not ping:
                breakers.ended(to)
            if slow is not None:
                slow()


def repeating(every_s: float, do: Callable[[], None]) -> Callable[[], None]:
    """Call ``do`` every so often, until the function that is returned is called."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def again() -> None:
        nonlocal timer
        timer = loop.call_later(every_s, again)
        do()

    timer = loop.call_later(every_s, again)
    return lambda: timer.cancel()


class WatchedPeers:
    """``ports.Peers``."""

    def __init__(self, peers: Peers, breakers: Breakers, clock: Clock, budget: RetryBudget) -> None:
        self._peers = peers
        self._breakers = breakers
        self._watch = Watch(breakers, clock)
        self._budget = budget

    async def ask(self, to: NodeId, message: DirectRequest, *, timeout_s: float) -> DirectReply:
        self._check(to, message)
        ping = isinstance(message, Ping)
        if not ping:
            self._budget.earn()
        with self._watch.request(to, quick=isinstance(message, QUICK), ping=ping):
            return await self._peers.ask(to, message, timeout_s=timeout_s)

    async def fetch(self, to: NodeId, message: Fetch, *, stall_s: float) -> AsyncIterator[bytes]:
        self._check(to, message)
        self._budget.earn()
        async for chunk in self._peers.fetch(to, message, stall_s=stall_s):
            yield chunk

    async def stop(self) -> None:
        await self._peers.stop()

    def _check(self, to: NodeId, message: DirectRequest) -> None:
        if isinstance(message, GUARDED) and not self._breakers.admits(to):
            raise PeerUnreachable(f"{to} is not asked now: {self._breakers.reason(to) or 'it is on trial'}")


class WatchedTransport:
    """``ports.Transport``."""

    def __init__(
        self, transport: Transport, breakers: Breakers, clock: Clock, budget: RetryBudget, doubt: Callable[[NodeId], None]
    ) -> None:
        """``doubt`` asks the failure detector to look at a peer now."""
        self._transport = transport
        self._doubt = doubt
        self._breakers = breakers
        self._watch = Watch(breakers, clock)
        self._budget = budget
        self.name = transport.name

    @property
    def up(self) -> bool:
        return self._transport.up

    @property
    def detail(self) -> str:
        return self._transport.detail

    async def start(self, handler: Handler) -> None:
        await self._transport.start(handler)

    async def stop(self) -> None:
        await self._transport.stop()

    async def request(self, to: NodeId, message: TransportRequest, *, timeout_s: float) -> TransportReply:
        """A vote may be held for good reasons (C7, objects, history): only its absence counts, not its delay."""
        if not self._breakers.admits(to):
            raise PeerUnreachable(f"{to} is not asked now: {self._breakers.reason(to) or 'it is on trial'}")
        self._budget.earn()
        doubt = asyncio.get_running_loop().call_later(DOUBT_S, self._doubt, to)
        try:
            with self._watch.request(to, quick=False, own_fault=not self._transport.up):
                return await self._transport.request(to, message, timeout_s=timeout_s)
        finally:
            doubt.cancel()
