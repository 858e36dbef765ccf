"""Nodes that lose their journal, all of it or its end, or have a double (R4): noticed, fenced, learned again, no operator."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from node.ports.errors import NotAMember, ReadUnavailable
from node.ports.service import Consistency
from node.protocol.acceptor import CommitOp
from node.protocol.change import Change, ChangeKind, Request
from node.protocol.ids import Ballot, NodeId, TxnId
from node.protocol.messages import (
    AcceptorPage,
    AcceptorRecords,
    Claim,
    Commit,
    Enrol,
    Enrolment,
    Ping,
    Pong,
    Prepare,
    Refused,
    Vote,
)
from node.protocol.outcome import OutcomeKind
from node.protocol.quorum import VoterSet
from node.protocol.standing import State
from node.restoring import Restoring
from node.storage.memory_journal import MemoryJournal
from tests.unit.runtime_kit import NAME, A, B, C, Cluster, simulated, until

COMMITTED, ABORTED = OutcomeKind.COMMITTED, OutcomeKind.ABORTED


def standing(cluster: Cluster, node: NodeId) -> str:
    runtime = cluster[node].runtime
    assert runtime is not None
    return runtime.membership.view().standing


async def pushed(cluster: Cluster, count: int, node: NodeId = A, first: int = 1) -> None:
    for number in range(first, first + count):
        assert (await cluster.push(node, number, number - 1, content=b"%d" % number)).kind is COMMITTED


@simulated
async def test_a_cluster_is_founded_when_all_its_nodes_are_there() -> None:
    cluster = Cluster()
    await cluster[A].start()
    await cluster[B].start()
    await cluster.settle(5)
    assert standing(cluster, A) == standing(cluster, B) == "new"
    assert "node-3" in cluster[A].service.state().waits_for
    refused = await cluster.create(A)
    assert refused.kind is ABORTED
    assert "not founded" in refused.reason
    await cluster[C].start()
    await until(lambda: all(standing(cluster, node) == "member" for node in (A, B, C)), 2.0)
    await cluster.settle(0.2)
    assert (await cluster.create(A)).kind is COMMITTED
    founders = {cluster[node].journal.lives.standing.founders for node in (A, B, C)}
    assert founders == {tuple(sorted(cluster[node].journal.identity.journal for node in (A, B, C)))}
    await cluster.__aexit__()


@simulated
async def test_a_wiped_node_learns_everything_again_and_votes() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 5)
        await cluster.settle(2)
        await cluster[B].crash()
        cluster[B].wipe()
        await cluster[B].start()
        await until(lambda: standing(cluster, B) == "member", 20.0)
        assert cluster[B].journal.identity.incarnation == 2
        assert cluster[A].journal.lives.incarnations == cluster[C].journal.lives.incarnations == ((B, 2),)
        await cluster.settle(3)
        assert len(await cluster.positions()) == 1
        assert await cluster.main(B) == 5
        await cluster[C].crash()
        await cluster.settle(3)
        assert (await cluster.push(A, 6, 5)).kind is COMMITTED  # A and B are the quorum


@simulated
async def test_while_it_rejoins_a_node_answers_nothing() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 1)
        await cluster[B].crash()
        await cluster[C].crash()
        cluster[B].wipe()
        await cluster[B].start()
        await cluster.settle(3)
        assert standing(cluster, B) == "rejoining"
        state = cluster[B].service.state()
        assert not state.ready
        assert "no answer from node-3" in state.problem
        with pytest.raises(NotAMember):
            await cluster.read(B)
        with pytest.raises(NotAMember):
            await cluster[B].service.repositories("", 10)
        refused = await cluster.push(A, 2, 1)
        assert refused.kind is ABORTED
        sent = {type(message).__name__ for sender, _, message in cluster.network.log if sender == B}
        cluster.network.log.clear()
        await cluster.settle(5)
        sent = {type(message).__name__ for sender, _, message in cluster.network.log if sender == B}
        assert sent <= {"Ping", "Pong", "Enrol", "Summaries"}, sent  # it asks, it does not answer
        await cluster[C].start()
        await until(lambda: standing(cluster, B) == "member", 20.0)


@simulated
async def test_two_acknowledged_it_one_is_down_the_other_comes_back_empty_no_other_push_takes_its_place() -> None:
    """[node-1 and node-2 acknowledge, node-1 is down, node-2 is back with an empty disk; node-3 never heard of it]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster.network.rule = lambda sender, to, message: None if C in (sender, to) and _protocol(message) else 0.001
        assert (await cluster.push(A, 1)).kind is COMMITTED
        await cluster[A].crash()
        await cluster[B].crash()
        cluster[B].wipe()
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster[B].start()
        await cluster.settle(5)
        for node in (B, C):
            outcome = await cluster.push(node, 99)
            assert outcome.kind is not COMMITTED
        await cluster[A].start()
        await until(lambda: standing(cluster, B) == "member", 30.0)
        await cluster.settle(5)
        assert {await cluster.main(node) for node in (A, B, C)} == {1}
        assert len(await cluster.positions()) == 1


def _protocol(message: object) -> bool:
    return isinstance(message, Prepare | Vote | Commit) or type(message).__name__ in ("History", "HistoryPage", "Summaries")


@simulated
async def test_an_old_copy_of_a_disk_is_noticed_by_what_peers_have_seen() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 2)
        await cluster.settle(2)
        await cluster[B].crash()
        old = cluster[B].copy_disk()
        await cluster[B].start()
        await pushed(cluster, 3, first=3)
        await cluster.settle(2)
        await cluster[B].crash()
        cluster[B].journal, cluster[B].store = old
        await cluster[B].start()
        assert standing(cluster, B) == "rejoining"  # told before it has said anything
        await until(lambda: standing(cluster, B) == "member", 20.0)
        assert cluster[B].journal.identity.incarnation == 2
        await cluster.settle(3)
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_disk_set_back_behind_the_last_prepare_it_sent_is_noticed_without_any_heartbeat() -> None:
    """[B counts A's vote and its own, answers its client, dies; its disk is set back to before; A's and C's heartbeats knew
    nothing of B's vote yet. Found by the simulation: two changes were decided for one version.]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 2)
        await cluster.settle(2)
        old = cluster[B].copy_disk()
        cluster.network.rule = lambda sender, to, message: (
            None if isinstance(message, Ping | Pong) or C in (sender, to) or isinstance(message, Vote) else 0.001
        )
        push = asyncio.create_task(cluster.push(B, 3, 2))
        await cluster.settle(0.1)
        assert any(sender == B and isinstance(message, Prepare) for sender, _, message in cluster.network.log)
        await cluster[B].crash()
        push.cancel()
        cluster[B].journal, cluster[B].store = old
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster[B].start()
        assert standing(cluster, B) == "rejoining"
        await until(lambda: standing(cluster, B) == "member", 20.0)
        assert cluster[B].journal.identity.incarnation == 2


D, E = NodeId("node-4"), NodeId("node-5")


async def _pushed_to_b_c_e_whereupon_b_is_set_back_and_c_wiped(cluster: Cluster) -> None:
    """node-1 and node-4 have heard of node-2 since; node-5 is down; nobody tells node-2, which is cut off from heartbeats."""
    await cluster.create(A)
    await pushed(cluster, 1)
    await cluster.settle(2)
    await cluster[B].crash()
    old = cluster[B].copy_disk()
    old[0].lives.life = replace(old[0].lives.life, nonce="of a start on the copy")
    await cluster[B].start()
    await cluster.settle(2)
    cluster.network.rule = lambda sender, to, message: None if {sender, to} & {A, D} and _protocol(message) else 0.001
    assert (await cluster.push(E, 2, 1)).kind is COMMITTED
    await cluster.settle(2)
    for node in (E, B, C):
        await cluster[node].crash()
    cluster[B].journal, cluster[B].store = old
    cluster[C].wipe()
    cluster.network.rule = lambda sender, to, message: None if B in (sender, to) and isinstance(message, Ping | Pong) else 0.001
    await cluster[B].start()
    assert standing(cluster, B) == "member", "it does not know yet"
    await cluster[C].start()


@simulated
async def test_a_wiped_node_does_not_learn_from_a_disk_that_was_set_back_and_does_not_know_it_yet() -> None:
    """[only node-2, node-3 and node-5 had the push; node-1 and node-4 refuse node-2, node-3 had forgotten what it had seen]"""
    async with Cluster((A, B, C, D, E)) as cluster:
        await _pushed_to_b_c_e_whereupon_b_is_set_back_and_c_wiped(cluster)
        await cluster.settle(10)
        assert (await cluster.push(A, 99, 1)).kind is not COMMITTED
        assert standing(cluster, C) == "rejoining"
        cluster.network.rule = lambda sender, to, message: 0.001
        await until(lambda: standing(cluster, B) == "rejoining", 5.0)
        await cluster[E].start()
        await until(lambda: standing(cluster, B) == standing(cluster, C) == "member", 60.0)
        await cluster.settle(5)
        assert await cluster.main(A) == 2
        assert len(await cluster.positions()) == 1


@simulated
async def test_what_the_sources_had_seen_of_others_is_known_to_a_rejoined_node_and_to_its_disk() -> None:
    async with Cluster((A, B, C, D, E)) as cluster:
        await _pushed_to_b_c_e_whereupon_b_is_set_back_and_c_wiped(cluster)
        await cluster[B].crash()  # only to come back when node-3 is a member
        await cluster[E].start()
        await until(lambda: standing(cluster, C) == "member", 60.0)
        behind = cluster[B].journal.lives.life
        assert behind.behind(cluster[C].journal.lives.seen[B])
        runtime = cluster[C].runtime
        assert runtime is not None
        assert not runtime._lives.accept(B, behind), "as a coordinator it does not count its promise"
        cluster.network.rule = lambda sender, to, message: 0.001


@simulated
async def test_a_source_names_the_life_it_answers_in_and_what_it_has_seen_of_all_but_the_asking_node() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        assert cluster[A].runtime is not None
        serving, lives = cluster[A].runtime.serving, cluster[A].journal.lives
        granted = await serving.on_question(B, Enrol(2, "life"))
        assert isinstance(granted, Enrolment)
        assert (granted.granted, granted.life) == (True, lives.life)
        page = await serving.on_question(B, AcceptorRecords(2, "life"))
        assert isinstance(page, AcceptorPage)
        assert page.life == lives.life
        assert [node for node, _ in page.seen] == [C]
        refused = await serving.on_question(B, AcceptorRecords(2, "another life"))
        assert isinstance(refused, AcceptorPage)
        assert (refused.granted, refused.seen) == (False, ())


@simulated
async def test_a_request_of_a_disk_set_back_is_refused() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 2)
        await cluster.settle(2)
        assert cluster[A].runtime is not None
        life = replace(cluster[B].journal.lives.life, writes=1, boot=0)
        voters = VoterSet.of((A, B, C)).digest
        claim = Claim(NAME.key, voters, Ballot(99, B, 0), 1.0, life)
        reply = await cluster[A].runtime.serving.on_request(B, claim)
        assert isinstance(reply, Refused)
        assert "a newer life of node-2" in reply.reason


@simulated
async def test_an_old_copy_is_noticed_even_after_everybody_started_again() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 2)
        await cluster.settle(2)
        await cluster[B].crash()
        old = cluster[B].copy_disk()
        await cluster[B].start()
        await pushed(cluster, 3, first=3)
        await cluster.settle(8)  # what was seen is on the disks
        for node in (A, B, C):
            await cluster[node].crash()
        cluster[B].journal, cluster[B].store = old
        for node in (A, C, B):
            await cluster[node].start()
        await until(lambda: cluster[B].journal.identity.incarnation == 2, 20.0)
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1


@simulated
async def test_of_two_processes_with_one_identity_exactly_one_survives() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 3)
        await cluster.settle(2)
        await cluster[B].crash()
        clone = Cluster((A, B, C))
        clone.network, clone.signers, clone._members = cluster.network, cluster.signers, cluster._members
        clone.lives = 100
        clone[B].journal, clone[B].store = cluster[B].copy_disk()
        clone[B].journal.lives.life = type(clone[B].journal.lives.life)(1, "journal-of-node-2", 2, "the clone", 9)
        await cluster[B].start()
        await cluster.settle(1)
        await clone[B].start()  # from here on both ask; peers reach the second one
        await cluster.settle(60)
        ends = sorted((standing(cluster, B), standing(clone, B)))
        assert ends == ["member", "stopped"], ends
        stopped = cluster if standing(cluster, B) == "stopped" else clone
        assert "another process uses the identity node-2" in stopped[B].service.state().problem
        assert (await cluster.push(A, 4, 3)).kind is COMMITTED
        assert clone[B].runtime is not None
        await clone[B].runtime.stop()


@simulated
async def test_an_interrupted_rejoin_begins_anew_with_a_higher_incarnation() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 3)
        await cluster.settle(2)
        await cluster[B].crash()
        cluster[B].wipe()
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, AcceptorRecords) else 0.001
        await cluster[B].start()
        await until(lambda: cluster[B].journal.lives.standing.tried == 2, 20.0)
        await asyncio.sleep(0.5)
        await cluster[B].crash()
        assert cluster[B].journal.lives.standing.state is State.REJOINING
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster[B].start()
        assert standing(cluster, B) == "rejoining"
        await until(lambda: standing(cluster, B) == "member", 20.0)
        assert cluster[B].journal.identity.incarnation > 2
        await cluster.settle(3)
        assert len(await cluster.positions()) == 1


@simulated
async def test_with_a_majority_wiped_nothing_is_written_until_an_operator_decides() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 3)
        await cluster.settle(2)
        for node in (B, C):
            await cluster[node].crash()
            cluster[node].wipe()
        for node in (B, C):
            await cluster[node].start()
        await cluster.settle(10)
        assert (standing(cluster, B), standing(cluster, C)) == ("rejoining", "rejoining")
        assert (await cluster.push(A, 4, 3)).kind is ABORTED
        runtime = cluster[B].runtime
        assert runtime is not None
        await runtime.membership.take(frozenset({A}))
        await until(lambda: standing(cluster, B) == "member", 30.0)
        await until(lambda: standing(cluster, C) == "member", 30.0)  # A and B are a majority of others
        await cluster.settle(3)
        assert (await cluster.push(A, 4, 3)).kind is COMMITTED
        await cluster.settle(3)
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_journal_whose_records_are_damaged_is_learned_again_while_the_node_runs() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 3)
        await cluster.settle(2)
        assert cluster[B].runtime is not None
        cluster[B].runtime.rejoin("its journal is damaged")
        assert cluster[B].service.state().standing == "rejoining"
        await until(lambda: standing(cluster, B) == "member", 20.0)
        await cluster.settle(3)
        assert len(await cluster.positions()) == 1
        assert (await cluster.push(B, 4, 3)).kind is COMMITTED


@pytest.mark.parametrize("broken", ["keep_attempt", "clear_rejoining", "before_clear", "restore"])
def test_a_fault_of_ours_in_a_step_of_rejoining_begins_it_anew(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """[no wake is asked for while a number is kept or the mark cleared: the node stayed out until it was started again]"""

    @simulated
    async def rejoins() -> None:
        async with Cluster() as cluster:
            await cluster.create(A)
            runtime, left = cluster[B].runtime, [2]
            assert runtime is not None

            def failing(method: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
                async def call(*args: object, **kwargs: object) -> object:
                    left[0] -= 1
                    if left[0] >= 0:
                        raise ValueError("a fault of ours")
                    return await method(*args, **kwargs)

                return call

            holder, name = {
                "before_clear": (runtime.membership, "_before_clear"),
                "restore": (Restoring, "restore"),
            }.get(broken, (cluster[B].journal.lives, broken))
            monkeypatch.setattr(holder, name, failing(getattr(holder, name)))
            runtime.rejoin("its journal is damaged")
            await until(lambda: standing(cluster, B) == "member", 60.0)
            assert left[0] < 0

    rejoins()


@pytest.mark.parametrize("ahead", [True, False])
def test_a_source_whose_replica_is_set_aside_keeps_nobody_out(ahead: bool) -> None:
    """[node-1 has a history that nobody else has, is set aside for it and gives none; node-2 waited for it for ever]"""

    @simulated
    async def rejoins() -> None:
        async with Cluster() as cluster:
            await cluster.create(A)
            await pushed(cluster, 1)
            await cluster.settle(2)
            base = (await cluster[A].replica()).register.position
            wrong = Change(NAME.key, base, ChangeKind.DELETE, (Request(TxnId("wrong"), "nobody", A, 1),))
            await cluster[A].crash()
            await cluster[A].journal.write(CommitOp(NAME.key, wrong), members=cluster.config(A).voters, at_ms=1)
            await cluster[A].journal.stop_voting(NAME.key, "it has a history that nobody else has")
            await cluster[A].start()
            if not ahead:
                await pushed(cluster, 1, node=C, first=2)
            await cluster.settle(2)
            await cluster[B].crash()
            cluster[B].wipe()
            await cluster[B].start()
            await until(lambda: standing(cluster, B) == "member", 30.0)
            assert not (await cluster[B].replica()).stopped
            await cluster.settle(2)
            assert (await cluster.push(B, 3, 1 if ahead else 2)).kind is COMMITTED  # with node-3

    rejoins()


@simulated
async def test_what_a_set_aside_source_has_accepted_is_taken_over_all_the_same() -> None:
    """[node-1 and node-2 accepted a push and node-1 heard no more: it may be decided, whatever is wrong with its history]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 1)
        await cluster.settle(2)
        cluster.network.rule = lambda sender, to, message: None if C in (sender, to) and _protocol(message) else 0.001
        assert (await cluster.push(A, 2, 1)).kind is COMMITTED
        await cluster[B].crash()
        await cluster[A].crash()
        await cluster[A].journal.stop_voting(NAME.key, "its disk was looked at")
        cluster[B].wipe()
        await cluster[A].start()
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster[B].start()
        await until(lambda: standing(cluster, B) == "member", 30.0)
        await cluster.settle(5)
        assert await cluster.main(B) == await cluster.main(C) == 2


@simulated
async def test_enrolment_is_refused_by_who_is_no_member() -> None:
    async with Cluster() as cluster:
        assert cluster[B].runtime is not None
        cluster[B].runtime.rejoin("its journal is damaged")
        with pytest.raises(NotAMember):
            await cluster[B].runtime.serving.on_question(C, Enrol(2, "life"))


@simulated
async def test_a_healthy_node_whose_double_took_an_incarnation_and_went_away_rejoins_by_itself() -> None:
    """[a second process with node-2's identity and an empty disk is enrolled, and stopped before it has learned anything:
    node-1 and node-3 count no answer of the healthy node-2 any more]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        await pushed(cluster, 2)
        await cluster.settle(2)
        for node in (A, C):  # what the double asked for before it was stopped
            runtime = cluster[node].runtime
            assert runtime is not None
            await runtime.serving.on_question(B, Enrol(2, "a double with an empty disk"))
        await until(lambda: cluster[B].journal.identity.incarnation > 2, 20.0)
        await until(lambda: standing(cluster, B) == "member", 20.0)
        await cluster[C].crash()
        await cluster.settle(3)
        assert (await cluster.push(B, 3, 2)).kind is COMMITTED  # its own promise and its vote count
        assert (await cluster.push(A, 4, 3)).kind is COMMITTED


@simulated
async def test_a_push_that_waited_for_its_turn_while_its_node_began_to_rejoin_is_answered() -> None:
    """[its replica was closed meanwhile: no machine would ever have answered, nor given its turn back]"""
    async with Cluster(writes_max=1, repository_writes_max=1) as cluster:
        await cluster.create(A)
        await pushed(cluster, 1)
        cluster.network.rule = lambda sender, to, message: None if _protocol(message) else 0.001
        first = asyncio.create_task(cluster.push(B, 2, 1))
        await cluster.settle(0.1)
        second = asyncio.create_task(cluster.push(B, 3, 1))
        await cluster.settle(0.1)
        runtime = cluster[B].runtime
        assert runtime is not None
        runtime.rejoin("its journal is damaged")
        cluster.network.rule = lambda sender, to, message: 0.001
        assert (await asyncio.wait_for(first, 5)).kind is OutcomeKind.UNKNOWN
        refused = await asyncio.wait_for(second, 5)
        assert (refused.kind, refused.sent) == (ABORTED, False)
        assert "rejoining" in refused.reason
        await until(lambda: standing(cluster, B) == "member", 20.0)
        await cluster.settle(3)
        await pushed(cluster, 1, node=B, first=await cluster.main(B) + 1)  # the turns are free again


@simulated
async def test_two_words_of_an_operator_at_once_begin_one_attempt() -> None:
    """[two machines of one node: the slower one would go on under a member, and take a newer incarnation from it]"""
    async with Cluster() as cluster:
        for node in (B, C):
            await cluster[node].crash()
            cluster[node].wipe()
        for node in (B, C):
            await cluster[node].start()
        await cluster.settle(3)
        runtime = cluster[B].runtime
        assert runtime is not None
        assert standing(cluster, B) == "rejoining"
        take = runtime.membership.take
        await asyncio.gather(take(frozenset({A})), take(frozenset({A})))
        ours = [task for task in asyncio.all_tasks() if "Membership._run" in repr(task.get_coro())]
        assert len(ours) == 2, "one each of B and C"


@simulated
async def test_who_is_told_twice_and_has_no_double_is_not_said_to_have_one_for_certain() -> None:
    """[a second incarnation was granted after the node had rejoined: nobody else uses its identity any more]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        for _ in range(2):
            newer = cluster[B].journal.identity.incarnation + 1
            for node in (A, C):
                runtime = cluster[node].runtime
                assert runtime is not None
                await runtime.serving.on_question(B, Enrol(newer, f"a double that asked for {newer}"))
            await cluster.settle(30)
        assert standing(cluster, B) == "stopped"
        problem = cluster[B].service.state().problem
        assert "it has rejoined once since its start" in problem
        assert "or this disk was set back once more, or an operator accepted a loss" in problem
        await cluster[B].crash()
        await cluster[B].start()
        await until(lambda: standing(cluster, B) == "member", 30.0)


@simulated
async def test_what_an_operator_takes_for_everything_may_lack_objects_and_keeps_no_node_out() -> None:
    async with Cluster() as cluster:
        await cluster.create()
        assert (await cluster.push(A, 1, content=b"L" * 200_000)).kind is COMMITTED
        await cluster.settle(5)
        await cluster[C].crash()
        await cluster[B].crash()
        cluster[B].wipe()
        cluster[A].store.repositories[str(NAME)].packs.clear()
        cluster[A].store.staged.clear()
        await cluster[B].start()
        await cluster.settle(5)
        runtime = cluster[B].runtime
        assert runtime is not None
        await runtime.membership.take(frozenset({A}))
        await cluster.settle(30)
        assert not runtime.membership.refusal
        with pytest.raises(ReadUnavailable, match="missing"):
            await cluster.main(B, Consistency.LOCAL)


@simulated
async def test_a_node_that_lost_its_journal_only_fetches_nothing_that_its_disk_holds() -> None:
    """[the last deletion was applied again to what was created after it, and everything travelled]"""
    async with Cluster() as cluster:
        await cluster.create()
        await cluster.delete(A)
        await cluster.create()
        assert (await cluster.push(A, 1, content=b"first")).kind is COMMITTED
        assert (await cluster.push(A, 2, 1, content=b"L" * 200_000)).kind is COMMITTED
        await cluster.settle(5)
        box = cluster[B]
        before = dict(box.store.repositories[str(NAME)].packs)
        await box.crash()
        box.journal = MemoryJournal(B, journal="another")
        fetched = cluster.network.sent[B, "Fetch"]
        await box.start()
        await cluster.settle(60)
        assert standing(cluster, B) == "member"
        assert box.store.repositories[str(NAME)].packs == before
        assert cluster.network.sent[B, "Fetch"] == fetched
        assert await cluster.main(B) == 2
