"""A drill's partition: this node stays up, serves its clients, and neither hears nor is heard by its peers for a while.

For staging only, and only where the setting ``drill_token`` allows it (``api/drills.py`` is the switch). What travels between
nodes waits at a gate in both directions, as packets do on a cut line: a request that is not over by its own time limit brought
no answer; what still waits when the gate opens goes on, late. The gate opens by itself after ``ISOLATION_S_MAX`` at most,
whoever closed it and however he went.

The broker is still in reach, and clients are: it is the line between the nodes that is cut.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import structlog

from node.ports.errors import NoAnswer
from node.ports.transport import DirectAnswer, DirectEndpoint, Handler, Peers, Transport
from node.protocol.ids import NodeId
from node.protocol.messages import DirectReply, DirectRequest, Fetch, TransportReply, TransportRequest

log = structlog.get_logger()

ISOLATION_S_MAX = 60.0


class Isolation:
    """The gate. It belongs to one event loop, and is open unless it was closed."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def left_s(self) -> float:
        """How much longer it stays closed; 0 when it is open."""
        return 0.0 if self._open.is_set() else max(0.0, self._until - asyncio.get_running_loop().time())

    def begin(self, seconds: float) -> None:
        """Cut this node off, for at most ``ISOLATION_S_MAX`` from now on; again: the new end counts."""
        loop = asyncio.get_running_loop()
        wanted_s = min(seconds, ISOLATION_S_MAX)
        self._stop_timer()
        self._open.clear()
        self._until = loop.time() + wanted_s
        self._timer = loop.call_later(wanted_s, self.end)
        log.warning("cut off for a drill", seconds=wanted_s)

    def end(self) -> None:
        """May be called again."""
        self._stop_timer()
        if not self._open.is_set():
            self._open.set()
            log.warning("no longer cut off")

    async def passed(self) -> None:
        """Returns when the gate is open."""
        await self._open.wait()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class GatedTransport:
    """``ports.Transport`` behind the gate."""

    def __init__(self, inner: Transport, gate: Isolation) -> None:
        self.name = inner.name
        self._inner = inner
        self._gate = gate

    @property
    def up(self) -> bool:
        return self._inner.up

    @property
    def detail(self) -> str:
        return self._inner.detail

    async def start(self, handler: Handler) -> None:
        async def gated(sender: NodeId, message: TransportRequest) -> TransportReply:
            await self._gate.passed()
            reply = await handler(sender, message)
            await self._gate.passed()
            return reply

        await self._inner.start(gated)

    async def stop(self) -> None:
        self._gate.end()  # handlers that wait would have to be cancelled
        await self._inner.stop()

    async def request(self, to: NodeId, message: TransportRequest, *, timeout_s: float) -> TransportReply:
        try:
            async with asyncio.timeout(timeout_s):
                await self._gate.passed()
                reply = await self._inner.request(to, message, timeout_s=timeout_s)
                await self._gate.passed()
                return reply
        except TimeoutError as error:
            raise NoAnswer(f"no answer from {to} within {timeout_s:.1f} s") from error


class GatedPeers:
    """``ports.Peers`` behind the gate."""

    def __init__(self, inner: Peers, gate: Isolation) -> None:
        self._inner = inner
        self._gate = gate

    async def ask(self, to: NodeId, message: DirectRequest, *, timeout_s: float) -> DirectReply:
        try:
            async with asyncio.timeout(timeout_s):
                await self._gate.passed()
                reply = await self._inner.ask(to, message, timeout_s=timeout_s)
                await self._gate.passed()
                return reply
        except TimeoutError as error:
            raise NoAnswer(f"no answer from {to} within {timeout_s:.1f} s") from error

    async def fetch(self, to: NodeId, message: Fetch, *, stall_s: float) -> AsyncIterator[bytes]:
        await self._within(stall_s, to)
        async with aclosing(self._inner.fetch(to, message, stall_s=stall_s)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                await self._within(stall_s, to)
                yield chunk

    async def stop(self) -> None:
        await self._inner.stop()

    async def _within(self, stall_s: float, to: NodeId) -> None:
        try:
            async with asyncio.timeout(stall_s):
                await self._gate.passed()
        except TimeoutError as error:
            raise NoAnswer(f"nothing came from {to} for {stall_s:.1f} s") from error


class GatedEndpoint:
    """``ports.DirectEndpoint`` behind the gate."""

    def __init__(self, inner: DirectEndpoint, gate: Isolation) -> None:
        self._inner = inner
        self._gate = gate

    async def serve(self, kind: str, body: bytes) -> DirectAnswer:
        await self._gate.passed()
        answer = await self._inner.serve(kind, body)
        await self._gate.passed()
        return answer
