"""The asking half of direct HTTP: envelopes by ``POST {url}/replicate/{kind}``, the reply's envelope in the response.

``HttpPeers`` carries questions, staging and packs whatever the transport is; ``DirectTransport`` adds claim, prepare, abort
and commit for a cluster without a broker. The serving half is ``direct_server.py``, behind the front end's one port.

Keep-alive connections, several pools of them: the bulk kinds take long, and must not keep a ping or a prepare waiting for a
connection. Every message is safe to repeat, so one that met a connection which the peer was just closing is sent again, once.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import cast

import aiohttp

from broker.codec import Codec, EnvelopeRefused, Sealed
from broker.http_exchange import CONNECT_TIMEOUT_S, IDLE_S, REFUSAL_BYTES_MAX, Dropped, HttpPeer, Malformed, Unreachable
from broker.kinds import BY_WORD
from node.ports.errors import NoAnswer, PeerUnreachable
from node.ports.transport import Handler
from node.protocol.ids import NodeId
from node.protocol.messages import DirectReply, DirectRequest, Fetch, Message, TransportReply, TransportRequest

OUTSTANDING_MAX = 4096
CONNECTIONS_PER_PEER = 64
BULK_CONNECTIONS_PER_PEER = 16
TURN_S = 60.0
"""How long a fetch waits for one of the peer's connections, all of which may be carrying packs."""
CHUNK_BYTES = 256 * 1024

_BULK = frozenset(("stage", "history"))


class HttpPeers:
    """``ports.Peers``: questions to peers by direct HTTP."""

    def __init__(self, codec: Codec, urls: Mapping[NodeId, str], may_repeat: Callable[[], bool] = lambda: True) -> None:
        """``urls`` by member; this node's own is not used. Nothing is connected before the first question. ``may_repeat`` asks
        the node's retry budget."""
        self._may_repeat = may_repeat
        self.codec = codec
        self._urls = {node: url.rstrip("/") for node, url in urls.items() if node != codec.me}
        self._quick = {node: HttpPeer(url, CONNECTIONS_PER_PEER) for node, url in self._urls.items()}
        self._bulk = {node: HttpPeer(url, BULK_CONNECTIONS_PER_PEER) for node, url in self._urls.items()}
        self._session: aiohttp.ClientSession | None = None
        self._outstanding = 0
        self._stopped = False

    def __repr__(self) -> str:
        return f"<HttpPeers of {self.codec.me}: {', '.join(self._urls)}; {self._outstanding} waiting>"

    @property
    def peers(self) -> tuple[NodeId, ...]:
        return tuple(self._urls)

    async def ask(self, to: NodeId, message: DirectRequest, *, timeout_s: float) -> DirectReply:
        return cast(DirectReply, await self.exchange(to, message, timeout_s=timeout_s))

    async def exchange(self, to: NodeId, message: Message, *, timeout_s: float) -> Message:
        """One request, one verified reply; raises ``PeerUnreachable`` or ``NoAnswer``."""
        sealed = self._seal(to, message, timeout_s)
        self._outstanding += 1
        try:
            async with asyncio.timeout(timeout_s):
                data = await self._post(sealed)
        except TimeoutError as error:
            raise NoAnswer(f"no answer from {to} within {timeout_s:.1f} s") from error
        finally:
            self._outstanding -= 1
        return self._open(sealed, data)

    async def fetch(self, to: NodeId, message: Fetch, *, stall_s: float) -> AsyncIterator[bytes]:
        sealed = self._seal(to, message, stall_s)
        size = message.pack.index_size_bytes if message.index else message.pack.size_bytes
        wanted = size - message.offset
        try:
            async with self._stream(sealed, stall_s) as response:
                if response.status != 200:
                    raise _refusal(sealed, response.status, await response.content.read(REFUSAL_BYTES_MAX))
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    wanted -= len(chunk)
                    if wanted < 0:
                        raise NoAnswer(f"{to} sent more of {message.pack.name} than there is")
                    yield chunk
        except (TimeoutError, aiohttp.ClientError) as error:
            raise _mapped(to, error) from error
        if wanted:
            raise NoAnswer(f"{to} sent {wanted} bytes too few of {message.pack.name}")

    async def stop(self) -> None:
        self._stopped = True
        for peer in (*self._quick.values(), *self._bulk.values()):
            await peer.stop()
        if self._session is not None:
            await self._session.close()

    # ------------------------------------------------------------ one request

    def _seal(self, to: NodeId, message: Message, timeout_s: float) -> Sealed:
        if self._stopped:
            raise PeerUnreachable("this node is stopping")
        if to not in self._urls:
            raise PeerUnreachable(f"{to} is no peer")
        if self._outstanding >= OUTSTANDING_MAX:
            raise PeerUnreachable("transport overloaded")
        try:
            return self.codec.seal(message, to, timeout_s=timeout_s)
        except EnvelopeRefused as refusal:
            raise PeerUnreachable(str(refusal)) from refusal

    async def _post(self, sealed: Sealed) -> bytes:
        try:
            return await self._post_once(sealed)
        except Dropped as error:
            # Most likely an idle connection that the peer was just closing.
            if not error.silent or not self._may_repeat():
                raise NoAnswer(f"{sealed.receiver} did not answer: {error}") from error
        try:
            return await self._post_once(sealed)
        except (Dropped, PeerUnreachable) as error:
            # The first one may have been taken, whatever became of the second.
            raise NoAnswer(f"{sealed.receiver} closed the connection, then: {error}") from error

    async def _post_once(self, sealed: Sealed) -> bytes:
        pool = self._bulk if sealed.kind.word in _BULK else self._quick
        limit = max(BY_WORD[word].bytes_max for word in sealed.kind.answers)
        path = f"/replicate/{sealed.kind.word}"
        try:
            status, data = await pool[sealed.receiver].post(path, sealed.data, answer_bytes_max=limit)
        except Unreachable as error:
            raise PeerUnreachable(f"{sealed.receiver} cannot be reached: {error}") from error
        except Malformed as error:
            raise NoAnswer(f"{sealed.receiver} did not answer as it should: {error}") from error
        if status != 200:
            raise _refusal(sealed, status, data)
        return data

    def _open(self, sealed: Sealed, data: bytes) -> Message:
        """The reply, if it is one: of the peer that was asked, to this very request, of a kind that answers it."""
        try:
            opened = self.codec.open(data)
        except EnvelopeRefused as refusal:
            raise NoAnswer(f"the answer of {sealed.receiver} was refused: {refusal}") from refusal
        wrong = (
            f"it comes from {opened.sender}"
            if opened.sender != sealed.receiver
            else "it answers another request"
            if opened.correlation != sealed.id
            else f"a {opened.kind.word} is no answer to a {sealed.kind.word}"
            if opened.kind.word not in sealed.kind.answers
            else ""
        )
        if wrong:
            self.codec.refused["wrong answer"] += 1
            raise NoAnswer(f"the answer of {sealed.receiver} was refused: {wrong}")
        return opened.message

    def _stream(self, sealed: Sealed, stall_s: float) -> "aiohttp.client._RequestContextManager":
        if self._session is None:  # aiohttp wants to be built inside the loop that it works on
            connector = aiohttp.TCPConnector(
                limit=BULK_CONNECTIONS_PER_PEER * max(1, len(self._urls)),
                limit_per_host=BULK_CONNECTIONS_PER_PEER,
                keepalive_timeout=IDLE_S,
            )
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        url = f"{self._urls[sealed.receiver]}/replicate/{sealed.kind.word}"
        timeout = aiohttp.ClientTimeout(total=None, connect=TURN_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=stall_s)
        headers = {"Content-Type": "application/json"}
        return self._session.post(url, data=sealed.data, headers=headers, timeout=timeout, allow_redirects=False)


class DirectTransport:
    """``ports.Transport`` without a broker. Requests of others come in by ``DirectServer``, not by ``start``'s handler."""

    name = "direct"

    def __init__(self, codec: Codec, peers: HttpPeers) -> None:
        self._codec = codec
        self._peers = peers
        self._started = False

    def __repr__(self) -> str:
        return f"<DirectTransport {self._codec.me}: {self.detail}>"

    @property
    def up(self) -> bool:
        return self._started

    @property
    def detail(self) -> str:
        return f"HTTP to {', '.join(self._peers.peers) or 'nobody'}" if self._started else "stopped"

    async def start(self, handler: Handler) -> None:
        """``handler`` is not called from here: the composition root gives the same one to ``DirectServer``."""
        self._started = True

    async def stop(self) -> None:
        """The connections are ``HttpPeers``', who outlives its transport."""
        self._started = False

    async def request(self, to: NodeId, message: TransportRequest, *, timeout_s: float) -> TransportReply:
        if not self._started:
            raise PeerUnreachable("stopped")
        return cast(TransportReply, await self._peers.exchange(to, message, timeout_s=timeout_s))


def _refusal(sealed: Sealed, status: int, body: bytes) -> PeerUnreachable | NoAnswer:
    """4xx and 503 say that the peer did not take it; of any other status nothing certain is known."""
    said = f"{sealed.receiver} refused a {sealed.kind.word}: {status} {body.decode(errors='replace')[:300]}"
    certain = 400 <= status < 500 or status == 503
    return PeerUnreachable(said) if certain else NoAnswer(said)


def _mapped(to: NodeId, error: Exception) -> PeerUnreachable | NoAnswer:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        return PeerUnreachable(f"{to} cannot be reached: {error}")
    return NoAnswer(f"{to} did not answer: {error or type(error).__name__}")
