"""What a write does to the rows, inside the writer's transaction: record, value, history and packs move together.

``perform`` re-reads the acceptor record, verified (``journal_rows.py``), lets the operation decide (``protocol.acceptor``), and
stores what it becomes with all that goes along. Nothing here begins or ends a transaction (``group_commit.py`` does), and
nothing is decided here but one thing the record alone cannot know: whether an old version's digest is the one in history (V3).

Small packs are kept while an accepted change above the synced version, or a committed one not yet synced, names them.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from node.ports.errors import JournalDamaged, StorageError
from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op, RejoinOp, WriteVerdict
from node.protocol.certificate import Certificate
from node.protocol.change import Change, ChangeKind, RefUpdate
from node.protocol.ids import Digest, Position, RefName, RepoId
from node.protocol.messages import InlinePack
from node.protocol.outcome import OutcomeKind
from node.protocol.register import DEFAULT_HEAD
from node.storage.deferred import Notes
from node.storage.journal_codec import to_text
from node.storage.journal_rows import (
    RegisterRow,
    accepted_sum,
    certificate_sum,
    check_history,
    history_sum,
    pack_sum,
    read_row,
    record_of,
    ref_sum,
    transaction_sum,
    use_sum,
    write_row,
)

ENDED_BY_REPAIR = ("damaged: ", "internal error")
"""How reasons begin that a repair ends: by itself, and if an operator asks for it."""

Answer = tuple[WriteVerdict, AcceptorRecord]


@dataclass(frozen=True, slots=True)
class OpWrite:
    """A conditional write and what goes along with it."""

    op: Op
    at_ms: int
    certificate: Certificate | None = None
    packs: Sequence[InlinePack] = ()

    @property
    def size_bytes(self) -> int:
        return sum(len(pack.pack) + len(pack.index) for pack in self.packs)

    def perform(self, db: sqlite3.Connection) -> Answer:
        """Run the operation on the record as it is now, store what it becomes."""
        row, accepted = read_row(db, self.op.repository)
        before = record_of(self.op.repository, row, accepted)
        after, verdict = self.op.on(before)
        if isinstance(self.op, CommitOp) and verdict is WriteVerdict.REPEATED:
            return self._known(db, self.op.change.position), before
        if verdict is not WriteVerdict.DONE:
            return verdict, before
        check_step(before, after)
        moved = _moved(row or RegisterRow(self.op.repository), after)
        if isinstance(self.op, CommitOp):
            write_row(db, self._commit(db, self.op.change, moved))
        elif isinstance(self.op, AcceptOp | RejoinOp) and after.accepted is not before.accepted:
            write_row(db, _store_accepted(db, moved, before, after, self.packs))
        else:
            write_row(db, moved)
        return verdict, after

    def _known(self, db: sqlite3.Connection, position: Position) -> WriteVerdict:
        """V3: at or below the own version; another digest there is an alarm. A first certificate is kept."""
        row = db.execute(_HISTORY_AT, (self.op.repository, position.version)).fetchone()
        if row is not None and row[0] != position.digest:
            check_history(self.op.repository, position.version, *row)
            return WriteVerdict.DIVERGENT
        if self.certificate is not None:
            store_certificate(db, self.certificate)
        return WriteVerdict.REPEATED

    def _commit(self, db: sqlite3.Connection, change: Change, row: RegisterRow) -> RegisterRow:
        """``row`` stands at the position that ``change`` leads to; returned with the value that it leads to."""
        certificate, version, digest = self.certificate, row.version, Digest(row.digest)
        here = change.repository, Position(version, digest)
        if certificate is not None and (certificate.repository, certificate.position) != here:
            raise StorageError("a certificate of another change came with a commit; nothing was written")
        text, proof = to_text(change), to_text(certificate) if certificate else None
        total = history_sum(change.repository, version, digest, text, self.at_ms)
        proof_sum = certificate_sum(change.repository, version, proof)
        history = (change.repository, version, digest, text, proof, self.at_ms, total, proof_sum)
        sequence = db.execute(_ADD_HISTORY, history).lastrowid
        for request in change.requests:
            db.execute(_ADD_TXN, (request.txn, change.repository, version))
            if request.key is not None:
                db.execute(_ADD_KEY, (change.repository, request.key, version))
        refs_sum = _store_refs(db, change, row.refs_sum)
        _store_packs(db, change, "committed", self.packs)
        assert sequence is not None
        return _valued(row._replace(sequence=sequence, refs_sum=refs_sum), change)


def check_step(before: AcceptorRecord, after: AcceptorRecord) -> None:
    """The invariants that hold between two records; those within one are its own. Asserted on every write."""
    if after.promised < before.promised or after.accepted_ballot < before.accepted_ballot:
        raise StorageError(f"invariant: a promise or an accepted ballot would fall ({before} → {after}); nothing was written")
    if after.committed.version < before.committed.version:
        raise StorageError(f"invariant: committed would fall ({before} → {after}); nothing was written")


def stop_voting(db: sqlite3.Connection, repository: RepoId, reason: str) -> None:
    row, _ = read_row(db, repository)
    row = row or RegisterRow(repository)
    if (kept := kept_reason(row.stopped, reason)) != row.stopped:
        write_row(db, row._replace(stopped=kept))


def kept_reason(known: str, reason: str) -> str:
    """The first alarm is kept: it is the cause of later ones. But the scrub ends ``damaged``, an operator's word an internal
    error, nothing an alarm about history (``node.repair``): what is harder to end is kept, or it would end with the other."""
    return reason if not known or _hardness(reason) > _hardness(known) else known


def _hardness(reason: str) -> int:
    return next((index for index, prefix in enumerate(ENDED_BY_REPAIR) if reason.startswith(prefix)), len(ENDED_BY_REPAIR))


def store_certificate(db: sqlite3.Connection, certificate: Certificate) -> None:
    """If its change is in history and has none; one of another digest proves nothing about what is here."""
    position, text = certificate.position, to_text(certificate)
    total = certificate_sum(certificate.repository, position.version, text)
    db.execute(_ADD_CERTIFICATE, (text, total, certificate.repository, position.version, position.digest))


def keep_notes(db: sqlite3.Connection, notes: Notes) -> list[JournalDamaged]:
    """Everything that was deferred; marks never fall and never pass what is committed. A damaged row cannot be marked: it is
    told, and the others are."""
    damaged: list[JournalDamaged] = []
    for repository in notes.applied.keys() | notes.synced.keys():
        try:
            _mark(db, repository, notes.applied.get(repository, 0), notes.synced.get(repository, 0))
        except JournalDamaged as error:
            damaged.append(error)
    for certificate in notes.certificates.values():
        store_certificate(db, certificate)
    for record in notes.transactions.values():
        settled = int(record.outcome is not None and record.outcome is not OutcomeKind.UNKNOWN)
        row = (str(record.txn), settled, record.submitted_at_ms, to_text(record))
        db.execute(_KEEP_TRANSACTION, (*row, transaction_sum(*row)))
    return damaged


def trim_transactions(db: sqlite3.Connection, transactions_max: int) -> None:
    """Oldest settled ones first, then the oldest."""
    (count,) = db.execute("SELECT COUNT(*) FROM transactions").fetchone()
    if count > transactions_max:
        db.execute(_TRIM_TRANSACTIONS, (count - transactions_max,))


def _moved(row: RegisterRow, record: AcceptorRecord) -> RegisterRow:
    """The row with another acceptor record; the accepted change's own row is stored apart."""
    ballot, committed = record.promised, record.committed
    return row._replace(
        promised_round=ballot.round,
        promised_node=ballot.node,
        promised_attempt=ballot.attempt,
        version=committed.version,
        digest=committed.digest,
        in_doubt=int(record.in_doubt is not None),
    )


def _store_accepted(
    db: sqlite3.Connection, row: RegisterRow, before: AcceptorRecord, after: AcceptorRecord, packs: Sequence[InlinePack]
) -> RegisterRow:
    assert after.accepted is not None
    repository, text = row.repository, to_text(after.accepted)
    total = accepted_sum(repository, text)
    db.execute("INSERT OR REPLACE INTO accepted VALUES (?, ?, ?)", (repository, text, total))
    let_go = _packs_of(before)
    if let_go:
        db.execute("DELETE FROM pack_uses WHERE repository = ? AND role = 'accepted'", (repository,))
    if after.accepted.change is not None:
        _store_packs(db, after.accepted.change, "accepted", packs)
    _drop_unused(db, let_go)
    return row._replace(accepted_sum=total)


def _packs_of(record: AcceptorRecord) -> set[str]:
    change = record.accepted.change if record.accepted else None
    return {pack.sha256 for pack in change.packs} if change else set()


def _store_packs(db: sqlite3.Connection, change: Change, role: str, packs: Sequence[InlinePack]) -> None:
    """Who names which packs; and those packs that came along and are named."""
    named = {pack.sha256 for pack in change.packs}
    if not named:
        return
    version = change.base.version + 1
    uses = [(sha256, change.repository, role, version) for sha256 in named]
    db.executemany("INSERT OR IGNORE INTO pack_uses VALUES (?, ?, ?, ?, ?)", [(*use, use_sum(*use)) for use in uses])
    rows = [(pack.sha256, pack.pack, pack.index) for pack in packs if pack.sha256 in named]
    db.executemany("INSERT OR IGNORE INTO inline_packs VALUES (?, ?, ?, ?)", [(*row, pack_sum(*row)) for row in rows])


def _drop_unused(db: sqlite3.Connection, candidates: Iterable[str]) -> None:
    db.executemany(_DROP_PACK, [(sha256, sha256) for sha256 in candidates])


def _mark(db: sqlite3.Connection, repository: RepoId, applied: int, synced: int) -> None:
    """What is synced is applied. Packs that nobody waits for any more go."""
    row, _ = read_row(db, repository)
    if row is None:
        return
    synced = max(row.synced, min(synced, row.version))
    applied = max(row.applied, min(applied, row.version), synced)
    if (applied, synced) == (row.applied, row.synced):
        return
    write_row(db, row._replace(applied=applied, synced=synced))
    named = [sha256 for (sha256,) in db.execute(_USES_SYNCED, (repository,))] if synced > row.synced else []
    if named:
        db.execute(_DROP_SYNCED_USES, (repository, repository))
        _drop_unused(db, named)


def _valued(row: RegisterRow, change: Change) -> RegisterRow:
    """What ``change`` does to the register but for its refs: column for column as ``Register.applied`` (a test compares)."""
    if change.kind is ChangeKind.CREATE:
        assert change.voters is not None
        head = change.requests[0].head or DEFAULT_HEAD
        return row._replace(present=1, name=change.name, head=head, voters=to_text(change.voters))
    if change.kind is ChangeKind.DELETE:
        return row._replace(present=0, floor=row.version)
    heads = [request.head for request in change.requests if request.head]
    return row._replace(head=heads[-1]) if heads else row


def _store_refs(db: sqlite3.Connection, change: Change, refs_sum: int) -> int:
    """Only the refs that move; of several updates to one ref the last one stays. Returns the new sum of all refs."""
    repository = change.repository
    if change.kind is not ChangeKind.UPDATE:
        db.execute("DELETE FROM refs WHERE repository = ?", (repository,))
        return 0
    updates = [update for request in change.requests for update in request.updates]
    last: dict[RefName, RefUpdate] = {update.ref: update for update in updates}
    for ref in (
        last if refs_sum else ()
    ):  # there are none yet: to look for all of a first push would cost as much as to write it
        known = db.execute(_REF_SUM, (repository, ref)).fetchone()
        refs_sum ^= known[0] if known else 0
    gone = [(repository, ref) for ref, update in last.items() if update.deletes]
    kept = [(repository, ref, update.new, update.peeled) for ref, update in last.items() if not update.deletes]
    if gone:
        db.executemany("DELETE FROM refs WHERE repository = ? AND name = ?", gone)
    if kept:
        rows = [(*row, ref_sum(*row)) for row in kept]
        db.executemany("INSERT OR REPLACE INTO refs VALUES (?, ?, ?, ?, ?)", rows)
        for row in rows:
            refs_sum ^= row[-1]
    return refs_sum


_ADD_HISTORY = """
    INSERT INTO history (repository, version, digest, change, certificate, committed_at_ms, sum, certificate_sum)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
_ADD_TXN = "INSERT OR IGNORE INTO history_txns VALUES (?, ?, ?)"
_ADD_KEY = "INSERT OR IGNORE INTO history_keys VALUES (?, ?, ?)"
_HISTORY_AT = "SELECT digest, change, committed_at_ms, sum FROM history WHERE repository = ? AND version = ?"
_ADD_CERTIFICATE = """
    UPDATE history SET certificate = ?, certificate_sum = ?
    WHERE repository = ? AND version = ? AND digest = ? AND certificate IS NULL"""
_REF_SUM = "SELECT sum FROM refs WHERE repository = ? AND name = ?"
_USES_SYNCED = """
    SELECT DISTINCT sha256 FROM pack_uses JOIN registers USING (repository)
    WHERE repository = ? AND pack_uses.version <= synced"""
_DROP_SYNCED_USES = """
    DELETE FROM pack_uses WHERE repository = ? AND role = 'committed'
    AND version <= (SELECT synced FROM registers WHERE repository = ?)"""
_DROP_PACK = """
    DELETE FROM inline_packs WHERE sha256 = ? AND NOT EXISTS (
        SELECT 1 FROM pack_uses JOIN registers USING (repository) WHERE sha256 = ? AND pack_uses.version > registers.synced)"""
_KEEP_TRANSACTION = "INSERT OR REPLACE INTO transactions VALUES (?, ?, ?, ?, ?)"
_TRIM_TRANSACTIONS = """
    DELETE FROM transactions WHERE txn IN (SELECT txn FROM transactions ORDER BY settled DESC, submitted_at_ms LIMIT ?)"""
