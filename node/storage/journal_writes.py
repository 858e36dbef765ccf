"""What a write does to the rows, inside the writer's transaction: record, value, history and packs move together.

``perform`` re-reads the acceptor record, lets the operation decide (``node.protocol.acceptor``), and stores what it becomes
with all that goes along. Nothing here begins or ends a transaction (``group_commit.py`` does), and nothing is decided here
but one thing the record alone cannot know: whether an old version's digest is the one in history (V3).

Small packs are kept while an accepted change above the synced version, or a committed one not yet synced, names them.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from node.ports import StorageError
from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op, RejoinOp, WriteVerdict
from node.protocol.certificate import Certificate
from node.protocol.change import Change, ChangeKind, RefUpdate
from node.protocol.ids import ORIGIN, Ballot, Digest, NodeId, Position, RefName, RepoId
from node.protocol.messages import InlinePack
from node.protocol.outcome import OutcomeKind
from node.protocol.register import DEFAULT_HEAD
from node.storage.deferred import Notes
from node.storage.journal_codec import read_accepted, to_text

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
        before = read_record(db, self.op.repository)
        after, verdict = self.op.on(before)
        if isinstance(self.op, CommitOp) and verdict is WriteVerdict.REPEATED:
            return self._known(db, self.op.change.position), before
        if verdict is not WriteVerdict.DONE:
            return verdict, before
        check_step(before, after)
        if isinstance(self.op, CommitOp):
            self._commit(db, self.op.change, after)
            return verdict, after
        _store_register(db, self.op.repository, after)
        if isinstance(self.op, AcceptOp | RejoinOp) and after.accepted is not before.accepted:
            _store_accepted(db, self.op.repository, before, after, self.packs)
        return verdict, after

    def _known(self, db: sqlite3.Connection, position: Position) -> WriteVerdict:
        """V3: at or below the own version; another digest there is an alarm. A first certificate is kept."""
        row = db.execute(_DIGEST_AT, (self.op.repository, position.version)).fetchone()
        if row is not None and row[0] != position.digest:
            return WriteVerdict.DIVERGENT
        if self.certificate is not None:
            store_certificate(db, self.certificate)
        return WriteVerdict.REPEATED

    def _commit(self, db: sqlite3.Connection, change: Change, after: AcceptorRecord) -> None:
        certificate, position = self.certificate, after.committed
        if certificate is not None and (certificate.repository, certificate.position) != (change.repository, position):
            raise StorageError("a certificate of another change came with a commit; nothing was written")
        proof = to_text(certificate) if certificate else None
        row = (change.repository, position.version, position.digest, to_text(change), proof, self.at_ms)
        sequence = db.execute(_ADD_HISTORY, row).lastrowid
        for request in change.requests:
            db.execute(_ADD_TXN, (request.txn, change.repository, position.version))
            if request.key is not None:
                db.execute(_ADD_KEY, (change.repository, request.key, position.version))
        _store_register(db, change.repository, after, {"sequence": sequence, **_value(change, position.version)})
        _store_refs(db, change)
        _store_packs(db, change, "committed", self.packs)


def read_record(db: sqlite3.Connection, repository: RepoId) -> AcceptorRecord:
    row = db.execute(_READ_RECORD, (repository,)).fetchone()
    if row is None:
        return AcceptorRecord()
    round_, node, attempt, version, digest, accepted = row
    return AcceptorRecord(
        promised=Ballot(round_, NodeId(node), attempt),
        accepted=read_accepted(accepted) if accepted is not None else None,
        committed=Position(version, Digest(digest)),
    )


def check_step(before: AcceptorRecord, after: AcceptorRecord) -> None:
    """The invariants that hold between two records; those within one are its own. Asserted on every write."""
    if after.promised < before.promised or after.accepted_ballot < before.accepted_ballot:
        raise StorageError(f"invariant: a promise or an accepted ballot would fall ({before} → {after}); nothing was written")
    if after.committed.version < before.committed.version:
        raise StorageError(f"invariant: committed would fall ({before} → {after}); nothing was written")


def stop_voting(db: sqlite3.Connection, repository: RepoId, reason: str) -> None:
    """The first alarm is kept: it is the cause of later ones."""
    db.execute(_STOP, (repository, ORIGIN.digest, reason))


def store_certificate(db: sqlite3.Connection, certificate: Certificate) -> None:
    """If its change is in history and has none; one of another digest proves nothing about what is here."""
    position = certificate.position
    db.execute(_ADD_CERTIFICATE, (to_text(certificate), certificate.repository, position.version, position.digest))


def keep_notes(db: sqlite3.Connection, notes: Notes) -> None:
    """Everything that was deferred; marks never fall and never pass what is committed."""
    applied = [
        (version, repository) for repository, version in notes.applied.items() if version > notes.synced.get(repository, 0)
    ]
    db.executemany(_MARK_APPLIED, applied)  # what is synced is applied: mostly none are left here
    for repository, version in notes.synced.items():
        _mark_synced(db, repository, version)
    for certificate in notes.certificates.values():
        store_certificate(db, certificate)
    for record in notes.transactions.values():
        settled = record.outcome is not None and record.outcome is not OutcomeKind.UNKNOWN
        db.execute(_KEEP_TRANSACTION, (record.txn, settled, record.submitted_at_ms, to_text(record)))


def trim_transactions(db: sqlite3.Connection, transactions_max: int) -> None:
    """Oldest settled ones first, then the oldest."""
    (count,) = db.execute("SELECT COUNT(*) FROM transactions").fetchone()
    if count > transactions_max:
        db.execute(_TRIM_TRANSACTIONS, (count - transactions_max,))


def _store_register(
    db: sqlite3.Connection, repository: RepoId, record: AcceptorRecord, value: Mapping[str, object] = MappingProxyType({})
) -> None:
    """The row of ``registers``; columns of the value that are not given stay as they are."""
    ballot, committed = record.promised, record.committed
    columns = {
        "repository": repository,
        "promised_round": ballot.round,
        "promised_node": ballot.node,
        "promised_attempt": ballot.attempt,
        "version": committed.version,
        "digest": committed.digest,
        "in_doubt": record.in_doubt is not None,
    }
    db.execute(_STORE_REGISTER, {**_UNCHANGED, **columns, **value})


def _store_accepted(
    db: sqlite3.Connection, repository: RepoId, before: AcceptorRecord, after: AcceptorRecord, packs: Sequence[InlinePack]
) -> None:
    assert after.accepted is not None
    db.execute("INSERT OR REPLACE INTO accepted VALUES (?, ?)", (repository, to_text(after.accepted)))
    let_go = _packs_of(before)
    if let_go:
        db.execute("DELETE FROM pack_uses WHERE repository = ? AND role = 'accepted'", (repository,))
    if after.accepted.change is not None:
        _store_packs(db, after.accepted.change, "accepted", packs)
    _drop_unused(db, let_go)


def _packs_of(record: AcceptorRecord) -> set[str]:
    change = record.accepted.change if record.accepted else None
    return {pack.sha256 for pack in change.packs} if change else set()


def _store_packs(db: sqlite3.Connection, change: Change, role: str, packs: Sequence[InlinePack]) -> None:
    """Who names which packs; and those packs that came along and are named."""
    named = {pack.sha256 for pack in change.packs}
    if not named:
        return
    version = change.base.version + 1
    db.executemany(
        "INSERT OR IGNORE INTO pack_uses VALUES (?, ?, ?, ?)", [(s, change.repository, role, version) for s in named]
    )
    rows = [(pack.sha256, pack.pack, pack.index) for pack in packs if pack.sha256 in named]
    db.executemany("INSERT OR IGNORE INTO inline_packs VALUES (?, ?, ?)", rows)


def _drop_unused(db: sqlite3.Connection, candidates: Iterable[str]) -> None:
    db.executemany(_DROP_PACK, [(sha256, sha256) for sha256 in candidates])


def _mark_synced(db: sqlite3.Connection, repository: RepoId, version: int) -> None:
    db.execute(_MARK_SYNCED, (version, version, repository))
    named = [sha256 for (sha256,) in db.execute(_USES_SYNCED, (repository,))]
    if named:
        db.execute(_DROP_SYNCED_USES, (repository, repository))
        _drop_unused(db, named)


def _value(change: Change, version: int) -> dict[str, object]:
    """What ``change`` does to the register but for its refs: column for column as ``Register.applied`` (a test compares)."""
    if change.kind is ChangeKind.CREATE:
        assert change.voters is not None
        head = change.requests[0].head or DEFAULT_HEAD
        return {"present": True, "name": change.name, "head": head, "voters": to_text(change.voters)}
    if change.kind is ChangeKind.DELETE:
        return {"present": False, "floor": version}
    heads = [request.head for request in change.requests if request.head]
    return {"head": heads[-1]} if heads else {}


def _store_refs(db: sqlite3.Connection, change: Change) -> None:
    """Only the refs that move; of several updates to one ref the last one stays."""
    repository = change.repository
    if change.kind is not ChangeKind.UPDATE:
        db.execute("DELETE FROM refs WHERE repository = ?", (repository,))
        return
    last: dict[RefName, RefUpdate] = {update.ref: update for request in change.requests for update in request.updates}
    gone = [(repository, ref) for ref, update in last.items() if update.deletes]
    kept = [(repository, ref, update.new, update.peeled) for ref, update in last.items() if not update.deletes]
    if gone:
        db.executemany("DELETE FROM refs WHERE repository = ? AND name = ?", gone)
    if kept:
        db.executemany("INSERT OR REPLACE INTO refs VALUES (?, ?, ?, ?)", kept)


_READ_RECORD = """
    SELECT promised_round, promised_node, promised_attempt, version, digest, accepted
    FROM registers LEFT JOIN accepted USING (repository) WHERE repository = ?"""
_UNCHANGED = dict.fromkeys(("sequence", "present", "name", "head", "voters", "floor"))
_STORE_REGISTER = """
    INSERT INTO registers (
        repository, promised_round, promised_node, promised_attempt, version, digest, in_doubt,
        sequence, present, name, head, voters, floor)
    VALUES (
        :repository, :promised_round, :promised_node, :promised_attempt, :version, :digest, :in_doubt,
        COALESCE(:sequence, 0), COALESCE(:present, 0), COALESCE(:name, ''), COALESCE(:head, ''), :voters, COALESCE(:floor, 0))
    ON CONFLICT (repository) DO UPDATE SET
        promised_round = :promised_round, promised_node = :promised_node, promised_attempt = :promised_attempt,
        version = :version, digest = :digest, in_doubt = :in_doubt,
        sequence = COALESCE(:sequence, sequence), present = COALESCE(:present, present), name = COALESCE(:name, name),
        head = COALESCE(:head, head), voters = COALESCE(:voters, voters), floor = COALESCE(:floor, floor)"""
_STOP = """
    INSERT INTO registers (repository, digest, stopped) VALUES (?, ?, ?)
    ON CONFLICT (repository) DO UPDATE SET stopped = excluded.stopped WHERE stopped = ''"""
_ADD_HISTORY = """
    INSERT INTO history (repository, version, digest, change, certificate, committed_at_ms) VALUES (?, ?, ?, ?, ?, ?)"""
_ADD_TXN = "INSERT OR IGNORE INTO history_txns VALUES (?, ?, ?)"
_ADD_KEY = "INSERT OR IGNORE INTO history_keys VALUES (?, ?, ?)"
_DIGEST_AT = "SELECT digest FROM history WHERE repository = ? AND version = ?"
_ADD_CERTIFICATE = """
    UPDATE history SET certificate = ? WHERE repository = ? AND version = ? AND digest = ? AND certificate IS NULL"""
_MARK_APPLIED = "UPDATE registers SET applied = MAX(applied, MIN(?, version)) WHERE repository = ?"
_MARK_SYNCED = """
    UPDATE registers SET applied = MAX(applied, MIN(?, version)), synced = MAX(synced, MIN(?, version)) WHERE repository = ?"""
_USES_SYNCED = """
    SELECT DISTINCT sha256 FROM pack_uses JOIN registers USING (repository)
    WHERE repository = ? AND pack_uses.version <= synced"""
_DROP_SYNCED_USES = """
    DELETE FROM pack_uses WHERE repository = ? AND role = 'committed'
    AND version <= (SELECT synced FROM registers WHERE repository = ?)"""
_DROP_PACK = """
    DELETE FROM inline_packs WHERE sha256 = ? AND NOT EXISTS (
        SELECT 1 FROM pack_uses JOIN registers USING (repository) WHERE sha256 = ? AND pack_uses.version > registers.synced)"""
_KEEP_TRANSACTION = "INSERT OR REPLACE INTO transactions (txn, settled, submitted_at_ms, record) VALUES (?, ?, ?, ?)"
_TRIM_TRANSACTIONS = """
    DELETE FROM transactions WHERE txn IN (SELECT txn FROM transactions ORDER BY settled DESC, submitted_at_ms LIMIT ?)"""
