"""What a claim has gathered, and what C3 reads out of it. Only the majority's word counts, and only the coordinator knows when
that is reached; nothing here decides anything.
"""

from node.protocol.acceptor import Accepted
from node.protocol.change import Change
from node.protocol.ids import Digest, NodeId, Position
from node.protocol.incarnations import Incarnations, older
from node.protocol.messages import InlinePack, Promise


class Promises:
    """The promises at one ballot, by node."""

    def __init__(self) -> None:
        self._of: dict[NodeId, Promise] = {}

    def add(self, node: NodeId, promise: Promise) -> None:
        self._of[node] = promise

    def drop_older(self, table: Incarnations) -> None:
        """R4: what an older life of a node promised does not count once ``table`` knows a newer one."""
        for node in older(((node, promise.incarnation) for node, promise in self._of.items()), table):
            del self._of[node]

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, node: NodeId) -> bool:
        return node in self._of

    def __repr__(self) -> str:
        return f"<Promises of {', '.join(self._of) or 'nobody'}>"

    def highest(self) -> Position:
        """The highest committed version that anybody named; there is at least one promise."""
        return max((promise.committed for promise in self._of.values()), key=lambda position: position.version)

    def clash(self, here: Position) -> Position | None:
        """What somebody committed at the same version as this node, if it is something else."""
        committed = (promise.committed for promise in self._of.values())
        return next((position for position in committed if position.version == here.version and position != here), None)

    def at_least(self, version: int) -> tuple[NodeId, ...]:
        """Who has committed so much."""
        return tuple(node for node, promise in self._of.items() if promise.committed.version >= version)

    def top(self) -> Accepted | None:
        """The accepted record with the highest ballot: it decides what must be finished (C3)."""
        accepted = (promise.accepted for promise in self._of.values() if promise.accepted is not None)
        return max(accepted, key=lambda record: record.ballot, default=None)

    def changes_on(self, base: Position) -> tuple[Change, ...]:
        """Every change that anybody has accepted on ``base``, whatever its ballot."""
        accepted = (promise.accepted for promise in self._of.values() if promise.accepted is not None)
        return tuple(dict.fromkeys(a.change for a in accepted if a.change is not None and a.base == base))

    def objects_of(self, digest: Digest) -> tuple[tuple[NodeId, ...], tuple[InlinePack, ...]]:
        """(who has staged the accepted change that leads to ``digest``, its small packs that rode along)."""
        carriers = [(node, promise) for node, promise in self._of.items() if _carries(promise, digest)]
        holders = tuple(node for node, promise in carriers if promise.staged)
        packs = {pack.sha256: pack for _, promise in carriers for pack in promise.packs}
        return holders, tuple(packs.values())


def _carries(promise: Promise, digest: Digest) -> bool:
    change = promise.accepted.change if promise.accepted is not None else None
    return change is not None and change.position.digest == digest
