"""R5 on whole nodes: a read that began after a push was acknowledged sees it, on every node, whatever the network does."""

import asyncio
import contextlib
import random
from collections.abc import Callable

import pytest

from node.ports import ReadUnavailable
from node.protocol.ids import NodeId
from node.protocol.messages import Abort, Claim, Commit, History, Message, Prepare, Query
from node.protocol.outcome import OutcomeKind
from tests.unit.runtime_kit import A, B, C, Cluster, simulated, until

Rule = Callable[[NodeId, NodeId, Message], float | None]


def lost(*kinds: type[Message]) -> Rule:
    return lambda sender, to, message: None if isinstance(message, kinds) else 0.001


def late(delay_s: float, *kinds: type[Message]) -> Rule:
    return lambda sender, to, message: delay_s if isinstance(message, kinds) else 0.001


@pytest.mark.parametrize("rule", [lost(Commit), late(1.5, Commit), late(0.02, Query), lost(History)], ids=str)
@simulated
async def test_a_read_on_another_node_sees_an_acknowledged_push(rule: Rule) -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = rule
        for number in range(1, 6):
            writer, *readers = random.Random(number).sample((A, B, C), 3)
            main = await cluster.main(writer)
            assert main == number - 1
            assert (await cluster.push(writer, number, main, content=b"%d" % number)).kind is OutcomeKind.COMMITTED
            assert [await cluster.main(node) for node in readers] == [number, number]


@simulated
async def test_a_node_that_missed_everything_serves_nothing_old() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.cut = {frozenset((C, A)), frozenset((C, B))}
        for number in range(1, 100):
            assert (await cluster.push(A, number, number - 1, content=b"%d" % number)).kind is OutcomeKind.COMMITTED
        cluster.network.cut = {frozenset((C, A))}
        await cluster.settle(0.6)
        assert await cluster.main(C) == 99


@simulated
async def test_a_read_with_one_peer_down_needs_only_the_other() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1)
        await cluster[C].crash()
        began = asyncio.get_running_loop().time()
        assert await cluster.main(B) == 1
        assert asyncio.get_running_loop().time() - began < 0.1


@simulated
async def test_a_read_while_the_change_is_being_aborted_ends_without_it() -> None:
    """The own acceptance is a doubt; the abort ends it, and the read need not time out."""
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lost(Prepare)
        pushing = asyncio.create_task(cluster.push(A, 1))
        await asyncio.sleep(0.2)
        assert await cluster.main(A) == 0
        assert (await pushing).kind is OutcomeKind.ABORTED


@simulated
async def test_a_read_that_meets_a_doubt_waits_and_sees_what_it_became() -> None:
    """A is dead between its votes and its decision; a read on C asks B, who has accepted."""
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: None if sender == B and to == A else 0.001
        pushing = asyncio.create_task(cluster.push(A, 1, content=b"x"))
        await asyncio.sleep(0.02)
        await cluster[A].crash()
        await asyncio.gather(pushing, return_exceptions=True)
        cluster.network.rule = lambda sender, to, message: 0.001
        began = asyncio.get_running_loop().time()
        seen = await cluster.main(C)
        assert asyncio.get_running_loop().time() - began <= 2 * 2.0 + 1.0
        assert await cluster.main(B) == seen
        await cluster[A].start()
        await cluster.settle()
        assert await cluster.main(A) == seen
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_doubt_that_its_holder_cannot_settle_is_settled_for_a_reader() -> None:
    """B holds the change but can send nothing over its broker; the reader's node settles it (C3)."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: None if to == C and isinstance(message, Prepare | Claim) else 0.001
        holder = await cluster[B].replica()
        pushing = asyncio.create_task(cluster.push(A, 1, content=b"x"))
        await until(lambda: holder.in_doubt)
        await cluster[A].crash()
        await asyncio.gather(pushing, return_exceptions=True)
        cluster.network.rule = lambda sender, to, message: (
            None if sender == B and isinstance(message, Claim | Prepare | Abort) else 0.001
        )
        began = asyncio.get_running_loop().time()
        assert await cluster.main(C) == 1
        assert asyncio.get_running_loop().time() - began < 5.0


@simulated
async def test_a_read_without_a_majority_is_refused_in_time_and_names_the_silent() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.cut = {frozenset((C, A)), frozenset((C, B))}
        began = asyncio.get_running_loop().time()
        with pytest.raises(ReadUnavailable, match=r"no answer from node-1, node-2"):
            await cluster.main(C)
        assert asyncio.get_running_loop().time() - began <= 1.1
        await cluster.settle(5)
        began = asyncio.get_running_loop().time()
        with pytest.raises(ReadUnavailable, match=r"no answer from node-1, node-2"):
            await cluster.main(C)
        assert asyncio.get_running_loop().time() == began, "suspected peers are not waited for"


@simulated
async def test_reads_go_on_while_the_broker_is_gone() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1)
        cluster.network.brokerless = {A, B, C}
        await cluster.settle(2)
        refused = await cluster.push(A, 2, 1)
        assert (refused.kind, refused.sent) == (OutcomeKind.ABORTED, False)
        assert [await cluster.main(node) for node in (A, B, C)] == [1, 1, 1]
        cluster.network.brokerless = set()
        await cluster.settle(1)
        assert (await cluster.push(A, 2, 1)).kind is OutcomeKind.COMMITTED


@simulated
async def test_a_node_that_lost_only_its_own_broker_refuses_writes_at_once_and_the_others_do_not_wait_for_it() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.brokerless = {C}
        await cluster.settle(2)
        assert (await cluster.push(C, 1)).sent is False
        began = asyncio.get_running_loop().time()
        assert (await cluster.push(A, 1)).confirmed == 2
        assert asyncio.get_running_loop().time() - began < 0.1
        assert await cluster.main(C) == 1


@pytest.mark.parametrize("seed", range(12))
@simulated
async def test_no_read_is_ever_older_than_an_acknowledged_push(seed: int) -> None:
    """Writers and readers on all nodes, messages lost and late, one node at a time cut off: a checker of real-time order."""
    chance = random.Random(seed)
    acknowledged = 0
    async with Cluster(read_timeout_s=3.0) as cluster:
        await cluster.create(A)

        def rule(sender: NodeId, to: NodeId, message: Message) -> float | None:
            if chance.random() < 0.08:
                return None
            return chance.random() * (1.0 if chance.random() < 0.1 else 0.02)

        cluster.network.rule = rule
        seen: list[tuple[int, int]] = []
        ended = asyncio.Event()

        async def write() -> None:
            nonlocal acknowledged
            now, number = 0, 0
            while number < 40:
                node = chance.choice((A, B, C))
                number += 1
                outcome = await cluster.push(node, number, now, content=b"%d" % number)
                if outcome.kind is OutcomeKind.COMMITTED:
                    acknowledged = now = number
                else:
                    now = await read_until_it_works(node)
            ended.set()

        async def read_until_it_works(node: NodeId) -> int:
            while True:
                try:
                    return await cluster.main(node)
                except ReadUnavailable:
                    await asyncio.sleep(0.05)

        async def read() -> None:
            while not ended.is_set():
                before = acknowledged
                with contextlib.suppress(ReadUnavailable):
                    seen.append((before, await cluster.main(chance.choice((A, B, C)))))
                await asyncio.sleep(chance.random() * 0.1)

        async def cut() -> None:
            while not ended.is_set():
                alone = chance.choice((A, B, C))
                cluster.network.cut = {frozenset((alone, other)) for other in (A, B, C) if other != alone}
                await asyncio.sleep(chance.random() * 3)
                cluster.network.cut = set()
                await asyncio.sleep(chance.random() * 5)

        async with asyncio.TaskGroup() as group:
            for work in (write, read, read, cut):
                group.create_task(work())
        old = [(acked, found) for acked, found in seen if found < acked]
        assert not old, f"seed {seed}: reads showed less than was acknowledged before they began"
        assert acknowledged > 5, "the test must push something"
        assert len(seen) > 20
        cluster.network.cut = set()
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster.settle(30)
        assert len(await cluster.positions()) == 1
        for node in (A, B, C):
            assert not (await cluster[node].replica()).stopped
