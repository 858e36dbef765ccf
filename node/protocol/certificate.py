"""Statements that nodes sign, and the commit certificate made of them (replication.md, "Signatures").

A certificate is a quorum of yes-change signatures at one ballot plus the ballot owner's ``decision`` on the same tuple. Votes
alone prove only that those nodes stored the change: an aborted one can have a full set. This module builds statements and
says what a complete certificate is; signing and verifying them is a port's business (``ports.Signer``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from node.protocol.ids import Ballot, Digest, NodeId, Position, RepoId
from node.protocol.quorum import VoterSet


class StatementKind(Enum):
    """What a node vouches for."""

    YES_CHANGE = "yes-change"
    """Accepted, durably, the change that leads to this position."""
    YES_NONE = "yes-none"
    """Accepted, durably, "no change" on this base."""
    DECISION = "decision"
    """Owns the ballot, and has counted a quorum of yes-change votes for it."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One signed sentence. ``position`` is the one the change leads to, or the base for "no change"."""

    kind: StatementKind
    repository: RepoId
    voters: Digest
    quorum: int
    position: Position
    ballot: Ballot
    incarnation: int

    def encode(self) -> bytes:
        """The bytes that are signed: one field a line, none of which can hold a newline."""
        fields = (
            "gitquorum-statement-v1",
            self.kind.value,
            self.repository,
            self.voters,
            str(self.quorum),
            str(self.position.version),
            self.position.digest,
            str(self.ballot),
            str(self.incarnation),
        )
        return "\n".join(fields).encode()


@dataclass(frozen=True, slots=True)
class SignedVote:
    """A voter's yes-change signature; the rest of its statement is the certificate's."""

    node: NodeId
    incarnation: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """Why a change is committed; checkable offline with the nodes' public keys, retired ones included."""

    repository: RepoId
    voters: Digest
    quorum: int
    position: Position
    ballot: Ballot
    votes: tuple[SignedVote, ...]
    decision: SignedVote

    def statement(self, kind: StatementKind, incarnation: int) -> Statement:
        return Statement(kind, self.repository, self.voters, self.quorum, self.position, self.ballot, incarnation)

    def flaw(self, voters: VoterSet, verify: Callable[[NodeId, bytes, bytes], bool]) -> str | None:
        """Why this certificate proves nothing, or ``None`` when it does; ``verify(node, message, signature)``."""
        if self.voters != voters.digest:
            return "it names another voter set"
        if not voters.majority <= self.quorum <= len(voters.nodes):
            return f"a quorum of {self.quorum} is no majority"
        if self.decision.node != self.ballot.node:
            return "its decision is not signed by the ballot's owner"
        signers = {vote.node for vote in self.votes}
        if len(signers) != len(self.votes) or not signers <= set(voters.nodes):
            return "it counts a vote twice, or one of a stranger"
        if len(signers) < self.quorum:
            return f"it holds {len(signers)} votes of a quorum of {self.quorum}"
        signed = [(StatementKind.YES_CHANGE, vote) for vote in self.votes] + [(StatementKind.DECISION, self.decision)]
        for kind, vote in signed:
            if not verify(vote.node, self.statement(kind, vote.incarnation).encode(), vote.signature):
                return f"the {kind.value} signature of {vote.node} is wrong"
        return None
