"""One client's HTTP/1.1 connection: strict about framing, patient for a stated time only, bounded in memory.

A subclass of uvicorn's httptools protocol. Why httptools (llhttp) and not h11: given 57 malformed messages, h11 takes
Content-Length together with Transfer-Encoding, repeated Content-Lengths, obs-fold, bare LF and spaces after chunk sizes;
llhttp refuses them all, and is faster. What llhttp lets pass is refused here: other transfer codings before ``chunked``,
chunked in HTTP/1.0, a missing or second Host, HTTP/0.9 and 2.0, CONNECT (tests/unit/test_http_hardening.py has the list).

What uvicorn leaves open and this closes: no limit on header bytes, header count, trailers or chunk extensions; no limit on
time before the headers are complete, between bytes of a body, or for a client that does not read; pipelined requests queued
without bound and answered into each other's streams; a 400 written into the middle of a running answer. There is no
pipelining here: a request that arrives before the last one was answered is dropped and the connection closed after the
answer, which RFC 9112 (9.3.2) lets a server do and clients recover from.

Time is kept by one sweep over all connections (``Crowd.sweep``, driven by ``server``), not by timers per request.
"""

import asyncio
import socket
from collections.abc import Iterable
from enum import Enum
from typing import Any

import httptools
from uvicorn.config import Config as UvicornConfig
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from api.client_transport import ClientTransport
from api.limits import Limits
from api.problems import raw_answer

UNSENT_BYTES = 64 * 1024
"""So much waits in the kernel unsent before this process is asked for more. Without it up to 4 MB are swallowed at once and
asked for again only when a third has gone, and an honest reader at 64 KiB/s looks stalled for 20 s (node/fetching.py)."""


class Phase(Enum):
    """What a connection waits for."""

    IDLE = "idle"
    """The first byte of a request."""
    HEAD = "head"
    """The end of its headers."""
    BODY = "body"
    """The end of its body."""
    ANSWER = "answer"
    """The application."""
    DEAF = "deaf"
    """The client to go; what it still sends is dropped."""


class Crowd:
    """All clients of one server: who is let in, and who has waited too long."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.leaving: set[Connection] = set()
        """Refused, and still being told so: they take nobody's place."""
        self.served: set[Any] = set()
        """uvicorn's own set of connections, those leaving taken out."""

    def admits(self) -> bool:
        return len(self.served) <= self.limits.connections_max

    def sweep(self, now: float) -> None:
        """End the connections that are overdue; called a few times a second."""
        crowded = len(self.served) > self.limits.connections_max * self.limits.crowded_share
        for connection in (*self.served, *self.leaving):
            connection.check(now, crowded)

    def let_go(self, connection: "Connection") -> bool:
        """A refused client's place is free at once; False if it cannot be given time to hear why."""
        self.served.discard(connection)
        if len(self.leaving) >= self.limits.leaving_max:
            return False
        self.leaving.add(connection)
        return True


class Connection(HttpToolsProtocol):
    """See the module's docstring; uvicorn makes one per accepted socket."""

    transport: ClientTransport

    def __init__(
        self,
        config: UvicornConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        crowd: Crowd,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # uvicorn asks for leniency about data after "Connection: close"; here such data ends the conversation.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self._crowd = crowd
        self._limits = crowd.limits
        self._served_app = self.app
        self.app = self._serve
        self._phase = Phase.IDLE
        self._since = 0.0
        self._refusal: tuple[str, str] | None = None
        self._begin()

    def _begin(self) -> None:
        """Forget the last request."""
        self._head_bytes = 0
        self._wire_bytes = 0
        self._body_bytes = 0
        self._window_bytes = 0
        self._waited_s = 0.0
        self._waiting_since: float | None = None

    def _enter(self, phase: Phase) -> None:
        self._phase, self._since = phase, self.loop.time()
        self.transport.expects_input = phase is not Phase.ANSWER

    # ------------------------------------------------------------ the socket's events

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # asyncio does this only for sockets made with IPPROTO_TCP, which socket.create_server's are not. Without it every
        # answer of two writes waits 40 ms for the client's delayed acknowledgement.
        connected = transport.get_extra_info("socket")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux, macOS
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        super().connection_made(ClientTransport(transport, self.loop, self._limits))
        self._crowd.served = self.connections
        self._enter(Phase.IDLE)
        if not self._crowd.admits():
            self._refuse("busy", "This node serves as many connections as it may; try again later, or ask another node.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.leaving.discard(self)
        self._phase = Phase.DEAF
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.DEAF:
            self.transport.drop(len(data))
            return
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade:
            # Unasked-for protocols are ignored (RFC 9110, 7.8); what follows may be in one, so this is the last request.
            self._hear_no_more()
        except httptools.HttpParserError as error:
            self._misunderstood(error)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client may finish sending and wait for its answer; one that stops in mid-request has gone."""
        self.transport.end_of_input()
        if self._phase is not Phase.ANSWER:
            return None
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.stalled()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.transport.flowing()

    # ------------------------------------------------------------ reading a request

    def _feed(self, data: bytes) -> None:
        """Give bytes to the parser, no more of them than headers may be long while there are headers to read."""
        if self._phase in (Phase.IDLE, Phase.HEAD):
            room = self._limits.header_bytes_max - self._head_bytes
            piece, data = data[:room], data[room:]
            self._head_bytes += len(piece)
            self.parser.feed_data(piece)
            if self._phase in (Phase.IDLE, Phase.HEAD):
                if self._head_bytes >= self._limits.header_bytes_max:
                    self._refuse("headers-too-large", f"Headers may be at most {self._limits.header_bytes_max} bytes long.")
                return
        if not data or self._phase is Phase.DEAF:
            return
        self._wire_bytes += len(data)
        self.parser.feed_data(data)
        if self._phase is Phase.BODY and self._wire_bytes > self._limits.chunk_overhead_max + 16 * self._body_bytes:
            self._refuse("bad-framing", "Chunk sizes, extensions and trailers take more room than the body itself.")

    def on_message_begin(self) -> None:
        if self._phase is not Phase.IDLE:
            raise ValueError("a request before the last one was answered")
        super().on_message_begin()
        self._enter(Phase.HEAD)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.target_bytes_max:
            raise self._refusing("target-too-long", f"A target may be at most {self._limits.target_bytes_max} bytes long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is Phase.BODY:
            return  # a trailer: nothing here reads them, and a late header must not pass for an early one
        super().on_header(name, value)
        if len(self.headers) > self._limits.header_count_max:
            raise self._refusing("headers-too-large", f"Send at most {self._limits.header_count_max} headers.")

    def on_headers_complete(self) -> None:
        if flaw := framing_flaw(self.parser.get_method(), self.parser.get_http_version(), self.headers):
            raise self._refusing("bad-framing", flaw)
        # The answer's task starts at the next turn of the loop; by then the phase may be ANSWER already.
        super().on_headers_complete()
        self._enter(Phase.BODY)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._window_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._enter(Phase.ANSWER)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._phase is not Phase.ANSWER:
            # The rest of the body is not wanted. The connection was closed with the answer, and lingers.
            self._phase = Phase.DEAF
            self._leave()
        super().on_response_complete()
        if self._phase is Phase.ANSWER and not self.transport.is_closing():
            self._begin()
            self._enter(Phase.IDLE)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Between uvicorn and the application: note when the application waits for the client, send an answer's head with the
        first of its body, and close after answers to requests that were not read to their end."""

        async def watched_receive() -> Any:
            self.transport.uncork()  # the client may wait for the head before it sends on
            self._waiting_since = self.loop.time()
            try:
                return await receive()
            finally:
                if self._waiting_since is not None:
                    self._waited_s += self.loop.time() - self._waiting_since
                    self._waiting_since = None

        async def watched_send(message: Any) -> None:
            if message["type"] != "http.response.start":
                await send(message)
                self.transport.uncork()
                return
            if self._phase is not Phase.ANSWER:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            self.transport.cork()
            await send(message)

        await self._served_app(scope, watched_receive, watched_send)

    # ------------------------------------------------------------ saying no

    def _refusing(self, slug: str, detail: str) -> ValueError:
        """What a parser callback raises to stop the parser; ``_misunderstood`` then says why."""
        self._refusal = (slug, detail)
        return ValueError(detail)

    def _misunderstood(self, error: httptools.HttpParserError) -> None:
        if self._phase is Phase.ANSWER:
            self._hear_no_more()
            return
        slug, detail = self._refusal or ("bad-framing", f"The request is not well-formed HTTP/1.1: {error}.")
        self._refuse(slug, detail)

    def _hear_no_more(self) -> None:
        """Let the request under way, which was read to its end, be answered; then close."""
        self._phase = Phase.DEAF
        self.transport.expects_input = True
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _refuse(self, slug: str, detail: str) -> None:
        """Answer below the application, and close. A running answer cannot be corrected any more: it is cut."""
        self._phase = Phase.DEAF
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        self.transport.expects_input = True
        self.transport.write(raw_answer(slug, detail))
        self._leave()

    def _leave(self) -> None:
        """Give the place free; linger if there is room for that, else go without a word more."""
        if self._crowd.let_go(self):
            self.transport.close()
        else:
            self.transport.abort()

    # ------------------------------------------------------------ time

    def check(self, now: float, crowded: bool) -> None:
        """Is the client too slow? Called by the sweep."""
        if self.transport.overdue(now):
            self.transport.abort()
        elif self.transport.is_closing() or self._phase in (Phase.ANSWER, Phase.DEAF):
            return
        elif self._phase is Phase.BODY:
            self._check_body(now)
        else:
            self._check_wait(now - self._since, crowded)

    def _check_wait(self, waited_s: float, crowded: bool) -> None:
        idle = self._phase is Phase.IDLE and self.cycle is not None
        patience = self._limits.keep_alive_s if idle else self._limits.header_timeout_s
        if crowded:
            patience = min(patience, self._limits.crowded_patience_s)
        if waited_s < patience:
            return
        if self._phase is Phase.IDLE:
            self.transport.end_of_input()
            self.transport.close()
        else:
            self._refuse("request-timeout", f"The headers did not arrive within {patience:g} s.")

    def _check_body(self, now: float) -> None:
        waited_s = self._waited_s + (now - self._waiting_since if self._waiting_since is not None else 0.0)
        if waited_s < self._limits.body_stall_s:
            return
        if self._window_bytes < self._limits.body_bytes_min:
            self._refuse("request-timeout", f"The body made no progress for {self._limits.body_stall_s:g} s.")
            return
        self._window_bytes, self._waited_s = 0, 0.0
        self._waiting_since = None if self._waiting_since is None else now

    def shutdown(self) -> None:
        """The server drains: idle connections go at once, the others after their answer."""
        if self._phase in (Phase.IDLE, Phase.HEAD):
            self.transport.end_of_input()
        super().shutdown()


def framing_flaw(method: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """What llhttp lets pass and this server does not; ``None`` if the request is well framed."""
    if version not in ("1.0", "1.1"):
        return "Use HTTP/1.1."
    if method == b"CONNECT":
        return "This is no proxy."
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        return "Send exactly one Host header."
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings and (version == "1.0" or [coding.lower() for coding in codings] != [b"chunked"]):
        return "The only transfer coding is chunked, once, in HTTP/1.1."
    return None
