"""One engine, one image and one cluster of containers for the whole run; all of it is gone afterwards."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import Work
from tests.containers import engine as engines
from tests.containers.containers import Containers
from tests.containers.engine import Engine

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remembers a failure for the fixture that can tell why."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed  # type: ignore[attr-defined]
    return report


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Without one the test is skipped with the reason; a failure where continuous integration promised one."""
    found = engines.find()
    if isinstance(found, str):
        if os.environ.get("GITQUORUM_TEST_REQUIRE_DOCKER"):
            pytest.fail(f"{found}; and GITQUORUM_TEST_REQUIRE_DOCKER is set", pytrace=False)
        pytest.skip(found)
    print(f"images: {found.python_image}, {found.rabbitmq_image}")  # noqa: T201  # pytest shows it with a failure
    yield found
    assert not found.left()


@pytest.fixture(scope="session")
def image(engine: Engine) -> Iterator[str]:
    """A node's, built from this checkout."""
    engine.build()
    yield engine.image
    engine.forget()


@pytest.fixture(scope="session")
def _containers(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with Containers(engine, tmp_path_factory.mktemp("containers")) as started:
        yield started


@pytest.fixture
def containers(request: pytest.FixtureRequest, _containers: Containers) -> Iterator[Containers]:
    """Three nodes and RabbitMQ, all well."""
    _containers.heal()
    yield _containers
    if request.node.stash.get(_FAILED, False):
        print(_containers.logs())  # noqa: T201  # pytest shows it with the failure


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """An empty working copy."""
    return Work.init(tmp_path / "work")
