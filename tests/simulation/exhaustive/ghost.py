"""What has been said so far, as far as the laws need it: the part of a state that no node holds.

The same laws as ``tests/scenarios/laws.py`` has, on immutable values: one history; nothing certainly aborted is committed;
nothing is answered twice; who was told "committed" is in history, and who was told "aborted" is not. Laws about disks and reads
look at the nodes: ``views.py``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from node.protocol.ids import Digest, TxnId
from node.protocol.outcome import OutcomeKind
from tests.scenarios.laws import Broken
from tests.scenarios.values import stem
from tests.simulation.exhaustive.happenings import Committed, Decided, Fact, Told, Undone


@dataclass(frozen=True, slots=True)
class Ghost:
    """Everything is sorted, so that equal knowledge is an equal value."""

    history: tuple[tuple[int, Digest], ...] = ()
    """Version and digest of whatever any journal committed."""
    decided: tuple[tuple[int, Digest], ...] = ()
    undone: tuple[Digest, ...] = ()
    told: tuple[tuple[TxnId, OutcomeKind], ...] = ()
    """The last word about each push."""
    placed: tuple[tuple[str, int], ...] = ()
    """Where in history each push stands."""
    acknowledged: tuple[Digest, ...] = ()
    """Changes of which a client was told that they are committed."""
    seen: int = 0
    """The highest version that was acknowledged."""

    def after(self, facts: Iterable[Fact]) -> "Ghost":
        """Raises ``Broken`` when they do not agree with what was said before."""
        ghost = self
        for fact in facts:
            match fact:
                case Committed():
                    ghost = ghost._committed(fact)
                case Decided():
                    ghost = ghost._decided(fact)
                case Undone():
                    ghost = ghost._undone(fact)
                case Told():
                    ghost = ghost._told(fact)
        return ghost

    def _committed(self, fact: Committed) -> "Ghost":
        version, digest = fact.position.version, fact.position.digest
        history, placed = dict(self.history), dict(self.placed)
        if history.setdefault(version, digest) != digest:
            raise Broken(f"version {version} is {history[version][:8]} and {digest[:8]}, {'+'.join(fact.txns)}")
        if digest in self.undone:
            raise Broken(f"{'+'.join(fact.txns)} was certainly aborted, and is committed")
        told = dict(self.told)
        for txn in fact.txns:
            if placed.setdefault(stem(txn), version) != version:
                raise Broken(f"{txn} is in history twice, at versions {placed[stem(txn)]} and {version}")
            if told.get(TxnId(stem(txn))) in (OutcomeKind.ABORTED, OutcomeKind.REJECTED):
                raise Broken(f"{txn} was answered aborted, and is committed")
        return replace(self, history=tuple(sorted(history.items())), placed=tuple(sorted(placed.items())))

    def _decided(self, fact: Decided) -> "Ghost":
        version, digest = fact.position.version, fact.position.digest
        decided = dict(self.decided)
        if decided.setdefault(version, digest) != digest or dict(self.history).get(version, digest) != digest:
            raise Broken(f"two changes were decided for version {version}")
        return replace(self, decided=tuple(sorted(decided.items())))

    def _undone(self, fact: Undone) -> "Ghost":
        digest = fact.position.digest
        if (fact.position.version, digest) in self.history:
            raise Broken(f"version {fact.position.version} is committed, and called certainly aborted")
        if digest in dict(self.decided).values():
            raise Broken(f"a change for version {fact.position.version} was decided, and is called certainly aborted")
        return replace(self, undone=tuple(sorted({*self.undone, digest})))

    def _told(self, fact: Told) -> "Ghost":
        told = dict(self.told)
        before = told.get(fact.txn)
        if before is not None and (before is not OutcomeKind.UNKNOWN or fact.kind is OutcomeKind.UNKNOWN):
            raise Broken(f"{fact.txn} is answered {fact.kind.value} after {before.value}")
        told[fact.txn] = fact.kind
        ghost = replace(self, told=tuple(sorted(told.items())))
        if fact.kind is OutcomeKind.COMMITTED:
            position = fact.position
            if position is None or dict(self.placed).get(stem(fact.carrier)) != position.version:
                raise Broken(f"{fact.txn} is answered committed at {position}, where it is not")
            acknowledged = tuple(sorted({*self.acknowledged, position.digest}))
            return replace(ghost, acknowledged=acknowledged, seen=max(self.seen, position.version))
        if fact.kind is not OutcomeKind.UNKNOWN and stem(fact.txn) in dict(self.placed):
            raise Broken(f"{fact.txn} is in history, and answered {fact.kind.value}")
        return ghost
