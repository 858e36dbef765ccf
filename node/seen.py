"""What this node has seen of the others' journals (R4): an answer of an older life than that is not counted.

Every heartbeat and every vote tells where its sender's journal stands. The newest of each node is kept in memory at once, and
on the disk a few seconds later: off the hot path, and early enough for a node that is told of its loss after a restart of all.
"""

import asyncio
from collections.abc import Iterable

import structlog

from node.ports.errors import StorageError
from node.ports.lives import Lives
from node.protocol.ids import NodeId
from node.protocol.standing import Life, together, weighed

log = structlog.get_logger()

KEEP_EVERY_S = 5.0


class SeenLives:
    """The newest life of every peer."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives
        self._seen = dict(lives.seen)
        self._unkept: set[NodeId] = set()

    def of(self, node: NodeId) -> Life | None:
        return self._seen.get(node)

    def accept(self, node: NodeId, life: Life | None) -> bool:
        """Remember where ``node`` stands; False for a life that is older than what was seen of it."""
        if life is None:
            return True
        known = self._seen.get(node)
        counts, newest = weighed(known, life)
        if newest != known:
            self._seen[node] = newest
            self._unkept.add(node)
        return counts

    @property
    def all(self) -> tuple[tuple[NodeId, Life], ...]:
        """For a node that rejoins: it has forgotten what it had seen."""
        return tuple(sorted(self._seen.items()))

    def learn(self, seen: Iterable[tuple[NodeId, Life]]) -> None:
        """What another member has seen."""
        for node, life in seen:
            known = self._seen.get(node)
            newest = together(life, *(known,) if known else ())
            if newest != known:
                self._seen[node] = newest
                self._unkept.add(node)

    async def run(self) -> None:
        """Keep what is new, now and then; ends when cancelled."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            await self.keep()

    async def keep_all(self) -> None:
        """Before the mark of a rejoining node is cleared. Raises ``StorageError``."""
        if self._seen:
            await self._lives.keep_seen(dict(self._seen))

    async def keep(self) -> None:
        unkept, self._unkept = self._unkept, set()
        if not unkept:
            return
        try:
            await self._lives.keep_seen({node: self._seen[node] for node in sorted(unkept)})
        except Exception as error:
            self._unkept |= unkept
            if not isinstance(error, StorageError):
                raise
            log.warning("not noted what was seen of peers", error=str(error))
