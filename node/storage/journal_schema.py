"""The journal's file: where it lies, what is in it, whose it is, and whether it can be trusted.

``DATA_DIR/.journal/journal.sqlite``: WAL, ``synchronous=FULL``, so a commit is one append to the log and one fsync. SQLite
syncs the folder when it makes the log, but not when it makes the database: that is done here. Readable with the
``sqlite3`` shell; columns are plain text, values with structure are JSON.

References: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html#pragma_synchronous
"""

import os
import sqlite3
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from uuid import uuid4

from node.ports.errors import DamagedPart, JournalDamaged, JournalRefused, StorageError
from node.ports.journal import Identity
from node.protocol.ids import NodeId
from node.storage import journal_lives, journal_whole
from node.storage.journal_errors import DAMAGE, primary_code, storage_error
from node.storage.journal_rows import row_sum

FOLDER_NAME = ".journal"
FILE_NAME = "journal.sqlite"
SCHEMA = 4
BUSY_TIMEOUT_S = 5.0
CHECKPOINT_PAGES = 4000
"""16 MiB of log before it is copied back: SQLite's 1,000 puts the two extra fsyncs of a checkpoint on more pushes."""

TABLES = """
CREATE TABLE identity (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    schema INTEGER NOT NULL, node TEXT NOT NULL, cluster TEXT NOT NULL, journal TEXT NOT NULL, incarnation INTEGER NOT NULL,
    sum INTEGER NOT NULL
) STRICT;

-- every sum is a checksum of its row, see journal_rows.py
-- one row per repository: the acceptor record's small columns, and the register's value without its refs
CREATE TABLE registers (
    repository TEXT PRIMARY KEY,
    promised_round INTEGER NOT NULL DEFAULT 0, promised_node TEXT NOT NULL DEFAULT '',
    promised_attempt INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 0, digest TEXT NOT NULL,
    in_doubt INTEGER NOT NULL DEFAULT 0,   -- an accepted change stands on (version, digest)
    accepted_sum INTEGER NOT NULL,         -- of the row in accepted; 0: there is none. The acceptor record ends here
    sequence INTEGER NOT NULL DEFAULT 0,   -- of its latest history row
    present INTEGER NOT NULL DEFAULT 0, name TEXT NOT NULL DEFAULT '', head TEXT NOT NULL DEFAULT '',
    voters TEXT, floor INTEGER NOT NULL DEFAULT 0,
    refs_sum INTEGER NOT NULL,             -- of all its refs, by XOR
    applied INTEGER NOT NULL DEFAULT 0, synced INTEGER NOT NULL DEFAULT 0,
    stopped TEXT NOT NULL DEFAULT '',
    sum INTEGER NOT NULL, value_sum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX registers_by_sequence ON registers (sequence);
CREATE INDEX registers_in_doubt ON registers (repository) WHERE in_doubt = 1;
CREATE INDEX registers_unsynced ON registers (repository) WHERE version > synced;

-- apart from registers, so that a mark on a repository does not rewrite the thousands of ref updates of a first push
CREATE TABLE accepted (repository TEXT PRIMARY KEY, accepted TEXT NOT NULL, sum INTEGER NOT NULL) STRICT;

CREATE TABLE refs (
    repository TEXT NOT NULL, name TEXT NOT NULL, oid TEXT NOT NULL, peeled TEXT, sum INTEGER NOT NULL,
    PRIMARY KEY (repository, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE history (
    sequence INTEGER PRIMARY KEY,          -- grows; rows go only where a node rejoins or is mended
    repository TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL,
    change TEXT NOT NULL, certificate TEXT, committed_at_ms INTEGER NOT NULL,
    sum INTEGER NOT NULL, certificate_sum INTEGER NOT NULL,
    UNIQUE (repository, version)
) STRICT;
CREATE TABLE history_txns (txn TEXT PRIMARY KEY, repository TEXT NOT NULL, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE history_keys (
    repository TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (repository, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE inline_packs (
    sha256 TEXT PRIMARY KEY, pack BLOB NOT NULL, pack_index BLOB NOT NULL, sum INTEGER NOT NULL
) STRICT;
-- who names a pack: the accepted change of a repository, or a committed one that is not yet synced; leading to version
CREATE TABLE pack_uses (
    sha256 TEXT NOT NULL, repository TEXT NOT NULL, role TEXT NOT NULL CHECK (role IN ('accepted', 'committed')),
    version INTEGER NOT NULL, sum INTEGER NOT NULL, PRIMARY KEY (sha256, repository, role, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX pack_uses_by_repository ON pack_uses (repository, role, version);

CREATE TABLE transactions (
    txn TEXT PRIMARY KEY, settled INTEGER NOT NULL, submitted_at_ms INTEGER NOT NULL, record TEXT NOT NULL,
    sum INTEGER NOT NULL
) STRICT;
CREATE INDEX transactions_by_age ON transactions (settled DESC, submitted_at_ms);
"""


def open_database(data_dir: Path, node: NodeId, cluster: str) -> tuple[sqlite3.Connection, Identity]:
    """The writer's connection, after every check; the journal is made if there is none. The caller holds the lock.

    Raises:
        JournalRefused: another node's or cluster's, of an unknown format, or damaged.
        StorageError: it cannot be opened or made (``DiskRefused``: the disk is full).
    """
    folder = data_dir / FOLDER_NAME
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        in_use = journal_whole.says_in_use(folder / FILE_NAME)
        connection = connect(folder / FILE_NAME)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}") from error
    except sqlite3.Error as error:
        raise storage_error(error) from error
    except UnicodeDecodeError as error:
        raise _no_text() from error
    try:
        identity = _open(connection, node, cluster)
        journal_lives.count_start(connection)
        for directory in (folder, data_dir, data_dir.parent):
            sync_directory(directory)
        if not in_use:
            journal_whole.mark_in_use(connection)
    except sqlite3.Error as error:
        journal_whole.abandon(connection, folder / FILE_NAME)
        if primary_code(error) in DAMAGE:
            raise JournalDamaged(None, DamagedPart.DATABASE, f"{folder / FILE_NAME}: {error}") from error
        raise storage_error(error) from error
    except OSError as error:
        journal_whole.abandon(connection, folder / FILE_NAME)
        raise StorageError(f"{folder} cannot be made durable: {error.strerror}") from error
    except UnicodeDecodeError as error:
        journal_whole.abandon(connection, folder / FILE_NAME)
        raise _no_text() from error
    except StorageError:
        journal_whole.abandon(connection, folder / FILE_NAME)
        raise
    return connection, identity


def _no_text() -> JournalDamaged:
    """Python cannot read what SQLite says of a damaged schema: it quotes it."""
    return JournalDamaged(None, DamagedPart.DATABASE, "its tables are not those that were made")


_text = partial(str, encoding="utf-8", errors="surrogateescape")
"""Text that a flipped bit has made no UTF-8 is read all the same: its row's checksum tells what is wrong with it, and where."""


def connect(path: Path) -> sqlite3.Connection:
    """For the one writer thread. Transactions are begun and ended by hand."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA secure_delete = OFF")
    except BaseException:
        connection.close()  # not some time later: it may be moved aside, and another one be in its place
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """For one reading thread; it can write nothing, and sees whole transactions only."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    return connection


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(connection: sqlite3.Connection, node: NodeId, cluster: str) -> Identity:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if mode != "wal" and tables:
        raise JournalDamaged(None, DamagedPart.DATABASE, f"it has the journal mode {mode!r}")
    if mode != "wal":
        raise JournalRefused(f"the journal's file system cannot do write-ahead logging (journal mode {mode!r})")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise JournalDamaged(None, DamagedPart.DATABASE, str(verdict))
    if not tables:
        _create(connection, node, cluster)
    elif "identity" not in tables:
        raise JournalRefused("this is no journal of gitquorum")
    identity = _identity(connection, node, cluster)
    if not has_its_tables(connection):
        raise JournalDamaged(None, DamagedPart.DATABASE, "its tables are not those that were made")
    return identity


def has_its_tables(connection: sqlite3.Connection) -> bool:
    return _schema(connection) == _expected()


def _schema(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").fetchall()


@cache
def _expected() -> list[tuple[object, ...]]:
    """What SQLite remembers of the statements that make a journal: a flipped letter there renames a column."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _make_tables(connection)
        return _schema(connection)


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in TABLES.split(";\n"):
        connection.execute(statement)
    journal_lives.create(connection)


def _create(connection: sqlite3.Connection, node: NodeId, cluster: str) -> None:
    """All or nothing: a crash leaves an empty file, which is created again."""
    connection.execute("BEGIN IMMEDIATE")
    _make_tables(connection)
    row = (SCHEMA, str(node), cluster, str(uuid4()), 1)
    connection.execute("INSERT INTO identity VALUES (1, ?, ?, ?, ?, ?, ?)", (*row, row_sum("identity", *row)))
    connection.execute("COMMIT")


def _identity(connection: sqlite3.Connection, node: NodeId, cluster: str) -> Identity:
    (schema,) = connection.execute("SELECT schema FROM identity").fetchone() or (None,)
    if schema != SCHEMA and not _flipped(connection):
        raise JournalRefused(f"the journal has format {schema}, this program knows {SCHEMA} only; start the matching version")
    *row, kept_sum = connection.execute("SELECT schema, node, cluster, journal, incarnation, sum FROM identity").fetchone()
    if row_sum("identity", *row) != kept_sum:
        raise JournalDamaged(None, DamagedPart.DATABASE, "it is not known whose it is")
    _, owner, home, journal, incarnation = row
    if owner != node:
        raise JournalRefused(f"the journal belongs to {owner}, not to {node}; check node_id and data_dir")
    if home != cluster:
        raise JournalRefused(f"the journal belongs to cluster {home!r}, not to {cluster!r}; check cluster and data_dir")
    return Identity(node, cluster, journal, incarnation)


def _flipped(connection: sqlite3.Connection) -> bool:
    """Whether the format's number is wrong because it was changed, not because it is another program's."""
    try:
        *row, kept_sum = connection.execute("SELECT schema, node, cluster, journal, incarnation, sum FROM identity").fetchone()
    except (sqlite3.Error, TypeError):
        return False  # a format without these columns
    return bool(row_sum("identity", SCHEMA, *row[1:]) == kept_sum)
