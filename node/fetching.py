"""Turns of fetches: so many ``git upload-pack`` run at once, and a client that reads slowly keeps its turn only while nobody
waits for one. Sixteen clients that read a byte a minute would otherwise keep everybody else from this node for ever.

Only a reader that holds what it was given can be slow: time in which git makes the next piece is not the client's. Taking the
turn away ends the process at once; the client hears of it when it reads on, by an answer that breaks off. Turns are given in
the order in which they were asked for.

Not prevented: sixteen clients that read just fast enough keep their turns, and hundreds that come again at once after they
lost theirs make honest ones wait for long, some until they hear 503. Limits per client come with accounts.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from node.ports.errors import Busy
from node.ports.surroundings import Clock

WAIT_S = 15.0
"""How long a fetch waits for its turn before it is told to come back. Invariant: longer than it takes until a reader that
stops reading at this moment counts as slow."""

GRACE_S = 2.0
PACE_BYTES_PER_S = 32 * 1024
"""While others wait, a reader may be this far behind this pace. What it was quicker before does not count: sockets' buffers
take the first piece at once, whether or not anybody reads."""

LOOK_S = 0.25
"""How often readers that have become too slow are looked for while somebody waits."""

log = structlog.get_logger(__name__)


class FetchTurns:
    """One node's turns."""

    def __init__(self, turns_max: int, clock: Clock) -> None:
        self._turns_max = turns_max
        self._free = asyncio.Semaphore(turns_max)
        self._clock = clock
        self._held: set[Fetching] = set()
        self._waiting = 0
        self._look: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<FetchTurns {len(self._held)}/{self._turns_max} held, {self._waiting} wait>"

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

    async def close(self) -> None:
        """Wait for those that lost their turn to end. Whoever holds one has ended it before."""
        if self._look is not None:
            self._look.cancel()
        await asyncio.gather(*self._ending)

    async def _take(self) -> None:
        self._waiting += 1
        self._schedule()
        try:
            async with asyncio.timeout(WAIT_S):
                await self._free.acquire()
        except TimeoutError as error:
            raise Busy(f"{self._turns_max} fetches run on this node already") from error
        finally:
            self._waiting -= 1

    def _schedule(self) -> None:
        if self._look is None and self._free.locked():
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_for_slow)

    def _look_for_slow(self) -> None:
        """As many as there are waiters lose their turns, who is furthest behind first."""
        self._look = None
        wanted = self._waiting - len(self._ending)
        if wanted > 0:
            slow = sorted((fetching for fetching in self._held if fetching.slow), key=lambda fetching: -fetching.behind_s)
            for fetching in slow[:wanted]:
                task = asyncio.create_task(fetching.evict())
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        if self._waiting:
            self._schedule()

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
        return self._held_since is not None and not self._evicted and self.behind_s > GRACE_S

    async def evict(self) -> None:
        """Take the turn away; the process's end is nobody's but this fetch's, however it goes."""
        if self._evicted or self._held_since is None or self._give_back is None:
            return  # it was read on meanwhile, or has ended
        log.warning("slow fetch gave way", behind_s=round(self.behind_s, 1))
        self._evicted = True
        try:
            await self.aclose()
        except Exception:
            log.exception("the process of a slow fetch did not end well")

    async def aclose(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is None:
            return
        try:
            if (close := getattr(self._stream, "aclose", None)) is not None:
                await close()
        finally:
            give_back(self)
