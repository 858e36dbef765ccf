"""Request bodies of the REST half: bounded while they stream in, then decoded strictly.

Streaming bodies of git are not read here (``smart_http`` does), nor is HTTP framing judged (``connection`` did). What is
strict: one JSON object, UTF-8, the stated media type, no unknown field, no field twice, no NaN; any depth costs nothing,
because msgspec decodes straight into the expected shape and stops at the first byte that does not fit.
"""

import asyncio
import json
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from api.problems import Problem, problem

T = TypeVar("T")


async def read_body(request: Request, *, bytes_max: int, timeout_s: float) -> bytes:
    """The whole body.

    Raises:
        Problem: 413 as soon as it is known to be longer than ``bytes_max``, 408 after ``timeout_s``.
        ClientDisconnect: nobody is there to be answered.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > bytes_max:
        raise too_large(bytes_max)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                more = message.get("more_body", False)
                if size > bytes_max:
                    raise too_large(bytes_max)
    except TimeoutError as error:
        raise problem("request-timeout", f"The request body did not arrive within {timeout_s:g} s.") from error
    return b"".join(parts)


def too_large(bytes_max: int) -> Problem:
    return problem("body-too-large", f"The request body may be at most {bytes_max} bytes long.")


def check_media_type(request: Request) -> None:
    """Raises ``Problem`` (415) unless the body is declared to be plain JSON in UTF-8."""
    media, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if media.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise problem("unsupported-media-type", "Send Content-Type: application/json.", headers={"Accept": "application/json"})
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        detail = "Send the JSON body without Content-Encoding."
        raise problem("unsupported-media-type", detail, headers={"Accept-Encoding": "identity"})


def decode_json(body: bytes, shape: type[T]) -> T:
    """Decode into ``shape``, a flat ``msgspec.Struct`` that forbids unknown fields.

    Raises:
        Problem: 400 for what is no JSON, 422 for JSON of another shape.
    """
    try:
        decoded = msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise problem("invalid-request", f"The JSON body is not valid: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise problem("malformed-json", f"The body is not JSON: {error}.") from error
    # Of a field given twice msgspec takes the last, others take the first: nobody may profit from the difference. The
    # second look is cheap and cannot meet depth: the body has just been found to be a flat object.
    json.loads(body, object_pairs_hook=_refuse_twice)
    return decoded


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise problem("invalid-request", "The JSON body has a field twice.")
