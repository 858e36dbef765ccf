"""``ports.Transport`` keeps the same promises over RabbitMQ and over direct HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from node.ports.errors import NoAnswer, PeerUnreachable
from node.protocol.ids import Ballot, NodeId
from node.protocol.messages import Claim, Prepare, Refused, TransportReply, TransportRequest
from tests.cluster.brokers import GHOST, ONE, THREE, TWO, Broker
from tests.cluster.transports import RINGS, amqp_cluster, codec, direct_cluster, until, yes
from tests.unit.broker_samples import claim, keyrings, prepare, refused

pytestmark = pytest.mark.cluster


@pytest_asyncio.fixture(params=["rabbitmq", "direct"])
async def cluster(request: pytest.FixtureRequest, brokers: Callable[[], Broker]) -> AsyncIterator[Any]:
    before = set(asyncio.all_tasks())
    if request.param == "rabbitmq":
        async with amqp_cluster(await asyncio.to_thread(brokers)) as started:
            yield started
    else:
        async with direct_cluster() as started:
            yield started
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"the transport left tasks behind: {left}"


async def test_a_request_reaches_the_peer_and_its_reply_comes_back(cluster: Any) -> None:
    seen: list[tuple[NodeId, TransportRequest]] = []

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        seen.append((sender, message))
        return refused(42)

    one, _ = await cluster.start(ONE), await cluster.start(TWO, handler)
    message = prepare("node-1", pack_bytes=1000)
    assert await one.request(TWO, message, timeout_s=5) == refused(42)
    assert seen == [(ONE, message)]


async def test_many_requests_at_once_each_get_their_own_reply(cluster: Any) -> None:
    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        assert isinstance(message, Claim)
        await asyncio.sleep(0.002 * (message.ballot.round % 7))
        return refused(message.ballot.round)

    one, two = await cluster.start(ONE, handler), await cluster.start(TWO, handler)
    there = [one.request(TWO, claim("node-1", number), timeout_s=20) for number in range(1, 151)]
    back = [two.request(ONE, claim("node.2", number), timeout_s=20) for number in range(1, 151)]
    answers = await asyncio.gather(*there, *back)
    assert [answer.promised.round for answer in answers] == [*range(1, 151), *range(1, 151)]


async def test_requests_are_handled_concurrently(cluster: Any) -> None:
    first_came, release = asyncio.Event(), asyncio.Event()

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        assert isinstance(message, Claim)
        if message.ballot.round == 1:
            first_came.set()
            await release.wait()
        return refused(message.ballot.round)

    one, _ = await cluster.start(ONE), await cluster.start(TWO, handler)
    slow = asyncio.create_task(one.request(TWO, claim(round_=1), timeout_s=20))
    await asyncio.wait_for(first_came.wait(), 10)
    assert (await one.request(TWO, claim(round_=2), timeout_s=10)).promised.round == 2
    assert not slow.done()
    release.set()
    assert (await slow).promised.round == 1


async def test_a_silent_peer_is_no_answer_within_the_time_given_and_its_late_reply_disturbs_nobody(cluster: Any) -> None:
    release = asyncio.Event()

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        assert isinstance(message, Claim)
        if message.ballot.round == 1:
            await release.wait()
        return refused(message.ballot.round)

    one, _ = await cluster.start(ONE), await cluster.start(TWO, handler)
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        await one.request(TWO, claim(round_=1), timeout_s=0.3)
    assert 0.25 < time.monotonic() - began < 2
    release.set()
    for number in (2, 3, 4):
        assert (await one.request(TWO, claim(round_=number), timeout_s=5)).promised.round == number
    if cluster.name == "rabbitmq":
        await until(lambda: one.counters["late"] == 1, one.counters)


async def test_a_peer_that_was_never_there_is_unreachable_at_once(cluster: Any) -> None:
    one = await cluster.start(ONE)
    began = time.monotonic()
    with pytest.raises(PeerUnreachable):
        await one.request(GHOST, claim(), timeout_s=10)
    assert time.monotonic() - began < 3


async def test_only_members_are_spoken_to(cluster: Any) -> None:
    one = await cluster.start(ONE)
    with pytest.raises(PeerUnreachable, match="stranger"):
        await one.request(NodeId("stranger"), claim(), timeout_s=5)


async def test_a_forged_request_never_reaches_the_handler_and_is_counted(cluster: Any) -> None:
    handled: list[object] = []

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        handled.append(message)
        return refused()

    forger = codec(ONE)
    forger._signer = keyrings("node-1")[ONE]
    one, _ = await cluster.start(ONE, its_codec=forger), await cluster.start(TWO, handler)
    with pytest.raises((NoAnswer, PeerUnreachable)):
        await one.request(TWO, claim(), timeout_s=1)
    assert not handled
    assert cluster.received(TWO).refused == {"bad signature": 1}


async def test_another_clusters_request_is_refused(cluster: Any) -> None:
    one, _ = await cluster.start(ONE, its_codec=codec(ONE, "other")), await cluster.start(TWO)
    with pytest.raises((NoAnswer, PeerUnreachable)):
        await one.request(TWO, claim(), timeout_s=1)
    assert cluster.received(TWO).refused == {"wrong cluster": 1}


async def test_a_forged_reply_is_no_answer(cluster: Any) -> None:
    liar = codec(TWO)
    one, _ = await cluster.start(ONE), await cluster.start(TWO, its_codec=liar)
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)
    liar._signer = type("Wrong", (), {"node": TWO, "sign": RINGS[THREE].sign, "verify": RINGS[TWO].verify})()
    with pytest.raises(NoAnswer):
        await one.request(TWO, claim(), timeout_s=1)
    assert cluster.received(ONE).refused == {"bad signature": 1}


async def test_a_megabyte_of_small_packs_rides_along(cluster: Any) -> None:
    got: list[TransportRequest] = []

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        got.append(message)
        return refused()

    one, _ = await cluster.start(ONE), await cluster.start(TWO, handler)
    message = prepare(pack_bytes=1024 * 1024)
    await one.request(TWO, message, timeout_s=20)
    assert got == [message]


async def test_a_message_above_its_bound_is_not_sent(cluster: Any) -> None:
    one, _ = await cluster.start(ONE), await cluster.start(TWO)
    with pytest.raises(PeerUnreachable, match="oversize"):
        await one.request(TWO, prepare(pack_bytes=12 * 1024 * 1024), timeout_s=5)
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)


async def test_beyond_the_bound_on_waiting_requests_the_next_one_fails_at_once(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.amqp.OUTSTANDING_MAX", 3)
    monkeypatch.setattr("broker.direct.OUTSTANDING_MAX", 3)
    came: list[object] = []
    release = asyncio.Event()

    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        came.append(message)
        await release.wait()
        return refused()

    one, _ = await cluster.start(ONE), await cluster.start(TWO, handler)
    waiting = [asyncio.create_task(one.request(TWO, claim(round_=n), timeout_s=20)) for n in range(1, 4)]
    await until(lambda: len(came) == 3, came)
    with pytest.raises(PeerUnreachable, match="overloaded"):
        await one.request(TWO, claim(round_=4), timeout_s=5)
    release.set()
    await asyncio.gather(*waiting)
    assert isinstance(await one.request(TWO, claim(round_=5), timeout_s=5), Refused)


async def test_a_handler_that_fails_costs_its_own_request_only(cluster: Any) -> None:
    async def handler(sender: NodeId, message: TransportRequest) -> TransportReply:
        if isinstance(message, Prepare):
            raise RuntimeError("a bug")
        return refused()

    one, _ = await cluster.start(ONE), await cluster.start(TWO, handler)
    with pytest.raises(NoAnswer):
        await one.request(TWO, prepare(), timeout_s=1)
    assert isinstance(await one.request(TWO, claim(), timeout_s=5), Refused)


async def test_the_same_message_may_come_twice_and_both_are_answered(cluster: Any) -> None:
    one, _ = await cluster.start(ONE), await cluster.start(TWO, yes)
    message = claim(round_=6)
    assert message.ballot == Ballot(6, ONE, 0)
    assert await one.request(TWO, message, timeout_s=5) == await one.request(TWO, message, timeout_s=5)


async def test_after_stop_nothing_is_sent_and_a_second_stop_is_harmless(cluster: Any) -> None:
    one, _ = await cluster.start(ONE), await cluster.start(TWO)
    await one.request(TWO, claim(), timeout_s=5)
    assert one.up
    await one.stop()
    assert not one.up
    with pytest.raises(PeerUnreachable):
        await one.request(TWO, claim(), timeout_s=5)
    await one.stop()


async def test_a_restarted_peer_is_reached_again(cluster: Any) -> None:
    one, two = await cluster.start(ONE), await cluster.start(TWO)
    await one.request(TWO, claim(), timeout_s=5)
    if cluster.name == "rabbitmq":
        await two.stop()
        await cluster.start(TWO)
    else:
        await cluster.runners[TWO].cleanup()
        await cluster.listen(TWO)
    assert isinstance(await one.request(TWO, claim(round_=2), timeout_s=5), Refused)
