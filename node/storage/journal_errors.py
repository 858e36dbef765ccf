"""SQLite's errors as ours: which are the disk's fault, which of them end the journal's life, which can be tried again.

Reference: https://www.sqlite.org/rescode.html. Foreign exceptions stop here; the words are for the operator.
"""

import sqlite3

from node.ports.errors import DamagedPart, DiskFull, JournalDamaged, StorageError

DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
FATAL = DAMAGE | {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM}
"""After these nothing that is in the page cache can be trusted to be on the disk: fsync reports a lost write once only."""


def primary_code(error: sqlite3.Error) -> int:
    """The result code without its extension; 0 for an error made by the Python module itself."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_fatal(error: sqlite3.Error) -> bool:
    return primary_code(error) in FATAL and not is_full(error)


def is_full(error: sqlite3.Error) -> bool:
    """No room for the log, or for the index over it, which SQLite reports as an I/O error though nothing was lost."""
    extended = int(getattr(error, "sqlite_errorcode", 0) or 0)
    return primary_code(error) == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE


def is_systemic(error: sqlite3.Error) -> bool:
    """Whether it strikes the whole transaction, not only the statement that met it."""
    return is_fatal(error) or is_full(error) or primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def storage_error(error: sqlite3.Error) -> StorageError:
    """What a caller is told."""
    code = primary_code(error)
    if is_full(error):
        return DiskFull("disk full: the journal could not be written; free some space and try again")
    if code in DAMAGE:
        return JournalDamaged(None, DamagedPart.DATABASE, str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError("the journal is held by another program (an open sqlite3 shell?); a retry is safe")
    return StorageError(f"journal: {error}")
