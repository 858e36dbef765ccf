"""A start over damaged rows: no repository is removed because of them, and one that cannot be replayed keeps no other back."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from node.ports.errors import DamagedPart
from node.protocol.standing import State
from node.storage.journal_schema import FILE_NAME, FOLDER_NAME
from node.storage.repository import RESCUED
from tests.crash.subject import Subject
from tests.crash.values import MAIN, NAME, A, packed
from tests.unit.storage_kit import git


def subject(tmp_path: Path, life: str) -> Subject:
    return Subject(tmp_path / "data", (A,), lambda kind, **facts: None, None, [], life)


async def lived(tmp_path: Path) -> Path:
    """A node that took a push and stopped; its repository."""
    node = subject(tmp_path, "first")
    await node.start()
    assert await node.create()
    assert await node.push(MAIN, packed(tmp_path / "packs", "one", size=2000)[0])
    await node.settle()
    await node.stop()
    return node.store.path(str(NAME))


def change(tmp_path: Path, *statements: str) -> None:
    """As a disk does it, or a crash: behind the journal's back."""
    with closing(sqlite3.connect(tmp_path / "data" / FOLDER_NAME / FILE_NAME)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


@pytest.mark.parametrize("damage", ["name = 'alice/projecT'", "present = 0", "head = 'refs/heads/x'"])
async def test_a_repository_whose_row_is_damaged_is_not_removed_from_the_disk(tmp_path: Path, damage: str) -> None:
    folder = await lived(tmp_path)
    before = git("-C", folder, "for-each-ref")
    change(tmp_path, f"UPDATE registers SET {damage}")
    node = subject(tmp_path, "second")
    await node.start()
    try:
        assert folder.is_dir(), "what is on the disk may be all there is"
        assert git("-C", folder, "for-each-ref") == before
        assert any(found.part is DamagedPart.VALUE for found in node.journal.damages)
    finally:
        await node.stop()


DAMAGES: list[tuple[str, tuple[str, ...]]] = [
    ("value", ("UPDATE registers SET head = 'refs/heads/x', synced = 0",)),
    ("refs", ("UPDATE refs SET peeled = 'x'", "UPDATE registers SET synced = 1")),
    ("who needs which pack", ("INSERT INTO pack_uses VALUES ('aa', 'alice/project', 'accepted', 1, 12345)",)),
]


@pytest.mark.parametrize(("what", "statements"), DAMAGES, ids=[what for what, _ in DAMAGES])
async def test_a_damaged_row_keeps_no_node_from_starting(tmp_path: Path, what: str, statements: tuple[Any, ...]) -> None:
    folder = await lived(tmp_path)
    change(tmp_path, *statements)
    node = subject(tmp_path, "second")
    await node.start()
    try:
        assert folder.is_dir()
        assert node.runtime.state().ready
    finally:
        await node.stop()


async def test_what_a_lost_journal_does_not_name_is_kept_where_an_operator_accepts_a_loss(tmp_path: Path) -> None:
    folder = await lived(tmp_path)
    tip = git("-C", folder, "rev-parse", MAIN).strip()
    (tmp_path / "data" / FOLDER_NAME / FILE_NAME).write_bytes(b"no journal any more")
    node = subject(tmp_path, "second")
    await node.start()
    try:
        assert node.journal.lives.standing.state is State.REJOINING
        await node.runtime.membership.take(frozenset())
        async with asyncio.timeout(20):
            while node.runtime.membership.refusal:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not folder.exists(), "the journal does not know it"
        (kept,) = (tmp_path / "data" / RESCUED).iterdir()
        assert git("-C", kept, "rev-parse", MAIN).strip() == tip
        assert "error" not in git("-C", kept, "fsck", "--strict", "--full")
    finally:
        await node.stop()
