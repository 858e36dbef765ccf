"""The journal: what this node has promised, accepted and committed, durable when a call returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.ports.care import JournalCare
from node.ports.errors import JournalDamaged
from node.ports.lives import Lives
from node.protocol.acceptor import AcceptorRecord, Op, WriteVerdict
from node.protocol.certificate import Certificate
from node.protocol.change import PackRef
from node.protocol.ids import NodeId, Position, RefName, RepoId, TxnId
from node.protocol.messages import (
    HistoryEntry,
    InlinePack,
    Summary,
)
from node.protocol.outcome import OutcomeKind, VoterReport
from node.protocol.quorum import VoterSet
from node.protocol.register import Register


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose journal this is. A node id is bound to one journal (uuid) and one key."""

    node: NodeId
    cluster: str
    journal: str
    """uuid, made with the journal."""
    incarnation: int
    """Number of this journal's life; rises when a node rejoins after losing its journal (R4)."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the journal holds of one repository."""

    record: AcceptorRecord
    register: Register
    applied: int
    """Version up to which the repository on disk is known to agree with the journal."""
    stopped: str = ""
    """Why this replica may not vote (an alarm was raised), or empty."""
    synced: int = 0
    """Version up to which it is known to be on stable storage."""


@dataclass(frozen=True, slots=True)
class TransactionRecord:
    """What this node saw of one transaction: for ``GET /transactions/{id}`` and ``tx show``. Times in milliseconds."""

    txn: TxnId
    repository: RepoId
    kind: str
    """create, update or delete."""
    node: NodeId
    """The node that took the request."""
    actor: str
    submitted_at_ms: int
    outcome: OutcomeKind | None = None
    """``None`` while it runs."""
    reason: str = ""
    position: Position | None = None
    ballot: str = ""
    quorum: int = 0
    votes: tuple[VoterReport, ...] = ()
    rejections: tuple[tuple[RefName, str], ...] = ()
    phases_ms: Mapping[str, float] = field(default_factory=dict)
    """How long each phase took: queued, claim, prepare, decide, apply …"""
    retry_of: TxnId | None = None
    """The aborted transaction that this one tried again."""
    settled_at_ms: int | None = None
    settled_by: str = ""
    """Who found or made the decision of a doubtful one, and how."""


class Journal(Protocol):
    """The truth. One writer; writes that wait at the same moment share one transaction and one fsync (group commit).

    Every method may raise ``StorageError``; after a failed fsync all later writes are refused.
    """

    @property
    def identity(self) -> Identity: ...

    @property
    def lives(self) -> Lives: ...

    @property
    def sequence(self) -> int:
        """How many changes this journal has committed, over all repositories; never decreases."""
        ...

    @property
    def failed(self) -> str:
        """Why no more writes are taken until the node is started again; empty while they are."""
        ...

    def fail(self, reason: str) -> None:
        """Take no more writes until the node is started again: the disk under this journal has failed."""
        ...

    @property
    def care(self) -> JournalCare: ...

    @property
    def damages(self) -> Sequence[JournalDamaged]:
        """Rows that were found not to be what was written, by whoever read them, and that are not mended yet; bounded."""
        ...

    def mended(self, damage: JournalDamaged) -> None:
        """It is put right, or was looked at and is not there."""
        ...

    async def load(self, repository: RepoId, members: VoterSet) -> Loaded:
        """Record and value; ``members`` are the voters of a register that was never created."""
        ...

    async def write(
        self,
        op: Op,
        *,
        members: VoterSet,
        at_ms: int,
        certificate: Certificate | None = None,
        packs: Sequence[InlinePack] = (),
    ) -> tuple[WriteVerdict, AcceptorRecord]:
        """Run ``op`` on the record as it is inside the transaction; store what it becomes, with everything that goes
        along: the small packs of an accepted change, the history row, refs and certificate of a commit. Durable when it
        returns."""
        ...

    async def stop_voting(self, repository: RepoId, reason: str) -> None:
        """Remember an alarm: this replica does not vote until it is repaired."""
        ...

    async def mark_rejoining(self, reason: str, at_ms: int) -> None:
        """Nothing in this journal may be trusted to be all that was written: learn it again from the others (R4). The node
        that runs on it must be told too: ``runtime.Runtime.rejoin``."""
        ...

    async def add_certificate(self, certificate: Certificate) -> None:
        """Keep a certificate that came after its change was known to be committed."""
        ...

    async def mark_applied(self, repository: RepoId, version: int) -> None:
        """The repository on disk agrees with the journal up to ``version`` (perhaps not yet synced). Not urgent."""
        ...

    async def mark_synced(self, repository: RepoId, version: int) -> None:
        """… and is on stable storage: inline packs of changes up to ``version`` may be dropped from the journal."""
        ...

    async def unsynced(self) -> Sequence[tuple[RepoId, int, int]]:
        """(repository, applied, synced) of those whose disk state is not known to be durable: replayed at start."""
        ...

    async def in_doubt(self) -> Sequence[RepoId]:
        """Repositories whose accepted change stands on the committed position."""
        ...

    async def history(self, repository: RepoId, since: int, limit: int) -> tuple[HistoryEntry, ...]:
        """Committed changes of versions ``since + 1 …``, oldest first."""
        ...

    async def find(self, txn: TxnId) -> tuple[RepoId, HistoryEntry] | None:
        """The committed change that contains this transaction."""
        ...

    async def find_key(self, repository: RepoId, key: str) -> HistoryEntry | None:
        """The committed change that contains a request with this ``Idempotency-Key``."""
        ...

    async def repositories(self, after: str, limit: int) -> Sequence[Register]:
        """Existing repositories in order of their keys, those after ``after``; without their refs."""
        ...

    async def summaries(self, since: int, limit: int) -> tuple[int, Sequence[Summary]]:
        """(sequence, the latest position of each repository that changed after ``since``); a bounded page."""
        ...

    async def inline_pack(self, pack: PackRef) -> InlinePack | None:
        """A small pack that is kept in the journal until the repository is synced."""
        ...

    async def packs_in_use(self) -> set[str]:
        """sha256 of every pack named by an accepted record, or by a committed change that is not yet synced (O4)."""
        ...

    async def transaction(self, txn: TxnId) -> TransactionRecord | None: ...

    async def flush(self) -> None:
        """Return when everything that was written or noted before is durable."""
        ...

    async def keep_transaction(self, record: TransactionRecord) -> None:
        """Not urgent: no caller waits for it; bounded in number, oldest settled ones go first."""
        ...

    async def close(self) -> None: ...
