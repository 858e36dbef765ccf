"""What the scrub asks of the journal: is everything of one repository what was written? Is the file whole?

Each question has a connection of its own, made for it: the pages that the writer and the readers hold in memory may be better
than what is on the disk, and it is the disk that is asked for here. Rows are compared with their checksums, then with each
other: history is one chain of digests that ends where the acceptor record stands, its transactions are found by their ids, the
packs that are waited for are named. Partner: ``journal_mend.py`` puts right what is found.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from node.ports.errors import DamagedPart, JournalDamaged, JournalRefused
from node.protocol.change import Change
from node.protocol.ids import ORIGIN, Digest, Position, RepoId
from node.storage.journal_codec import read_accepted, read_certificate, read_change, read_voters
from node.storage.journal_errors import DAMAGE, primary_code, storage_error
from node.storage.journal_reads import refs
from node.storage.journal_rows import (
    RegisterRow,
    certificate_sum,
    history_sum,
    pack_sum,
    read_record_row,
    use_sum,
)
from node.storage.journal_schema import connect_reader

HISTORY_STEP = 200
"""Versions looked at by one question, so that no snapshot is held for long."""

PROGRESS_OPS = 20_000
"""Instructions of SQLite's machine between two rests while the whole file is checked."""

NO_TEXT = "its schema is no text any more"
"""SQLite quotes it where it complains, and Python cannot read that."""

T = TypeVar("T")
Part = DamagedPart


def fresh(path: Path, question: Callable[[sqlite3.Connection], T]) -> T:
    """Ask over a snapshot of its own. Raises ``StorageError``; ``JournalDamaged`` where SQLite finds its pages damaged."""
    try:
        with closing(connect_reader(path)) as db:
            db.execute("BEGIN")
            return question(db)
    except sqlite3.Error as error:
        raise storage_error(error) from error
    except UnicodeDecodeError as error:
        raise JournalDamaged(None, Part.DATABASE, NO_TEXT) from error


def keys(db: sqlite3.Connection, after: str, limit: int) -> list[RepoId]:
    """Every repository that was ever heard of, also deleted ones and those that were only promised."""
    rows = db.execute("SELECT repository FROM registers WHERE repository > ? ORDER BY repository LIMIT ?", (after, limit))
    return [RepoId(repository) for (repository,) in rows]


def set_aside(db: sqlite3.Connection, prefix: str) -> list[RepoId]:
    rows = db.execute(
        "SELECT repository FROM registers WHERE stopped != '' AND substr(stopped, 1, ?) = ?", (len(prefix), prefix)
    )
    return [RepoId(repository) for (repository,) in rows]


def committed(db: sqlite3.Connection, repository: RepoId) -> Position:
    found, _ = read_record_row(db, repository)
    return Position(found[0].version, Digest(found[0].digest)) if found else ORIGIN


def verify(db: sqlite3.Connection, repository: RepoId, since: int) -> tuple[list[JournalDamaged], int | None]:
    """(what is damaged of it, the version to go on after); begins with ``since`` 0, ends with ``None``."""
    try:
        found, accepted = read_record_row(db, repository)
    except JournalDamaged as error:
        return [error], None
    if found is None:
        return [], None
    row, value_sum = found
    damages = list(_history(db, row, since)) if row.version > since else []
    if since == 0:
        damages += _value(db, row, value_sum)
        change = read_accepted(accepted).change if accepted is not None else None
        damages += _packs(db, row, change)
    reached = since + HISTORY_STEP
    return damages, reached if reached < row.version else None


def verify_database(path: Path, rest_s: float) -> str:
    """SQLite's own check of the whole file, at leisure: empty, or what it found first. Blocking, long."""

    def rest() -> int:
        time.sleep(rest_s)
        return 0

    try:
        with closing(connect_reader(path)) as db:
            db.set_progress_handler(rest, PROGRESS_OPS)
            (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            strays = "" if verdict != "ok" else _strays(db)
            return strays if verdict == "ok" else str(verdict)
    except sqlite3.Error as error:
        if primary_code(error) in DAMAGE:
            return str(error)
        raise storage_error(error) from error
    except UnicodeDecodeError:
        return NO_TEXT


def _strays(db: sqlite3.Connection) -> str:
    """A row under a key that nobody has is one that somebody misses."""
    for table in ("accepted", "refs", "history"):
        query = f"SELECT repository FROM {table} WHERE repository NOT IN (SELECT repository FROM registers) LIMIT 1"
        if (row := db.execute(query).fetchone()) is not None:
            return f"a row of {table} belongs to {row[0]!r}, which is unknown"
    return ""


def _value(db: sqlite3.Connection, row: RegisterRow, value_sum: int) -> Iterator[JournalDamaged]:
    repository = RepoId(row.repository)
    if row.value_sum != value_sum:
        yield JournalDamaged(repository, Part.VALUE, "the register's value is not what was written")
        return
    if row.version == 0:
        return
    try:
        read_voters(row.voters or "")
        refs(db, repository, row.refs_sum)
    except JournalDamaged as error:
        yield error
    except JournalRefused:
        yield JournalDamaged(repository, Part.VALUE, "the voters cannot be read")


def _history(db: sqlite3.Connection, register: RegisterRow, since: int) -> Iterator[JournalDamaged]:
    """A page of the chain: sums, then that each change stands on the one before and leads to the digest it has."""
    repository = RepoId(register.repository)
    last = min(since + HISTORY_STEP, register.version)
    before: Digest | None = ORIGIN.digest if since == 0 else None
    rows = {row[0]: row for row in db.execute(_PAGE, (repository, max(since, 0), last))}
    for version in range(since + 1, last + 1):
        row = rows.get(version)
        change = None if row is None else _change(repository, *row[:5])
        if row is None or change is None or (before is not None and change.base != Position(version - 1, before)):
            detail = "a committed change is missing" if row is None else "a committed change is not what was written"
            yield JournalDamaged(repository, Part.HISTORY, detail, version)
            before = None
            continue
        before = change.position.digest
        if version == register.version and before != register.digest:
            yield JournalDamaged(repository, Part.HISTORY, "history does not lead to where the record stands", version)
        if not _proof_is_whole(repository, version, *row[5:]):
            yield JournalDamaged(repository, Part.CERTIFICATE, "a certificate is not what was written", version)
        if not _is_found(db, repository, change):
            yield JournalDamaged(repository, Part.INDEX, "a transaction is not found by its id", version)


def _change(repository: RepoId, version: int, digest: str, text: str, committed_at_ms: int, kept_sum: int) -> Change | None:
    if history_sum(repository, version, digest, text, committed_at_ms) != kept_sum:
        return None
    try:
        change = read_change(text)
    except JournalRefused:
        return None
    return change if (change.repository, change.position) == (repository, Position(version, Digest(digest))) else None


def _proof_is_whole(repository: RepoId, version: int, certificate: str | None, kept_sum: int) -> bool:
    if certificate_sum(repository, version, certificate) != kept_sum:
        return False
    try:
        return certificate is None or read_certificate(certificate) is not None
    except JournalRefused:
        return False


def _is_found(db: sqlite3.Connection, repository: RepoId, change: Change) -> bool:
    here = (repository, change.position.version)
    for request in change.requests:
        if db.execute("SELECT repository, version FROM history_txns WHERE txn = ?", (request.txn,)).fetchone() != here:
            return False
        if request.key is not None:
            row = db.execute(
                "SELECT version FROM history_keys WHERE repository = ? AND key = ?", (repository, request.key)
            ).fetchone()
            if row is None:
                return False
    return True


def _packs(db: sqlite3.Connection, row: RegisterRow, accepted: Change | None) -> Iterator[JournalDamaged]:
    """Who names which pack, and those that are kept here."""
    repository = RepoId(row.repository)
    wanted = {(pack.sha256, "accepted", accepted.base.version + 1) for pack in accepted.packs} if accepted else set()
    uses = db.execute("SELECT sha256, repository, role, version, sum FROM pack_uses WHERE repository = ?", (repository,))
    held = set()
    for *use, kept_sum in uses.fetchall():
        if use_sum(*use) != kept_sum:
            yield JournalDamaged(repository, Part.INDEX, "who needs which pack is not what was written")
            return
        held.add((use[0], use[2], use[3]))
    for version, text in db.execute(_UNSYNCED, (repository, row.synced)).fetchall():
        try:
            wanted |= {(pack.sha256, "committed", version) for pack in read_change(text).packs}
        except JournalRefused:
            continue  # said of history
    if not wanted <= held:
        yield JournalDamaged(repository, Part.INDEX, "a pack that is waited for is not named")
        return
    for sha256 in sorted({sha256 for sha256, _, _ in held}):
        kept = db.execute("SELECT sha256, pack, pack_index, sum FROM inline_packs WHERE sha256 = ?", (sha256,)).fetchone()
        if kept is not None and pack_sum(*kept[:3]) != kept[3]:
            yield JournalDamaged(repository, Part.PACK, f"small pack {sha256} is not what was written")


_PAGE = """
    SELECT version, digest, change, committed_at_ms, sum, certificate, certificate_sum FROM history
    WHERE repository = ? AND version > ? AND version <= ?"""
_UNSYNCED = "SELECT version, change FROM history WHERE repository = ? AND version > ?"
