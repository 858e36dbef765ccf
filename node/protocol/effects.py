"""What the machines ask the runtime to do, in order: persist before send is visible in the list.

The runtime performs effects one after another and feeds what comes of them back as events (``events.py``). A crash may
fall between any two; the simulator makes it do so.
"""

from dataclasses import dataclass

from node.protocol.acceptor import Op
from node.protocol.certificate import SignedVote
from node.protocol.change import Change
from node.protocol.ids import Ballot, NodeId, TxnId
from node.protocol.messages import TransportReply, TransportRequest
from node.protocol.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Write:
    """A conditional write to the acceptor record; ``events.Written`` tells what became of it."""

    op: Op


@dataclass(frozen=True, slots=True)
class Decide:
    """C4: a quorum is counted. Sign the own vote and the decision, persist the commit with its certificate."""

    change: Change
    ballot: Ballot
    quorum: int
    votes: tuple[SignedVote, ...]
    """The peers' yes votes; the own one is signed now."""


@dataclass(frozen=True, slots=True)
class Send:
    """One request to one peer; its reply comes back as ``events.Received``, or never."""

    to: NodeId
    message: TransportRequest


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request that came in; yes votes are signed on the way out."""

    request: int
    message: TransportReply


@dataclass(frozen=True, slots=True)
class StageObjects:
    """Make the objects of ``change`` durable and checked in quarantine; ``events.ObjectsStaged`` tells."""

    change: Change
    holders: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Fetch committed history up to ``version`` at least, from any of ``holders`` (or any peer)."""

    version: int
    holders: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Discard:
    """The stage of this change is not needed any more: it cannot be committed."""

    change: Change


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell whoever submitted ``submitted``. A second answer may follow an ``unknown`` one; then it is settled."""

    submitted: TxnId
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Settle:
    """R1: in doubt for too long. Ask a majority, catch up; if nobody knows more, let the coordinator settle it."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Feed ``events.Tick`` at ``at`` (monotonic seconds), or up to ``jitter_s`` later, drawn by the runtime."""

    at: float
    jitter_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that must never happen: stop voting on this repository and tell an operator."""

    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Nothing was done, and this is why: for transcripts, traces and counters."""

    reason: str


Effect = Write | Decide | Send | Reply | StageObjects | CatchUp | Discard | Answer | Settle | Wake | Alarm | Note
