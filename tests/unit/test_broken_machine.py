"""A machine of one replica that breaks off by a fault of ours: whoever waits for it is answered, nothing is held for ever."""

import asyncio
from collections.abc import Sequence

import pytest

from node.protocol.effects import Effect
from node.protocol.events import Event, Received, Requested, SetAside, Submitted, Tick
from node.protocol.outcome import OutcomeKind
from node.replica import Replica
from tests.unit.runtime_kit import NAME, A, B, C, Cluster, simulated

COMMITTED, ABORTED, UNKNOWN = OutcomeKind.COMMITTED, OutcomeKind.ABORTED, OutcomeKind.UNKNOWN


def breaks(replica: Replica, machine: str, *events: type) -> None:
    handle = getattr(replica, machine).handle

    def broken(event: Event, now: float) -> Sequence[Effect]:
        if isinstance(event, events):
            raise ValueError("a fault of ours")
        done: Sequence[Effect] = handle(event, now)
        return done

    getattr(replica, machine).handle = broken


@pytest.mark.parametrize("also", [Tick, SetAside])
def test_a_request_that_broke_its_voter_is_answered(also: type) -> None:
    """[its future stayed pending, and a turn of the server with it, until the replica was closed]"""

    @simulated
    async def answered() -> None:
        async with Cluster() as cluster:
            await cluster.create()
            await cluster.settle(3)
            replica = await cluster[B].replica()
            breaks(replica, "voter", Requested, also)
            assert (await cluster.push(A, 1, content=b"first")).kind is COMMITTED
            await cluster.settle(10)
            assert not replica._requests
            assert replica.stopped.startswith("internal error")
            await cluster[B].journal.flush()
            assert cluster[B].journal._rows[NAME.key].stopped == replica.stopped
            assert (await cluster.push(C, 2, 1)).kind is COMMITTED

    answered()


@pytest.mark.parametrize("also", [Tick, SetAside])
@pytest.mark.parametrize("event", [Submitted, Received])
def test_a_client_whose_coordinator_broke_hears_that_nothing_is_known(event: type, also: type) -> None:
    """[nothing may be called aborted that may have been sent; and the client waited for ever]"""

    @simulated
    async def answered() -> None:
        async with Cluster() as cluster:
            await cluster.create()
            await cluster.settle(3)
            replica = await cluster[B].replica()
            breaks(replica, "coordinator", event, also)
            outcome = await asyncio.wait_for(cluster.push(B, 1), 10)
            if (event, also) == (Received, Tick):  # it had not come to send it, and says so
                assert (outcome.kind, outcome.sent) == (ABORTED, False)
            else:
                assert outcome.kind is UNKNOWN
                assert "internal error" in outcome.reason
            assert not replica._answers
            again = await asyncio.wait_for(cluster.push(B, 2), 10)
            assert again.kind is UNKNOWN or (again.kind is ABORTED and not again.sent)
            await cluster.settle(10)
            assert not replica._answers
            assert not replica._requests
            assert (await cluster.push(A, 3)).kind is COMMITTED

    answered()
