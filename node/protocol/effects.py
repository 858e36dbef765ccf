"""What the machines ask the runtime to do, in order: persist before send is visible in the list.

The runtime performs effects one after another and feeds what comes of them back as events (``events.py``). A crash may
fall between any two; the simulator makes it do so.
"""

from dataclasses import dataclass

from node.protocol.acceptor import Op
from node.protocol.certificate import Certificate, SignedVote
from node.protocol.change import Change
from node.protocol.ids import Ballot, NodeId, Position, TxnId
from node.protocol.messages import InlinePack, TransportReply, TransportRequest
from node.protocol.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Write:
    """A conditional write to the acceptor record; ``events.Written`` tells what became of it."""

    op: Op
    certificate: Certificate | None = None
    """Kept with a commit."""


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
    """One request to one peer; its reply comes back as ``events.Received``, or never. The runtime adds to a prepare the
    change's small packs and who holds the others."""

    to: NodeId
    message: TransportRequest


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request that came in. On the way out the runtime signs a yes, and adds to a promise where the
    accepted change's objects are (``staged``, and the small packs themselves)."""

    request: int
    message: TransportReply


@dataclass(frozen=True, slots=True)
class StageObjects:
    """Make the objects of ``change`` durable and checked in quarantine; ``events.ObjectsStaged`` tells."""

    change: Change
    holders: tuple[NodeId, ...]
    packs: tuple[InlinePack, ...] = ()
    """The small ones, when they came along."""


@dataclass(frozen=True, slots=True)
class Witness:
    """V3: a commit at or below the own version. Compare it with the own history (different: alarm), keep its certificate."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Fetch committed history up to ``version`` at least, from any of ``holders`` (or any peer)."""

    version: int
    holders: tuple[NodeId, ...]
    told: Position | None = None
    """A position that a verified message named as committed: as good a proof of the chain below it as V2's base is, where
    the certificate of the last change died with its coordinator (``catchup.steps``)."""


@dataclass(frozen=True, slots=True)
class Discard:
    """The stage of this change is not needed any more: it cannot be committed."""

    change: Change


@dataclass(frozen=True, slots=True)
class Undone:
    """This change, accepted somewhere once, is certainly aborted: whoever remembers its transactions may say so."""

    change: Change
    reason: str


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
    """Feed ``events.Tick`` at ``at`` (monotonic seconds), or earlier; it replaces the machine's previous wish."""

    at: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something an operator must know; with ``stop``, something that must never happen: no more votes on this repository."""

    reason: str
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Nothing was done, and this is why: for transcripts, traces and counters."""

    reason: str


Effect = (
    Write | Decide | Send | Reply | StageObjects | Witness | CatchUp | Discard | Undone | Answer | Settle | Wake | Alarm | Note
)
