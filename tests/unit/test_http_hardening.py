"""A real uvicorn on loopback against raw sockets: framing, sizes, slow and vanishing clients, crowds, draining.

Limits are shortened, so that patience is measured in tenths of a second; every wait in here has an end.
"""

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from api.client_transport import ClientTransport
from api.limits import Limits
from api.server import listen, serve
from node.ports.service import Consistency
from node.protocol.names import RepositoryName
from node.protocol.register import Register
from tests.unit.fake_service import FakeService, make_config

QUICK = Limits(
    header_timeout_s=0.6, keep_alive_s=1.0, body_stall_s=0.6, write_stall_s=0.8, linger_s=0.5, crowded_patience_s=0.4, drain_s=3
)


@dataclass
class Server:
    port: int
    service: FakeService

    async def connect(self) -> "Client":
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    async def say(self, data: bytes) -> tuple[int, bytes]:
        """(status of the first answer or 0, everything received until the server closes)."""
        async with asyncio.timeout(8):
            client = await self.connect()
            await client.send(data)
            return await client.until_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """One answer with Content-Length, on a connection that stays open."""
        async with asyncio.timeout(8):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
            )
            return int(head.split()[1]), head + await self.reader.readexactly(length)

    async def until_closed(self) -> tuple[int, bytes]:
        received = b""
        try:
            async with asyncio.timeout(8):
                while chunk := await self.reader.read(65_536):
                    received += chunk
        except ConnectionResetError:
            pass
        finally:
            self.writer.close()
        return (int(received.split()[1]) if received.startswith(b"HTTP/1.1 ") else 0), received


@asynccontextmanager
async def serving(tmp_path: Path, limits: Limits = QUICK, app: Any = None, **settings: Any) -> AsyncIterator[Server]:
    service = FakeService()
    config = make_config(tmp_path, **settings)
    listener, stop, started = listen("127.0.0.1", 0), asyncio.Event(), asyncio.Event()
    port = listener.getsockname()[1]
    app = app or create_app(service, config)
    task = asyncio.create_task(serve(app, config, limits=limits, sockets=[listener], on_started=started.set, stop=stop))
    try:
        async with asyncio.timeout(10):
            await started.wait()
        yield Server(port, service)
    finally:
        stop.set()
        async with asyncio.timeout(15):
            await task


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as running:
        yield running


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /repos HTTP/1.1", b"Host: a", b"Content-Type: application/json", *headers, b"", body]
    return b"\r\n".join(lines)


BODY = b'{"repo_id": "a/b"}'
CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: %d" % len(BODY)

FRAMINGS = {
    "length and chunked": post(b"0\r\n\r\n", b"Content-Length: 5", CHUNKED),
    "chunked and length": post(b"0\r\n\r\n", CHUNKED, b"Content-Length: 5"),
    "two lengths": post(BODY, LENGTH, b"Content-Length: 3"),
    "the same length twice": post(BODY, LENGTH, LENGTH),
    "a list of lengths": post(BODY, b"Content-Length: 18, 18"),
    "signed length": post(BODY, b"Content-Length: +18"),
    "negative length": post(BODY, b"Content-Length: -1"),
    "empty length": post(BODY, b"Content-Length:"),
    "length in hex": post(BODY, b"Content-Length: 0x12"),
    "length overflow": post(BODY, b"Content-Length: 99999999999999999999999"),
    "space before colon": post(BODY, b"Content-Length : 18"),
    "unknown coding": post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"),
    "coding before chunked": post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked"),
    "identity then chunked": post(b"0\r\n\r\n", b"Transfer-Encoding: identity", CHUNKED),
    "chunked then identity": post(b"0\r\n\r\n", CHUNKED, b"Transfer-Encoding: identity"),
    "chunked twice": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, chunked"),
    "chunked quoted": post(b"0\r\n\r\n", b'Transfer-Encoding: "chunked"'),
    "chunked behind a tab control": post(b"0\r\n\r\n", b"Transfer-Encoding: \x0bchunked"),
    "chunked in HTTP/1.0": post(b"0\r\n\r\n", CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "bad chunk size": post(b"zz\r\n", CHUNKED),
    "chunk size with 0x": post(b"0x12\r\n" + BODY + b"\r\n0\r\n\r\n", CHUNKED),
    "negative chunk size": post(b"-1\r\n", CHUNKED),
    "chunk size overflow": post(b"fffffffffffffffff\r\n", CHUNKED),
    "space after chunk size": post(b"12 \r\n" + BODY + b"\r\n0\r\n\r\n", CHUNKED),
    "bare LF in chunks": post(b"12\n" + BODY + b"\n0\n\n", CHUNKED),
    "chunk longer than its size": post(b"12\r\n" + BODY + b"XX0\r\n\r\n", CHUNKED),
    "LF in a chunk extension": post(b"12;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n", CHUNKED),
    "length in a trailer": post(b"12\r\n" + BODY + b"\r\n0\r\nContent-Length: 5\r\n\r\n", CHUNKED),
    "obs-fold": post(BODY, LENGTH, b"X-A: a", b" b"),
    "obs-fold first": b"GET /livez HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n",
    "bare LF": b"GET /livez HTTP/1.1\nHost: a\n\n",
    "bare LF after a header": b"GET /livez HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare CR in a header": b"GET /livez HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
    "NUL in a header": b"GET /livez HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n",
    "no header name": b"GET /livez HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    "no colon": b"GET /livez HTTP/1.1\r\nHost: a\r\nfoo\r\n\r\n",
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "HTTP/2.0": b"GET /livez HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/1.2": b"GET /livez HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": b"FOO /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    "method in lower case": b"get /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "raw UTF-8 in the target": b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n",
    "relative target": b"GET livez HTTP/1.1\r\nHost: a\r\n\r\n",
    "tabs in the request line": b"GET\t/livez\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "noise": bytes(range(256)) * 8,
}


@pytest.mark.parametrize("data", FRAMINGS.values(), ids=FRAMINGS.keys())
async def test_contradictory_framing_is_400_and_closed_and_touches_nothing(server: Server, data: bytes) -> None:
    smuggled = b"DELETE /repos/a/b HTTP/1.1\r\nHost: a\r\n\r\n"
    status, received = await server.say(data + smuggled)
    assert status == 400, received
    assert received.count(b"HTTP/1.1 ") == 1
    assert server.service.calls == []
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    problem = json.loads(body)
    assert f"x-request-id: {problem['request_id']}".encode() in head


async def test_well_framed_requests_share_a_connection(server: Server) -> None:
    client = await server.connect()
    await client.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.answer())[0] == 200
    await client.send(post(BODY, LENGTH))
    assert (await client.answer())[0] == 201
    await client.send(post(b"6;ext=1\r\n%b\r\nc\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (BODY[:6], BODY[6:]), CHUNKED))
    assert (await client.answer())[0] == 409
    client.writer.close()


async def test_head_and_body_of_an_answer_leave_in_one_write(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One system call, one packet, one awakening of whoever waits for it."""
    client = await server.connect()
    transport = type(client.writer.transport)  # the server's are of the same kind
    plain, alone = transport.write, []

    def write(self: Any, data: Any) -> None:
        alone.extend([data] if bytes(data).startswith(b"HTTP/1.1 ") and bytes(data).endswith(b"\r\n\r\n") else [])
        plain(self, data)

    monkeypatch.setattr(transport, "write", write)
    for _ in range(3):
        await client.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer())[0] == 200
    client.writer.close()
    assert not alone


async def test_a_connection_that_was_lost_is_not_watched_again_by_a_late_answer() -> None:
    """[writelines of Python 3.12 and 3.13 registers the socket that is about to be closed]"""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    inner, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    number, transport = ours.fileno(), ClientTransport(inner, loop, Limits())
    inner.abort()
    transport.cork()
    transport.write(b"head")
    transport.write(b"body")
    await asyncio.sleep(0.01)
    theirs.close()
    assert not loop.remove_writer(number)


async def test_a_head_without_a_body_is_not_kept_back(server: Server) -> None:
    client = await server.connect()
    for _ in range(2):
        await client.send(b"HEAD /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(8):
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
    client.writer.close()


async def test_a_head_is_not_kept_back_while_the_application_waits_for_the_client(tmp_path: Path) -> None:
    async def early(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await receive()
        await send({"type": "http.response.body", "body": b"ok"})

    async with serving(tmp_path, app=early) as server:
        client = await server.connect()
        await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
        async with asyncio.timeout(2):
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        client.writer.close()


async def test_an_application_that_fails_after_the_head_leaves_the_client_the_head_and_an_end(tmp_path: Path) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        raise ValueError("half way")

    async with serving(tmp_path, app=failing) as server:
        status, received = await server.say(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (status, received[-4:]) == (200, b"\r\n\r\n")


async def test_answers_in_pieces_do_not_wait_for_delayed_acknowledgements(tmp_path: Path) -> None:
    async def pieces(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async with serving(tmp_path, app=pieces) as server:
        client = await server.connect()
        began = time.monotonic()
        for _ in range(50):
            await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.answer())[1].endswith(b"onetwo")
        assert time.monotonic() - began < 1.5  # 2.2 s when TCP_NODELAY is not set
        client.writer.close()


async def test_a_request_in_single_bytes_is_understood(server: Server) -> None:
    client = await server.connect()
    for byte in post(BODY, LENGTH):
        await client.send(bytes([byte]))
    assert (await client.answer())[0] == 201
    client.writer.close()


async def test_pipelined_requests_are_answered_once_and_the_connection_closed(server: Server) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    status, received = await server.say(one * 10_000)
    assert (status, received.count(b"HTTP/1.1 ")) == (200, 1)


async def test_data_after_connection_close_is_dropped(server: Server) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    status, received = await server.say(one + b"DELETE /repos/a/b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (status, received.count(b"HTTP/1.1 "), server.service.calls) == (200, 1, [])


async def test_an_upgrade_is_ignored_and_the_connection_closed(server: Server) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    status, received = await server.say(request + b"\x00" * 100)
    assert (status, received.count(b"HTTP/1.1 ")) == (200, 1)


async def test_a_client_may_close_its_half_and_still_be_answered(server: Server) -> None:
    client = await server.connect()
    await client.send(post(BODY, LENGTH))
    client.writer.write_eof()
    assert (await client.until_closed())[0] == 201


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 400_000, 431),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"y" * 400_000, 431),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"x" * 400_000, 414),
        (post(b"x" * 70_000, b"Content-Length: 70000"), 413),
        (post(b"", b"Content-Length: 9000000000000000000"), 413),
        (post(b"10000\r\n" + b" " * 65_536 + b"\r\n10000\r\n" + b" " * 65_536 + b"\r\n", CHUNKED), 413),
        (post(b"1;" + b"x" * 400_000, CHUNKED), 400),
        (post(b"0\r\nX: " + b"x" * 400_000, CHUNKED), 400),
        (post(b"0\r\n" + b"X: y\r\n" * 60_000, CHUNKED), 400),
        (post(b"1\r\n \r\n" * 20 + b"1;" + b"x" * 400_000, CHUNKED), 400),
    ],
    ids=["headers", "long header", "endless header", "endless name", "target", "endless target", "body", "absurd body",
         "chunked body", "endless chunk extension", "endless trailer", "endless trailers", "extension after chunks"],
)  # fmt: skip
async def test_absurd_sizes_are_refused_and_the_answer_arrives(server: Server, data: bytes, status: int) -> None:
    answered, received = await server.say(data)
    assert answered == status, received[:400]
    assert server.service.calls == []


async def test_a_client_that_goes_on_sending_after_a_refusal_still_gets_the_answer(server: Server) -> None:
    client = await server.connect()
    await client.send(post(b"", b"Content-Length: 2000000"))
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(20):
        await client.send(b"x" * 50_000)
        await asyncio.sleep(0.01)
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert (await client.until_closed())[0] == 413  # a reset would have thrown it away unread


async def test_a_body_behind_100_continue_is_not_asked_for_when_it_is_too_large(server: Server) -> None:
    status, received = await server.say(post(b"", b"Content-Length: 2000000", b"Expect: 100-continue"))
    assert (status, received.count(b"HTTP/1.1 ")) == (413, 1)


async def test_a_body_behind_100_continue_is_taken(server: Server) -> None:
    client = await server.connect()
    await client.send(post(b"", LENGTH, b"Expect: 100-continue"))
    async with asyncio.timeout(5):
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(BODY)
    assert (await client.answer())[0] == 201
    client.writer.close()


# ---------------------------------------------------------------- time


async def timed(client: Client) -> tuple[int, float]:
    began = time.monotonic()
    status, _ = await client.until_closed()
    return status, time.monotonic() - began


async def test_headers_that_trickle_are_408(server: Server) -> None:
    client = await server.connect()

    async def trickle() -> None:
        for byte in b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Slow: " + b"y" * 1000:
            await client.send(bytes([byte]))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(trickle())
    status, seconds = await timed(client)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (status, seconds < 2.5) == (408, True)


async def test_a_connection_that_says_nothing_is_closed(server: Server) -> None:
    status, seconds = await timed(await server.connect())
    assert (status, seconds < 2.5) == (0, True)


async def test_an_idle_connection_is_closed(server: Server) -> None:
    client = await server.connect()
    await client.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.answer()
    status, seconds = await timed(client)
    assert status == 0
    assert 0.7 < seconds < 3


@pytest.mark.parametrize("every_s", [60.0, 0.1], ids=["stalled", "trickling"])
async def test_a_body_without_progress_is_408(server: Server, every_s: float) -> None:
    client = await server.connect()
    await client.send(post(b"", b"Content-Length: 60000"))

    async def trickle() -> None:
        while True:
            await asyncio.sleep(every_s)
            await client.send(b" ")

    task = asyncio.create_task(trickle())
    status, seconds = await timed(client)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (status, seconds < 4) == (408, True)
    assert server.service.calls == []


async def test_an_application_that_does_not_read_yet_does_not_count_against_the_client(tmp_path: Path) -> None:
    async def late(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        await asyncio.sleep(1.5)  # waits for its turn, more than twice body_stall_s
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"%06d" % size})

    async with serving(tmp_path, app=late) as server:
        client = await server.connect()
        await client.send(post(b"x" * 10, b"Content-Length: 500000"))
        await asyncio.sleep(1.6)
        await client.send(b"x" * 499_990)
        status, received = await client.answer()
        assert (status, received[-6:]) == (200, b"500000")
        client.writer.close()


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def test_a_client_that_does_not_read_is_cut_off_and_costs_bounded_memory(tmp_path: Path) -> None:
    written = 0
    ended = asyncio.Event()

    async def fountain(scope: Any, receive: Any, send: Any) -> None:
        nonlocal written
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await asyncio.wait_for(_departed(scope, receive), 0.0001)) is None:
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            written += 65_536
        ended.set()

    gone = asyncio.Event()

    async def _departed(scope: Any, receive: Any) -> bool | None:
        return True if gone.is_set() else None

    async with serving(tmp_path, app=fountain) as server:
        client = await server.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.5)
        before = written
        await asyncio.sleep(0.2)
        assert written == before  # back-pressure: the application stands still
        assert written < 16 * 1024**2  # what the kernel's and our buffers hold
        await asyncio.sleep(2.0)
        gone.set()
        async with asyncio.timeout(5):
            await ended.wait()  # released by the cut, not by the client
        client.writer.transport.abort()


# ---------------------------------------------------------------- crowds


async def test_beyond_the_maximum_clients_hear_503_quickly_and_the_others_are_served(tmp_path: Path) -> None:
    limits = replace(QUICK, connections_max=20, header_timeout_s=5, crowded_patience_s=5, keep_alive_s=5)
    async with serving(tmp_path, limits) as server:
        served = [await server.connect() for _ in range(20)]
        for client in served:
            await client.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.answer())[0] == 200
        began = time.monotonic()
        status, received = await server.say(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (status, b"/problems/busy" in received, b"retry-after: " in received) == (503, True, True)
        assert time.monotonic() - began < 1.5
        await served[7].send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await served[7].answer())[0] == 200
        served[0].writer.close()
        await asyncio.sleep(0.1)
        again = await server.connect()
        await again.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await again.answer())[0] == 200
        for client in (*served, again):
            client.writer.close()


async def test_hundreds_of_slow_clients_do_not_keep_an_honest_one_out(tmp_path: Path) -> None:
    limits = replace(QUICK, connections_max=100, header_timeout_s=30, keep_alive_s=30)
    async with serving(tmp_path, limits) as server:
        slow = [await server.connect() for _ in range(300)]
        for client in slow:
            client.writer.write(b"GET /livez HTTP/1.1\r\nX: ")
        await asyncio.sleep(1.0)  # the crowd's patience is 0.4 s
        client = await server.connect()
        await client.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer())[0] == 200
        for one in (*slow, client):
            one.writer.transport.abort()


async def test_clients_that_vanish_in_mid_request_leave_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, replace(QUICK, connections_max=64)) as server:
        for round_ in range(200):
            client = await server.connect()
            await client.send(post(BODY[: round_ % len(BODY)], LENGTH))
            client.writer.transport.abort()
        await asyncio.sleep(0.3)
        assert server.service.calls == []
        assert (await server.say(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))[0] == 200


# ---------------------------------------------------------------- draining


class SlowService(FakeService):
    """Reads take a while."""

    async def read(self, name: RepositoryName, consistency: Consistency, at_least: int = 0) -> Register:
        await asyncio.sleep(0.5)
        return await super().read(name, consistency)


async def test_draining_finishes_what_is_under_way_and_closes_the_idle(tmp_path: Path) -> None:
    service = SlowService()
    app = create_app(service, make_config(tmp_path))
    async with serving(tmp_path, replace(QUICK, keep_alive_s=30, header_timeout_s=30), app=app) as server:
        busy, idle = await server.connect(), await server.connect()
        await busy.send(b"GET /repos/a/b HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.1)
        began = time.monotonic()
    status, _ = await busy.until_closed()
    assert status == 404
    assert (await idle.until_closed())[0] == 0
    assert time.monotonic() - began < 2.5


PROGRAM = """
import asyncio, sys
from pathlib import Path
from api.app import create_app
from api.server import listen, serve
from tests.unit.fake_service import FakeService, make_config

async def main():
    config = make_config(Path(sys.argv[1]))
    listener = listen("127.0.0.1", 0)
    started = lambda: print(listener.getsockname()[1], flush=True)
    await serve(create_app(FakeService(), config), config, sockets=[listener], on_started=started)
    print("closed in order", flush=True)

asyncio.run(main())
"""


async def test_sigterm_lets_the_process_end_in_its_own_order(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert int(await process.stdout.readline()) > 0
            process.send_signal(signal.SIGTERM)
            assert (await process.stdout.read()).splitlines()[-1] == b"closed in order"  # log lines come before it
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_an_address_in_use_is_an_os_error_for_the_caller(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        config = make_config(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            await serve(create_app(FakeService(), config), config)
