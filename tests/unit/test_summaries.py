"""Following a peer's journal: from where it was looked at last, and from the beginning where it is another one."""

import asyncio
from typing import Any

from node.protocol.ids import RepoId
from node.protocol.messages import Pong, Summaries, SummaryPage
from node.summaries import Follower
from tests.unit.runtime_kit import A, simulated


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
