"""R5 on whole nodes: a read that began after a push was acknowledged sees it, on every node, whatever the network does."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest

from node.ports.errors import ReadUnavailable, RepositoryAbsent, StorageError, VersionNotReached
from node.ports.service import Consistency
from node.protocol.ids import NodeId, RefName
from node.protocol.messages import Abort, Claim, Commit, History, Message, Pong, Prepare, Query, Status
from node.protocol.outcome import OutcomeKind
from node.protocol.quorum import VoterSet
from node.reading import HEDGE_S, LATE_MAX
from tests.unit.runtime_kit import NAME, A, B, C, Cluster, SimulatedLoop, simulated, until

Got = TypeVar("Got")
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
async def test_a_node_that_is_no_voter_of_a_repository_does_not_count_itself() -> None:
    """Its member list grew after the repository was made; with one voter's answer and its own it had two, which is no majority
    of the voters: what the other two decided meanwhile was not seen."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        for node in cluster.nodes:
            replica = await cluster[node].replica()
            replica.register = replace(replica.register, voters=VoterSet.of((A, B, NodeId("node-0"))))
        assert await cluster.main(C) == 0
        cluster.network.cut = {frozenset((C, A))}
        with pytest.raises(ReadUnavailable, match="2 of 3 voters"):
            await cluster.main(C)


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


# ---------------------------------------------------------------- what a read costs, and whom it does not wait for


@simulated
async def test_reads_at_the_same_moment_ask_each_for_itself_and_the_other_peer_only_where_the_first_is_slow() -> None:
    """R5: a question is never shared with a later request; the slower answer is not hung up on, nor waited for."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: 0.5 if isinstance(message, Query) and to == C else 0.001
        cluster.network.sent.clear()
        began_at = asyncio.get_running_loop().time()
        await asyncio.gather(*(cluster.main(A) for _ in range(10)))
        assert asyncio.get_running_loop().time() - began_at < HEDGE_S + 0.01
        assert cluster.network.sent[A, "Query"] == 15, "each peer first in its turn"
        await cluster.settle(1)
        assert cluster.network.sent[C, "Status"] == 5, "what nobody waits for comes in all the same"


@simulated
async def test_a_read_asks_as_many_as_it_needs_and_at_once_another_one_where_one_fails() -> None:
    nodes = (A, B, C, NodeId("node-4"), NodeId("node-5"))
    async with Cluster(nodes) as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: 0.002
        cluster.network.sent.clear()
        await cluster.main(A)
        assert cluster.network.sent[A, "Query"] == 2
        cluster.network.down |= {B, C}
        began_at = asyncio.get_running_loop().time()
        for _ in range(4):
            await cluster.main(A)
        assert asyncio.get_running_loop().time() - began_at < 4 * HEDGE_S


@simulated
async def test_answers_that_nobody_waits_for_are_bounded_and_end_with_the_node() -> None:
    async with Cluster(reads_max=1000, repository_reads_max=1000) as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Query) and to == C else 0.001
        await asyncio.gather(*(cluster.main(A) for _ in range(LATE_MAX + 50)))
        runtime = cluster[A].runtime
        assert runtime is not None
        assert len(runtime._reader._late) <= LATE_MAX
        await cluster[A].crash()
        assert not runtime._reader._late


# ---------------------------------------------------------------- local reads, and versions seen before


@simulated
async def test_a_local_read_asks_nobody_and_may_be_old() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.cut = {frozenset((C, A)), frozenset((C, B))}
        await cluster.push(A, 1)
        cluster.network.sent.clear()
        assert await cluster.main(C, Consistency.LOCAL) == 0
        assert cluster.network.sent[C, "Query"] == 0


@pytest.mark.parametrize("consistency", Consistency)
@simulated
async def test_whoever_names_the_version_of_its_push_sees_it_on_every_node(consistency: Consistency) -> None:
    """Also where the commit never arrives, where history has to be asked for, and where the node was cut off."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        for number, rule in enumerate((lost(Commit), lost(Commit, Prepare), late(1.5, Commit), late(0.3, History)), start=1):
            cluster.network.rule = rule if number != 2 else lambda sender, to, message: None if to == C else 0.001
            outcome = await cluster.push(A, number, number - 1, content=b"%d" % number)
            assert outcome.position is not None
            if number == 2:
                await cluster.settle(0.01)
                cluster.network.rule = lost(Commit)
            for node in (C, B, A):
                assert await cluster.main(node, consistency, outcome.position.version) == number


@simulated
async def test_a_local_reader_that_was_cut_off_hastens_its_node_and_is_served() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.cut = {frozenset((C, A)), frozenset((C, B))}
        for number in range(1, 30):
            await cluster.push(A, number, number - 1, content=b"%d" % number)
        await cluster.settle(2)
        reading = asyncio.create_task(cluster.main(C, Consistency.LOCAL, 30))
        await asyncio.sleep(1)
        assert not reading.done()
        cluster.network.cut = {frozenset((C, A))}
        assert await reading == 29


@pytest.mark.parametrize("consistency", Consistency)
@simulated
async def test_a_version_that_no_majority_knows_is_refused_at_once_and_asked_for_once(consistency: Consistency) -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.sent.clear()
        began_at = asyncio.get_running_loop().time()
        for version in (2, 2**53 - 1):
            with pytest.raises(
                VersionNotReached, match=f"version {version} .* not known to a majority, 1 is the newest"
            ) as told:
                await cluster.main(B, consistency, version)
            assert told.value.position is not None
            assert told.value.position.version == 1
        assert asyncio.get_running_loop().time() - began_at < 0.01
        assert cluster.network.sent[B, "Query"] == 2


@pytest.mark.parametrize("cut", [False, True], ids=["silent", "suspected"])
@simulated
async def test_without_a_majority_a_version_that_is_not_here_is_waited_for_a_stated_time_and_seldom_asked_for(
    cut: bool,
) -> None:
    async with Cluster(read_timeout_s=20.0) as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Query | Status) else 0.001
        if cut:
            cluster.network.cut = {frozenset((C, A)), frozenset((C, B))}
            await cluster.settle(5)
        cluster.network.sent.clear()
        began_at = asyncio.get_running_loop().time()
        with pytest.raises(VersionNotReached, match="version 7 is not here yet, but 1; try again, or ask another node"):
            await cluster.main(C, Consistency.LOCAL, 7)
        assert 19.9 < asyncio.get_running_loop().time() - began_at < 21.1
        assert cluster.network.sent[C, "Query"] <= (0 if cut else 40)


@simulated
async def test_a_version_that_is_being_decided_is_waited_for_and_one_that_is_aborted_refused() -> None:
    for end, seen in ((0.2, 1), (100.0, None)):
        async with Cluster() as cluster:
            await cluster.create(A)
            await cluster.settle(1)
            cluster.network.rule = lost(Prepare)
            pushing = asyncio.create_task(cluster.push(A, 1, content=b"x"))
            await asyncio.sleep(0.1)
            reading = asyncio.create_task(cluster.main(A, Consistency.LINEARIZABLE, 2))
            await asyncio.sleep(end if end < 1 else 0)
            if end < 1:
                cluster.network.rule = late(0.001, Prepare)
                assert await reading == seen
            else:
                with pytest.raises(VersionNotReached):
                    await reading
            await pushing


@pytest.mark.parametrize("consistency", Consistency)
@simulated
async def test_a_replica_that_is_set_aside_serves_nobody(consistency: Consistency) -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        replica = await cluster[A].replica()
        replica._alarm("its digest is another one", stop=True)
        for at_least in (0, 1, 5):
            with pytest.raises(ReadUnavailable, match=r"set aside \(its digest is another one\); another node") as told:
                await cluster.main(A, consistency, at_least)
            assert told.value.position is not None
        with pytest.raises(ReadUnavailable, match="set aside"):
            await cluster[A].service.look(NAME, consistency)
        assert await cluster.main(B) == 0, "the others read on: two of three"


@simulated
async def test_a_reader_that_waits_is_told_when_its_replica_is_set_aside() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Query | Status) else 0.001
        reading = asyncio.create_task(cluster.main(C, Consistency.LOCAL, 7))
        await asyncio.sleep(2)
        (await cluster[C].replica())._alarm("it is wrong", stop=True)
        with pytest.raises(ReadUnavailable, match="set aside"):
            await reading


@simulated
async def test_a_look_asks_nobody_unless_there_is_nothing_here() -> None:
    async with Cluster() as cluster:
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: (
            None if to == C and not isinstance(message, Query | Status) else 0.001
        )
        await cluster.create(A)
        cluster.network.sent.clear()
        await cluster[A].service.look(NAME, Consistency.LINEARIZABLE)
        assert cluster.network.sent[A, "Query"] == 0
        with pytest.raises(RepositoryAbsent):
            await cluster[C].service.look(NAME, Consistency.LOCAL)
        assert cluster.network.sent[C, "Query"] == 0
        cluster.network.rule = lost(Commit)
        await cluster[C].service.look(NAME, Consistency.LINEARIZABLE)
        assert cluster.network.sent[C, "Query"] == 1
        cluster.network.cut = {frozenset((C, A)), frozenset((C, B))}
        await cluster.settle(5)
        with pytest.raises(ReadUnavailable, match="no answer from node-1, node-2"):
            await cluster[C].service.look(NAME, Consistency.LINEARIZABLE)
        await cluster[C].service.look(NAME, Consistency.LOCAL)


@pytest.mark.parametrize("seed", range(6))
@simulated
async def test_what_a_client_has_seen_it_sees_again_on_whatever_node_through_crashes_and_cuts(seed: int) -> None:
    """Clients that carry the highest version they saw (Min-Version) read locally or linearizably from any node while nodes
    crash, return, and are cut off: nobody goes back in time, nobody misses what was acknowledged before a linearizable read."""
    chance = random.Random(seed)
    crashes = cuts = served = 0
    async with Cluster(read_timeout_s=2.0) as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: None if chance.random() < 0.03 else chance.random() * 0.02
        acknowledged = 0
        ended = asyncio.Event()

        async def answered(ask: Callable[[NodeId], Coroutine[Any, Any, Got]]) -> Got | None:
            """What some node answers. One that is killed meanwhile never does, or breaks off: the connection breaks."""
            node = chance.choice([node for node in (A, B, C) if cluster[node].runtime is not None])
            task = asyncio.ensure_future(ask(node))
            await asyncio.wait({task}, timeout=5)
            task.cancel()
            (answer,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(answer, BaseException):
                gone = isinstance(answer, AssertionError) and cluster[node].runtime is None
                assert gone or isinstance(answer, StorageError | ReadUnavailable | asyncio.CancelledError), answer
                return None
            return answer

        async def write() -> None:
            nonlocal acknowledged
            for number in range(1, 60):
                ref = RefName(f"refs/heads/{number}")
                push = partial(cluster.push, new=number, ref=ref, content=b"%d" % number)
                outcome = await answered(push)
                if outcome is not None and outcome.kind is OutcomeKind.COMMITTED and outcome.position is not None:
                    acknowledged = max(acknowledged, outcome.position.version)
                await asyncio.sleep(chance.random() * 0.3)
            ended.set()

        async def read(consistency: Consistency) -> None:
            nonlocal served
            seen = 1  # the creation
            while not ended.is_set():
                before = acknowledged
                register = await answered(partial(cluster.read, consistency=consistency, at_least=seen))
                if register is not None:
                    served += 1
                    assert register.position.version >= seen, f"seed {seed}: back in time"
                    if consistency is Consistency.LINEARIZABLE:
                        assert register.position.version >= before, f"seed {seed}: an acknowledged push is missing"
                    seen = register.position.version
                await asyncio.sleep(chance.random() * 0.1)

        async def disturb() -> None:
            nonlocal crashes, cuts
            while not ended.is_set():
                victim = chance.choice((A, B, C))
                if crashes == 0 or (cuts and chance.random() < 0.5):  # one of each at the least, whatever the seed
                    await cluster[victim].crash()
                    crashes += 1
                    await asyncio.sleep(chance.random() * 3)
                    await cluster[victim].start()
                else:
                    cluster.network.cut = {frozenset((victim, other)) for other in (A, B, C) if other != victim}
                    cuts += 1
                    await asyncio.sleep(chance.random() * 3)
                    cluster.network.cut = set()
                await asyncio.sleep(chance.random() * 3)

        async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
            try:
                await work
            finally:
                ended.set()

        works = [write(), disturb(), *(read(consistency) for consistency in (*Consistency, *Consistency))]
        await asyncio.gather(*map(to_its_end, works))
        assert acknowledged > 20
        assert served > 100
        assert crashes
        assert cuts
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster.settle(30)
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_node_that_was_stopped_for_a_while_serves_at_once_when_it_is_woken() -> None:
    """[SIGSTOP] Its own heartbeats expired while it stood still: it suspected everybody, and refused reads for a moment."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1)
        await cluster.settle(2)
        cluster.network.rule = late(3.0, Pong)
        await cluster.settle(0.7)  # heartbeats to both are under way
        stand_still(10.0)
        cluster.network.rule = lambda sender, to, message: 0.001
        await asyncio.sleep(0)
        for _ in range(20):
            assert await cluster.main(A) == 1
            await asyncio.sleep(0.01)
        cluster.network.cut = {frozenset((A, B)), frozenset((A, C))}
        cluster.network.rule = lost(Pong)
        await cluster.settle(0.7)
        stand_still(10.0)
        await cluster.settle(2)  # asked once, not for ever
        assert {peer.state for peer in cluster[A].service.state().peers} == {"suspected"}


def stand_still(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    loop._jumping.jumped_s += seconds
