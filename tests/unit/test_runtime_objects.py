"""Packs on their way (O1–O4): staging, its stalls and stragglers, and what a refused or vanished push leaves behind."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.fakes import FakeQuarantine, pack_of
from node.ports.errors import Busy, DiskRefused, StorageError
from node.protocol.change import RefUpdate
from node.protocol.ids import ZERO_OID, NodeId, RefName
from node.protocol.messages import Fetch, Message, Prepare, Promise, Stage
from node.protocol.outcome import OutcomeKind
from node.storage import payloads
from node.storage.payloads import Stage as DiskStage
from node.storage.threads import Threads
from tests.unit.runtime_kit import MAIN, NAME, A, B, C, Cluster, chunks_of, oid, simulated, until

COMMITTED, ABORTED = OutcomeKind.COMMITTED, OutcomeKind.ABORTED
BIG = b"z" * 2_000_000
OTHER = RefName("refs/heads/other")


@simulated
async def test_a_large_pack_is_on_a_quorum_before_the_change_is_prepared() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        order: list[str] = []

        def rule(sender: NodeId, to: NodeId, message: Message) -> float:
            if isinstance(message, Stage | Prepare):
                order.append(type(message).__name__)
            return 0.001

        cluster.network.rule = rule
        lines: list[str] = []
        outcome = await cluster.push(A, 1, content=BIG, progress=lines.append)
        assert (outcome.kind, outcome.confirmed) == (COMMITTED, 3)
        assert order == ["Stage", "Stage", "Prepare", "Prepare"]
        assert lines == ["gitquorum: staging 2.0 MB on node-2, node-3"]


@simulated
async def test_a_slow_transfer_that_moves_is_waited_for_and_delays_nobody_else() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: 2.0 if isinstance(message, Fetch) else 0.001
        slow = asyncio.create_task(cluster.push(A, 1, content=BIG))
        await asyncio.sleep(1.0)
        began = asyncio.get_running_loop().time()
        assert (await cluster.push(A, 7, ref=OTHER, content=b"small")).kind is COMMITTED
        assert asyncio.get_running_loop().time() - began < 0.2
        outcome = await slow
        assert outcome.kind is COMMITTED
        assert asyncio.get_running_loop().time() - began > 30, "far longer than the deadline and the stall time"


@simulated
async def test_a_transfer_that_stands_still_is_given_up_after_the_stall_time() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Fetch) else 0.001
        began = asyncio.get_running_loop().time()
        outcome = await cluster.push(A, 1, content=BIG)
        assert outcome.kind is ABORTED
        assert not outcome.sent
        assert "node-2" in outcome.reason
        assert "node-3" in outcome.reason
        assert asyncio.get_running_loop().time() - began < 2 * 10.0 + 5.0
        assert await cluster.main(B) == 0


@simulated
async def test_a_straggler_is_waited_for_only_a_moment() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: 1.0 if isinstance(message, Fetch) and C in (sender, to) else 0.001
        began = asyncio.get_running_loop().time()
        outcome = await cluster.push(A, 1, content=BIG)
        assert outcome.kind is COMMITTED
        assert asyncio.get_running_loop().time() - began < 1.0
        await cluster.settle(120)
        assert len(await cluster.positions()) == 1


@simulated
async def test_one_peer_that_cannot_store_it_does_not_stop_a_quorum() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster[B].store.failures["stage_fetched"] = DiskRefused("disk full")
        outcome = await cluster.push(A, 1, content=BIG)
        assert outcome.kind is COMMITTED
        cluster[C].store.failures["stage_fetched"] = DiskRefused("disk full")
        outcome = await cluster.push(A, 2, 1, content=BIG + b"2")
        assert outcome.kind is ABORTED
        assert "node-2 could not stage" in outcome.reason
        assert "disk full" in outcome.reason


@simulated
async def test_a_large_push_without_a_quorum_in_reach_sends_nothing_at_all() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.brokerless = {A}
        await cluster.settle(1)
        cluster.network.sent.clear()
        outcome = await cluster.push(A, 1, content=BIG)
        assert (outcome.kind, outcome.sent) == (ABORTED, False)
        assert "nothing was sent" in outcome.reason
        assert not cluster.network.sent[A, "Stage"]


@simulated
async def test_a_large_push_that_is_stale_already_travels_nowhere_and_stays_nowhere() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1, content=BIG)
        cluster.network.sent.clear()
        outcome = await cluster.push(A, 2, content=BIG + b"2")
        assert (outcome.kind, outcome.sent) == (OutcomeKind.REJECTED, False)
        assert "fetch first" in dict(outcome.rejections)[MAIN]
        assert not cluster.network.sent[A, "Stage"]
        assert pack_of(BIG + b"2")[0].sha256 not in cluster[A].store.staged, "not even here"


@simulated
async def test_a_large_push_through_a_lagging_node_is_compared_with_what_a_majority_knows() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1)
        await cluster.settle(5)
        cluster.network.cut = {frozenset((C, A)), frozenset((C, B))}
        await cluster.push(A, 2, 1)
        cluster.network.cut = set()
        assert (await cluster.push(C, 3, 2, content=BIG)).kind is COMMITTED


@simulated
async def test_a_large_push_that_looks_stale_without_a_majority_is_left_to_the_coordinator() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1)
        cluster.network.cut = {frozenset((A, B)), frozenset((A, C)), frozenset((B, C))}
        outcome = await cluster.push(A, 2, content=BIG)
        assert outcome.kind is ABORTED
        assert "quorum" in outcome.reason


@simulated
async def test_a_large_atomic_push_with_one_stale_ref_travels_nowhere_and_is_recorded() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1)
        await cluster.settle(5)
        box = cluster[A]
        updates = [RefUpdate(OTHER, ZERO_OID, oid(2)), RefUpdate(MAIN, ZERO_OID, oid(2))]
        for atomic, kind in ((True, OutcomeKind.REJECTED), (False, COMMITTED)):
            cluster.network.sent.clear()
            txn = box.service.new_txn()
            quarantine = FakeQuarantine(box.store, BIG)
            outcome = await box.service.push(NAME, txn, quarantine, updates, actor="alice", atomic=atomic)
            assert outcome.kind is kind
            assert bool(cluster.network.sent[A, "Stage"]) != atomic
            record = await box.service.transaction(txn)
            assert record is not None
            assert record.outcome is kind


@simulated
async def test_a_cancelled_push_ends_its_transfers() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: 1.0 if isinstance(message, Fetch) else 0.001
        pushing = asyncio.create_task(cluster.push(A, 1, content=BIG))
        await asyncio.sleep(5)
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
        await asyncio.sleep(2)
        fetched = cluster.network.sent[A, "Fetch"]
        await asyncio.sleep(20)
        assert cluster.network.sent[A, "Fetch"] == fetched
        runtime = cluster[A].runtime
        assert runtime is not None
        assert not runtime.service._staging._transfers


@pytest.mark.parametrize("method", ["missing", "stage_inline"])
@simulated
async def test_a_voter_whose_store_fails_says_no_and_is_not_stuck(method: str) -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster[B].store.failures[method] = Busy("too many small packs")
        outcome = await cluster.push(A, 1, content=b"x")
        assert (outcome.kind, outcome.confirmed) == (COMMITTED, 2)
        assert not (await cluster[B].replica())._requests
        cluster[B].store.failures.clear()
        await cluster.settle()
        assert await cluster.main(B) == 1
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_store_that_breaks_in_an_unforeseen_way_leaves_no_machine_waiting() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster[B].store.failures["stage_inline"] = ZeroDivisionError("a bug")
        outcome = await cluster.push(A, 1, content=b"x")
        assert (outcome.kind, outcome.confirmed) == (COMMITTED, 2)
        assert not (await cluster[B].replica())._requests
        cluster[B].store.failures.clear()
        await cluster.settle(10)
        assert await cluster.main(B) == 1


@simulated
async def test_a_promise_is_given_even_if_the_objects_cannot_be_looked_for() -> None:
    """Otherwise the claim would hang, and with a broker its delivery would block the inbox."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: None if to == A else 0.001
        pushing = asyncio.create_task(cluster.push(A, 1, content=b"x"))
        await asyncio.sleep(0.05)
        await cluster[A].crash()
        await asyncio.gather(pushing, return_exceptions=True)
        promises: list[Promise] = []

        def rule(sender: NodeId, to: NodeId, message: Message) -> float:
            if isinstance(message, Promise):
                promises.append(message)
            return 0.001

        cluster.network.rule = rule
        for node in (B, C):
            cluster[node].store.failures["missing"] = StorageError("input/output error")
        await cluster.settle(6)
        assert promises
        assert not any(promise.staged for promise in promises)
        for node in (B, C):
            cluster[node].store.failures.clear()
        await cluster.settle(10)
        assert await cluster.main(B) == 1


@simulated
async def test_a_stream_that_a_peer_leaves_is_closed() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1, content=BIG)
        runtime = cluster[A].runtime
        assert runtime is not None
        pack, _ = pack_of(BIG)
        stream = await runtime.serving.on_fetch(B, Fetch(NAME.key, pack, False))
        assert stream is not None
        await anext(stream)
        assert cluster[A].store.streams_open == 1
        await stream.aclose()  # type: ignore[attr-defined]
        assert cluster[A].store.streams_open == 0


@simulated
async def test_fetches_that_are_never_read_give_their_turn_back() -> None:
    async with Cluster(fetches_max=2) as cluster:
        await cluster.create(A)
        register = await cluster.read(A)
        service = cluster[A].service
        for _ in range(5):
            stream = await service.upload_pack(register, protocol="", request=b"r")
            await stream.aclose()
            await stream.aclose()
        for _ in range(5):
            assert await chunks_of(await service.upload_pack(register, protocol="", request=b"r")) == b"pack for r"


# ---------------------------------------------------------------- the stage on disk


async def no_bytes(index: bool, offset: int) -> AsyncIterator[bytes]:
    raise AssertionError("it is here already")
    yield b""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskStage:
    monkeypatch.setattr(payloads, "UNCLAIMED_S", 0.2)
    return DiskStage(tmp_path, Threads(2), lambda: 1 << 30)


def put(stage: DiskStage, content: bytes) -> Path:
    pack, inline = pack_of(content)
    base = stage.folder / pack.sha256
    base.with_suffix(".pack").write_bytes(inline.pack)
    base.with_suffix(".idx").write_bytes(inline.index)
    return base.with_suffix(".pack")


async def test_a_staged_pack_that_no_change_ever_names_goes_by_itself(stage: DiskStage) -> None:
    """A push that was refused, or whose client went away: nobody tells the peers, and they keep nothing."""
    path = put(stage, BIG)
    await stage.fetch(pack_of(BIG)[0], no_bytes)
    assert path.exists()
    await until(lambda: not path.exists() and not stage._dying, every_s=0.05)
    await stage.close()


async def test_a_staged_pack_that_a_change_names_stays(stage: DiskStage) -> None:
    from tests.unit.storage_kit import change_of, register

    pack, _ = pack_of(BIG)
    path = put(stage, BIG)
    await stage.fetch(pack, no_bytes)
    change = change_of(register(), packs=[pack])
    stage.hold(change, [pack])
    await asyncio.sleep(1.5)
    assert path.exists()
    await stage.release(change)
    assert path.exists(), "a change that is just being formed again finds it"
    await stage.close()


async def test_a_pack_being_removed_counts_as_absent(stage: DiskStage) -> None:
    pack, _ = pack_of(BIG)
    put(stage, BIG)
    assert stage.has(pack)
    stage._dying.add(pack.sha256)
    assert not stage.has(pack)
    await stage.close()
