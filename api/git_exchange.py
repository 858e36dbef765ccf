"""One smart HTTP request and its answer, in raw ASGI events.

Raw, because Starlette's StreamingResponse calls ``receive()`` and would eat a request body that is still being read; a push
is answered while its pack comes in. Every send is bounded in time: a client that stops reading does not hold a process.
An answer that begins before the request was read to its end is not finished before the rest is read away, within bounds,
and closes the connection: a client that is still sending would otherwise see a reset instead of the answer.

A refusal (``problems.Problem``) is what may be said instead of an answer that has not begun. A stock git client prints the
plain text that comes with an error to its first request (``remote: …``) and ignores everything else, so it gets plain text;
all others get RFC 9457. At a later request of a fetch git prints nothing but an ``ERR`` packet in a 200: there it hears so what
may be tried again.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus

from starlette.types import Message, Receive, Scope, Send

from api.freshness import CONSISTENCY_HEADER, position_headers
from api.git_body import RequestBody
from api.pkt import pkt
from api.problems import CONTENT_TYPE as PROBLEM_JSON
from api.problems import Problem, request_id_of
from node.config import Config
from node.ports.service import Consistency
from node.protocol.ids import Position

Header = tuple[bytes, bytes]

NO_CACHE: tuple[Header, ...] = (
    (b"expires", b"Fri, 01 Jan 1980 00:00:00 GMT"),
    (b"pragma", b"no-cache"),
    (b"cache-control", b"no-cache, max-age=0, must-revalidate"),
)
"""As git http-backend sends them."""

ERR_BYTES_MAX = 1000

LINGER_BYTES_MAX = 1024**2
LINGER_S = 2.0
"""Behind a refusal; git stops sending when it sees one."""


class ClientStalled(Exception):
    """The client does not read its answer; the connection is given up."""


class Exchange:
    """Reads a request, writes one answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, config: Config) -> None:
        self.config = config
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            self.headers[name] = self.headers[name] + b"," + value if name in self.headers else value
        self.body = RequestBody(receive, self.headers, config)
        self.position: Position | None = None
        """Of the repository, once it was read: every answer carries it."""
        self.consistency: Consistency | None = None
        """How it was read, likewise."""
        self.started = False
        self.linger = (LINGER_BYTES_MAX, LINGER_S)
        """How much of the request, and for how long, is read on behind an answer."""
        self._scope = scope
        self._send = send

    async def answer(self, status: HTTPStatus, content_type: bytes, body: bytes, headers: Sequence[Header] = NO_CACHE) -> None:
        """The whole answer at once."""
        if not self.body.ended:
            # curl stops sending once an answer is whole, and git would send what is left as another request.
            await self.start(status, content_type, headers)
            await self.write(body)
            await self.end()
            return
        await self.start(status, content_type, (*headers, (b"content-length", b"%d" % len(body))))
        await self._bounded({"type": "http.response.body", "body": body, "more_body": False})

    async def start(self, status: HTTPStatus, content_type: bytes, headers: Sequence[Header] = NO_CACHE) -> None:
        """Status and headers; without ``content-length`` the body is chunked."""
        sent = [(b"content-type", content_type), *headers]
        sent += ((name.lower().encode(), value.encode()) for name, value in position_headers(self.position).items())
        if self.consistency is not None:
            sent.append((CONSISTENCY_HEADER.lower().encode(), self.consistency.value.encode()))
        if not self.body.ended:
            sent.append((b"connection", b"close"))
        self.started = True
        await self._bounded({"type": "http.response.start", "status": int(status), "headers": sent})

    async def write(self, data: bytes) -> None:
        """Part of the body; returns when the connection takes more."""
        await self._bounded({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """The answer is complete."""
        await self.body.skip(*self.linger)
        await self._bounded({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def stock_git(self) -> bool:
        return self.headers.get(b"user-agent", b"").startswith(b"git/")

    async def refuse(self, problem: Problem, *, in_band: bytes = b"") -> None:
        """Say why there is no answer. ``in_band``: the content type in which git looks for an ``ERR`` packet."""
        kind = problem.kind
        request_id = self._scope.get("state", {}).get("request_id") or request_id_of(self._scope["headers"])
        headers = [*NO_CACHE, (b"x-request-id", request_id.encode())]
        headers += ((name.lower().encode(), value.encode()) for name, value in problem.headers.items())
        if kind.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % kind.retry_after_s))
        said = problem.detail or kind.advice
        if in_band and self.stock_git and kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
            await self.answer(HTTPStatus.OK, in_band, pkt(b"ERR " + said.encode()[:ERR_BYTES_MAX]), headers)
            return
        if self.stock_git:
            body, content_type = f"{said}\n".encode(), b"text/plain; charset=utf-8"
        else:
            body = problem.body(path=self._scope["path"], request_id=request_id)
            content_type = PROBLEM_JSON.encode()
        await self.answer(HTTPStatus(kind.status), content_type, body, headers)

    async def _bounded(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self.config.body_timeout_s):
                await self._send(message)
        except TimeoutError:
            raise ClientStalled(f"the client read nothing for {self.config.body_timeout_s:g} s") from None
