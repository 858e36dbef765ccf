"""What is known of a transaction, where and when: running, unknown, settled, after a crash, from another node."""

import asyncio

from node.ports.journal import TransactionRecord
from node.protocol.ids import NodeId, RefName, TxnId
from node.protocol.messages import Abort, Commit, Message, Prepare, Vote
from node.protocol.outcome import OutcomeKind
from tests.unit.runtime_kit import A, B, C, Cluster, simulated, until

COMMITTED, ABORTED, UNKNOWN = OutcomeKind.COMMITTED, OutcomeKind.ABORTED, OutcomeKind.UNKNOWN
MAIN_OTHER = RefName("refs/heads/other")
QUICK = 0.001


async def record_of(cluster: Cluster, node: NodeId, txn: TxnId) -> TransactionRecord:
    record = await cluster[node].service.transaction(txn)
    assert isinstance(record, TransactionRecord)
    return record


async def vanish(cluster: Cluster, push: "asyncio.Task[object]", node: NodeId) -> None:
    await cluster[node].crash()
    await asyncio.gather(push, return_exceptions=True)


@simulated
async def test_a_committed_transaction_is_told_by_every_node_with_its_votes_and_phases() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        outcome = await cluster.push(A, 1, content=b"x")
        await cluster.settle(1)
        for node in (A, B, C):
            record = await record_of(cluster, node, outcome.txn)
            assert (record.outcome, record.position, record.node) == (COMMITTED, outcome.position, A)
            assert {vote.node for vote in record.votes if vote.vote == "yes"} == {A, B, C}
            assert {"queue", "prepare", "decide", "apply"} <= record.phases_ms.keys()
        await cluster[A].crash()
        await cluster.settle(3)
        record = await record_of(cluster, B, outcome.txn)
        assert (record.outcome, len(record.votes)) == (COMMITTED, 2), "from history, the certificate's votes"


@simulated
async def test_a_running_transaction_has_no_outcome_yet_on_any_node() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: 0.3 if isinstance(message, Prepare) else QUICK
        txn = cluster[A].service.new_txn()
        pushing = asyncio.create_task(cluster.push(A, 1, txn=txn))
        await asyncio.sleep(0.1)
        assert (await record_of(cluster, A, txn)).outcome is None
        assert (await record_of(cluster, C, txn)).outcome is None
        assert (await pushing).kind is COMMITTED


@simulated
async def test_an_unknown_push_is_settled_on_the_node_that_took_it() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Prepare | Abort) else QUICK
        outcome = await cluster.push(A, 1, content=b"x")
        assert outcome.kind is UNKNOWN
        record = await record_of(cluster, A, outcome.txn)
        assert (record.outcome, record.settled_by) == (UNKNOWN, "")
        cluster.network.rule = lambda sender, to, message: QUICK
        await cluster.settle()
        record = await record_of(cluster, A, outcome.txn)
        assert record.outcome in (COMMITTED, ABORTED)
        assert record.settled_by
        assert record.settled_at_ms
        assert (await cluster.main(B) == 1) == (record.outcome is COMMITTED)
        assert (await record_of(cluster, B, outcome.txn)).outcome is record.outcome


@simulated
async def test_a_push_whose_coordinator_died_after_the_votes_is_committed_and_told_everywhere() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: None if to == A else QUICK
        txn = cluster[A].service.new_txn()
        pushing: asyncio.Task[object] = asyncio.create_task(cluster.push(A, 1, content=b"x", txn=txn))
        await asyncio.sleep(0.05)
        await vanish(cluster, pushing, A)
        cluster.network.rule = lambda sender, to, message: QUICK
        await cluster.settle(6)
        record = await record_of(cluster, B, txn)
        assert record.outcome is COMMITTED
        assert "decided by node-" in record.settled_by
        await cluster[A].start()
        await cluster.settle()
        record = await record_of(cluster, A, txn)
        assert record.outcome is COMMITTED
        assert "decided by node-" in record.settled_by
        assert "decided by node-1" not in record.settled_by


@simulated
async def test_a_push_that_only_its_dead_coordinator_accepted_is_never_called_aborted_too_soon() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: None if sender == A else QUICK
        txn = cluster[A].service.new_txn()
        pushing: asyncio.Task[object] = asyncio.create_task(cluster.push(A, 1, content=b"x", txn=txn))
        await asyncio.sleep(0.05)
        await cluster[A].journal.flush()
        await vanish(cluster, pushing, A)
        cluster.network.rule = lambda sender, to, message: QUICK
        await cluster.settle(6)
        assert await cluster[B].service.transaction(txn) is None
        assert (await cluster.push(B, 2, content=b"y")).kind is COMMITTED
        await cluster[A].start()
        await cluster.settle()
        for node in (A, B, C):
            assert await cluster.main(node) == 2
            record = await record_of(cluster, node, txn)
            assert record.outcome is ABORTED, "another change took its place"
            assert record.settled_by


@simulated
async def test_an_abort_that_another_node_settled_is_known_there_and_learned_by_the_taker() -> None:
    """C holds the change, A is dead: B and C settle it with "no change"; when A is back, it hears of it."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        # A's own acceptance is durable and the prepare reaches nobody; A comes back, and its abort is decided without it.
        cluster.network.rule = lambda sender, to, message: None if sender == A and isinstance(message, Prepare) else QUICK
        txn = cluster[A].service.new_txn()
        pushing: asyncio.Task[object] = asyncio.create_task(cluster.push(A, 1, content=b"x", txn=txn))
        await asyncio.sleep(0.05)
        await cluster[A].journal.flush()
        await vanish(cluster, pushing, A)
        await cluster[A].start()
        cluster.network.rule = lambda sender, to, message: QUICK
        await cluster.settle()
        record = await record_of(cluster, A, txn)
        assert record.outcome in (ABORTED, COMMITTED)
        assert record.settled_by
        for node in (B, C):
            assert (await record_of(cluster, node, txn)).outcome is record.outcome
        assert (await cluster.main(B) == 1) == (record.outcome is COMMITTED)


@simulated
async def test_an_abort_can_be_looked_up_while_the_node_that_took_the_push_is_gone() -> None:
    """C holds the change, B the abort of it at a higher ballot: they settle it, and only they can tell."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)

        def rule(sender: NodeId, to: NodeId, message: Message) -> float | None:
            lost = {(Prepare, B), (Abort, C), (Vote, A)}
            return None if (type(message), to) in lost else QUICK

        cluster.network.rule = rule
        aborting = await cluster[B].replica()
        before = aborting.voter.record.accepted_ballot
        txn = cluster[A].service.new_txn()
        pushing: asyncio.Task[object] = asyncio.create_task(cluster.push(A, 1, content=b"x", txn=txn))
        await until(lambda: aborting.voter.record.accepted_ballot > before)
        assert (await cluster[C].replica()).in_doubt
        await vanish(cluster, pushing, A)
        cluster.network.rule = lambda sender, to, message: QUICK
        await cluster.settle(8)
        assert await cluster.main(C) == 0
        for node in (B, C):
            record = await record_of(cluster, node, txn)
            assert (record.outcome, record.node) == (ABORTED, A)
            assert "no change was accepted by a blocking set" in record.settled_by
        await cluster[A].start()
        await cluster.settle()
        assert (await record_of(cluster, A, txn)).outcome is ABORTED


@simulated
async def test_what_was_never_proposed_before_a_crash_is_unknown_and_never_aborted() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.cut = {frozenset((A, B)), frozenset((A, C))}
        txn = cluster[A].service.new_txn()
        await cluster.push(B, 5, content=b"another node owns the round now")
        pushing: asyncio.Task[object] = asyncio.create_task(cluster.push(A, 1, content=b"x", txn=txn))
        await asyncio.sleep(0.1)
        await cluster[A].journal.flush()
        await vanish(cluster, pushing, A)
        await cluster[A].start()
        record = await record_of(cluster, A, txn)
        assert record.outcome is UNKNOWN
        assert "stopped before it was decided" in record.reason


@simulated
async def test_a_retry_is_told_under_both_ids() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        outcomes = await asyncio.gather(cluster.push(A, 1), cluster.push(B, 2), cluster.push(C, 3))
        retried = [outcome for outcome in outcomes if "." in outcome.txn]
        await cluster.settle(2)
        for outcome in outcomes:
            first = TxnId(outcome.txn.partition(".")[0])
            taker = next(node for node in (A, B, C) if first in cluster[node].journal._transactions)
            assert (await record_of(cluster, taker, first)).outcome is outcome.kind
        for outcome in retried:
            if outcome.kind is COMMITTED:
                assert (await record_of(cluster, B, outcome.txn)).outcome is COMMITTED


@simulated
async def test_a_retry_whose_node_crashed_is_settled_under_its_first_id_too() -> None:
    """C6 gives a retry a new id; the client knows only the first one."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        replica = await cluster[A].replica()
        txn = cluster[A].service.new_txn()
        moved = False

        def rule(sender: NodeId, to: NodeId, message: Message) -> float | None:
            nonlocal moved
            if isinstance(message, Prepare) and sender == A:
                if message.change.txns[0] == txn:
                    return None
                moved = True
            return None if to == A and moved else QUICK

        cluster.network.rule = rule
        pushing: asyncio.Task[object] = asyncio.create_task(cluster.push(A, 1, content=b"x", txn=txn))
        await asyncio.sleep(0.1)
        # Somebody else takes the place: A's change is aborted for certain, and tried again under a new id.
        rival = await cluster.push(B, 9, content=b"y", ref=MAIN_OTHER)
        assert rival.kind is COMMITTED
        for _ in range(400):
            if moved:
                break
            await asyncio.sleep(0.005)
        assert moved, "it was tried again"
        await asyncio.sleep(0.05)
        await cluster[A].journal.flush()
        await vanish(cluster, pushing, A)
        cluster.network.rule = lambda sender, to, message: QUICK
        await cluster.settle(8)
        await cluster[A].start()
        await cluster.settle()
        assert await cluster.main(B) == 1
        record = await record_of(cluster, A, txn)
        assert record.outcome is COMMITTED
        assert "tried again as" in record.reason
        assert (await record_of(cluster, A, TxnId(f"{txn}.2"))).retry_of == txn
        del replica


@simulated
async def test_how_a_doubt_was_settled_is_not_forgotten_when_its_coordinator_answers_last() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)

        def rule(sender: NodeId, to: NodeId, message: Message) -> float | None:
            return None if to == A or isinstance(message, Commit | Abort) else QUICK

        cluster.network.rule = rule
        outcome = await cluster.push(A, 1, content=b"x")
        assert outcome.kind is UNKNOWN
        cluster.network.rule = lambda sender, to, message: QUICK
        await cluster.settle()
        record = await record_of(cluster, A, outcome.txn)
        assert record.outcome is COMMITTED
        assert record.settled_by
        assert record.settled_at_ms
