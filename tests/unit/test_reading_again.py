"""A read that waited: for its turn, or for a version. Meanwhile its replica was made anew, or set aside."""

import asyncio

import pytest

from node.ports.errors import RepositoryAbsent
from node.ports.service import Consistency
from node.protocol.messages import Query
from tests.unit.runtime_kit import NAME, B, Cluster, simulated


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
