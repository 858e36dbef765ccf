"""The OpenAPI document: in step with the code, complete, and its examples true to its schemas."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from api import openapi
from api.app import bare_app

DOCUMENT: dict[str, Any] = openapi.document(bare_app())
OPERATIONS = [
    pytest.param(operation, id=operation["operationId"]) for path in DOCUMENT["paths"].values() for operation in path.values()
]


def test_the_committed_document_is_what_the_code_says() -> None:
    committed = Path(__file__).parents[2] / "docs" / "openapi.json"
    assert committed.read_text() == openapi.text(bare_app()), "run: python -m api.openapi > docs/openapi.json"


def test_every_path_of_the_issue_is_there_and_no_internal_one() -> None:
    one = "/repos/{owner}/{repo}"
    found = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert found == {
        ("GET", "/health"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/problems/{slug}"),
        ("POST", "/repos"),
        ("GET", "/repos"),
        ("GET", one),
        ("DELETE", one),
        ("GET", f"{one}/refs"),
        ("GET", f"{one}/replicas"),
        ("GET", f"{one}/history"),
        ("GET", "/transactions/{transaction_id}"),
    }


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_answer_has_a_description_a_request_id_and_an_example_that_fits_its_schema(operation: dict[str, Any]) -> None:
    for status, response in operation["responses"].items():
        assert response["description"], status
        assert "X-Request-Id" in response["headers"], status
        (media_type, content), *more = response["content"].items()
        assert not more
        assert (media_type == "application/problem+json") == (int(status) >= 400)
        examples = [content["example"]] if "example" in content else [one["value"] for one in content["examples"].values()]
        assert examples, status
        schema = {**content["schema"], "components": DOCUMENT["components"]}
        for example in examples:
            jsonschema_rs.validate(schema, example)
            assert int(status) < 400 or example["status"] == int(status)


def test_every_503_says_when_to_come_back() -> None:
    for parameter in OPERATIONS:
        operation: Any = parameter.values[0]
        assert "Retry-After" in operation["responses"]["503"]["headers"], operation["operationId"]


def test_the_document_is_json_that_any_reader_takes() -> None:
    assert json.loads(openapi.text(bare_app()))["openapi"].startswith("3.1")
