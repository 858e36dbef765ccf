"""The network between the nodes, and between nodes and broker: a TCP proxy for each direction of asking, which can go wrong.

Each node sees each peer, and the broker, at a port of its own here: ``node-1→node-2`` carries what node 1 asks of node 2 and
the answers. A link can hold bytes back, each way by itself (a cut; what was held arrives when it is mended, late, as TCP
would deliver it), let them pass late, and reset its connections. ``held``, ``late`` and ``reset`` count what really met it.
Clients go past it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 5.0
LAST_S = 0.1
"""At the end: whoever was let in a moment before is shown out, and every transport hears that it is closed."""


class Way(Enum):
    """Of bytes on a link, as seen from the one who connects."""

    THERE = "there"
    BACK = "back"


class Link:
    """One proxied port."""

    def __init__(self, asker: str, asked: str, target: Callable[[], int]) -> None:
        """``target``: the port behind it, now."""
        self.asker, self.asked = asker, asked
        self.port = 0
        self.counts: Counter[str] = Counter()
        self._target = target
        self._open = {way: asyncio.Event() for way in Way}
        self._delay_s = dict.fromkeys(Way, 0.0)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.mend()

    def __repr__(self) -> str:
        return f"<Link {self.asker}→{self.asked} :{self.port} {dict(self.counts)}>"

    @property
    def busy(self) -> bool:
        """Whether it has connections."""
        return bool(self._writers)

    # ------------------------------------------------------------ what goes wrong

    def cut(self, *ways: Way) -> None:
        """Hold back whatever comes, and new connections with it."""
        for way in ways:
            self._open[way].clear()

    def delay(self, seconds: float, *ways: Way) -> None:
        for way in ways:
            self._delay_s[way] = seconds

    def mend(self) -> None:
        """Whatever was held back goes on its way."""
        for way in Way:
            self._delay_s[way] = 0.0
            self._open[way].set()

    def reset(self) -> None:
        """Break every connection (RST), whatever was on the way."""
        for writer in list(self._writers):
            self.counts["reset"] += 1
            writer.transport.abort()

    async def refuse(self) -> None:
        """Nobody is behind it: connections are refused, as the machine itself would."""
        if self._server is not None:
            await _stop_accepting(self._server)
            self._server.close()
            self._server = None
        self.reset()

    # ------------------------------------------------------------ its life

    async def listen(self) -> None:
        """On the same port as before, if there was one."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._closed = True
        await self.refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            await self._pass(Way.THERE)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                back, other = await asyncio.open_connection("127.0.0.1", self._target())
            self._writers.add(other)
            await self._both(reader, writer, back, other)
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()  # nobody is there, or the run ends: the asker sees the connection break
        finally:
            self._tasks.discard(task)
            for each in (writer, *([other] if other else [])):
                self._writers.discard(each)
                each.close()

    async def _both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        other: asyncio.StreamWriter,
    ) -> None:
        """Until one side has ended; then the other side hears it, too."""
        pumps = [
            asyncio.create_task(self._pump(reader, other, Way.THERE)),
            asyncio.create_task(self._pump(back, writer, Way.BACK)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, way: Way) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                await self._pass(way)
                to.write(data)
                await to.drain()

    async def _pass(self, way: Way) -> None:
        if delay_s := self._delay_s[way]:
            self.counts["late"] += 1
            await asyncio.sleep(delay_s)
        if not self._open[way].is_set():
            self.counts["held"] += 1
            await self._open[way].wait()


async def _stop_accepting(server: asyncio.Server) -> None:
    """Those accepted in this turn of the loop get their transport in the next; to a server closed in between it cannot attach,
    and its socket stays open until the garbage is collected (python/cpython#109564)."""
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening)
    await asyncio.sleep(0)


BROKER = "broker"


class Network:
    """All links of a cluster: every node to every peer, and to the broker."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self.nodes = tuple(nodes)
        self.links: list[Link] = []

    async def open(self, target: Callable[[str], int]) -> None:
        """``target(name)``: the true port of a node, or of ``BROKER``."""
        for asker in self.nodes:
            for asked in (*self.nodes, BROKER):
                if asker != asked:
                    self.links.append(Link(asker, asked, lambda asked=asked: target(asked)))  # type: ignore[misc]
        for link in self.links:
            await link.listen()

    async def close(self) -> None:
        for link in self.links:
            await link.close()
        await asyncio.sleep(LAST_S)

    def link(self, asker: str, asked: str) -> Link:
        return next(link for link in self.links if (link.asker, link.asked) == (asker, asked))

    def between(self, one: str, *others: str) -> list[Link]:
        """Whoever of them asks."""
        pairs = {(one, other) for other in others} | {(other, one) for other in others}
        return [link for link in self.links if (link.asker, link.asked) in pairs]

    def mend(self) -> None:
        for link in self.links:
            link.mend()

    def count(self, what: str) -> int:
        return sum(link.counts[what] for link in self.links)

    async def gone(self, name: str) -> None:
        """Its process is dead: nobody listens there."""
        for link in self.links:
            if link.asked == name:
                await link.refuse()
            if link.asker == name:
                link.reset()

    async def back(self, name: str) -> None:
        for link in self.links:
            if link.asked == name:
                await link.listen()
