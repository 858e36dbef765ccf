"""Gates and the retry budget: what is done at once, who waits, and who hears that it is too much."""

import asyncio

import pytest

from node.fakes import LoopClock
from node.gates import Gate
from node.ports.errors import Busy
from node.protocol.ids import RepoId
from node.retries import FLOOR_PER_S, RATIO, TOKENS_MAX, RetryBudget
from tests.unit.runtime_kit import simulated

ONE, TWO = RepoId("alice/one"), RepoId("alice/two")


def gate(at_once: int = 4, each: int = 2, waiting: int = 6, wait_s: float = 5.0) -> Gate:
    return Gate("pushes", at_once=at_once, at_once_each=each, waiting=waiting, wait_s=wait_s)


async def work(through: Gate, key: RepoId, takes_s: float, done: list[str], name: str = "") -> None:
    async with through.turn(key):
        await asyncio.sleep(takes_s)
        done.append(name or str(key))


@simulated
async def test_so_many_work_so_many_wait_and_the_others_hear_it_at_once() -> None:
    through, done = gate(), list[str]()
    tasks = [asyncio.create_task(work(through, ONE, 1.0, done)) for _ in range(10)]
    await asyncio.sleep(0.01)
    refused = [task.exception() for task in tasks if task.done()]
    assert len(refused) == 5, "two work, three wait: half of six"
    assert all(isinstance(error, Busy) and "of this repository" in str(error) for error in refused)
    assert repr(through) == "<Gate pushes: 2/4 work, 3 wait, 5 refused>"
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(done) == 5
    assert repr(through) == "<Gate pushes: 0/4 work, 0 wait, 5 refused>"


@simulated
async def test_a_storm_on_one_repository_leaves_room_for_another() -> None:
    through, done = gate(), list[str]()
    storm = [asyncio.create_task(work(through, ONE, 1.0, done, "storm")) for _ in range(50)]
    await asyncio.sleep(0.01)
    began_at = LoopClock().now()
    await work(through, TWO, 0.1, done, "calm")
    assert LoopClock().now() - began_at < 0.11
    assert done == ["calm"]
    await asyncio.gather(*storm, return_exceptions=True)


@simulated
async def test_turns_are_given_in_order_and_pass_by_whom_its_repository_holds_back() -> None:
    through, done = gate(at_once=2, each=1), list[str]()
    works = [(ONE, "1a"), (ONE, "1b"), (TWO, "2a"), (ONE, "1c"), (TWO, "2b")]
    tasks = []
    for key, name in works:
        tasks.append(asyncio.create_task(work(through, key, 1.0, done, name)))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert done == ["1a", "2a", "1b", "2b", "1c"]


@simulated
async def test_who_waits_too_long_and_who_goes_away_take_no_turn() -> None:
    through, done = gate(at_once=1, each=1, wait_s=2.0), list[str]()
    first = asyncio.create_task(work(through, ONE, 3.0, done))
    await asyncio.sleep(0.01)
    patient, gone = (asyncio.create_task(work(through, ONE, 1.0, done)) for _ in range(2))
    await asyncio.sleep(1.0)
    gone.cancel()
    began_at = LoopClock().now()
    with pytest.raises(Busy, match="no turn came free for 2 s"):
        await patient
    assert LoopClock().now() - began_at < 1.1
    await first
    assert repr(through) == "<Gate pushes: 0/1 work, 0 wait, 1 refused>"
    await work(through, ONE, 0.1, done)


@simulated
async def test_a_turn_that_comes_in_the_moment_of_giving_up_is_not_lost() -> None:
    for offset in (-0.001, 0.0, 0.001):
        through, done = gate(at_once=1, each=1, wait_s=1.0), list[str]()
        first = asyncio.create_task(work(through, ONE, 1.0 + offset, done))
        await asyncio.sleep(0)
        await asyncio.gather(*(work(through, ONE, 0.01, done) for _ in range(3)), return_exceptions=True)
        await first
        assert repr(through).startswith("<Gate pushes: 0/1 work, 0 wait")


@simulated
async def test_repetitions_are_a_tenth_of_requests_and_a_few_a_second() -> None:
    budget = RetryBudget(LoopClock())
    assert sum(budget.take() for _ in range(1000)) == TOKENS_MAX
    for _ in range(500):
        budget.earn()
    assert sum(budget.take() for _ in range(1000)) == pytest.approx(500 * RATIO, abs=1)
    await asyncio.sleep(3)
    assert sum(budget.take() for _ in range(1000)) == pytest.approx(3 * FLOOR_PER_S, abs=1)
    assert budget.taken + budget.refused == 3000
    await asyncio.sleep(3600)
    assert sum(budget.take() for _ in range(1000)) == TOKENS_MAX
