"""What the journal can be asked: each question a function of a read-only connection, over one snapshot.

They run on a few threads of their own (``ReadPool``), so that neither the event loop nor the writer waits for them.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from node.ports.errors import DamagedPart, DiskRefused, JournalDamaged, StorageError
from node.ports.journal import Loaded, TransactionRecord
from node.protocol.ids import ORIGIN, Digest, Oid, Position, RefName, RepoId, TxnId
from node.protocol.messages import HistoryEntry, InlinePack, Summary
from node.protocol.quorum import VoterSet
from node.protocol.register import EMPTY, Ref, Register
from node.storage.journal_codec import read_certificate, read_change, read_transaction, read_voters
from node.storage.journal_errors import storage_error
from node.storage.journal_rows import (
    RegisterRow,
    check_certificate,
    check_history,
    pack_sum,
    read_row,
    record_of,
    ref_sum,
    transaction_sum,
    use_sum,
)
from node.storage.journal_schema import connect_reader

T = TypeVar("T")

READERS = 2
READS_MAX = 10_000


class ReadPool:
    """A few threads, a connection each; bounded in what waits for them."""

    def __init__(self, path: Path, *, readers: int = READERS, reads_max: int = READS_MAX) -> None:
        self._path = path
        self._reads_max = reads_max
        self._reads = 0
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="journal-reader")
        self._closed = False

    async def run(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Raises ``StorageError``, or ``DiskRefused`` when too many wait."""
        if self._closed:
            raise StorageError("the journal is closed")
        if self._reads >= self._reads_max:
            raise DiskRefused("journal overloaded: too many reads wait; try again later")
        self._reads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, question)
        finally:
            self._reads -= 1

    def close(self) -> None:
        """Blocking; may be called again."""
        self._closed = True
        self._threads.shutdown(wait=True)
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                return question(connection)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise storage_error(error) from error

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = connect_reader(self._path)
            with self._lock:
                self._connections.append(connection)
        return connection


def load(db: sqlite3.Connection, repository: RepoId, members: VoterSet) -> Loaded:
    """Verified, the whole of it: a repository that does not look as it was written is not loaded."""
    row, accepted = read_row(db, repository)
    record = record_of(repository, row, accepted)
    if row is None or record.committed == ORIGIN:
        return Loaded(record, Register(repository, members), *((row.applied, row.stopped, row.synced) if row else (0, "")))
    return Loaded(record, register_of(row, refs(db, repository, row.refs_sum)), row.applied, row.stopped, row.synced)


def refs(db: sqlite3.Connection, repository: RepoId, refs_sum: int) -> Mapping[RefName, Ref]:
    """Raises ``JournalDamaged`` if one is not what was written, or one is missing."""
    found: dict[RefName, Ref] = {}
    total = 0
    for name, oid, peeled in db.execute(_READ_REFS, (repository,)):
        total ^= ref_sum(repository, name, oid, peeled)
        found[RefName(name)] = Ref(Oid(oid), _oid(peeled))
    if total != refs_sum:
        raise JournalDamaged(repository, DamagedPart.REFS, "the refs are not what was written")
    return MappingProxyType(found)


def unsynced(db: sqlite3.Connection) -> list[tuple[RepoId, int, int]]:
    rows = db.execute("SELECT repository, applied, synced FROM registers WHERE version > synced ORDER BY repository")
    return [(RepoId(repository), applied, synced) for repository, applied, synced in rows]


def in_doubt(db: sqlite3.Connection) -> list[RepoId]:
    rows = db.execute("SELECT repository FROM registers WHERE in_doubt = 1 ORDER BY repository")
    return [RepoId(repository) for (repository,) in rows]


def history(db: sqlite3.Connection, repository: RepoId, since: int, limit: int) -> tuple[HistoryEntry, ...]:
    rows = db.execute(_READ_HISTORY, (repository, since, limit)).fetchall()
    return tuple(_entry(*row) for row in rows)


def find(db: sqlite3.Connection, txn: TxnId) -> tuple[RepoId, HistoryEntry] | None:
    row = db.execute(_FIND_TXN, (txn,)).fetchone()
    if row is None:
        return None
    entry = _entry(*row)
    if txn not in entry.change.txns:
        raise JournalDamaged(entry.change.repository, DamagedPart.INDEX, f"transaction {txn} is not where it should be")
    return entry.change.repository, entry


def find_key(db: sqlite3.Connection, repository: RepoId, key: str) -> HistoryEntry | None:
    row = db.execute(_FIND_KEY, (repository, key)).fetchone()
    if row is None:
        return None
    entry = _entry(*row)
    if all(request.key != key for request in entry.change.requests):
        raise JournalDamaged(repository, DamagedPart.INDEX, "an idempotency key is not where it should be")
    return entry


def repositories(db: sqlite3.Connection, after: str, limit: int) -> list[Register]:
    """A damaged one is left out: whoever asks for it by its name hears why."""
    rows = db.execute(_READ_REPOSITORIES, (after, limit)).fetchall()
    found = ((RegisterRow(*columns), value_sum) for *columns, value_sum in rows)
    return [register_of(row, EMPTY) for row, value_sum in found if row.value_sum == value_sum]


def summaries(db: sqlite3.Connection, since: int, limit: int) -> tuple[int, list[Summary]]:
    """The sequence returned is that of the last row of the page; of an empty page, the journal's own."""
    rows = db.execute(_READ_SUMMARIES, (since, limit)).fetchall()
    reached = rows[-1][0] if rows else sequence(db)
    return reached, [Summary(RepoId(repository), Position(version, Digest(digest))) for _, repository, version, digest in rows]


def sequence(db: sqlite3.Connection) -> int:
    (highest,) = db.execute("SELECT COALESCE(MAX(sequence), 0) FROM history").fetchone()
    return int(highest)


def inline_pack(db: sqlite3.Connection, sha256: Digest) -> InlinePack | None:
    row = db.execute("SELECT pack, pack_index, sum FROM inline_packs WHERE sha256 = ?", (sha256,)).fetchone()
    if row is None:
        return None
    pack, index, kept_sum = row
    if pack_sum(sha256, pack, index) != kept_sum:
        raise JournalDamaged(None, DamagedPart.PACK, f"small pack {sha256} is not what was written")
    return InlinePack(sha256, pack, index)


def packs_in_use(db: sqlite3.Connection) -> set[str]:
    rows = db.execute("SELECT sha256, repository, role, version, sum FROM pack_uses").fetchall()
    for *use, kept_sum in rows:
        if use_sum(*use) != kept_sum:
            raise JournalDamaged(None, DamagedPart.INDEX, "who needs which pack is not what was written")
    return {sha256 for sha256, *_ in rows}


def transaction(db: sqlite3.Connection, txn: TxnId) -> TransactionRecord | None:
    """One that is damaged is as good as none: it is for people, and history has its outcome."""
    row = db.execute("SELECT settled, submitted_at_ms, record, sum FROM transactions WHERE txn = ?", (txn,)).fetchone()
    if row is None or transaction_sum(txn, *row[:3]) != row[3]:
        return None
    return read_transaction(row[2])


def register_of(row: RegisterRow, refs: Mapping[RefName, Ref]) -> Register:
    """A register that was created once: so it has voters of its own."""
    position = Position(row.version, Digest(row.digest))
    assert row.voters is not None
    return Register(
        RepoId(row.repository),
        read_voters(row.voters),
        position,
        bool(row.present),
        row.name,
        RefName(row.head),
        refs,
        row.floor,
    )


def _entry(
    repository: str,
    version: int,
    digest: str,
    change: str,
    certificate: str | None,
    committed_at_ms: int,
    kept_sum: int,
    kept_certificate_sum: int,
) -> HistoryEntry:
    check_history(repository, version, digest, change, committed_at_ms, kept_sum)
    check_certificate(repository, version, certificate, kept_certificate_sum)
    return HistoryEntry(read_change(change), read_certificate(certificate) if certificate else None, committed_at_ms)


def _oid(text: str | None) -> Oid | None:
    return Oid(text) if text is not None else None


_READ_REFS = "SELECT name, oid, peeled FROM refs WHERE repository = ?"
_ENTRY = "h.repository, h.version, h.digest, h.change, h.certificate, h.committed_at_ms, h.sum, h.certificate_sum"
_READ_HISTORY = f"SELECT {_ENTRY} FROM history AS h WHERE repository = ? AND version > ? ORDER BY version LIMIT ?"
_FIND_TXN = f"SELECT {_ENTRY} FROM history_txns AS t JOIN history AS h USING (repository, version) WHERE txn = ?"
_FIND_KEY = f"""
    SELECT {_ENTRY} FROM history_keys AS k JOIN history AS h USING (repository, version)
    WHERE k.repository = ? AND key = ?"""
_READ_REPOSITORIES = f"""
    SELECT {", ".join(RegisterRow._fields)}, value_sum FROM registers
    WHERE present = 1 AND repository > ? ORDER BY repository LIMIT ?"""
_READ_SUMMARIES = """
    SELECT sequence, repository, version, digest FROM registers WHERE sequence > ? ORDER BY sequence LIMIT ?"""
