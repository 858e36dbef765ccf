"""``/drill/isolation``: cut this node off from its peers for a while, to see what the cluster does about it.

There only where the setting ``drill_token`` is, and only for who names it; anybody else finds no such path. Not part of the
public API, so not in its document. ``node/isolation.py`` says what is cut, and that it ends by itself.
"""

import hmac
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel

from api.answers import answer
from api.bodies import check_media_type, decode_json, read_body
from api.problems import problem
from node.config import Config
from node.isolation import ISOLATION_S_MAX, Isolation

TOKEN_HEADER = "X-Gitquorum-Drill"

Token = Annotated[str, Header(alias=TOKEN_HEADER, max_length=1024)]


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``PUT``."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=ISOLATION_S_MAX)]


class Isolated(BaseModel):
    """What is answered."""

    isolated_for_s: float


class Drills:
    """The routes; ``router`` is what the application includes."""

    def __init__(self, isolation: Isolation, config: Config) -> None:
        self._isolation = isolation
        self._config = config
        self.router = APIRouter()
        for method, handler in (("PUT", self.begin), ("DELETE", self.end), ("GET", self.show)):
            self.router.add_api_route("/drill/isolation", handler, methods=[method], include_in_schema=False)

    async def begin(self, request: Request, token: Token = "") -> Response:
        """Cut off from now on."""
        self._check(token)
        check_media_type(request)
        body = await read_body(request, bytes_max=self._config.json_bytes_max, timeout_s=self._config.body_timeout_s)
        self._isolation.begin(decode_json(body, _Wanted).seconds)
        return self._state()

    async def end(self, token: Token = "") -> Response:
        """No longer cut off; also when it was not."""
        self._check(token)
        self._isolation.end()
        return self._state()

    async def show(self, token: Token = "") -> Response:
        """How much longer."""
        self._check(token)
        return self._state()

    def _check(self, token: str) -> None:
        allowed = self._config.drill_token
        if allowed is None or not hmac.compare_digest(token.encode(), allowed.encode()):
            raise problem("no-such-path")

    def _state(self) -> Response:
        return answer(Isolated(isolated_for_s=round(self._isolation.left_s, 3)))
