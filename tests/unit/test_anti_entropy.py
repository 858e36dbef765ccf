"""Anti-entropy over simulated time: what nobody told is found, a divergent replica is set aside, idle costs nothing."""

from node.protocol.acceptor import CommitOp
from node.protocol.change import Change, ChangeKind, RefUpdate, Request
from node.protocol.ids import ZERO_OID, RefName, TxnId
from node.protocol.names import RepositoryName
from node.protocol.outcome import OutcomeKind
from tests.unit.runtime_kit import NAME, A, B, C, Cluster, NodeId, oid, simulated

OFTEN = {"anti_entropy_interval_s": 5.0}


def questions(cluster: Cluster, node: NodeId) -> int:
    runtime = cluster[node].runtime
    assert runtime is not None
    return runtime.anti_entropy.questions


@simulated
async def test_nodes_that_agree_ask_each_other_nothing_but_the_root() -> None:
    async with Cluster(**OFTEN) as cluster:
        for number in range(20):
            await cluster.create(A, RepositoryName("alice", f"r{number}"))
        await cluster.settle(10)
        before = [questions(cluster, node) for node in (A, B, C)]
        await cluster.settle(120)
        assert [questions(cluster, node) for node in (A, B, C)] == before


@simulated
async def test_a_change_that_nobody_told_of_is_found_and_caught_up_with() -> None:
    """The follower looked already, and saw nothing: as if its page had been lost."""
    async with Cluster(**OFTEN) as cluster:
        await cluster.create()
        await cluster.push(A, 1)
        await cluster.settle(3)
        cluster.network.down.add(C)
        await cluster.push(A, 2, 1)
        runtime = cluster[C].runtime
        assert runtime is not None
        for seen in runtime._follower._seen.values():
            seen.sequence = 1_000
        cluster.network.down.discard(C)
        await cluster.settle(30)
        assert len(await cluster.positions()) == 1
        assert questions(cluster, C) >= 1


@simulated
async def test_of_two_digests_at_one_version_the_lonely_one_is_kept_aside_and_learned_again() -> None:
    async with Cluster(**OFTEN) as cluster:
        await cluster.create()
        await cluster.push(A, 1)
        await cluster.settle(3)
        base = (await cluster[C].replica()).register.position
        update = RefUpdate(RefName("refs/heads/other"), ZERO_OID, oid(9))
        wrong = Change(NAME.key, base, ChangeKind.UPDATE, (Request(TxnId("wrong"), "nobody", C, 1, (update,)),))
        await cluster[C].crash()
        await cluster[C].journal.write(CommitOp(NAME.key, wrong), members=cluster.config(C).voters, at_ms=1)
        cluster.network.down.add(C)
        assert (await cluster.push(A, 2, 1)).kind is OutcomeKind.COMMITTED
        await cluster[C].start()
        await cluster.settle(60)
        assert not (await cluster[A].replica()).stopped
        assert not (await cluster[B].replica()).stopped
        assert len(await cluster.positions()) == 1, "C has the history of the others"
        (rescued,) = cluster[C].store.rescued.values()
        assert rescued.refs[RefName("refs/heads/other")] == oid(9), "what it had is kept"
        assert cluster[C].journal.identity.incarnation == 2
        assert (await cluster.push(C, 3, 2)).kind is OutcomeKind.COMMITTED
