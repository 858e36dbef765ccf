"""A node that was away long: pages of history with the packs along, learned and applied many at a time (R2)."""

import asyncio
from collections.abc import Sequence

from node import applying
from node.catching_up import HISTORY_PAGE
from node.fakes import pack_of
from node.ports.errors import DiskRefused
from node.protocol.change import Change, PackRef
from node.protocol.ids import NodeId
from node.protocol.messages import INLINE_TOTAL_BYTES_MAX, History, HistoryPage, InlinePack, Message, Summaries
from node.protocol.outcome import OutcomeKind
from node.protocol.register import Register
from tests.unit.runtime_kit import NAME, A, B, C, Cluster, simulated

BEHIND = 150


async def leave_behind(cluster: Cluster, pushes: int = BEHIND, size: int = 0) -> None:
    """C goes, and this many pushes are made without it."""
    await cluster.create(A)
    await cluster.settle(2)
    await cluster[C].crash()
    await cluster.settle(3)
    for number in range(pushes):
        outcome = await cluster.push(A, number + 1, number, content=b"%d " % number + b"x" * size)
        assert outcome.kind is OutcomeKind.COMMITTED
    cluster.network.sent.clear()
    cluster.network.log.clear()


@simulated
async def test_small_packs_come_with_the_pages_and_nothing_is_fetched_one_by_one() -> None:
    async with Cluster() as cluster:
        await leave_behind(cluster)
        await cluster[C].start()
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1
        assert len(cluster[C].store.repositories[str(NAME)].packs) == BEHIND
        assert cluster.network.sent[C, "Fetch"] == 0
        pages = [m for _, to, m in cluster.network.log if to == C and isinstance(m, HistoryPage) and m.entries]
        assert len(pages) <= -(-BEHIND // HISTORY_PAGE) + 2
        assert all(sum(len(pack.pack) + len(pack.index) for pack in page.packs) <= INLINE_TOTAL_BYTES_MAX for page in pages)


@simulated
async def test_what_was_learned_survives_a_crash_before_it_was_applied() -> None:
    """The packs go into the journal with the commits: no word of the holders is needed any more."""
    async with Cluster() as cluster:
        await leave_behind(cluster, 20)
        await cluster[C].start()
        cluster[C].store.failures["apply"] = DiskRefused("disk failure")
        await cluster.settle(2)
        assert (await cluster[C].replica()).register.position.version == 21
        assert not cluster[C].store.repositories[str(NAME)].packs
        await cluster[C].crash()
        del cluster[C].store.failures["apply"]
        await cluster[A].crash()
        await cluster[B].crash()
        await cluster[C].start()
        assert len(cluster[C].store.repositories[str(NAME)].packs) == 20
        await cluster[A].start()
        await cluster[B].start()
        await cluster.settle(3)
        assert len(await cluster.positions()) == 1


@simulated
async def test_packs_that_do_not_come_along_are_fetched() -> None:
    async with Cluster() as cluster:
        await leave_behind(cluster, 20)
        for node in (A, B):
            cluster[node].store.failures["read_small"] = DiskRefused("disk failure")
        await cluster[C].start()
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1
        assert cluster.network.sent[C, "Fetch"] >= 20


@simulated
async def test_packs_beyond_what_may_ride_in_a_page_are_fetched() -> None:
    async with Cluster() as cluster:
        await leave_behind(cluster, 30, size=60_000)
        await cluster[C].start()
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1
        rode = INLINE_TOTAL_BYTES_MAX // 60_000
        assert 0 < cluster.network.sent[C, "Fetch"] <= 2 * (30 - rode + 2)


@simulated
async def test_a_pack_that_is_not_what_its_change_names_is_refused_and_another_holder_asked() -> None:
    async with Cluster() as cluster:
        await leave_behind(cluster, 5)

        async def rotten(name: str, packs: Sequence[PackRef]) -> tuple[InlinePack, ...]:
            return tuple(InlinePack(pack.sha256, b"rotten", b"rotten") for pack in packs)

        cluster[A].store.read_small = rotten  # type: ignore[method-assign]
        await cluster[C].start()
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1
        assert all(pack.pack != b"rotten" for pack in cluster[C].store.repositories[str(NAME)].packs.values())


@simulated
async def test_what_comes_before_a_change_whose_packs_nobody_has_is_learned() -> None:
    async with Cluster() as cluster:
        await leave_behind(cluster, 3)
        lost = b"L" * 100_000
        await cluster.push(A, 4, 3, content=lost)
        await cluster.push(A, 5, 4, content=b"after it")
        await cluster.settle(2)
        reference, _ = pack_of(lost)
        held = {node: cluster[node].store.repositories[str(NAME)].packs.pop(reference.sha256) for node in (A, B)}
        await cluster[C].start()
        await cluster.settle(5)
        assert (await cluster[C].replica()).register.position.version == 4
        cluster[B].store.repositories[str(NAME)].packs[reference.sha256] = held[B]
        await cluster.settle(10)
        assert (await cluster[C].replica()).applied == 6


@simulated
async def test_a_node_far_behind_overtakes_pushes_that_go_on_through_every_node() -> None:
    async with Cluster() as cluster:
        await leave_behind(cluster)
        stop = asyncio.Event()
        tip = BEHIND

        async def push_on() -> None:
            nonlocal tip
            while not stop.is_set():
                outcome = await cluster.push((A, B)[tip % 2], tip + 1, tip, content=b"%d" % tip)
                assert outcome.kind is OutcomeKind.COMMITTED
                tip += 1

        pushing = asyncio.create_task(push_on())
        await cluster[C].start()
        await cluster.settle(5)
        behind = tip + 1 - (await cluster[C].replica()).applied
        assert behind <= 2, "it follows pushes that go on"
        stop.set()
        await pushing
        await cluster.settle(3)
        assert len(await cluster.positions()) == 1
        assert tip > BEHIND + 20


@simulated
async def test_deletions_and_creations_on_the_way_are_applied_in_order() -> None:
    async with Cluster() as cluster:
        await leave_behind(cluster, 3)
        for _ in range(2):
            assert (await cluster.delete(A)).kind is OutcomeKind.COMMITTED
            assert (await cluster.create(A)).kind is OutcomeKind.COMMITTED
            for number in range(3):
                await cluster.push(A, number + 1, number, content=b"again %d" % number)
        await cluster[C].start()
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1
        assert len(cluster[C].store.repositories[str(NAME)].packs) == 3


@simulated
async def test_a_run_that_the_disk_refuses_is_applied_one_change_at_a_time() -> None:
    """What can be applied is, up to the change that cannot."""
    async with Cluster() as cluster:
        await leave_behind(cluster, 10)
        await cluster[C].start()
        store = cluster[C].store
        apply_all = store.apply_all
        sizes: list[int] = []

        async def picky(changes: Sequence[Change], after: Register, packs: Sequence[InlinePack]) -> None:
            sizes.append(len(changes))
            if len(changes) > 1 or (after.position.version == 8 and sizes.count(1) < 9):
                raise DiskRefused("not now")
            await apply_all(changes, after, packs)

        store.apply_all = picky  # type: ignore[method-assign]
        await cluster.settle(10)
        assert max(sizes) > 1
        assert (await cluster[C].replica()).applied == 11
        assert len(await cluster.positions()) == 1
        assert not cluster[C].service.state().problem


@simulated
async def test_a_holder_that_falls_silent_does_not_keep_a_node_from_catching_up_at_another() -> None:
    """Found by ``gitquorum drill``: A is frozen just when C asks it for what it lacks. B prepares on top, and C's vote waited
    for A's answer, so that no push got through for two deadlines."""
    async with Cluster() as cluster:
        await leave_behind(cluster, 3)
        frozen: set[NodeId] = set()
        cut = True

        def rule(sender: NodeId, to: NodeId, message: Message) -> float | None:
            return None if frozen & {sender, to} or (cut and isinstance(message, History | Summaries)) else 0.001

        cluster.network.rule = rule
        await cluster[C].start()
        await cluster.settle(1)
        frozen, cut = {A}, False
        replica = await cluster[C].replica()
        assert replica.applied == 1
        replica.catch_up(4, (A,))
        assert await replica.wait_applied(4, 1.0)


@simulated
async def test_what_is_applied_is_synced_while_a_long_catch_up_goes_on() -> None:
    """Large packs leave the stage a minute after they were placed: they may not wait for an end that is an hour away."""
    async with Cluster() as cluster:
        await leave_behind(cluster, 20)
        await cluster[C].start()
        store = cluster[C].store
        apply_all, sync = store.apply_all, store.sync
        synced: list[int] = []

        async def slow(changes: Sequence[Change], after: Register, packs: Sequence[InlinePack]) -> None:
            await asyncio.sleep(3)
            await apply_all(changes[:1], after, packs)

        async def count(name: str) -> None:
            synced.append((await cluster[C].replica()).applied)
            await sync(name)

        store.apply_all, store.sync = slow, count  # type: ignore[method-assign]
        monkey, applying.RUN_MAX = applying.RUN_MAX, 1
        try:
            await cluster.settle(30)
        finally:
            applying.RUN_MAX = monkey
        assert len(synced) > 5
        assert synced[0] < 21
