"""What a crash leaves behind goes at start, and nothing else does."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.ports.objects import ObjectStore
from node.protocol.names import RepositoryName
from node.storage.git import GitLimits
from node.storage.objects import DiskObjects
from tests.unit.storage_kit import MAIN, NAME, created, git, history, pack_of, pushed


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[DiskObjects]:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0))
    yield store
    await store.close()


async def test_leftovers_are_removed_counted_and_the_repository_is_untouched(objects: DiskObjects, tmp_path: Path) -> None:
    things = history()
    await pushed(objects, await created(objects), pack_of(*things), {MAIN: things[-1].oid}, "one")
    folder, data = objects.path(str(NAME)), tmp_path / "data"
    before = sorted(path for path in folder.rglob("*"))
    for name in ("refs/heads/main.lock", "packed-refs.lock", "HEAD.lock", "objects/pack/tmp_pack_x", "objects/tmp_obj_y"):
        (folder / name).write_text("half")
    (data / ".quarantine" / "push-1" / "pack").mkdir(parents=True)
    (data / ".quarantine" / ".create-1").mkdir()
    used, unused = "a" * 64, "b" * 64
    for name in (f"{used}.pack", f"{used}.idx", f"{used}.pack.part", f"{unused}.pack", f"{unused}.idx", f"{unused}.idx.part"):
        (data / ".stage" / name).write_text("x")
    (data / ".trash" / "alice--old.git-1" / "objects").mkdir(parents=True)
    counts = await objects.sweep({used}, {str(NAME)})
    assert counts == {"locks": 3, "temporaries": 2, "quarantines": 2, "stages": 1, "repositories": 0, "trash": 1}
    assert sorted(path for path in folder.rglob("*")) == before
    assert len(list((data / ".stage").iterdir())) == 3
    assert list((data / ".quarantine").iterdir()) == list((data / ".trash").iterdir()) == []
    assert "error" not in git("-C", folder, "fsck", "--strict")
    assert sum((await objects.sweep({used}, {str(NAME)})).values()) == 0


async def test_a_repository_that_the_journal_does_not_know_goes(objects: DiskObjects) -> None:
    await created(objects)
    await created(objects, RepositoryName("alice", "gone"))
    counts = await objects.sweep(set(), {str(NAME)})
    assert (counts["repositories"], counts["trash"]) == (1, 1)
    assert objects.path(str(NAME)).exists()
    assert not objects.path("alice/gone").exists()


async def test_only_the_spelling_that_exists_is_kept(objects: DiskObjects) -> None:
    await created(objects, RepositoryName("alice", "Project"))
    await created(objects, RepositoryName("alice", "pROJECT"))
    await objects.sweep(set(), {"alice/Project"})
    assert objects.path("alice/Project").exists()
    assert not objects.path("alice/pROJECT").exists()
    await objects.sweep(set(), {"alice/project"})
    assert objects.path("alice/Project").exists()


async def test_what_is_not_ours_is_left_alone(objects: DiskObjects, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "journal.db").write_text("truth")
    (data / "keys" / "private").mkdir(parents=True)
    (data / "notes" / "bad name.git").mkdir(parents=True)
    await objects.sweep(set(), set())
    assert (data / "journal.db").read_text() == "truth"
    assert (data / "keys" / "private").is_dir()
    assert (data / "notes" / "bad name.git").is_dir()


def test_the_disk_keeps_the_port(objects: DiskObjects) -> None:
    """mypy reads this: ``DiskObjects`` is an ``ObjectStore``."""
    store: ObjectStore = objects
    assert store.free_bytes() > 0
