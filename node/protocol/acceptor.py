"""The acceptor record, and the only functions that may change it.

Each function takes the record as the journal holds it at that moment and returns what it becomes, or why not. The journal
runs them *inside* the transaction that writes the result: so every write re-reads the record and checks its conditions
again (replication.md, "Rules for a voter"), whatever happened while a prepare waited for objects.

Not known here: who asks, who is answered, what a vote is. See ``voter.py`` and ``coordinator.py``.
"""

from dataclasses import dataclass
from enum import Enum

from node.protocol.change import Change
from node.protocol.ids import NO_BALLOT, ORIGIN, Ballot, Position, RepoId


@dataclass(frozen=True, slots=True)
class Accepted:
    """What this voter accepted last. ``change`` is ``None`` for "no change at this base" (V4)."""

    ballot: Ballot
    base: Position
    change: Change | None

    def __post_init__(self) -> None:
        if self.change is not None and self.change.base != self.base:
            raise ValueError("an accepted change stands on the accepted base")


@dataclass(frozen=True, slots=True)
class AcceptorRecord:
    """Durable, one per repository.

    Invariants: ``accepted.base.version <= committed.version``; ``accepted.ballot <= promised``; ``promised``, the
    accepted ballot and ``committed`` never decrease (V5: an accepted ballot is never erased, only replaced by a higher).
    """

    promised: Ballot = NO_BALLOT
    accepted: Accepted | None = None
    committed: Position = ORIGIN

    def __post_init__(self) -> None:
        if self.accepted is not None:
            if self.accepted.base.version > self.committed.version:
                raise ValueError("invariant: the accepted base is never ahead of what is committed")
            if self.accepted.ballot > self.promised:
                raise ValueError("invariant: nothing is accepted above what is promised")

    @property
    def accepted_ballot(self) -> Ballot:
        return self.accepted.ballot if self.accepted else NO_BALLOT

    @property
    def in_doubt(self) -> Change | None:
        """The accepted change whose decision is not known here."""
        if self.accepted is None or self.accepted.base != self.committed:
            return None
        return self.accepted.change


class WriteVerdict(Enum):
    """What became of a conditional write."""

    DONE = "done"
    """The record changed, durably."""
    REPEATED = "repeated"
    """The record already says so; nothing was written, the same answer may be given again."""
    REFUSED = "refused"
    """A higher ballot is promised; or, with a record that promises no more than the ballot, the disk failed: nothing can be
    said about what it holds until the node starts again."""
    MOVED = "moved"
    """The base is not what is committed here; look again."""
    DIVERGENT = "divergent"
    """Two values at one ballot, or two digests at one version: an alarm, and no more votes on this repository."""


@dataclass(frozen=True, slots=True)
class PromiseOp:
    """V1: raise ``promised`` to ``ballot``."""

    repository: RepoId
    ballot: Ballot

    def on(self, record: AcceptorRecord) -> tuple[AcceptorRecord, WriteVerdict]:
        if self.ballot > record.promised:
            return AcceptorRecord(self.ballot, record.accepted, record.committed), WriteVerdict.DONE
        if self.ballot == record.promised:
            return record, WriteVerdict.REPEATED
        return record, WriteVerdict.REFUSED


@dataclass(frozen=True, slots=True)
class AcceptOp:
    """V2 and V4: accept ``change`` (or none) at ``ballot``."""

    repository: RepoId
    ballot: Ballot
    base: Position
    change: Change | None

    def on(self, record: AcceptorRecord) -> tuple[AcceptorRecord, WriteVerdict]:
        held = record.accepted
        if held is not None and held.ballot == self.ballot:
            same = held.base == self.base and held.change == self.change
            return record, WriteVerdict.REPEATED if same else WriteVerdict.DIVERGENT
        if self.ballot < record.promised or self.ballot < record.accepted_ballot:
            return record, WriteVerdict.REFUSED
        if self.base != record.committed:
            divergent = self.base.version == record.committed.version
            return record, WriteVerdict.DIVERGENT if divergent else WriteVerdict.MOVED
        accepted = Accepted(self.ballot, self.base, self.change)
        return AcceptorRecord(self.ballot, accepted, record.committed), WriteVerdict.DONE


@dataclass(frozen=True, slots=True)
class CommitOp:
    """C4, V3, R2: ``change`` is decided; raise ``committed`` by one. Promised and accepted are never touched."""

    repository: RepoId
    change: Change

    def on(self, record: AcceptorRecord) -> tuple[AcceptorRecord, WriteVerdict]:
        position = self.change.position
        if position.version <= record.committed.version:
            known = position.version < record.committed.version or position == record.committed
            return record, WriteVerdict.REPEATED if known else WriteVerdict.DIVERGENT
        if self.change.base != record.committed:
            divergent = self.change.base.version == record.committed.version
            return record, WriteVerdict.DIVERGENT if divergent else WriteVerdict.MOVED
        return AcceptorRecord(record.promised, record.accepted, position), WriteVerdict.DONE


@dataclass(frozen=True, slots=True)
class RejoinOp:
    """R4: take over what a majority remembers of a repository, after history is caught up. It lowers nothing, and no vote
    follows from it."""

    repository: RepoId
    promised: Ballot
    accepted: Accepted | None
    """The record with the highest ballot."""

    def on(self, record: AcceptorRecord) -> tuple[AcceptorRecord, WriteVerdict]:
        accepted = record.accepted
        if self.accepted is not None and self.accepted.ballot >= record.accepted_ballot:
            if accepted is not None and self.accepted.ballot == accepted.ballot and self.accepted != accepted:
                return record, WriteVerdict.DIVERGENT
            if self.accepted.base.version > record.committed.version:
                return record, WriteVerdict.MOVED
            if self.accepted.base.version == record.committed.version and self.accepted.base != record.committed:
                return record, WriteVerdict.DIVERGENT
            accepted = self.accepted
        promised = max(record.promised, self.promised, accepted.ballot if accepted else NO_BALLOT)
        after = AcceptorRecord(promised, accepted, record.committed)
        return after, WriteVerdict.REPEATED if after == record else WriteVerdict.DONE


Op = PromiseOp | AcceptOp | CommitOp | RejoinOp
