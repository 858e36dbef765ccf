"""Whether a push that misses something here misses it everywhere: this node may be a moment behind the one that its client saw.

Asked only before a refusal, and before a pack goes on that could not be had again. All looks of one push together take
``LOOK_S`` at most, so that peers that fall silent are not paid for twice.
"""

import asyncio
from contextlib import suppress

import structlog

from node.ports.errors import Busy, ReadUnavailable, RepositoryAbsent
from node.ports.service import Consistency, Service
from node.protocol.ids import Position
from node.protocol.names import RepositoryName

LOOK_S = 1.0
"""How long a push waits, in all, for this node to learn what the others know."""

log = structlog.get_logger(__name__)


class SecondLook:
    """One push's. ``moved()`` is true if this node knows more now than at the look before."""

    def __init__(self, service: Service, name: RepositoryName, position: Position | None) -> None:
        """``position``: what this node knew when the push began."""
        self.position = position
        self.excuse = ""
        """Why this node may still be behind, for whoever is refused; empty after a good look."""
        self._service = service
        self._name = name
        self._left_s = LOOK_S

    async def moved(self) -> bool:
        before = self.position
        began_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(self._left_s, 0.0)):
                self.position = await self._position(Consistency.LINEARIZABLE)
            self.excuse = ""
        except (ReadUnavailable, Busy, TimeoutError) as error:
            # It may have learned something all the same, unless it has been set aside meanwhile.
            with suppress(ReadUnavailable):
                self.position = await self._position(Consistency.LOCAL)
            reason = str(error) or f"not within {LOOK_S:g} s"
            self.excuse = f" (this node could not compare itself with the others: {reason}; try again)"
        self._left_s -= asyncio.get_running_loop().time() - began_at
        if self.position != before:
            log.info("caught up for a push", repository=str(self._name), before=str(before), now=str(self.position))
        return self.position != before

    async def _position(self, consistency: Consistency) -> Position | None:
        """``None`` when the repository is gone: then the push is refused for what it is refused for."""
        try:
            return (await self._service.read(self._name, consistency)).position
        except RepositoryAbsent:
            return None
