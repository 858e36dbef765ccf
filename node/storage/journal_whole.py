"""Whether all of the journal's files are there. SQLite does not ask: it takes an empty file, or one without its log, for a
whole database, and removes a log that lies beside an empty file.

While a node runs, what it acknowledged last is in ``journal.sqlite-wal`` only. So the database says, in its own header
(``user_version``, https://www.sqlite.org/fileformat2.html, offset 60), that it is in use and cannot do without its log; a
clean end copies the log back and takes that word away. And an empty or missing database is a new one only where nothing else
is: repositories are not older than the journal that names them. What ``journal_lost.py`` does then is amnesia (R4).

All of this is looked at before SQLite opens the file: closing any descriptor of it later would drop SQLite's locks.
"""

import contextlib
import sqlite3
from pathlib import Path

from node.ports.errors import DamagedPart, JournalDamaged
from node.storage.files import fsync

HEADER_BYTES = 100
IN_USE_AT = slice(60, 64)
CLOSED, IN_USE = 0, 1


def check(data_dir: Path, database: Path) -> None:
    """Nothing is changed.

    Raises:
        JournalDamaged: a part of it is missing.
        OSError: it cannot be read.
    """
    log = database.with_name(f"{database.name}-wal")
    header = _header(database)
    if not header:
        what = "is missing" if header is None else "is empty"
        if log.exists() and log.stat().st_size > 0:
            raise _damaged(f"{database.name} {what}, and there is a log of it")
        if repositories := _repositories(data_dir):
            raise _damaged(f"{database.name} {what}, and there are repositories ({', '.join(repositories)} …)")
    elif _in_use(header) and not log.exists():
        raise _damaged(f"{log.name} is missing, and what was acknowledged last is in it")


def says_in_use(database: Path) -> bool:
    """Whether the file itself says so. Raises ``OSError``."""
    return _in_use(_header(database) or b"")


def mark_in_use(connection: sqlite3.Connection) -> None:
    """When the log is there, and its name is durable. Two fsyncs: of the log, then of the file."""
    connection.execute(f"PRAGMA user_version = {IN_USE}")
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def mark_closed(connection: sqlite3.Connection) -> None:
    """Before the last connection is closed, which copies the log back and removes it."""
    connection.execute(f"PRAGMA user_version = {CLOSED}")


def abandon(connection: sqlite3.Connection, database: Path) -> None:
    """Close it after an error at the start: the word may be in the file already."""
    connection.close()
    after_close(database)


def after_close(database: Path) -> None:
    """The word could not be taken away, because the disk had failed, and SQLite copied its log back all the same and removed it
    (it does so only after an fsync that succeeded): an empty log says so. Where that fails too, the next start is refused."""
    log = database.with_name(f"{database.name}-wal")
    with contextlib.suppress(OSError):
        if says_in_use(database) and not log.exists():
            log.touch(mode=0o644)
            fsync(log.parent)


def _header(database: Path) -> bytes | None:
    try:
        with database.open("rb") as file:
            return file.read(HEADER_BYTES)
    except FileNotFoundError:
        return None


def _in_use(header: bytes) -> bool:
    return int.from_bytes(header[IN_USE_AT]) == IN_USE


def _repositories(data_dir: Path) -> list[str]:
    """The first few."""
    found = (path for path in sorted(data_dir.glob("[!.]*/*.git")) if path.is_dir())
    return [f"{path.parent.name}/{path.stem}" for _, path in zip(range(3), found, strict=False)]


def _damaged(reason: str) -> JournalDamaged:
    return JournalDamaged(None, DamagedPart.DATABASE, reason)
