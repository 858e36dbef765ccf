"""The OpenAPI document: what FastAPI finds in the routes, made complete, with an example for every answer.

``python -m api.openapi`` prints it; ``docs/openapi.json`` is that output, and a test compares the two.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.parameters import REPO_ID_NOT, REPO_ID_PATTERN
from api.problems import CONTENT_TYPE, KINDS
from api.schemas import DIGEST, TXN, Committed, ProblemDocument, Vote

COMMON_PROBLEMS: tuple[str, ...] = ("bad-framing", "not-acceptable", "request-timeout", "target-too-long", "invalid-request")
COMMON_PROBLEMS += ("headers-too-large", "internal-error", "busy")
READ_PROBLEMS = ("read-unavailable", "storage-failed", *COMMON_PROBLEMS)
FRESHNESS_PROBLEMS = ("bad-header", "version-not-reached", *READ_PROBLEMS)
"""Of reads that the two headers of ``freshness`` may ask something of."""
WRITE_PROBLEMS = ("quorum-not-reached", "storage-failed", *COMMON_PROBLEMS)
BODY_PROBLEMS = ("malformed-json", "body-too-large", "unsupported-media-type", "key-reused")

HEADERS: Mapping[str, tuple[str, str]] = {
    "X-Request-Id": ("The request's own id if it sent a sane one, else a new one.", "4f1d2a9c0b7e6d53"),
    "X-Gitquorum-Version": ("Number of committed changes of the repository.", "42"),
    "X-Gitquorum-Digest": ("Hash chained over those changes.", DIGEST),
    "X-Gitquorum-Consistency": ("How fresh this answer is: linearizable or local.", "linearizable"),
    "Link": ("The next page, rel=next; absent on the last one.", '</repos?cursor=YWxpY2U&limit=100>; rel="next"'),
    "Location": ("Where the outcome will be.", f"/transactions/{TXN}"),
    "Retry-After": ("Seconds after which to try again.", "2"),
}

DESCRIPTION = """A cluster of Git servers in which every write is on a quorum of nodes before the client hears "ok".

Any node takes any request. Errors are `application/problem+json` (RFC 9457). Every answer has an `X-Request-Id`.
Repositories themselves are cloned from and pushed to at `/{owner}/{repo}.git` with any git.
"""

Responses = dict[int | str, dict[str, Any]]


def documented(
    models: Mapping[int, type[BaseModel]],
    slugs: Iterable[str],
    *,
    headers: Mapping[int, tuple[str, ...]] | None = None,
) -> Responses:
    """What FastAPI calls ``responses``: models by status, then the problems by status, one example for each kind."""
    found: Responses = {}
    for status, model in models.items():
        named = ("X-Request-Id", *(headers or {}).get(status, ()))
        found[status] = {
            "model": model,
            "description": (model.__doc__ or "").strip(),
            "content": {"application/json": {"example": example_of(model)}},
            "headers": {name: _header(name) for name in named},
        }
    for slug in slugs:
        kind = KINDS[slug]
        entry = found.setdefault(
            kind.status,
            {
                "description": "",
                "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
                "headers": {"X-Request-Id": _header("X-Request-Id")},
            },
        )
        entry["content"][CONTENT_TYPE]["examples"].setdefault(slug, {"summary": kind.title, "value": _problem_example(slug)})
        if kind.retry_after_s is not None:
            entry["headers"]["Retry-After"] = _header("Retry-After")
        titles = [example["summary"] for example in entry["content"][CONTENT_TYPE]["examples"].values()]
        entry["description"] = "; ".join(titles) + "."
    return found


def create_body() -> dict[str, Any]:
    """The request body of ``POST /repos``: read by msgspec, so FastAPI has to be told."""
    schema = {
        "title": "CreateRepository",
        "type": "object",
        "additionalProperties": False,
        "required": ["repo_id"],
        "properties": {
            "repo_id": {
                "type": "string",
                "pattern": REPO_ID_PATTERN,
                "not": REPO_ID_NOT,
                "maxLength": 129,
                "description": "owner/name. Both: a letter or digit, then up to 63 letters, digits, '.', '_' or '-'; no "
                "'..', not ending in .git or .lock. Names that differ only by case are one name.",
            },
            "head": {
                "anyOf": [{"type": "string", "pattern": "^refs/heads/.", "maxLength": 1024}, {"type": "null"}],
                "description": "The branch HEAD shall name; refs/heads/main if it is not given.",
            },
        },
        "example": {"repo_id": "alice/project"},
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def example_of(model: type[BaseModel]) -> Any:
    extra = model.model_config.get("json_schema_extra")
    if not isinstance(extra, dict):
        raise TypeError(f"{model.__name__} has no example")
    return extra["example"]


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document; made once per application."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
        )
        schemas = made["components"]["schemas"]
        schemas["Problem"] = ProblemDocument.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        _restore_examples(made)
        app.openapi_schema = made
    return app.openapi_schema


def _restore_examples(made: dict[str, Any]) -> None:
    """FastAPI drops every null on its way, also from examples, where it means something."""
    models: list[type[BaseModel]] = [ProblemDocument, *BaseModel.__subclasses__(), *Committed.__subclasses__()]
    examples = {
        model.__name__: model.model_config.get("json_schema_extra") for model in models if model.__module__ == "api.schemas"
    }
    for name, schema in made["components"]["schemas"].items():
        schema |= examples.get(name) or {}
    for methods in made["paths"].values():
        for operation in methods.values():
            for response in operation["responses"].values():
                for content in response["content"].values():
                    extra = examples.get(content["schema"]["$ref"].rpartition("/")[2])
                    if "example" in content and isinstance(extra, dict):
                        content["example"] = extra["example"]


def text(app: FastAPI) -> str:
    """As it stands in ``docs/openapi.json``."""
    return json.dumps(document(app), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def _header(name: str) -> dict[str, Any]:
    description, example = HEADERS[name]
    return {"description": description, "schema": {"type": "string"}, "example": example}


def _problem_example(slug: str) -> dict[str, Any]:
    kind = KINDS[slug]
    shown: dict[str, Any] = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": kind.advice,
        "instance": "/repos",
        "request_id": HEADERS["X-Request-Id"][1],
    }
    if slug == "quorum-not-reached":
        shown |= {"transaction_id": TXN, "quorum": 2, "voters": 3, "confirmed": 1, "sent": True, "votes": [example_of(Vote)]}
    return shown


def main() -> None:
    """Print the document. The application is built without a node: nothing in the document depends on one."""
    from api.app import bare_app

    sys.stdout.write(text(bare_app()))


if __name__ == "__main__":
    main()
