"""One ballot's proposal and its tally, the change a client waits for, and what people are told about both.

A ``Proposal`` lives as long as its ballot is the highest this node has issued (C4). A ``Doubt`` lives as long as the outcome
of an own change is not certain, through any number of ballots and owners.
"""

from dataclasses import dataclass, field
from enum import Enum

from node.protocol.batch import Pending
from node.protocol.certificate import Certificate, SignedVote
from node.protocol.change import Change
from node.protocol.ids import Ballot, NodeId, Position
from node.protocol.incarnations import Incarnations, older
from node.protocol.messages import Vote
from node.protocol.outcome import Outcome, OutcomeKind, VoterReport
from node.protocol.quorum import Verdict, VoterSet, tally


class Kind(Enum):
    """What is proposed at a ballot, and why."""

    NEW = "new"
    """A change first proposed in this round by this process: it may be aborted at its deadline (C5)."""
    FOUND = "found"
    """A change found by a claim: never aborted, never replaced by none (C3)."""
    NONE = "none"
    """No change: the abort of an own one, or the settling of a doubt."""


@dataclass(slots=True)
class Proposal:
    """What is being counted at ``ballot``."""

    kind: Kind
    ballot: Ballot
    base: Position
    change: Change | None
    quorum: int
    deadline_at: float
    resend_at: float
    position: Position
    yes: dict[NodeId, Vote | None] = field(default_factory=dict)
    """Voters that accepted, durably; the own vote is ``None`` until it is signed with the decision."""
    noes: dict[NodeId, str] = field(default_factory=dict)
    others: dict[NodeId, str] = field(default_factory=dict)
    """Neither yes nor no: lagging, behind-coordinator, already-committed."""
    sent: bool = False

    def verdict(self, voters: VoterSet, suspected: frozenset[NodeId]) -> Verdict:
        """An abort needs a blocking set, whatever the configured quorum (replication.md, Words)."""
        needed = voters.blocking if self.kind is Kind.NONE else self.quorum
        return tally(voters, needed, self.yes, self.noes, suspected)

    def drop_older(self, me: NodeId, incarnation: int, table: Incarnations) -> None:
        """R4: a yes of an older life of a voter, the own one included, does not count once ``table`` knows a newer one."""
        answered = ((node, incarnation if node == me else vote.incarnation if vote else 0) for node, vote in self.yes.items())
        for node in older(answered, table):
            del self.yes[node]

    def signed_votes(self, me: NodeId) -> tuple[SignedVote, ...]:
        return tuple(
            SignedVote(node, vote.incarnation, vote.signature)
            for node, vote in self.yes.items()
            if vote is not None and node != me
        )

    def reports(self, voters: VoterSet, suspected: frozenset[NodeId]) -> tuple[VoterReport, ...]:
        """Every voter's part, for people."""
        return tuple(self._report(node, suspected) for node in voters.nodes)

    def _report(self, node: NodeId, suspected: frozenset[NodeId]) -> VoterReport:
        if node in self.yes:
            return VoterReport(node, "yes")
        if node in self.noes:
            return VoterReport(node, "refused", self.noes[node])
        if node in self.others:
            return VoterReport(node, "undecided", self.others[node])
        return VoterReport(node, "no answer", "unreachable" if node in suspected else "")

    def __repr__(self) -> str:
        return f"<Proposal {self.kind.name} {self.ballot} {len(self.yes)} yes {len(self.noes)} no of {self.quorum}>"


@dataclass(slots=True)
class Doubt:
    """An own change whose outcome is not certain yet, and the clients that wait for it."""

    change: Change
    pendings: list[Pending]
    proposal: Proposal
    """The one it was first proposed in: its votes are what clients are told."""
    reason: str = ""
    fruitless: bool = False
    """It was given up because the quorum did not answer: trying again at once would not help anybody."""

    @property
    def deadline_at(self) -> float:
        return min(pending.submitted.deadline_at for pending in self.pendings)


@dataclass(slots=True)
class Closing:
    """A decided change whose answer waits a moment for the other live voters, so that it can name them."""

    proposal: Proposal
    pendings: list[Pending]
    certificate: Certificate | None
    answer_at: float


def shortfall(proposal: Proposal, voters: VoterSet, suspected: frozenset[NodeId]) -> str:
    """``quorum not reached (1/2): node-2 no answer, node-3 refused: disk full``."""
    missing = [str(report) for report in proposal.reports(voters, suspected) if report.vote != "yes"]
    return f"quorum not reached ({len(proposal.yes)}/{proposal.quorum}): {', '.join(missing) or 'nobody refused'}"


def refusal(kind: OutcomeKind, pending: Pending, reason: str, voters: VoterSet, quorum: int) -> Outcome:
    """An outcome of a request that is part of no proposal: nothing was sent for it."""
    count = len(voters.nodes)
    return Outcome(kind, pending.txn, quorum, count, reason=reason, rejections=pending.rejections, sent=False)


def outcome(
    kind: OutcomeKind,
    pending: Pending,
    proposal: Proposal,
    voters: VoterSet,
    suspected: frozenset[NodeId],
    *,
    reason: str = "",
    certificate: Certificate | None = None,
) -> Outcome:
    """What became of a request that was part of ``proposal``'s change."""
    committed = kind is OutcomeKind.COMMITTED
    change = proposal.change
    return Outcome(
        kind,
        pending.txn,
        proposal.quorum,
        len(voters.nodes),
        proposal.reports(voters, suspected),
        position=change.position if committed and change else None,
        change=change if committed else None,
        certificate=certificate,
        reason=reason,
        rejections=pending.rejections,
    )
