"""The journal on disk: group commit, what costs an fsync, crashes, full and failing disks, and who may open it."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.ports.errors import DataDirectoryInUse, DiskRefused, JournalRefused, StorageError
from node.ports.journal import TransactionRecord
from node.protocol.acceptor import WriteVerdict
from node.protocol.ids import NodeId, RepoId, TxnId
from node.protocol.outcome import OutcomeKind
from node.protocol.standing import State
from node.storage import journal_schema
from node.storage.journal import SqliteJournal
from node.storage.journal_rows import row_sum
from tests.unit.journal_values import (
    ME,
    MEMBERS,
    REPO,
    accept,
    ballot,
    certificate,
    commit,
    create,
    pack,
    point,
    promise,
    update,
)

FILE = Path(journal_schema.FOLDER_NAME) / journal_schema.FILE_NAME
LONG_S = 30.0


def open_(data_dir: Path, **settings: Any) -> SqliteJournal:
    return SqliteJournal.open(data_dir, **{"node": ME, "cluster": "test", **settings})


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    """Notes are never written on their own account here, only along with something else."""
    journal = open_(tmp_path, linger_s=LONG_S)
    yield journal
    await journal.close()


async def promise_all(journal: SqliteJournal, number: int, round_: int = 1) -> list[Any]:
    ops = (promise(ballot(round_), RepoId(f"o/r{n}")) for n in range(number))
    return await asyncio.gather(*(journal.write(op, members=MEMBERS, at_ms=1) for op in ops), return_exceptions=True)


class Gate:
    """Keeps the writer thread busy until it is opened, so that what is written meanwhile has to wait together."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._open, self.entered = threading.Event(), threading.Event()
        self.done = journal._writer.submit(self._wait)

    def _wait(self, db: sqlite3.Connection) -> None:
        self.entered.set()
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


async def closed_gate(journal: SqliteJournal) -> Gate:
    gate = Gate(journal)
    assert await asyncio.to_thread(gate.entered.wait, 10)
    return gate


async def submitted() -> None:
    """Every task that was made has come to its first wait."""
    for _ in range(5):
        await asyncio.sleep(0)


# ---------------------------------------------------------------- group commit


async def test_writes_that_wait_together_share_one_transaction(journal: SqliteJournal) -> None:
    gate = await closed_gate(journal)
    writes = asyncio.ensure_future(promise_all(journal, 100))
    await submitted()
    gate.open()
    results = await writes
    assert [verdict for verdict, _ in results] == [WriteVerdict.DONE] * 100
    assert journal.commits == 1


async def test_each_write_that_comes_alone_is_a_transaction_of_its_own(journal: SqliteJournal) -> None:
    for round_ in range(1, 4):
        await journal.write(promise(ballot(round_)), members=MEMBERS, at_ms=1)
    assert journal.commits == 3


async def test_an_answer_that_changes_nothing_costs_no_fsync(journal: SqliteJournal) -> None:
    await journal.write(promise(ballot(2)), members=MEMBERS, at_ms=1)
    await journal.write(promise(ballot(2)), members=MEMBERS, at_ms=1)
    await journal.write(promise(ballot(1)), members=MEMBERS, at_ms=1)
    assert journal.commits == 1


async def test_notes_ride_along_and_never_cost_a_push_an_fsync(journal: SqliteJournal) -> None:
    first = create()
    second = update(first, "t-2", point())
    record = TransactionRecord(TxnId("t-1"), REPO, "create", ME, "tester", 1, OutcomeKind.COMMITTED)
    await journal.write(commit(first), members=MEMBERS, at_ms=1)
    await journal.mark_applied(REPO, 1)
    await journal.mark_synced(REPO, 1)
    await journal.add_certificate(certificate(first))
    await journal.keep_transaction(record)
    assert journal.commits == 1
    assert await journal.unsynced() == [(REPO, 0, 0)]
    await journal.write(commit(second), members=MEMBERS, at_ms=1)
    assert journal.commits == 2
    assert await journal.unsynced() == [(REPO, 1, 1)]
    assert (await journal.history(REPO, 0, 1))[0].certificate == certificate(first)
    assert repr(journal._deferred) == "<Deferred 0 waiting, 0 being written>"
    assert await journal.transaction(TxnId("t-1")) == record


async def test_notes_are_written_soon_when_nothing_else_is(tmp_path: Path) -> None:
    journal = open_(tmp_path, linger_s=0.3)
    try:
        await journal.write(commit(create()), members=MEMBERS, at_ms=1)
        for _ in range(50):
            await journal.mark_synced(REPO, 1)
        async with asyncio.timeout(10):
            while await journal.unsynced():  # noqa: ASYNC110 - another thread writes, no event tells of it
                await asyncio.sleep(0.01)
        assert journal.commits == 2
    finally:
        await journal.close()


async def test_close_writes_the_notes_that_wait(tmp_path: Path) -> None:
    journal = open_(tmp_path, linger_s=LONG_S)
    await journal.write(commit(create()), members=MEMBERS, at_ms=1)
    await journal.mark_applied(REPO, 1)
    await journal.close()
    journal = open_(tmp_path)
    assert await journal.unsynced() == [(REPO, 1, 0)]
    await journal.close()


async def test_a_caller_that_stops_waiting_does_not_undo_its_write(journal: SqliteJournal) -> None:
    gate = await closed_gate(journal)
    write = asyncio.ensure_future(journal.write(promise(ballot(1)), members=MEMBERS, at_ms=1))
    await submitted()
    write.cancel()
    gate.open()
    await journal.flush()
    assert write.cancelled()
    assert (await journal.load(REPO, MEMBERS)).record.promised == ballot(1)


async def test_the_waiting_queue_is_bounded_in_number_and_bytes(tmp_path: Path) -> None:
    journal = open_(tmp_path, waiting_max=3, linger_s=LONG_S)
    journal._writer._waiting_bytes_max = 1000
    try:
        gate = await closed_gate(journal)
        ref, inline = pack(1)
        big = [type(inline)(ref.sha256, b"x" * 600, b"y") for _ in range(2)]
        change = update(create(), "t-2", point(), packs=(ref,))
        heavy = [
            asyncio.ensure_future(journal.write(accept(ballot(1, 1), change), members=MEMBERS, at_ms=1, packs=(b,)))
            for b in big
        ]
        await asyncio.sleep(0)
        with pytest.raises(DiskRefused, match="overloaded"):
            await heavy[1]
        light = asyncio.ensure_future(promise_all(journal, 4))
        await submitted()
        gate.open()
        results = await light
        assert [isinstance(result, DiskRefused) for result in results] == [False, False, True, True]
        assert (await heavy[0])[0] is WriteVerdict.MOVED
        for number in range(3):
            await journal.mark_applied(RepoId(f"o/r{number}"), 1)
        with pytest.raises(DiskRefused, match="overloaded"):
            await journal.mark_applied(RepoId("o/r9"), 1)
    finally:
        await journal.close()


# ---------------------------------------------------------------- disks that fail


async def test_a_full_disk_refuses_the_batch_and_the_journal_goes_on_when_there_is_room(journal: SqliteJournal) -> None:
    await journal.write(commit(create()), members=MEMBERS, at_ms=1)
    db = journal._writer._connection
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    await journal.mark_applied(REPO, 1)
    results = await promise_all(journal, 500)
    refused = [result for result in results if isinstance(result, DiskRefused)]
    assert refused
    assert "disk full" in str(refused[0])
    assert not journal.failed
    db.execute("PRAGMA max_page_count = 1000000")
    results = await promise_all(journal, 500, round_=2)
    assert [verdict for verdict, _ in results] == [WriteVerdict.DONE] * 500
    assert await journal.unsynced() == [(REPO, 1, 0)], "the note rode in the refused batch, and again in a later one"


class FailingConnection(sqlite3.Connection):
    """Reports an I/O error when it is told to, as SQLite does when fsync fails."""

    fails = False

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if self.fails and sql == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return super().execute(sql, *parameters)


async def test_after_a_failed_fsync_every_later_write_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=FailingConnection, **k))
    journal = open_(tmp_path, linger_s=LONG_S)
    try:
        await journal.write(promise(ballot(1)), members=MEMBERS, at_ms=1)
        monkeypatch.setattr(FailingConnection, "fails", True)
        results = await promise_all(journal, 3)
        assert all(isinstance(result, StorageError) and "disk I/O error" in str(result) for result in results)
        monkeypatch.setattr(FailingConnection, "fails", False)
        for attempt in (journal.write(promise(ballot(2)), members=MEMBERS, at_ms=1), journal.mark_applied(REPO, 1)):
            with pytest.raises(DiskRefused, match="disk I/O error"):
                await attempt
        assert journal.failed
        assert (await journal.load(REPO, MEMBERS)).record.promised == ballot(1)
    finally:
        await journal.close()
    again = open_(tmp_path)
    assert (await again.load(REPO, MEMBERS)).record.promised == ballot(1)
    await again.close()


async def test_a_bug_in_a_write_is_its_callers_and_the_writer_lives_on(journal: SqliteJournal) -> None:
    def bug(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO refs VALUES ('o/r', 'refs/heads/x', 'half', NULL, 0)")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await journal._writer.submit(bug)
    with pytest.raises(StorageError, match="no such table"):
        await journal._writer.submit(lambda db: db.execute("DELETE FROM no_such"))
    assert not journal.failed
    await journal.write(promise(ballot(1)), members=MEMBERS, at_ms=1)
    rows = await journal._reads.run(lambda db: db.execute("SELECT COUNT(*) FROM refs").fetchone())
    assert rows == (0,)


async def test_a_closed_journal_says_so_and_can_be_closed_again(tmp_path: Path) -> None:
    journal = open_(tmp_path)
    await journal.close()
    await journal.close()
    with pytest.raises(StorageError, match="closed"):
        await journal.write(promise(ballot(1)), members=MEMBERS, at_ms=1)
    with pytest.raises(StorageError, match="closed"):
        await journal.load(REPO, MEMBERS)
    with pytest.raises(StorageError, match="closed"):
        await journal.mark_applied(REPO, 1)


# ---------------------------------------------------------------- who may open it


async def test_the_database_is_in_wal_mode_with_full_synchronisation(journal: SqliteJournal) -> None:
    db = journal._writer._connection
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    readonly = journal._reads.run(lambda db: db.execute("DELETE FROM history"))
    with pytest.raises(StorageError, match="readonly"):
        await readonly


async def test_the_creation_of_database_and_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(journal_schema, "sync_directory", synced.append)
    data_dir = tmp_path / "data"
    await open_(data_dir).close()
    assert synced == [data_dir / ".journal", data_dir, tmp_path]


async def test_a_second_opening_in_one_process_is_refused_too(journal: SqliteJournal, tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryInUse, match="this very process"):
        open_(tmp_path)


async def test_the_lock_is_free_after_close_and_after_a_refusal(tmp_path: Path) -> None:
    await open_(tmp_path).close()
    with pytest.raises(JournalRefused):
        open_(tmp_path, node=NodeId("node-2"))
    await open_(tmp_path).close()


async def test_a_journal_of_another_node_or_cluster_is_refused(tmp_path: Path) -> None:
    await open_(tmp_path).close()
    with pytest.raises(JournalRefused, match="belongs to node-1, not to node-2"):
        open_(tmp_path, node=NodeId("node-2"))
    with pytest.raises(JournalRefused, match="cluster 'test', not to 'prod'"):
        open_(tmp_path, cluster="prod")


async def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    await open_(tmp_path).close()
    db = sqlite3.connect(tmp_path / FILE)
    _, *row, _ = db.execute("SELECT schema, node, cluster, journal, incarnation, sum FROM identity").fetchone()
    other = journal_schema.SCHEMA + 1
    db.execute("UPDATE identity SET schema = ?, sum = ?", (other, row_sum("identity", other, *row)))
    db.commit()
    db.close()
    with pytest.raises(JournalRefused, match=f"format {other}"):
        open_(tmp_path)


async def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir()
    alter(tmp_path, "CREATE TABLE holidays (day TEXT)")
    with pytest.raises(JournalRefused, match="no journal of gitquorum"):
        open_(tmp_path)


async def test_a_creation_that_was_interrupted_is_done_again(tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).touch()
    journal = open_(tmp_path)
    assert journal.identity.node == ME
    await journal.close()


@pytest.mark.parametrize("where", [0, 0.3, 0.6])
async def test_a_damaged_journal_is_kept_aside_and_the_node_has_to_rejoin(tmp_path: Path, where: float) -> None:
    journal = open_(tmp_path)
    await promise_all(journal, 500)
    before = journal.identity
    await journal.close()
    data = bytearray((tmp_path / FILE).read_bytes())
    begin = int(len(data) * where)
    data[begin : begin + 8192] = b"\xa5" * 8192
    (tmp_path / FILE).write_bytes(data)
    journal = open_(tmp_path)
    try:
        assert journal.lives.standing.state is State.REJOINING
        assert "damaged" in journal.lives.standing.reason
        assert journal.identity.journal != before.journal
        (kept,) = (tmp_path / FILE).parent.glob("damaged-*/journal.sqlite")
        assert kept.read_bytes() == data
    finally:
        await journal.close()
    again = open_(tmp_path)
    assert again.lives.standing.state is State.REJOINING, "the mark is durable"
    await again.close()


@pytest.mark.parametrize("column", ["repository", "promised_round", "digest", "sum"])
async def test_a_damaged_acceptor_record_is_amnesia_at_start(tmp_path: Path, column: str) -> None:
    journal = open_(tmp_path)
    await journal.write(commit(create()), members=MEMBERS, at_ms=1)
    await journal.write(promise(ballot(3), RepoId("o/other")), members=MEMBERS, at_ms=1)
    await journal.close()
    value = "'alkce/project'" if column == "repository" else "'x'" if column == "digest" else "7"
    alter(tmp_path, f"UPDATE registers SET {column} = {value} WHERE repository = 'alice/project'")
    journal = open_(tmp_path)
    try:
        assert journal.lives.standing.state is State.REJOINING
        assert await journal.care.keys("", 10) == [RepoId("o/other")], "it is dropped, and learned again"
        assert await journal.history(REPO, 0, 10) == ()
        assert (await journal.load(RepoId("o/other"), MEMBERS)).record.promised == ballot(3)
    finally:
        await journal.close()


@pytest.mark.parametrize("offset", [*range(24), 44, 56, 57, 58, 59])
async def test_no_flipped_byte_of_the_header_keeps_a_node_from_starting(tmp_path: Path, offset: int) -> None:
    journal = open_(tmp_path)
    await promise_all(journal, 5)
    await journal.close()
    data = bytearray((tmp_path / FILE).read_bytes())
    data[offset] ^= 0x10
    (tmp_path / FILE).write_bytes(data)
    journal = open_(tmp_path)
    try:
        await journal.write(promise(ballot(9), RepoId("o/new")), members=MEMBERS, at_ms=1)
        known = await journal.care.keys("", 100)
        assert len(known) == 6 or journal.lives.standing.state is State.REJOINING
    finally:
        await journal.close()


async def test_a_column_that_was_renamed_is_damage(tmp_path: Path) -> None:
    await open_(tmp_path).close()
    data = (tmp_path / FILE).read_bytes()
    assert b"committed_at_ms INTEGER" in data
    (tmp_path / FILE).write_bytes(data.replace(b"committed_at_ms INTEGER", b"committed_at_mz INTEGER"))
    journal = open_(tmp_path)
    assert journal.lives.standing.state is State.REJOINING
    await journal.close()


def alter(data_dir: Path, sql: str) -> None:
    db = sqlite3.connect(data_dir / FILE)
    db.execute(sql)
    db.commit()
    db.close()


# ---------------------------------------------------------------- crashes

WRITER = """
import asyncio, sys
from pathlib import Path
from node.protocol.ids import RepoId
from node.storage.journal import SqliteJournal
from tests.unit.journal_values import ME, MEMBERS, ballot, commit, create, point, promise, update

async def write(journal, number):
    name = RepoId(f"o/r{number}")
    change = create(f"t-{number}-0", repository=name)
    for round_ in range(1, 100_000):
        await journal.write(promise(ballot(round_), name), members=MEMBERS, at_ms=1)
        await journal.write(commit(change), members=MEMBERS, at_ms=1)
        await journal.mark_synced(name, round_)
        sys.stdout.write(f"{number} {round_} {change.position.digest}\\n")
        sys.stdout.flush()
        change = update(change, f"t-{number}-{round_}", point(new=round_ + 1, old=round_ if round_ > 1 else 0))

async def main():
    journal = SqliteJournal.open(Path(sys.argv[1]), node=ME, cluster="test")
    await asyncio.gather(*(write(journal, number) for number in range(8)))

asyncio.run(main())
"""


@pytest.fixture
def writer(tmp_path: Path) -> Any:
    """A process that writes to the journal and tells of every acknowledged commit."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


async def test_a_writer_killed_with_sigkill_loses_nothing_that_was_acknowledged(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    assert writer.stdout
    told = [writer.stdout.readline().split() for _ in range(200)]
    os.kill(writer.pid, signal.SIGKILL)
    told += [line.split() for line in writer.stdout.read().splitlines() if len(line.split()) == 3]
    writer.wait()
    journal = open_(tmp_path)
    try:
        for number, round_, digest in told:
            if len(digest) != 64:
                continue  # the last line, cut off
            loaded = await journal.load(RepoId(f"o/r{number}"), MEMBERS)
            assert loaded.record.promised >= ballot(int(round_))
            assert loaded.record.committed.version >= int(round_)
            (entry,) = await journal.history(RepoId(f"o/r{number}"), int(round_) - 1, 1)
            assert entry.change.position.digest == digest
        assert journal.sequence >= len(told) - 1
        assert (await journal.write(promise(ballot(10**6)), members=MEMBERS, at_ms=1))[0] is WriteVerdict.DONE
    finally:
        await journal.close()


async def test_a_second_process_is_refused_by_a_line_that_names_the_first_and_what_to_do(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    assert writer.stdout
    writer.stdout.readline()
    with pytest.raises(DataDirectoryInUse) as refusal:
        open_(tmp_path)
    assert str(refusal.value) == (
        f"data directory {tmp_path} is in use by process {writer.pid}; stop it (kill {writer.pid}), or choose another data_dir"
    )
    writer.kill()
    writer.wait()
    start = time.monotonic()
    await open_(tmp_path).close()
    assert time.monotonic() - start < 5, "the kernel has dropped the dead process's lock"
