"""``ports.Journal`` in memory: the fake that the simulator crashes and the model that the real one is compared with.

Written for plainness, not speed: values are folded with ``Register.applied``, what is in use is computed from its
definition each time. It outlives the node that uses it: after a simulated crash give the same object to the next life.
``crash`` forgets what the real one may forget, the notes that nobody had waited for.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from node.ports.errors import DamagedPart, DiskRefused, JournalDamaged, StorageError
from node.ports.journal import Identity, Loaded, TransactionRecord
from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op, RejoinOp, WriteVerdict
from node.protocol.certificate import Certificate
from node.protocol.change import Change, PackRef
from node.protocol.ids import ORIGIN, NodeId, Position, RepoId, TxnId
from node.protocol.messages import HistoryEntry, InlinePack, Summary
from node.protocol.outcome import OutcomeKind
from node.protocol.quorum import VoterSet
from node.protocol.register import EMPTY, Register
from node.storage.deferred import Deferred, Notes
from node.storage.journal_writes import check_step, kept_reason
from node.storage.memory_care import MemoryCare
from node.storage.memory_lives import MemoryLives

TRANSACTIONS_MAX = 100_000
WAITING_MAX = 10_000


@dataclass(slots=True)
class _Row:
    """One repository."""

    record: AcceptorRecord = field(default_factory=AcceptorRecord)
    register: Register | None = None
    history: list[HistoryEntry] = field(default_factory=list)
    sequence: int = 0
    applied: int = 0
    synced: int = 0
    stopped: str = ""


class MemoryJournal:
    """Nothing is ever lost but by ``crash``. Set ``failure`` and every write raises it."""

    def __init__(
        self, node: NodeId, cluster: str = "gitquorum", *, transactions_max: int = TRANSACTIONS_MAX, journal: str = ""
    ) -> None:
        """``journal`` is its uuid: two of one node are told apart by it."""
        self._identity = Identity(node, cluster, journal or f"journal-of-{node}", 1)
        self.lives = MemoryLives(self._identity.journal, self._records, self._turn, self._forget)
        self.failure: StorageError | None = None
        self.commits = 0
        """Writes that changed something."""
        self.damaged: dict[tuple[RepoId | None, DamagedPart, int], JournalDamaged] = {}
        """Put something in, and ``damages`` tells of it."""
        self._care = MemoryCare(self)
        self._transactions_max = transactions_max
        self._rows: dict[RepoId, _Row] = {}
        self._sequence = 0
        self._packs: dict[str, InlinePack] = {}
        self._transactions: dict[TxnId, TransactionRecord] = {}
        self._deferred = Deferred(WAITING_MAX)

    @property
    def sequence(self) -> int:
        return self._sequence

    @property
    def failed(self) -> str:
        return "" if self.failure is None or isinstance(self.failure, DiskRefused) else str(self.failure)

    def fail(self, reason: str) -> None:
        self.failure = self.failure or StorageError(reason)

    @property
    def identity(self) -> Identity:
        return replace(self._identity, incarnation=self.lives.life.incarnation)

    def crash(self) -> None:
        """The process is killed: notes that no later write carried along are gone. The next one counts its start."""
        self.lives.next_start()
        self._deferred.take()
        self._deferred.written()

    def copy(self) -> "MemoryJournal":
        """What a snapshot of the disk, or a clone of it, holds."""
        other = MemoryJournal(
            self._identity.node,
            self._identity.cluster,
            transactions_max=self._transactions_max,
            journal=self._identity.journal,
        )
        other._rows = {name: replace(row, history=list(row.history)) for name, row in self._rows.items()}
        other._sequence = self._sequence
        other._packs, other._transactions = dict(self._packs), dict(self._transactions)
        other.damaged = dict(self.damaged)
        self.lives.copy_to(other.lives)
        return other

    async def write(
        self,
        op: Op,
        *,
        members: VoterSet,
        at_ms: int,
        certificate: Certificate | None = None,
        packs: Sequence[InlinePack] = (),
    ) -> tuple[WriteVerdict, AcceptorRecord]:
        await self._turn()
        row = self._rows.get(op.repository) or _Row()
        after, verdict = op.on(row.record)
        if isinstance(op, CommitOp) and verdict is WriteVerdict.REPEATED:
            verdict = self._known(row, op.change.position, certificate)
        if verdict is not WriteVerdict.DONE:
            self._written(counts=bool(len(self._deferred)))
            return verdict, row.record
        check_step(row.record, after)
        self.lives.count()
        if isinstance(op, CommitOp):
            self._commit(row, op.change, members, HistoryEntry(op.change, certificate, at_ms))
        row.record = after
        self._rows[op.repository] = row
        change = op.change if isinstance(op, AcceptOp | CommitOp) else None
        if isinstance(op, RejoinOp) and op.accepted is not None:
            change = op.accepted.change
        named = {pack.sha256 for pack in change.packs} if change else set()
        self._packs.update({pack.sha256: pack for pack in packs if pack.sha256 in named})
        self._written()
        return verdict, after

    async def stop_voting(self, repository: RepoId, reason: str) -> None:
        await self._turn()
        row = self._rows.setdefault(repository, _Row())
        row.stopped = kept_reason(row.stopped, reason)
        self._written()

    async def mark_rejoining(self, reason: str, at_ms: int) -> None:
        await self.lives.mark_rejoining(reason, at_ms)

    async def add_certificate(self, certificate: Certificate) -> None:
        self._deferred.note_certificate(certificate)

    async def mark_applied(self, repository: RepoId, version: int) -> None:
        self._deferred.note_applied(repository, version)

    async def mark_synced(self, repository: RepoId, version: int) -> None:
        self._deferred.note_synced(repository, version)

    async def keep_transaction(self, record: TransactionRecord) -> None:
        self._deferred.note_transaction(record)

    async def flush(self) -> None:
        """Write what was noted before."""
        await self._turn()
        self._written(counts=bool(len(self._deferred)))

    @property
    def care(self) -> MemoryCare:
        return self._care

    @property
    def damages(self) -> Sequence[JournalDamaged]:
        return tuple(self.damaged.values())

    def mended(self, damage: JournalDamaged) -> None:
        self.damaged.pop((damage.repository, damage.part, damage.version), None)

    async def load(self, repository: RepoId, members: VoterSet) -> Loaded:
        await asyncio.sleep(0)
        row = self._rows.get(repository) or _Row()
        register = row.register or Register(repository, members)
        version = register.position.version
        applied = max(row.applied, min(self._deferred.applied(repository), version))
        synced = max(row.synced, min(self._deferred.synced(repository), version))
        return Loaded(row.record, register, applied, row.stopped, synced)

    async def unsynced(self) -> Sequence[tuple[RepoId, int, int]]:
        rows = sorted(self._rows.items())
        return [(name, row.applied, row.synced) for name, row in rows if row.record.committed.version > row.synced]

    async def in_doubt(self) -> Sequence[RepoId]:
        return [name for name, row in sorted(self._rows.items()) if row.record.in_doubt is not None]

    async def history(self, repository: RepoId, since: int, limit: int) -> tuple[HistoryEntry, ...]:
        row = self._rows.get(repository) or _Row()
        return tuple(row.history[since : since + limit])

    async def find(self, txn: TxnId) -> tuple[RepoId, HistoryEntry] | None:
        entries = ((name, entry) for name, row in self._rows.items() for entry in row.history)
        return next(((name, entry) for name, entry in entries if txn in entry.change.txns), None)

    async def find_key(self, repository: RepoId, key: str) -> HistoryEntry | None:
        history = self._rows[repository].history if repository in self._rows else []
        return next((entry for entry in history if any(r.key == key for r in entry.change.requests)), None)

    async def repositories(self, after: str, limit: int) -> Sequence[Register]:
        registers = [row.register for _, row in sorted(self._rows.items()) if row.register and row.register.exists]
        return [replace(register, refs=EMPTY) for register in registers if register.repository > after][:limit]

    async def summaries(self, since: int, limit: int) -> tuple[int, Sequence[Summary]]:
        newer = sorted((row.sequence, name, row.record.committed) for name, row in self._rows.items() if row.sequence > since)
        page = newer[:limit]
        return page[-1][0] if page else self._sequence, [Summary(name, position) for _, name, position in page]

    async def inline_pack(self, pack: PackRef) -> InlinePack | None:
        return self._packs.get(pack.sha256)

    async def packs_in_use(self) -> set[str]:
        return {pack.sha256 for _, change in self._naming() for pack in change.packs}

    async def transaction(self, txn: TxnId) -> TransactionRecord | None:
        return self._deferred.transaction(txn) or self._transactions.get(txn)

    async def close(self) -> None:
        await self.flush()
        self.lives.next_start()

    def _forget(self, repository: RepoId) -> None:
        self._rows.pop(repository, None)

    def _records(self) -> Iterator[tuple[RepoId, AcceptorRecord, VoterSet | None, bool]]:
        for name, row in sorted(self._rows.items()):
            yield name, row.record, row.register.voters if row.register else None, bool(row.stopped)

    async def _turn(self) -> None:
        """Let others in first, as a real write would."""
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure

    def _known(self, row: _Row, position: Position, certificate: Certificate | None) -> WriteVerdict:
        if row.history[position.version - 1].change.position != position:
            return WriteVerdict.DIVERGENT
        if certificate is not None:
            self._keep_certificate(certificate)
        return WriteVerdict.REPEATED

    def _commit(self, row: _Row, change: Change, members: VoterSet, entry: HistoryEntry) -> None:
        certificate = entry.certificate
        if certificate and (certificate.repository, certificate.position) != (change.repository, change.position):
            raise StorageError("a certificate of another change came with a commit; nothing was written")
        row.register = (row.register or Register(change.repository, members)).applied(change)
        row.history.append(entry)
        self._sequence += 1
        row.sequence = self._sequence

    def _written(self, *, counts: bool = True) -> None:
        """A transaction: the notes that waited ride along."""
        self.commits += counts
        self._keep(self._deferred.take())
        self._deferred.written()
        synced = {name: row.synced for name, row in self._rows.items()}
        kept = {
            pack.sha256
            for repository, change in self._naming()
            for pack in change.packs
            if change.base.version + 1 > synced[repository]
        }
        self._packs = {sha256: pack for sha256, pack in self._packs.items() if sha256 in kept}

    def _naming(self) -> Iterator[tuple[RepoId, Change]]:
        """The changes whose packs are in use: the accepted ones, and the committed that are not yet synced."""
        for name, row in self._rows.items():
            if row.record.accepted and row.record.accepted.change:
                yield name, row.record.accepted.change
            yield from ((name, entry.change) for entry in row.history[row.synced :])

    def _keep(self, notes: Notes) -> None:
        for repository, version in notes.applied.items():
            if row := self._rows.get(repository):
                row.applied = max(row.applied, min(version, row.record.committed.version))
        for repository, version in notes.synced.items():
            if row := self._rows.get(repository):
                row.synced = max(row.synced, min(version, row.record.committed.version))
                row.applied = max(row.applied, row.synced)
        for certificate in notes.certificates.values():
            self._keep_certificate(certificate)
        self._transactions.update(notes.transactions)
        self._trim()

    def _keep_certificate(self, certificate: Certificate) -> None:
        row, position = self._rows.get(certificate.repository), certificate.position
        if row is None or not ORIGIN.version < position.version <= len(row.history):
            return
        entry = row.history[position.version - 1]
        if entry.certificate is None and entry.change.position == position:
            row.history[position.version - 1] = replace(entry, certificate=certificate)

    def _trim(self) -> None:
        surplus = len(self._transactions) - self._transactions_max
        if surplus > 0:
            by_age = sorted(self._transactions.values(), key=lambda r: (not _settled(r), r.submitted_at_ms))
            for record in by_age[:surplus]:
                del self._transactions[record.txn]

    def __repr__(self) -> str:
        return f"<MemoryJournal {self.identity.node} sequence {self._sequence}>"


def _settled(record: TransactionRecord) -> bool:
    return record.outcome is not None and record.outcome is not OutcomeKind.UNKNOWN
