"""Row checksums: whatever column of whatever row is changed behind the journal's back, the next read says so."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from node.ports.errors import DamagedPart, JournalDamaged
from node.ports.journal import TransactionRecord
from node.protocol.acceptor import WriteVerdict
from node.protocol.ids import RepoId, TxnId
from node.protocol.standing import State
from node.storage.journal import SqliteJournal
from node.storage.journal_rows import RegisterRow, row_sum
from node.storage.journal_schema import FILE_NAME, FOLDER_NAME
from tests.unit.journal_values import (
    ME,
    MEMBERS,
    REPO,
    accept,
    accept_none,
    ballot,
    certificate,
    commit,
    create,
    pack,
    point,
    promise,
    update,
)

OTHER = RepoId("bob/other")
REF, INLINE = pack(1)
FIRST = create(key="once")
SECOND = update(FIRST, "t-2", point(new=5), packs=(REF,))
THIRD = update(SECOND, "t-3", point(new=6, old=5))
PART = DamagedPart


def open_(data_dir: Path) -> SqliteJournal:
    return SqliteJournal.open(data_dir, node=ME, cluster="test", linger_s=30.0)


async def filled(data_dir: Path) -> SqliteJournal:
    """A repository with history, refs, a small pack and a change in doubt; another one with a promise."""
    journal = open_(data_dir)
    await journal.keep_transaction(TransactionRecord(TxnId("t-2"), REPO, "update", ME, "tester", 1))
    for change, packs in ((FIRST, ()), (SECOND, (INLINE,))):
        await journal.write(commit(change), members=MEMBERS, at_ms=1, certificate=certificate(change), packs=packs)
    await journal.write(accept(ballot(3, 1), THIRD), members=MEMBERS, at_ms=1)
    await journal.write(promise(ballot(2), OTHER), members=MEMBERS, at_ms=1)
    return journal


Ask = Callable[[SqliteJournal], Awaitable[Any]]


async def load(journal: SqliteJournal) -> Any:
    return await journal.load(REPO, MEMBERS)


async def vote(journal: SqliteJournal) -> Any:
    return await journal.write(accept_none(ballot(9, 1), SECOND.position), members=MEMBERS, at_ms=1)


async def history(journal: SqliteJournal) -> Any:
    return await journal.history(REPO, 0, 10)


async def small(journal: SqliteJournal) -> Any:
    return await journal.inline_pack(REF)


async def uses(journal: SqliteJournal) -> Any:
    return await journal.packs_in_use()


async def mark(journal: SqliteJournal) -> Any:
    await journal.mark_synced(REPO, 2)
    await journal.flush()
    if journal.damages:
        raise journal.damages[0]


RECORD = RegisterRow._fields[: RegisterRow._fields.index("sequence")]
VALUE = RegisterRow._fields[len(RECORD) :]
ALTERATIONS = [
    *(("registers", column, PART.RECORD, ask) for column in (*RECORD[1:], "sum") for ask in (load, vote, mark)),
    *(("registers", column, PART.VALUE, ask) for column in (*VALUE, "value_sum") for ask in (load, vote, mark)),
    *(("accepted", column, PART.RECORD, ask) for column in ("repository", "accepted", "sum") for ask in (load, vote)),
    *(("refs", column, PART.REFS, load) for column in ("name", "oid", "peeled")),
    *(("history", column, PART.HISTORY, history) for column in ("version", "digest", "change", "committed_at_ms", "sum")),
    *(("history", column, PART.CERTIFICATE, history) for column in ("certificate", "certificate_sum")),
    *(("inline_packs", column, PART.PACK, small) for column in ("pack", "pack_index", "sum")),
    *(("pack_uses", column, PART.INDEX, uses) for column in ("sha256", "repository", "role", "version", "sum")),
]


def alter(db: sqlite3.Connection, table: str, column: str) -> None:
    """Another value of the same type, in every row of it: a flipped bit of a number, the last letter of a text."""
    (kind,) = db.execute("SELECT type FROM pragma_table_info(?) WHERE name = ?", (table, column)).fetchone()
    if kind == "INTEGER":
        done = db.execute(f"UPDATE {table} SET {column} = {column} + 64")
    elif kind == "BLOB":
        done = db.execute(f"UPDATE {table} SET {column} = CAST(substr({column}, 1, length({column}) - 1) || 'z' AS BLOB)")
    elif column == "role":
        done = db.execute("UPDATE pack_uses SET role = 'accepted'")
    else:
        done = db.execute(f"UPDATE {table} SET {column} = substr(COALESCE({column}, ''), 2) || '~'")
    assert done.rowcount


async def test_a_damaged_record_that_is_met_by_who_serves_a_rejoining_node_is_noted_for_the_scrub(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    try:
        await journal._writer.submit(lambda db: alter(db, "registers", "promised_round"))
        with pytest.raises(JournalDamaged):
            await journal.lives.records("", 10, MEMBERS)
        assert [(damage.repository, damage.part) for damage in journal.damages] == [(REPO, PART.RECORD)]
    finally:
        await journal.close()


@pytest.mark.parametrize(
    ("table", "column", "part", "ask"), ALTERATIONS, ids=[f"{t}.{c}-{a.__name__}" for t, c, _, a in ALTERATIONS]
)
async def test_a_changed_column_is_damage_and_nothing_is_decided_by_it(
    tmp_path: Path, table: str, column: str, part: DamagedPart, ask: Ask
) -> None:
    journal = await filled(tmp_path)
    try:
        await journal._writer.submit(lambda db: alter(db, table, column))
        with pytest.raises(JournalDamaged) as caught:
            await ask(journal)
        assert caught.value.part is part
        assert caught.value.repository == (REPO if part not in (PART.PACK, PART.INDEX) else None)
        assert [damage.part for damage in journal.damages] == [part], "remembered for the scrub"
        journal.mended(journal.damages[0])
        assert not journal.damages
    finally:
        await journal.close()


@pytest.mark.parametrize(("table", "part"), [("accepted", PART.RECORD), ("refs", PART.REFS)])
async def test_a_row_that_vanished_is_missed(tmp_path: Path, table: str, part: DamagedPart) -> None:
    """An accepted change that is not there any more is a vote forgotten, not a vote never given."""
    journal = await filled(tmp_path)
    try:
        await journal._writer.submit(lambda db: db.execute(f"DELETE FROM {table}"))
        with pytest.raises(JournalDamaged) as caught:
            await load(journal)
        assert caught.value.part is part
    finally:
        await journal.close()


async def test_a_row_cannot_stand_for_another_repositorys(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    names = ", ".join(column for column in (*RegisterRow._fields[1:], "sum", "value_sum"))
    try:
        await journal._writer.submit(
            lambda db: db.execute(
                f"UPDATE registers SET ({names}) = (SELECT {names} FROM registers WHERE repository = ?) WHERE repository = ?",
                (OTHER, REPO),
            )
        )
        with pytest.raises(JournalDamaged):
            await load(journal)
        assert await journal.write(promise(ballot(3), OTHER), members=MEMBERS, at_ms=1), "its neighbour is well"
    finally:
        await journal.close()


async def test_a_damaged_row_fails_its_own_write_only(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    try:
        await journal._writer.submit(
            lambda db: db.execute("UPDATE registers SET promised_round = 0 WHERE repository = ?", (REPO,))
        )
        await journal.mark_applied(REPO, 2)
        results = await asyncio.gather(
            vote(journal), journal.write(promise(ballot(3), OTHER), members=MEMBERS, at_ms=1), return_exceptions=True
        )
        assert isinstance(results[0], JournalDamaged)
        assert results[1][0] is WriteVerdict.DONE  # type: ignore[index]
        await journal.flush()
        assert not journal.failed
    finally:
        await journal.close()


async def test_text_that_is_no_utf8_any_more_is_damage_of_its_row(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    try:
        await journal._writer.submit(
            lambda db: db.execute("UPDATE registers SET head = CAST(x'72656673ff' AS TEXT) WHERE repository = ?", (REPO,))
        )
        with pytest.raises(JournalDamaged) as caught:
            await load(journal)
        assert caught.value.part is PART.VALUE
    finally:
        await journal.close()


async def test_a_divergent_digest_is_only_believed_of_a_row_that_is_whole(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    try:
        await journal._writer.submit(lambda db: db.execute("UPDATE history SET digest = ? WHERE version = 1", ("0" * 64,)))
        with pytest.raises(JournalDamaged) as caught:
            await journal.write(commit(FIRST), members=MEMBERS, at_ms=1)
        assert (caught.value.part, caught.value.version) == (PART.HISTORY, 1)
    finally:
        await journal.close()


async def test_a_damaged_record_of_a_transaction_is_as_good_as_none(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    await journal.close()
    journal = open_(tmp_path)
    try:
        assert await journal.transaction(TxnId("t-2"))
        await journal._writer.submit(lambda db: alter(db, "transactions", "record"))
        assert await journal.transaction(TxnId("t-2")) is None
    finally:
        await journal.close()


async def test_an_identity_that_was_changed_is_no_identity(tmp_path: Path) -> None:
    """The node makes itself a new one, and has to rejoin under it."""
    await (await filled(tmp_path)).close()
    db = sqlite3.connect(tmp_path / FOLDER_NAME / FILE_NAME)
    db.execute("UPDATE identity SET incarnation = 2")
    db.commit()
    db.close()
    journal = open_(tmp_path)
    assert journal.lives.standing.state is State.REJOINING
    assert "not known whose it is" in journal.lives.standing.reason
    await journal.close()


def test_no_two_rows_look_alike() -> None:
    rows: list[tuple[Any, ...]] = [("a", "bc"), ("ab", "c"), ("a", b"bc"), ("a", None, "bc"), (1, "1"), ("1", 1), ("a\udcff",)]
    assert len({row_sum("t", *row) for row in rows} | {row_sum("u", *rows[0])}) == len(rows) + 1
    assert all(-(1 << 63) <= row_sum("t", number) < 1 << 63 for number in range(200)), "SQLite's integers are signed"
