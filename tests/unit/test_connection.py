"""Several brokers in one URL: tried in turn, quickly within a round, slower after a round in which none was there."""

import asyncio
from contextlib import suppress

import pytest
from pika.exceptions import ChannelWrongStateError

from broker import connection
from broker.connection import BACKOFF_FIRST_S, BACKOFF_LAST_S, Link, Session


async def never(session: Session) -> None:
    raise AssertionError("nobody listens")


async def test_brokers_are_tried_in_turn_and_only_a_whole_round_of_refusals_makes_the_wait_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    tried: list[str] = []

    async def refused(self: Link) -> float:
        tried.append(self._brokers[self._turn][0])
        if len(pauses) == 9:
            await asyncio.sleep(3600)
        return 0.0

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    link = Link("amqp://a:b@one/v, amqp://a:b@two:5673/v,amqps://a:b@three/v", "a link", never)
    monkeypatch.setattr(Link, "_live_once", refused)
    monkeypatch.setattr(connection.random, "uniform", lambda low, high: high)
    real = asyncio.sleep
    monkeypatch.setattr(connection.asyncio, "sleep", lambda s: real(s) if s > 60 else sleep(s))
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await link._run()
    assert tried == ["one:5672/v", "two:5673/v", "three:5671/v"] * 3 + ["one:5672/v"]
    first = BACKOFF_FIRST_S
    assert pauses == [first, first, 2 * first, first, first, 4 * first, first, first, 8 * first]
    assert max(pauses) <= BACKOFF_LAST_S


class Opened:
    """A session that is open until it is closed."""

    callback_errors = 0

    def __init__(self, *_: object) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def opened(self) -> None:
        """It is."""

    async def close(self) -> None:
        """Nothing to do."""


async def test_a_connection_that_breaks_under_a_call_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """pika says so by an error of its own kind. It ended the link's task: the node never connected again, and its end was an
    exit code 1 (found by the nemesis, seed 33: a broker cut off while queues were declared)."""
    tries = 0

    async def breaks_once(session: Session) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ChannelWrongStateError("Channel is closed.")

    monkeypatch.setattr(connection, "Session", Opened)
    link = Link("amqp://a:b@one/v", "a link", breaks_once)
    link.start()
    async with asyncio.timeout(20):
        await link.available.wait()
        await link.stop()
    assert (tries, link.reconnects) == (2, 1)


async def test_what_is_wrong_is_told_with_the_broker_that_it_was_told_by() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = Link(f"amqp://a:geheim@127.0.0.1:1/v,amqp://a:geheim@127.0.0.1:{port}/v", "a link", never)
    link.start()
    seen: dict[str, set[str]] = {}
    async with server, asyncio.timeout(20):
        while link.reconnects < 6:
            seen.setdefault(link.place, set()).add(link.problem)
            await asyncio.sleep(0.001)
        await link.stop()
    refusing, closing = seen["127.0.0.1:1/v"], seen[f"127.0.0.1:{port}/v"]
    assert any("refused" in problem for problem in refusing)
    assert not any("refused" in problem for problem in closing)
    assert len(closing - {"connecting", "disconnected"}) == 1, closing
    assert not refusing & (closing - {"connecting", "disconnected"})
    assert "geheim" not in str(seen) + repr(link)
    assert link.user == "a"
