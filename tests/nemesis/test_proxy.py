"""The network that the nemesis cuts: what is held arrives late, what is cut one way still passes the other way."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.nemesis.proxy import Link, Way

SOON_S = 5.0
HELD_S = 0.15


class Echo:
    """A server that answers each line with itself, and remembers what came."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(line)
                await writer.drain()
        writer.close()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    server = Echo()
    await server.open()
    yield server
    await server.close()


@pytest.fixture
async def link(echo: Echo) -> AsyncIterator[Link]:
    made = Link("node-1", "node-2", lambda: echo.port)
    await made.listen()
    yield made
    await made.close()


async def opened(link: Link) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", link.port)


async def line(reader: asyncio.StreamReader, timeout_s: float = SOON_S) -> bytes | None:
    """The next one; ``None`` if none comes in time."""
    try:
        return await asyncio.wait_for(reader.readline(), timeout_s)
    except TimeoutError:
        return None


async def test_bytes_pass_both_ways(link: Link) -> None:
    reader, writer = await opened(link)
    writer.write(b"hello\n")
    assert await line(reader) == b"hello\n"
    writer.close()


async def test_what_is_cut_is_held_and_arrives_when_it_is_mended(link: Link, echo: Echo) -> None:
    reader, writer = await opened(link)
    writer.write(b"one\n")
    assert await line(reader) == b"one\n"
    link.cut(Way.THERE)
    writer.write(b"two\n")
    assert await line(reader, HELD_S) is None
    assert echo.heard == [b"one\n"]
    assert link.counts["held"] == 1
    link.mend()
    assert await line(reader) == b"two\n"
    writer.close()


async def test_a_cut_of_the_way_back_lets_the_question_pass(link: Link, echo: Echo) -> None:
    reader, writer = await opened(link)
    link.cut(Way.BACK)
    writer.write(b"one\n")
    assert await line(reader, HELD_S) is None
    assert echo.heard == [b"one\n"]
    link.mend()
    assert await line(reader) == b"one\n"
    writer.close()


async def test_new_connections_meet_the_cut_too(link: Link, echo: Echo) -> None:
    link.cut(Way.THERE)
    reader, writer = await opened(link)
    writer.write(b"one\n")
    assert await line(reader, HELD_S) is None
    assert (echo.heard, link.counts["held"]) == ([], 1)
    link.mend()
    assert await line(reader) == b"one\n"
    writer.close()


async def test_a_delay_is_a_delay(link: Link) -> None:
    reader, writer = await opened(link)
    link.delay(0.1, *Way)
    began = asyncio.get_running_loop().time()
    writer.write(b"one\n")
    assert await line(reader) == b"one\n"
    assert asyncio.get_running_loop().time() - began >= 0.2
    assert link.counts["late"] >= 2
    writer.close()


async def test_a_reset_breaks_connections_and_a_dead_end_refuses_them(link: Link) -> None:
    reader, writer = await opened(link)
    writer.write(b"one\n")
    assert await line(reader) == b"one\n"
    link.reset()
    with suppress(ConnectionError):
        assert await line(reader) == b""
    writer.close()
    port = link.port
    await link.refuse()
    with pytest.raises(ConnectionRefusedError):
        await opened(link)
    await link.listen()
    assert link.port == port
    reader, writer = await opened(link)
    writer.write(b"two\n")
    assert await line(reader) == b"two\n"
    writer.close()


@pytest.mark.parametrize("turns", range(6))
async def test_whoever_is_let_in_while_the_door_closes_is_shown_out(link: Link, turns: int) -> None:
    """In whichever turn of the loop: after two it is accepted, and has no transport yet."""
    with socket.create_connection(("127.0.0.1", link.port), SOON_S) as asker:  # by the kernel: the loop does not turn meanwhile
        for _ in range(turns):
            await asyncio.sleep(0)
        await link.close()
        asker.setblocking(False)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asker, 1), SOON_S) == b""
