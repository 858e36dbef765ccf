"""What is direct HTTP's own: questions, packs as a stream, refusals as problem+json, and peers that misbehave."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from broker.direct import HttpPeers
from broker.direct_server import DirectServer
from broker.kinds import BY_MESSAGE, Kind
from node.ports.errors import Busy, NoAnswer, PeerUnreachable
from node.ports.transport import DirectAnswer
from node.protocol.ids import NodeId
from node.protocol.messages import Claim, Fetch, History, HistoryEntry, HistoryPage, Ping, Pong, Query, TransportReply
from tests.cluster.brokers import GHOST, ONE, TWO
from tests.cluster.transports import DirectCluster, codec, direct_cluster, nothing, pong, yes
from tests.unit.broker_samples import CHANGE, PACK, REPO, claim, refused

BYTES = bytes(range(256)) * 4
FETCH = Fetch(REPO, PACK, index=False)
assert PACK.size_bytes == 1000


@pytest_asyncio.fixture
async def cluster() -> AsyncIterator[DirectCluster]:
    async with direct_cluster() as started:
        yield started


def serving(chunks: list[bytes], pause_s: float = 0.0) -> Any:
    async def fetch(sender: NodeId, message: Fetch) -> AsyncIterator[bytes]:
        async def stream() -> AsyncIterator[bytes]:
            skip = message.offset
            for chunk in chunks:
                yield chunk[skip:]
                skip = max(0, skip - len(chunk))
                await asyncio.sleep(pause_s)

        return stream()

    return fetch


async def drained(peers: HttpPeers, message: Fetch = FETCH, stall_s: float = 5.0) -> bytes:
    return b"".join([chunk async for chunk in peers.fetch(TWO, message, stall_s=stall_s)])


async def test_questions_are_answered_by_the_direct_handler(cluster: DirectCluster) -> None:
    await cluster.start(ONE)
    await cluster.start(TWO)
    assert await cluster.peers[ONE].ask(TWO, Ping(), timeout_s=5) == Pong("journal", 1, 0, True)


async def test_an_answer_of_the_wrong_kind_is_no_answer(cluster: DirectCluster) -> None:
    await cluster.start(ONE)
    await cluster.start(TWO)
    with pytest.raises(NoAnswer, match="a pong is no answer to a query"):
        await cluster.peers[ONE].ask(TWO, Query(REPO), timeout_s=5)
    assert cluster.received(ONE).refused == {"wrong answer": 1}


async def test_an_answer_to_another_request_is_no_answer(cluster: DirectCluster) -> None:
    await cluster.start(ONE)
    await cluster.start(TWO)
    stale = codec(TWO).seal(Pong("old", 1, 0, True), ONE, timeout_s=1, correlation="an-older-one").data

    class Replaying:
        async def serve(self, kind: str, body: bytes) -> DirectAnswer:
            return DirectAnswer(200, stale)

    cluster.servers[TWO] = Replaying()  # type: ignore[assignment]
    with pytest.raises(NoAnswer, match="another request"):
        await cluster.peers[ONE].ask(TWO, Ping(), timeout_s=5)


async def test_a_pack_is_streamed_from_its_offset(cluster: DirectCluster) -> None:
    await cluster.start(ONE)
    await cluster.start(TWO, fetch=serving([BYTES[:400], BYTES[400:1000]]))
    assert await drained(cluster.peers[ONE]) == BYTES[:1000]
    assert await drained(cluster.peers[ONE], Fetch(REPO, PACK, False, 300)) == BYTES[300:1000]


async def test_a_stream_that_stalls_ends_too_early_or_too_late_is_an_error(cluster: DirectCluster) -> None:
    await cluster.start(ONE)
    await cluster.start(TWO, fetch=serving([BYTES[:400], BYTES[400:1000]], pause_s=5))
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        await drained(cluster.peers[ONE], stall_s=0.3)
    assert time.monotonic() - began < 3
    for chunks, words in (([BYTES[:400]], "600 bytes too few"), ([BYTES[:1001]], "more of")):
        cluster.servers[TWO]._fetch_handler = serving(chunks)
        with pytest.raises(NoAnswer, match=words):
            await drained(cluster.peers[ONE])


async def test_a_pack_that_is_not_there_and_a_peer_that_is_not_there_are_unreachable(cluster: DirectCluster) -> None:
    await cluster.start(ONE)
    await cluster.start(TWO)
    with pytest.raises(PeerUnreachable, match="404"):
        await drained(cluster.peers[ONE])
    with pytest.raises(PeerUnreachable):
        await anext(aiter(cluster.peers[ONE].fetch(GHOST, FETCH, stall_s=1)))


async def test_a_reader_that_leaves_a_stream_early_leaves_nothing_behind(cluster: DirectCluster) -> None:
    await cluster.start(ONE)
    await cluster.start(TWO, fetch=serving([BYTES[:400], BYTES[400:1000]]))
    stream = cluster.peers[ONE].fetch(TWO, FETCH, stall_s=5)
    assert await anext(aiter(stream))
    await stream.aclose()  # type: ignore[attr-defined]
    assert await drained(cluster.peers[ONE]) == BYTES[:1000]


async def test_a_history_page_that_is_too_large_is_answered_by_its_first_part(
    cluster: DirectCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = tuple(HistoryEntry(CHANGE, None, number) for number in range(100))

    async def history(sender: NodeId, message: object) -> HistoryPage:
        return HistoryPage(REPO, entries, CHANGE.position, 0)

    await cluster.start(ONE)
    await cluster.start(TWO, direct=history)
    monkeypatch.setitem(BY_MESSAGE, HistoryPage, Kind(HistoryPage, "history-page", 20_000))
    page = await cluster.peers[ONE].ask(TWO, History(REPO, 0), timeout_s=5)
    assert isinstance(page, HistoryPage)
    assert 1 <= len(page.entries) < 100
    assert page.entries == entries[: len(page.entries)]


@pytest.mark.parametrize(("kind", "status"), [("prepare", 404), ("nonsense", 404), ("pong", 404), ("ping", 400)])
async def test_with_a_broker_the_four_kinds_are_refused_here(kind: str, status: int) -> None:
    server = DirectServer(codec(TWO), transport_handler=None, direct_handler=pong, fetch_handler=nothing)
    answer = await server.serve(kind, codec(ONE).seal(claim(), TWO, timeout_s=1).data)
    assert (answer.status, answer.content_type) == (status, "application/problem+json")
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body)["status"] == status


async def test_bad_envelopes_are_problems_and_counted() -> None:
    taker = codec(TWO)
    server = DirectServer(taker, transport_handler=yes, direct_handler=pong, fetch_handler=nothing)
    good = codec(ONE).seal(claim(), TWO, timeout_s=1).data
    for kind, body, status in (
        ("claim", b"[" * 100_000, 413),
        ("prepare", b"[" * 100_000, 400),
        ("claim", b"{}", 400),
        ("claim", good.replace(b'"round":1', b'"round":2'), 403),
        ("claim", codec(ONE, "other").seal(claim(), TWO, timeout_s=1).data, 403),
        ("claim", codec(ONE).seal(claim(), GHOST, timeout_s=1).data, 421),
        ("abort", good, 400),
    ):
        assert (await server.serve(kind, body)).status == status
    assert sum(taker.refused.values()) == 7
    assert (await server.serve("claim", good)).status == 200


async def test_a_handler_that_fails_is_a_500_without_a_traceback_and_a_busy_one_a_503() -> None:
    async def fails(sender: NodeId, message: object) -> Any:
        raise Busy("full") if isinstance(message, Ping) else RuntimeError("secret detail")

    server = DirectServer(codec(TWO), transport_handler=None, direct_handler=fails, fetch_handler=nothing)
    busy = await server.serve("ping", codec(ONE).seal(Ping(), TWO, timeout_s=1).data)
    assert (busy.status, busy.retry_after_s) == (503, 1)
    answer = await server.serve("query", codec(ONE).seal(Query(REPO), TWO, timeout_s=1).data)
    assert (answer.status, answer.retry_after_s) == (500, None)
    assert b"secret" not in answer.body  # type: ignore[operator]


async def test_more_requests_than_the_bound_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.direct_server.SERVED_MAX", 1)
    release = asyncio.Event()

    async def slow(sender: NodeId, message: object) -> Pong:
        await release.wait()
        return Pong("j", 1, 0, True)

    server = DirectServer(codec(TWO), transport_handler=None, direct_handler=slow, fetch_handler=nothing)
    body = codec(ONE).seal(Ping(), TWO, timeout_s=1).data
    first = asyncio.create_task(server.serve("ping", body))
    await asyncio.sleep(0)
    refused_ = await server.serve("ping", body)
    assert (refused_.status, refused_.retry_after_s) == (503, 1)
    release.set()
    assert (await first).status == 200


async def raw_server(cluster: DirectCluster, respond: Any) -> asyncio.Server:
    port = int(cluster.urls[TWO].rsplit(":", 1)[1])
    return await asyncio.start_server(respond, "127.0.0.1", port)


async def test_a_peer_that_hangs_up_twice_is_no_answer_since_it_may_have_taken_it(cluster: DirectCluster) -> None:
    calls = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        await reader.read(100)
        writer.close()

    one = await cluster.start(ONE)
    async with await raw_server(cluster, hang_up):
        with pytest.raises(NoAnswer):
            await one.request(TWO, claim(), timeout_s=5)
    assert calls == 2


async def test_an_idle_connection_that_the_peer_closed_does_not_fail_the_next_request(cluster: DirectCluster) -> None:
    one = await cluster.start(ONE)
    await cluster.start(TWO)
    await one.request(TWO, claim(), timeout_s=5)
    for runner in (cluster.runners.pop(TWO),):
        await runner.cleanup()
        await cluster.listen(TWO)
    assert await one.request(TWO, claim(round_=2), timeout_s=5) == refused(2)


async def test_a_peer_that_answers_without_end_is_cut_off(cluster: DirectCluster) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(b"x" * 65536)
        return response

    one = await cluster.start(ONE)
    app = web.Application()
    app.router.add_post("/replicate/{kind}", endless)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(cluster.urls[TWO].rsplit(":", 1)[1])).start()
    cluster.runners[TWO] = runner
    with pytest.raises(NoAnswer, match="more than"):
        await one.request(TWO, claim(), timeout_s=20)


async def test_slow_bulk_questions_do_not_keep_a_prepare_waiting(
    cluster: DirectCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.direct.BULK_CONNECTIONS_PER_PEER", 2)
    release = asyncio.Event()

    async def slow(sender: NodeId, message: object) -> HistoryPage:
        await release.wait()
        return HistoryPage(REPO, (), CHANGE.position, 0)

    async def handler(sender: NodeId, message: object) -> TransportReply:
        assert isinstance(message, Claim)
        return refused(message.ballot.round)

    one = await cluster.start(ONE)
    await cluster.start(TWO, handler, direct=slow)
    asking = [asyncio.create_task(cluster.peers[ONE].ask(TWO, History(REPO, 0), timeout_s=20)) for _ in range(10)]
    await asyncio.sleep(0.1)
    assert await one.request(TWO, claim(round_=3), timeout_s=2) == refused(3)
    release.set()
    await asyncio.gather(*asking)
