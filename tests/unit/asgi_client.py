"""One request to an ASGI application without a socket: what is received is scripted, what is sent is kept."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Application = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass
class Answer:
    """What the application sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    events: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False


async def call(
    app: Application,
    method: str,
    target: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Iterable[tuple[str, str]] = (),
    *,
    then: str = "silence",
    sent: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
) -> Answer:
    """``body`` in pieces as given. ``then`` says what comes where the body is cut: ``silence`` (nothing, only behind a
    complete body), ``hang up``, or ``stall``: the body is announced to go on and does not."""
    path, _, query = target.partition("?")
    pieces = [body] if isinstance(body, bytes) else list(body)
    given = [(name.lower().encode(), value.encode()) for name, value in headers]
    names = {name for name, _ in given}
    if (pieces != [b""] or then != "silence") and not names & {b"content-length", b"transfer-encoding"}:
        given.append((b"transfer-encoding", b"chunked"))
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": given, "root_path": ""}
    answer = Answer()
    finished = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces) or then != "silence"}
        if then != "hang up":
            await finished.wait()
        return {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        answer.events.append(event)
        if event["type"] == "http.response.start":
            answer.status = event["status"]
            answer.headers = {name.decode(): value.decode() for name, value in event["headers"]}
        else:
            answer.body += event["body"]
            answer.complete = not event.get("more_body", False)
        if answer.complete:
            finished.set()
        if sent is not None:
            await sent(event)

    await app(scope, receive, send)
    return answer
