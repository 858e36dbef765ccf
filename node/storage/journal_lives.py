"""Whose life a journal is, what it is worth, and which lives of the other nodes it knows (R4): ``ports.Lives`` on SQLite.

    life       one row: how often it was opened, acceptor records and grants written, its standing (new, member, rejoining)
    enrolled   newer incarnations of other nodes, stored before they are granted
    seen       the newest life of each other node that was ever seen; written lazily

All but ``seen`` is durable when the call returns. A start is counted before anything else is done with the journal; a write is
counted in the transaction that makes it.
"""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from node.ports.errors import StorageError
from node.protocol.ids import NodeId, RepoId
from node.protocol.incarnations import FIRST, Incarnations, merged
from node.protocol.messages import Enrolment, HeldRecord
from node.protocol.quorum import VoterSet
from node.protocol.standing import Life, Standing, State
from node.storage.journal_codec import read_voters
from node.storage.journal_rows import read_row, record_of, row_sum

Submit = Callable[[Callable[[sqlite3.Connection], Any]], "asyncio.Future[Any]"]
Run = Callable[[Callable[[sqlite3.Connection], Any]], Coroutine[Any, Any, Any]]

RECORDS_PAGE_BYTES_MAX = 16 * 1024**2
"""Accepted changes of one page of records, as text; at least one record is in a page."""

TABLES = """
-- how often the journal was opened and by which process last, acceptor records written, now and when that process began, and
-- what it is worth (R4); sum is over this row but for writes, and over all that is enrolled
CREATE TABLE life (
    one INTEGER PRIMARY KEY CHECK (one = 1), boot INTEGER NOT NULL, nonce TEXT NOT NULL, writes INTEGER NOT NULL,
    began INTEGER NOT NULL, state TEXT NOT NULL, founders TEXT NOT NULL, reason TEXT NOT NULL, since_ms INTEGER NOT NULL,
    tried INTEGER NOT NULL, sum INTEGER NOT NULL
) STRICT;
CREATE TABLE enrolled (node TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, life TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE seen (node TEXT PRIMARY KEY, life TEXT NOT NULL, sum INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

DAMAGED = "what its journal knew of lives is not what was written"
"""The reason to rejoin where this file's rows are damaged: what it had granted to others is learned again, too."""


def create(db: sqlite3.Connection) -> None:
    """With the other tables, in one transaction."""
    for statement in TABLES.split(";\n"):
        db.execute(statement)
    db.execute("INSERT INTO life VALUES (1, 0, '', 0, 0, ?, '[]', '', 0, 0, 0)", (State.NEW.value,))
    _seal(db)


def count_start(db: sqlite3.Connection) -> None:
    """Durable before anything is said in this life of the process. Damage of these rows is amnesia: the node rejoins."""
    db.execute("BEGIN IMMEDIATE")
    (kept,) = db.execute("SELECT sum FROM life").fetchone() or (None,)
    if kept != _sum(db):
        db.execute("DELETE FROM enrolled")
        since_ms = time.time_ns() // 1_000_000
        row = (State.REJOINING.value, DAMAGED, since_ms)
        db.execute("INSERT OR IGNORE INTO life VALUES (1, 0, '', 0, 0, '', '[]', '', 0, 0, 0)")
        db.execute("UPDATE life SET state = ?, founders = '[]', reason = ?, since_ms = ?, tried = 0", row)
    db.execute("UPDATE life SET boot = boot + 1, nonce = ?, began = writes", (secrets.token_hex(8),))
    _seal(db)
    db.execute("COMMIT")


def mark_lost(db: sqlite3.Connection, reason: str, at_ms: int) -> None:
    """Inside a transaction, before anything is said: what this journal holds is not all that was written."""
    row = (State.REJOINING.value, reason, at_ms, State.REJOINING.value)
    db.execute("UPDATE life SET state = ?, reason = ?, since_ms = ? WHERE state != ?", row)
    _seal(db)


TORN = "its file is damaged and was not made whole: "
"""How the reason of a mark begins while the file is written anew."""


def mark_torn(db: sqlite3.Connection) -> None:
    """Inside a transaction, under the mark: from now on this file is not believed by a start, whatever that can see of it."""
    mark = (TORN, State.REJOINING.value, TORN)
    db.execute("UPDATE life SET reason = ? || reason WHERE state = ? AND substr(reason, 1, length(?)) != ?", (*mark, TORN))
    _seal(db)
    if not is_torn(db):
        raise StorageError("a journal is written anew by a node that is rejoining only")


def mark_whole(db: sqlite3.Connection) -> None:
    db.execute("UPDATE life SET reason = substr(reason, length(?) + 1) WHERE substr(reason, 1, length(?)) = ?", (TORN,) * 3)
    _seal(db)


def is_torn(db: sqlite3.Connection) -> bool:
    standing = read_standing(db)
    return standing.state is State.REJOINING and standing.reason.startswith(TORN)


def _sum(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT boot, nonce, began, state, founders, reason, since_ms, tried FROM life").fetchone() or ()
    enrolled = db.execute("SELECT node, incarnation, life FROM enrolled ORDER BY node").fetchall()
    return row_sum("life", *row, *(column for each in enrolled for column in each))


def _seal(db: sqlite3.Connection) -> None:
    db.execute("UPDATE life SET sum = ?", (_sum(db),))


class SqliteLives:
    """``ports.Lives``. What is durable is kept in memory too, and in memory only after it is durable."""

    def __init__(self, journal: str, db: sqlite3.Connection) -> None:
        self._journal = journal
        self.life = read_life(db, journal)
        self.standing = read_standing(db)
        enrolled = db.execute("SELECT node, incarnation FROM enrolled").fetchall()
        self._enrolled = {NodeId(node): incarnation for node, incarnation in enrolled}
        rows = db.execute("SELECT node, life, sum FROM seen").fetchall()
        whole = [(node, life) for node, life, kept in rows if row_sum("seen", node, life) == kept]
        self.seen: Mapping[NodeId, Life] = {NodeId(node): msgspec.json.decode(life, type=Life) for node, life in whole}
        self._written = False  # the open transaction counted a write; the writer thread's own
        self.forgot = False  # … dropped history; likewise

    def begin(self, submit: Submit, run: Run) -> None:
        """How to write and read from now on: the journal's own threads."""
        self._submit = submit
        self._run = run

    @property
    def incarnations(self) -> Incarnations:
        return merged(tuple(self._enrolled.items()))

    async def found(self, founders: Sequence[str], at_ms: int) -> None:
        await self._stand(Standing(State.MEMBER, tuple(founders), since_ms=at_ms, tried=self.standing.tried))

    async def mark_rejoining(self, reason: str, at_ms: int) -> None:
        mark = replace(self.standing, state=State.REJOINING, reason=reason, since_ms=at_ms)
        await self._stand(self.standing if self.standing.state is State.REJOINING else mark)

    async def keep_attempt(self, incarnation: int) -> None:
        await self._stand(replace(self.standing, tried=max(self.standing.tried, incarnation)))

    async def clear_rejoining(self, incarnation: int, incarnations: Incarnations, founders: Sequence[str], at_ms: int) -> None:
        named = tuple(sorted({self._journal, *founders}))
        known = merged(self.incarnations, incarnations)
        standing = Standing(State.MEMBER, named, since_ms=at_ms, tried=self.standing.tried)
        await self._submit(lambda db: _clear(db, standing, incarnation, known))
        self.standing = standing
        self.life = replace(self.life, incarnation=incarnation)
        self._enrolled = dict(known)

    async def enrol(self, node: NodeId, incarnation: int, life: str) -> Enrolment:
        known = await self._submit(lambda db: self._enrol(db, node, incarnation, life))
        self._enrolled[node] = max(self._enrolled.get(node, FIRST), known[0])
        return Enrolment(incarnation > FIRST and known == (incarnation, life), known[0])

    def _enrol(self, db: sqlite3.Connection, node: NodeId, incarnation: int, life: str) -> tuple[int, str]:
        """A grant counts as a write: a journal that was set back before it is noticed by the others, as for a vote."""
        changes = db.total_changes
        known = _enrol(db, node, incarnation, life)
        if db.total_changes != changes:
            self.count(db)
        return known

    async def keep_seen(self, seen: Mapping[NodeId, Life]) -> None:
        texts = [(str(node), msgspec.json.encode(life).decode()) for node, life in seen.items()]
        rows = [(*row, row_sum("seen", *row)) for row in texts]
        await self._submit(lambda db: db.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", rows).rowcount)
        self.seen = {**self.seen, **seen}

    async def records(self, after: str, limit: int, members: VoterSet) -> tuple[Sequence[HeldRecord], bool]:
        page: tuple[list[HeldRecord], bool] = await self._run(lambda db: read_records(db, after, limit, members))
        return page

    def count(self, db: sqlite3.Connection) -> None:
        """In the transaction that writes an acceptor record."""
        db.execute("UPDATE life SET writes = writes + 1")
        self._written = True

    def committed(self, db: sqlite3.Connection) -> None:
        """A transaction is durable: told by the writer thread, before anybody who waits for it."""
        if self._written:
            self.life, self._written = read_life(db, self._journal), False

    async def forget(self, repository: RepoId) -> None:
        await self._submit(lambda db: self._forget(db, repository))

    def _forget(self, db: sqlite3.Connection, repository: RepoId) -> None:
        _forget(db, repository)
        self.forgot = True

    async def _stand(self, standing: Standing) -> None:
        await self._submit(lambda db: _write_standing(db, standing))
        self.standing = standing


def read_life(db: sqlite3.Connection, journal: str) -> Life:
    (incarnation,) = db.execute("SELECT incarnation FROM identity").fetchone()
    boot, nonce, writes, began = db.execute("SELECT boot, nonce, writes, began FROM life").fetchone()
    return Life(incarnation, journal, boot, nonce, writes, began)


def read_standing(db: sqlite3.Connection) -> Standing:
    state, founders, *rest = db.execute("SELECT state, founders, reason, since_ms, tried FROM life").fetchone()
    return Standing(State(state), msgspec.json.decode(founders, type=tuple[str, ...]), *rest)


def read_records(db: sqlite3.Connection, after: str, limit: int, members: VoterSet) -> tuple[list[HeldRecord], bool]:
    """One page in order of the keys, and whether there are more. Voters of a register that was never created: ``members``.

    Raises:
        JournalDamaged: a record is not what was written; nothing may be told of it.
    """
    page: list[HeldRecord] = []
    size_bytes = 0
    names = db.execute("SELECT repository FROM registers WHERE repository > ? ORDER BY repository", (after,))
    for (repository,) in names:
        row, text = read_row(db, RepoId(repository))
        assert row is not None
        size_bytes += len(text or "")
        if len(page) == limit or (page and size_bytes > RECORDS_PAGE_BYTES_MAX):
            return page, True
        record = record_of(RepoId(repository), row, text)
        voters = read_voters(row.voters) if row.voters is not None else members
        held = (record.promised, record.accepted, record.committed, bool(row.stopped))
        page.append(HeldRecord(RepoId(repository), voters, *held))
    return page, False


def _enrol(db: sqlite3.Connection, node: NodeId, incarnation: int, life: str) -> tuple[int, str]:
    """What is known after it: higher numbers are stored, an equal one only of the life that took it."""
    known: tuple[int, str] | None = db.execute("SELECT incarnation, life FROM enrolled WHERE node = ?", (node,)).fetchone()
    if incarnation <= (known[0] if known else FIRST):
        return known or (FIRST, "")
    db.execute("INSERT OR REPLACE INTO enrolled VALUES (?, ?, ?)", (node, incarnation, life))
    _seal(db)
    return incarnation, life


def _write_standing(db: sqlite3.Connection, standing: Standing) -> None:
    founders = msgspec.json.encode(standing.founders).decode()
    row = (standing.state.value, founders, standing.reason, standing.since_ms, standing.tried)
    db.execute("UPDATE life SET state = ?, founders = ?, reason = ?, since_ms = ?, tried = ?", row)
    _seal(db)


def _clear(db: sqlite3.Connection, standing: Standing, incarnation: int, incarnations: Incarnations) -> None:
    identity = db.execute("SELECT schema, node, cluster, journal FROM identity").fetchone()
    db.execute("UPDATE identity SET incarnation = ?, sum = ?", (incarnation, row_sum("identity", *identity, incarnation)))
    for node, number in incarnations:
        _enrol(db, node, number, "")
    _write_standing(db, standing)


def _forget(db: sqlite3.Connection, repository: RepoId) -> None:
    for table in ("registers", "accepted", "refs", "history", "history_txns", "history_keys", "pack_uses"):
        db.execute(f"DELETE FROM {table} WHERE repository = ?", (repository,))
