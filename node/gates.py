"""Gates: how much of one kind of work this node does at once, over all and for one repository; who waits, and for how long.

A bounded number works, a bounded number waits, first come first served, for a bounded time; everybody else hears ``Busy`` at
once, and may come again. One repository may take only its share of both, so a storm on it leaves room for the others: whoever
waits behind its limit is passed by those whose repository has room.

Nothing here is held while a client types: packs are received before (``storage.quarantine`` has turns for that), answers are
sent after.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from node.ports.errors import Busy
from node.protocol.ids import RepoId


@dataclass(slots=True, eq=False)
class _Waiter:
    key: RepoId
    turn: "asyncio.Future[None]"


class Gate:
    """One kind of work; ``what`` names it in refusals: "pushes", "reads"."""

    def __init__(self, what: str, *, at_once: int, at_once_each: int, waiting: int, wait_s: float) -> None:
        """``at_once_each`` and half of ``waiting`` are one repository's share."""
        self._what = what
        self._at_once = at_once
        self._at_once_each = min(at_once, at_once_each)
        self._waiting_max = waiting
        self._waiting_each = max(1, waiting // 2)
        self._wait_s = wait_s
        self._working = 0
        self._by_key: Counter[RepoId] = Counter()
        self._waiters: deque[_Waiter] = deque()
        self._waiting_by_key: Counter[RepoId] = Counter()
        self.refused = 0

    def __repr__(self) -> str:
        return f"<Gate {self._what}: {self._working}/{self._at_once} work, {len(self._waiters)} wait, {self.refused} refused>"

    def check(self, key: RepoId) -> None:
        """Raise ``Busy`` if whoever came now would be refused: before anything is read from a client that would be in vain."""
        if self._free(key):
            return
        if self._waiting_by_key[key] >= self._waiting_each:
            self._refuse(f"{self._at_once_each} {self._what} of this repository are under way and {self._waiting_each} wait")
        if len(self._waiters) >= self._waiting_max:
            self._refuse(f"{self._at_once} {self._what} are under way on this node and {self._waiting_max} wait")

    @asynccontextmanager
    async def turn(self, key: RepoId) -> AsyncIterator[None]:
        """Work within the bounds.

        Raises:
            Busy: at once if too many wait already, or after the stated time.
        """
        await self._take(key)
        try:
            yield
        finally:
            self._give_back(key)

    def _free(self, key: RepoId) -> bool:
        return self._working < self._at_once and self._by_key[key] < self._at_once_each

    async def _take(self, key: RepoId) -> None:
        self.check(key)
        if self._free(key):
            # Whoever waits, waits for its own repository's share: else it would have been let in.
            self._enter(key)
            return
        waiter = _Waiter(key, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._waiting_by_key[key] += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter.turn
        except TimeoutError:
            self._abandon(waiter)
            self._refuse(f"no turn came free for {self._wait_s:g} s among the {self._what} of this node")
        except BaseException:
            self._abandon(waiter)
            raise

    def _abandon(self, waiter: _Waiter) -> None:
        """It gave up; a turn that it was given in the same moment goes on to the next."""
        if waiter.turn.done() and not waiter.turn.cancelled():
            self._give_back(waiter.key)
        else:
            self._waiters.remove(waiter)
            self._left(waiter.key)

    def _enter(self, key: RepoId) -> None:
        self._working += 1
        self._by_key[key] += 1

    def _give_back(self, key: RepoId) -> None:
        self._working -= 1
        self._by_key[key] -= 1
        if not self._by_key[key]:
            del self._by_key[key]
        for waiter in list(self._waiters):
            if self._working >= self._at_once:
                return
            if self._free(waiter.key) and not waiter.turn.done():  # one that gives up in this moment leaves by itself
                self._waiters.remove(waiter)
                self._left(waiter.key)
                self._enter(waiter.key)
                waiter.turn.set_result(None)

    def _left(self, key: RepoId) -> None:
        self._waiting_by_key[key] -= 1
        if not self._waiting_by_key[key]:
            del self._waiting_by_key[key]

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        raise Busy(f"{reason}; try again in a second")
