"""What must hold at every step of a test cluster, whatever its world does; ``Broken`` says what did not.

* One history: a version is one change everywhere, and no change is in it twice.
* What is committed anywhere was decided before, by a coordinator that counted a quorum (C4); two changes are never decided
  for one version, and a decided one is on a quorum of disks, fsynced, at that moment.
* Acknowledged: on a quorum of disks at that moment, and in every voter's history at the end.
* An id of a transaction names one change. Aborted: never committed; and none is in history twice, whatever ids its tries had.
* A record never goes back, and a change is accepted only on what is committed there (V2); what a node once told anybody (a
  promise, a yes) is on its disk after any crash of that incarnation.
* Reads: a served version is at least every version that was acknowledged to or read by anybody before the read began, and is
  committed. Versions are totally ordered and every change is one version, so this is linearizability of the whole history.

A disk that a fault destroyed counts as holding what it held: the guarantees say "a minority may be in amnesia".
"""

from typing import TYPE_CHECKING

from node.protocol.acceptor import AcceptorRecord
from node.protocol.change import Change
from node.protocol.ids import NO_BALLOT, Ballot, Digest, NodeId, Position, TxnId
from node.protocol.messages import Promise, TransportReply, Vote, VoteKind
from node.protocol.outcome import Outcome, OutcomeKind
from tests.scenarios.disk import Disk
from tests.scenarios.values import stem
from tests.scenarios.words import names

if TYPE_CHECKING:
    from tests.scenarios.world import World


class Broken(AssertionError):
    """Something that must always hold does not."""


class Laws:
    """What must hold at every step: one history, nothing acknowledged lost, nothing aborted seen, no record going back."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._digests: dict[int, Change] = {}
        self._decided: dict[int, Digest] = {}
        self._undone: set[Digest] = set()
        self._in_history: dict[str, int] = {}
        self._gone: set[str] = set()
        self._promised: dict[tuple[NodeId, int], Ballot] = {}
        """The highest ballot that a node told anybody it has promised, by incarnation."""
        self._voted: dict[tuple[NodeId, int], Ballot] = {}
        self._change_of: dict[TxnId, Digest] = {}
        self._destroyed: dict[NodeId, tuple[int, set[Digest]]] = {}
        """What was on disks that a fault destroyed: the committed version, and accepted changes."""
        self.acknowledged: dict[int, Position] = {}
        self.told: dict[TxnId, list[Outcome]] = {}
        self.told_at: dict[TxnId, float] = {}
        """When each request had its first answer."""
        self.seen = 0
        """The highest version that was acknowledged, or read by anybody."""
        self.reads = 0

    # ------------------------------------------------------------ disks

    def written(self, node: NodeId, before: AcceptorRecord, after: AcceptorRecord) -> None:
        back = after.promised < before.promised or after.accepted_ballot < before.accepted_ballot
        if back or after.committed.version < before.committed.version:
            raise Broken(f"the record of {node} went back: {before} became {after}")
        accepted = after.accepted
        if accepted is not None and accepted is not before.accepted and accepted.base != before.committed:
            raise Broken(f"{node} accepts on {accepted.base}, and stands at {before.committed}")

    def said(self, node: NodeId, incarnation: int, reply: TransportReply) -> None:
        """A reply leaves ``node``."""
        key = (node, incarnation)
        if isinstance(reply, Promise):
            self._promised[key] = max(self._promised.get(key, NO_BALLOT), reply.ballot)
        elif isinstance(reply, Vote) and reply.kind is VoteKind.YES:
            self._promised[key] = max(self._promised.get(key, NO_BALLOT), reply.ballot)
            self._voted[key] = max(self._voted.get(key, NO_BALLOT), reply.ballot)

    def woken(self, node: NodeId, incarnation: int, record: AcceptorRecord) -> None:
        """``node`` starts with this on its disk: what it told anybody in this incarnation must be there."""
        key = (node, incarnation)
        if (told := self._promised.get(key, NO_BALLOT)) > record.promised:
            raise Broken(f"{node} promised {told}, and wakes with {record.promised}: a promise fell")
        if (told := self._voted.get(key, NO_BALLOT)) > record.accepted_ballot:
            raise Broken(f"{node} voted yes at {told}, and wakes with {record.accepted_ballot}: its vote is forgotten")

    def named(self, change: Change) -> None:
        """A transaction's id is never used for another change (replication.md, Words)."""
        digest = change.position.digest
        for txn in change.txns:
            if self._change_of.setdefault(txn, digest) != digest:
                raise Broken(f"{txn} names two changes")

    def destroyed(self, node: NodeId, disk: Disk) -> None:
        """A fault takes the disk of ``node`` away, or sets it back."""
        version, accepted = self._destroyed.get(node, (0, set()))
        held = disk.record.accepted
        if held is not None and held.change is not None:
            accepted.add(held.change.position.digest)
        self._destroyed[node] = (max(version, disk.record.committed.version), accepted)

    def _holders(self, position: Position) -> int:
        return sum(self._holds(node.name, node.disk, position) for node in self._world.nodes.values())

    def _holds(self, node: NodeId, disk: Disk, position: Position) -> bool:
        if disk.record.committed.version >= position.version:
            return True
        held = disk.record.accepted
        if held is not None and held.change is not None and held.change.position == position:
            return True
        version, accepted = self._destroyed.get(node, (0, ()))
        return version >= position.version or position.digest in accepted

    # ------------------------------------------------------------ history

    def decided(self, change: Change, quorum: int = 0) -> None:
        position = change.position
        if self._decided.setdefault(position.version, position.digest) != position.digest:
            raise Broken(f"two changes were decided for version {position.version}")
        if position.digest in self._undone:
            raise Broken(f"{names(change)} was certainly aborted, and is decided")
        if (holders := self._holders(position)) < quorum:
            raise Broken(f"{names(change)} is decided with a quorum of {quorum}, and on {holders} disks")

    def committed(self, change: Change) -> None:
        position = change.position
        known = self._digests.setdefault(position.version, change)
        if known is not change and known.position != position:
            raise Broken(f"version {position.version} is {names(known)} and {names(change)}")
        if self._decided.get(position.version) != position.digest:
            raise Broken(f"{names(change)} is committed as version {position.version}, and was never decided")
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
        position = change.position
        if self._decided.get(position.version) == position.digest:
            raise Broken(f"{names(change)} is decided, and called certainly aborted")

    # ------------------------------------------------------------ clients

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
        known = self._digests.get(position.version)
        if known is None or known.position != position or outcome.txn not in known.txns:
            raise Broken(f"{submitted} is answered committed at {position}, which does not contain it")
        holders = self._holders(position)
        if holders < outcome.quorum or outcome.quorum < self._world.voters.majority:
            raise Broken(f"{submitted} is answered committed, and on {holders} disks")
        self.acknowledged[position.version] = position
        self.seen = max(self.seen, position.version)

    def kept(self, node: NodeId, disk: Disk) -> None:
        """At the end: every acknowledged change is in the history of ``node``."""
        for version, position in self.acknowledged.items():
            if len(disk.history) < version or disk.history[version - 1].change.position != position:
                raise Broken(f"version {version} was acknowledged, and is not in the history of {node}: a write is lost")

    def served(self, node: NodeId, position: Position, seen: int) -> None:
        version = position.version
        if version < seen:
            raise Broken(f"{node} serves version {version} to a read that began after version {seen} was known")
        known = self._digests.get(version)
        if version and (known is None or known.position != position):
            raise Broken(f"{node} serves {position}, which is not committed")
        self.seen = max(self.seen, version)
        self.reads += 1

    def alarm(self, node: NodeId, reason: str) -> None:
        raise Broken(f"{node} raises an alarm: {reason}")
