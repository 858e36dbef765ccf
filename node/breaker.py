"""A circuit breaker for each peer, fed by real traffic: who fails or is slow is not waited for, and comes back by itself.

Heartbeats (``liveness``) notice a peer that is gone. They do not notice one that answers them and nothing else, nor one that
answers late but within their patience; every push would wait its moment of grace for that one. So every request to a peer is
watched, pings too, and counted here:

    CLOSED ──failures in a row, or slow ones──▶ OPEN ──pause over, and a quick ping──▶ HALF_OPEN ──quick answers──▶ CLOSED
                                                 ▲                                        │
                                                 └──────a failure or a slow one, twice the pause┘

OPEN means: not waited for, as if suspected (C8). It is an opinion and never a fact: the quorum's denominator does not shrink,
no rule of safety looks at it. Heartbeats go on, so there is no trial that could be forgotten; HALF_OPEN lets a few requests at
once through to the peer, no more.

Slow is relative: a peer is slow when another one answered meanwhile, and it is skipped for being slow only while a write
quorum is left without it. A node that is overloaded itself finds everybody slow, and must not cut itself off for that. So it
is on the way back: where no write quorum is left without a peer, a slow answer is as good as a quick one; and one that
answers at all after the pause is asked again, though not waited for. Else a peer that is far away never came back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

import structlog

from node.protocol.ids import NodeId

log = structlog.get_logger()

FAILURES_MAX = 5
"""Requests in a row that brought nothing open the circuit."""

SLOW_S = 0.3
"""An answer that takes longer is slow; three times the moment for which a decided push waits to name all voters."""

SLOW_MAX = 2
"""So often in a row an answer was awaited for that long, another peer answering meanwhile, before the circuit opens; one that
does not come at all counts each time anew."""

PAUSE_S = 0.5
PAUSE_S_MAX = 8.0
"""How long the circuit stays open, at the least; doubles with each trial that fails."""

TRIALS_MAX = 3
"""Requests under way at once to a peer that is on trial."""

GOOD_MAX = 4
"""Quick answers in a row, pings included, that close the circuit again: two seconds of heartbeats where there is no traffic."""


class Circuit(Enum):
    """One peer's state."""

    CLOSED = "closed"
    """Nothing is wrong."""
    OPEN = "open"
    """Not waited for."""
    HALF_OPEN = "half-open"
    """On trial."""


@dataclass(slots=True)
class _Peer:
    circuit: Circuit = Circuit.CLOSED
    reason: str = ""
    failures: int = 0
    slow: int = 0
    good: int = 0
    trials: int = 0
    pause_s: float = PAUSE_S
    open_until: float = 0.0
    answered_at: float = float("-inf")
    spoke_at: float = float("-inf")
    """When it last answered anything but a ping."""
    opened: int = 0
    refused: int = 0


class Breakers:
    """One circuit per peer. Times are the node's monotonic clock; ``on_change`` is told when somebody is waited for or not."""

    def __init__(
        self, peers: Iterable[NodeId], *, needed: int, suspected: Callable[[], frozenset[NodeId]], on_change: Callable[[], None]
    ) -> None:
        """``needed`` for a write, this node included; ``suspected`` is the failure detector's own opinion."""
        self._peers = {peer: _Peer() for peer in peers}
        self._needed = needed
        self._suspected = suspected
        self._on_change = on_change

    def __repr__(self) -> str:
        return f"<Breakers {', '.join(f'{node} {peer.circuit.value}' for node, peer in self._peers.items())}>"

    @property
    def open(self) -> frozenset[NodeId]:
        """Whom not to wait for."""
        return frozenset(node for node, peer in self._peers.items() if peer.circuit is Circuit.OPEN)

    def reason(self, node: NodeId) -> str:
        """Why it is not waited for, for people; empty if it is."""
        peer = self._peers.get(node)
        return peer.reason if peer is not None and peer.circuit is Circuit.OPEN else ""

    def opened(self, node: NodeId) -> int:
        """How often its circuit has opened."""
        return self._peers[node].opened

    def admits(self, node: NodeId) -> bool:
        """Whether a request may go to it now: on trial, a few at once. A slow one is asked nothing that has to be waited for,
        but what is asked all the same is not kept from it."""
        peer = self._peers.get(node)
        if peer is None:
            return True
        failing = peer.circuit is Circuit.OPEN and peer.failures >= FAILURES_MAX
        crowded = peer.circuit is Circuit.HALF_OPEN and peer.trials >= TRIALS_MAX
        peer.refused += failing or crowded
        return not (failing or crowded)

    # ------------------------------------------------------------ what requests came to

    def began(self, node: NodeId) -> None:
        """A request that is no ping is under way; ``ended`` follows, whatever comes of it."""
        if (peer := self._peers.get(node)) is not None:
            peer.trials += 1

    def ended(self, node: NodeId) -> None:
        if (peer := self._peers.get(node)) is not None:
            peer.trials -= 1

    def answered(self, node: NodeId, took_s: float, now: float, *, ping: bool = False) -> None:
        """Any verified answer counts, a refusal too: the peer is there."""
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.answered_at = now
        if not ping:
            peer.spoke_at = now
        if took_s > SLOW_S and self._spared(node):
            if peer.circuit is Circuit.OPEN and peer.failures and now >= peer.open_until:
                peer.failures, peer.reason = 0, f"it answers again, but slower than {SLOW_S:g} s"
            return  # ``slow`` was told when that time was over
        peer.slow = 0
        if peer.circuit is Circuit.CLOSED:
            # A heartbeat is no proof against what fails: the ping's path is not the vote's.
            peer.failures = peer.failures if ping else 0
        elif peer.circuit is Circuit.HALF_OPEN:
            # While a trial is under way its answer is awaited: pings alone would call a peer well that answers nothing else.
            peer.good += not (ping and peer.trials)
            if peer.good >= GOOD_MAX:
                self._close(node, peer)
        elif ping and now >= peer.open_until:
            peer.circuit, peer.good, peer.failures = Circuit.HALF_OPEN, 0, 0
            log.info("circuit half-open", peer=node)
            self._on_change()

    def failed(self, node: NodeId, reason: str, began_at: float, now: float) -> None:
        """Nothing came back, or the connection was refused. If other answers came meanwhile it is the request that is slow, a
        vote that waits for history perhaps, and not the peer."""
        peer = self._peers.get(node)
        if peer is None or peer.spoke_at > began_at:
            return
        peer.failures += 1
        if peer.circuit is Circuit.HALF_OPEN or (peer.circuit is Circuit.CLOSED and peer.failures >= FAILURES_MAX):
            peer.failures = max(peer.failures, FAILURES_MAX)
            self._open(node, peer, f"{FAILURES_MAX} requests in a row failed, the last one: {reason}", now)

    def slow(self, node: NodeId, began_at: float, now: float) -> None:
        """No answer yet after ``SLOW_S``, or after so long once more."""
        peer = self._peers.get(node)
        if peer is None or peer.circuit is Circuit.OPEN:
            return
        others = [other for name, other in self._peers.items() if name != node]
        if not any(other.answered_at > began_at for other in others):
            return  # everybody is slow, or nobody was asked: it may be this node
        peer.slow += 1
        if (peer.slow >= SLOW_MAX or peer.circuit is Circuit.HALF_OPEN) and self._spared(node):
            self._open(node, peer, f"slower than {SLOW_S:g} s while others answer", now)

    def _spared(self, node: NodeId) -> bool:
        """Whether a write quorum is left without it."""
        gone = self._suspected() | self.open | {node}
        return 1 + len(self._peers.keys() - gone) >= self._needed

    # ------------------------------------------------------------ the states

    def _open(self, node: NodeId, peer: _Peer, reason: str, now: float) -> None:
        peer.pause_s = min(peer.pause_s * 2, PAUSE_S_MAX) if peer.circuit is Circuit.HALF_OPEN else PAUSE_S
        peer.circuit, peer.reason, peer.open_until = Circuit.OPEN, reason, now + peer.pause_s
        peer.slow = 0
        peer.opened += 1
        log.warning("circuit open", peer=node, reason=reason, pause_s=peer.pause_s)
        self._on_change()

    def _close(self, node: NodeId, peer: _Peer) -> None:
        peer.circuit, peer.reason = Circuit.CLOSED, ""
        peer.failures = peer.slow = 0
        log.info("circuit closed", peer=node)
        self._on_change()
