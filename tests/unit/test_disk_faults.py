"""What a node does when its disk fails or is full: docs/decisions/0015-disk-faults.md."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.liveness import Liveness
from node.ports.errors import DiskFailed, DiskFull, PeerUnreachable
from node.protocol.ids import NodeId, RefName
from node.protocol.outcome import OutcomeKind
from node.storage import files, payloads
from node.storage import objects as objects_module
from node.storage.files import write_all, write_anew
from node.storage.git import GitLimits
from node.storage.objects import DiskObjects
from node.storage.packfile import describe
from node.storage.threads import refusal
from node.system import SystemClock
from tests.unit.runtime_kit import A, B, C, Cluster, simulated
from tests.unit.storage_kit import MAIN, NAME, change_of, created, git, history, moved, pack_of, pushed, receive

COMMITTED, ABORTED = OutcomeKind.COMMITTED, OutcomeKind.ABORTED


# ---------------------------------------------------------------- the node


@simulated
async def test_a_failed_fsync_of_what_was_applied_ends_this_nodes_votes_and_says_why() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(3)
        cluster[B].store.failures["sync"] = DiskFailed("disk failure: Input/output error")
        assert (await cluster.push(A, 1, content=b"x")).kind is COMMITTED
        await cluster.settle(3)
        cluster[B].store.failures.clear()
        state = cluster[B].service.state()
        assert (state.ready, state.write_ready, state.failed) == (False, False, True)
        assert state.problem.startswith("disk failed: ")
        assert "could not be made durable: disk failure: Input/output error" in state.problem
        outcome = await cluster.push(A, 2, 1, content=b"y")
        assert outcome.kind is COMMITTED
        refusal = next(str(vote) for vote in outcome.votes if "node-2" in str(vote))
        assert "disk failed" in refusal or "no answer" in refusal
        assert await cluster[B].journal.unsynced(), "the journal keeps what the disk may have lost"
        own = await cluster.push(B, 3, 2, content=b"z")
        assert (own.kind, own.sent) == (ABORTED, False)
        assert "disk failed" in own.reason
        await cluster[B].crash()


@simulated
async def test_a_failed_node_votes_again_when_it_is_started_again_and_has_replayed() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(3)
        cluster[B].store.failures["sync"] = DiskFailed("disk failure: Input/output error")
        await cluster.push(A, 1, content=b"x")
        await cluster.settle(3)
        cluster[B].store.failures.clear()
        await cluster[B].crash()
        await cluster[B].start()
        await cluster.settle(5)
        assert cluster[B].service.state().write_ready
        await cluster[B].journal.flush()
        assert not await cluster[B].journal.unsynced()
        assert (await cluster.push(B, 2, 1, content=b"y")).kind is COMMITTED


@simulated
async def test_a_sync_that_met_a_full_disk_gets_everything_anew_before_it_is_tried_again() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(3)
        store = cluster[A].store
        store.failures["sync"] = DiskFull("disk full")
        await cluster.push(A, 1, content=b"x")
        await cluster.settle(2)
        placed: list[str] = []
        apply, materialise = store.apply, store.materialise

        async def noted_apply(*args: object) -> None:
            placed.append("apply")
            await apply(*args)  # type: ignore[arg-type]

        async def noted_materialise(register: object) -> None:
            placed.append("materialise")
            await materialise(register)  # type: ignore[arg-type]

        store.apply, store.materialise = noted_apply, noted_materialise  # type: ignore[method-assign, assignment]
        store.failures.clear()
        await cluster.settle(30)
        assert placed == ["apply", "materialise"]
        await cluster[A].journal.flush()
        assert not await cluster[A].journal.unsynced()
        assert not cluster[A].service.state().failed


@simulated
async def test_a_fault_of_ours_in_a_sync_is_not_the_last_of_them() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(3)
        cluster[A].store.failures["sync"] = KeyError("a fault of ours")
        await cluster.push(A, 1, content=b"x")
        await cluster.settle(3)
        cluster[A].store.failures.clear()
        await cluster.push(A, 2, 1, content=b"y")
        await cluster.settle(5)
        await cluster[A].journal.flush()
        assert not await cluster[A].journal.unsynced()


@simulated
async def test_a_full_disk_sets_no_replica_aside_however_long_it_lasts() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(3)
        cluster[C].store.failures["apply"] = DiskFull("disk full")
        await cluster.push(A, 1, content=b"x")
        await cluster.settle(120)
        replica = await cluster[C].replica()
        assert (replica.stopped, replica.applied) == ("", 1)
        cluster[C].store.failures.clear()
        await cluster.settle(10)
        assert replica.applied == 2
        assert len(await cluster.positions()) == 1


@simulated
async def test_below_the_watermark_deletions_go_on_and_creations_do_not() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        for box in cluster.boxes.values():
            box.store.free = 1024
        outcome = await cluster.push(A, 1, content=b"x")
        assert (outcome.kind, outcome.sent) == (ABORTED, False)
        assert "disk full: 0 MiB are free, 256 MiB are needed (free_bytes_min)" in outcome.reason
        assert not cluster[A].service.state().write_ready
        assert cluster[A].service.state().ready
        await cluster.delete(A)


class SilentPeers:
    async def ask(self, *args: object, **kwargs: object) -> None:
        raise PeerUnreachable("nobody is there")


async def test_the_failure_detector_ends_when_it_is_told_to_even_while_somebody_doubts() -> None:
    """Python 3.11's ``wait_for`` forgot the cancellation, and the node never stopped."""
    peer = NodeId("node-2")
    liveness = Liveness(
        SilentPeers(),  # type: ignore[arg-type]
        SystemClock(),
        [(peer, "http://node-2.example")],
        heartbeat_s=30.0,
        suspect_after_s=60.0,
        on_change=lambda: None,
        on_pong=lambda node, pong: None,
    )
    running = asyncio.create_task(liveness.run())
    await asyncio.sleep(0.01)
    liveness.doubt(peer)
    await asyncio.sleep(0)  # the event is set and its waiter woken, nobody has looked at it yet
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=5)
    assert done == {running}


# ---------------------------------------------------------------- the store


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[DiskObjects]:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0))
    yield store
    await store.close()


class FailingSync:
    """fsync fails once, and then succeeds as if nothing had been."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.at = at
        self.count = 0
        real = files.fsync

        def fsync(path: Path) -> None:
            self.count += 1
            if self.count == self.at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(path)

        monkeypatch.setattr(payloads, "fsync", fsync)


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_large_push_whose_fsync_fails_is_refused_and_nothing_of_it_stays(
    objects: DiskObjects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: int
) -> None:
    register = await created(objects)
    things = history(1, os.urandom(100_000))
    failing = FailingSync(monkeypatch, at)
    async with await receive(objects, pack_of(*things)) as received:
        with pytest.raises(DiskFailed):
            await received.promote()
        assert failing.count == at
        change = change_of(register, packs=received.packs)
        assert await objects.missing(change) == received.packs
    assert not list((tmp_path / "data" / ".stage").iterdir())


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_fetched_pack_whose_fsync_fails_is_fetched_anew_not_believed(
    objects: DiskObjects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: int
) -> None:
    path = tmp_path / "source.pack"
    path.write_bytes(pack_of(*history(1, os.urandom(100_000))))
    name = git("index-pack", path).strip().split()[-1]
    pack = describe(f"pack-{name}", path, path.with_suffix(".idx"))
    contents = {False: path.read_bytes(), True: path.with_suffix(".idx").read_bytes()}
    asked: list[tuple[bool, int]] = []

    async def read(index: bool, offset: int) -> AsyncIterator[bytes]:
        asked.append((index, offset))
        yield contents[index][offset:]

    FailingSync(monkeypatch, at)
    with pytest.raises(DiskFailed):
        await objects.stage_fetched(pack, read)
    assert not list((tmp_path / "data" / ".stage").iterdir())
    await objects.stage_fetched(pack, read)
    assert asked == [(False, 0), (True, 0)] * 2, "all of it came again"


async def test_replay_writes_into_new_files_whatever_can_be_read_back(objects: DiskObjects) -> None:
    """After a failed fsync the page cache still shows what the disk never got."""
    before = await created(objects)
    things = history(1)
    after = await pushed(objects, before, pack_of(*things), {MAIN: things[-1].oid}, "one")
    folder = objects.path(after.name)
    watched = [folder / "HEAD", folder / "config", *(folder / "objects" / "pack").iterdir()]
    inodes = {path: path.stat().st_ino for path in watched}
    held = [path.open("rb") for path in watched]  # so that no inode number is used again
    async with await receive(objects, pack_of(*things), "again") as received:
        change = moved(before, {MAIN: things[-1].oid}, packs=received.packs, txn="one")
        await objects.apply(after, change, after, received.inline)
        await objects.materialise(after)
    for file in held:
        file.close()
    assert [path.name for path, inode in inodes.items() if path.stat().st_ino == inode] == []


def test_a_write_that_is_taken_in_part_goes_on_and_one_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, content[:3]))
    write_anew(tmp_path / "whole", tmp_path / "whole.lock", b"0123456789")
    assert (tmp_path / "whole").read_bytes() == b"0123456789"
    taken = [4]

    def full(descriptor: int, content: memoryview) -> int:
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content[: taken.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        write_anew(tmp_path / "whole", tmp_path / "whole.lock", b"abcdefghij")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert (tmp_path / "whole").read_bytes() == b"0123456789"
    with (tmp_path / "rest").open("wb") as file, pytest.raises(OSError, match="No space"):
        write_all(file.fileno(), b"x")


async def test_a_link_onto_itself_leaves_no_temporary_file(objects: DiskObjects) -> None:
    """rename(2) between two links of one file does nothing."""
    register = await created(objects)
    things = history(1, os.urandom(100_000))
    async with await receive(objects, pack_of(*things)) as received:
        await received.promote()
        change = moved(register, {RefName(MAIN): things[-1].oid}, packs=received.packs)
        after = register.applied(change)
        await objects.apply(register, change, after, ())
        packs = objects.path(after.name) / "objects" / "pack"
        (index,) = packs.glob("*.idx")
        index.unlink()  # as after a crash between the two
        await objects.apply(register, change, after, ())
        assert sorted(path.suffix for path in packs.iterdir()) == [".idx", ".pack"]


# ---------------------------------------------------------------- what is no failure of the disk


async def test_an_index_over_packs_that_cannot_be_written_is_no_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unstarted(*_: object) -> bool:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(objects_module, "write_index", unstarted)
    monkeypatch.setattr(objects_module, "NEW_PACKS", 0)
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0))
    try:
        await created(store)
        await store.sync(str(NAME))
    finally:
        await store.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
def test_what_this_process_lacks_is_no_failure_of_the_disk(number: int) -> None:
    assert not isinstance(refusal(OSError(number, os.strerror(number))), DiskFailed | DiskFull)
    assert isinstance(refusal(OSError(errno.EIO, os.strerror(errno.EIO))), DiskFailed)
