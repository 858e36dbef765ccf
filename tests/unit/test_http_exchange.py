"""One exchange over a kept connection, against a server whose every byte a test decides."""

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from broker import http_exchange
from broker.http_exchange import OVERHEAD_BYTES_MAX, REFUSAL_BYTES_MAX, Dropped, HttpPeer, Malformed, Unreachable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"


class Server:
    """Reads whole requests and answers each with what ``answers`` gives; counts its connections."""

    def __init__(self, *answers: bytes, then_close: bool = False, wait_s: float = 0.0) -> None:
        self.answers = list(answers)
        self.then_close = then_close
        self.wait_s = wait_s
        self.connections = 0
        self.requests: list[bytes] = []
        self.ended = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(size))
                await asyncio.sleep(self.wait_s)
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
                if self.then_close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended += 1
        finally:
            writer.close()


@asynccontextmanager
async def peer_of(serve: Serve, connections_max: int = 4, path: str = "") -> AsyncIterator[HttpPeer]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    peer = HttpPeer(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}", connections_max)
    try:
        async with asyncio.timeout(10):
            yield peer
    finally:
        await peer.stop()
        server.close()
        await server.wait_closed()


async def post(peer: HttpPeer, body: bytes = b"{}", most: int = 1000) -> tuple[int, bytes]:
    return await peer.post("/replicate/ping", body, answer_bytes_max=most)


async def test_a_connection_is_kept_and_used_again() -> None:
    server = Server(OK)
    async with peer_of(server, path="/prefix") as peer:
        for _ in range(3):
            assert await post(peer) == (200, b"yes")
    assert server.connections == 1
    assert all(request.startswith(b"POST /prefix/replicate/ping HTTP/1.1\r\nHost: 127.0.0.1:") for request in server.requests)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://git.bücher:3001", "git.xn--bcher-kva:3001"),
        ("http://bücher.example", "bücher.example".encode("idna").decode()),
        ("http://[::1]:3001", "[::1]:3001"),
    ],
)
async def test_the_host_that_is_named_is_the_host_and_the_port(url: str, authority: str) -> None:
    assert HttpPeer(url, 1)._authority == authority


async def test_exchanges_at_the_same_time_have_connections_of_their_own_up_to_the_bound() -> None:
    server = Server(OK, wait_s=0.05)
    async with peer_of(server, connections_max=3) as peer:
        await asyncio.gather(*(post(peer) for _ in range(9)))
    assert (server.connections, len(server.requests)) == (3, 9)


async def test_an_idle_connection_is_not_used_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(OK)
    async with peer_of(server) as peer:
        await asyncio.gather(post(peer), post(peer))
        monkeypatch.setattr(http_exchange, "IDLE_S", 0.0)
        await post(peer)
        await asyncio.sleep(0.05)
    assert server.connections == 3
    assert server.ended >= 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\ny\r\n2;x=y\r\nes\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
    ],
)
async def test_what_http_allows_is_understood_and_the_connection_kept(answer: bytes) -> None:
    server = Server(answer)
    async with peer_of(server) as peer:
        assert await post(peer) == (200, b"yes")
        assert await post(peer) == (200, b"yes")
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + OK,
        OK + b"more",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nyes",
        b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nyes",
    ],
)
async def test_a_connection_on_which_more_came_than_the_answer_or_that_is_to_be_closed_is_not_used_again(answer: bytes) -> None:
    server = Server(answer, OK)
    async with peer_of(server) as peer:
        assert await post(peer) == (200, b"yes")
        assert await post(peer) == (200, b"yes")
    assert server.connections == 2


async def test_what_comes_unasked_on_an_idle_connection_is_nobodys_answer() -> None:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"{}")
        writer.write(OK)

    async with peer_of(serve) as peer:
        await post(peer)
        writers[0].write(OK.replace(b"yes", b"odd"))
        await asyncio.sleep(0.05)
        assert await post(peer) == (200, b"yes")
        for writer in writers:
            writer.close()
    assert len(writers) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP/1.1 answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, "more than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (OVERHEAD_BYTES_MAX + 3000), "too much room"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nyes", "no HTTP/1.1 answer"),
    ],
)
async def test_what_is_no_answer_or_too_long_is_malformed_and_the_connection_cut(answer: bytes, said: str) -> None:
    server = Server(answer, OK)
    async with peer_of(server) as peer:
        with pytest.raises(Malformed, match=said):
            await post(peer)
        assert await post(peer) == (200, b"yes")
    assert server.connections == 2


async def test_of_a_refusal_the_beginning_is_enough() -> None:
    server = Server(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9999999\r\n\r\n" + b"x" * (REFUSAL_BYTES_MAX + 1))
    async with peer_of(server) as peer:
        status, body = await post(peer)
    assert (status, body[:3]) == (502, b"xxx")


@pytest.mark.parametrize(("sent", "silent"), [(b"", True), (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nye", False)])
async def test_a_connection_that_ends_before_its_answer_does_says_whether_anything_came(sent: bytes, silent: bool) -> None:
    async with peer_of(Server(sent, then_close=True)) as peer:
        with pytest.raises(Dropped) as dropped:
            await post(peer)
    assert dropped.value.silent == silent


async def test_when_one_connection_was_dead_the_others_are_not_tried() -> None:
    """[a peer that lost its power: an exchange sent again met the next dead connection]"""
    server = Server(OK, OK, OK, b"", OK, wait_s=0.02)
    async with peer_of(server) as peer:
        await asyncio.gather(post(peer), post(peer), post(peer))
        assert len(peer._idle) == 3
        server.then_close = True
        with pytest.raises(Dropped):
            await post(peer)
        assert not peer._idle
        assert await post(peer) == (200, b"yes")
    assert server.connections == 4


async def test_nobody_there_is_told_from_nobody_answering() -> None:
    server = await asyncio.start_server(Server(OK), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()
    with pytest.raises(Unreachable):
        await post(HttpPeer(url, 1))


async def test_a_cancelled_exchange_takes_its_connection_with_it() -> None:
    """Its answer would be taken for the next one's."""
    server = Server(OK.replace(b"yes", b"old"), OK, wait_s=0.1)
    async with peer_of(server, connections_max=1) as peer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await post(peer)
        assert await post(peer) == (200, b"yes")
    assert server.connections == 2


async def test_a_large_request_that_is_cancelled_leaves_no_unheard_failure() -> None:
    over, said = asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with peer_of(serve) as peer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await post(peer, b"x" * 32 * 1024**2)
        await asyncio.sleep(0.05)
        over.set()
    gc.collect()
    assert not said


async def test_a_large_request_is_written_as_fast_as_it_is_read() -> None:
    server = Server(OK)
    body = bytes(range(256)) * 40_000
    async with peer_of(server) as peer:
        assert await post(peer, body) == (200, b"yes")
        assert await post(peer, body[:5]) == (200, b"yes")
    assert server.connections == 1
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [body, body[:5]]


async def test_a_large_request_that_is_refused_at_once_is_not_sent_to_its_end() -> None:
    """[a server that reads no more, and does not hang up either]"""
    read, over = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        read = len(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await over.wait()
        writer.close()

    async with peer_of(serve) as peer:
        assert (await post(peer, b"x" * 64 * 1024**2))[0] == 413
        assert not peer._idle
        over.set()
    assert read < 1024


def certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for ``localhost``, and the certificate that vouches for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    public, private = folder / "cert.pem", folder / "key.pem"
    public.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public


async def test_a_peer_behind_tls_is_asked_if_its_certificate_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, certificate = certified(tmp_path)
    answering = Server(OK)
    server = await asyncio.start_server(answering, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    stranger = HttpPeer(f"https://localhost:{port}", 1)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    trusted, otherwise_named = HttpPeer(f"https://localhost:{port}", 1), HttpPeer(f"https://127.0.0.1:{port}", 1)
    try:
        async with asyncio.timeout(10):
            assert [await post(trusted), await post(trusted)] == [(200, b"yes")] * 2
            for refused in (stranger, otherwise_named):
                with pytest.raises(Unreachable, match="certificate verify failed"):
                    await post(refused)
        assert len(answering.requests) == 2
    finally:
        for peer in (stranger, trusted, otherwise_named):
            await peer.stop()
        server.close()
        await server.wait_closed()


async def test_stopping_ends_what_is_under_way_and_lets_nothing_begin() -> None:
    async with peer_of(Server(OK, wait_s=5)) as peer:
        under_way = asyncio.create_task(post(peer))
        await asyncio.sleep(0.05)
        await peer.stop()
        with pytest.raises(Dropped):
            await under_way
        with pytest.raises(Unreachable, match="stopping"):
            await post(peer)
