"""What the scrub finds in a journal on disk, kind by kind, and that mending it leaves nothing to be found."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from node.ports.errors import DamagedPart
from node.protocol.change import Change
from node.protocol.messages import HistoryEntry
from node.protocol.register import Register
from node.storage.journal import SqliteJournal
from tests.unit.journal_values import ME, MEMBERS, REPO, certificate, commit, create, pack, point, update

REF, INLINE = pack(1)
FIRST = create(key="once")
SECOND = update(FIRST, "t-2", point(new=5))
THIRD = update(SECOND, "t-3", point(new=6, old=5), packs=(REF,))
CHANGES = (FIRST, SECOND, THIRD)
PART = DamagedPart


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal.open(tmp_path, node=ME, cluster="test", linger_s=30.0)
    for change in CHANGES:
        packs = (INLINE,) if change.packs else ()
        await journal.write(commit(change), members=MEMBERS, at_ms=1, certificate=certificate(change), packs=packs)
    await journal.mark_synced(REPO, 2)
    await journal.flush()
    yield journal
    await journal.close()


async def test_who_is_set_aside_is_found_by_how_the_reason_begins(journal: SqliteJournal) -> None:
    assert await journal.care.set_aside("") == []
    await journal.stop_voting(REPO, "internal error: a test")
    assert await journal.care.set_aside("") == [REPO]
    assert await journal.care.set_aside("internal") == [REPO]
    assert await journal.care.set_aside("damaged") == []


async def test_only_what_a_replica_was_known_to_be_set_aside_for_is_ended(journal: SqliteJournal) -> None:
    assert await journal.care.resume_voting(REPO, "") == ""
    await journal.stop_voting(REPO, "damaged: a pack")
    assert await journal.care.resume_voting(REPO, "") == "damaged: a pack"
    await journal.stop_voting(REPO, "version 2 has two digests")
    assert await journal.care.resume_voting(REPO, "damaged: a pack") == "version 2 has two digests"
    assert (await journal.load(REPO, MEMBERS)).stopped == "version 2 has two digests"
    assert await journal.care.resume_voting(REPO, "version 2 has two digests") == ""
    assert (await journal.load(REPO, MEMBERS)).stopped == ""


async def found(journal: SqliteJournal) -> list[tuple[DamagedPart, int]]:
    damages, more = await journal.care.verify(REPO, 0)
    assert more is None
    return [(damage.part, damage.version) for damage in damages]


def entry(change: Change) -> HistoryEntry:
    return HistoryEntry(change, certificate(change), 1)


def value() -> Register:
    register = Register(REPO, MEMBERS)
    for change in CHANGES:
        register = register.applied(change)
    return register


async def mend_second(journal: SqliteJournal) -> None:
    await journal.care.mend_history(entry(SECOND))


async def mend_third(journal: SqliteJournal) -> None:
    await journal.care.mend_history(entry(THIRD))


async def mend_value(journal: SqliteJournal) -> None:
    assert await journal.care.mend_value(value())


async def mend_index(journal: SqliteJournal) -> None:
    await journal.care.mend_index(REPO)


async def mend_pack(journal: SqliteJournal) -> None:
    assert REF in await journal.care.waited_for(REPO)
    await journal.care.mend_pack(INLINE)


Mend = Callable[[SqliteJournal], Awaitable[None]]
KINDS: list[tuple[str, DamagedPart, int, Mend]] = [
    ("UPDATE history SET change = replace(change, 'tester', 'taster') WHERE version = 2", PART.HISTORY, 2, mend_second),
    ("UPDATE history SET digest = '0' WHERE version = 2", PART.HISTORY, 2, mend_second),
    ("UPDATE history SET version = 99 WHERE version = 2", PART.HISTORY, 2, mend_second),
    ("DELETE FROM history WHERE version = 3", PART.HISTORY, 3, mend_third),
    ("UPDATE history SET certificate = '{}' WHERE version = 3", PART.CERTIFICATE, 3, mend_third),
    ("UPDATE history SET certificate = NULL WHERE version = 3", PART.CERTIFICATE, 3, mend_third),
    ("UPDATE registers SET head = 'refs/heads/maim'", PART.VALUE, 0, mend_value),
    ("UPDATE registers SET voters = 'nobody'", PART.VALUE, 0, mend_value),
    ("UPDATE registers SET synced = 3", PART.VALUE, 0, mend_value),
    ("UPDATE refs SET oid = replace(oid, '6', '7')", PART.REFS, 0, mend_value),
    ("DELETE FROM refs", PART.REFS, 0, mend_value),
    ("DELETE FROM history_txns WHERE txn = 't-2'", PART.INDEX, 2, mend_index),
    ("UPDATE history_txns SET version = 3 WHERE txn = 't-2'", PART.INDEX, 2, mend_index),
    ("DELETE FROM history_keys", PART.INDEX, 1, mend_index),
    ("DELETE FROM pack_uses", PART.INDEX, 0, mend_index),
    ("UPDATE pack_uses SET version = 4", PART.INDEX, 0, mend_index),
    ("UPDATE inline_packs SET pack_index = x'00'", PART.PACK, 0, mend_pack),
]


async def test_a_journal_that_is_whole_has_nothing_to_be_found(journal: SqliteJournal) -> None:
    assert await found(journal) == []
    assert await journal.care.verify_database(0.0) == ""
    assert await journal.care.keys("", 10) == [REPO]
    assert await journal.care.committed(REPO) == THIRD.position


@pytest.mark.parametrize(("sql", "part", "version", "mend"), KINDS, ids=[sql[:50] for sql, *_ in KINDS])
async def test_what_is_damaged_is_found_and_mended(
    journal: SqliteJournal, sql: str, part: DamagedPart, version: int, mend: Mend
) -> None:
    before = await dumped(journal)
    await journal._writer.submit(lambda db: db.execute(sql))
    assert (part, version) in await found(journal)
    await mend(journal)
    assert await found(journal) == []
    assert await journal.care.verify_database(0.0) == ""
    after = await dumped(journal)
    if part is not PART.VALUE:  # its marks fall to nothing: the view is looked at again
        assert after == before
    loaded = await journal.load(REPO, MEMBERS)
    assert loaded.register == value()
    assert await journal.history(REPO, 0, 10) == tuple(map(entry, CHANGES))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "damaged: the journal was mended, the repository is looked at"),
        ("damaged: a pack", "damaged: a pack"),
        ("internal error: a bug", "internal error: a bug"),
        ("two digests at version 3", "two digests at version 3"),
    ],
)
async def test_a_row_that_is_mended_stays_set_aside_for_what_it_was(journal: SqliteJournal, before: str, after: str) -> None:
    """[whatever it had been, it was "damaged" then, and taken back]"""
    await journal.stop_voting(REPO, before)
    await journal._writer.submit(lambda db: db.execute("UPDATE registers SET head = 'refs/heads/maim'"))
    await mend_value(journal)
    assert (await journal.load(REPO, MEMBERS)).stopped == after


async def test_a_reason_that_is_no_text_any_more_keeps_no_row_from_being_mended(journal: SqliteJournal) -> None:
    await journal._writer.submit(lambda db: db.execute("UPDATE registers SET stopped = CAST(x'ff41' AS TEXT)"))
    await mend_value(journal)
    assert (await journal.load(REPO, MEMBERS)).stopped == r"\udcffA"
    assert await found(journal) == []


async def dumped(journal: SqliteJournal) -> Any:
    tables = ("registers", "refs", "history", "history_txns", "history_keys", "pack_uses", "inline_packs")

    def dump(db: sqlite3.Connection) -> Any:
        columns = {"history": "repository, version, digest, change, certificate, committed_at_ms, sum, certificate_sum"}
        return {name: sorted(map(repr, db.execute(f"SELECT {columns.get(name, '*')} FROM {name}"))) for name in tables}

    await journal.flush()
    return {
        name: rows if name != "registers" else [row.replace(" 3, ", " _, ") for row in rows]
        for name, rows in (await journal._reads.run(dump)).items()
    }


async def test_a_damaged_acceptor_record_is_the_only_thing_said_and_is_never_mended(journal: SqliteJournal) -> None:
    await journal._writer.submit(lambda db: db.execute("UPDATE registers SET promised_round = 7, head = 'x'"))
    assert await found(journal) == [(PART.RECORD, 0)]
    with pytest.raises(Exception, match="acceptor record"):
        await journal.care.mend_value(value())


async def test_a_row_under_a_key_that_nobody_has_is_found_and_dropped(journal: SqliteJournal) -> None:
    await journal._writer.submit(lambda db: db.execute("UPDATE refs SET repository = 'alkce/project'"))
    assert "alkce/project" in await journal.care.verify_database(0.0)
    await journal.care.reindex()
    assert await journal.care.verify_database(0.0) == ""
    assert await found(journal) == [(PART.REFS, 0)]


async def test_value_is_not_mended_from_a_history_that_grew_meanwhile(journal: SqliteJournal) -> None:
    old = Register(REPO, MEMBERS).applied(FIRST)
    assert not await journal.care.mend_value(old)


async def test_long_histories_are_looked_at_in_pieces(journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    from node.storage import journal_verify

    monkeypatch.setattr(journal_verify, "HISTORY_STEP", 1)
    await journal._writer.submit(lambda db: db.execute("UPDATE history SET digest = '0' WHERE version = 3"))
    since: int | None = 0
    seen = []
    while since is not None:
        page, since = await journal.care.verify(REPO, since)
        seen.append([(damage.part, damage.version) for damage in page])
    assert seen == [[], [], [(PART.HISTORY, 3)]]
