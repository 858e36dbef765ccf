"""The journal: acceptor records, committed history, and whose they are. The truth; refs on disk are its materialised view.

This file is the front: it turns the port's questions and writes into work for the threads behind it.

    journal_rows.py    rows and their checksums               journal_care.py   what scrub and repair ask (verify, mend)
    journal_schema.py  the file, its tables, whose it is      journal_writes.py  what a write does to the rows
    group_commit.py    the writer thread, one fsync for all   journal_reads.py   what can be asked
    journal_lives.py   whose life it is, who rejoined
    journal_lost.py    one that cannot be trusted at start    journal_rebuild.py  a damaged file, written anew
    deferred.py        what waits for somebody else's fsync   lock.py            one process per data directory

Durable when the call returns: ``write`` and ``stop_voting``. Durable soon (``LINGER_S``, or with the next write), and visible
to this process at once: marks and records of transactions; certificates that come late are visible when they are durable.
Nothing here says when a voter may speak; that is ``replication.md``'s business.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from node.ports.errors import DamagedPart, JournalDamaged
from node.ports.journal import Identity, Loaded, TransactionRecord
from node.protocol.acceptor import AcceptorRecord, CommitOp, Op, WriteVerdict
from node.protocol.certificate import Certificate
from node.protocol.change import PackRef
from node.protocol.ids import NodeId, RepoId, TxnId
from node.protocol.messages import HistoryEntry, InlinePack, Summary
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.storage import journal_reads as reads
from node.storage.deferred import Deferred, Notes
from node.storage.group_commit import LINGER_S, WAITING_MAX, GroupCommit
from node.storage.journal_care import SqliteCare
from node.storage.journal_codec import to_text
from node.storage.journal_lives import SqliteLives
from node.storage.journal_lost import open_or_lose
from node.storage.journal_schema import FILE_NAME, FOLDER_NAME
from node.storage.journal_whole import after_close, mark_closed
from node.storage.journal_writes import OpWrite, keep_notes, stop_voting, trim_transactions
from node.storage.lock import DataDirectoryLock

T = TypeVar("T")

TRANSACTIONS_MAX = 100_000

DAMAGES_MAX = 1000
"""Damaged rows remembered at once; the scrub finds the others when these are mended."""


class SqliteJournal:
    """``ports.Journal`` on SQLite. ``open`` and ``close`` it once per process and data directory."""

    def __init__(
        self,
        data_dir: Path,
        identity: Identity,
        connection: sqlite3.Connection,
        lock: DataDirectoryLock,
        *,
        waiting_max: int,
        linger_s: float,
        transactions_max: int,
    ) -> None:
        self._identity = identity
        self._lock = lock
        self.lives = SqliteLives(identity.journal, connection)
        self._sequence = reads.sequence(connection)
        self._transactions_max = transactions_max
        self._kept = transactions_max  # since the last trim: so that the first notes are followed by one
        self._grown = False  # the open transaction may have added to history; the writer thread's own
        self._damages: dict[tuple[RepoId | None, DamagedPart, int], JournalDamaged] = {}
        self._deferred = Deferred(waiting_max)
        self._file = data_dir / FOLDER_NAME / FILE_NAME
        self._reads = reads.ReadPool(self._file)
        self._writer = GroupCommit(
            connection,
            self._deferred,
            self._keep,
            self._committed,
            mark_closed,
            waiting_max=waiting_max,
            linger_s=linger_s,
        )
        self.lives.begin(self._writer.submit, self._ask)

        self._care = SqliteCare(data_dir / FOLDER_NAME / FILE_NAME, self._writer.submit, self._alone)

    @classmethod
    def open(
        cls,
        data_dir: Path,
        *,
        node: NodeId,
        cluster: str,
        waiting_max: int = WAITING_MAX,
        linger_s: float = LINGER_S,
        transactions_max: int = TRANSACTIONS_MAX,
    ) -> "SqliteJournal":
        """Lock the data directory, check the journal or make it. Blocking: call it in a thread.

        Raises:
            DataDirectoryInUse: another process holds it.
            JournalRefused: another node's or cluster's, or of an unknown format. One that is damaged is kept aside, and the
                node has to rejoin (``journal_lost.py``).
            StorageError: the disk cannot be used.
        """
        lock = DataDirectoryLock.take(data_dir)
        try:
            connection, identity = open_or_lose(data_dir, node, cluster)
        except BaseException:
            lock.release()
            raise
        return cls(
            data_dir,
            identity,
            connection,
            lock,
            waiting_max=waiting_max,
            linger_s=linger_s,
            transactions_max=transactions_max,
        )

    @property
    def identity(self) -> Identity:
        return replace(self._identity, incarnation=self.lives.life.incarnation)

    @property
    def sequence(self) -> int:
        return self._sequence

    @property
    def commits(self) -> int:
        """Transactions written since it was opened; as many fsyncs, checkpoints apart."""
        return self._writer.commits

    @property
    def failed(self) -> str:
        return self._writer.failure or ""

    def fail(self, reason: str) -> None:
        self._writer.fail(reason)

    async def write(
        self,
        op: Op,
        *,
        members: VoterSet,
        at_ms: int,
        certificate: Certificate | None = None,
        packs: Sequence[InlinePack] = (),
    ) -> tuple[WriteVerdict, AcceptorRecord]:
        """``members`` are not stored: a register has no voters before its creation change names them."""
        request = OpWrite(op, at_ms, certificate, tuple(packs))

        def work(db: sqlite3.Connection) -> tuple[WriteVerdict, AcceptorRecord]:
            self._grown = self._grown or isinstance(op, CommitOp)
            answer = request.perform(db)
            if answer[0] is WriteVerdict.DONE:
                self.lives.count(db)
            return answer

        with self._noticed():
            return await self._writer.submit(work, request.size_bytes)

    async def stop_voting(self, repository: RepoId, reason: str) -> None:
        with self._noticed():
            await self._writer.submit(lambda db: stop_voting(db, repository, reason))

    async def mark_rejoining(self, reason: str, at_ms: int) -> None:
        await self.lives.mark_rejoining(reason, at_ms)

    async def add_certificate(self, certificate: Certificate) -> None:
        to_text(certificate)
        self._deferred.note_certificate(certificate)
        self._writer.flush_later()

    async def mark_applied(self, repository: RepoId, version: int) -> None:
        self._deferred.note_applied(repository, version)
        self._writer.flush_later()

    async def mark_synced(self, repository: RepoId, version: int) -> None:
        self._deferred.note_synced(repository, version)
        self._writer.flush_later()

    async def keep_transaction(self, record: TransactionRecord) -> None:
        to_text(record)
        self._deferred.note_transaction(record)
        self._writer.flush_later()

    async def flush(self) -> None:
        """Return when everything noted before is durable."""
        await self._writer.submit(lambda db: None)

    async def load(self, repository: RepoId, members: VoterSet) -> Loaded:
        # Before the question: what is written meanwhile is in both.
        noted, noted_synced = self._deferred.applied(repository), self._deferred.synced(repository)
        loaded = await self._ask(lambda db: reads.load(db, repository, members))
        version = loaded.register.position.version
        applied, synced = max(loaded.applied, min(noted, version)), max(loaded.synced, min(noted_synced, version))
        return replace(loaded, applied=applied, synced=synced)

    async def unsynced(self) -> Sequence[tuple[RepoId, int, int]]:
        return await self._ask(reads.unsynced)

    async def in_doubt(self) -> Sequence[RepoId]:
        return await self._ask(reads.in_doubt)

    async def history(self, repository: RepoId, since: int, limit: int) -> tuple[HistoryEntry, ...]:
        return await self._ask(lambda db: reads.history(db, repository, since, limit))

    async def find(self, txn: TxnId) -> tuple[RepoId, HistoryEntry] | None:
        return await self._ask(lambda db: reads.find(db, txn))

    async def find_key(self, repository: RepoId, key: str) -> HistoryEntry | None:
        return await self._ask(lambda db: reads.find_key(db, repository, key))

    async def repositories(self, after: str, limit: int) -> Sequence[Register]:
        return await self._ask(lambda db: reads.repositories(db, after, limit))

    async def summaries(self, since: int, limit: int) -> tuple[int, Sequence[Summary]]:
        return await self._ask(lambda db: reads.summaries(db, since, limit))

    async def inline_pack(self, pack: PackRef) -> InlinePack | None:
        return await self._ask(lambda db: reads.inline_pack(db, pack.sha256))

    async def packs_in_use(self) -> set[str]:
        return await self._ask(reads.packs_in_use)

    async def transaction(self, txn: TxnId) -> TransactionRecord | None:
        return self._deferred.transaction(txn) or await self._ask(lambda db: reads.transaction(db, txn))

    @property
    def care(self) -> SqliteCare:
        return self._care

    @property
    def damages(self) -> Sequence[JournalDamaged]:
        return tuple(self._damages.values())

    def mended(self, damage: JournalDamaged) -> None:
        self._damages.pop((damage.repository, damage.part, damage.version), None)

    async def close(self) -> None:
        """Write what was noted, end the threads, release the data directory. May be called again."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._reads.close()
        self._writer.close()
        after_close(self._file)
        self._lock.release()

    def _keep(self, db: sqlite3.Connection, notes: Notes) -> None:
        for damage in keep_notes(db, notes):
            self._damaged(damage)
        self._kept += len(notes.transactions)
        if self._kept > self._transactions_max // 100:  # counting them all costs half a millisecond
            trim_transactions(db, self._transactions_max)
            self._kept = 0

    async def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        with self._noticed():
            return await self._reads.run(question)

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        """Damage is remembered by whoever meets it, and his caller hears of it."""
        try:
            yield
        except JournalDamaged as error:
            self._damaged(error)
            raise

    def _damaged(self, error: JournalDamaged) -> None:
        """Remembered for the scrub, which says so and has it mended."""
        if len(self._damages) < DAMAGES_MAX:
            self._damages[error.repository, error.part, error.version] = error

    def _committed(self, db: sqlite3.Connection) -> None:
        self.lives.committed(db)
        if self._grown or self.lives.forgot:
            self._sequence, self._grown, self.lives.forgot = reads.sequence(db), False, False

    def _alone(self, work: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        """It may drop what was committed last."""

        def then(db: sqlite3.Connection) -> T:
            value = work(db)
            self._sequence = reads.sequence(db)
            return value

        return self._writer.alone(then)

    def __repr__(self) -> str:
        return f"<SqliteJournal {self.identity.node} sequence {self._sequence} {self._writer!r}>"
