"""One cluster per transport for the whole run, whole again before every test; each test has repositories of its own.

RabbitMQ comes from where ``sources.py`` finds it, and the run says from where.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.brokers import Broker, DockerBroker, LocalBroker
from tests.cluster.given_broker import GivenBroker
from tests.cluster.harness import Cluster, Work, git
from tests.cluster.sources import Source, SourceRefused, sources

Clusters = Callable[[str], Cluster]
Brokers = Callable[[], Broker]

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remembers a failure for the fixture that can tell why."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed  # type: ignore[attr-defined]
    return report


def pytest_report_collectionfinish(items: list[pytest.Item]) -> list[str]:
    """The run's line about RabbitMQ, if there is anything in it that may want one."""
    if not any(item.get_closest_marker("cluster") for item in items):
        return []
    try:
        return sources().lines()
    except SourceRefused as refused:
        raise pytest.UsageError(str(refused)) from refused


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    """By name: ``rabbitmq``, ``own`` (its RabbitMQ may be killed) and ``direct``. Started when first asked for, ended after
    the last test."""
    started: dict[str, Cluster] = {}

    def get(name: str) -> Cluster:
        found = sources()
        if name == "own" and found.own is found.first:
            name = "rabbitmq"
        source = {"rabbitmq": found.first, "own": found.own}.get(name)
        if name != "direct" and source is None:
            pytest.skip(found.missing())
        if name not in started:
            broker = "direct" if name == "direct" else "rabbitmq"
            started[name] = Cluster(tmp_path_factory.mktemp(name), broker, source)
            started[name].up()
        return started[name]

    yield get
    with ThreadPoolExecutor() as pool:
        list(pool.map(Cluster.close, started.values()))


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """The one broker that all tests of bare transports share; started when first asked for."""
    started: list[Broker] = []

    def get() -> Broker:
        source = sources().users
        if source is None:
            pytest.skip(sources().missing())
        if not started:
            started.append(_broker_of(source, tmp_path_factory.mktemp("broker")))
        return started[0]

    yield get
    for broker in started:
        broker.close()


@pytest.fixture
def broker(brokers: Brokers) -> Broker:
    """It must be as it was when a test ends."""
    return brokers()


@pytest.fixture
def mortal_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of this test's own, which it may kill."""
    source = sources().own
    if source is None:
        pytest.skip(sources().missing())
    with closing(_broker_of(source, tmp_path)) as broker:
        yield broker


def _broker_of(source: Source, folder: Path) -> Broker:
    match source.kind:
        case "url":
            return GivenBroker(source)
        case "docker":
            return DockerBroker(folder, source.image)
        case _:
            return LocalBroker(folder)


def _lent(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Cluster]:
    cluster.heal()
    yield cluster
    if request.node.stash.get(_FAILED, False):
        print(cluster.logs())  # noqa: T201  # pytest shows it with the failure


@pytest.fixture(params=["rabbitmq", "direct"])
def cluster(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[Cluster]:
    """Three nodes, all well."""
    yield from _lent(request, clusters(request.param))


@pytest.fixture
def rabbitmq(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[Cluster]:
    """The one with a broker."""
    yield from _lent(request, clusters("rabbitmq"))


@pytest.fixture
def own_rabbitmq(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[Cluster]:
    """One whose broker the cluster runs itself: with a user for each node, and it may be killed."""
    yield from _lent(request, clusters("own"))


@pytest.fixture
def direct(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[Cluster]:
    """The one without: for what has nothing to do with the transport."""
    yield from _lent(request, clusters("direct"))


@pytest.fixture(scope="session")
def starlette(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A real history with thousands of commits: the bundle, or where there is none a generated one, which is said."""
    folder = tmp_path_factory.mktemp("starlette")
    root = Path(__file__).resolve().parents[2]
    named = os.environ.get("GITQUORUM_TEST_BUNDLE")
    places = [*([Path(named)] if named else []), root.parent / "shared/data/starlette.bundle"]
    places.append(Path("/work/shared/data/starlette.bundle"))
    for bundle in places:
        if bundle.is_file():
            git("clone", "--quiet", "--mirror", str(bundle), "source.git", cwd=folder)
            return Work(folder / "source.git")
    git("init", "--quiet", "--bare", "source.git", cwd=folder)
    stream = _generated(commits=7000, tags=176)
    git("fast-import", "--quiet", cwd=folder / "source.git", stdin=stream)
    print("no starlette.bundle found: a generated repository of 7,000 commits stands in for it")  # noqa: T201
    return Work(folder / "source.git")


def _generated(commits: int, tags: int) -> bytes:
    """A fast-import stream of about the size of starlette's history, the same every time."""
    import random

    chance = random.Random(7)
    lines: list[bytes] = []
    for number in range(commits):
        text = b"%d %s\n" % (number, chance.randbytes(450).hex().encode())
        who = b"Ada <ada@example.org> %d +0000" % (1_600_000_000 + number * 3600)
        lines.append(b"commit refs/heads/main\ncommitter %s\ndata 5\nwork\n" % who)
        lines.append(b"M 644 inline d%d/f%d\ndata %d\n%s\n" % (number % 20, number % 300, len(text), text))
        if number % (commits // tags) == 0 and number // (commits // tags) < tags:
            lines.append(b"reset refs/tags/v%d\nfrom refs/heads/main\n\n" % number)
    return b"".join(lines)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """An empty working copy."""
    return Work.init(tmp_path / "work")
