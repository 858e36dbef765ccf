"""Rows of the journal with their checksums: written together, and verified at every read that the protocol relies on.

A disk may give back other bytes than it was given, and SQLite does not notice as long as its pages still make sense: a flipped
bit in ``promised`` is a promise forgotten. So every row carries 64 bits of BLAKE2b over its table's name and its columns, keys
included (a row cannot stand for another one), and a repository's row vouches for what lies beside it: ``accepted_sum`` is the
sum of its accepted row (0: there is none), ``refs_sum`` those of all its refs, combined by XOR. What vanished is missed, too.

The row of ``registers`` has two: ``sum`` over the acceptor record, whose loss is amnesia (R4), and ``value_sum`` over what can
be made again from history. Contract: whoever changes a row goes through here. ``journal_damage.py`` verifies what is not read.

Reference: "Protocol-Aware Recovery for Consensus-Based Storage" (Alagappan et al., FAST 2018): a corrupted record must never be
taken for one that was not written.
"""

import sqlite3
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from node.ports.errors import DamagedPart, JournalDamaged
from node.protocol.acceptor import AcceptorRecord
from node.protocol.ids import ORIGIN, Ballot, Digest, NodeId, Position, RepoId
from node.storage.journal_codec import read_accepted

_encode = msgspec.msgpack.Encoder().encode


class RegisterRow(NamedTuple):
    """One row of ``registers``, column for column, without its two sums."""

    repository: str
    promised_round: int = 0
    promised_node: str = ""
    promised_attempt: int = 0
    version: int = 0
    digest: str = ORIGIN.digest
    in_doubt: int = 0
    accepted_sum: int = 0
    sequence: int = 0
    present: int = 0
    name: str = ""
    head: str = ""
    voters: str | None = None
    floor: int = 0
    refs_sum: int = 0
    applied: int = 0
    synced: int = 0
    stopped: str = ""

    @property
    def record_sum(self) -> int:
        return row_sum("registers", *self[:_RECORD])

    @property
    def value_sum(self) -> int:
        return row_sum("registers value", self.repository, *self[_RECORD:])


_RECORD = RegisterRow._fields.index("sequence")
"""The columns before this one are the acceptor record."""


def row_sum(table: str, *columns: object) -> int:
    """64 bits over a row; what SQLite gives back (text, integer, bytes, NULL) must be what was given to it.

    MessagePack writes every such value in one way, with its type and length, so no two rows look alike.
    """
    try:
        encoded = _encode((table, *columns))
    except UnicodeEncodeError:  # a lone surrogate: what was no UTF-8 on the disk, and so never written
        encoded = ascii((table, *columns)).encode()
    return int.from_bytes(blake2b(encoded, digest_size=8).digest(), "big", signed=True)


def accepted_sum(repository: str, accepted: str) -> int:
    return row_sum("accepted", repository, accepted)


def ref_sum(repository: str, name: str, oid: str, peeled: str | None) -> int:
    return row_sum("refs", repository, name, oid, peeled)


def history_sum(repository: str, version: int, digest: str, change: str, committed_at_ms: int) -> int:
    return row_sum("history", repository, version, digest, change, committed_at_ms)


def certificate_sum(repository: str, version: int, certificate: str | None) -> int:
    """Apart from the rest of its row: it may come later, and it may be fetched again."""
    return row_sum("certificate", repository, version, certificate)


def pack_sum(sha256: str, pack: bytes, index: bytes) -> int:
    return row_sum("inline_packs", sha256, pack, index)


def use_sum(sha256: str, repository: str, role: str, version: int) -> int:
    return row_sum("pack_uses", sha256, repository, role, version)


def transaction_sum(txn: str, settled: int, submitted_at_ms: int, record: str) -> int:
    return row_sum("transactions", txn, int(settled), submitted_at_ms, record)


def read_row(db: sqlite3.Connection, repository: RepoId) -> tuple[RegisterRow | None, str | None]:
    """(the repository's row, its accepted change as text); verified.

    Raises:
        JournalDamaged: RECORD, or VALUE where the acceptor record is whole.
    """
    row, text = read_record_row(db, repository)
    if row is None:
        return None, None
    fields, value_sum = row
    if fields.value_sum != value_sum:
        raise JournalDamaged(repository, DamagedPart.VALUE, "the register's value is not what was written")
    return fields, text


def read_record_row(db: sqlite3.Connection, repository: RepoId) -> tuple[tuple[RegisterRow, int] | None, str | None]:
    """The same with the acceptor record verified only: ((row, its value's sum), accepted text)."""
    found = db.execute(_READ, (repository,)).fetchone()
    if found is None:
        return None, None
    *columns, record_sum, value_sum, accepted, kept_sum = found
    row = RegisterRow(*columns)
    if row.record_sum != record_sum:
        raise JournalDamaged(repository, DamagedPart.RECORD, "the acceptor record is not what was written")
    held = 0 if accepted is None else accepted_sum(repository, accepted)
    if (held, kept_sum or 0) != (row.accepted_sum, row.accepted_sum):
        raise JournalDamaged(repository, DamagedPart.RECORD, "the accepted change is not what was written")
    return (row, value_sum), accepted


def record_of(repository: RepoId, row: RegisterRow | None, accepted: str | None) -> AcceptorRecord:
    """The acceptor record in a verified row."""
    if row is None:
        return AcceptorRecord()
    return AcceptorRecord(
        promised=Ballot(row.promised_round, NodeId(row.promised_node), row.promised_attempt),
        accepted=read_accepted(accepted) if accepted is not None else None,
        committed=Position(row.version, Digest(row.digest)),
    )


def check_history(repository: str, version: int, digest: str, change: str, committed_at_ms: int, kept_sum: int) -> None:
    """Raises ``JournalDamaged``."""
    if history_sum(repository, version, digest, change, committed_at_ms) != kept_sum:
        raise JournalDamaged(RepoId(repository), DamagedPart.HISTORY, "a committed change is not what was written", version)


def check_certificate(repository: str, version: int, certificate: str | None, kept_sum: int) -> None:
    """Raises ``JournalDamaged``."""
    if certificate_sum(repository, version, certificate) != kept_sum:
        detail = "a certificate is not what was written"
        raise JournalDamaged(RepoId(repository), DamagedPart.CERTIFICATE, detail, version)


def write_row(db: sqlite3.Connection, row: RegisterRow) -> None:
    """Store the whole row with both sums."""
    db.execute(_WRITE, (*row, row.record_sum, row.value_sum))


_COLUMNS = ", ".join(RegisterRow._fields)
_QUALIFIED = ", ".join(f"r.{column}" for column in RegisterRow._fields)
_READ = f"""
    SELECT {_QUALIFIED}, r.sum, r.value_sum, a.accepted, a.sum
    FROM registers AS r LEFT JOIN accepted AS a USING (repository) WHERE r.repository = ?"""
_WRITE = f"""
    INSERT INTO registers ({_COLUMNS}, sum, value_sum) VALUES ({", ".join("?" * (len(RegisterRow._fields) + 2))})
    ON CONFLICT (repository) DO UPDATE SET
    {", ".join(f"{column} = excluded.{column}" for column in (*RegisterRow._fields[1:], "sum", "value_sum"))}"""
