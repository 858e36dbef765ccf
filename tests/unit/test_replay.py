"""Replay at start over a journal that is damaged in places: the node starts, nothing whole is removed, the rest is replayed."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from shutil import rmtree

import pytest

import node.replay
from node.placing import place
from node.ports.errors import DamagedPart
from node.protocol.acceptor import CommitOp
from node.protocol.names import RepositoryName
from node.protocol.register import Register
from node.replay import DAMAGED, replay
from node.storage.git import GitLimits
from node.storage.journal import SqliteJournal
from node.storage.objects import DiskObjects
from tests.unit.runtime_kit import A, Cluster
from tests.unit.storage_kit import (
    MAIN,
    NAME,
    creation,
    deletion,
    history,
    moved,
    pack_of,
    receive,
    refs_by_git,
    refs_of,
    register,
)

OTHER = RepositoryName("zoe", "other")
CONFIG = Cluster().config(A)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DiskObjects]:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0))
    yield store
    await store.close()


@pytest.fixture
async def journal(tmp_path: Path, store: DiskObjects) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal.open(tmp_path / "data", node=A, cluster="test", linger_s=30.0)
    yield journal
    await journal.close()


async def pushed(journal: SqliteJournal, store: DiskObjects, name: RepositoryName, value: Register | None = None) -> Register:
    """A repository with one push, committed and applied, not synced. ``value``: what was there before."""
    value = value or register(name)
    change = creation(value, name)
    await journal.write(CommitOp(name.key, change), members=CONFIG.voters, at_ms=1)
    value = value.applied(change)
    await store.apply(value, change, value, ())
    things, txn = history(content=str(name).encode()), name.name
    async with await receive(store, pack_of(*things), txn) as received:
        await received.promote()
        change = moved(value, {MAIN: things[-1].oid}, received.packs, txn)
        await journal.write(CommitOp(name.key, change), members=CONFIG.voters, at_ms=2, packs=received.inline)
        value = value.applied(change)
        await store.apply(value, change, value, received.inline)
    await journal.mark_applied(name.key, value.position.version)
    return value


def _folder_at(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _file_at(path: Path) -> None:
    rmtree(path)
    path.write_text("no folder")


def _link_at(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


KINDS: list[tuple[str, Callable[[Path], None], bool]] = [
    ("HEAD", _folder_at, True),
    ("config", _folder_at, True),
    ("packed-refs", _folder_at, True),
    ("HEAD.lock", _folder_at, True),
    ("refs/heads", _file_at, True),
    ("objects/pack", _file_at, True),
    ("objects", _file_at, True),
    ("", _file_at, False),
    ("", _link_at, False),
]


@pytest.mark.parametrize(("where", "change", "mended"), KINDS, ids=[f"{where or 'all'}{do.__name__}" for where, do, _ in KINDS])
async def test_what_is_of_the_wrong_kind_keeps_no_node_from_starting(
    journal: SqliteJournal, store: DiskObjects, where: str, change: Callable[[Path], None], mended: bool
) -> None:
    """[a folder in the place of HEAD, and no repository of that node was served any more]"""
    value = await pushed(journal, store, NAME)
    other = await pushed(journal, store, OTHER)
    folder = store.path(str(NAME))
    change(folder / where)
    await replay(CONFIG, journal, store)
    assert refs_by_git(store.path(str(OTHER))) == refs_of(other)
    loaded = await journal.load(NAME.key, CONFIG.voters)
    if where == "refs/heads":
        assert await store.verify_refs(value) == [], "replay needs no help with that"
        return
    assert loaded.stopped.startswith(DAMAGED), "the scrub will look at it"
    if mended:
        await store.mend_refs(value)
        assert await store.verify_refs(value) == []
    else:
        assert await store.verify_refs(value)


async def damaged(journal: SqliteJournal, sql: str) -> None:
    await journal._writer.submit(lambda db: db.execute(sql))


async def test_a_repository_whose_row_is_damaged_keeps_its_files(journal: SqliteJournal, store: DiskObjects) -> None:
    """[the row is left out of what exists; the sweep took the repository for an orphan, and removed every pack of it]"""
    value = await pushed(journal, store, NAME)
    await journal.mark_synced(NAME.key, value.position.version)
    await journal.flush()
    for sql in (
        "UPDATE registers SET head = 'refs/heads/maim'",
        "UPDATE registers SET present = 0",
        "UPDATE registers SET name = 'q'",
    ):
        await damaged(journal, sql)
        await replay(CONFIG, journal, store)
        assert refs_by_git(store.path(str(NAME))) == refs_of(value), sql


@pytest.mark.parametrize(
    ("sql", "part"),
    [
        ("UPDATE registers SET head = 'refs/heads/maim' WHERE repository = 'alice/project'", DamagedPart.VALUE),
        ("UPDATE refs SET oid = replace(oid, '6', '7') WHERE repository = 'alice/project'", DamagedPart.REFS),
        ("UPDATE refs SET name = name || 'x' WHERE repository = 'alice/project'", DamagedPart.REFS),
        ("UPDATE history SET change = '{}' WHERE repository = 'alice/project' AND version = 2", DamagedPart.HISTORY),
        ("UPDATE inline_packs SET pack_index = x'00'", DamagedPart.PACK),
        ("UPDATE pack_uses SET version = 4", DamagedPart.INDEX),
    ],
)
async def test_damage_in_one_repository_keeps_no_node_from_starting(
    journal: SqliteJournal, store: DiskObjects, sql: str, part: DamagedPart
) -> None:
    """[what is damaged is repaired by a scrub, which runs in a node that has started]"""
    await pushed(journal, store, NAME)
    other = await pushed(journal, store, OTHER)
    await damaged(journal, sql)
    await replay(CONFIG, journal, store)
    assert part in {damage.part for damage in journal.damages}, "the scrub will hear of it"
    assert refs_by_git(store.path(str(OTHER))) == refs_of(other)
    if part is not DamagedPart.PACK:
        synced = {repository for repository, *_ in await journal.unsynced()}
        await journal.flush()
        assert OTHER.key not in {repository for repository, *_ in await journal.unsynced()}, synced


async def test_a_page_of_damaged_rows_is_not_the_end_of_all_repositories(
    journal: SqliteJournal, store: DiskObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[what came after it was taken for a leftover, and removed]"""
    monkeypatch.setattr(node.replay, "PAGE", 2)
    names = [RepositoryName("alice", f"p{number}") for number in range(3)]
    for name in names:
        value = await pushed(journal, store, name)
        await store.sync(str(name))
        await journal.mark_synced(name.key, value.position.version)
    await damaged(journal, "UPDATE registers SET value_sum = value_sum + 1 WHERE repository IN ('alice/p0', 'alice/p1')")
    await replay(CONFIG, journal, store)
    for name in names:
        assert refs_by_git(store.path(str(name))), name


async def test_a_deletion_is_not_applied_again_where_packs_of_what_came_after_it_are(
    journal: SqliteJournal, store: DiskObjects
) -> None:
    """The mark of what is synced may be lost with its row; the packs are in the repository and nowhere else."""
    value = register(NAME)
    for make in (lambda value: creation(value, NAME), deletion):
        change = make(value)
        await journal.write(CommitOp(NAME.key, change), members=CONFIG.voters, at_ms=1)
        before, value = value, value.applied(change)
        await store.apply(before, change, value, ())
    value = await pushed(journal, store, NAME, value)
    await store.sync(str(NAME))
    await journal.mark_synced(NAME.key, value.position.version)
    await journal.flush()
    store._stage.small._held.clear()
    folder = store.path(str(NAME)) / "objects" / "pack"
    packs = sorted(path.name for path in folder.glob("pack-*"))
    assert packs
    await place(journal, store, value, 0)
    assert sorted(path.name for path in folder.glob("pack-*")) == packs
    assert refs_by_git(store.path(str(NAME))) == refs_of(value)
