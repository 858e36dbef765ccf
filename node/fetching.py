"""Turns of fetches: so many ``git upload-pack`` run at once, and a client that reads slowly keeps its turn only while nobody
waits for one. Sixteen clients that read a byte a minute would otherwise keep everybody else from this node for ever.

Only a reader that holds what it was given can be slow: time in which git makes the next piece is not the client's. Taking the
turn away ends the process at once; the client hears of it when it reads on, by an answer that breaks off.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from node.ports import Busy, Clock

WAIT_S = 5.0
"""How long a fetch waits for its turn before it is told to come back."""

GRACE_S = 5.0
PACE_BYTES_PER_S = 32 * 1024
"""While others wait, a reader may be this far behind this pace. What it was quicker before does not count: the first
megabytes are taken by the sockets' buffers at once, whether or not anybody reads."""

LOOK_S = 0.25
"""How often who waits looks for a reader that has become too slow."""

log = structlog.get_logger(__name__)


class FetchTurns:
    """One node's turns."""

    def __init__(self, turns_max: int, clock: Clock) -> None:
        self._turns_max = turns_max
        self._free = asyncio.Semaphore(turns_max)
        self._clock = clock
        self._held: set[Fetching] = set()

    async def begin(self, start: Callable[[], Awaitable[AsyncIterator[bytes]]]) -> "Fetching":
        """The stream that ``start`` brings, once it is this fetch's turn.

        Raises:
            Busy: no turn came free, and nobody read slowly enough to lose one.
        """
        await self._take()
        try:
            fetching = Fetching(await start(), self._clock, self._give_back)
        except BaseException:
            self._free.release()
            raise
        self._held.add(fetching)
        return fetching

    async def _take(self) -> None:
        give_up_at = self._clock.now() + WAIT_S
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._free.acquire()
                return
            except TimeoutError as error:
                if self._clock.now() >= give_up_at:
                    raise Busy(f"{self._turns_max} fetches run on this node already") from error
            await self._evict_slowest()

    async def _evict_slowest(self) -> None:
        slow = [fetching for fetching in self._held if fetching.slow]
        if slow:
            await max(slow, key=lambda fetching: fetching.behind_s).evict()

    def _give_back(self, fetching: "Fetching") -> None:
        self._held.discard(fetching)
        self._free.release()


class Fetching:
    """One fetch under way; its turn is given back at its end, or by ``aclose``, even if nobody ever began to read it."""

    def __init__(self, stream: AsyncIterator[bytes], clock: Clock, give_back: Callable[["Fetching"], None]) -> None:
        self._stream = stream
        self._clock = clock
        self._give_back: Callable[[Fetching], None] | None = give_back
        self._behind_s = 0.0
        """How far the reader was behind the pace when it asked for the last piece."""
        self._piece_bytes = 0
        self._held_since: float | None = clock.now()
        """When the reader was given what it has; ``None`` while git works on the next piece."""
        self._evicted = False

    def __aiter__(self) -> "Fetching":
        return self

    async def __anext__(self) -> bytes:
        if self._evicted:
            raise Busy("read too slowly while other fetches waited for their turn")
        self._behind_s, self._held_since = self.behind_s, None
        try:
            piece = await anext(self._stream)
        except BaseException:
            await self.aclose()
            raise
        self._piece_bytes, self._held_since = len(piece), self._clock.now()
        return piece

    @property
    def behind_s(self) -> float:
        """How far the reader is behind the pace; never ahead of it."""
        if self._held_since is None:
            return self._behind_s
        held_s = self._clock.now() - self._held_since
        return max(0.0, self._behind_s + held_s - self._piece_bytes / PACE_BYTES_PER_S)

    @property
    def slow(self) -> bool:
        """Whether git waits for the reader, who is too far behind."""
        return self._held_since is not None and self.behind_s > GRACE_S

    async def evict(self) -> None:
        """Take the turn away."""
        log.warning("slow fetch gave way", behind_s=round(self.behind_s, 1))
        self._evicted = True
        await self.aclose()

    async def aclose(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is None:
            return
        try:
            if (close := getattr(self._stream, "aclose", None)) is not None:
                await close()
        finally:
            give_back(self)
