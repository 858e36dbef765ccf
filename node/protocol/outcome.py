"""What a client is told. Outcomes are values, not errors; ``unknown`` is first class and never called "failed"."""

from dataclasses import dataclass
from enum import Enum

from node.protocol.certificate import Certificate
from node.protocol.change import Change
from node.protocol.ids import NodeId, Position, RefName, TxnId


class OutcomeKind(Enum):
    """The three outcomes, and the refusal that comes before any vote."""

    COMMITTED = "committed"
    """On a quorum of disks; never lost."""
    ABORTED = "aborted"
    """Certain: it will never appear. A retry is safe."""
    UNKNOWN = "unknown"
    """It may or may not appear; it is being settled. Ask for the transaction."""
    REJECTED = "rejected"
    """Refused before any vote, for reasons of its own: old values, names, conflicts."""


@dataclass(frozen=True, slots=True)
class VoterReport:
    """One voter's part in a transaction, for people: ``yes``, ``no``, ``no answer``, ``lagging`` …, and the reason."""

    node: NodeId
    vote: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.node} {self.vote}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    kind: OutcomeKind
    txn: TxnId
    """The transaction that carries the outcome; another than was submitted if the request was tried again (C6)."""
    quorum: int = 0
    voters: int = 0
    votes: tuple[VoterReport, ...] = ()
    position: Position | None = None
    """Where history stands with the change in it; of committed ones only."""
    change: Change | None = None
    certificate: Certificate | None = None
    reason: str = ""
    """A short lower-case fact, for example ``quorum not reached (1/2): node-2 no answer``."""
    rejections: tuple[tuple[RefName, str], ...] = ()
    """Per ref, why it was refused. A committed outcome may carry some: the other refs of a push that is not atomic."""
    sent: bool = True
    """Whether anything was sent to a voter. Of aborted ones: False says that it was refused at once (C8)."""

    @property
    def confirmed(self) -> int:
        """Voters known to hold the change durably."""
        return sum(vote.vote == "yes" for vote in self.votes)

    @property
    def settled(self) -> bool:
        return self.kind is not OutcomeKind.UNKNOWN
