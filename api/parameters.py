"""What REST requests carry outside their bodies: names, cursors, limits, consistency, idempotency keys; all strict.

A query parameter that is not known, or given twice, is refused: a client that misspells ``limit`` should hear of it.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request

from api.freshness import CONSISTENCY_HEADER, MIN_VERSION_HEADER, VERSION_MAX, Freshness, freshness_of
from api.problems import problem
from node.ports.service import Consistency
from node.protocol.names import RepositoryName

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
NAME_NOT = {"pattern": r"\.\.|\.([gG][iI][tT]|[lL][oO][cC][kK])$"}
REPO_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
REPO_ID_NOT = {"pattern": r"\.\.|\.([gG][iI][tT]|[lL][oO][cC][kK])(/|$)"}
TXN_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
KEY_PATTERN = r"^[!-~]{1,128}$"
CURSOR_LENGTH_MAX = 2048
PAGE_MAX = 1000
HISTORY_PAGE_MAX = 256


def _name_schema(what: str) -> dict[str, Any]:
    return {"description": what, "json_schema_extra": {"pattern": NAME_PATTERN, "not": NAME_NOT, "maxLength": 64}}


async def repository_name(
    owner: Annotated[str, Path(examples=["alice"], **_name_schema("Owner of the repository."))],
    repo: Annotated[str, Path(examples=["project"], **_name_schema("Name of the repository."))],
) -> RepositoryName:
    """Both parts of the path; ``NameRefused`` becomes 422."""
    return RepositoryName.parse(f"{owner}/{repo}")


Name = Annotated[RepositoryName, Depends(repository_name)]

ConsistencyHeader = Annotated[
    str | None,
    Header(
        alias=CONSISTENCY_HEADER,
        description="How fresh a read must be; the node's setting decides where it is not given.",
        json_schema_extra={"enum": [each.value for each in Consistency]},
    ),
]

MinVersionHeader = Annotated[
    str | None,
    Header(
        alias=MIN_VERSION_HEADER,
        description="A version that the reader has seen already: nothing older is served.",
        json_schema_extra={"pattern": "^[0-9]{1,16}$", "example": "42"},
    ),
]


async def freshness(request: Request, consistency: ConsistencyHeader = None, min_version: MinVersionHeader = None) -> Freshness:
    """What a read's headers say; ``Problem`` (400) where that is not understood. Both are read from the request itself, where
    one that was given twice can be seen; as parameters they are there to be documented."""
    given = request.headers.getlist
    return freshness_of(given(CONSISTENCY_HEADER), given(MIN_VERSION_HEADER), request.app.state.config)


Fresh = Annotated[Freshness, Depends(freshness)]

Cursor = Annotated[
    str | None, Query(max_length=CURSOR_LENGTH_MAX, description="From ``next`` or the Link header of the page before.")
]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="How many at most.")]
HistoryLimit = Annotated[int, Query(ge=1, le=HISTORY_PAGE_MAX, description="How many at most.")]
Since = Annotated[int, Query(ge=0, le=VERSION_MAX, description="Show changes after this version.")]

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="1 to 128 visible ASCII characters. A repeated request with the same key gets the original answer.",
        json_schema_extra={"pattern": KEY_PATTERN},
    ),
]


def key_of(request: Request) -> str | None:
    """The request's ``Idempotency-Key``; raises ``Problem`` (422) for a malformed or second one."""
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not re.fullmatch(KEY_PATTERN.strip("^$"), given[0]):
        raise problem("invalid-request", "Idempotency-Key must be given once, as 1 to 128 visible ASCII characters.")
    return given[0]


def only(*names: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses query parameters other than ``names``, and any given twice."""

    async def check(request: Request) -> None:
        seen: set[str] = set()
        for name, _ in request.query_params.multi_items():
            if name not in names:
                known = ", ".join(names) or "none"
                raise problem("invalid-request", f"The query has an unknown parameter; known here: {known}.")
            if name in seen:
                raise problem("invalid-request", f"The query has {name} twice.")
            seen.add(name)

    return check


def write_cursor(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str | None) -> str:
    """What ``write_cursor`` was given, or the empty string; raises ``Problem`` (422) for anything else."""
    if cursor is None:
        return ""
    try:
        text = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("utf-8")
    except ValueError:  # binascii's and Unicode's errors are ValueErrors
        text = ""
    if not text or write_cursor(text) != cursor:
        raise problem("invalid-request", "The cursor is not one that this API gave.")
    return text
