"""The pack of a push as it comes in: streamed, never gathered, but for one so small that it can be shown to git twice.

Twice, because a load balancer may send a client's look at the refs to one node and its push to another that is a moment
behind: then git misses objects that are committed. Whoever finds that out catches up and tries again (``second_look.py``). For
a small pack nothing is asked beforehand; before a large one goes on, which could not be had again, this node catches up first.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

from api.git_body import BodyRefused
from node.protocol.messages import INLINE_PACK_BYTES_MAX


class PushPack:
    """What follows a push's commands. ``fault`` is why the body broke off, whatever an intake made of that."""

    def __init__(self, head: bytes, pieces: AsyncIterator[bytes], before_large: Callable[[], Awaitable[object]]) -> None:
        """``before_large`` is awaited once, before more is passed on than can be kept."""
        self.fault: BodyRefused | None = None
        self._head = head
        self._pieces = pieces
        self._before_large = before_large
        self._kept: bytearray | None = bytearray()
        self._whole = False

    @property
    def repeatable(self) -> bool:
        """Whether it came to its end and was kept."""
        return self._whole and self._kept is not None

    async def stream(self) -> AsyncIterator[bytes]:
        """The pack; may be read once.

        Raises:
            BodyRefused: remembered in ``fault``, since git makes "early EOF" of it.
        """
        if self._head:
            await self._keep(self._head)
            yield self._head
        try:
            async for piece in self._pieces:
                await self._keep(piece)
                yield piece
        except BodyRefused as fault:
            self.fault = fault
            raise
        self._whole = True

    async def again(self) -> AsyncIterator[bytes]:
        """The same bytes, if it is ``repeatable``."""
        assert self.repeatable
        assert self._kept is not None
        yield bytes(self._kept)

    def forget(self) -> None:
        """It need not be had again."""
        self._kept = None

    async def _keep(self, piece: bytes) -> None:
        if self._kept is None:
            return
        if len(self._kept) + len(piece) <= INLINE_PACK_BYTES_MAX:
            self._kept += piece
        else:
            self._kept = None
            await self._before_large()
