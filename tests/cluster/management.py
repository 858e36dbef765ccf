"""RabbitMQ's management UI's API, as one user sees it."""

import json
from base64 import b64encode
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

TIMEOUT_S = 10.0


class ManagementSilent(Exception):
    """Nobody answers there, or not to this user."""


@dataclass(frozen=True, slots=True)
class Management:
    """``url`` is the UI's."""

    url: str
    user: str
    password: str = field(repr=False)

    def api(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """Raises ``HTTPError`` for what is refused."""
        request = Request(
            f"{self.url.rstrip('/')}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode(),
                "Content-Type": "application/json",
            },
        )
        try:
            with urlopen(request, timeout=TIMEOUT_S) as response:
                text = response.read()
        except HTTPError as error:
            error.close()  # it holds the connection
            raise
        return json.loads(text) if text else None

    def tags(self) -> list[str]:
        """Of the user; one without any is not let in. RabbitMQ 3.10 and 4.x both give a list."""
        try:
            found = self.api("whoami")["tags"]
        except HTTPError as error:
            if error.code != HTTPStatus.UNAUTHORIZED:
                raise ManagementSilent(f"{self.url} answers {error}") from error
            return []
        except (URLError, OSError) as error:
            raise ManagementSilent(f"{self.url} does not answer: {error}") from error
        return found.split(",") if isinstance(found, str) else list(found)

    def exists(self, path: str) -> bool:
        try:
            self.api(path)
        except HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True


def word(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")
