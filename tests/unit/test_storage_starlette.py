"""A real history (7,000 commits, 176 tags) from a client's pack to a second node's repository."""

import subprocess
from functools import partial
from pathlib import Path

import pytest

from node.protocol.change import RefUpdate
from node.protocol.ids import ZERO_OID, Oid, RefName
from node.storage.git import GitLimits
from node.storage.objects import DiskObjects
from tests.unit.storage_kit import GIT_ENVIRONMENT, NAME, change_of, created, git, receive, refs_by_git

BUNDLE = Path("/work/shared/data/starlette.bundle")


@pytest.mark.skipif(not BUNDLE.exists(), reason="the starlette bundle is not on this machine")
async def test_a_real_history_reaches_a_second_node_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    git("clone", "-q", "--mirror", BUNDLE, source)
    refs = {ref: oid for ref, oid in refs_by_git(source).items() if ref.startswith(("refs/heads/", "refs/tags/"))}
    packed = packed_by_git(source)
    first = DiskObjects(tmp_path / "first", GitLimits(free_bytes_min=0))
    second = DiskObjects(tmp_path / "second", GitLimits(free_bytes_min=0))
    value, other = await created(first), await created(second)

    async with await receive(first, packed) as received:
        updates, refused = await received.examine([RefUpdate(RefName(ref), ZERO_OID, Oid(oid)) for ref, oid in refs.items()])
        assert not refused
        await received.promote()
    assert received.inline == ()
    change = change_of(value, *updates, packs=received.packs)
    after = value.applied(change)

    assert await second.missing(change) == change.packs
    for pack in change.packs:

        async def read(index: bool, offset: int, pack=pack):  # type: ignore[no-untyped-def]
            chunks = await first.open_pack(str(NAME), pack, index, offset)
            assert chunks is not None
            async for chunk in chunks:
                yield chunk

        await second.stage_fetched(pack, partial(read))
    assert await second.missing(change) == ()

    for store, before in ((first, value), (second, other)):
        await store.apply(before, change, after, ())
        await store.sync(str(NAME))
        folder = store.path(str(NAME))
        assert refs_by_git(folder) == refs
        assert "error" not in git("-C", folder, "fsck", "--full", "--strict")
    peeled = {ref: target.peeled for ref, target in after.refs.items() if target.peeled}
    assert peeled
    assert peeled == {ref: git("-C", source, "rev-parse", f"{ref}^{{}}").strip() for ref in peeled}
    clone = tmp_path / "clone"
    git("clone", "-q", "--mirror", "--no-local", second.path(str(NAME)), clone)
    assert refs_by_git(clone) == refs
    await first.close()
    await second.close()


def packed_by_git(source: Path) -> bytes:
    """What a client would send of everything."""
    command = ["git", "-C", str(source), "pack-objects", "--revs", "--all", "--stdout", "-q"]
    return subprocess.run(command, input=b"", stdout=subprocess.PIPE, env=GIT_ENVIRONMENT, check=True).stdout
