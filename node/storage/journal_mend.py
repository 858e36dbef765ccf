"""What a repair writes to the journal: rows made again from history, or from what a peer proved. Never an acceptor record.

Each function runs inside the writer's transaction. None of them decides that something may be trusted: callers bring changes
whose digests lead to where the (whole) acceptor record stands, certificates whose signatures were verified, packs that have
their checksums. A row whose acceptor record is damaged is not mended: that is amnesia (R4).
"""

import sqlite3

from node.protocol.change import PackRef
from node.protocol.ids import ORIGIN, RepoId
from node.protocol.messages import HistoryEntry, InlinePack
from node.protocol.register import Register
from node.storage.journal_codec import read_accepted, read_change, to_text
from node.storage.journal_rows import (
    certificate_sum,
    check_history,
    history_sum,
    pack_sum,
    read_record_row,
    read_row,
    ref_sum,
    use_sum,
    write_row,
)
from node.storage.journal_writes import kept_reason

MENDED = "damaged: the journal was mended, the repository is looked at"


def reindex(db: sqlite3.Connection) -> None:
    """Indexes are made again from their tables: what was damaged in them only is mended by that."""
    drop_strays(db)
    db.execute("REINDEX")


def resume_voting(db: sqlite3.Connection, repository: RepoId, reason: str) -> str:
    """The replica is repaired, if it is still ``reason`` for which it is set aside."""
    row, _ = read_row(db, repository)
    if row is None or row.stopped != reason:
        return row.stopped if row else ""
    if reason:
        write_row(db, row._replace(stopped=""))
    return ""


def mend_history(db: sqlite3.Connection, entry: HistoryEntry) -> None:
    """The committed change at its version, and its certificate if there is one."""
    change, position = entry.change, entry.change.position
    text, proof = to_text(change), to_text(entry.certificate) if entry.certificate else None
    values = (
        position.digest,
        text,
        entry.committed_at_ms,
        history_sum(change.repository, position.version, position.digest, text, entry.committed_at_ms),
        proof,
        certificate_sum(change.repository, position.version, proof),
    )
    db.execute(_MEND_HISTORY, (change.repository, position.version, *values))
    # A row whose version was changed stands where a later change will want to.
    db.execute(_DROP_BEYOND, (change.repository, change.repository))


def mend_value(db: sqlite3.Connection, value: Register) -> bool:
    """Refs, name, HEAD and voters as history says; marks that are not known fall to nothing. False: history grew."""
    repository = value.repository
    found, _ = read_record_row(db, repository)
    if found is None or (found[0].version, found[0].digest) != (value.position.version, value.position.digest):
        return False
    kept, kept_sum = found
    whole = kept.value_sum == kept_sum
    (sequence,) = db.execute("SELECT COALESCE(MAX(sequence), 0) FROM history WHERE repository = ?", (repository,)).fetchone()
    rows = [(repository, name, ref.oid, ref.peeled) for name, ref in value.refs.items()]
    db.execute("DELETE FROM refs WHERE repository = ?", (repository,))
    db.executemany("INSERT INTO refs VALUES (?, ?, ?, ?, ?)", [(*row, ref_sum(*row)) for row in rows])
    total = 0
    for row in rows:
        total ^= ref_sum(*row)
    created = value.position != ORIGIN
    mended = kept._replace(
        sequence=sequence,
        present=int(value.exists),
        name=value.name,
        head=value.head if created else "",
        voters=to_text(value.voters) if created else None,
        floor=value.floor,
        refs_sum=total,
        applied=kept.applied if whole else 0,
        synced=kept.synced if whole else 0,
        stopped=kept.stopped if whole else kept_reason(_readable(kept.stopped), MENDED),
    )
    write_row(db, mended)
    return True


def _readable(stopped: object) -> str:
    """Of a row that is not what was written. A replica that was set aside for good stays so, whatever else of it is mended."""
    return stopped.encode("utf-8", "backslashreplace").decode() if isinstance(stopped, str) else ""


def mend_index(db: sqlite3.Connection, repository: RepoId) -> None:
    """Which change holds which transaction, and who needs which pack, from history and the acceptor record.

    Raises:
        JournalDamaged: history has to be mended first.
    """
    found, accepted = read_record_row(db, repository)
    if found is None:
        return
    row, value_sum = found
    synced = row.synced if row.value_sum == value_sum else 0
    db.execute("DELETE FROM history_txns WHERE repository = ?", (repository,))
    db.execute("DELETE FROM history_keys WHERE repository = ?", (repository,))
    db.execute("DELETE FROM pack_uses WHERE repository = ?", (repository,))
    uses: set[tuple[str, str, str, int]] = set()
    for version, *kept in db.execute(_HISTORY, (repository,)).fetchall():
        check_history(repository, version, *kept)
        change = read_change(kept[1])
        for request in change.requests:
            db.execute("INSERT OR REPLACE INTO history_txns VALUES (?, ?, ?)", (request.txn, repository, version))
            if request.key is not None:
                db.execute("INSERT OR IGNORE INTO history_keys VALUES (?, ?, ?)", (repository, request.key, version))
        if version > synced:
            uses |= {(pack.sha256, repository, "committed", version) for pack in change.packs}
    doubtful = read_accepted(accepted).change if accepted is not None else None
    if doubtful is not None:
        uses |= {(pack.sha256, repository, "accepted", doubtful.base.version + 1) for pack in doubtful.packs}
    db.executemany("INSERT OR REPLACE INTO pack_uses VALUES (?, ?, ?, ?, ?)", [(*use, use_sum(*use)) for use in uses])


def waited_for(db: sqlite3.Connection, repository: RepoId) -> list[PackRef]:
    """Packs that this repository's accepted change, or a committed one that is not yet synced, names."""
    row, accepted = read_row(db, repository)
    if row is None:
        return []
    change = read_accepted(accepted).change if accepted is not None else None
    found = list(change.packs) if change else []
    for version, *kept in db.execute(_HISTORY, (repository,)).fetchall():
        if version > row.synced:
            found += read_change(kept[1]).packs
    return found


def mend_pack(db: sqlite3.Connection, pack: InlinePack) -> None:
    row = (pack.sha256, pack.pack, pack.index)
    db.execute("INSERT OR REPLACE INTO inline_packs VALUES (?, ?, ?, ?)", (*row, pack_sum(*row)))


def drop_pack(db: sqlite3.Connection, sha256: str) -> None:
    """It cannot be what it was; the repository has it, or it is fetched like a large one."""
    db.execute("DELETE FROM inline_packs WHERE sha256 = ?", (sha256,))


def drop_strays(db: sqlite3.Connection) -> None:
    """Rows under keys that nobody has; whose they were misses them, and they are made again there."""
    for table in ("accepted", "refs", "history"):
        db.execute(f"DELETE FROM {table} WHERE repository NOT IN (SELECT repository FROM registers)")


_MEND_HISTORY = """
    INSERT INTO history (repository, version, digest, change, committed_at_ms, sum, certificate, certificate_sum)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (repository, version) DO UPDATE SET digest = excluded.digest, change = excluded.change,
    committed_at_ms = excluded.committed_at_ms, sum = excluded.sum,
    certificate = excluded.certificate, certificate_sum = excluded.certificate_sum"""
_DROP_BEYOND = """
    DELETE FROM history WHERE repository = ? AND version > (SELECT version FROM registers WHERE repository = ?)"""
_HISTORY = "SELECT version, digest, change, committed_at_ms, sum FROM history WHERE repository = ? ORDER BY version"
