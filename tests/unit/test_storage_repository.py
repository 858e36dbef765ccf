"""Repositories on disk: what git reads there is the register, whatever was there before and wherever a crash came."""

import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from node.ports.errors import DiskRefused, RepositoryAbsent, StorageError
from node.protocol.change import Change, PackRef
from node.protocol.ids import Oid, RefName
from node.protocol.messages import INLINE_PACK_BYTES_MAX, InlinePack
from node.protocol.names import BadRepositoryName, RepositoryName
from node.protocol.register import Register
from node.storage import objects as objects_module
from node.storage import repository
from node.storage.git import GitLimits
from node.storage.objects import DiskObjects
from tests.unit.storage_kit import (
    MAIN,
    NAME,
    change_of,
    created,
    creation,
    deletion,
    git,
    history,
    moved,
    pack_of,
    pushed,
    receive,
    refs_by_git,
    refs_of,
    register,
    tag,
)

FOLDER = str(NAME)


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[DiskObjects]:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0))
    yield store
    await store.close()


def agree(objects: DiskObjects, value: Register) -> None:
    """Disk and register say the same, and git has nothing to complain about."""
    folder = objects.path(value.name)
    assert refs_by_git(folder) == refs_of(value)
    assert git("-C", folder, "symbolic-ref", "HEAD").strip() == value.head
    assert "error" not in git("-C", folder, "fsck", "--strict", "--full")
    assert not list((folder / "refs").rglob("*.lock"))


async def apply(objects: DiskObjects, before: Register, change: Change, packs: tuple[InlinePack, ...] = ()) -> Register:
    after = before.applied(change)
    await objects.apply(before, change, after, packs)
    return after


async def with_commits(objects: DiskObjects, count: int = 3) -> tuple[Register, list[Oid]]:
    """A repository whose main is the last of ``count`` commits."""
    things = history(count)
    value = await pushed(objects, await created(objects), pack_of(*things), {MAIN: things[-1].oid}, "first")
    return value, [thing.oid for thing in things if thing.kind == 1]


async def test_a_created_repository_is_one_that_git_can_use(objects: DiskObjects) -> None:
    value = await created(objects)
    agree(objects, value)
    folder = objects.path(FOLDER)
    assert git("-C", folder, "rev-parse", "--is-bare-repository").strip() == "true"
    assert git("-C", folder, "config", "uploadpack.allowFilter").strip() == "true"
    assert git("-C", folder, "config", "gc.auto").strip() == "0"
    assert list((objects.path(FOLDER).parent.parent / ".quarantine").iterdir()) == []


async def test_objects_and_refs_of_a_push_are_there_and_packs_are_read_only(objects: DiskObjects) -> None:
    value, _ = await with_commits(objects)
    agree(objects, value)
    packs = list((objects.path(FOLDER) / "objects" / "pack").iterdir())
    assert sorted(path.suffix for path in packs) == [".idx", ".pack"]
    assert {path.stat().st_mode & 0o777 for path in packs} == {0o444}


async def test_applying_twice_changes_nothing(objects: DiskObjects) -> None:
    before = await created(objects)
    things = history()
    async with await receive(objects, pack_of(*things)) as received:
        change = moved(before, {MAIN: things[-1].oid}, received.packs)
        value = await apply(objects, before, change, received.inline)
        assert await apply(objects, before, change, received.inline) == value
    agree(objects, value)
    create = creation(register())
    await objects.apply(register(), create, register().applied(create), ())
    assert refs_by_git(objects.path(FOLDER)) == refs_of(value)


@pytest.mark.parametrize("count", [1, repository.LOOSE_REFS_MAX * 2, 5])
async def test_refs_are_made_moved_and_deleted_loose_or_packed(objects: DiskObjects, count: int) -> None:
    value, commits = await with_commits(objects)
    names = [f"refs/heads/topic/{number}" for number in range(count)]
    value = await apply(objects, value, moved(value, dict.fromkeys(names, commits[0])))
    agree(objects, value)
    value = await apply(objects, value, moved(value, dict.fromkeys(names, commits[1])))
    agree(objects, value)
    value = await apply(objects, value, moved(value, {names[0]: None}))
    agree(objects, value)
    value = await apply(objects, value, moved(value, dict.fromkeys(names[1:], None)) if count > 1 else moved(value, {}))
    agree(objects, value)


async def test_a_packed_ref_that_is_deleted_does_not_come_back(objects: DiskObjects) -> None:
    value, commits = await with_commits(objects)
    names = [f"refs/tags/v{number}" for number in range(30)]
    value = await apply(objects, value, moved(value, dict.fromkeys(names, commits[0])))
    value = await apply(objects, value, moved(value, {names[3]: commits[1]}))
    value = await apply(objects, value, moved(value, {names[3]: None}))
    agree(objects, value)


async def test_a_branch_may_become_a_folder_and_a_folder_a_branch(objects: DiskObjects) -> None:
    value, commits = await with_commits(objects)
    value = await apply(objects, value, moved(value, {"refs/heads/a": commits[0]}))
    value = await apply(objects, value, moved(value, {"refs/heads/a": None, "refs/heads/a/b/c": commits[0]}))
    agree(objects, value)
    value = await apply(objects, value, moved(value, {"refs/heads/a/b/c": None, "refs/heads/a": commits[1]}))
    agree(objects, value)
    (objects.path(FOLDER) / "refs" / "heads" / "empty" / "folder").mkdir(parents=True)
    value = await apply(objects, value, moved(value, {"refs/heads/empty": commits[0]}))
    agree(objects, value)


async def test_many_small_pushes_are_packed_in_the_end(objects: DiskObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "LOOSE_REFS_MAX", 5)
    value, commits = await with_commits(objects)
    for number in range(9):
        value = await apply(objects, value, moved(value, {f"refs/heads/b{number}": commits[0]}, txn=f"t{number}"))
    agree(objects, value)
    loose = [path for path in (objects.path(FOLDER) / "refs").rglob("*") if path.is_file()]
    assert len(loose) <= 5


async def test_a_ref_too_long_for_a_file_name_does_not_wedge_the_repository(objects: DiskObjects) -> None:
    value, commits = await with_commits(objects)
    value = await apply(objects, value, moved(value, {"refs/heads/" + "x" * 255: commits[0]}))
    await objects.materialise(value)
    value = await apply(objects, value, moved(value, {"refs/heads/" + "x" * 255: None}))
    agree(objects, value)


async def test_peeled_tags_are_written_for_git(objects: DiskObjects) -> None:
    value, _ = await with_commits(objects)
    target = value.refs[MAIN].oid
    tip = next(thing for thing in history(3) if thing.oid == target)
    label = tag(tip)
    value = await pushed(objects, value, pack_of(label), {"refs/tags/v1": label.oid}, "tag")
    await objects.materialise(value)
    assert f"^{target}" in (objects.path(FOLDER) / "packed-refs").read_text()
    agree(objects, value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "refs" / "heads" / "main").write_text("f" * 40 + "\n"),
        lambda folder: (folder / "refs" / "heads" / "main").write_text(""),
        lambda folder: (folder / "refs" / "heads" / "stray").write_text("1" * 40 + "\n"),
        lambda folder: (folder / "refs" / "heads" / "main.lock").write_text("half"),
        lambda folder: (folder / "HEAD").write_text("ref: refs/heads/gone\n"),
        lambda folder: (folder / "HEAD").unlink(),
        lambda folder: (folder / "packed-refs").write_text("garbage"),
        lambda folder: (folder / "config").write_text(""),
        lambda folder: shutil.rmtree(folder / "refs"),
        lambda folder: (folder / "refs" / "heads" / "link").symlink_to("/etc/passwd"),
    ],
)
async def test_materialise_repairs_whatever_is_there(objects: DiskObjects, spoil: Callable[[Path], Any]) -> None:
    value, _ = await with_commits(objects)
    spoil(objects.path(FOLDER))
    await objects.materialise(value)
    agree(objects, value)
    await objects.materialise(value)
    agree(objects, value)


async def test_materialise_makes_what_is_absent_and_removes_what_is_deleted(objects: DiskObjects, tmp_path: Path) -> None:
    value = register().applied(creation(register()))
    await objects.materialise(value)
    agree(objects, value)
    await objects.materialise(value.applied(deletion(value)))
    assert not objects.path(FOLDER).exists()
    await objects.materialise(register())


async def test_a_crash_after_any_step_of_apply_is_healed_by_applying_again(
    objects: DiskObjects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every rename in ``node.storage`` is a step; the process "dies" before the first, the second, … of them."""
    value, commits = await with_commits(objects)
    value = await apply(objects, value, moved(value, {"refs/heads/gone": commits[0]}, txn="before"))
    folder, kept = objects.path(FOLDER), tmp_path / "kept"
    shutil.copytree(folder, kept)
    things = history(1, b"next")
    real = Path.replace
    async with await receive(objects, pack_of(*things)) as received:
        updates = {MAIN: things[-1].oid, "refs/heads/new": commits[0], "refs/heads/gone": None}
        change = moved(value, updates, received.packs)
        after = value.applied(change)
        for step in range(4):
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            left = step

            def replace(path: Path, target: Path) -> Path:
                nonlocal left
                if left == 0:
                    raise OSError("died")
                left -= 1
                return real(path, target)

            monkeypatch.setattr(Path, "replace", replace)
            with pytest.raises(DiskRefused):
                await objects.apply(value, change, after, received.inline)
            monkeypatch.setattr(Path, "replace", real)
            assert "error" not in git("-C", folder, "fsck", "--strict")
            await objects.sweep(set(), {FOLDER})
            await objects.apply(value, change, after, received.inline)
            agree(objects, after)


async def test_bytes_that_a_power_cut_took_are_written_again(objects: DiskObjects) -> None:
    before = await created(objects)
    things = history()
    async with await receive(objects, pack_of(*things)) as received:
        change = moved(before, {MAIN: things[-1].oid}, received.packs)
        after = await apply(objects, before, change, received.inline)
        for path in (objects.path(FOLDER) / "objects" / "pack").iterdir():
            size = path.stat().st_size
            path.unlink()
            path.write_bytes(bytes(size))
        await apply(objects, before, change, received.inline)
    agree(objects, after)


async def test_apply_without_objects_is_refused_and_moves_no_ref(objects: DiskObjects) -> None:
    value, _ = await with_commits(objects)
    nowhere = PackRef("pack-" + "a" * 40, "b" * 64, 99, "c" * 64, 99)  # type: ignore[arg-type]
    change = moved(value, {MAIN: Oid("d" * 40)}, [nowhere])
    with pytest.raises(DiskRefused, match="objects are missing"):
        await objects.apply(value, change, value.applied(change), ())
    agree(objects, value)


async def test_one_staged_pack_serves_two_repositories(objects: DiskObjects) -> None:
    things = history(1, os.urandom(INLINE_PACK_BYTES_MAX))
    other = RepositoryName("alice", "other")
    mine, theirs = await created(objects), await created(objects, other)
    async with await receive(objects, pack_of(*things)) as received:
        await received.promote()
    for value in (mine, theirs):
        change = moved(value, {MAIN: things[-1].oid}, received.packs)
        assert await objects.missing(change) == ()
        agree(objects, await apply(objects, value, change))
        assert await objects.missing(change) == ()


async def test_sync_reaches_every_file_and_folder_that_was_touched(
    objects: DiskObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, _ = await with_commits(objects)
    synced: set[Path] = set()
    real = repository.fsync

    def fsync(path: Path) -> None:
        synced.add(path)
        real(path)

    monkeypatch.setattr(repository, "fsync", fsync)
    await objects.sync(FOLDER)
    folder = objects.path(FOLDER)
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert {folder.parent.parent, folder.parent, folder, folder / "refs" / "heads", folder / "objects" / "pack"} <= synced
    assert files <= synced
    synced.clear()
    await objects.sync(FOLDER)
    assert synced == set()
    await apply(objects, value, moved(value, {"refs/heads/x/y": value.refs[MAIN].oid}))
    await objects.sync(FOLDER)
    heads = folder / "refs" / "heads"
    assert {heads, heads / "x", heads / "x" / "y"} <= synced
    assert folder / "config" not in synced


async def test_a_failed_sync_is_not_forgotten(objects: DiskObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    await created(objects)
    real = repository.fsync
    monkeypatch.setattr(repository, "fsync", lambda path: os.fsync(9999))
    with pytest.raises(DiskRefused):
        await objects.sync(FOLDER)
    synced: list[Path] = []

    def fsync(path: Path) -> None:
        synced.append(path)
        real(path)

    monkeypatch.setattr(repository, "fsync", fsync)
    await objects.sync(FOLDER)
    assert objects.path(FOLDER) / "config" in synced


async def test_a_deleted_repository_goes_and_may_come_again(objects: DiskObjects, tmp_path: Path) -> None:
    value, _ = await with_commits(objects)
    gone = await apply(objects, value, deletion(value))
    assert not objects.path(FOLDER).exists()
    await objects.sync(FOLDER)
    await objects.apply(value, deletion(value), gone, ())
    other = RepositoryName("Alice", "Project")
    again = creation(gone, other)
    value = await apply(objects, gone, again)
    agree(objects, value)
    assert await objects.missing(change_of(value)) == ()
    await objects.close()
    assert list((tmp_path / "data" / ".trash").iterdir()) == []


async def test_symbolic_links_are_not_followed_out(objects: DiskObjects, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "data" / "alice").symlink_to(outside)
    with pytest.raises(StorageError, match="symbolic link"):
        await created(objects)
    assert list(outside.iterdir()) == []
    with pytest.raises(StorageError, match="symbolic link"):
        await objects.size_bytes(FOLDER)


@pytest.mark.parametrize("name", ["../x", "a/../b", ".quarantine/x", "a", "a/b/c", "a/.git", "a/b.lock", ""])
async def test_bad_names_are_no_paths(objects: DiskObjects, name: str) -> None:
    with pytest.raises(BadRepositoryName):
        objects.path(name)


async def test_size_is_known_and_absence_is_said(objects: DiskObjects) -> None:
    with pytest.raises(RepositoryAbsent):
        await objects.size_bytes(FOLDER)
    await with_commits(objects)
    assert await objects.size_bytes(FOLDER) > 500
    assert objects.free_bytes() > 0


async def test_refs_with_odd_names_are_kept(objects: DiskObjects) -> None:
    value, commits = await with_commits(objects)
    names = ["refs/heads/ünïcode/❤", "refs/heads/a-b.c_d+e=f,g%h", "refs/notes/commits", "refs/heads/HEAD"]
    value = await apply(objects, value, moved(value, dict.fromkeys(names, commits[0])))
    assert refs_by_git_bytes(objects.path(FOLDER)) == {**dict.fromkeys(names, commits[0]), MAIN: value.refs[MAIN].oid}
    await objects.materialise(value)
    assert len(refs_by_git_bytes(objects.path(FOLDER))) == 5


def refs_by_git_bytes(folder: Path) -> dict[RefName, str]:
    return {RefName(ref): oid for ref, oid in refs_by_git(folder).items()}


async def test_many_packs_get_one_index_and_stay_whole(objects: DiskObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "NEW_PACKS", 4)
    value, parent = await created(objects), None
    for number in range(9):
        things = history(1, b"%d" % number, parent)
        parent = things[-1]
        value = await pushed(objects, value, pack_of(*things), {MAIN: parent.oid}, f"t{number}")
        await objects.sync(FOLDER)
    packs = objects.path(FOLDER) / "objects" / "pack"
    assert (packs / "multi-pack-index").is_file()
    assert len(list(packs.glob("*.pack"))) == 9
    assert git("-C", objects.path(FOLDER), "rev-list", "--count", "main").strip() == "9"
    agree(objects, value)
