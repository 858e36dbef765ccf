"""How a test node catches up (R2), as ``node/catching_up.py`` does: objects first, then proved history, from whoever has it.

It sees only what is durable on a peer: readers of a WAL see a commit after its fsync.
"""

from typing import TYPE_CHECKING

from node.protocol.acceptor import CommitOp
from node.protocol.catchup import HistoryRefused, steps
from node.protocol.ids import NodeId, Position
from node.protocol.messages import HistoryPage
from tests.scenarios.laws import Broken
from tests.scenarios.values import REPOSITORY

if TYPE_CHECKING:
    from tests.scenarios.cluster_node import Node

PAUSE_S_MAX = 1.0
"""Between tries; who is behind never stops trying."""


class Learner:
    """One life's catch-up; calls join."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._up_to = 0
        self._holders: tuple[NodeId, ...] = ()
        self._told: set[Position] = set()
        self._busy = False

    def to(self, version: int, holders: tuple[NodeId, ...], told: Position | None) -> None:
        node = self._node
        if version <= node.register.position.version:
            return
        self._up_to = max(self._up_to, version)
        self._holders = tuple(dict.fromkeys((*holders, *self._holders)))
        if told:
            self._told.add(told)
        if not self._busy:
            self._busy = True
            node.after(node.world.conditions.direct_delay(), self._page, 0)

    def _page(self, failures: int) -> None:
        node = self._node
        here = node.register.position
        if here.version >= self._up_to:
            self._busy, self._holders, self._told = False, (), set()
            return
        names = dict.fromkeys((*self._holders, *node.register.voters.nodes))
        for peer in (node.world.nodes[name] for name in names if name != node.name):
            if node.reaches(peer) and peer.disk.register.position.version > here.version and self._of(peer):
                return
        node.after(min(0.2 * (failures + 1), PAUSE_S_MAX), self._page, failures + 1)

    def _of(self, peer: "Node") -> bool:
        node = self._node
        here, register = node.register.position, peer.disk.register
        page = HistoryPage(REPOSITORY, tuple(peer.disk.history[here.version :]), register.position, register.floor)
        flaw = node.world.flaw
        try:
            proved = steps(here, page, lambda _, certificate: flaw(certificate, node.register.voters), self._told)
        except HistoryRefused as error:
            raise Broken(f"{node.name} refuses the history of {peer.name}: {error}") from error
        if not proved or any(node.get(step.change, (peer.name,)) for step in proved if step.needs_objects):
            return False
        node.moot_up_to = max(node.moot_up_to, page.floor)
        for step in proved[:-1]:
            node.write(CommitOp(REPOSITORY, step.change), step.certificate)
        node.write(CommitOp(REPOSITORY, proved[-1].change), proved[-1].certificate, lambda: self._learned(here))
        return True

    def _learned(self, before: Position) -> None:
        """Go on with the next page; a journal that took nothing is not asked again at once."""
        if self._node.register.position == before:
            self._node.after(0.5, self._page, 1)
        else:
            self._page(0)
