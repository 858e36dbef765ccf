"""Following a peer's journal: from where it was looked at last, and from the beginning where it is another one."""

import asyncio
from typing import Any

import pytest

from node.ports.errors import DamagedPart, JournalDamaged
from node.ports.journal import Loaded
from node.protocol.ids import RepoId
from node.protocol.messages import Pong, Summaries, SummaryPage
from node.protocol.names import RepositoryName
from node.protocol.outcome import OutcomeKind
from node.protocol.quorum import VoterSet
from node.summaries import Follower
from tests.unit.runtime_kit import NAME, A, B, Cluster, simulated


class Peer:
    """Tells what it was asked."""

    def __init__(self) -> None:
        self.sequence = 0
        self.asked: list[int] = []

    async def ask(self, to: Any, message: Any, *, timeout_s: float) -> SummaryPage:
        assert isinstance(message, Summaries)
        self.asked.append(message.since)
        await asyncio.sleep(1)
        return SummaryPage("journal", self.sequence, ())

    def pong(self, incarnation: int) -> Pong:
        return Pong("journal", incarnation, self.sequence, True)


async def never(repository: RepoId) -> Any:
    raise AssertionError(repository)


@simulated
async def test_a_peer_that_has_rejoined_is_followed_from_the_beginning() -> None:
    """[its journal dropped rows and gave their numbers to other changes: nothing seemed to have grown]"""
    peer, tasks = Peer(), list[asyncio.Task[None]]()
    follower = Follower(peer, lambda work: tasks.append(asyncio.create_task(work)), never)  # type: ignore[arg-type]
    peer.sequence = 5
    follower.on_pong(A, peer.pong(1))
    await asyncio.sleep(10)
    assert peer.asked == [0, 5]
    follower.on_pong(A, peer.pong(1))
    await asyncio.sleep(10)
    assert peer.asked == [0, 5], "it has not grown"
    follower.on_pong(A, peer.pong(2))
    await asyncio.sleep(10)
    assert peer.asked == [0, 5, 0, 5]


@simulated
async def test_an_answer_of_the_old_life_is_not_taken_for_one_of_the_new_one() -> None:
    peer, tasks = Peer(), list[asyncio.Task[None]]()
    follower = Follower(peer, lambda work: tasks.append(asyncio.create_task(work)), never)  # type: ignore[arg-type]
    peer.sequence = 5
    follower.on_pong(A, peer.pong(1))
    await asyncio.sleep(0.5)
    follower.on_pong(A, peer.pong(2))  # while the first question is under way
    await asyncio.sleep(10)
    assert sorted(peer.asked) == [0, 0, 5, 5]


@pytest.mark.parametrize("fault", [JournalDamaged(NAME.key, DamagedPart.REFS, "a test says so"), ValueError("a fault of ours")])
def test_a_repository_that_cannot_be_read_keeps_no_other_from_being_followed(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[the same page was asked for at every heartbeat, and nothing of it or after it was ever caught up with]"""
    monkeypatch.setattr("node.serving.SUMMARY_PAGE", 4)

    @simulated
    async def run() -> None:
        async with Cluster(anti_entropy_interval_s=3600.0) as cluster:
            names = [NAME, *(RepositoryName("zoe", f"p{number}") for number in range(10))]
            for name in names:
                await cluster.create(A, name)
            await cluster.settle(5)
            box = cluster[B]
            await box.journal.flush()  # a start has nothing to replay
            await box.crash()
            for name in names:
                assert (await cluster.push(A, 1, name=name)).kind is OutcomeKind.COMMITTED
            load = box.journal.load

            async def loaded(repository: RepoId, members: VoterSet) -> Loaded:
                if repository == NAME.key:
                    raise fault
                return await load(repository, members)

            box.journal.load = loaded  # type: ignore[method-assign]
            await box.start()
            await cluster.settle(30)
            behind = [name for name in names[1:] if (await box.replica(name)).register.position.version < 2]
            assert not behind
            box.journal.load = load  # type: ignore[method-assign]
            await cluster.settle(5)
            assert (await box.replica()).register.position.version == 2, "tried again when it can be read"

    run()
