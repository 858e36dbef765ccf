"""The outermost middleware of every application part, pure ASGI: request ids, and the last word on every failure.

Everything that is answered passes here once, so here every answer gets its ``X-Request-Id``, and here whatever an
application part raised becomes a problem document. No ``BaseHTTPMiddleware``: it buffers and breaks streaming. What is below
HTTP semantics (framing, slow clients, crowds) was judged before, by ``connection``.
"""

import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.freshness import position_headers
from api.problems import Problem, problem, request_id_of
from node.ports.errors import Busy, ReadUnavailable, RepositoryAbsent, StorageError, VersionNotReached
from node.protocol.names import NameRefused

log = structlog.get_logger(__name__)

_HIDDEN = re.compile(rb"[/\\\x00-\x1f\x7f]")
_HEADER = b"x-request-id"


class Edge:
    """Wraps one application; ``rest``: one that answers in JSON only, and refuses who accepts none."""

    def __init__(self, app: ASGIApp, *, rest: bool = False) -> None:
        self._app = app
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        answer = _Answer(send, request_id)
        try:
            check_path(scope)
            if self._rest:
                check_accept(scope)
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            log.debug("client left", path=scope["path"], request_id=request_id)
        except Exception as error:
            if answer.started:
                raise  # half an answer is out: uvicorn logs, and cuts the connection
            await self._explain(error, scope, receive, answer)

    async def _explain(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        what = as_problem(error)
        request_id = scope["state"]["request_id"]
        if what.kind.slug == "internal-error":
            log.error("internal error", path=scope["path"], request_id=request_id, exc_info=error)
        await what.response(path=scope["path"], request_id=request_id)(scope, receive, send)


class _Answer:
    """``send``, with the request id put on the answer, and a memory of whether it began."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id.encode("ascii")
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != _HEADER]
            message = {**message, "headers": [*headers, (_HEADER, self._request_id)]}
        await self._send(message)


def as_problem(error: Exception) -> Problem:
    """What a client may know of an exception."""
    match error:
        case Problem():
            return error
        case NameRefused():
            return problem("bad-name", f"{_sentence(str(error))}.")
        case RepositoryAbsent():
            return problem("repository-absent", headers=position_headers(error.position))
        case ReadUnavailable():
            slug = "version-not-reached" if isinstance(error, VersionNotReached) else "read-unavailable"
            return problem(slug, f"{_sentence(str(error))}.", headers=position_headers(error.position))
        case Busy():
            return problem("busy", f"{_sentence(str(error))}.")
        case StorageError():
            log.error("storage failed", error=str(error))
            return problem("storage-failed")
        case _:
            return problem("internal-error")


def check_path(scope: Scope) -> None:
    """Escapes that hide a slash, a control character or bytes that are no UTF-8 would name one thing to a proxy and another
    here. No name has them, so: a bad name."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    if b"%" not in raw:
        return
    decoded = [unquote_to_bytes(b"%" + part[:2]) for part in raw.split(b"%")[1:]]
    try:
        unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise problem("bad-name", "The path is not UTF-8.") from error
    if any(_HIDDEN.fullmatch(byte) for byte in decoded):
        raise problem("bad-name", "The path has a percent-encoded slash or control character; no name contains one.")


def check_accept(scope: Scope) -> None:
    """Raises ``Problem`` (406) if the client wants no JSON at all."""
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"]
    ranges = [part for value in given for part in value.split(",") if part.strip()]
    if ranges and not any(_takes_json(part) for part in ranges):
        raise problem("not-acceptable")


def _takes_json(media_range: str) -> bool:
    media, *parameters = (part.strip().lower() for part in media_range.split(";"))
    refused = any(re.fullmatch(r"q\s*=\s*0(\.0*)?", parameter) for parameter in parameters)
    return media in ("*/*", "application/*", "application/json", "application/problem+json") and not refused


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
