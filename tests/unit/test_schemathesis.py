"""schemathesis over the OpenAPI document: whatever fits or does not fit it, the API keeps to what it says of itself.

In process, over a fake node with one repository in it; seeded, so that a failure is repeatable; bounded by examples.
"""

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from api.app import create_app
from tests.unit.fake_service import FakeService, make_config

load_all_checks()
SERVER_ERRORS = CHECKS.get_one("not_a_server_error")


def no_server_error_but_a_version_not_reached(ctx: Any, response: Any, case: Any) -> bool | None:
    """A client may have seen a version that this node has not: that is no fault of the node, and says when to come again."""
    asked = any(name.lower() == "x-gitquorum-min-version" for name in case.headers or {})
    if asked and response.status_code == 503 and response.json()["type"] == "/problems/version-not-reached":
        assert int(response.headers["retry-after"][0]) > 0
        return None
    verdict: bool | None = SERVER_ERRORS(ctx, response, case)
    return verdict


EXPECTED = [
    no_server_error_but_a_version_not_reached,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
]

APP = create_app(FakeService(), make_config(Path(mkdtemp(prefix="gitquorum-schemathesis-"))))
SCHEMA: Any = schemathesis.openapi.from_asgi("/openapi.json", APP)


@pytest.mark.timeout(180)
@SCHEMA.parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_api_does_what_its_document_says(case: Any) -> None:
    case.call_and_validate(checks=EXPECTED)
