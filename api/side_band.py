"""The answer to a push while it is made: progress lines, signs of life, and last the report.

git's side-band-64k: packets that begin with 1 carry the report, with 2 lines for the person (``remote: …``). Nothing is sent
before there is something to say, so a quick push is answered in one piece; a long one gets an empty packet every few seconds,
as git's own ``receive.keepAlive``, so that clients and proxies stay. A client that does not read its answer loses it; the
push goes on without it.
"""

import asyncio
from http import HTTPStatus

from api.git_exchange import ClientStalled, Exchange
from api.pkt import FLUSH_PKT, PACKET_BYTES_MAX, pkt

RESULT = b"application/x-git-receive-pack-result"
KEEPALIVE_S = 5.0
KEEPALIVE_PKT = b"0005\x01"
LINE_BYTES_MAX = 1000
PENDING_BYTES_MAX = 64 * 1024
"""Lines that a client does not take in time are dropped; the report is not."""

_DATA_MAX = PACKET_BYTES_MAX - 5


class SideBand:
    """One push's answer. ``enabled`` says whether the client asked for side-bands; without, it gets the report, plain."""

    def __init__(self, exchange: Exchange, *, enabled: bool, quiet: bool) -> None:
        self._exchange = exchange
        self._enabled = enabled
        self._quiet = quiet
        self._stalled = False
        self._pending = bytearray()
        self._flusher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def progress(self, text: str) -> None:
        """Tell the person at once how it goes, unless the client asked for quiet; does not wait."""
        if not self._quiet:
            self.say(text)

    def say(self, text: str) -> None:
        """Tell the person at once, as a hook's words: git asks for quiet whenever nobody sits at a terminal."""
        self._add(text)
        self._flush_soon()

    def keep_alive(self) -> None:
        """From now on the client waits for us."""
        if self._enabled and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEEPALIVE_S, self._tick)

    async def finish(self, report: bytes, remark: str) -> None:
        """Send what is left, last the report.

        Raises:
            ClientStalled: nobody reads it.
        """
        await self.close()
        self._add(remark)
        if self._enabled:
            self._pending += b"".join(pkt(b"\x01" + report[at : at + _DATA_MAX]) for at in range(0, len(report), _DATA_MAX))
            self._pending += FLUSH_PKT
        else:
            self._pending += report
        if not self._exchange.started:
            await self._exchange.answer(HTTPStatus.OK, RESULT, bytes(self._pending))
        else:
            await self._exchange.write(bytes(self._pending))
            await self._exchange.end()

    async def close(self) -> None:
        """Stop the timer, wait for lines under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flusher is not None:
            await self._flusher
            self._flusher = None

    def _add(self, text: str) -> None:
        if not self._enabled or self._stalled:
            return
        for line in text.splitlines():
            packet = pkt(b"\x02" + line.encode("utf-8", "replace")[:LINE_BYTES_MAX] + b"\n")
            if len(self._pending) + len(packet) <= PENDING_BYTES_MAX:
                self._pending += packet

    def _tick(self) -> None:
        self._timer = None
        if not self._pending:
            self._pending += KEEPALIVE_PKT
        self._flush_soon()
        self.keep_alive()

    def _flush_soon(self) -> None:
        if self._pending and (self._flusher is None or self._flusher.done()):
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            if not self._exchange.started:
                await self._exchange.start(HTTPStatus.OK, RESULT)
            while self._pending:
                data = bytes(self._pending)
                self._pending.clear()
                await self._exchange.write(data)
        except ClientStalled:
            self._stalled = True  # the report will meet the same fate, and says so
