"""What was begun before a node rejoined, or by an attempt to rejoin that was given up, and ends afterwards."""

import asyncio

import pytest

from node.ports.errors import DiskRefused, RejoinRefused
from node.ports.journal import Loaded
from node.protocol.acceptor import CommitOp
from node.protocol.change import Change, ChangeKind, Request
from node.protocol.ids import RepoId, TxnId
from node.protocol.names import RepositoryName
from node.protocol.outcome import OutcomeKind
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.restoring import Restoring
from tests.unit.runtime_kit import NAME, A, B, Cluster, simulated, until

COMMITTED = OutcomeKind.COMMITTED
OTHER = RepositoryName("zoe", "other")


@simulated
async def test_what_an_attempt_that_was_given_up_was_restoring_has_ended_before_the_next_one_asks() -> None:
    """[a slow rescue of the first attempt went on, and dropped the rows that the second one had learned and counted]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.create(A, OTHER)
        assert (await cluster.push(A, 1)).kind is COMMITTED
        await cluster.settle(2)
        box = cluster[B]
        runtime, base = box.runtime, (await cluster[B].replica()).register.position
        assert runtime is not None
        rescue, restore, slow = box.store.rescue, Restoring.restore, [True]

        async def rescued(register: Register, label: str) -> str:
            if slow:
                slow.pop()
                await asyncio.sleep(10)
            return await rescue(register, label)

        async def restored(self: Restoring) -> str:
            if self._repository == OTHER.key:
                if box.journal.lives.standing.tried == 2:
                    return "not now"  # so often that the first attempt is given up
                await asyncio.sleep(15)  # the second one goes on for a while
            return await restore(self)

        runtime.membership.lose("a test says so")
        wrong = Change(NAME.key, base, ChangeKind.DELETE, (Request(TxnId("wrong"), "nobody", B, 1),))
        await box.journal.write(CommitOp(NAME.key, wrong), members=cluster.config(B).voters, at_ms=1)
        assert (await cluster.push(A, 2, 1)).kind is COMMITTED
        box.store.rescue = rescued  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Restoring, "restore", restored)
            await until(lambda: not runtime.membership.refusal, 50.0)
        assert not slow
        loaded = await box.journal.load(NAME.key, cluster.config(B).voters)
        assert loaded.record.committed == (await cluster[A].replica()).register.position


@simulated
async def test_an_operators_word_writes_the_mark_again_after_the_attempt_that_it_ends() -> None:
    """[it may have been clearing the mark: the write is made all the same, and a crash later started a member]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        box, told = cluster[B], list[str]()
        lives, runtime = box.journal.lives, box.runtime
        assert runtime is not None
        mark = lives.mark_rejoining

        async def marked(reason: str, at_ms: int) -> None:
            await mark(reason, at_ms)
            told.append("marked")

        async def cleared(*_: object) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                told.append("clearing ended")

        lives.mark_rejoining, lives.clear_rejoining = marked, cleared  # type: ignore[method-assign, assignment]
        runtime.membership.lose("a test says so")
        await cluster.settle(10)
        assert told == ["marked"]
        await runtime.membership.take(frozenset({A}))
        assert told == ["marked", "clearing ended", "marked"]


@simulated
async def test_where_that_mark_cannot_be_written_the_node_goes_on_by_itself() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        box, runtime = cluster[B], cluster[B].runtime
        assert runtime is not None
        cluster.network.rule = lambda sender, to, message: None if B in (sender, to) else 0.001
        runtime.membership.lose("a test says so")
        await cluster.settle(2)
        box.journal.failure = DiskRefused("a test says so")
        with pytest.raises(DiskRefused):
            await runtime.membership.take(frozenset({A}))
        box.journal.failure = None
        cluster.network.rule = lambda sender, to, message: 0.001
        await until(lambda: not runtime.membership.refusal, 60.0)


@simulated
async def test_an_operators_word_is_refused_while_something_is_done_before_anything_is_learned() -> None:
    """[a damaged journal was being written anew, and the node learned into it]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        runtime, journal, done = cluster[B].runtime, cluster[B].journal, asyncio.Event()
        assert runtime is not None

        async def first() -> None:
            await done.wait()

        tried = journal.lives.standing.tried
        runtime.membership.lose("its journal is damaged", first)
        for _ in range(2):  # before the mark is durable, and after
            with pytest.raises(RejoinRefused, match="before anything is learned"):
                await runtime.membership.take(frozenset({A}))
            await cluster.settle(5)
        assert journal.lives.standing.tried == tried
        cluster.network.rule = lambda sender, to, message: None if sender == B else 0.001
        done.set()
        await cluster.settle(2)
        await runtime.membership.take(frozenset({A}))


@simulated
async def test_a_replica_that_was_read_before_a_rejoin_is_read_again_after_it() -> None:
    """[a reader of the journal was slow: a whole rejoin later its node's check let the old data pass]"""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        box = cluster[B]
        await box.crash()
        await box.start()
        await cluster.settle(2)
        runtime, load, slow, read = box.runtime, box.journal.load, [True], asyncio.Event()
        assert runtime is not None
        await runtime._registry.drop("a test says so")

        async def loaded(repository: RepoId, members: VoterSet) -> Loaded:
            old = await load(repository, members)
            if slow:
                slow.pop()
                await read.wait()
            return old

        box.journal.load = loaded  # type: ignore[method-assign]
        getting = asyncio.create_task(runtime._registry.get(NAME.key))
        await cluster.settle(0.1)
        assert not slow
        runtime.membership.lose("a test says so")
        assert (await cluster.push(A, 1)).kind is COMMITTED
        await until(lambda: not runtime.membership.refusal)
        assert box.journal.lives.life.incarnation == 2
        read.set()
        assert (await getting).register.position.version == 2
        assert await getting is await box.replica()
