"""``/rejoin``: an operator's decision about a node that cannot rejoin by itself; for ``gitquorum rejoin``.

From the node's own machine only: from anywhere else there is no such path. Not part of the public API, so not in its document.
"""

import json
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response

from api.bodies import check_media_type, decode_json, read_body
from api.problems import problem
from node.config import Config
from node.ports.errors import RejoinRefused
from node.ports.upkeep import Rejoins
from node.protocol.ids import NodeId


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body: members to learn from, and whether to do it."""

    sources: Annotated[list[str], msgspec.Meta(max_length=64)]
    accept_loss: bool
    dry_run: bool = True


class RejoinRoutes:
    """The routes; ``router`` is what the application includes."""

    def __init__(self, rejoins: Rejoins, config: Config) -> None:
        self._rejoins = rejoins
        self._config = config
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route("/rejoin", self.begin, methods=["POST"])

    async def begin(self, request: Request) -> Response:
        """What would be done, or 202 when it has begun; 409 with the reason where it must not be."""
        if request.client is None or not _loopback(request.client.host):
            raise problem("no-such-path")
        check_media_type(request)
        body = await read_body(request, bytes_max=self._config.json_bytes_max, timeout_s=self._config.body_timeout_s)
        wanted = decode_json(body, _Wanted)
        sources = frozenset(NodeId(source) for source in wanted.sources)
        try:
            plan = self._rejoins.plan(sources, accept_loss=wanted.accept_loss)
            if not wanted.dry_run:
                await self._rejoins.take(sources)
        except RejoinRefused as error:
            return _json({"problem": str(error)}, 409)
        return _json({"plan": plan, "begun": not wanted.dry_run}, 200 if wanted.dry_run else 202)


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _json(body: Mapping[str, Any], status: int) -> Response:
    content = json.dumps(body).encode()
    return Response(content, status_code=status, headers={"Cache-Control": "no-store"}, media_type="application/json")
