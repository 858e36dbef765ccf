"""A journal's file with damaged pages that making its indexes again does not mend: written anew, or given up for good."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest

from node.ports.errors import DiskRefused, JournalDamaged, StorageError
from node.protocol.ids import RepoId
from node.protocol.standing import State
from node.storage import group_commit, journal_rebuild
from node.storage.journal import SqliteJournal
from node.storage.journal_schema import FILE_NAME, FOLDER_NAME
from tests.unit.journal_values import ME, MEMBERS, REPO, ballot, commit, create, promise

FIRST = create()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal.open(tmp_path, node=ME, cluster="test")
    await made.write(commit(FIRST), members=MEMBERS, at_ms=1)
    names = [RepoId(f"o/r{number}") for number in range(300)]
    await asyncio.gather(*(made.write(promise(ballot(2), name), members=MEMBERS, at_ms=1) for name in names))
    await made.close()
    journal = opened(tmp_path)
    yield journal
    await journal.close()


def opened(data_dir: Path) -> SqliteJournal:
    return SqliteJournal.open(data_dir, node=ME, cluster="test")


def spoil(data_dir: Path, table: str, offset: int, content: bytes) -> None:
    """Bytes of the table's first page, as a disk does it."""
    path = data_dir / FOLDER_NAME / FILE_NAME
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size + offset)
        file.write(content)


def mendable(data_dir: Path) -> None:
    """[REINDEX left it, the node rejoined into the same file, was a member, and rejoined again at every pass]"""
    spoil(data_dir, "transactions", 5, b"\x00\x01\xff\xff")


async def test_pages_that_reindex_leaves_damaged_are_written_anew_under_the_mark(
    tmp_path: Path, journal: SqliteJournal
) -> None:
    mendable(tmp_path)
    await journal.care.reindex()
    assert "page" in await journal.care.verify_database(0.0)
    await journal.mark_rejoining("damaged", 1)
    await journal.care.rebuild()
    assert await journal.care.verify_database(0.0) == ""
    assert not journal.failed
    assert (await journal.load(REPO, MEMBERS)).register.position == FIRST.position, "readers see it"
    assert len(await journal.care.keys("", 1000)) == 301
    await journal.write(promise(ballot(9), RepoId("o/later")), members=MEMBERS, at_ms=1)
    await journal.close()
    again = opened(tmp_path)
    try:
        assert (again.lives.standing.state, again.lives.standing.reason) == (State.REJOINING, "damaged")
        assert (await again.load(REPO, MEMBERS)).register.position == FIRST.position, "the file was believed"
        assert not list((tmp_path / FOLDER_NAME).glob("damaged-*"))
    finally:
        await again.close()


async def test_a_file_that_cannot_be_made_whole_ends_all_writes_and_is_kept_aside_by_the_next_start(
    tmp_path: Path, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[what a start looks at need not see what the scrub saw]"""
    monkeypatch.setattr(journal_rebuild, "verify_database", lambda path, rest_s: "still wrong")
    await journal.mark_rejoining("damaged", 1)
    waiting = asyncio.create_task(journal.care.rebuild())
    await asyncio.sleep(0)
    later = asyncio.create_task(journal.write(promise(ballot(9)), members=MEMBERS, at_ms=1))
    with pytest.raises(JournalDamaged, match="still wrong"):
        await waiting
    with pytest.raises(DiskRefused, match="until the node is started again"):
        await later
    assert "still wrong" in journal.failed
    await journal.close()
    again = opened(tmp_path)
    try:
        assert again.lives.standing.state is State.REJOINING
        assert await again.care.keys("", 10) == [], "nothing of it is believed"
        assert len(list((tmp_path / FOLDER_NAME).glob("damaged-*"))) == 1
    finally:
        await again.close()


async def test_pages_that_cannot_be_read_are_given_up(tmp_path: Path, journal: SqliteJournal) -> None:
    spoil(tmp_path, "registers", 12, b"\x00\x00")  # the first cell pointer of an inner page
    await journal._writer.alone(lambda db: db.execute("PRAGMA shrink_memory").fetchall())  # it holds the page as it was
    await journal.mark_rejoining("damaged", 1)
    with pytest.raises(StorageError):
        await journal.care.rebuild()
    assert "started again" in journal.failed


async def test_a_schema_that_is_no_text_any_more_is_damage_too(tmp_path: Path, journal: SqliteJournal) -> None:
    """[Python cannot read SQLite's words about it, and every start ended in that]"""
    assert "schema" not in await journal.care.verify_database(0.0)
    path = tmp_path / FOLDER_NAME / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"CREATE TABLE accepted", b"CR\xe5ATE TABLE accepted"))
    assert await journal.care.verify_database(0.0) != ""
    with pytest.raises(JournalDamaged):
        await journal.care.keys("", 10)
    path.write_bytes(whole)
    await journal.close()
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE accepted", b"CR\xe5ATE TABLE accepted"))
    again = opened(tmp_path)
    try:
        assert again.lives.standing.state is State.REJOINING
        assert len(list((tmp_path / FOLDER_NAME).glob("damaged-*"))) == 1
    finally:
        await again.close()


async def test_it_is_done_under_the_mark_only(journal: SqliteJournal) -> None:
    with pytest.raises(StorageError, match="rejoining only"):
        await journal.care.rebuild()


async def test_what_waits_beside_it_is_written_before_and_after(journal: SqliteJournal) -> None:
    order: list[str] = []

    def note(name: str) -> None:
        order.append(name)

    await journal.mark_applied(REPO, 1)
    one = journal._writer.submit(lambda db: note(f"one {db.in_transaction}"))
    alone = journal._writer.alone(lambda db: note(f"alone {db.in_transaction}"))
    two = journal._writer.submit(lambda db: note(f"two {db.in_transaction}"))
    await asyncio.gather(one, alone, two)
    assert order == ["one True", "alone False", "two True"]


async def test_the_end_of_the_node_ends_it(tmp_path: Path, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "PROGRESS_OPS", 100)
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    running = asyncio.ensure_future(journal._writer.alone(lambda db: db.execute(endless).fetchone()))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        await journal.close()
    with pytest.raises(StorageError, match="interrupt"):
        await running
    again = opened(tmp_path)
    try:
        assert len(await again.care.keys("", 1000)) == 301
    finally:
        await again.close()


async def test_one_that_waits_when_the_node_ends_is_not_begun(tmp_path: Path, journal: SqliteJournal) -> None:
    """[it was begun, said in the file that it is not whole, and was interrupted: the next start moved the journal aside]"""
    began, go_on = Event(), Event()

    def slow(_: sqlite3.Connection) -> None:
        began.set()
        go_on.wait(10)

    await journal.mark_rejoining("damaged", 1)
    before = journal._writer.submit(slow)
    await asyncio.to_thread(began.wait, 10)
    waiting = asyncio.ensure_future(journal.care.rebuild())
    await asyncio.sleep(0)
    closing = asyncio.create_task(journal.close())
    async with asyncio.timeout(10):
        while not journal._writer._closing:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    go_on.set()
    await asyncio.gather(before, closing)
    with pytest.raises(StorageError, match="closed"):
        await waiting
    assert not journal.failed
    again = opened(tmp_path)
    try:
        assert again.lives.standing.reason == "damaged"
        assert len(await again.care.keys("", 1000)) == 301
        assert not list((tmp_path / FOLDER_NAME).glob("damaged-*"))
    finally:
        await again.close()


async def test_what_it_drops_is_no_longer_told_to_who_follows_this_journal(journal: SqliteJournal) -> None:
    """[its highest number was told at every heartbeat, and everybody asked at every one for what is not there any more]"""
    assert journal.sequence == 1
    await journal.mark_rejoining("damaged", 1)
    await journal._writer.submit(lambda db: db.execute("UPDATE registers SET sum = sum + 1 WHERE repository = ?", (REPO,)))
    await journal.care.rebuild()
    assert len(await journal.care.keys("", 1000)) == 300
    assert journal.sequence == (await journal.summaries(0, 10))[0] == 0


async def test_nor_is_what_a_rejoining_node_forgets(journal: SqliteJournal) -> None:
    await journal.mark_rejoining("damaged", 1)
    await journal.lives.forget(REPO)
    assert journal.sequence == (await journal.summaries(0, 10))[0] == 0
