"""Turns of fetches: bounded in number, given back however a fetch ends, taken from who reads slowly while others wait."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from node.fakes import LoopClock
from node.fetching import GRACE_S, PACE_BYTES_PER_S, WAIT_S, Fetching, FetchTurns
from node.ports import Busy
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
    reading.cancel()


@simulated
async def test_a_reader_that_holds_its_piece_gives_way_to_who_waits() -> None:
    turns, source = FetchTurns(2, LoopClock()), Source()
    stalled, trickling = await turns.begin(source.start), await turns.begin(source.start)
    await anext(stalled)
    reading = asyncio.create_task(read(trickling, every_s=len(PIECE) / PACE_BYTES_PER_S / 4))
    await asyncio.sleep(3 * GRACE_S)
    began_at = LoopClock().now()
    third = await turns.begin(source.start)
    assert LoopClock().now() - began_at < 1
    assert source.running == 1, "its git is gone; the third one's starts when it is read"
    with pytest.raises(Busy, match="read too slowly"):
        await anext(stalled)
    assert not reading.done(), "four times the pace is quick enough"
    await third.aclose()
    reading.cancel()


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
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await (await turns.begin(source.start)).aclose()
