"""Health, liveness, readiness, and the sampler behind them."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from node.health import Sampler
from node.ports.service import PeerState
from tests.unit.fake_service import SECOND, FakeService, make_config
from tests.unit.rest_client import ask


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def app(service: FakeService, tmp_path: Path) -> Any:
    return create_app(service, make_config(tmp_path))


async def test_health_reports_the_node_its_peers_and_its_broker(app: Any) -> None:
    health = (await ask(app, "GET", "/health")).json
    assert (health["node_id"], health["status"], health["peer_count"]) == ("node-1", "ok", 2)
    assert [(peer["node_id"], peer["state"]) for peer in health["peers"]] == [("node-2", "alive"), ("node-3", "alive")]
    assert health["broker"] == {"name": "direct", "state": "up", "detail": "no broker"}
    assert 0 <= health["cpu_percent"] <= 100
    assert datetime.fromisoformat(health["timestamp"]).utcoffset() == timedelta(0)


async def test_health_is_200_and_says_degraded_when_a_peer_is_suspected(app: Any, service: FakeService) -> None:
    peer = PeerState(SECOND, "http://127.0.0.1:3002", "suspected", "no answer for 3 s")
    service.node = replace(service.state(), peers=(peer,))
    answer = await ask(app, "GET", "/health")
    assert (answer.status, answer.json["status"]) == (200, "degraded")


@pytest.mark.parametrize(
    ("ready", "write_ready", "read", "write"), [(True, True, 200, 200), (True, False, 200, 503), (False, False, 503, 503)]
)
async def test_readiness_follows_the_role(
    app: Any, service: FakeService, ready: bool, write_ready: bool, read: int, write: int
) -> None:
    service.node = replace(service.state(), ready=ready, write_ready=write_ready)
    assert (await ask(app, "GET", "/readyz")).status == read
    assert (await ask(app, "GET", "/readyz?role=read")).status == read
    answer = await ask(app, "GET", "/readyz?role=write")
    assert answer.status == write
    assert ("retry-after" in answer.headers) == (write == 503)


async def test_livez_asks_nothing(app: Any, service: FakeService) -> None:
    service.error = RuntimeError("down")
    assert (await ask(app, "GET", "/livez")).json == {"status": "alive"}


async def test_the_sampler_renews_its_sample_and_ends_its_task() -> None:
    sampler = Sampler(interval_s=0.01)
    await sampler.start()
    first = sampler.last
    assert 0 < first.memory_percent <= 100
    async with asyncio.timeout(5):
        while sampler.last.at == first.at:  # noqa: ASYNC110 - the sampler tells nobody when it is done
            await asyncio.sleep(0.005)
    await sampler.stop()
    assert all(task.get_name() != "health-sampler" for task in asyncio.all_tasks())
