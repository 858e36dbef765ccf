"""A read that waited: for its turn, or for a version. Meanwhile its replica was made anew, or set aside."""

import asyncio

import pytest

from node.ports.errors import ReadUnavailable, RepositoryAbsent
from node.ports.service import Consistency
from node.protocol.ids import RepoId
from node.protocol.messages import Query
from node.protocol.outcome import OutcomeKind
from tests.unit.runtime_kit import NAME, A, B, Cluster, simulated

COMMITTED = OutcomeKind.COMMITTED


@pytest.mark.parametrize("look", [False, True])
def test_a_read_that_waited_for_its_turn_reads_what_is_there_then(look: bool) -> None:
    """[its replica was repaired and loaded anew meanwhile: a healthy node answered that it is set aside]"""

    @simulated
    async def reads() -> None:
        async with Cluster(reads_max=1, repository_reads_max=1) as cluster:
            if not look:
                await cluster.create()
            await cluster.settle(3)
            cluster.network.rule = lambda sender, to, message: 0.4 if isinstance(message, Query) else 0.001
            first = asyncio.create_task(_outcome(cluster, look))
            await cluster.settle(0.1)
            second = asyncio.create_task(_outcome(cluster, look))
            await cluster.settle(0.1)
            assert cluster[B].runtime is not None
            old = await cluster[B].replica()
            new = await cluster[B].runtime._registry.reload(NAME.key, "this replica was repaired")
            assert old is not new
            await asyncio.gather(first, return_exceptions=True)
            assert await second == (0 if look else 1)

    reads()


async def _outcome(cluster: Cluster, look: bool) -> int:
    """Version that a read, or a look at what is not there, found."""
    if not look:
        return (await cluster.read(B)).position.version
    with pytest.raises(RepositoryAbsent):
        await cluster[B].service.look(NAME, Consistency.LINEARIZABLE)
    return 0


@pytest.mark.parametrize("consistency", list(Consistency))
def test_a_read_that_waited_for_a_version_is_not_served_by_a_replica_that_was_set_aside_with_it(
    consistency: Consistency,
) -> None:
    """[for one turn of the event loop: the version was there, and so was the alarm]"""

    @simulated
    async def refused() -> None:
        async with Cluster() as cluster:
            await cluster.create()
            await cluster.settle(3)
            box, replica = cluster[B], await cluster[B].replica()
            mark = box.journal.mark_applied

            async def marked(repository: RepoId, version: int) -> None:
                replica.set_aside("a test says so")  # in the very turn in which the version was reached
                await mark(repository, version)

            apply_all = box.store.apply_all

            async def applied(*args: object) -> None:
                await asyncio.sleep(1)
                await apply_all(*args)  # type: ignore[arg-type]

            box.journal.mark_applied = marked  # type: ignore[method-assign]
            box.store.apply_all = applied  # type: ignore[method-assign, assignment]
            assert (await cluster.push(A, 1, content=b"first")).kind is COMMITTED
            await cluster.settle(0.2)
            with pytest.raises(ReadUnavailable, match="a test says so"):
                await cluster.read(B, NAME, consistency, 2)

    refused()
