"""A journal of which a part is missing is not taken for a new one, nor for a whole one."""

import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from node.ports.errors import StorageError
from node.protocol.acceptor import WriteVerdict
from node.protocol.ids import RepoId
from node.protocol.standing import State
from node.storage import journal_schema, journal_whole
from node.storage.journal import SqliteJournal
from tests.unit.journal_values import ME, MEMBERS, REPO, ballot, promise

FILE = Path(journal_schema.FOLDER_NAME) / journal_schema.FILE_NAME
LOG = FILE.with_name(f"{FILE.name}-wal")


def open_(data_dir: Path) -> SqliteJournal:
    return SqliteJournal.open(data_dir, node=ME, cluster="test")


async def written(data_dir: Path, round_: int = 1) -> SqliteJournal:
    journal = open_(data_dir)
    verdict, _ = await journal.write(promise(ballot(round_)), members=MEMBERS, at_ms=1)
    assert verdict is WriteVerdict.DONE
    return journal


@pytest.fixture
async def killed(tmp_path: Path) -> Path:
    """The files as they are when a node is killed, or the power goes: copied while it runs."""
    running = tmp_path / "running"
    journal = await written(running)
    left = tmp_path / "left"
    shutil.copytree(running, left)
    await journal.close()
    return left


def with_repository(data_dir: Path) -> Path:
    (data_dir / "alice" / "project.git").mkdir(parents=True)
    return data_dir


async def promised(data_dir: Path) -> Any:
    journal = open_(data_dir)
    try:
        return (await journal.load(REPO, MEMBERS)).record.promised
    finally:
        await journal.close()


async def lost(data_dir: Path) -> str:
    """Why: what is left is kept, and a journal that has forgotten everything is in its place, to rejoin."""
    journal = open_(data_dir)
    try:
        assert journal.lives.standing.state is State.REJOINING
        assert (await journal.load(REPO, MEMBERS)).record.promised != ballot(1)
        return journal.lives.standing.reason
    finally:
        await journal.close()


def kept(data_dir: Path, name: Path) -> bytes:
    (found,) = (data_dir / journal_schema.FOLDER_NAME).glob(f"damaged-*/{name.name}")
    return found.read_bytes()


async def test_what_a_killed_node_leaves_is_whole(killed: Path) -> None:
    assert await promised(with_repository(killed)) == ballot(1)
    assert await promised(killed) == ballot(1)


async def test_a_journal_copied_without_its_log_is_refused(killed: Path) -> None:
    (killed / LOG).unlink()
    assert re.search("-wal is missing", await lost(killed))


async def test_a_journal_that_was_closed_needs_no_log(tmp_path: Path) -> None:
    await (await written(tmp_path)).close()
    assert not (tmp_path / LOG).exists()
    assert await promised(with_repository(tmp_path)) == ballot(1)


async def test_the_word_that_it_is_in_use_comes_back_with_every_start(tmp_path: Path) -> None:
    await (await written(tmp_path)).close()
    journal = await written(tmp_path, 2)
    shutil.copytree(tmp_path, tmp_path / "copy")
    await journal.close()
    (tmp_path / "copy" / LOG).unlink()
    assert re.search("-wal is missing", await lost(tmp_path / "copy"))


@pytest.mark.parametrize("size", [None, 0])
async def test_an_empty_or_missing_journal_beside_repositories_is_not_new(tmp_path: Path, size: int | None) -> None:
    (with_repository(tmp_path) / FILE).parent.mkdir()
    if size is not None:
        (tmp_path / FILE).touch()
    assert re.search(r"there are repositories \(alice/project", await lost(tmp_path))
    assert (tmp_path / "alice" / "project.git").is_dir()


async def test_an_empty_journal_beside_its_log_is_refused_and_the_log_is_kept(killed: Path) -> None:
    """SQLite would remove the log, and with it the only copy."""
    log = (killed / LOG).read_bytes()
    assert log
    (killed / FILE).write_bytes(b"")
    assert re.search("there is a log of it", await lost(killed))
    assert kept(killed, LOG) == log


@pytest.mark.parametrize("with_log", [True, False])
async def test_a_journal_of_zeros_is_refused(killed: Path, with_log: bool) -> None:
    (killed / FILE).write_bytes(bytes((killed / FILE).stat().st_size))
    if not with_log:
        (killed / LOG).unlink()
    assert re.search("its header is not what was written", await lost(killed))


@pytest.mark.parametrize("tail", ["zeros", "half", "noise"])
async def test_a_torn_tail_of_the_log_takes_only_what_was_not_synced(tmp_path: Path, tail: str) -> None:
    """The last append was under way when the power went: what came before it was synced, and is there."""
    running = tmp_path / "running"
    journal = await written(running)
    before = (running / LOG).read_bytes()
    await journal.write(promise(ballot(7), RepoId("o/unsynced")), members=MEMBERS, at_ms=1)
    after = (running / LOG).read_bytes()
    shutil.copytree(running, tmp_path / "left")
    await journal.close()
    before = before.ljust(len(after), b"\0")
    changed = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    begin, end = changed[0], changed[-1] + 1
    middle = (begin + end) // 2
    torn = {
        "zeros": after[:begin] + bytes(end - begin) + after[end:],
        "half": after[:middle] + before[middle:],
        "noise": after[:begin] + b"\xa5" * (end - begin) + after[end:],
    }[tail]
    assert torn != after
    (tmp_path / "left" / LOG).write_bytes(torn)
    journal = open_(tmp_path / "left")
    assert (await journal.load(REPO, MEMBERS)).record.promised == ballot(1)
    assert (await journal.load(RepoId("o/unsynced"), MEMBERS)).record.promised != ballot(7)
    assert (await journal.write(promise(ballot(8), RepoId("o/unsynced")), members=MEMBERS, at_ms=1))[0] is WriteVerdict.DONE
    await journal.close()


async def test_a_node_killed_right_after_its_first_start_starts_again(tmp_path: Path) -> None:
    journal = open_(tmp_path / "running")
    shutil.copytree(tmp_path / "running", tmp_path / "left")
    await journal.close()
    await open_(tmp_path / "left").close()


def version_in_file(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[60:64])


async def test_the_mark_is_in_the_file_itself_not_only_in_its_log(tmp_path: Path) -> None:
    journal = open_(tmp_path)
    assert version_in_file(tmp_path / FILE) == 1
    await journal.close()
    assert version_in_file(tmp_path / FILE) == 0
    assert sqlite3.connect(tmp_path / FILE).execute("SELECT node FROM identity").fetchone() == (ME,)


async def test_a_journal_that_failed_and_was_closed_starts_again(tmp_path: Path) -> None:
    """SQLite has copied its log back and removed it, and the word that it is in use could not be taken away."""
    journal = await written(tmp_path)
    with_repository(tmp_path)
    journal.fail("a test")
    await journal.close()
    assert version_in_file(tmp_path / FILE) == 1
    assert await promised(tmp_path) == ballot(1)


async def test_a_start_whose_checkpoint_fails_leaves_a_journal_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word is in the file, and closing the connection removes the log. Found by EIO at the fsync of the checkpoint."""
    await (await written(tmp_path)).close()
    mark = journal_whole.mark_in_use

    def failing(connection: sqlite3.Connection) -> None:
        mark(connection)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    monkeypatch.setattr(journal_whole, "mark_in_use", failing)
    with pytest.raises(StorageError, match="disk I/O error"):
        open_(tmp_path)
    monkeypatch.undo()
    assert version_in_file(tmp_path / FILE) == 1
    assert await promised(tmp_path) == ballot(1)
