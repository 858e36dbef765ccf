"""Every refusal as ``application/problem+json`` (RFC 9457): the catalogue of kinds, and how one is written down.

A kind is a stable URI path (``/problems/<slug>``, served and documented), a status and a title; ``detail`` says what to do
about this occurrence. Nothing here repeats a client's input at length, and nothing shows a traceback.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

CONTENT_TYPE = "application/problem+json"
DETAIL_LENGTH_MAX = 400
INSTANCE_LENGTH_MAX = 256

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of refusal. ``advice`` is the default ``detail``: a whole sentence that says what to do."""

    slug: str
    status: int
    title: str
    advice: str
    retry_after_s: int | None = None

    @property
    def type(self) -> str:
        return f"/problems/{self.slug}"


def _catalogue(*kinds: Kind) -> Mapping[str, Kind]:
    return {kind.slug: kind for kind in kinds}


KINDS = _catalogue(
    Kind("bad-framing", 400, "Malformed HTTP request", "Send one well-formed HTTP/1.1 request at a time."),
    Kind("malformed-json", 400, "Malformed JSON", "Send one JSON object in UTF-8."),
    Kind("bad-header", 400, "Request header not valid", "Correct the header that is named, or leave it out."),
    Kind("no-such-path", 404, "No such path", "See /openapi.json for the paths there are."),
    Kind("repository-absent", 404, "Repository does not exist", "Check the name, capitals too, or create it: POST /repos."),
    Kind("transaction-absent", 404, "Transaction not known", "Check the id; old transactions are forgotten, history is not."),
    Kind("method-not-allowed", 405, "Method not allowed", "Use one of the methods in the Allow header."),
    Kind("not-acceptable", 406, "Not acceptable", "Accept application/json; it is the only form there is."),
    Kind("request-timeout", 408, "Request took too long", "Send the whole request without pausing."),
    Kind("repository-exists", 409, "Repository exists", "Use the one that exists, or choose another name."),
    Kind("body-too-large", 413, "Request body too large", "Send a smaller body."),
    Kind("target-too-long", 414, "Request target too long", "Send a shorter path and query."),
    Kind("unsupported-media-type", 415, "Unsupported media type", "Send application/json, not compressed."),
    Kind("bad-name", 422, "Name refused", "Choose a legal name; see the API documentation."),
    Kind("invalid-request", 422, "Request not valid", "Correct what is listed and send it again."),
    Kind("key-reused", 422, "Idempotency-Key used for another request", "Use a new key for a new request."),
    Kind("headers-too-large", 431, "Request headers too large", "Send fewer and shorter headers."),
    Kind("internal-error", 500, "Internal error", "This is a fault of the server; report it with the request id.", 5),
    Kind("quorum-not-reached", 503, "Quorum not reached", "Nothing was changed, for certain; send it again.", 2),
    Kind("read-unavailable", 503, "No majority to read from", "Try again, or ask for X-Gitquorum-Consistency: local.", 1),
    Kind("version-not-reached", 503, "Version not reached", "This node does not have that version yet; try again.", 1),
    Kind("not-ready", 503, "Node not ready", "Try again, or ask another node.", 2),
    Kind("busy", 503, "Too busy", "A stated bound on concurrent work is reached; try again later.", 1),
    Kind("storage-failed", 503, "Storage failed", "This node's disk is full or failing; ask another node.", 10),
)


@dataclass(slots=True, eq=False)
class Problem(Exception):
    """One occurrence: raised anywhere below the edge, written by it."""

    kind: Kind
    detail: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self, *, path: str, request_id: str) -> Response:
        headers = dict(self.headers)
        if self.kind.retry_after_s is not None:
            headers.setdefault("Retry-After", str(self.kind.retry_after_s))
        return Response(
            self.body(path=path, request_id=request_id),
            status_code=self.kind.status,
            headers=headers,
            media_type=CONTENT_TYPE,
        )

    def body(self, *, path: str, request_id: str) -> bytes:
        document = {
            "type": self.kind.type,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": shortened(self.detail or self.kind.advice, DETAIL_LENGTH_MAX),
            "instance": shortened(path, INSTANCE_LENGTH_MAX),
            "request_id": request_id,
            **self.fields,
        }
        return json.dumps(document, ensure_ascii=True).encode()


def problem(slug: str, detail: str = "", *, headers: Mapping[str, str] | None = None, **fields: Any) -> Problem:
    """An occurrence of the kind ``slug``."""
    return Problem(KINDS[slug], detail, fields, headers or {})


def raw_answer(slug: str, detail: str = "", *, path: str = "/", request_id: str | None = None) -> bytes:
    """A whole HTTP/1.1 answer, for refusals below ASGI: the connection is closed after it."""
    what = problem(slug, detail)
    request_id = request_id or new_request_id()
    body = what.body(path=path, request_id=request_id)
    lines = [
        f"HTTP/1.1 {what.kind.status} {HTTPStatus(what.kind.status).phrase}",
        f"content-type: {CONTENT_TYPE}",
        f"content-length: {len(body)}",
        f"x-request-id: {request_id}",
        "connection: close",
    ]
    if what.kind.retry_after_s is not None:
        lines.append(f"retry-after: {what.kind.retry_after_s}")
    return "\r\n".join((*lines, "", "")).encode("ascii") + body


def new_request_id() -> str:
    return secrets.token_hex(8)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's ``X-Request-Id`` if there is exactly one and it is sane, else a new one."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1:
        text = given[0].decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return new_request_id()


def shortened(text: str, length_max: int) -> str:
    return text if len(text) <= length_max else text[: length_max - 1] + "…"
