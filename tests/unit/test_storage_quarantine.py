"""What is let into a repository, what is refused and with which words, and that a refusal leaves nothing behind."""

import asyncio
import os
import resource
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.ports.errors import Busy, DiskRefused, PackRefused
from node.protocol.change import RefUpdate
from node.protocol.ids import ZERO_OID, Oid, RefName, TxnId
from node.protocol.messages import INLINE_PACK_BYTES_MAX
from node.storage import quarantine
from node.storage.git import GitLimits
from node.storage.objects import DiskObjects
from node.storage.packfile import verify_small
from tests.unit.storage_kit import (
    BLOB,
    MAIN,
    NAME,
    Thing,
    blob,
    chunked,
    commit,
    created,
    entry_header,
    git,
    history,
    left_in_quarantine,
    pack_of,
    pushed,
    receive,
    ref_delta,
    seal,
    tag,
    tree,
    varint,
)

MIB = 1024**2


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[DiskObjects]:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0))
    yield store
    await store.close()


async def refusal(objects: DiskObjects, pack: bytes, shallow: tuple[Oid, ...] = ()) -> str:
    with pytest.raises(PackRefused) as refused:
        await receive(objects, pack, shallow=shallow)
    assert left_in_quarantine(objects) == []
    assert str(objects.path(str(NAME)).parent.parent) not in str(refused.value)
    return str(refused.value)


async def test_a_small_pack_is_carried_inline_with_checksums_that_hold(objects: DiskObjects) -> None:
    things = history(2)
    async with await receive(objects, pack_of(*things)) as received:
        (pack,), (inline,) = received.packs, received.inline
        verify_small(pack, inline)
        assert received.oids == frozenset(thing.oid for thing in things)
    assert left_in_quarantine(objects) == []


async def test_a_large_pack_is_staged_by_promote_and_nothing_stays_in_quarantine(objects: DiskObjects, tmp_path: Path) -> None:
    things = history(1, os.urandom(INLINE_PACK_BYTES_MAX))
    received = await receive(objects, pack_of(*things))
    assert received.inline == ()
    (pack,) = received.packs
    await received.promote()
    assert left_in_quarantine(objects) == []
    stage = tmp_path / "data" / ".stage"
    assert sorted(path.name for path in stage.iterdir()) == [f"{pack.sha256}.idx", f"{pack.sha256}.pack"]
    updates, refused = await received.examine([RefUpdate(MAIN, ZERO_OID, things[-1].oid)])
    assert updates
    assert not refused
    await received.discard()
    assert len(list(stage.iterdir())) == 2


async def test_a_push_of_no_objects_makes_no_pack(objects: DiskObjects) -> None:
    async with await receive(objects, pack_of()) as received:
        assert (received.packs, received.inline) == ((), ())
    async with await objects.quarantine(NAME, TxnId("empty")).empty() as received:
        assert received.packs == ()
    assert left_in_quarantine(objects) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda pack: pack[:-30] + bytes(10) + pack[-20:], "inflate|SHA1 mismatch|serious"),
        (lambda pack: pack[:-25], "early EOF"),
        (lambda pack: pack[:6], "early EOF"),
        (lambda pack: b"", "early EOF"),
        (lambda pack: b"KCAP" + pack[4:], "pack signature mismatch"),
        (lambda pack: pack[:4] + b"\0\0\0\x09" + pack[8:], "pack version 9 unsupported"),
        (lambda pack: pack[:-1] + bytes([pack[-1] ^ 1]), "SHA1 mismatch"),
        (lambda pack: pack + b"junk", "junk"),
        (
            lambda pack: seal(pack[:8] + struct.pack(">L", 1_000_000) + pack[12:-20]),
            "inflate|early EOF|unknown object type|bad",
        ),
    ],
)
async def test_spoiled_packs_are_refused_in_gits_words(objects: DiskObjects, spoil, words: str) -> None:  # type: ignore[no-untyped-def]
    text = await refusal(objects, spoil(pack_of(*history())))
    assert any(word in text for word in words.split("|")), text


async def test_a_large_truncated_pack_is_refused_too(objects: DiskObjects) -> None:
    assert "early EOF" in await refusal(objects, pack_of(*history(1, os.urandom(MIB)))[:-1000])


@pytest.mark.parametrize("name", [b".git", b".GIT", b"..", b"git~1", b"a/b"])
async def test_names_that_harm_a_checkout_are_refused(objects: DiskObjects, name: bytes) -> None:
    file = blob()
    root = tree((b"100644", name, file))
    assert "fsck error" in await refusal(objects, pack_of(file, root, commit(root)))


async def test_hostile_gitmodules_is_refused(objects: DiskObjects) -> None:
    file = blob(b'[submodule "x"]\n\tpath = x\n\turl = -evil\n')
    root = tree((b"100644", b".gitmodules", file))
    assert "gitmodules" in await refusal(objects, pack_of(file, root, commit(root)))


async def test_objects_that_are_nowhere_are_missed(objects: DiskObjects) -> None:
    """With this, and since objects enter only here, direct links are connectivity (docs/decisions/0004)."""
    file, root, tip = history()
    child = commit(root, tip)
    for held, missing in (((root, tip), file), ((file, tip), root), ((file, root, child), tip)):
        assert f"did not receive expected object {missing.oid}" in await refusal(objects, pack_of(*held))
    assert f"did not receive expected object {tip.oid}" in await refusal(objects, pack_of(tag(tip)))


async def test_links_into_the_repository_count_and_links_into_another_do_not(objects: DiskObjects) -> None:
    register = await created(objects)
    first = history()
    await pushed(objects, register, pack_of(*first), {MAIN: first[-1].oid}, "one")
    child = commit(first[1], first[-1])
    async with await receive(objects, pack_of(child)) as received:
        assert received.oids == frozenset({child.oid})
    with pytest.raises(PackRefused, match="did not receive expected object"):
        await objects.quarantine(type(NAME)("alice", "other"), TxnId("x")).receive(chunked(pack_of(child)))


async def test_a_link_to_an_object_of_the_wrong_type_is_refused(objects: DiskObjects) -> None:
    file, root, _tip = history()
    wrong = Thing(1, commit(root).content.replace(root.oid.encode(), file.oid.encode()))
    assert await refusal(objects, pack_of(file, root, wrong))


async def test_a_thin_pack_is_completed_from_the_repository(objects: DiskObjects) -> None:
    register = await created(objects)
    base = history(1, b"line\n" * 100)
    await pushed(objects, register, pack_of(*base), {MAIN: base[-1].oid}, "one")
    old = base[0]
    new = blob(old.content + b"more")
    size = len(old.content)
    copy = bytes([0x80 | 0x10 | 0x20, size & 255, size >> 8])
    delta = varint(size) + varint(size + 4) + copy + b"\x04more"
    root = tree((b"100644", b"file", new))
    tip = commit(root, base[-1])
    async with await receive(objects, pack_of(root, tip, extra=[ref_delta(old, delta)])) as received:
        assert received.oids is not None
        assert {new.oid, old.oid} <= received.oids


async def test_three_sins_of_old_histories_are_forgiven_and_others_are_not(objects: DiskObjects) -> None:
    file = blob()
    root = tree((b"100644", b"file", file))
    padded = tree((b"040000", b"folder", root), (b"0100644", b"zfile", file))
    zone = commit(root, who=b"A <a@example.org> 1700000000 +051800")
    space = commit(root, who=b"A <a@example.org>1700000000 +0000")
    for extra in ((padded, commit(padded)), (zone,), (space,)):
        async with await receive(objects, pack_of(file, root, *extra)) as received:
            assert len(received.packs) == 1
    twice = tree((b"100644", b"file", file), (b"100644", b"file", file))
    assert "duplicateEntries" in await refusal(objects, pack_of(file, twice, commit(twice)))
    nobody = commit(root, who=b"A a@example.org 1700000000 +0000")
    assert "missingEmail" in await refusal(objects, pack_of(file, root, nobody))


async def test_a_delta_bomb_of_a_few_hundred_bytes_is_refused_before_git_sees_it(objects: DiskObjects) -> None:
    base = blob(bytes(65536))
    copies = 8000
    delta = varint(65536) + varint(65536 * copies) + b"\x80" * copies
    pack = pack_of(base, extra=[ref_delta(base, delta)])
    assert len(pack) < 400
    assert "delta expands 65536 bytes to 524288000" in await refusal(objects, pack)


async def test_a_delta_bomb_in_a_large_pack_meets_the_limit_on_memory(tmp_path: Path) -> None:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0, memory_bytes_max=256 * MIB))
    base = blob(bytes(65536))
    delta = varint(65536) + varint(65536 * 8000) + b"\x80" * 8000
    pack = pack_of(base, blob(os.urandom(INLINE_PACK_BYTES_MAX)), extra=[ref_delta(base, delta)])
    assert "ut of memory" in await refusal(store, pack)
    await store.close()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 600 * 1024


async def test_what_a_small_pack_inflates_to_is_bounded(tmp_path: Path) -> None:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0, inflated_bytes_max=MIB))
    assert "inflate to more than 1048576 bytes" in await refusal(store, pack_of(blob(bytes(2 * MIB))))
    await store.close()


async def test_a_zlib_bomb_is_taken_with_bounded_memory(tmp_path: Path) -> None:
    """408 kB that inflate to 400 MiB: git hashes it as it streams by, in a fraction of the memory."""
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0, memory_bytes_max=200 * MIB))
    stream = zlib.compressobj(9)
    packed = b"".join(stream.compress(bytes(MIB)) for _ in range(400)) + stream.flush()
    body = b"PACK" + struct.pack(">LL", 2, 1) + entry_header(BLOB, 400 * MIB) + packed
    async with await receive(store, seal(body)) as received:
        assert len(received.packs) == 1
    await store.close()


async def test_cpu_time_is_bounded_and_the_refusal_says_so(tmp_path: Path) -> None:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0, cpu_s_max=1))
    stream = zlib.compressobj(9)
    packed = b"".join(stream.compress(bytes(MIB)) for _ in range(700)) + stream.flush()
    body = b"PACK" + struct.pack(">LL", 2, 1) + entry_header(BLOB, 700 * MIB) + packed
    assert "CPU time" in await refusal(store, seal(body))
    await store.close()


async def test_a_pack_above_the_size_limit_is_refused_while_it_comes(tmp_path: Path) -> None:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0, pack_bytes_max=100_000))
    assert "exceeds maximum allowed size" in await refusal(store, pack_of(*history(1, os.urandom(MIB))))
    await store.close()


async def test_a_nearly_full_disk_takes_nothing(tmp_path: Path) -> None:
    store = DiskObjects(tmp_path / "data", GitLimits(free_bytes_min=1 << 62))
    with pytest.raises(DiskRefused, match="disk full"):
        await receive(store, pack_of(*history()))
    assert left_in_quarantine(store) == []
    await store.close()


@pytest.mark.parametrize("size", [100, MIB])
async def test_a_client_that_vanishes_leaves_nothing(objects: DiskObjects, size: int) -> None:
    async def vanishing() -> AsyncIterator[bytes]:
        yield pack_of(*history(1, os.urandom(size)))[:-50]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await objects.quarantine(NAME, TxnId("push")).receive(vanishing())
    assert left_in_quarantine(objects) == []


async def test_a_cancelled_push_ends_its_git_and_leaves_nothing(objects: DiskObjects) -> None:
    stuck = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield pack_of(*history(1, os.urandom(MIB)))[: 512 * 1024]
        stuck.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(objects.quarantine(NAME, TxnId("push")).receive(slow()))
    await stuck.wait()
    assert left_in_quarantine(objects) == ["push"]
    children = _children()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left_in_quarantine(objects) == []
    assert len(_children()) == len(children) - 1


async def test_large_packs_wait_for_a_turn_then_hear_busy_and_small_ones_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "TURN_WAIT_S", 0.05)
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0, pushes_max=1))
    stuck = asyncio.Event()
    large = pack_of(*history(1, os.urandom(MIB)))

    async def slow() -> AsyncIterator[bytes]:
        yield large[: 512 * 1024]
        stuck.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(store.quarantine(NAME, TxnId("slow")).receive(slow()))
    await stuck.wait()
    with pytest.raises(Busy):
        await receive(store, large)
    await (await receive(store, pack_of(*history(1)))).discard()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await (await receive(store, large)).discard()
    await store.close()


async def test_a_large_pack_that_trickles_gives_up_its_turn_to_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "PACE_GRACE_S", 0.1)
    monkeypatch.setattr(quarantine, "PACE_BYTES_PER_S", 1024**3)
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0, pushes_max=1))
    large = pack_of(*history(1, os.urandom(MIB)))

    async def trickle() -> AsyncIterator[bytes]:
        yield large[: 512 * 1024]
        for n in range(1000):
            await asyncio.sleep(0.02)
            yield large[512 * 1024 + n : 512 * 1024 + n + 1]

    task = asyncio.create_task(store.quarantine(NAME, TxnId("trickle")).receive(trickle()))
    await asyncio.sleep(0.2)
    assert not task.done()
    await (await receive(store, large)).discard()
    with pytest.raises(PackRefused, match="too slow while other pushes wait"):
        await task
    await store.close()


async def test_a_shallow_push_is_refused_only_if_it_would_leave_a_hole(objects: DiskObjects) -> None:
    register = await created(objects)
    first = history()
    await pushed(objects, register, pack_of(*first), {MAIN: first[-1].oid}, "one")
    child = commit(first[1], first[-1])
    async with await receive(objects, pack_of(child), shallow=[first[-1].oid]) as received:
        assert received.packs
    stranger = commit(first[1], commit(first[1], message=b"never sent\n"))
    assert await refusal(objects, pack_of(stranger), (stranger.oid,)) == "shallow update not allowed"


async def test_examine_knows_what_git_would_refuse(objects: DiskObjects) -> None:
    register = await created(objects)
    first = history()
    file, root, tip = first
    inner = tag(tip)
    outer = tag(inner, b"v2")
    await pushed(objects, register, pack_of(*first, inner), {MAIN: tip.oid}, "one")
    treeish = tag(root, b"tree")
    updates = [
        RefUpdate(RefName("refs/tags/outer"), ZERO_OID, outer.oid),
        RefUpdate(RefName("refs/tags/light"), ZERO_OID, tip.oid),
        RefUpdate(RefName("refs/tags/tree"), ZERO_OID, treeish.oid),
        RefUpdate(RefName("refs/heads/tag"), ZERO_OID, outer.oid),
        RefUpdate(RefName("refs/heads/blob"), ZERO_OID, file.oid),
        RefUpdate(RefName("refs/heads/nothing"), ZERO_OID, Oid("12" * 20)),
        RefUpdate(RefName("refs/heads/" + "x" * 252), ZERO_OID, tip.oid),
        RefUpdate(MAIN, tip.oid, ZERO_OID),
    ]
    async with await receive(objects, pack_of(outer, treeish)) as received:
        good, refused = await received.examine(updates)
    assert {update.ref: update.peeled for update in good} == {
        "refs/tags/outer": tip.oid,
        "refs/tags/light": None,
        "refs/tags/tree": root.oid,
        MAIN: None,
    }
    assert refused[RefName("refs/heads/nothing")] == "missing necessary objects"
    assert "non-commit object" in refused[RefName("refs/heads/tag")]
    assert "non-commit object" in refused[RefName("refs/heads/blob")]
    assert len(refused) == 4


async def test_tags_of_tags_end_somewhere(objects: DiskObjects) -> None:
    things = history()
    for number in range(40):
        things.append(tag(things[-1], b"v%d" % number))
    async with await receive(objects, pack_of(*things)) as received:
        _, refused = await received.examine([RefUpdate(RefName("refs/tags/v"), ZERO_OID, things[-1].oid)])
    assert "tags of tags" in refused[RefName("refs/tags/v")]


async def test_a_warm_process_sees_what_was_applied_after_it_started(tmp_path: Path) -> None:
    store = DiskObjects(tmp_path / "data", GitLimits(free_bytes_min=0))
    register = await created(store)
    things = history()
    register = await pushed(store, register, pack_of(*things), {MAIN: things[-1].oid}, "one")
    await _until_warm(store)
    # This one is received by a cold process of another intake, so that the warm one is older than its objects.
    waiting = store._indexer._warm.pop(store.path(str(NAME)))
    more = history(1, b"more\n", things[-1])
    register = await pushed(store, register, pack_of(*more), {MAIN: more[-1].oid}, "two")
    store._indexer._warm[store.path(str(NAME))] = waiting
    last = history(1, b"last\n", more[-1])
    register = await pushed(store, register, pack_of(*last), {MAIN: last[-1].oid}, "three")
    assert not waiting[0].folder.exists()
    assert git("-C", store.path(str(NAME)), "fsck", "--strict", "--full").strip() == ""
    await store.close()


async def test_warm_processes_are_few_end_when_idle_and_leave_nothing(tmp_path: Path) -> None:
    store = DiskObjects(tmp_path / "data", GitLimits(free_bytes_min=0, warm_idle_s=0.2, warm_max=1))
    before = len(_children())
    register = await created(store)
    things = history()
    await pushed(store, register, pack_of(*things), {MAIN: things[-1].oid}, "one")
    await _until_warm(store)
    assert len(_children()) == before + 1
    for _ in range(200):
        if not list((tmp_path / "data" / ".quarantine").iterdir()):
            break
        await asyncio.sleep(0.02)
    assert list((tmp_path / "data" / ".quarantine").iterdir()) == []
    assert len(_children()) == before
    await store.close()


async def test_close_ends_what_is_warm(tmp_path: Path) -> None:
    store = DiskObjects(tmp_path / "data", GitLimits(free_bytes_min=0))
    before = len(_children())
    register = await created(store)
    things = history()
    await pushed(store, register, pack_of(*things), {MAIN: things[-1].oid}, "one")
    await _until_warm(store)
    await store.close()
    assert len(_children()) == before
    assert list((tmp_path / "data" / ".quarantine").iterdir()) == []


async def test_a_warm_process_that_died_is_not_used(tmp_path: Path) -> None:
    store = DiskObjects(tmp_path / "data", GitLimits(free_bytes_min=0))
    register = await created(store)
    things = history()
    register = await pushed(store, register, pack_of(*things), {MAIN: things[-1].oid}, "one")
    await _until_warm(store)
    warm, _ = store._indexer._warm[store.path(str(NAME))]
    warm.process.spawned.process.kill()
    await asyncio.sleep(0.2)
    more = history(1, b"more\n", things[-1])
    await pushed(store, register, pack_of(*more), {MAIN: more[-1].oid}, "two")
    await store.close()


async def _until_warm(store: DiskObjects) -> None:
    for _ in range(500):
        if store._indexer._warm:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("no process was warmed")


def _children() -> list[int]:
    children: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        children += map(int, (task / "children").read_text().split())
    return children
