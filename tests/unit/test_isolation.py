"""A drill's partition: nothing passes the gate in either direction, it opens by itself, only the token closes it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.app import create_app
from node.fakes import pack_of
from node.isolation import ISOLATION_S_MAX, GatedEndpoint, GatedPeers, GatedTransport, Isolation
from node.ports.errors import NoAnswer
from node.ports.transport import DirectAnswer
from node.protocol.ids import Ballot
from node.protocol.messages import Claim, Fetch, Ping, Pong, Query
from tests.unit.fake_service import FakeService, make_config
from tests.unit.rest_client import ask
from tests.unit.runtime_kit import NAME, A, B, Cluster, simulated

TOKEN = "a secret of sixteen"


@simulated
async def test_the_gate_opens_by_itself_at_its_time_and_at_the_latest_after_a_minute() -> None:
    gate = Isolation()
    assert gate.left_s == 0
    for seconds, ends in ((5.0, 5.0), (1e6, ISOLATION_S_MAX)):
        gate.begin(seconds)
        assert gate.left_s == pytest.approx(ends)
        began = asyncio.get_running_loop().time()
        await gate.passed()
        assert asyncio.get_running_loop().time() - began == pytest.approx(ends)
        assert gate.left_s == 0
    gate.end()
    await gate.passed()


@simulated
async def test_a_gate_that_is_closed_again_counts_from_then_and_one_that_is_opened_stays_open() -> None:
    gate = Isolation()
    gate.begin(5)
    await asyncio.sleep(4)
    gate.begin(5)
    await asyncio.sleep(4)
    assert gate.left_s == pytest.approx(1)
    gate.end()
    gate.begin(10)
    await asyncio.sleep(2)
    assert gate.left_s == pytest.approx(8), "the first closing's timer is gone"


class Peers:
    """Answers at once, and remembers whom it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def ask(self, to: object, message: object, *, timeout_s: float) -> Pong:
        self.asked.append(message)
        return Pong("j", 1, 1, True)

    async def fetch(self, to: object, message: object, *, stall_s: float) -> AsyncIterator[bytes]:
        for piece in (b"a", b"b"):
            yield piece

    async def stop(self) -> None:
        return None


@simulated
async def test_questions_wait_at_the_gate_and_bring_no_answer_after_their_time() -> None:
    gate, inner = Isolation(), Peers()
    peers = GatedPeers(inner, gate)  # type: ignore[arg-type]
    assert isinstance(await peers.ask(B, Ping(), timeout_s=1), Pong)
    gate.begin(10)
    with pytest.raises(NoAnswer):
        await peers.ask(B, Query(NAME.key), timeout_s=1)
    assert len(inner.asked) == 1, "it never left"
    late = asyncio.create_task(peers.ask(B, Ping(), timeout_s=30))
    await asyncio.sleep(1)
    gate.end()
    assert isinstance(await late, Pong)


@simulated
async def test_a_transfer_that_is_cut_on_its_way_stalls() -> None:
    gate = Isolation()
    peers = GatedPeers(Peers(), gate)  # type: ignore[arg-type]
    got = []
    with pytest.raises(NoAnswer):  # noqa: PT012
        async for piece in peers.fetch(B, Fetch(NAME.key, pack_of(b"x")[0], False), stall_s=1):
            got.append(piece)
            gate.begin(10)
    assert got == [b"a"]


@simulated
async def test_what_comes_in_is_neither_handled_nor_answered_meanwhile() -> None:
    gate, handled = Isolation(), []

    class Endpoint:
        async def serve(self, kind: str, body: bytes) -> DirectAnswer:
            handled.append(kind)
            await asyncio.sleep(1)
            return DirectAnswer(200, b"")

    endpoint = GatedEndpoint(Endpoint(), gate)
    before = asyncio.create_task(endpoint.serve("before", b""))
    await asyncio.sleep(0.5)
    gate.begin(20)
    during = asyncio.create_task(endpoint.serve("during", b""))
    await asyncio.sleep(5)
    assert handled == ["before"]
    assert not before.done(), "its answer is cut off too"
    gate.end()
    await asyncio.gather(before, during)
    assert handled == ["before", "during"]


@simulated
async def test_votes_wait_at_the_gate_in_both_directions() -> None:
    """The transport, against the real runtime; the others go on without the node."""
    async with Cluster() as cluster:
        gate = Isolation()
        await cluster.create(A)
        runtime, replica = cluster[B].runtime, await cluster[B].replica()
        assert runtime is not None
        transport = runtime._transport = GatedTransport(runtime._transport, gate)
        await transport.start(runtime.serving.on_request)
        gate.begin(30)
        claim = Claim(NAME.key, replica.register.voters.digest, Ballot(9, B, 0), 1.0)
        with pytest.raises(NoAnswer):
            await transport.request(A, claim, timeout_s=1)
        outcome = await cluster.push(A, 1, content=b"x")
        assert (outcome.confirmed, outcome.voters) == (2, 3)
        gate.end()
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1


def app(tmp_path: Path, **settings: str) -> tuple[object, Isolation]:
    gate = Isolation()
    return create_app(FakeService(), make_config(tmp_path, **settings), isolation=gate), gate  # type: ignore[arg-type]


async def test_only_who_names_the_token_may_cut_a_node_off(tmp_path: Path) -> None:
    served, gate = app(tmp_path, drill_token=TOKEN)
    for headers in ({}, {"X-Gitquorum-Drill": "wrong"}, {"X-Gitquorum-Drill": ""}):
        for method in ("PUT", "DELETE", "GET"):
            answer = await ask(served, method, "/drill/isolation", json_body={"seconds": 5}, headers=headers)
            assert (answer.status, answer.json["type"]) == (404, "/problems/no-such-path")
    assert gate.left_s == 0
    right = {"X-Gitquorum-Drill": TOKEN}
    answer = await ask(served, "PUT", "/drill/isolation", json_body={"seconds": 5}, headers=right)
    assert answer.status == 200
    assert 4 < answer.json["isolated_for_s"] <= 5
    assert gate.left_s > 4
    assert (await ask(served, "GET", "/drill/isolation", headers=right)).json["isolated_for_s"] > 4
    assert (await ask(served, "DELETE", "/drill/isolation", headers=right)).json == {"isolated_for_s": 0}
    assert gate.left_s == 0


@pytest.mark.parametrize("body", [{"seconds": 0}, {"seconds": 61}, {"seconds": "5"}, {}, {"seconds": 5, "more": 1}])
async def test_a_partition_without_a_sane_end_is_refused(tmp_path: Path, body: dict[str, object]) -> None:
    served, gate = app(tmp_path, drill_token=TOKEN)
    answer = await ask(served, "PUT", "/drill/isolation", json_body=body, headers={"X-Gitquorum-Drill": TOKEN})
    assert answer.status == 422
    assert gate.left_s == 0


async def test_without_the_setting_there_is_no_such_path(tmp_path: Path) -> None:
    served = create_app(FakeService(), make_config(tmp_path))  # type: ignore[arg-type]
    answer = await ask(served, "PUT", "/drill/isolation", json_body={"seconds": 5}, headers={"X-Gitquorum-Drill": ""})
    assert answer.status == 404
    served, gate = app(tmp_path)
    answer = await ask(served, "PUT", "/drill/isolation", json_body={"seconds": 5}, headers={"X-Gitquorum-Drill": ""})
    assert answer.status == 404
    assert gate.left_s == 0
