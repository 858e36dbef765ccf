"""What was begun before a node rejoined, or by an attempt to rejoin that was given up, and ends afterwards."""

import asyncio

import pytest

from node.protocol.acceptor import CommitOp
from node.protocol.change import Change, ChangeKind, Request
from node.protocol.ids import TxnId
from node.protocol.names import RepositoryName
from node.protocol.outcome import OutcomeKind
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
