"""How answers are written: one JSON body, the version and consistency a read was served with, links to the next page."""

from collections.abc import Mapping
from urllib.parse import urlencode

from fastapi import Request, Response
from pydantic import BaseModel

from api.freshness import CONSISTENCY_HEADER, position_headers
from node.ports.service import Consistency
from node.protocol.register import Register


def answer(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        model.model_dump_json().encode(),
        status_code=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )


def read_headers(register: Register | None, consistency: Consistency) -> dict[str, str]:
    """What every read answer carries. ``None``: an answer about many repositories, each with its own version."""
    headers = {CONSISTENCY_HEADER: consistency.value}
    if register is not None:
        headers |= position_headers(register.position)
    return headers


def link_next(request: Request, **query: str | int) -> dict[str, str]:
    """A Link header (RFC 8288), relative, so that it holds behind any proxy."""
    return {"Link": f'<{request.url.path}?{urlencode(query)}>; rel="next"'}
