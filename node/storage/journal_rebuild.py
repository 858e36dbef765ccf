"""The journal's file written anew while the node runs: damage in SQLite's pages that making the indexes again has left.

VACUUM copies what SQLite can read of each table into a file of its own, then over the old one, in one transaction of the log: a
reader keeps the snapshot that it has, a crash leaves the old file or the new one. What it copies it copies as it is (rows in a
wrong order stay so, an index that lies goes on lying; of 120 flipped bits that REINDEX had not mended it mended half), and rows
of a page that cannot be read are missing afterwards. So it is done under the mark only (R4), and looked at.

What cannot be made whole is said in the journal itself before it is tried, as the next start may not see it: it moves such a
file aside (``journal_lost.py``), as one that is no database.
"""

import sqlite3
from pathlib import Path

from node.ports.errors import DamagedPart, JournalDamaged
from node.storage import journal_lives, journal_mend
from node.storage.journal_lost import drop_damaged
from node.storage.journal_schema import has_its_tables
from node.storage.journal_verify import verify_database


def rebuild(db: sqlite3.Connection, path: Path) -> None:
    """In the writer's thread, alone, outside of any transaction; long.

    Raises:
        JournalDamaged: it is not whole all the same.
        sqlite3.Error: it could not be written.
    """
    db.execute("BEGIN IMMEDIATE")
    journal_lives.mark_torn(db)
    db.execute("COMMIT")
    db.execute("VACUUM")
    db.execute("BEGIN IMMEDIATE")
    drop_damaged(db)
    journal_mend.reindex(db)
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")  # over the damaged pages; where a reader is in the way, later
    if wrong := "" if has_its_tables(db) else "its tables are not those that were made":
        raise JournalDamaged(None, DamagedPart.DATABASE, wrong)
    if wrong := verify_database(path, 0.0):
        raise JournalDamaged(None, DamagedPart.DATABASE, wrong)
    db.execute("BEGIN IMMEDIATE")
    journal_lives.mark_whole(db)
    db.execute("COMMIT")
