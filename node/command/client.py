"""HTTP to the nodes of a cluster, small and synchronous: one request, one JSON answer, everything bounded.

Standard library only, on purpose: the environment's proxy settings must not come between this command and a node on the
loopback address, and a command that only asks should start fast.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit

from node.command.output import CommandError, Exit

ANSWER_BYTES_MAX = 16 * 1024 * 1024
TIMEOUT_S = 10.0
"""Longer than a write's deadline with its abort, so that the node's own answer comes first."""

LOCAL = {"X-Gitquorum-Consistency": "local"}

Item = TypeVar("Item")
Result = TypeVar("Result")


class NodeSilent(Exception):
    """No HTTP answer: nothing listens there, or it takes too long. ``sent``: the request may have been received."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and decoded JSON body (``{}`` if there is none)."""

    status: int
    body: Any
    location: str | None = None
    link: str | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """What a problem document says, for people."""
        if isinstance(self.body, dict):
            said = self.body.get("detail") or self.body.get("problem") or self.body.get("title")
            if said:
                return str(said)
        return f"HTTP {self.status}"


def request(
    base_url: str,
    method: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """One request.

    Raises:
        NodeSilent: if no answer came.
    """
    parts = urlsplit(base_url)
    make = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = make(parts.hostname or "", parts.port, timeout=timeout_s)
    sent = False
    try:
        connection.connect()
        sent = True
        payload = None if body is None else json.dumps(body).encode()
        given = {"Accept": "application/json", **({"Content-Type": "application/json"} if body is not None else {})}
        connection.request(method, parts.path.rstrip("/") + path, payload, {**given, **(headers or {})})
        response = connection.getresponse()
        raw = response.read(ANSWER_BYTES_MAX + 1)
        return Answer(response.status, _decode(raw), response.getheader("Location"), response.getheader("Link"))
    except (OSError, HTTPException) as error:
        raise NodeSilent(f"{base_url} does not answer: {_plain(error)}", sent=sent) from error
    finally:
        connection.close()


def _decode(raw: bytes) -> Any:
    if len(raw) > ANSWER_BYTES_MAX:
        raise NodeSilent(f"the answer is larger than {ANSWER_BYTES_MAX} bytes", sent=True)
    try:
        return json.loads(raw) if raw else {}
    except ValueError:
        return {}


def _plain(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    return str(error) or type(error).__name__


def get(base_url: str, path: str, timeout_s: float = TIMEOUT_S, *, local: bool = False) -> Answer:
    """``local``: what the node itself knows, perhaps old, without asking a majority."""
    return request(base_url, "GET", path, headers=LOCAL if local else None, timeout_s=timeout_s)


def at_once(ask: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``ask`` of every item, side by side; answers in the order of ``items``."""
    if not items:
        return []
    with ThreadPoolExecutor(max_workers=min(16, len(items))) as pool:
        return list(pool.map(ask, items))


def first_alive(urls: Iterable[str], timeout_s: float = 2.0) -> str:
    """The first node that answers.

    Raises:
        CommandError: UNAVAILABLE.
    """
    asked = list(urls)
    for url in asked:
        try:
            if get(url, "/livez", timeout_s).ok:
                return url
        except NodeSilent:
            continue
    raise CommandError(f"no node answers ({', '.join(asked)}); start the cluster with: gitquorum up", Exit.UNAVAILABLE)


def refuse(answer: Answer, what: str) -> CommandError:
    """The error for an answer that is no success, with the exit code that fits its status."""
    codes = {404: Exit.NOT_FOUND, 410: Exit.NOT_FOUND, 422: Exit.USAGE, 400: Exit.USAGE}
    code = codes.get(answer.status, Exit.UNAVAILABLE if answer.status in (429, 503, 504) else Exit.FAILED)
    return CommandError(f"{what}: {answer.reason}", code)
