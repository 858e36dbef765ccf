"""Two hundred pushes at once against small limits: everybody is answered, nothing grows, and afterwards all is as before."""

import asyncio
import statistics
from collections import Counter

import pytest

from node.ports.errors import Busy, NotAMember
from node.ports.service import Consistency
from node.protocol.change import ChangeKind, Request
from node.protocol.events import Submitted
from node.protocol.ids import Ballot, RefName, TxnId
from node.protocol.messages import Claim, Message, Prepare
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome, OutcomeKind
from node.retries import FLOOR_PER_S, RATIO, TOKENS_MAX
from tests.unit.runtime_kit import NAME, A, B, Cluster, simulated

LIMITS = {"writes_max": 8, "repository_writes_max": 4, "writes_waiting_max": 40, "turn_wait_s": 1.0}
STORM = 200


def repository(number: int) -> RepositoryName:
    return RepositoryName("alice", f"project-{number}")


async def push(cluster: Cluster, number: int, name: RepositoryName) -> Outcome | Busy:
    try:
        return await cluster.push(A, number, 0, ref=RefName(f"refs/heads/{number}"), content=b"%d" % number, name=name)
    except Busy as busy:
        return busy


async def latency(cluster: Cluster, first: int) -> float:
    took = []
    for number in range(first, first + 10):
        began_at = asyncio.get_running_loop().time()
        outcome = await push(cluster, number, NAME)
        assert isinstance(outcome, Outcome)
        assert outcome.kind is OutcomeKind.COMMITTED
        took.append(asyncio.get_running_loop().time() - began_at)
    return statistics.median(took)


@pytest.mark.parametrize("repositories", [1, 50])
@pytest.mark.parametrize("votes_s", [0.001, 0.7], ids=["quick votes", "slow votes"])
@simulated
async def test_a_storm_of_pushes_is_answered_to_the_last_one_and_leaves_nothing(repositories: int, votes_s: float) -> None:
    async with Cluster(**LIMITS) as cluster:
        await cluster.create(A)
        names = [NAME, *(repository(number) for number in range(1, repositories))]
        for name in names[1:]:
            await cluster.create(A, name)
        before = await latency(cluster, 1000)

        def rule(sender: object, to: object, message: Message) -> float:
            return votes_s if isinstance(message, Prepare) else 0.001

        cluster.network.rule = rule
        began_at = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(push(cluster, number, names[number % repositories]) for number in range(1, STORM + 1)))
        took_s = asyncio.get_running_loop().time() - began_at
        counts = Counter("busy" if isinstance(each, Busy) else each.kind.value for each in answers)
        print(f"{repositories} repositories, votes after {votes_s} s: {dict(counts)} in {took_s:.2f} s")  # noqa: T201
        assert sum(counts.values()) == STORM
        assert counts["busy"], "the limit must have been felt"
        assert counts["committed"] >= LIMITS["repository_writes_max"]
        assert not counts["unknown"]
        assert took_s < 10
        for busy in (each for each in answers if isinstance(each, Busy)):
            assert "try again in a second" in str(busy)

        cluster.network.rule = lambda sender, to, message: 0.001
        service = cluster[A].service
        assert repr(service._writes).startswith("<Gate writes: 0/8 work, 0 wait")
        shown = {ref for name in names for ref in (await cluster.read(A, name)).refs}
        for number, answer in enumerate(answers, start=1):
            committed = isinstance(answer, Outcome) and answer.kind is OutcomeKind.COMMITTED
            assert (f"refs/heads/{number}" in shown) == committed, "what was refused has not happened"
        assert await latency(cluster, 2000) <= before * 1.5
        replica = await cluster[A].replica()
        assert not replica._answers
        assert not replica.coordinator.busy


@simulated
async def test_a_storm_on_one_repository_does_not_keep_another_from_a_push_or_a_read() -> None:
    async with Cluster(**LIMITS) as cluster:
        await cluster.create(A)
        await cluster.create(A, repository(1))
        await cluster.settle(1)

        def rule(sender: object, to: object, message: Message) -> float:
            return 0.5 if isinstance(message, Prepare) and message.repository == NAME.key else 0.001

        cluster.network.rule = rule
        storm = [asyncio.create_task(push(cluster, number, NAME)) for number in range(1, STORM)]
        await asyncio.sleep(0.01)
        began_at = asyncio.get_running_loop().time()
        calm = await push(cluster, 7777, repository(1))
        await cluster.read(A, repository(1))
        assert isinstance(calm, Outcome)
        assert calm.kind is OutcomeKind.COMMITTED
        assert asyncio.get_running_loop().time() - began_at < 0.2
        await asyncio.gather(*storm)


@simulated
async def test_a_storm_of_reads_is_answered_to_the_last_one() -> None:
    async with Cluster(reads_max=8, repository_reads_max=4, reads_waiting_max=40, turn_wait_s=1.0) as cluster:
        await cluster.create(A)
        await cluster.settle(1)

        async def read() -> str:
            try:
                await cluster.read(A)
            except Busy as busy:
                return "busy" if "try again" in str(busy) else "?"
            return "served"

        counts = Counter(await asyncio.gather(*(read() for _ in range(STORM))))
        assert counts == {"served": 24, "busy": 176}
        assert (await cluster.read(A, NAME, Consistency.LOCAL)).exists, "local reads wait for nobody"


@simulated
async def test_repetitions_to_a_peer_that_is_silent_stay_within_the_budget() -> None:
    """Three hundred repositories in doubt at once, each asking again twice a second, would be 1,200 messages a second."""
    async with Cluster(writes_max=1000) as cluster:
        names = [repository(number) for number in range(300)]
        for name in names:
            await cluster.create(A, name)
        await cluster.settle(3)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Prepare) else 0.001
        pushes = [asyncio.create_task(push(cluster, 1, name)) for name in names]
        await asyncio.sleep(0.4)
        cluster.network.sent.clear()
        await asyncio.gather(*pushes)
        again = cluster.network.sent[A, "Prepare"]
        print(f"{again} repetitions of {2 * len(names)} prepares in three seconds")  # noqa: T201
        assert 100 <= again <= 2 * len(names) * RATIO + TOKENS_MAX + 3 * FLOOR_PER_S


@simulated
async def test_a_push_whose_replica_is_loaded_again_while_it_waits_for_its_turn_is_answered() -> None:
    """As a repair does. It was submitted to the object that had been closed, which answers nobody: its client, and the turn it
    held, waited for ever."""
    async with Cluster(repository_writes_max=1, turn_wait_s=5.0) as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: 0.5 if isinstance(message, Prepare) else 0.001
        first = asyncio.create_task(push(cluster, 1, NAME))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(push(cluster, 2, NAME))
        await asyncio.sleep(0.1)
        runtime = cluster[A].runtime
        assert runtime is not None
        await runtime._registry.reload(NAME.key, "this replica is being repaired")
        async with asyncio.timeout(20):
            answers = await asyncio.gather(first, second)
        assert all(isinstance(answer, Outcome) for answer in answers)
        assert answers[1].kind is OutcomeKind.COMMITTED  # type: ignore[union-attr]
        assert repr(cluster[A].service._writes).startswith("<Gate writes: 0/")


@simulated
async def test_who_asks_for_a_replica_while_it_is_loaded_anew_gets_the_new_one() -> None:
    """[one loaded beside a write of the old one misses what that write commits, and nobody ever tells it]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        runtime = cluster[A].runtime
        assert runtime is not None
        registry, old = runtime._registry, await cluster[A].replica()
        loading = asyncio.create_task(registry.reload(NAME.key, "this replica is being repaired"))
        await asyncio.sleep(0)
        again = asyncio.create_task(registry.reload(NAME.key, "this replica is being repaired"))
        asked = [asyncio.create_task(registry.get(NAME.key)) for _ in range(3)]
        first, second, *got = await asyncio.gather(loading, again, *asked)
        assert old is not second
        assert first is not second
        assert set(got) == {second}
        assert registry.peek(NAME.key) is second
        assert not registry._loading


@simulated
async def test_a_closed_replica_refuses_at_once_whoever_still_holds_it() -> None:
    """A node that begins to rejoin closes them all; who had just been given one must not wait for its answer for ever."""
    async with Cluster() as cluster:
        await cluster.create(A)
        replica = await cluster[A].replica()
        await replica.close("this node rejoins")
        record, now = replica.voter.record, asyncio.get_running_loop().time()
        claim = Claim(NAME.key, replica.register.voters.digest, Ballot(record.promised.round + 1, B, 0), 1.0)
        submitted = Submitted(ChangeKind.UPDATE, Request(TxnId("tx-1"), "alice", A, 0), now + 2.0)
        for asked in (replica.request(B, claim), replica.submit(submitted)):
            with pytest.raises(NotAMember, match="this node rejoins"):
                await asyncio.wait_for(asked, 10)
        assert not replica.busy or replica.stopped
