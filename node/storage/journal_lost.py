"""A journal that cannot be trusted at start is no reason for an operator: what it was is kept, and the node rejoins (R4).

    the file is no journal any more,
    a part of it is missing, or it
    could not be written anew         moved aside into ``.journal/damaged-…``; a new, empty one is made, to be learned anew
    acceptor records are damaged      they are dropped, with all that belongs to them, and the rest is not trusted either

Both end in a durable mark: until everything is learned again from a majority, this node answers nothing. A journal of another
node, another cluster or another format is no damage: it is refused, as before.
"""

import sqlite3
import time
from pathlib import Path

import structlog

from node.ports.errors import DamagedPart, JournalDamaged, StorageError
from node.ports.journal import Identity
from node.protocol.ids import NodeId, RepoId
from node.storage import journal_lives
from node.storage.journal_errors import DAMAGE, primary_code
from node.storage.journal_rows import read_record_row
from node.storage.journal_schema import FILE_NAME, FOLDER_NAME, open_database, sync_directory
from node.storage.journal_whole import abandon
from node.storage.journal_whole import check as check_whole

_TABLES = ("registers", "accepted", "refs", "history", "history_txns", "history_keys", "pack_uses")

log = structlog.get_logger()


def open_or_lose(data_dir: Path, node: NodeId, cluster: str) -> tuple[sqlite3.Connection, Identity]:
    """``open_database``, for better or worse. Raises what that raises but for damage."""
    try:
        check_header(data_dir / FOLDER_NAME / FILE_NAME)
        check_whole(data_dir, data_dir / FOLDER_NAME / FILE_NAME)
        connection, identity = open_database(data_dir, node, cluster)
        if journal_lives.is_torn(connection):
            reason = journal_lives.read_standing(connection).reason
            abandon(connection, data_dir / FOLDER_NAME / FILE_NAME)
            raise JournalDamaged(None, DamagedPart.DATABASE, reason)
    except JournalDamaged as error:
        aside = _move_aside(data_dir / FOLDER_NAME)
        log.error("journal lost", reason=str(error), kept=str(aside))
        connection, identity = open_database(data_dir, node, cluster)
        lose(connection, str(error))
        return connection, identity
    try:
        if damaged := damaged_records(connection):
            log.error("acceptor record lost", repositories=damaged)
            lose(connection, f"acceptor records are not what was written: {', '.join(damaged[:3])}")
    except sqlite3.Error as error:
        abandon(connection, data_dir / FOLDER_NAME / FILE_NAME)
        if primary_code(error) not in DAMAGE:
            raise StorageError(f"journal: {error}") from error
        aside = _move_aside(data_dir / FOLDER_NAME)
        log.error("journal lost", reason=str(error), kept=str(aside))
        connection, identity = open_database(data_dir, node, cluster)
        lose(connection, f"the journal was damaged: {error}")
    return connection, identity


def damaged_records(db: sqlite3.Connection) -> list[str]:
    """Keys whose acceptor record is not what was written; among them keys that are not what was written themselves."""
    found = []
    for (repository,) in db.execute("SELECT repository FROM registers").fetchall():
        try:
            read_record_row(db, RepoId(repository))
        except JournalDamaged:
            found.append(repository)
    return found


def lose(db: sqlite3.Connection, reason: str) -> None:
    """In one transaction: the mark, and rows that cannot be read, with rows of keys that nobody has, are gone."""
    db.execute("BEGIN IMMEDIATE")
    try:
        journal_lives.mark_lost(db, reason, time.time_ns() // 1_000_000)
        drop_damaged(db)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def drop_damaged(db: sqlite3.Connection) -> None:
    """Only under the mark: what is dropped here is learned again from a majority."""
    for repository in damaged_records(db):
        db.execute("DELETE FROM registers WHERE repository = ?", (repository,))
    for table in _TABLES[1:]:
        db.execute(f"DELETE FROM {table} WHERE repository NOT IN (SELECT repository FROM registers)")


def check_header(path: Path) -> None:
    """SQLite takes some wrong bytes in the first hundred for another version of itself, and refuses to write, or to read.

    Raises:
        JournalDamaged: it is no database of the kind that this program makes.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError:
        return  # whatever is wrong, opening it says so
    if not header:
        return
    fixed = header[:16] == b"SQLite format 3\x00" and header[18:24] in (
        b"\x01\x01\x00\x40\x20\x20",
        b"\x02\x02\x00\x40\x20\x20",
    )
    if len(header) < 100 or not fixed or header[56:60] not in (b"\0\0\0\0", b"\0\0\0\1"):
        raise JournalDamaged(None, DamagedPart.DATABASE, "its header is not what was written")


def _move_aside(folder: Path) -> Path:
    aside = folder / f"damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{time.time_ns() % 1_000_000:06}"
    try:
        aside.mkdir()
        for suffix in ("", "-wal", "-shm"):
            path = folder / f"{FILE_NAME}{suffix}"
            if path.exists():
                path.rename(aside / path.name)
        sync_directory(aside)
        sync_directory(folder)
    except OSError as error:
        raise StorageError(f"the damaged journal cannot be moved aside: {error.strerror}") from error
    return aside
