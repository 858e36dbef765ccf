"""The failure detector: who is not worth waiting for (C8). An opinion, never a fact; no rule of safety looks at it.

Each peer is asked over direct HTTP every heartbeat. Silence, a refused connection, a peer that has lost its broker or that
is no member (new, rejoining) makes it suspected; its next good answer clears it. The quorum's denominator never shrinks.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import structlog

from node.lasting import Lasting
from node.ports.errors import PeerUnreachable, TransportError
from node.ports.service import PeerState
from node.ports.surroundings import Clock
from node.ports.transport import Peers
from node.protocol.ids import NodeId
from node.protocol.messages import Ping, Pong
from node.protocol.standing import State

OVERDUE_S = 0.2
"""A time limit that is noticed so much late was not watched by anybody: this process stood still."""

log = structlog.get_logger()


class _Stopped(Exception):
    """The question was asked before this process stood still."""


@dataclass(slots=True)
class _Peer:
    url: str
    last_seen_at: float | None = None
    suspected: bool = True
    answers: bool = False
    """Whether it answers at all, its broker in reach or not: enough for reads, which need no broker."""
    reason: str = "not reached yet"


class Liveness:
    """Heartbeats to every peer. ``on_change`` is told the suspected set, ``on_pong`` every answer."""

    def __init__(
        self,
        peers: Peers,
        clock: Clock,
        urls: Iterable[tuple[NodeId, str]],
        *,
        heartbeat_s: float,
        suspect_after_s: float,
        on_change: Callable[[], None],
        on_pong: Callable[[NodeId, Pong], None],
        ping: Callable[[NodeId], Ping] = lambda node: Ping(),
        lasting: Lasting | None = None,
    ) -> None:
        """``ping`` makes what a peer is asked with."""
        self._lasting = lasting or Lasting(clock)
        self._ping = ping
        self._peers = peers
        self._clock = clock
        self._table = {node: _Peer(url) for node, url in urls}
        self._heartbeat_s = heartbeat_s
        self._suspect_after_s = suspect_after_s
        self._on_change = on_change
        self._on_pong = on_pong
        self._hurry = {node: asyncio.Event() for node in self._table}

    @property
    def suspected(self) -> frozenset[NodeId]:
        return frozenset(node for node, peer in self._table.items() if peer.suspected)

    @property
    def unanswering(self) -> frozenset[NodeId]:
        """Peers not worth asking anything."""
        return frozenset(node for node, peer in self._table.items() if not peer.answers)

    @property
    def alive(self) -> tuple[NodeId, ...]:
        return tuple(node for node, peer in self._table.items() if not peer.suspected)

    def states(self) -> tuple[PeerState, ...]:
        """For /health and ``status``."""
        now = self._clock.now()
        return tuple(
            PeerState(
                node,
                peer.url,
                "suspected" if peer.suspected else "alive",
                peer.reason,
                None if peer.last_seen_at is None else round(now - peer.last_seen_at, 3),
            )
            for node, peer in self._table.items()
        )

    def doubt(self, node: NodeId) -> None:
        """A request to ``node`` brought nothing: ask it at once instead of at the next heartbeat."""
        if node in self._hurry:
            self._hurry[node].set()

    async def run(self) -> None:
        """Ask for ever; ends when cancelled."""
        async with asyncio.TaskGroup() as group:
            for node in self._table:
                group.create_task(self._lasting.run(f"the heartbeats to {node}", partial(self._watch, node)))

    async def _watch(self, node: NodeId) -> None:
        while True:
            try:
                await self._ask(node)
            except Exception as error:  # a fault of ours: nobody knows whether it is alive
                self._unheard(self._table[node], f"it could not be asked: {error!r}")
                raise
            self._hurry[node].clear()
            try:
                # Not ``wait_for``: Python 3.11's forgets a cancellation that comes when the event has just been set.
                async with asyncio.timeout(self._heartbeat_s):
                    await self._hurry[node].wait()
            except TimeoutError:
                continue
            await asyncio.sleep(0.05)  # however many doubts are raised, at most 20 questions a second

    async def _ask(self, node: NodeId) -> None:
        try:
            await self._ask_once(node)
        except _Stopped:
            log.info("this process stood still", peer=node)
            await self._ask_once(node, again=True)

    async def _ask_once(self, node: NodeId, *, again: bool = False) -> None:
        peer, began_at = self._table[node], self._clock.now()
        try:
            pong = await self._peers.ask(node, self._ping(node), timeout_s=self._suspect_after_s)
        except TransportError as error:
            # SIGSTOP, a machine that was suspended: what expired meanwhile says nothing about the peer.
            if not again and self._clock.now() - began_at > self._suspect_after_s + OVERDUE_S:
                raise _Stopped from error
            self._not_answered(peer, error)
            return
        if not isinstance(pong, Pong):
            return
        peer.last_seen_at = self._clock.now()
        peer.answers = True
        if pong.standing is not None and pong.standing.state is not State.MEMBER:
            peer.answers = False
            self._suspect(peer, f"it is {pong.standing.state.value}")
        elif not pong.transport_up:
            self._suspect(peer, "its broker connection is down")
        elif peer.suspected:
            peer.suspected, peer.reason = False, ""
            self._on_change()
        self._on_pong(node, pong)

    def _not_answered(self, peer: _Peer, error: TransportError) -> None:
        if isinstance(error, PeerUnreachable):
            peer.answers = False
            self._suspect(peer, str(error))
        else:
            self._unheard(peer, str(error))

    def _unheard(self, peer: _Peer, reason: str) -> None:
        if peer.last_seen_at is None or self._clock.now() - peer.last_seen_at >= self._suspect_after_s:
            peer.answers = False
            self._suspect(peer, reason)

    def _suspect(self, peer: _Peer, reason: str) -> None:
        peer.reason = reason
        if not peer.suspected:
            peer.suspected = True
            self._on_change()
