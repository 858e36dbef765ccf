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
from typing import Any, TypeVar

from node.ports import DiskRefused, Loaded, StorageError, TransactionRecord
from node.protocol.ids import ORIGIN, Digest, Oid, Position, RefName, RepoId, TxnId
from node.protocol.messages import HistoryEntry, InlinePack, Summary
from node.protocol.quorum import VoterSet
from node.protocol.register import EMPTY, Ref, Register
from node.storage.journal_codec import read_certificate, read_change, read_transaction, read_voters
from node.storage.journal_errors import storage_error
from node.storage.journal_schema import connect_reader
from node.storage.journal_writes import read_record

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
    record = read_record(db, repository)
    applied, stopped = db.execute(_READ_STATE, (repository,)).fetchone() or (0, "")
    if record.committed == ORIGIN:
        return Loaded(record, Register(repository, members), applied, stopped)
    refs = {RefName(name): Ref(Oid(oid), _oid(peeled)) for name, oid, peeled in db.execute(_READ_REFS, (repository,))}
    row = db.execute(_READ_REGISTER, (repository,)).fetchone()
    return Loaded(record, _register(row, MappingProxyType(refs)), applied, stopped)


def unsynced(db: sqlite3.Connection) -> list[tuple[RepoId, int, int]]:
    rows = db.execute("SELECT repository, applied, synced FROM registers WHERE version > synced ORDER BY repository")
    return [(RepoId(repository), applied, synced) for repository, applied, synced in rows]


def in_doubt(db: sqlite3.Connection) -> list[RepoId]:
    rows = db.execute("SELECT repository FROM registers WHERE in_doubt = 1 ORDER BY repository")
    return [RepoId(repository) for (repository,) in rows]


def history(db: sqlite3.Connection, repository: RepoId, since: int, limit: int) -> tuple[HistoryEntry, ...]:
    rows = db.execute(_READ_HISTORY, (repository, since, limit))
    return tuple(_entry(*row) for row in rows)


def find(db: sqlite3.Connection, txn: TxnId) -> tuple[RepoId, HistoryEntry] | None:
    row = db.execute(_FIND_TXN, (txn,)).fetchone()
    return (RepoId(row[0]), _entry(*row[1:])) if row else None


def find_key(db: sqlite3.Connection, repository: RepoId, key: str) -> HistoryEntry | None:
    row = db.execute(_FIND_KEY, (repository, key)).fetchone()
    return _entry(*row) if row else None


def repositories(db: sqlite3.Connection, after: str, limit: int) -> list[Register]:
    return [_register(row, EMPTY) for row in db.execute(_READ_REPOSITORIES, (after, limit))]


def summaries(db: sqlite3.Connection, since: int, limit: int) -> tuple[int, list[Summary]]:
    """The sequence returned is that of the last row of the page; of an empty page, the journal's own."""
    rows = db.execute(_READ_SUMMARIES, (since, limit)).fetchall()
    reached = rows[-1][0] if rows else sequence(db)
    return reached, [Summary(RepoId(repository), Position(version, Digest(digest))) for _, repository, version, digest in rows]


def sequence(db: sqlite3.Connection) -> int:
    (highest,) = db.execute("SELECT COALESCE(MAX(sequence), 0) FROM history").fetchone()
    return int(highest)


def inline_pack(db: sqlite3.Connection, sha256: Digest) -> InlinePack | None:
    row = db.execute("SELECT pack, pack_index FROM inline_packs WHERE sha256 = ?", (sha256,)).fetchone()
    return InlinePack(sha256, *row) if row else None


def packs_in_use(db: sqlite3.Connection) -> set[str]:
    return {sha256 for (sha256,) in db.execute("SELECT DISTINCT sha256 FROM pack_uses")}


def transaction(db: sqlite3.Connection, txn: TxnId) -> TransactionRecord | None:
    row = db.execute("SELECT record FROM transactions WHERE txn = ?", (txn,)).fetchone()
    return read_transaction(row[0]) if row else None


def _register(row: tuple[Any, ...], refs: Mapping[RefName, Ref]) -> Register:
    """A register that was created once: so it has voters of its own."""
    repository, version, digest, present, name, head, voters, floor = row
    position = Position(version, Digest(digest))
    return Register(RepoId(repository), read_voters(voters), position, bool(present), name, RefName(head), refs, floor)


def _entry(change: str, certificate: str | None, committed_at_ms: int) -> HistoryEntry:
    return HistoryEntry(read_change(change), read_certificate(certificate) if certificate else None, committed_at_ms)


def _oid(text: str | None) -> Oid | None:
    return Oid(text) if text is not None else None


_VALUE = "repository, version, digest, present, name, head, voters, floor"
_READ_REGISTER = f"SELECT {_VALUE} FROM registers WHERE repository = ?"
_READ_STATE = "SELECT applied, stopped FROM registers WHERE repository = ?"
_READ_REFS = "SELECT name, oid, peeled FROM refs WHERE repository = ?"
_READ_HISTORY = """
    SELECT change, certificate, committed_at_ms FROM history WHERE repository = ? AND version > ? ORDER BY version LIMIT ?"""
_FIND_TXN = """
    SELECT t.repository, change, certificate, committed_at_ms FROM history_txns AS t
    JOIN history USING (repository, version) WHERE txn = ?"""
_FIND_KEY = """
    SELECT change, certificate, committed_at_ms FROM history_keys AS k JOIN history USING (repository, version)
    WHERE k.repository = ? AND key = ?"""
_READ_REPOSITORIES = f"""
    SELECT {_VALUE} FROM registers WHERE present = 1 AND repository > ? ORDER BY repository LIMIT ?"""
_READ_SUMMARIES = """
    SELECT sequence, repository, version, digest FROM registers WHERE sequence > ? ORDER BY sequence LIMIT ?"""
