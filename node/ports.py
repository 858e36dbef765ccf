"""Every edge of a node as a ``typing.Protocol``: clock, chance, keys, transport, journal, objects, and what the API may ask.

Adapters implement them (``node.storage``, ``broker``), tests bring fakes, ``node.runtime`` knows nothing else. Foreign
exceptions stop at the adapter; what may be raised is defined here.

    NodeError
    ├── TransportError              the peer or the broker
    │   ├── PeerUnreachable         nothing was delivered, as far as is known
    │   └── NoAnswer                it may have been delivered
    ├── StorageError                the own disk
    │   ├── DataDirectoryInUse      another process holds it
    │   ├── JournalRefused          it belongs to another node or cluster, or is damaged
    │   │   └── JournalDamaged      a row is not what was written, and which
    │   └── DiskRefused             full, or failing: nothing was promised
    │       ├── DiskFull            it goes on when there is room
    │       └── DiskFailed          what was written before may be lost as well
    ├── PackRefused                 the client's objects, in git's own words
    ├── Busy                        a stated bound is reached
    └── ReadRefused                 a read of one repository; says at which position this node stands, if it knows
        ├── RepositoryAbsent        never existed, deleted, or named with other capitals
        └── ReadUnavailable         no majority answered in time, or this replica is set aside
            ├── VersionNotReached   the version that the reader has seen already is not here in time
            └── NotAMember          this node may not speak for any repository now
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from node.protocol.acceptor import AcceptorRecord, Op, WriteVerdict
from node.protocol.certificate import Certificate
from node.protocol.change import Change, PackRef, RefUpdate
from node.protocol.ids import Digest, NodeId, Oid, Position, RefName, RepoId, TxnId
from node.protocol.incarnations import Incarnations
from node.protocol.messages import (
    DirectReply,
    DirectRequest,
    Enrolment,
    Fetch,
    HeldRecord,
    HistoryEntry,
    InlinePack,
    Summary,
    TransportReply,
    TransportRequest,
)
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome, OutcomeKind, VoterReport
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.protocol.standing import Life, Standing

# ---------------------------------------------------------------- errors


class NodeError(Exception):
    """Base of all; messages are short lower-case facts."""


class TransportError(NodeError):
    """A request to a peer brought no reply."""


class PeerUnreachable(TransportError):
    """Not connected, refused, or returned as unroutable: as far as is known nothing was delivered."""


class NoAnswer(TransportError):
    """No reply within the time given; it may have been delivered."""


class StorageError(NodeError):
    """The own disk or journal."""


class DataDirectoryInUse(StorageError):
    """Another process holds this data directory."""


class JournalRefused(StorageError):
    """The journal belongs to another node or cluster, is of an unknown format, or is damaged."""


class DamagedPart(Enum):
    """What of a journal is damaged; it decides how that is mended."""

    RECORD = "record"
    """An acceptor record: what was promised or voted for here is not known any more. Amnesia (R4)."""
    VALUE = "value"
    """A register's name, HEAD, voters, floor or marks: made again from history."""
    REFS = "refs"
    """A register's refs: made again from history."""
    HISTORY = "history"
    """A committed change: fetched again from a peer, proved by the digest chain."""
    CERTIFICATE = "certificate"
    """Fetched again from a peer, proved by its signatures."""
    PACK = "pack"
    """A small pack: taken from the repository, or fetched again, proved by its checksum."""
    INDEX = "index"
    """Who names which pack, which change holds which transaction: made again from history and the acceptor record."""
    TRANSACTION = "transaction"
    """A record for people: dropped; history has its outcome."""
    DATABASE = "database"
    """SQLite cannot make sense of its pages: nothing in it can be trusted. Amnesia (R4)."""


class JournalDamaged(JournalRefused):
    """A row of the journal does not have the checksum it was written with. Nothing was decided by what it says."""

    def __init__(self, repository: RepoId | None, part: DamagedPart, detail: str, version: int = 0) -> None:
        where = f" of {repository}" if repository else ""
        at = f" at version {version}" if version else ""
        super().__init__(f"the journal is damaged: {part.value}{where}{at}: {detail}")
        self.repository = repository
        self.part = part
        self.detail = detail
        self.version = version
        """Of the change, where it is about one."""


class DiskRefused(StorageError):
    """The disk is full or failing; nothing was promised on it."""


class DiskFull(DiskRefused):
    """No room, or no quota; to be tried again when there is."""


class DiskFailed(DiskRefused):
    """An I/O error. After a failed fsync a later one succeeds and proves nothing: the kernel has called the pages clean."""


class PackRefused(NodeError):
    """Received objects were refused; the text is git's own, ready for ``unpack`` in a report-status."""


class Busy(NodeError):
    """A stated bound on concurrent work is reached; try again later."""


class ReadRefused(NodeError):
    """One repository cannot be read. ``position``: what this node has applied of it; ``None`` where that is not known."""

    def __init__(self, message: str, position: Position | None = None) -> None:
        super().__init__(message)
        self.position = position


class RepositoryAbsent(ReadRefused):
    """There is no such repository at the version read."""


class ReadUnavailable(ReadRefused):
    """A linearizable read found no majority in time, and ``local`` consistency would answer, perhaps with old data; or this
    replica is set aside and serves nobody."""


class VersionNotReached(ReadUnavailable):
    """The reader wants at least a version that this node does not have, and cannot get in time."""


class NotAMember(ReadUnavailable):
    """R4: this node is new, starting, rejoining or stopped: it answers nothing for any repository, not even old data."""


# ---------------------------------------------------------------- time, chance, keys


class Clock(Protocol):
    """Time for deadlines (monotonic) and for people (wall)."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970: told to people, never used for safety."""
        ...


class Entropy(Protocol):
    """Chance, so that tests and the simulator can take it away."""

    def uniform(self, upper: float) -> float:
        """A number in [0, upper)."""
        ...

    def txn_id(self) -> TxnId:
        """A transaction id never used before."""
        ...


class Signer(Protocol):
    """The node's own Ed25519 key, and the keyring of everybody's public keys, retired ones included."""

    node: NodeId

    def sign(self, message: bytes) -> bytes: ...

    def verify(self, node: NodeId, message: bytes, signature: bytes) -> bool:
        """Whether any key of ``node`` made this signature; False for a stranger."""
        ...


# ---------------------------------------------------------------- between nodes

Handler = Callable[[NodeId, TransportRequest], Awaitable[TransportReply]]
"""What a transport calls for each verified request, any number at once. Its effects are durable when it returns; it does
not raise. The transport then sends the reply, and only then acknowledges the delivery."""

DirectHandler = Callable[[NodeId, DirectRequest], Awaitable[DirectReply]]
"""The same for questions asked by direct HTTP (all but ``Fetch``)."""

FetchHandler = Callable[[NodeId, Fetch], Awaitable[AsyncIterator[bytes] | None]]
"""The bytes asked for, or ``None`` when they are not here."""


class Transport(Protocol):
    """Claim, prepare, abort, commit: AMQP or direct HTTP. At most once *and* at least once: loss and duplicates happen."""

    name: str
    """``rabbitmq`` or ``direct``, for people."""

    @property
    def up(self) -> bool:
        """Whether a request sent now has a chance."""
        ...

    @property
    def detail(self) -> str:
        """One line for people: where the broker is, why it is not up."""
        ...

    async def start(self, handler: Handler) -> None:
        """Begin to serve and to connect; returns before a broker is reached, and reconnects for ever."""
        ...

    async def stop(self) -> None:
        """Stop taking requests, finish what is under way (bounded), end every task."""
        ...

    async def request(self, to: NodeId, message: TransportRequest, *, timeout_s: float) -> TransportReply:
        """Send one request, wait for its reply.

        Raises:
            PeerUnreachable: at once if not connected.
            NoAnswer: after ``timeout_s``.
        """
        ...


class Peers(Protocol):
    """Questions, staging and packs, by direct HTTP whatever the transport is."""

    async def ask(self, to: NodeId, message: DirectRequest, *, timeout_s: float) -> DirectReply:
        """Raises ``PeerUnreachable`` or ``NoAnswer``."""
        ...

    def fetch(self, to: NodeId, message: Fetch, *, stall_s: float) -> AsyncIterator[bytes]:
        """The bytes from ``message.offset`` on; raises ``TransportError`` when nothing came for ``stall_s``."""
        ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DirectAnswer:
    """What ``POST /replicate/{kind}`` answers: a signed envelope, a stream of pack bytes, or a refusal."""

    status: int
    body: bytes | AsyncIterator[bytes]
    content_type: str = "application/json"
    retry_after_s: int | None = None
    """With a 503: when to ask again."""


class DirectEndpoint(Protocol):
    """The serving half of direct HTTP, behind the one port of the front end (``api/replicate.py`` calls it)."""

    async def serve(self, kind: str, body: bytes) -> DirectAnswer:
        """``kind`` is the last part of the path. Never raises; a bad envelope is a refusal, and counted."""
        ...


# ---------------------------------------------------------------- the journal


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


class JournalCare(Protocol):
    """What the scrub and a repair ask of the journal's rows. Questions look at the disk, not at what is held in memory; what is
    written is durable when the call returns, and is never an acceptor record."""

    async def keys(self, after: str, limit: int) -> Sequence[RepoId]:
        """Every repository that was ever heard of, in order; also deleted ones and those that were only promised."""
        ...

    async def set_aside(self, prefix: str) -> Sequence[RepoId]:
        """Repositories whose replicas are set aside for a reason that begins so."""
        ...

    async def committed(self, repository: RepoId) -> Position:
        """Where the acceptor record stands, whatever else is damaged. Raises ``JournalDamaged`` if that is."""
        ...

    async def verify(self, repository: RepoId, since: int) -> tuple[Sequence[JournalDamaged], int | None]:
        """(what is damaged of it, the version to go on after); begins with ``since`` 0, ends with ``None``."""
        ...

    async def verify_database(self, rest_s: float) -> str:
        """SQLite's check of the whole file, resting now and then: empty, or what it found first."""
        ...

    async def reindex(self) -> None:
        """Make all indexes again from their tables, and drop rows under keys that nobody has."""
        ...

    async def mend_history(self, entry: HistoryEntry) -> None:
        """A committed change at its version, proved by the caller."""
        ...

    async def mend_value(self, value: Register) -> bool:
        """Refs, name, HEAD, voters as history says; False: history grew meanwhile."""
        ...

    async def mend_index(self, repository: RepoId) -> None:
        """Which change holds which transaction, and who needs which pack, from history and the acceptor record."""
        ...

    async def waited_for(self, repository: RepoId) -> Sequence[PackRef]:
        """Packs that the accepted change, or a committed one that is not yet synced, names."""
        ...

    async def mend_pack(self, pack: InlinePack) -> None: ...

    async def drop_pack(self, sha256: Digest) -> None: ...

    async def resume_voting(self, repository: RepoId) -> None:
        """The replica is repaired: ``Journal.stop_voting`` undone."""
        ...


class Lives(Protocol):
    """R4: whose life a journal is, what it is worth, and which lives of the other nodes it knows. Everything is durable when
    the call returns; the attributes show durable things only."""

    @property
    def life(self) -> Life:
        """Where this journal stands now."""
        ...

    @property
    def standing(self) -> Standing: ...

    @property
    def incarnations(self) -> Incarnations:
        """Newer incarnations of other nodes, granted by this one."""
        ...

    @property
    def seen(self) -> Mapping[NodeId, Life]:
        """The newest life of each other node, as of the last ``keep_seen``."""
        ...

    async def found(self, founders: Sequence[str], at_ms: int) -> None:
        """A new journal becomes a member's."""
        ...

    async def mark_rejoining(self, reason: str, at_ms: int) -> None:
        """The first reason is kept; a mark that stands stays as it is."""
        ...

    async def keep_attempt(self, incarnation: int) -> None:
        """This incarnation is going to be asked for: the next attempt asks for a higher one."""
        ...

    async def clear_rejoining(self, incarnation: int, incarnations: Incarnations, founders: Sequence[str], at_ms: int) -> None:
        """Everything is learned again: a member's journal from now on, in that incarnation, knowing the others' as well as
        the members that it was learned from."""
        ...

    async def forget(self, repository: RepoId) -> None:
        """Drop all rows of a repository whose record cannot be read; only while the mark stands, to learn it again."""
        ...

    async def enrol(self, node: NodeId, incarnation: int, life: str) -> Enrolment:
        """Store a newer incarnation of ``node``; the same of the same life again is granted again."""
        ...

    async def keep_seen(self, seen: Mapping[NodeId, Life]) -> None: ...

    async def records(self, after: str, limit: int, members: VoterSet) -> tuple[Sequence[HeldRecord], bool]:
        """A page of acceptor records in order of their repositories, also of those only promised; whether there are more.
        ``members`` are the voters of a register that was never created."""
        ...


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


# ---------------------------------------------------------------- objects


class Quarantine(Protocol):
    """Objects of one push, received, indexed and checked by git, not visible to anybody."""

    packs: tuple[PackRef, ...]
    inline: tuple[InlinePack, ...]
    """The packs that are small enough to ride in messages and in the journal."""
    oids: frozenset[Oid] | None
    """Names of the received objects if they are few, else ``None``."""

    async def examine(self, updates: Sequence[RefUpdate]) -> tuple[tuple[RefUpdate, ...], Mapping[RefName, str]]:
        """(the updates with ``peeled`` filled in, per ref why git would refuse it: missing object, no commit …)."""
        ...

    async def promote(self) -> None:
        """Move the packs that are not inline to the stage, durably; the quarantine is empty then."""
        ...

    async def discard(self) -> None:
        """Remove whatever is left of it; may be called again, and after ``promote``."""
        ...

    async def __aenter__(self) -> "Quarantine": ...

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """Something of a repository on disk that is not what the journal says."""

    part: str
    """refs, HEAD, config, pack, index, objects, or repository (it cannot be looked at)."""
    detail: str
    pack: PackRef | None = None
    """Which pack has to be fetched again, if one has."""

    def __str__(self) -> str:
        return f"{self.part}: {self.detail}"


Spend = Callable[[int], Awaitable[None]]
"""Told how many bytes were just read; returns when as many may be read again."""


class ObjectStore(Protocol):
    """Bare Git repositories, quarantines, and the stage: packs of changes not yet applied, by checksum."""

    def quarantine(self, repository: RepositoryName, txn: TxnId, shallow: Sequence[Oid] = ()) -> "QuarantineIntake":
        """A place to receive one push; nothing is created before the first byte."""
        ...

    def path(self, name: str) -> Path:
        """Where ``owner/name`` stands on disk."""
        ...

    async def missing(self, change: Change) -> tuple[PackRef, ...]:
        """Packs of ``change`` that are neither staged here nor in the repository. Those that are here count as needed by
        ``change`` from now on, until it is applied or discarded (O4)."""
        ...

    async def stage_inline(self, packs: Iterable[tuple[PackRef, InlinePack]]) -> None:
        """Check small packs and hold them in memory until the journal has them (bounded). Raises ``PackRefused``."""
        ...

    def inline(self, packs: Iterable[PackRef]) -> tuple[InlinePack, ...]:
        """Those of ``packs`` that are held in memory: what goes into the journal and into messages."""
        ...

    async def read_small(self, name: str, packs: Sequence[PackRef]) -> tuple[InlinePack, ...]:
        """Those of these small packs that are in memory or in repository ``name``, all at once: for a peer that is behind."""
        ...

    async def stage_fetched(self, pack: PackRef, read: Callable[[bool, int], AsyncIterator[bytes]]) -> None:
        """Download pack and index, resuming what is there: ``read(index, offset)``; verify both checksums, the pack's
        and the index's own trailers, fsync file and directory. Raises ``PackRefused`` or what ``read`` raises."""
        ...

    async def discard(self, change: Change) -> None:
        """Drop what is staged for a change that cannot be committed."""
        ...

    async def apply(self, before: Register, change: Change, after: Register, packs: Sequence[InlinePack]) -> None:
        """V6: objects first, then refs and HEAD; idempotent. ``packs`` are the small ones from the journal."""
        ...

    async def apply_all(self, changes: Sequence[Change], after: Register, packs: Sequence[InlinePack]) -> None:
        """The same for consecutive changes at once: the objects of all, then refs and HEAD as they are ``after`` the last.
        A deletion comes alone."""
        ...

    async def materialise(self, register: Register) -> None:
        """Make refs and HEAD on disk equal to ``register`` whatever they are now: replay at start."""
        ...

    async def sync(self, name: str) -> None:
        """fsync all that was applied to the repository, files and directories. After an error what was applied has to be
        applied and materialised again before the next call: those write anew whatever is there."""
        ...

    async def sweep(
        self, packs_in_use: set[str] | None, existing: set[str], doubtful: AbstractSet[str] = frozenset(), *, keep: bool = False
    ) -> Mapping[str, int]:
        """At start, under the data directory's lock: remove stale ``*.lock`` and ``tmp_*``, orphaned quarantines, staged
        packs that nothing names (``None``: not known, all are kept), trash of deleted repositories, and repositories that do
        not exist, but for those whose key is ``doubtful``. With ``keep`` these are put out of service instead. Returns how
        many of each."""
        ...

    async def close(self) -> None:
        """End downloads, processes and threads; what is under way in a thread is finished."""
        ...

    async def open_pack(self, name: str, pack: PackRef, index: bool, offset: int) -> AsyncIterator[bytes] | None:
        """Bytes of a pack (or index) from stage or repository ``name``; ``None`` if it is not here."""
        ...

    async def upload_pack(self, name: str, *, protocol: str, request: bytes) -> AsyncIterator[bytes]:
        """The answer of ``git upload-pack --stateless-rpc`` to one request, streamed with back-pressure; the process is
        ended when the iterator is closed. ``protocol`` is the client's ``Git-Protocol`` header (checked), or empty."""
        ...

    async def size_bytes(self, name: str) -> int:
        """Disk usage of a repository."""
        ...

    async def verify_refs(self, register: Register) -> Sequence[Finding]:
        """Read refs, HEAD and configuration from the disk, past every cache, and compare them with ``register``."""
        ...

    async def verify_pack(self, name: str, pack: PackRef, spend: Spend) -> Finding | None:
        """Read pack and index from the disk and compare them with their checksums."""
        ...

    async def verify_objects(self, name: str) -> Finding | None:
        """git's own check, at low priority: every ref leads to objects that are there, the index over all packs is whole.

        Raises:
            StorageError: git could not look; nothing is known.
        """
        ...

    async def rescue(self, register: Register, label: str) -> str:
        """Take a repository out of service, all objects in it, its refs under ``refs/rescued/{label}/``; returns where it is
        now. Empty if there is none."""
        ...

    async def mend_refs(self, register: Register) -> None:
        """``materialise``, and the configuration."""
        ...

    async def mend_pack(self, name: str, pack: PackRef, read: Callable[[bool, int], AsyncIterator[bytes]]) -> None:
        """Fetch a pack that is damaged or missing, whatever is staged of it here, and put it in its place, durably. Raises as
        ``stage_fetched`` does."""
        ...

    def free_bytes(self) -> int:
        """Free space on the disk that holds the data directory, as it was a moment ago; never waits for the disk."""
        ...


class QuarantineIntake(Protocol):
    """Receives one pack."""

    async def receive(self, chunks: AsyncIterator[bytes]) -> Quarantine:
        """Index and check a pack while it streams in, with bounded memory.

        Raises:
            PackRefused: in git's own words; nothing is left behind.
            DiskRefused: nothing is left behind.
        """
        ...

    async def empty(self) -> Quarantine:
        """For a push without a pack: only deletes, or only objects that are here already."""
        ...


# ---------------------------------------------------------------- what the API asks a node


class Consistency(Enum):
    """How fresh a read is."""

    LINEARIZABLE = "linearizable"
    """Sees every acknowledged change; needs a majority."""
    LOCAL = "local"
    """What this node has applied; never waits, may be old, says so."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One node's copy of a repository."""

    node: NodeId
    state: str
    """current, lagging, divergent, in doubt, offline."""
    position: Position | None
    applied: int | None = None


@dataclass(frozen=True, slots=True)
class PeerState:
    """What this node thinks of a peer."""

    node: NodeId
    url: str
    state: str
    """alive or suspected."""
    reason: str = ""
    last_seen_s: float | None = None
    """Seconds since it last answered."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """For /health and ``status``."""

    node: NodeId
    cluster: str
    incarnation: int
    quorum: int
    voters: tuple[NodeId, ...]
    peers: tuple[PeerState, ...]
    transport: str
    transport_up: bool
    transport_detail: str
    ready: bool
    """Replayed, swept, serving."""
    write_ready: bool
    """A quorum is in reach."""
    problem: str = ""
    """Why not, in one line."""
    failed: bool = False
    """The disk has failed: this node neither votes nor learns until it is started again."""
    standing: Literal["member", "new", "starting", "rejoining", "stopped"] = "member"
    """member, new, starting, rejoining or stopped (R4)."""
    standing_reason: str = ""
    standing_since_ms: int = 0
    """By this node's clock; 0 where it is not kept."""
    waits_for: str = ""
    """What a node that is no member waits for."""


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What is damaged of one repository, and what a repair would come to."""

    found: tuple[str, ...]
    would: str
    """In words; empty: nothing would be done."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was found damaged of one repository (or of the journal's file), and what became of it. Times in milliseconds."""

    repository: str
    """Empty: the journal's file."""
    found: tuple[str, ...]
    actions: tuple[str, ...]
    problem: str
    """Why it is not repaired; empty when it is."""
    found_at_ms: int
    ended_at_ms: int


@dataclass(frozen=True, slots=True)
class ScrubState:
    """What the scrub does and has done. Times in milliseconds since 1970."""

    run: int
    """Number of the pass under way, or of the last one; counted since the node started."""
    running: bool
    repository: str
    """Looked at now."""
    repositories: int
    """Looked at in this pass."""
    bytes_read: int
    """In this pass, from packs."""
    skipped: int
    """Not looked at in this pass: something was being applied the whole time, or git could not look."""
    begun_at_ms: int
    ended_at_ms: int
    """Of the last complete pass over everything; 0: none since the node started."""
    found: int
    """Repositories found damaged since the node started."""
    repaired: int
    reports: tuple[RepairReport, ...]
    """The latest ones, newest last."""


class Care(Protocol):
    """What operators ask of a node about the health of what it stores (``node.scrub.Scrub``)."""

    def state(self) -> ScrubState: ...

    def begin(self, repository: RepoId | None) -> int:
        """Look at one repository, or at everything, now; returns the number of that pass. Calls join one that waits."""
        ...

    async def examine(self, repository: RepoId) -> RepairPlan:
        """What is damaged of it, and what a repair would do; nothing is set aside or repaired."""
        ...

    async def repair(self, repository: RepoId) -> RepairReport:
        """Look at it, and repair what is found."""
        ...


class RejoinRefused(NodeError):
    """An operator asked for a rejoin that must not be, or needs more words."""


class Rejoins(Protocol):
    """What an operator may decide about a node that cannot rejoin by itself (``node.membership.Membership``)."""

    def plan(self, sources: frozenset[NodeId], *, accept_loss: bool) -> str:
        """What ``take`` would do, in words. Raises ``RejoinRefused``."""
        ...

    async def take(self, sources: frozenset[NodeId]) -> None:
        """Learn what is left from these members, however few, and accept the loss of the rest; returns when it has begun.
        Raises ``RejoinRefused`` or ``StorageError``."""
        ...


class Service(Protocol):
    """A running node as the API sees it (``node.runtime.Runtime``)."""

    def state(self) -> NodeState: ...

    async def create(self, name: RepositoryName, *, actor: str, head: RefName | None, key: str | None) -> Outcome:
        """REJECTED if it exists, unless ``key`` made it: then the original outcome again."""
        ...

    async def delete(self, name: RepositoryName, *, actor: str, key: str | None) -> Outcome: ...

    async def push(
        self,
        name: RepositoryName,
        txn: TxnId,
        quarantine: Quarantine,
        updates: Sequence[RefUpdate],
        *,
        actor: str,
        atomic: bool,
        progress: Callable[[str], None] = lambda line: None,
    ) -> Outcome:
        """Stage on the peers (O3), then prepare → vote → decision. ``updates`` come from ``Quarantine.examine``.
        ``progress`` gets a line for the client now and then. Never raises for what the quorum does; raises ``Busy`` when too
        many writes are under way: nothing was sent then."""
        ...

    async def read(self, name: RepositoryName, consistency: Consistency, at_least: int = 0) -> Register:
        """The committed value; its refs may be served at once, its objects are on this disk. ``at_least`` is a version that
        the reader has seen already: it is waited for, whatever the consistency, or the read is refused.

        Raises:
            RepositoryAbsent, ReadUnavailable, VersionNotReached, Busy.
        """
        ...

    async def look(self, name: RepositoryName, consistency: Consistency) -> Register:
        """What this node has applied, for an answer that shows nothing of it but that it exists. Nobody is asked, unless it
        does not exist here and ``consistency`` wants to know for certain.

        Raises:
            RepositoryAbsent, Busy.
            ReadUnavailable: at once, where a read of this consistency would certainly be refused.
        """
        ...

    def check_push(self, name: RepositoryName) -> None:
        """Raises ``Busy`` if a push that came now would find no room to wait in: told before anything of it is read."""
        ...

    def intake(self, name: RepositoryName, txn: TxnId, shallow: Sequence[Oid]) -> "QuarantineIntake":
        """Where the pack of a push is received. Raises ``DiskRefused`` when the disk is nearly full."""
        ...

    async def upload_pack(self, register: Register, *, protocol: str, request: bytes) -> AsyncIterator[bytes]:
        """See ``ObjectStore.upload_pack``; bounded in number (``Config.fetches_max``), raises ``Busy`` beyond."""
        ...

    async def replicas(self, name: RepositoryName) -> Sequence[Replica]: ...

    async def history(self, name: RepositoryName, since: int, limit: int) -> Sequence[HistoryEntry]: ...

    async def repositories(self, after: str, limit: int) -> Sequence[Register]: ...

    async def transaction(self, txn: TxnId) -> TransactionRecord | None:
        """From this node, or from any peer that knows it; a settled record wins over an unknown one."""
        ...

    async def size_bytes(self, name: RepositoryName) -> int: ...

    def new_txn(self) -> TxnId: ...

    def path(self, register: Register) -> Path:
        """The bare repository on this node's disk."""
        ...
