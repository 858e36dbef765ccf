"""The scrub's eyes on a real repository: the bytes of the files this program writes, and what a repair makes of them."""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from node.ports.errors import PackRefused
from node.ports.objects import Finding
from node.protocol.change import PackRef
from node.protocol.register import Register
from node.storage import repository
from node.storage.git import GitLimits
from node.storage.objects import DiskObjects
from tests.unit.storage_kit import MAIN, created, git, history, moved, pack_of, pushed, refs_by_git, refs_of, tag


async def spend(count: int) -> None:
    return None


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[DiskObjects]:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0))
    yield store
    await store.close()


async def filled(objects: DiskObjects) -> Register:
    """Packed refs with a peeled tag, and loose ones over them."""
    things = history(3)
    annotated = tag(things[-1])
    value = await pushed(objects, await created(objects), pack_of(*things, annotated), {MAIN: things[-1].oid}, "first")
    commits = [thing.oid for thing in things if thing.kind == 1]
    many = moved(value, {f"refs/heads/b{number:02}": commits[0] for number in range(20)}, txn="many")
    after = value.applied(many)
    await objects.apply(value, many, after, ())
    few = moved(after, {"refs/heads/b03": commits[1], "refs/heads/new": commits[1]}, txn="few")
    last = after.applied(few)
    await objects.apply(after, few, last, ())
    await objects.sync(last.name)
    return last


def flipped(path: Path, offset: int) -> bytes:
    before = path.read_bytes()
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(before[:offset] + bytes([before[offset] ^ 0x04]) + before[offset + 1 :])
    path.chmod(mode)
    return before


async def test_a_repository_that_is_as_the_register_says_has_nothing_to_be_found(objects: DiskObjects) -> None:
    value = await filled(objects)
    assert await objects.verify_refs(value) == []
    assert await objects.verify_objects(value.name) is None


@pytest.mark.parametrize("name", ["HEAD", "config", "refs/heads/new", "refs/heads/b03"])
async def test_every_byte_of_a_small_file_counts_and_is_written_again(objects: DiskObjects, name: str) -> None:
    value = await filled(objects)
    path = objects.path(value.name) / name
    for offset in range(len(path.read_bytes())):
        before = flipped(path, offset)
        assert await objects.verify_refs(value), f"{name} at {offset}"
        path.write_bytes(before)
    flipped(path, 3)
    await objects.mend_refs(value)
    assert await objects.verify_refs(value) == []
    assert refs_by_git(objects.path(value.name)) == refs_of(value)


async def test_bytes_of_packed_refs_count_but_old_values_that_loose_refs_override(objects: DiskObjects) -> None:
    value = await filled(objects)
    folder = objects.path(value.name)
    path = folder / "packed-refs"
    content = path.read_bytes()
    loose = [b" " + str(each.relative_to(folder)).encode() + b"\n" for each in (folder / "refs").rglob("*") if each.is_file()]
    overridden = {at for name in loose if name in content for at in range(content.index(name) - 40, content.index(name))}
    assert overridden
    unseen = 0
    for offset in range(0, len(content), 7):
        before = flipped(path, offset)
        if not await objects.verify_refs(value):
            assert offset in overridden, f"packed-refs at {offset}"
            assert refs_by_git(folder) == refs_of(value), "and git does not see it either"
            unseen += 1
        path.write_bytes(before)
    assert unseen <= len(overridden)
    flipped(path, len(content) // 2)
    await objects.mend_refs(value)
    assert await objects.verify_refs(value) == []


async def test_a_name_that_is_no_text_any_more_is_told_in_words_that_can_be_kept(objects: DiskObjects) -> None:
    value = await filled(objects)
    path = objects.path(value.name) / "packed-refs"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"refs/heads/b07", b"refs/heads\x8ab07"))
    found = await objects.verify_refs(value)
    assert found
    assert all(str(finding).encode() for finding in found)
    await objects.mend_refs(value)
    assert await objects.verify_refs(value) == []


def _ghost(folder: Path) -> None:
    (folder / "refs/heads/ghost").write_text("0" * 39 + "1\n")


def _gone(folder: Path) -> None:
    (folder / "refs/heads/new").unlink()


def _link(folder: Path) -> None:
    (folder / "HEAD").unlink()
    (folder / "HEAD").symlink_to("config")


def _folder(folder: Path) -> None:
    (folder / "packed-refs").unlink()
    (folder / "packed-refs").mkdir()


def _no_refs(folder: Path) -> None:
    shutil.rmtree(folder / "refs")


@pytest.mark.parametrize("harm", [_ghost, _gone, _link, _folder, _no_refs, shutil.rmtree], ids=lambda harm: harm.__name__)
async def test_whatever_stands_there_is_found_and_made_right(objects: DiskObjects, harm: Callable[[Path], None]) -> None:
    value = await filled(objects)
    folder = objects.path(value.name)
    harm(folder)
    assert await objects.verify_refs(value)
    await objects.mend_refs(value)
    assert await objects.verify_refs(value) == []


async def test_a_deleted_repository_that_is_still_there_is_found(objects: DiskObjects) -> None:
    value = await filled(objects)
    from dataclasses import replace

    gone = replace(value, exists=False, refs={})
    assert [finding.part for finding in await objects.verify_refs(gone)] == ["repository"]
    await objects.mend_refs(gone)
    assert await objects.verify_refs(gone) == []


def pack_here(objects: DiskObjects, value: Register) -> tuple[Path, Path]:
    (path,) = (objects.path(value.name) / "objects" / "pack").glob("*.pack")
    return path, path.with_suffix(".idx")


def ref_of(path: Path, index: Path) -> PackRef:
    from hashlib import sha256

    from node.protocol.ids import Digest

    sums = [Digest(sha256(each.read_bytes()).hexdigest()) for each in (path, index)]
    return PackRef(path.stem, sums[0], path.stat().st_size, sums[1], index.stat().st_size)


@pytest.mark.parametrize("part", ["pack", "index"])
async def test_a_pack_or_index_that_was_changed_is_fetched_again_even_if_it_is_staged_too(
    objects: DiskObjects, part: str
) -> None:
    value = await filled(objects)
    path, index = pack_here(objects, value)
    ref, whole = ref_of(path, index), {False: path.read_bytes(), True: index.read_bytes()}
    assert await objects.verify_pack(value.name, ref, spend) is None
    flipped(path if part == "pack" else index, 50)
    found = await objects.verify_pack(value.name, ref, spend)
    assert isinstance(found, Finding)
    assert (found.part, found.pack) == (part, ref)

    async def wrong(is_index: bool, offset: int) -> AsyncIterator[bytes]:
        yield whole[is_index][offset:-1] + b"?"

    async def right(is_index: bool, offset: int) -> AsyncIterator[bytes]:
        yield whole[is_index][offset:]

    stage = objects.path(value.name).parent.parent / ".stage"
    for suffix, source in ((".pack", path), (".idx", index)):
        shutil.copy(source, stage / f"{ref.sha256}{suffix}")
    with pytest.raises(PackRefused):
        await objects.mend_pack(value.name, ref, wrong)
    await objects.mend_pack(value.name, ref, right)
    assert await objects.verify_pack(value.name, ref, spend) is None
    assert "error" not in git("-C", objects.path(value.name), "fsck", "--strict", "--full")


async def test_a_missing_pack_and_what_refs_lead_to_nothing_are_found(objects: DiskObjects) -> None:
    value = await filled(objects)
    path, index = pack_here(objects, value)
    ref = ref_of(path, index)
    index.unlink()
    found = await objects.verify_pack(value.name, ref, spend)
    assert found is not None
    assert "not here" in found.detail
    wrong = await objects.verify_objects(value.name)
    assert wrong is not None
    assert wrong.part == "objects"


async def test_the_index_over_all_packs_is_checked_and_made_again(objects: DiskObjects) -> None:
    value = await filled(objects)
    folder = objects.path(value.name)
    git("-C", folder, "multi-pack-index", "write")
    assert await objects.verify_objects(value.name) is None
    flipped(folder / "objects" / "pack" / "multi-pack-index", 70)
    found = await objects.verify_objects(value.name)
    assert found is not None
    assert found.part == "multi-pack-index"
    await objects.mend_refs(value)
    assert await objects.verify_objects(value.name) is None


async def test_what_was_not_synced_yet_is_synced_before_it_is_rescued(
    objects: DiskObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[only packed-refs was: a power cut left the rescued repository without its last packs]"""
    value = await filled(objects)
    folder = objects.path(value.name)
    files = {path.relative_to(folder) for path in folder.rglob("*.pack")} | {Path("HEAD"), Path("objects/pack"), Path()}
    synced: list[Path] = []
    monkeypatch.setattr(repository, "fsync", synced.append)
    place = Path(await objects.rescue(value, "node-3-7"))
    assert {folder / name for name in files} <= set(synced[: synced.index(place.parent)]), "before it gets its new name"


async def test_a_pack_in_the_place_of_a_damaged_one_is_synced_by_the_sync_of_its_repository(
    objects: DiskObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[the folder was synced at once, and where that failed, the next look found the pack whole and believed it]"""
    value = await filled(objects)
    path, index = pack_here(objects, value)
    ref, whole = ref_of(path, index), {False: path.read_bytes(), True: index.read_bytes()}

    async def right(is_index: bool, offset: int) -> AsyncIterator[bytes]:
        yield whole[is_index][offset:]

    synced: list[Path] = []
    monkeypatch.setattr(repository, "fsync", synced.append)
    await objects.mend_pack(value.name, ref, right)
    assert synced == []
    await objects.sync(value.name)
    assert {path, index, path.parent} <= set(synced)


async def test_a_rescued_repository_keeps_all_it_had_out_of_service(objects: DiskObjects) -> None:
    value = await filled(objects)
    place = Path(await objects.rescue(value, "node-3-7"))
    assert not objects.path(value.name).exists()
    expected = {ref.replace("refs/", "refs/rescued/node-3-7/", 1): oid for ref, oid in refs_of(value).items()}
    assert refs_by_git(place) == expected
    assert "error" not in git("-C", place, "fsck", "--strict", "--full")
    assert await objects.rescue(value, "again") == ""
    assert await objects.sweep(set(), set())
    assert refs_by_git(place) == expected, "a start sweeps it not away"
