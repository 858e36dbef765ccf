"""The smallest ASGI client: one request in, one answer out, in the test's own event loop."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote


@dataclass
class Answer:
    """What came back; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: Any,
    method: str,
    target: str,
    *,
    body: bytes | list[bytes] = b"",
    headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
    json_body: Any = None,
) -> Answer:
    """Send one request; a list of bodies is sent in pieces, without Content-Length."""
    sent = list(headers.items()) if isinstance(headers, Mapping) else list(headers or [])
    if json_body is not None:
        body = json.dumps(json_body).encode()
        sent.append(("content-type", "application/json"))
    pieces = body if isinstance(body, list) else [body]
    if isinstance(body, bytes) and body:
        sent.append(("content-length", str(len(body))))
    raw_path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in sent],
        "server": ("127.0.0.1", 3001),
        "client": ("127.0.0.1", 9),
    }
    events = [{"type": "http.request", "body": piece, "more_body": n + 1 < len(pieces)} for n, piece in enumerate(pieces)]
    answer = Answer(0, {}, b"")

    async def receive() -> Any:
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer
