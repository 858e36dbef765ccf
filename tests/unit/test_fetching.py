"""Turns of fetches: bounded in number, given back however a fetch ends, taken from who reads slowly while others wait."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from node.fakes import LoopClock
from node.fetching import GRACE_S, LOOK_S, PACE_BYTES_PER_S, WAIT_S, Fetching, FetchTurns
from node.ports.errors import Busy
from tests.unit.runtime_kit import simulated

PIECE = b"x" * 64 * 1024


class Source:
    """``git upload-pack``s: each gives ``pieces``, every one after ``takes_s``."""

    def __init__(self, pieces: int = 1000, takes_s: float = 0.0) -> None:
        self.pieces = pieces
        self.takes_s = takes_s
        self.running = 0

    async def start(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            for _ in range(self.pieces):
                await asyncio.sleep(self.takes_s)
                yield PIECE
        finally:
            self.running -= 1


async def read(fetching: Fetching, every_s: float = 0.0) -> int:
    """All of it, with a pause behind every piece; returns how many came."""
    count = 0
    async for _ in fetching:
        count += 1
        await asyncio.sleep(every_s)
    return count


async def ended(*tasks: "asyncio.Task[int]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@simulated
async def test_turns_come_back_at_the_end_by_closing_and_after_a_failure() -> None:
    turns, source = FetchTurns(1, LoopClock()), Source(pieces=3)

    async def broken() -> AsyncIterator[bytes]:
        raise Busy("no thread for it")

    for _ in range(3):
        assert await read(await turns.begin(source.start)) == 3
        unread = await turns.begin(source.start)
        await unread.aclose()
        await unread.aclose()
        with pytest.raises(Busy, match="no thread"):
            await turns.begin(broken)
    assert source.running == 0


@simulated
async def test_a_fetch_that_comes_too_many_is_told_so_in_time() -> None:
    turns, slow_git = FetchTurns(1, LoopClock()), Source(takes_s=100.0)
    fetching = await turns.begin(slow_git.start)
    reading = asyncio.create_task(read(fetching))
    began_at = LoopClock().now()
    with pytest.raises(Busy, match="1 fetches run on this node already"):
        await turns.begin(slow_git.start)
    assert WAIT_S <= LoopClock().now() - began_at < WAIT_S + 1
    assert not reading.done(), "git is slow, its reader is not"
    await ended(reading)


@simulated
async def test_who_comes_when_all_stop_reading_waits_until_they_count_as_slow() -> None:
    turns, source = FetchTurns(2, LoopClock()), Source()
    for _ in range(2):
        await anext(await turns.begin(source.start))
    began_at = LoopClock().now()
    for _ in range(2):
        await turns.begin(source.start)
    waited_s = LoopClock().now() - began_at
    assert GRACE_S + len(PIECE) / PACE_BYTES_PER_S < waited_s < GRACE_S + len(PIECE) / PACE_BYTES_PER_S + 3 * LOOK_S
    assert waited_s < WAIT_S / 2
    assert source.running == 0, "theirs are gone; the new ones start when they are read"


@simulated
async def test_the_slowest_gives_way_and_who_keeps_the_pace_does_not() -> None:
    turns, source = FetchTurns(3, LoopClock()), Source()
    stalled, trickling, quick = [await turns.begin(source.start) for _ in range(3)]
    await anext(stalled)
    slow = asyncio.create_task(read(trickling, every_s=1.5 * len(PIECE) / PACE_BYTES_PER_S))
    fast = asyncio.create_task(read(quick, every_s=0.9 * len(PIECE) / PACE_BYTES_PER_S))
    await asyncio.sleep(30)
    third = asyncio.create_task(read(await turns.begin(source.start), every_s=1.0))
    with pytest.raises(Busy, match="read too slowly"):
        await anext(stalled)
    await asyncio.sleep(30)
    assert not slow.done(), "one waited, so one gave way"
    fourth = await turns.begin(source.start)
    with pytest.raises(Busy, match="read too slowly"):
        await slow
    assert not fast.done(), "a little quicker than the pace"
    await fourth.aclose()
    await ended(third, fast)


@simulated
async def test_turns_are_given_in_the_order_they_were_asked_for() -> None:
    turns, source = FetchTurns(1, LoopClock()), Source(pieces=3, takes_s=1.0)
    first = asyncio.create_task(read(await turns.begin(source.start)))
    order: list[str] = []

    async def wait(name: str) -> None:
        fetching = await turns.begin(source.start)
        order.append(name)
        await fetching.aclose()

    early = asyncio.create_task(wait("early"))
    await asyncio.sleep(LOOK_S * 0.8)
    late = asyncio.create_task(wait("late"))
    await asyncio.gather(first, early, late)
    assert order == ["early", "late"]


class SlowToEnd:
    """A stream whose process takes its time, and may not end well."""

    def __init__(self, error: Exception | None = None) -> None:
        self.closed = 0
        self._error = error

    def __aiter__(self) -> "SlowToEnd":
        return self

    async def __anext__(self) -> bytes:
        return PIECE

    async def aclose(self) -> None:
        self.closed += 1
        await asyncio.sleep(2.0)
        if self._error:
            raise self._error


@simulated
async def test_each_slow_reader_is_ended_once_and_side_by_side() -> None:
    turns = FetchTurns(2, LoopClock())
    streams = [SlowToEnd(), SlowToEnd(OSError("no such process"))]

    async def start(number: int) -> AsyncIterator[bytes]:
        return streams[number]

    for number in range(2):
        await anext(await turns.begin(lambda number=number: start(number)))  # type: ignore[misc]
    await asyncio.sleep(10)
    began_at = LoopClock().now()
    await asyncio.gather(*(turns.begin(Source().start) for _ in range(2)))
    assert LoopClock().now() - began_at < 2.0 + 3 * LOOK_S
    assert [stream.closed for stream in streams] == [1, 1]
    await turns.close()


@simulated
async def test_a_quick_beginning_saves_no_reader_that_trickles_later() -> None:
    """The sockets' buffers take the first megabytes from anybody."""
    turns, source = FetchTurns(1, LoopClock()), Source()
    fetching = await turns.begin(source.start)
    for _ in range(100):
        await anext(fetching)
    reading = asyncio.create_task(read(fetching, every_s=2.5 * len(PIECE) / PACE_BYTES_PER_S))
    await asyncio.sleep(4 * GRACE_S)
    await (await turns.begin(source.start)).aclose()
    with pytest.raises(Busy, match="read too slowly"):
        await reading


@simulated
async def test_who_never_begins_to_read_gives_way_too() -> None:
    turns, source = FetchTurns(1, LoopClock()), Source()
    unread = await turns.begin(source.start)
    await asyncio.sleep(GRACE_S + 1)
    await (await turns.begin(source.start)).aclose()
    with pytest.raises(Busy, match="read too slowly"):
        await anext(unread)


@simulated
async def test_a_slow_reader_that_nobody_waits_for_is_left_alone() -> None:
    turns, source = FetchTurns(1, LoopClock()), Source(pieces=5)
    assert await read(await turns.begin(source.start), every_s=60) == 5


@simulated
async def test_a_wait_that_is_cancelled_takes_no_turn() -> None:
    turns, source = FetchTurns(1, LoopClock()), Source(takes_s=1.0)
    first = await turns.begin(source.start)
    reading = asyncio.create_task(read(first))
    waiting = asyncio.create_task(turns.begin(source.start))
    await asyncio.sleep(0.6)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await ended(reading)
    await (await turns.begin(source.start)).aclose()
