"""What nodes say to each other. Verified by the codec before a machine sees them; every one is safe to repeat.

Over the transport (AMQP, or direct HTTP): claim, prepare, abort, commit and their replies promise, refused, vote,
acknowledged. Always by direct HTTP: stage and the questions ping, query, history, summaries, transaction, fetch, with
their replies; so reads and catch-up go on while a broker is gone. Enrol and acceptor-records go the same way.
"""

from dataclasses import dataclass
from enum import Enum

from node.protocol.acceptor import Accepted
from node.protocol.certificate import Certificate, Statement, StatementKind
from node.protocol.change import Change, PackRef
from node.protocol.hash_tree import PREFIXES_MAX, Branch, check_prefix
from node.protocol.ids import Ballot, Digest, NodeId, Position, RepoId, TxnId
from node.protocol.incarnations import Incarnations
from node.protocol.names import check_repo_id, check_txn_id
from node.protocol.quorum import VoterSet
from node.protocol.standing import Life, Standing

INLINE_PACK_BYTES_MAX = 64 * 1024
"""Above this, a pack travels by claim check: 8 MB took 77 ms by AMQP and 32 ms by HTTP; RabbitMQ 4 refuses > 16 MB."""

INLINE_TOTAL_BYTES_MAX = 1024 * 1024
"""All packs that ride in one message; a batch that would exceed it is split."""


@dataclass(frozen=True, slots=True)
class InlinePack:
    """A small pack and its index, riding along; recognised by the checksums in its ``PackRef``."""

    sha256: Digest
    pack: bytes
    index: bytes


class VoteKind(Enum):
    """A voter's answer to a prepare or abort."""

    YES = "yes"
    """Accepted, fsynced, before this was sent."""
    NO = "no"
    """Refused for the reason given; counts against the quorum."""
    LAGGING = "lagging"
    """Still catching up at the deadline; not a no."""
    BEHIND_COORDINATOR = "behind-coordinator"
    """The coordinator's base is old: it must catch up; not a no."""
    ALREADY_COMMITTED = "already-committed"
    """This very change is in the voter's history; not a no."""


@dataclass(frozen=True, slots=True)
class Claim:
    """V1, Paxos phase 1: "promise me this round"."""

    repository: RepoId
    voters: Digest
    ballot: Ballot
    deadline_s: float
    life: Life | None = None
    """Where the sender's journal stood when this left; the runtime adds it on the way out (R4)."""

    def __post_init__(self) -> None:
        check_repo_id(self.repository)


@dataclass(frozen=True, slots=True)
class Promise:
    """The claim is promised; what this voter had accepted and committed at that moment."""

    repository: RepoId
    voters: Digest
    ballot: Ballot
    incarnation: int
    accepted: Accepted | None
    committed: Position
    staged: bool
    """Whether the objects of the accepted change are here."""
    packs: tuple[InlinePack, ...] = ()
    """The small ones ride along."""
    incarnations: Incarnations = ()
    """Those of other nodes that this voter had stored when it promised (R4)."""
    life: Life | None = None
    """Where its journal stood; the runtime adds it on the way out."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A higher ballot is promised, or nothing can be promised at all (``reason``)."""

    repository: RepoId
    ballot: Ballot
    promised: Ballot
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Prepare:
    """V2, Paxos phase 2: "accept this change"."""

    repository: RepoId
    voters: Digest
    ballot: Ballot
    change: Change
    quorum: int
    deadline_s: float
    """How long the coordinator will count from when it sent this; relative, so clocks need not agree."""
    packs: tuple[InlinePack, ...] = ()
    holders: tuple[NodeId, ...] = ()
    """Who has the objects, first the sender."""
    life: Life | None = None
    """As in a claim."""

    def __post_init__(self) -> None:
        check_repo_id(self.repository)
        if self.change.repository != self.repository:
            raise ValueError("the change is another repository's")


@dataclass(frozen=True, slots=True)
class Abort:
    """V4: "accept no change on this base"; a prepare of nothing."""

    repository: RepoId
    voters: Digest
    ballot: Ballot
    base: Position
    quorum: int
    deadline_s: float
    life: Life | None = None
    """As in a claim."""

    def __post_init__(self) -> None:
        check_repo_id(self.repository)


@dataclass(frozen=True, slots=True)
class Vote:
    """The answer to a prepare or abort. A yes says what was accepted, and is signed for the certificate."""

    repository: RepoId
    voters: Digest
    ballot: Ballot
    quorum: int
    kind: VoteKind
    position: Position
    """Where the accepted change leads; for an abort, the base."""
    committed: Position
    incarnation: int
    none: bool = False
    """Whether this answers an abort."""
    reason: str = ""
    signature: bytes = b""
    incarnations: Incarnations = ()
    """Those of other nodes that this voter had stored when it accepted (R4); not part of what is signed for the certificate."""
    life: Life | None = None
    """Where its journal stood; the runtime adds it on the way out."""

    @property
    def statement(self) -> Statement:
        """What a yes signs."""
        kind = StatementKind.YES_NONE if self.none else StatementKind.YES_CHANGE
        return Statement(kind, self.repository, self.voters, self.quorum, self.position, self.ballot, self.incarnation)


@dataclass(frozen=True, slots=True)
class Commit:
    """V3, learn: the change that leads to ``position`` is decided, and here is why."""

    repository: RepoId
    voters: Digest
    position: Position
    certificate: Certificate
    life: Life | None = None
    """As in a claim."""

    def __post_init__(self) -> None:
        check_repo_id(self.repository)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The answer to a commit: where this voter's history stands now."""

    repository: RepoId
    committed: Position


@dataclass(frozen=True, slots=True)
class Stage:
    """O3: "fetch these objects before I prepare"; sent before the change exists, answered when they are durable."""

    repository: RepoId
    packs: tuple[PackRef, ...]
    holders: tuple[NodeId, ...]

    def __post_init__(self) -> None:
        check_repo_id(self.repository)


@dataclass(frozen=True, slots=True)
class Staged:
    """The answer to a stage: ``ok``, or why not."""

    repository: RepoId
    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ping:
    """Heartbeat: are you there, and has your history grown? Also R4's exchange: here is where I stand, and what I have seen
    of you."""

    life: Life | None = None
    seen: Life | None = None
    standing: Standing | None = None
    granted: int = 1
    """The newest incarnation of the receiver that is known here: whoever is in an older one is not counted any more."""


@dataclass(frozen=True, slots=True)
class Pong:
    """``sequence`` grows by one with every change this journal committed; ``journal`` is its uuid."""

    journal: str
    incarnation: int
    sequence: int
    transport_up: bool
    """Whether the answering node can send prepares at all (its broker is in reach)."""
    life: Life | None = None
    """Where the answering node stands."""
    seen: Life | None = None
    """The newest life of the asking node that the answering one has seen."""
    standing: Standing | None = None
    """What the answering node's journal is worth (``standing.py``)."""
    root: str = ""
    """Of the tree of hashes over all committed positions (R3); empty: it does not say."""
    granted: int = 1
    """As in ``Ping``."""


@dataclass(frozen=True, slots=True)
class Enrol:
    """R4, step 1: "from now on I am in this incarnation". With incarnation 0 a mere question: which one do you know?"""

    incarnation: int
    life: str
    """Random, one for each attempt: two processes that use one node's identity cannot take the same number."""

    def __post_init__(self) -> None:
        if self.incarnation < 0 or len(self.life) > 64:
            raise ValueError("an incarnation is not negative, a life's name short")


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The answer; durable before it is given. ``newest``: the highest incarnation of the asking node known here now."""

    granted: bool
    newest: int
    life: Life | None = None
    """Where the answering node's journal stood."""


@dataclass(frozen=True, slots=True)
class AcceptorRecords:
    """R4, step 2: what do you hold of every repository after ``after``? Only for who is enrolled so."""

    incarnation: int
    life: str
    after: str = ""


@dataclass(frozen=True, slots=True)
class HeldRecord:
    """One repository's acceptor record on the answering node; also of one that was only promised (version 0)."""

    repository: RepoId
    voters: VoterSet
    promised: Ballot
    accepted: Accepted | None
    committed: Position
    set_aside: bool = False
    """This replica gives no history: what is wrong with it may be its history. What it has promised and accepted counts."""


@dataclass(frozen=True, slots=True)
class AcceptorPage:
    """The answer, in order of the repositories' keys. ``granted`` is false when the asking node is not enrolled so."""

    granted: bool
    records: tuple[HeldRecord, ...]
    more: bool
    """Whether there are repositories after the last one of this page."""
    incarnation: int
    incarnations: Incarnations = ()
    """Those of other nodes that the answering one has stored."""
    life: Life | None = None
    """Where its journal stood."""
    seen: tuple[tuple[NodeId, Life], ...] = ()
    """The newest life of each other node that it has seen: who answers from an older one is no source, and the asking node
    has to know that from now on, too."""


@dataclass(frozen=True, slots=True)
class Query:
    """R5: what have you committed and accepted? Sent after the read's request arrived."""

    repository: RepoId

    def __post_init__(self) -> None:
        check_repo_id(self.repository)


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to a query."""

    repository: RepoId
    voters: Digest
    incarnation: int
    committed: Position
    accepted_ballot: Ballot
    accepted_base: Position
    accepted_change: bool
    """False for "no change", and for nothing accepted at all."""
    applied: int
    incarnations: Incarnations = ()
    """Those of other nodes that this voter had stored when it answered (R4)."""
    life: Life | None = None
    """Where its journal stood."""
    set_aside: str = ""
    """Why this replica neither votes nor serves reads: its answer is for people, and counts for nothing (R3)."""


@dataclass(frozen=True, slots=True)
class History:
    """R2: give me your committed changes after version ``since``."""

    repository: RepoId
    since: int
    limit: int = 64

    def __post_init__(self) -> None:
        check_repo_id(self.repository)
        if not 0 < self.limit <= 256 or self.since < 0:
            raise ValueError("a history page holds 1 to 256 changes")


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A committed change; the certificate is absent where this voter inferred the commit from a base (V2)."""

    change: Change
    certificate: Certificate | None
    committed_at_ms: int
    """When this node learned of the decision, by its clock."""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """The answer to a history question, oldest first."""

    repository: RepoId
    entries: tuple[HistoryEntry, ...]
    committed: Position
    floor: int
    """Version of the last deletion: packs of changes up to it are gone and not needed."""
    packs: tuple[InlinePack, ...] = ()
    """Small packs of these changes ride along, up to ``INLINE_TOTAL_BYTES_MAX``; the others are fetched one by one."""


@dataclass(frozen=True, slots=True)
class Summaries:
    """Which repositories changed in your journal after ``since``?"""

    since: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One repository's place in the answering node's history."""

    repository: RepoId
    position: Position


@dataclass(frozen=True, slots=True)
class SummaryPage:
    """The answer, oldest first; ask again from ``sequence`` until it stops growing."""

    journal: str
    sequence: int
    summaries: tuple[Summary, ...]


@dataclass(frozen=True, slots=True)
class Branches:
    """R3: what is below these branches of your tree of hashes?"""

    prefixes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.prefixes) <= PREFIXES_MAX:
            raise ValueError(f"1 to {PREFIXES_MAX} branches are asked for at once")
        for prefix in self.prefixes:
            check_prefix(prefix)


@dataclass(frozen=True, slots=True)
class BranchPage:
    """The answer, branch for branch."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True)
class Transaction:
    """What do you know of this transaction?"""

    txn: TxnId

    def __post_init__(self) -> None:
        check_txn_id(self.txn)


@dataclass(frozen=True, slots=True)
class TransactionReport:
    """``record`` is the JSON of ``ports.TransactionRecord``, or empty when this node knows nothing."""

    txn: TxnId
    record: str = ""


@dataclass(frozen=True, slots=True)
class Fetch:
    """O1: send me this pack, or its index, from ``offset`` on; answered by a stream of bytes, not by a message."""

    repository: RepoId
    pack: PackRef
    index: bool
    offset: int = 0

    def __post_init__(self) -> None:
        check_repo_id(self.repository)
        if self.offset < 0:
            raise ValueError("an offset is not negative")


TransportRequest = Claim | Prepare | Abort | Commit
TransportReply = Promise | Refused | Vote | Acknowledged
DirectRequest = Stage | Ping | Query | History | Summaries | Branches | Transaction | Fetch | Enrol | AcceptorRecords
DirectReply = Staged | Pong | Status | HistoryPage | SummaryPage | BranchPage | TransactionReport | Enrolment | AcceptorPage
Message = TransportRequest | TransportReply | DirectRequest | DirectReply
