"""What must hold at every step of a test cluster, whatever its world does; ``Broken`` says what did not."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from node.protocol.acceptor import AcceptorRecord
from node.protocol.change import Change, PackRef
from node.protocol.ids import Digest, NodeId, Position, TxnId
from node.protocol.messages import HistoryEntry
from node.protocol.outcome import Outcome, OutcomeKind
from node.protocol.register import Register
from tests.scenarios.values import stem
from tests.scenarios.words import names

if TYPE_CHECKING:
    from tests.scenarios.world import World


class Broken(AssertionError):
    """Something that must always hold does not."""


@dataclass(slots=True)
class Disk:
    """What survives a crash of one node."""

    register: Register
    record: AcceptorRecord = field(default_factory=AcceptorRecord)
    history: list[HistoryEntry] = field(default_factory=list)
    stage: dict[str, set[Digest]] = field(default_factory=dict)
    """Packs by who needs them: a change (its digest), or a request under way."""
    objects: set[Digest] = field(default_factory=set)
    """Packs of applied changes."""
    stopped: str = ""
    failed: bool = False
    """After a failed fsync every later write is refused, until the next start."""

    def holds(self, packs: Iterable[PackRef]) -> bool:
        return all(pack.sha256 in self.objects or any(pack.sha256 in held for held in self.stage.values()) for pack in packs)

    def keep(self, owner: str, packs: Iterable[PackRef]) -> None:
        if wanted := {pack.sha256 for pack in packs} - self.objects:
            self.stage[owner] = wanted


class Laws:
    """What must hold at every step: one history, nothing acknowledged lost, nothing aborted seen, no record going back."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._digests: dict[int, Change] = {}
        self._decided: dict[int, Digest] = {}
        self._undone: set[Digest] = set()
        self._in_history: dict[str, int] = {}
        self._gone: set[str] = set()
        self.told: dict[TxnId, list[Outcome]] = {}
        self.told_at: dict[TxnId, float] = {}
        """When each request had its first answer."""
        self.seen = 0
        """The highest version that was acknowledged, or read by anybody."""

    def written(self, before: AcceptorRecord, after: AcceptorRecord) -> None:
        back = after.promised < before.promised or after.accepted_ballot < before.accepted_ballot
        if back or after.committed.version < before.committed.version:
            raise Broken(f"a record went back: {before} became {after}")

    def decided(self, change: Change) -> None:
        position = change.position
        if self._decided.setdefault(position.version, position.digest) != position.digest:
            raise Broken(f"two changes were decided for version {position.version}")

    def committed(self, change: Change) -> None:
        position = change.position
        known = self._digests.setdefault(position.version, change)
        if known.position != position:
            raise Broken(f"version {position.version} is {names(known)} and {names(change)}")
        if position.digest in self._undone:
            raise Broken(f"{names(change)} was certainly aborted, and is committed")
        for txn in change.txns:
            first = self._in_history.setdefault(stem(txn), position.version)
            if first != position.version:
                raise Broken(f"{txn} is in history twice, at versions {first} and {position.version}")
            if stem(txn) in self._gone:
                raise Broken(f"{txn} was answered aborted, and is committed")

    def undone(self, change: Change) -> None:
        self._undone.add(change.position.digest)
        known = self._digests.get(change.position.version)
        if known is not None and known.position == change.position:
            raise Broken(f"{names(change)} is committed, and called certainly aborted")

    def answered(self, submitted: TxnId, outcome: Outcome) -> None:
        told = self.told.setdefault(submitted, [])
        if any(earlier.settled for earlier in told) or (told and not outcome.settled):
            raise Broken(f"{submitted} is answered {outcome.kind.value} after {told[-1].kind.value}")
        told.append(outcome)
        self.told_at.setdefault(submitted, self._world.now)
        if outcome.kind is OutcomeKind.COMMITTED:
            self._on_quorum(submitted, outcome)
        elif outcome.settled:
            self._gone.add(stem(submitted))
            if stem(submitted) in self._in_history:
                raise Broken(f"{submitted} is in history, and answered {outcome.kind.value}")

    def _on_quorum(self, submitted: TxnId, outcome: Outcome) -> None:
        position = outcome.position
        assert position is not None
        if outcome.txn not in self._digests[position.version].txns:
            raise Broken(f"{submitted} is answered committed at {position}, which does not contain it")
        holders = sum(self._holds(node.disk, position) for node in self._world.nodes.values())
        if holders < outcome.quorum or outcome.quorum < self._world.voters.majority:
            raise Broken(f"{submitted} is answered committed, and on {holders} disks")
        self.seen = max(self.seen, position.version)

    @staticmethod
    def _holds(disk: Disk, position: Position) -> bool:
        held = disk.record.accepted
        accepted = held is not None and held.change is not None and held.change.position == position
        return accepted or disk.record.committed.version >= position.version

    def served(self, node: NodeId, version: int, seen: int) -> None:
        if version < seen:
            raise Broken(f"{node} serves version {version} to a read that began after version {seen} was known")
        self.seen = max(self.seen, version)

    def alarm(self, node: NodeId, reason: str) -> None:
        raise Broken(f"{node} raises an alarm: {reason}")
