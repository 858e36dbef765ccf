"""The circuit breaker by itself, and on whole nodes: whom a node does not wait for, and how that peer comes back."""

import asyncio
import statistics

import pytest

from node.breaker import FAILURES_MAX, GOOD_MAX, PAUSE_S, PAUSE_S_MAX, SLOW_MAX, SLOW_S, TRIALS_MAX, Breakers
from node.protocol.ids import NodeId, RefName
from node.protocol.messages import Message, Ping, Pong, Prepare, Query
from node.protocol.outcome import OutcomeKind
from node.reading import HEDGE_S
from tests.unit.runtime_kit import A, B, C, Cluster, simulated, until


class Changes:
    """Breakers of A towards B and C, and what they told."""

    def __init__(self, needed: int = 2, suspected: frozenset[NodeId] = frozenset()) -> None:
        self.told: list[frozenset[NodeId]] = []
        self.breakers = Breakers((B, C), needed=needed, suspected=lambda: suspected, on_change=self._changed)

    def _changed(self) -> None:
        self.told.append(self.breakers.open)


def test_failures_in_a_row_open_the_circuit_and_an_answer_between_them_does_not() -> None:
    changes = Changes()
    for at in range(FAILURES_MAX - 1):
        changes.breakers.failed(B, "no answer", at, at + 0.5)
    changes.breakers.answered(B, 0.01, 4.0)
    for at in range(5, 5 + FAILURES_MAX - 1):
        changes.breakers.failed(B, "no answer", at, at + 0.5)
        changes.breakers.answered(B, 0.01, at + 0.6, ping=True)
    assert not changes.breakers.open
    changes.breakers.failed(B, "no answer within 2.0 s", 20, 21)
    assert changes.breakers.open == {B}
    assert changes.breakers.reason(B) == "5 requests in a row failed, the last one: no answer within 2.0 s"
    assert not changes.breakers.admits(B)
    assert changes.breakers.admits(C)
    assert changes.told == [{B}]


def test_a_request_that_fails_while_others_are_answered_says_nothing_about_the_peer() -> None:
    """A vote that waits for its history until the deadline."""
    changes = Changes()
    for at in range(3 * FAILURES_MAX):
        changes.breakers.answered(B, 0.0, at + 1.0)
        changes.breakers.failed(B, "no answer", at, at + 2.0)
    assert not changes.breakers.open


def test_a_slow_peer_is_skipped_only_if_another_answers_and_a_quorum_is_left() -> None:
    alone = Changes()
    for _ in range(10):
        alone.breakers.slow(B, 1.0, 1.3)
        alone.breakers.slow(C, 1.0, 1.3)
    assert not alone.breakers.open, "everybody is slow: it may be this node"

    for changes in (Changes(needed=3), Changes(suspected=frozenset({C}))):
        changes.breakers.answered(C, 0.01, 2.0)
        for _ in range(10):
            changes.breakers.slow(B, 1.0, 2.3)
        assert not changes.breakers.open, "without it there is no quorum"

    changes = Changes()
    changes.breakers.answered(C, 0.01, 2.0)
    for _ in range(SLOW_MAX):
        assert not changes.breakers.open
        changes.breakers.slow(B, 1.0, 2.3)
    assert changes.breakers.open == {B}
    assert changes.breakers.admits(B), "it is not waited for; what is asked all the same may go"
    changes.breakers.answered(B, 0.01, 9.0)
    changes.breakers.slow(C, 8.0, 9.5)
    changes.breakers.slow(C, 8.0, 9.5)
    assert changes.breakers.open == {B}, "two of three cannot both be skipped"


def test_a_quick_ping_after_the_pause_begins_a_trial_of_few_requests_and_good_answers_end_it() -> None:
    changes = Changes()
    for _ in range(FAILURES_MAX):
        changes.breakers.failed(B, "refused", 0.0, 0.0)
    changes.breakers.answered(B, 0.01, PAUSE_S - 0.1, ping=True)
    assert changes.breakers.open == {B}, "too early"
    changes.breakers.answered(B, SLOW_S + 0.1, PAUSE_S + 0.1, ping=True)
    assert changes.breakers.open == {B}, "too slow"
    changes.breakers.answered(B, 0.01, PAUSE_S + 0.2, ping=True)
    assert not changes.breakers.open
    for _ in range(TRIALS_MAX):
        assert changes.breakers.admits(B)
        changes.breakers.began(B)
    assert not changes.breakers.admits(B)
    for number in range(3 * GOOD_MAX):
        changes.breakers.answered(B, 0.01, 1.0 + number / 10, ping=True)
    assert not changes.breakers.admits(B), "a ping is no proof while the trial is not answered"
    for number in range(GOOD_MAX):
        changes.breakers.answered(B, 0.01, 2.0 + number)
    assert changes.breakers.admits(B)
    assert "node-2 closed" in repr(changes.breakers)


def test_a_trial_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    changes, now = Changes(), 0.0
    for _ in range(FAILURES_MAX):
        changes.breakers.failed(B, "refused", now, now)
    pauses = []
    for _ in range(8):
        began_at = now
        while B in changes.breakers.open:
            now += 0.1
            changes.breakers.answered(B, 0.01, now, ping=True)
        pauses.append(round(now - began_at))
        changes.breakers.failed(B, "refused", now, now + 0.1)
        now += 0.1
    assert pauses == [round(min(PAUSE_S * 2**number, PAUSE_S_MAX)) for number in range(8)]
    assert changes.breakers.opened(B) == 9


def test_peers_that_are_far_away_come_back_after_an_outage() -> None:
    """Every ping takes longer than what is slow here. Both were skipped for ever: no write, and nothing was sent to either."""
    changes = Changes()
    for peer in (B, C):
        for _ in range(FAILURES_MAX):
            changes.breakers.failed(peer, "refused", 0.0, 0.0)
    assert changes.breakers.open == {B, C}
    for number in range(1, 60):
        for peer in (B, C):
            changes.breakers.answered(peer, SLOW_S + 0.1, number / 2, ping=True)
    assert len(changes.breakers.open) <= 1, "a write quorum is waited for"
    assert changes.breakers.admits(B)
    assert changes.breakers.admits(C)


def test_one_that_is_far_away_is_asked_again_after_an_outage_and_waited_for_when_it_is_needed() -> None:
    gone: set[NodeId] = set()
    breakers = Breakers((B, C), needed=2, suspected=lambda: frozenset(gone), on_change=lambda: None)
    for _ in range(FAILURES_MAX):
        breakers.failed(B, "refused", 0.0, 0.0)
    assert not breakers.admits(B)
    for number in range(1, 60):
        breakers.answered(B, SLOW_S + 0.1, number / 2, ping=True)
        breakers.answered(C, 0.01, number / 2, ping=True)
    assert breakers.open == {B}
    assert breakers.admits(B), "it missed every change for ever"
    assert breakers.reason(B) == "it answers again, but slower than 0.3 s"
    gone.add(C)
    for number in range(60, 70):
        breakers.answered(B, SLOW_S + 0.1, number / 2, ping=True)
    assert not breakers.open
    assert "node-2 closed" in repr(breakers)


# ---------------------------------------------------------------- on whole nodes


async def push_for(cluster: Cluster, seconds: float, numbers: "list[int]") -> list[float]:
    """Pushes one after the other, from A; how long each took."""
    loop = asyncio.get_running_loop()
    took: list[float] = []
    until_at = loop.time() + seconds
    while loop.time() < until_at:
        numbers.append(len(numbers) + 1)
        began_at = loop.time()
        outcome = await cluster.push(A, numbers[-1], 0, ref=RefName(f"refs/heads/{numbers[-1]}"), content=b"%d" % numbers[-1])
        assert outcome.kind is OutcomeKind.COMMITTED
        took.append(loop.time() - began_at)
        await asyncio.sleep(0.04)
    return took


@pytest.mark.parametrize("delay_s", [3.0, 0.6, None], ids=["3 s late", "0.6 s late", "frozen"])
@simulated
async def test_a_slow_or_frozen_peer_slows_no_push_but_the_first_ones_and_comes_back_by_itself(delay_s: float | None) -> None:
    """0.6 s: within the heartbeats' patience, so only the breaker can notice."""
    numbers: list[int] = []
    async with Cluster() as cluster:
        await cluster.create(A)
        well = statistics.median(await push_for(cluster, 1.0, numbers))
        cluster.network.rule = lambda sender, to, message: delay_s if C in (sender, to) else 0.001
        took = await push_for(cluster, 10.0, numbers)
        runtime = cluster[A].runtime
        assert runtime is not None
        waited = [each for each in took if each > well + 0.05]
        assert waited, "the fault must have been felt"
        assert len(waited) <= 0.1 * len(took), f"{len(waited)} of {len(took)} pushes waited for the slow peer"
        opened = runtime._breakers.opened(C)
        assert opened
        print(f"delay {delay_s}: {len(took)} pushes, {len(waited)} waited up to {max(took):.3f} s; opened {opened}")  # noqa: T201
        cluster.network.rule = lambda sender, to, message: 0.001
        await until(lambda: C not in runtime._suspected, timeout_s=15)
        await cluster.settle(5)
        last = await push_for(cluster, 1.0, numbers)
        assert statistics.median(last) <= well * 1.5
        assert (await cluster.push(A, 9999, content=b"last")).confirmed == 3, "it votes again"
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1


@simulated
async def test_reads_do_not_wait_for_a_slow_peer() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)
        cluster.network.rule = lambda sender, to, message: 3.0 if C in (sender, to) else 0.001
        for _ in range(100):
            began_at = asyncio.get_running_loop().time()
            await cluster.main(A)
            assert asyncio.get_running_loop().time() - began_at < HEDGE_S + 0.01, "asked first, or not"
            await asyncio.sleep(0.05)


@simulated
async def test_a_peer_that_answers_pings_and_nothing_else_is_given_up_and_tried_again_seldom() -> None:
    """The quorum's denominator stays: with the second peer gone too, nothing is committed."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(1)

        def deaf(sender: NodeId, to: NodeId, message: Message) -> float | None:
            return None if C in (sender, to) and not isinstance(message, Ping | Pong) else 0.001

        cluster.network.rule = deaf
        numbers: list[int] = []
        await push_for(cluster, 10.0, numbers)
        runtime = cluster[A].runtime
        assert runtime is not None
        assert runtime._breakers.opened(C) >= 1
        before = len(cluster.network.log)
        took = await push_for(cluster, 8.0, numbers)
        since = cluster.network.log[before:]
        trials = sum(sender == A and to == C and isinstance(message, Prepare | Query) for sender, to, message in since)
        print(f"{len(took)} pushes, {trials} trials, opened {runtime._breakers.opened(C)}")  # noqa: T201
        assert len(took) > 100
        assert 0 < trials < 0.2 * len(took)
        await cluster[B].crash()
        await cluster.settle(3)
        refused = await cluster.push(A, 1)
        assert refused.kind is not OutcomeKind.COMMITTED
        assert refused.quorum == 2
