"""The serving half of direct HTTP: ``POST /replicate/{kind}`` in, a signed envelope, pack bytes or a refusal out.

It knows nothing of a web framework: the front end reads the body (bounded by ``kinds.REQUEST_BYTES_MAX``) and sends what
``serve`` answers. Anybody may knock; who is no member is told so in one short ``application/problem+json``, counted by the
codec, and has moved nothing.
"""

import logging
from dataclasses import replace
from http import HTTPStatus
from typing import cast

import msgspec

from broker.codec import Codec, EnvelopeRefused, Opened
from broker.kinds import BY_WORD, DIRECT_REQUESTS, TRANSPORT_REQUESTS
from node.ports.errors import NodeError
from node.ports.transport import DirectAnswer, DirectHandler, FetchHandler, Handler
from node.protocol.messages import DirectReply, DirectRequest, Fetch, HistoryPage, TransportReply, TransportRequest

SERVED_MAX = 1024
"""Requests of peers in work at once; more get 503."""
REPLY_TIMEOUT_S = 5.0
"""Only written into the reply, for people."""
RETRY_AFTER_S = 1
"""With every 503: what this node cannot take now it may take by then."""

_STATUS = {
    "oversize": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "bad signature": HTTPStatus.FORBIDDEN,
    "unknown sender": HTTPStatus.FORBIDDEN,
    "wrong cluster": HTTPStatus.FORBIDDEN,
    "wrong receiver": HTTPStatus.MISDIRECTED_REQUEST,
}
_log = logging.getLogger(__name__)


class DirectServer:
    """``ports.DirectEndpoint``."""

    def __init__(
        self,
        codec: Codec,
        *,
        transport_handler: Handler | None,
        direct_handler: DirectHandler,
        fetch_handler: FetchHandler,
    ) -> None:
        """``transport_handler`` is ``None`` where claim, prepare, abort and commit come by a broker: refused here then."""
        self._codec = codec
        self._transport_handler = transport_handler
        self._direct_handler = direct_handler
        self._fetch_handler = fetch_handler
        served = DIRECT_REQUESTS if transport_handler is None else (*DIRECT_REQUESTS, *TRANSPORT_REQUESTS)
        self._served = frozenset(kind.word for kind in served)
        self._busy = 0

    def __repr__(self) -> str:
        return f"<DirectServer {self._codec.me}: {self._busy} in work>"

    async def serve(self, kind: str, body: bytes) -> DirectAnswer:
        if kind not in self._served:
            return problem(HTTPStatus.NOT_FOUND, "this node does not take such messages here")
        if self._busy >= SERVED_MAX:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests of peers at once")
        self._busy += 1
        try:
            return await self._serve(kind, body)
        except EnvelopeRefused as refusal:
            return problem(_STATUS.get(refusal.reason, HTTPStatus.BAD_REQUEST), str(refusal))
        except NodeError as error:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception:  # a handler does not raise; if it does, the peer hears a 500 and we a traceback
            _log.exception("handler of %s failed", kind)
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the handler failed; the message may have been taken")
        finally:
            self._busy -= 1

    async def _serve(self, kind: str, body: bytes) -> DirectAnswer:
        if len(body) > BY_WORD[kind].bytes_max:
            self._codec.refused["oversize"] += 1
            raise EnvelopeRefused("oversize", f"a {kind} of {len(body)} bytes")
        opened = self._codec.open(body)
        if opened.kind.word != kind:
            self._codec.refused["wrong path"] += 1
            raise EnvelopeRefused("wrong path", f"a {opened.kind.word} sent as {kind}")
        if isinstance(opened.message, Fetch):
            return await self._fetch(opened, opened.message)
        return self._seal(opened, await self._handle(opened))

    async def _handle(self, opened: Opened) -> TransportReply | DirectReply:
        if self._transport_handler is not None and opened.kind in TRANSPORT_REQUESTS:
            return await self._transport_handler(opened.sender, cast(TransportRequest, opened.message))
        return await self._direct_handler(opened.sender, cast(DirectRequest, opened.message))

    async def _fetch(self, opened: Opened, fetch: Fetch) -> DirectAnswer:
        chunks = await self._fetch_handler(opened.sender, fetch)
        if chunks is None:
            return problem(HTTPStatus.NOT_FOUND, f"{fetch.pack.name} is not here")
        return DirectAnswer(HTTPStatus.OK, chunks, "application/octet-stream")

    def _seal(self, opened: Opened, reply: TransportReply | DirectReply) -> DirectAnswer:
        """A page of history that is too large is answered by its first half: the asker goes on from where it ends."""
        while True:
            try:
                sealed = self._codec.seal(reply, opened.sender, timeout_s=REPLY_TIMEOUT_S, correlation=opened.id)
            except EnvelopeRefused as refusal:
                if isinstance(reply, HistoryPage) and refusal.reason == "oversize" and len(reply.entries) > 1:
                    reply = replace(reply, entries=reply.entries[: len(reply.entries) // 2], packs=())
                    continue
                _log.error("reply to %s of %s not sent: %s", opened.kind.word, opened.sender, refusal)
                return problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"the answer cannot be sent: {refusal}")
            return DirectAnswer(HTTPStatus.OK, sealed.data)


def problem(status: HTTPStatus, detail: str) -> DirectAnswer:
    """RFC 9457."""
    body = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail[:500]}
    retry_after_s = RETRY_AFTER_S if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    return DirectAnswer(int(status), msgspec.json.encode(body), "application/problem+json", retry_after_s)
