"""A fault of ours in one round of a task for life ends that round, not the task; /health says so for a while."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from broker import connection
from broker.connection import Link
from node.fakes import LoopClock
from node.lasting import LOG_EVERY_S, SHOWN_S, Lasting
from node.ports.errors import StorageError
from node.protocol.events import Suspected
from node.protocol.ids import NodeId
from node.protocol.messages import Ping
from tests.unit.runtime_kit import A, B, C, Cluster, simulated, until


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    with capture_logs():
        yield
    structlog.reset_defaults()


@simulated
async def test_a_task_for_life_goes_on_and_its_traceback_is_logged_at_a_bounded_rate() -> None:
    lasting, rounds = Lasting(LoopClock()), 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds <= 200:
            raise KeyError("a bug")

    with capture_logs() as logs:
        await lasting.run("a test", work)
    assert rounds == 201
    assert 200 / LOG_EVERY_S <= len(logs) <= 200 / LOG_EVERY_S + 1
    assert all(line["event"] == "task failed" and isinstance(line["exc_info"], KeyError) for line in logs)
    assert "a test, 200 times" in lasting.problem
    assert "KeyError('a bug')" in lasting.problem
    await asyncio.sleep(SHOWN_S)
    assert lasting.problem == ""


@simulated
async def test_a_replica_that_is_broken_does_not_end_the_failure_detector() -> None:
    """Its machine raised when it was told whom to suspect, and with it went every heartbeat of the node."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        replica = await cluster[A].replica()

        handle = replica.voter.handle

        def broken(event: Any, now: float) -> Any:
            if isinstance(event, Suspected):
                raise KeyError("a bug")
            return handle(event, now)

        replica.voter.handle = broken  # type: ignore[method-assign]
        for _ in range(2):  # the first one sets the replica aside, the second one met it so
            await cluster[C].crash()
            await cluster.settle(5)
            assert cluster[A].service.state().peers[1].state == "suspected"
            await cluster[C].start()
            await cluster.settle(5)
            assert cluster[A].service.state().peers[1].state == "alive"


@simulated
async def test_a_peer_that_cannot_be_asked_for_a_fault_of_ours_is_suspected_until_it_can() -> None:
    async with Cluster() as cluster:
        await cluster.settle(2)
        runtime = cluster[A].runtime
        assert runtime is not None
        peers: Any = runtime._peers
        ask = peers.ask

        async def broken(to: NodeId, message: Any, *, timeout_s: float) -> Any:
            if to == B and isinstance(message, Ping):
                raise RuntimeError("a bug")
            return await ask(to, message, timeout_s=timeout_s)

        peers.ask = broken
        await cluster.settle(10)
        state = runtime.state()
        assert {peer.node: peer.state for peer in state.peers} == {B: "suspected", C: "alive"}
        assert "internal error in the heartbeats to node-2" in state.problem
        peers.ask = ask
        await cluster.settle(3)
        assert {peer.state for peer in runtime.state().peers} == {"alive"}
        await cluster.settle(SHOWN_S)
        assert runtime.state().problem == ""


@pytest.mark.parametrize("what", ["transport", "disk", "scrub", "seen"])
def test_every_task_for_life_of_a_node_outlasts_a_fault(what: str) -> None:
    simulated(_outlasts)(what)


async def _outlasts(what: str) -> None:
    async with Cluster() as cluster:
        await cluster[A].crash()
        box, rounds = cluster[A], 0

        def faulty(*args: Any, **kwargs: Any) -> Any:
            nonlocal rounds
            rounds += 1
            raise KeyError("a bug")

        with pytest.MonkeyPatch.context() as patch:
            match what:
                case "transport":
                    patch.setattr("node.runtime.Runtime._on_suspicion", faulty)
                case "disk":
                    patch.setattr("node.disk.Disk.short", property(faulty))
                case "scrub":
                    patch.setattr(type(box.journal.care), "set_aside", faulty)
                case _:
                    patch.setattr(type(box.journal.lives), "keep_seen", faulty)
            await box.start()
            await cluster.settle(20)
            assert rounds > (10 if what == "disk" else 2)
            if what != "disk":  # which /health asks for itself
                assert "internal error in the" in box.service.state().problem
        await cluster.settle(70)
        assert box.service.state().problem == ""
        assert {peer.state for peer in box.service.state().peers} == {"alive"}


@simulated
async def test_a_rejoining_that_broke_off_for_a_fault_of_ours_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster[B].crash()
        cluster[B].wipe()
        with monkeypatch.context() as patch:

            def broken(*args: object) -> None:
                raise KeyError("a bug")

            patch.setattr("node.protocol.rejoin.Rejoin.handle", broken)
            await cluster[B].start()
            await cluster.settle(7)
            assert "ended by an internal error" in cluster[B].service.state().problem
        await until(lambda: cluster[B].service.state().standing == "member", 20.0)


async def test_a_connection_to_the_broker_outlasts_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0

    class Broken:
        def __init__(self, *args: object) -> None:
            nonlocal rounds
            rounds += 1
            raise KeyError("a bug")

    monkeypatch.setattr(connection, "Session", Broken)
    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 0.001)

    async def set_up(session: object) -> None:
        raise StorageError("never")

    link = Link("amqp://a:b@127.0.0.1:1/", "a test", set_up)
    link.start()
    async with asyncio.timeout(10):
        while rounds < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert "internal error" in link.problem
    await link.stop()
