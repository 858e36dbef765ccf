"""What is committed here and was never applied: nothing after it is served before it. A repair begins from what is durable."""

import asyncio
from typing import Any

import pytest

from node.ports.errors import DiskFailed, DiskFull, ReadUnavailable
from node.ports.service import Consistency
from node.protocol.acceptor import CommitOp
from node.protocol.outcome import OutcomeKind
from node.protocol.register import Register
from tests.unit.runtime_kit import NAME, A, B, C, Cluster, simulated

KEY = NAME.key
COMMITTED = OutcomeKind.COMMITTED
FAST: dict[str, Any] = {"scrub_bytes_per_s": 1e9}


async def gapped(cluster: Cluster) -> None:
    """B has committed version 2 and never applied it; its pack is nowhere on B's disk."""
    await cluster.create()
    await cluster.settle(3)
    cluster[B].store.failures["apply"] = DiskFull("disk full")
    assert (await cluster.push(A, 1, content=b"L" * 200_000)).kind is COMMITTED
    await cluster.settle(2)
    assert (await cluster[B].replica()).register.position.version == 2
    await cluster[B].crash()
    cluster[B].store.failures.clear()
    cluster[B].store.staged.clear()


@simulated
async def test_objects_of_a_committed_change_that_are_gone_are_fetched_before_what_comes_after_it_is_applied() -> None:
    async with Cluster(**FAST) as cluster:
        await gapped(cluster)
        await cluster[B].start()
        await cluster.settle(1)
        assert (await cluster.push(A, 2, 1, content=b"small")).kind is COMMITTED
        await cluster.settle(10)
        assert await cluster.main(B) == 2
        packs = cluster[B].store.repositories[str(NAME)].packs
        assert packs.keys() == cluster[A].store.repositories[str(NAME)].packs.keys()
        assert len(await cluster.positions()) == 1


@simulated
async def test_an_idle_repository_with_such_a_change_is_made_whole_by_the_scrub() -> None:
    async with Cluster(**FAST) as cluster:
        await gapped(cluster)
        await cluster[B].start()
        runtime = cluster[B].runtime
        assert runtime is not None
        runtime.care.begin(None)
        await cluster.settle(30)
        assert cluster[B].store.repositories[str(NAME)].packs
        assert len(await cluster.positions()) == 1


@simulated
async def test_while_nobody_has_them_nothing_after_it_is_served() -> None:
    async with Cluster(**FAST) as cluster:
        await gapped(cluster)
        kept = {}
        for node in (A, C):
            kept[node] = dict(cluster[node].store.repositories[str(NAME)].packs)
            cluster[node].store.repositories[str(NAME)].packs.clear()
            cluster[node].store.staged.clear()
        await cluster[B].start()
        await cluster.settle(1)
        assert (await cluster.push(A, 2, 1, content=b"small")).kind is COMMITTED
        await cluster.settle(5)
        for consistency in Consistency:
            with pytest.raises(ReadUnavailable):
                await cluster.read(B, NAME, consistency)
        for node in (A, C):
            cluster[node].store.repositories[str(NAME)].packs.update(kept[node])
        await cluster.settle(60)
        assert await cluster.main(B) == 2


@simulated
async def test_a_deletion_ends_the_search_for_what_nobody_has() -> None:
    async with Cluster(**FAST) as cluster:
        await gapped(cluster)
        for node in (A, C):
            cluster[node].store.repositories[str(NAME)].packs.clear()
            cluster[node].store.staged.clear()
        await cluster[B].start()
        await cluster.settle(1)
        assert (await cluster.delete(A)).kind is COMMITTED
        await cluster.create(A)
        await cluster.settle(20)
        assert len(await cluster.positions()) == 1


# ---------------------------------------------------------------- repair


@simulated
async def test_what_is_committed_while_a_replica_is_repaired_is_not_taken_for_applied() -> None:
    """A page of history was being learned when the replica was set aside; its disk is full, so nothing is applied at once."""
    async with Cluster(**FAST) as cluster:
        await cluster.create()
        assert (await cluster.push(A, 1, content=b"first")).kind is COMMITTED
        await cluster.settle(3)
        box, go = cluster[B], asyncio.Event()
        replica = await box.replica()
        cluster.network.down.add(B)
        assert (await cluster.push(A, 2, 1, content=b"second")).kind is COMMITTED
        (entry,) = await cluster[A].journal.history(KEY, 2, 1)
        (pack,) = entry.change.packs
        inline = cluster[A].store.repositories[str(NAME)].packs[pack.sha256]

        async def learn() -> None:
            await go.wait()
            box.store.failures["apply"] = DiskFull("disk full")
            await box.store.stage_inline([(pack, inline)])
            await replica._write(CommitOp(KEY, entry.change), entry.certificate, (inline,))

        replica._spawn(learn())
        look = box.store.verify_objects

        async def looked(name: str) -> None:
            found = await look(name)
            go.set()
            await asyncio.sleep(0.01)
            assert found is None

        box.store.verify_objects = looked  # type: ignore[method-assign]
        assert box.runtime is not None
        box.store.repositories[str(NAME)].refs.clear()
        await box.runtime.care._repair.mend(KEY, [], await box.store.verify_refs(replica.register))
        box.store.failures.clear()
        cluster.network.down.clear()
        await cluster.settle(20)
        packs = box.store.repositories[str(NAME)].packs
        assert packs.keys() == cluster[A].store.repositories[str(NAME)].packs.keys()
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_replica_that_is_loaded_while_it_is_set_aside_is_set_aside_too() -> None:
    async with Cluster(**FAST) as cluster:
        await cluster.create()
        await cluster.settle(3)
        box = cluster[B]
        assert box.runtime is not None
        await box.runtime._registry.drop("a test")
        stop = box.journal.stop_voting

        async def stopped(*arguments: str) -> None:
            await box.replica()  # somebody reads at this moment
            await stop(*arguments)  # type: ignore[arg-type]

        box.journal.stop_voting = stopped  # type: ignore[method-assign, assignment]
        await box.runtime.care._repair._set_aside(KEY, "damaged: a test says so")
        assert (await box.replica()).stopped == "damaged: a test says so"


@simulated
async def test_what_an_fsync_in_a_repair_found_no_room_for_is_written_anew_before_the_next_one() -> None:
    """[it could be read back, so it was taken back after an fsync that had nothing left to write]"""
    async with Cluster(**FAST) as cluster:
        await cluster.create()
        assert (await cluster.push(A, 1, content=b"first")).kind is COMMITTED
        await cluster.settle(3)
        box = cluster[B]
        assert box.runtime is not None
        calls: list[str] = []
        materialise, sync = box.store.materialise, box.store.sync

        async def written(register: Register) -> None:
            calls.append("write")
            await materialise(register)

        async def synced(name: str) -> None:
            calls.append("sync")
            await sync(name)

        box.store.materialise, box.store.sync = written, synced  # type: ignore[method-assign]
        box.store.repositories[str(NAME)].refs.clear()
        box.store.failures["sync"] = DiskFull("disk full")
        box.runtime.care.begin(None)
        await cluster.settle(5)
        assert box.runtime.care.state().repaired == 0
        calls.clear()
        box.store.failures.clear()
        await cluster.settle(60)
        assert box.runtime.care.state().repaired == 1
        assert calls[-2:] == ["write", "sync"]
        assert not box.journal.failed


@simulated
async def test_a_failed_fsync_in_a_repair_ends_this_nodes_votes_and_is_not_tried_again() -> None:
    async with Cluster(**FAST) as cluster:
        await cluster.create()
        assert (await cluster.push(A, 1, content=b"first")).kind is COMMITTED
        await cluster.settle(3)
        box = cluster[B]
        assert box.runtime is not None
        box.store.repositories[str(NAME)].refs.clear()
        box.store.failures["sync"] = DiskFailed("disk failure: Input/output error")
        box.runtime.care.begin(None)
        await cluster.settle(5)
        box.store.failures.clear()
        assert "could not be made durable" in box.journal.failed
        await cluster.settle(60)
        assert box.runtime.care.state().repaired == 0
        await box.crash()
