"""A whole cluster without I/O: nodes, a network and virtual time.

Whatever may go differently (``Conditions``) is asked for: delays, losses, crashes before any effect. What must hold is
checked at every step (``Laws``). Nothing here is random, so a seed or a script is a schedule.

Two pure functions are remembered, because every node asks them of the very same objects: the value after a change, and
whether a certificate proves anything.
"""

import heapq
from collections.abc import Callable, Iterable
from typing import Any

from node.protocol.acceptor import CommitOp
from node.protocol.certificate import Certificate
from node.protocol.change import Change
from node.protocol.ids import NodeId
from node.protocol.messages import HistoryEntry
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.protocol.standing import Life, Standing, State
from node.protocol.timing import Timing
from tests.scenarios.cluster_node import Node
from tests.scenarios.conditions import Conditions
from tests.scenarios.laws import Broken, Laws
from tests.scenarios.values import REPOSITORY, founding_certificate, genuine

EVENTS_MAX = 100_000
"""A long schedule has some ten thousand."""


class World:
    """``nodes`` voters of one repository. Everything happens in ``run``."""

    def __init__(
        self,
        nodes: int,
        conditions: Conditions,
        *,
        timing: Timing | None = None,
        quorum: str = "majority",
        say: Callable[[float, NodeId, str], None] | None = None,
        history: Iterable[Change] = (),
        amnesia: bool = False,
    ) -> None:
        self.now = 0.0
        self.conditions = conditions
        self.timing = timing or Timing()
        self.quorum = quorum
        self.voters = VoterSet.of(NodeId(f"node-{n}") for n in range(1, nodes + 1))
        self.laws = Laws(self)
        self.say = say
        self.forgers = False
        """Whether messages are forged in this world: then a worthless certificate is refused, and no reason to give up."""
        self.amnesia = amnesia
        """Whether disks are lost in this world: then nodes ask each other at every start what was seen of them (R4)."""
        self.lives: dict[int, tuple[object, Life]] = {}
        """Where the sender's journal stood when each message left."""
        self.unnoticed = self.rejoined = self.attempts = 0
        """Disks set back of which nobody in reach knew; nodes that came back; incarnations that were asked for."""
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._values: dict[tuple[int, int], tuple[Register, Change, Register]] = {}
        self._flaws: dict[int, tuple[Certificate, VoterSet, str | None]] = {}
        self.nodes = {name: Node(name, self) for name in self.voters.nodes}
        for change in history:
            for node in self.nodes.values():
                node.disk.record, _ = CommitOp(REPOSITORY, change).on(node.disk.record)
                node.disk.register = self.value(node.disk.register, change)
                node.disk.history.append(HistoryEntry(change, founding_certificate(change, self.voters), 0))
            self.laws.decided(change)
            self.laws.committed(change)
        founders = tuple(sorted(node.disk.life.journal for node in self.nodes.values()))
        for node in self.nodes.values():
            node.disk.standing = Standing(State.MEMBER, founders)
            node.start()

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        self._count += 1
        if self._count > EVENTS_MAX:
            raise Broken(f"{EVENTS_MAX} events: something spins, last {getattr(what, '__qualname__', what)}")
        heapq.heappush(self._heap, (self.now + delay_s, self._count, what, args))

    def run(self, until: float) -> None:
        """Let everything happen that is due by ``until``."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, what, args = pop(heap)
            what(*args)
        self.now = until

    def value(self, register: Register, change: Change) -> Register:
        """``register.applied(change)``."""
        key = (id(register), id(change))
        known = self._values.get(key)
        if known is None:
            known = self._values[key] = (register, change, register.applied(change))
        return known[2]

    def flaw(self, certificate: Certificate, voters: VoterSet) -> str | None:
        """``certificate.flaw(voters, …)``, whose signatures anyone can check here."""
        known = self._flaws.get(id(certificate))
        if known is None or known[1] is not voters:
            known = self._flaws[id(certificate)] = (certificate, voters, certificate.flaw(voters, genuine))
        return known[2]

    @property
    def next_at(self) -> float:
        return self._heap[0][0] if self._heap else float("inf")

    def tell(self, node: NodeId, text: str) -> None:
        if self.say is not None:
            self.say(self.now, node, text)
