"""``POST /replicate/{kind}``: the door for other nodes. What is in the envelope is for ``ports.DirectEndpoint`` to judge.

Here only its size is bounded, and the sum of all that are being read at once: the door is open to anybody until a signature
has been verified, and that takes the whole envelope. Not part of the public API, so not in its document, and not in FastAPI:
this is on the way of every linearizable read.
"""

import json
from collections.abc import AsyncIterator

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from api.bodies import read_body
from api.problems import problem
from node.config import Config
from node.ports.transport import DirectEndpoint

PATH = "/replicate/"

ENVELOPE_BYTES_MAX = 16 * 1024**2
"""RabbitMQ 4 draws the line there too; packs beyond 64 KiB never travel in envelopes."""

READING_BYTES_MAX = 128 * 1024**2
"""Envelopes being read at once, together; a declared length counts from the start, an undeclared one as the maximum."""


class Replicate:
    """An ASGI application for the paths below ``/replicate/``; ``edge`` explains what it raises."""

    def __init__(self, direct: DirectEndpoint, config: Config) -> None:
        self._direct = direct
        self._config = config
        self._reading_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["path"].rpartition("/")[2]
        if not kind or scope["path"] != PATH + kind:
            raise problem("no-such-path")
        if scope["method"] != "POST":
            raise problem("method-not-allowed", headers={"Allow": "POST"})
        answer = await self._replicate(kind, Request(scope, receive))
        await answer(scope, receive, send)

    async def _replicate(self, kind: str, request: Request) -> Response:
        answered = await self._direct.serve(kind, await self._envelope(request))
        if answered.content_type == "application/problem+json" and isinstance(answered.body, bytes):
            about = {"instance": request.url.path, "request_id": request.state.request_id}
            said = json.dumps({**json.loads(answered.body), **about})
            again = {} if answered.retry_after_s is None else {"Retry-After": str(answered.retry_after_s)}
            return Response(said, status_code=answered.status, media_type=answered.content_type, headers=again)
        if isinstance(answered.body, bytes):
            return Response(answered.body, status_code=answered.status, media_type=answered.content_type)
        return ByteStream(answered.body, answered.status, answered.content_type)

    async def _envelope(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        size = min(int(declared[:20]), ENVELOPE_BYTES_MAX) if declared.isdecimal() else ENVELOPE_BYTES_MAX
        if self._reading_bytes + size > READING_BYTES_MAX:
            raise problem("busy")
        self._reading_bytes += size
        try:
            return await read_body(request, bytes_max=ENVELOPE_BYTES_MAX, timeout_s=self._config.body_timeout_s)
        finally:
            self._reading_bytes -= size


class ByteStream(Response):
    """Streams an iterator and closes it, whatever happens. Starlette's own also listens for the client's departure, in a
    second task per answer; here a client that has gone is noticed by the socket."""

    def __init__(self, chunks: AsyncIterator[bytes], status: int, content_type: str) -> None:
        super().__init__(status_code=status, media_type=content_type)
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()
