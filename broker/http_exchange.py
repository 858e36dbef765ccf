"""One ``POST`` and its answer, over kept HTTP/1.1 connections to one peer: what a question between nodes costs.

aiohttp takes three times the processor time for that (docs/decisions/0005-broker.md), twice on the way of every
linearizable read that nobody else pays for. So here is only what a small exchange needs; what streams is aiohttp's
(``direct.py``), and parsing is llhttp's (httptools, which uvicorn stands on). RFC 9112.

A connection carries one exchange at a time. One that was cut short, by whomever and for whatever reason, is never used again:
what still comes on it would be taken for the next one's answer.
"""

import asyncio
import ssl
from collections import deque
from urllib.parse import quote, urlsplit

import httptools

CONNECT_TIMEOUT_S = 2.0
IDLE_S = 4.0
"""How long an idle connection is kept; the front end keeps it for 30 s, so that seldom both ends decide at once."""
PIECE_BYTES = 256 * 1024
"""Larger requests are written in pieces of this size, as fast as the peer takes them."""
OVERHEAD_BYTES_MAX = 64 * 1024
"""Status line, headers, chunk sizes and trailers, beyond twice the answer that is allowed."""
REFUSAL_BYTES_MAX = 4096
"""So much is read of an answer that is not 200."""
_HAPPY_EYEBALLS_S = 0.25
"""RFC 8305."""


class Unreachable(Exception):
    """There is no connection, and nothing was sent."""


class Dropped(Exception):
    """The connection ended before the answer did; ``silent``: before any of it."""

    def __init__(self, reason: str, *, silent: bool) -> None:
        super().__init__(reason)
        self.silent = silent


class Malformed(Exception):
    """What came is no HTTP/1.1 answer, or a longer one than was asked for."""


class HttpPeer:
    """The connections to one peer."""

    def __init__(self, url: str, connections_max: int) -> None:
        """``url`` as ``node.config`` has checked it; nothing is connected before the first exchange."""
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        port = f":{parts.port}" if parts.port is not None else ""
        self._authority = parts.netloc if parts.netloc.isascii() else self._host.encode("idna").decode() + port
        self._turns = asyncio.Semaphore(connections_max)
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self._stopped = False

    async def post(self, path: str, body: bytes, *, answer_bytes_max: int) -> tuple[int, bytes]:
        """Status and body of the answer; of one that is not 200 only the first ``REFUSAL_BYTES_MAX``. Whoever calls sets the
        time limit, and may cancel at any moment.

        Raises:
            Unreachable: nothing was sent.
            Dropped: it may have been taken.
            Malformed: something was answered.
        """
        head = (
            f"POST {self._path}{path} HTTP/1.1\r\nHost: {self._authority}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode("ascii")
        async with self._turns:
            connection = self._kept() or await self._connected()
            try:
                answer = await connection.exchange(head, body, answer_bytes_max)
            except Dropped:
                self._cut_idle()  # most likely the peer has restarted: the others are as dead
                raise
            self._keep(connection)
            return answer

    async def stop(self) -> None:
        """Cut all connections; exchanges under way end in ``Dropped``."""
        self._stopped = True
        for connection in list(self._open):
            connection.cut()
        await asyncio.sleep(0)  # the sockets are closed by the loop's next turn

    # ------------------------------------------------------------ connections

    def _kept(self) -> "_Connection | None":
        """The one that was used last: those that are not needed grow old."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < IDLE_S:
                return connection
            connection.cut()
        return None

    def _keep(self, connection: "_Connection") -> None:
        now = asyncio.get_running_loop().time()
        while self._idle and now - self._idle[0].idle_since >= IDLE_S:
            self._idle.popleft().cut()
        if connection.usable and not self._stopped:
            connection.idle_since = now
            self._idle.append(connection)
        else:
            connection.cut()

    def _cut_idle(self) -> None:
        while self._idle:
            self._idle.pop().cut()

    async def _connected(self) -> "_Connection":
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._open),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    happy_eyeballs_delay=_HAPPY_EYEBALLS_S,
                )
        except TimeoutError as error:
            raise Unreachable(f"no connection to {self._host}:{self._port} within {CONNECT_TIMEOUT_S:g} s") from error
        except (OSError, UnicodeError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        if self._stopped:
            connection.cut()
            raise Unreachable("this node is stopping")
        return connection


class _Connection(asyncio.Protocol):
    """One connection; also what httptools calls back."""

    def __init__(self, opened: "set[_Connection]") -> None:
        self._opened = opened
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.usable = True
        """For another exchange."""
        self.idle_since = 0.0

    async def exchange(self, head: bytes, body: bytes, answer_bytes_max: int) -> tuple[int, bytes]:
        self.usable = False
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._bytes_max = answer_bytes_max
        self._wire_bytes = self._body_bytes = self._status = 0
        self._parts: list[bytes] = []
        try:
            if len(body) <= PIECE_BYTES:
                self._transport.write(head + body)  # together: two writes wake the peer twice
            else:
                await self._send(head, body)
            return await self._answer
        except BaseException:
            self._answer.cancel()  # nobody waits for how it ends
            self.cut()
            raise

    def cut(self) -> None:
        """Never to be used again."""
        self.usable = False
        self._transport.abort()

    async def _send(self, head: bytes, body: bytes) -> None:
        """Stops when there is an answer already: a refusal does not wait for the end of what it refuses."""
        assert self._answer is not None
        self._transport.write(head)
        for start in range(0, len(body), PIECE_BYTES):
            await self._writable.wait()
            if self._answer.done():
                self.usable = False
                return
            self._transport.write(body[start : start + PIECE_BYTES])

    # ------------------------------------------------------------ asyncio's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._opened.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._opened.discard(self)
        self._fail(Dropped(str(exc or "connection closed"), silent=not self._waiting or not self._wire_bytes))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if not self._waiting:
            self.cut()  # nobody has asked
            return
        self._wire_bytes += len(data)
        if self._wire_bytes > OVERHEAD_BYTES_MAX + 2 * self._bytes_max:
            self._fail(Malformed("headers, chunk sizes or trailers take too much room"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Malformed(f"no HTTP/1.1 answer: {error}"))

    @property
    def _waiting(self) -> bool:
        return self._answer is not None and not self._answer.done()

    def _fail(self, error: Exception) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
            self._writable.set()

    def _done(self, *, reusable: bool) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._status, b"".join(self._parts)))
            self.usable = reusable and not self._transport.is_closing() and self._writable.is_set()
            self._writable.set()  # nobody need read the rest of a request that is answered

    # ------------------------------------------------------------ the parser's events

    def on_message_begin(self) -> None:
        if not self._waiting:
            self.cut()  # a second answer

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._status == 200 and self._body_bytes > self._bytes_max:
            self._fail(Malformed(f"more than {self._bytes_max} bytes"))
        elif self._status != 200 and self._body_bytes > REFUSAL_BYTES_MAX:
            self._parts.append(body)
            self._done(reusable=False)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._status >= 200:  # else it is on its way (RFC 9110, 15.2)
            self._done(reusable=self._parser.should_keep_alive())
