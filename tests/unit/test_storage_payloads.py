"""The stage: what is kept for changes that are not applied yet, checked, bounded, and let go of at the right moment."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.ports.errors import Busy, DiskRefused, NoAnswer, PackRefused
from node.protocol.change import PackRef
from node.protocol.ids import Digest, TxnId
from node.protocol.messages import INLINE_PACK_BYTES_MAX, InlinePack
from node.protocol.names import RepositoryName
from node.storage import payloads
from node.storage.git import GitLimits
from node.storage.objects import DiskObjects
from node.storage.packfile import describe_small
from node.storage.payloads import SmallPacks
from tests.unit.storage_kit import MAIN, NAME, chunked, created, history, moved, pack_of, receive


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[DiskObjects]:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0))
    yield store
    await store.close()


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[DiskObjects]:
    store = DiskObjects(tmp_path / "source", GitLimits(warm_max=0, free_bytes_min=0))
    yield store
    await store.close()


async def small(source: DiskObjects) -> tuple[PackRef, InlinePack]:
    async with await receive(source, pack_of(*history())) as received:
        return received.packs[0], received.inline[0]


class Holder:
    """A peer that has one large pack, and counts what it is asked for."""

    def __init__(self, pack: bytes, index: bytes) -> None:
        self.content = (pack, index)
        self.asked: list[tuple[bool, int]] = []
        self.fail_after = 1 << 62
        self.extra = b""
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, index: bool, offset: int) -> AsyncIterator[bytes]:
        self.asked.append((index, offset))
        sent = 0
        async for chunk in chunked(self.content[index][offset:] + self.extra):
            await self.gate.wait()
            if sent >= self.fail_after:
                raise NoAnswer("peer went away")
            yield chunk
            sent += len(chunk)


async def large(source: DiskObjects) -> tuple[PackRef, Holder]:
    async with await receive(source, pack_of(*history(1, os.urandom(3 * INLINE_PACK_BYTES_MAX)))) as received:
        await received.promote()
        (pack,) = received.packs
        content = [b"".join([chunk async for chunk in await opened(source, pack, index)]) for index in (False, True)]
        return pack, Holder(*content)


async def opened(store: DiskObjects, pack: PackRef, index: bool, offset: int = 0) -> AsyncIterator[bytes]:
    chunks = await store.open_pack(str(NAME), pack, index, offset)
    assert chunks is not None
    return chunks


async def test_a_small_pack_is_held_in_memory_and_served_from_there(objects: DiskObjects, source: DiskObjects) -> None:
    pack, inline = await small(source)
    assert objects.inline([pack]) == ()
    await objects.stage_inline([(pack, inline)])
    assert objects.inline([pack]) == (inline,)
    assert b"".join([chunk async for chunk in await opened(objects, pack, False, 10)]) == inline.pack[10:]
    assert b"".join([chunk async for chunk in await opened(objects, pack, True)]) == inline.index


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: replace(p, pack=p.pack[:-1] + b"x"),
        lambda p: replace(p, pack=p.pack[:-1]),
        lambda p: replace(p, index=p.index[:-1] + b"x"),
        lambda p: replace(p, index=b""),
        lambda p: replace(p, sha256=Digest("0" * 64)),
    ],
)
async def test_a_small_pack_with_a_wrong_checksum_is_refused(objects: DiskObjects, source: DiskObjects, spoil) -> None:  # type: ignore[no-untyped-def]
    pack, inline = await small(source)
    with pytest.raises(PackRefused):
        await objects.stage_inline([(pack, spoil(inline))])
    assert objects.inline([pack]) == ()


async def test_checksums_that_agree_do_not_hide_a_pack_that_is_none(objects: DiskObjects, source: DiskObjects) -> None:
    """Signed by nobody's mistake but the sender's: the trailers of pack and index are looked at too."""
    pack, inline = await small(source)
    other, another = await small_of(source, b"other")
    for packed, index in (
        (inline.pack[:-1] + bytes([inline.pack[-1] ^ 1]), inline.index),
        (inline.pack, another.index),
        (another.pack, another.index),
        (inline.pack, b"\xfftOc\x00\x00\x00\x03" + inline.index[8:]),
        (inline.pack, inline.index[:-1] + bytes([inline.index[-1] ^ 1])),
    ):
        ref = describe_small(pack.name, packed, index)
        with pytest.raises(PackRefused):
            await objects.stage_inline([(ref, InlinePack(ref.sha256, packed, index))])
    assert other != pack


async def small_of(source: DiskObjects, content: bytes) -> tuple[PackRef, InlinePack]:
    async with await receive(source, pack_of(*history(1, content)), "other") as received:
        return received.packs[0], received.inline[0]


def test_memory_is_bounded_and_what_is_pending_is_never_dropped() -> None:
    now = [0.0]
    packs = SmallPacks(300, now=lambda: now[0])
    a, b, c = (InlinePack(Digest(letter * 64), bytes(50), bytes(50)) for letter in "abc")
    packs.add([a, b, c])
    packs.add([c])
    more = InlinePack(Digest("d" * 64), bytes(60), b"")
    with pytest.raises(Busy):
        packs.add([more])
    assert packs.get(a.sha256)
    assert packs.get(b.sha256)
    packs.release(b.sha256)
    assert packs.get(b.sha256)
    packs.add([more])
    assert packs.get(b.sha256) is None
    now[0] += payloads.PENDING_S + 1
    packs.add([b])
    assert packs.get(a.sha256) is None


async def test_a_large_pack_is_downloaded_verified_and_then_not_asked_for_again(
    objects: DiskObjects, source: DiskObjects, tmp_path: Path
) -> None:
    pack, holder = await large(source)
    await objects.stage_fetched(pack, holder.read)
    await objects.stage_fetched(pack, holder.read)
    assert holder.asked == [(False, 0), (True, 0)]
    names = sorted(path.name for path in (tmp_path / "data" / ".stage").iterdir())
    assert names == [f"{pack.sha256}.idx", f"{pack.sha256}.pack"]
    tail = b"".join([chunk async for chunk in await opened(objects, pack, False, 1000)])
    assert tail == holder.content[0][1000:]


async def test_a_broken_download_goes_on_where_it_stopped(objects: DiskObjects, source: DiskObjects) -> None:
    pack, holder = await large(source)
    holder.fail_after = 100_000
    with pytest.raises(NoAnswer):
        await objects.stage_fetched(pack, holder.read)
    holder.fail_after = 1 << 62
    await objects.stage_fetched(pack, holder.read)
    (_, first), (_, resumed), (index, _) = holder.asked
    assert (first, index) == (0, True)
    assert resumed >= 100_000


async def test_callers_that_want_the_same_pack_share_one_download(objects: DiskObjects, source: DiskObjects) -> None:
    pack, holder = await large(source)
    holder.gate.clear()
    first, second, third = (asyncio.create_task(objects.stage_fetched(pack, holder.read)) for _ in range(3))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0)
    holder.gate.set()
    await second
    await third
    assert holder.asked == [(False, 0), (True, 0)]
    assert first.cancelled()


async def test_a_download_that_nobody_waits_for_ends(objects: DiskObjects, source: DiskObjects) -> None:
    pack, holder = await large(source)
    holder.gate.clear()
    task = asyncio.create_task(objects.stage_fetched(pack, holder.read))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("stage ")]


async def test_more_bytes_than_were_named_are_refused(objects: DiskObjects, source: DiskObjects) -> None:
    pack, holder = await large(source)
    holder.extra = b"x"
    with pytest.raises(PackRefused, match="more than"):
        await objects.stage_fetched(pack, holder.read)


async def test_fewer_bytes_than_were_named_are_refused(objects: DiskObjects, source: DiskObjects) -> None:
    pack, holder = await large(source)
    holder.content = (holder.content[0][:-1], holder.content[1])
    with pytest.raises(PackRefused, match="only"):
        await objects.stage_fetched(pack, holder.read)


async def test_a_download_that_came_out_wrong_is_thrown_away_and_starts_anew(
    objects: DiskObjects, source: DiskObjects, tmp_path: Path
) -> None:
    pack, holder = await large(source)
    right = holder.content
    holder.content = (right[0][:5000] + b"?" + right[0][5001:], right[1])
    with pytest.raises(PackRefused, match="checksum"):
        await objects.stage_fetched(pack, holder.read)
    assert list((tmp_path / "data" / ".stage").iterdir()) == []
    holder.content = right
    await objects.stage_fetched(pack, holder.read)


async def test_a_full_disk_refuses_a_download(source: DiskObjects, tmp_path: Path) -> None:
    pack, holder = await large(source)
    store = DiskObjects(tmp_path / "full", GitLimits(warm_max=0, free_bytes_min=1 << 62))
    with pytest.raises(DiskRefused):
        await store.stage_fetched(pack, holder.read)
    await store.close()


async def test_missing_looks_in_memory_stage_and_repository(objects: DiskObjects, source: DiskObjects) -> None:
    value = await created(objects)
    little, inline = await small(source)
    big, holder = await large(source)
    change = moved(value, {}, [little, big])
    assert await objects.missing(change) == (little, big)
    await objects.stage_inline([(little, inline)])
    assert await objects.missing(change) == (big,)
    await objects.stage_fetched(big, holder.read)
    assert await objects.missing(change) == ()
    await objects.apply(value, change, value.applied(change), ())
    folder = objects.path(str(NAME)) / "objects" / "pack"
    assert {path.name for path in folder.iterdir()} == {f"{p.name}{s}" for p in (little, big) for s in (".pack", ".idx")}


async def test_missing_finds_a_repository_that_is_spelled_with_capitals(objects: DiskObjects, source: DiskObjects) -> None:
    name = RepositoryName("Alice", "Project")
    value = await created(objects, name)
    pack, inline = await small(source)
    change = moved(value, {}, [pack])
    await objects.apply(value, change, value.applied(change), [inline])
    objects._repositories._spelling.clear()
    assert await objects.missing(change) == ()


async def test_discard_spares_what_another_change_needs(
    objects: DiskObjects, source: DiskObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push tried again is a new change with the same packs (C6)."""
    monkeypatch.setattr(payloads, "CONDEMNED_S", -1.0)
    value = await created(objects)
    pack, holder = await large(source)
    await objects.stage_fetched(pack, holder.read)
    first, again = moved(value, {}, [pack], "first"), moved(value, {}, [pack], "again")
    assert await objects.missing(first) == ()
    assert await objects.missing(again) == ()
    await objects.discard(first)
    assert await objects.missing(again) == ()
    await objects.discard(again)
    assert await objects.missing(again) == (pack,)


async def test_a_discarded_pack_can_be_claimed_again_for_a_while(objects: DiskObjects, source: DiskObjects) -> None:
    value = await created(objects)
    pack, holder = await large(source)
    await objects.stage_fetched(pack, holder.read)
    await objects.discard(moved(value, {}, [pack], "first"))
    assert await objects.missing(moved(value, {}, [pack], "again")) == ()


async def test_open_pack_knows_what_is_not_here(objects: DiskObjects, source: DiskObjects) -> None:
    pack, _ = await large(source)
    assert await objects.open_pack(str(NAME), pack, False, 0) is None


async def test_open_pack_serves_from_the_repository_and_can_be_closed_early(objects: DiskObjects) -> None:
    value = await created(objects)
    async with await receive(objects, pack_of(*history(1, os.urandom(900_000)))) as received:
        await received.promote()
    change = moved(value, {MAIN: history(1)[-1].oid}, received.packs)
    await objects.apply(value, change, value.applied(change), ())
    (pack,) = received.packs
    for path in objects.path(str(NAME)).parent.parent.joinpath(".stage").iterdir():
        path.unlink()
    chunks = await opened(objects, pack, False)
    assert len(await anext(chunks)) > 100_000
    await chunks.aclose()  # type: ignore[attr-defined]
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_two_pushes_of_one_transaction_do_not_share_a_folder(objects: DiskObjects) -> None:
    received = await receive(objects, pack_of(*history()), "same")
    with pytest.raises(DiskRefused):
        await objects.quarantine(NAME, TxnId("same")).receive(chunked(pack_of(*history())))
    assert received.inline
    await received.discard()
