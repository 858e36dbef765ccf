"""What can happen at one node, and what comes of it: plain values, shared by every state in which it may happen."""

from dataclasses import dataclass
from enum import Enum

from node.protocol.ids import Digest, NodeId, Position, TxnId
from node.protocol.messages import (
    AcceptorPage,
    AcceptorRecords,
    Enrol,
    Enrolment,
    HistoryEntry,
    TransportReply,
    TransportRequest,
)
from node.protocol.outcome import OutcomeKind


class Cost(Enum):
    """What a bound counts; see ``bounds.Bound``."""

    CRASH = "crashes"
    LOSS = "losses"
    DUPLICATE = "duplicates"
    TIMER = "timers"
    CLAIM = "claims"
    REFUSAL = "refusals"
    GOSSIP = "gossips"
    WIPE = "wipes"


Letter = TransportRequest | TransportReply | Enrol | AcceptorRecords | Enrolment | AcceptorPage
"""What nodes say to each other, as far as it is explored."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message on its way."""

    sender: NodeId
    to: NodeId
    message: Letter


@dataclass(frozen=True, slots=True)
class Submit:
    """A client's push comes in: ``txn`` creates a branch of that name."""

    txn: TxnId


@dataclass(frozen=True, slots=True)
class Hear:
    """The oldest write under way is durable, and the machines hear of it. ``refused``: the disk was full for a moment."""

    refused: bool = False


@dataclass(frozen=True, slots=True)
class Staged:
    """Staging of the oldest change whose objects are being fetched ends."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class Timer:
    """One deadline passes (``timers.py``)."""

    name: str
    request: int = 0


@dataclass(frozen=True, slots=True)
class Learn:
    """R2: history that a peer has heard of is fetched and its commits are being written. ``told``: by the peer's summary."""

    entries: tuple[HistoryEntry, ...]
    floor: int
    told: Position | None = None


@dataclass(frozen=True, slots=True)
class Crash:
    """The node loses what is volatile; the first ``durable`` of its writes under way had reached the disk."""

    durable: int


@dataclass(frozen=True, slots=True)
class Start:
    """The node is started again."""


@dataclass(frozen=True, slots=True)
class Wipe:
    """R4: the disk is lost with everything on it, the node comes back at once and knows that it must rejoin."""


@dataclass(frozen=True, slots=True)
class Restored:
    """R4.3: a rejoining node takes over what its sources hold, with a peer's history."""

    entries: tuple[HistoryEntry, ...]
    floor: int


Happening = Parcel | Submit | Hear | Staged | Timer | Learn | Crash | Start | Wipe | Restored


@dataclass(frozen=True, slots=True)
class Committed:
    """A journal holds this commit now."""

    position: Position
    txns: tuple[TxnId, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """C4: a coordinator has counted a quorum."""

    position: Position
    quorum: int


@dataclass(frozen=True, slots=True)
class Undone:
    """A machine calls this change certainly aborted."""

    position: Position


@dataclass(frozen=True, slots=True)
class Told:
    """A client is told an outcome."""

    txn: TxnId
    kind: OutcomeKind
    position: Position | None
    carrier: TxnId
    """The transaction that carries it: another than ``txn`` after a second try."""
    quorum: int


Fact = Committed | Decided | Undone | Told


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that may come of a happening at a node."""

    node: int
    """The node's part of the state afterwards, by its number in the table of all."""
    parcels: tuple[int, ...]
    facts: tuple[Fact, ...]
    costs: tuple[Cost, ...]
    cut: str = ""
    """Where it broke off: the node crashed before it had performed all effects."""
    broken: str = ""
    """The law that this alone breaks."""


def version_digest(position: Position) -> tuple[int, Digest]:
    return position.version, position.digest
