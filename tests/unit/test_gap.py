"""What is committed here and was never applied: nothing after it is served before it. A repair begins from what is durable."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from node.ports.errors import DamagedPart, DiskFailed, DiskFull, JournalDamaged, ReadUnavailable
from node.ports.service import Consistency
from node.protocol.acceptor import CommitOp
from node.protocol.change import Change
from node.protocol.messages import InlinePack
from node.protocol.outcome import OutcomeKind
from node.protocol.register import Register
from node.protocol.standing import State
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


@pytest.mark.parametrize("update_first", [False, True])
@simulated
async def test_a_deletion_ends_the_search_for_what_nobody_has(update_first: bool) -> None:
    """[a deletion behind another change did not]"""
    async with Cluster(**FAST) as cluster:
        await gapped(cluster)
        for node in (A, C):
            cluster[node].store.repositories[str(NAME)].packs.clear()
            cluster[node].store.staged.clear()
        await cluster[B].start()
        await cluster.settle(1)
        if update_first:
            assert (await cluster.push(A, 2, 1, content=b"small")).kind is COMMITTED
        assert (await cluster.delete(A)).kind is COMMITTED
        await cluster.create(A)
        await cluster.settle(60)
        assert len(await cluster.positions()) == 1


@simulated
async def test_who_rejoins_with_a_gap_has_it_still_and_closes_it_as_a_member() -> None:
    """[the page of history after it was taken for the end of it, and strong reads were served without its objects]"""
    async with Cluster(**FAST) as cluster:
        await gapped(cluster)
        pushes = 300  # three pages of history
        for number in range(2, pushes):
            assert (await cluster.push(A, number, number - 1)).kind is COMMITTED
        await cluster.settle(2)
        box = cluster[B]
        box.journal.lives.standing = replace(box.journal.lives.standing, state=State.REJOINING, reason="a test says so")
        await box.start()
        await cluster.settle(30)
        assert await cluster.main(B) == pushes - 1
        packs = box.store.repositories[str(NAME)].packs
        assert packs.keys() == cluster[A].store.repositories[str(NAME)].packs.keys()


@simulated
async def test_what_a_failed_sync_was_about_is_written_anew_also_by_another_object_of_this_replica() -> None:
    """[its node rejoined meanwhile, and the next fsync proved nothing and was believed]"""
    async with Cluster(**FAST) as cluster:
        await cluster.create()
        await cluster.settle(3)
        box = cluster[B]
        assert box.runtime is not None
        calls: list[str] = []
        apply_all, sync = box.store.apply_all, box.store.sync

        async def applied(changes: Sequence[Change], after: Register, packs: Sequence[InlinePack]) -> None:
            calls.extend(f"apply {change.position.version}" for change in changes)
            await apply_all(changes, after, packs)

        async def synced(name: str) -> None:
            calls.append("sync failed" if box.store.failures else "sync")
            await sync(name)

        box.store.apply_all, box.store.sync = applied, synced  # type: ignore[method-assign]
        box.store.failures["sync"] = DiskFull("disk full")
        assert (await cluster.push(A, 1, content=b"first")).kind is COMMITTED
        await cluster.settle(1.5)
        assert calls == ["apply 2", "sync failed"]
        box.runtime.membership.lose("a test says so")
        await cluster.settle(1)
        box.store.failures.clear()
        await cluster.settle(10)
        assert not box.runtime.membership.refusal
        assert (await cluster.push(A, 2, 1, content=b"second")).kind is COMMITTED
        await cluster.settle(10)
        assert "apply 2" in calls[2 : calls.index("sync")]


@simulated
async def test_after_a_full_disk_a_deletion_is_not_applied_again_to_what_was_created_after_it() -> None:
    """[its only local copy was thrown away, the replica served none of it, and synced no more]"""
    async with Cluster(**FAST) as cluster:
        await cluster.create()
        await cluster.settle(3)
        box = cluster[B]
        box.store.failures["sync"] = DiskFull("disk full")
        assert (await cluster.delete(A)).kind is COMMITTED
        assert (await cluster.create(A)).kind is COMMITTED
        assert (await cluster.push(A, 1, content=b"L" * 200_000)).kind is COMMITTED
        await cluster.settle(5.5)
        assert not box.store.staged, "the stage has let go of it"
        fetched = cluster.network.sent[B, "Fetch"]
        box.store.failures.clear()
        await cluster.settle(120)
        assert await cluster.main(B) == 1
        assert box.store.repositories[str(NAME)].packs
        assert cluster.network.sent[B, "Fetch"] == fetched
        await box.journal.flush()
        assert not await box.journal.unsynced()


@simulated
async def test_what_is_gone_when_it_has_to_be_written_anew_is_fetched() -> None:
    async with Cluster(**FAST) as cluster:
        await cluster.create()
        await cluster.settle(3)
        box = cluster[B]
        box.store.failures["sync"] = DiskFull("disk full")
        assert (await cluster.push(A, 1, content=b"L" * 200_000)).kind is COMMITTED
        await cluster.settle(2)
        box.store.repositories[str(NAME)].packs.clear()
        box.store.staged.clear()
        box.store.failures.clear()
        await cluster.settle(30)
        assert box.store.repositories[str(NAME)].packs
        assert await cluster.main(B) == 1
        await box.journal.flush()
        assert not await box.journal.unsynced()


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


@pytest.mark.parametrize("alone", [False, True])
@simulated
async def test_a_repository_that_was_created_again_is_not_deleted_by_the_mending_of_its_value(alone: bool) -> None:
    """[its marks fell to nothing, so its last deletion was applied again; its packs were nowhere else on that disk]"""
    async with Cluster(**FAST) as cluster:
        await cluster.create()
        await cluster.delete(A)
        await cluster.create()
        assert (await cluster.push(A, 1, content=b"first")).kind is COMMITTED
        await cluster.settle(5)
        box = cluster[B]
        await box.journal.flush()
        box.store.small.clear()
        before = dict(box.store.repositories[str(NAME)].packs)
        assert before
        assert not await box.journal.unsynced()
        care = box.journal.care
        mend_value = care.mend_value

        async def mended(value: Register) -> bool:
            row = box.journal._rows[KEY]
            row.applied = row.synced = 0
            row.stopped = "damaged: the journal was mended, the repository is looked at"
            return await mend_value(value)

        care.mend_value = mended  # type: ignore[method-assign]
        if alone:
            await cluster[A].crash()
            await cluster[C].crash()
        fetched = cluster.network.sent[B, "Fetch"]
        box.journal.damaged[KEY, DamagedPart.VALUE, 0] = JournalDamaged(KEY, DamagedPart.VALUE, "a test says so")
        await cluster.settle(120)
        assert box.store.repositories[str(NAME)].packs == before
        assert cluster.network.sent[B, "Fetch"] == fetched
