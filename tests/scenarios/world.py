"""A whole cluster without I/O: nodes, a network and virtual time.

Whatever may go differently (``Conditions``) is asked for: delays, losses, crashes before any effect. What must hold is
checked at every step (``Laws``). Nothing here is random, so a seed or a script is a schedule.
"""

import heapq
from collections.abc import Callable, Iterable
from typing import Any

from node.protocol.acceptor import CommitOp
from node.protocol.change import Change
from node.protocol.ids import NodeId
from node.protocol.messages import (
    HistoryEntry,
)
from node.protocol.quorum import VoterSet
from node.protocol.timing import Timing
from tests.scenarios.cluster_node import Node
from tests.scenarios.conditions import Conditions
from tests.scenarios.laws import Laws
from tests.scenarios.values import REPOSITORY, founding_certificate


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
    ) -> None:
        self.now = 0.0
        self.conditions = conditions
        self.timing = timing or Timing()
        self.quorum = quorum
        self.voters = VoterSet.of(NodeId(f"node-{n}") for n in range(1, nodes + 1))
        self.laws = Laws(self)
        self.say = say
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.nodes = {name: Node(name, self) for name in self.voters.nodes}
        for change in history:
            for node in self.nodes.values():
                node.disk.record, _ = CommitOp(REPOSITORY, change).on(node.disk.record)
                node.disk.register = node.disk.register.applied(change)
                node.disk.history.append(HistoryEntry(change, founding_certificate(change, self.voters), 0))
            self.laws.committed(change)
        for node in self.nodes.values():
            node.start()

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, what, args))

    def run(self, until: float) -> None:
        """Let everything happen that is due by ``until``."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, what, args = heapq.heappop(heap)
            what(*args)
        self.now = until

    @property
    def next_at(self) -> float:
        return self._heap[0][0] if self._heap else float("inf")

    def tell(self, node: NodeId, text: str) -> None:
        if self.say is not None:
            self.say(self.now, node, text)
