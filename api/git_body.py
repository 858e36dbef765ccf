"""A request body as it comes in: decompressed, bounded in time, in size and in what a byte may grow to; never gathered.

A client may be silent for ``Config.body_timeout_s`` at most, and must keep up a small pace over all: one byte every 29
seconds would otherwise hold a push for years. Time that *we* take (back-pressure) is not counted.
Framing (chunked, content-length, contradictions of the two) is the HTTP server's business; this reads ASGI events.

    BodyRefused
    ├── ClientGone          it hung up; nobody is there to be told
    ├── BodyTimeout         silent, or far too slow
    ├── BodyTooLarge
    └── BodyMalformed       broken gzip, or an encoding that is not known
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager

from starlette.types import Receive

from node.config import Config
from node.ports.errors import Busy

PIECE_BYTES_MAX = 256 * 1024
"""Compressed bodies are inflated in pieces of at most this size."""

RATIO_FREE_BYTES = 1024**2
"""What a compressed body may become before its ratio is looked at."""

PACE_BYTES_S = 256
"""Slower than this over all, beyond the first ``body_timeout_s``, is too slow: a tenth of a 2G telephone."""


class BodyRefused(Exception):
    """The body cannot be taken; nothing of it was used, and a retry of the same body cannot help but for timeouts."""


class ClientGone(BodyRefused):
    """The connection is closed."""


class BodyTimeout(BodyRefused):
    """The client sent nothing for too long, or next to nothing over all."""


class BodyTooLarge(BodyRefused):
    """A stated bound is exceeded."""


class BodyMalformed(BodyRefused):
    """Not in the encoding that its headers announce."""


class Budget:
    """Memory for bodies that must be gathered before they can be used, shared by all clients: each alone stays within its
    own bound, and five hundred at once would still be far too many."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.held = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that takes so many bytes more, all given back at the end; it raises ``Busy``."""
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            if self.held + size > self._bytes_max:
                raise Busy("too many large requests at this moment")
            self.held += size
            mine += size

        try:
            yield take
        finally:
            self.held -= mine


class RequestBody:
    """Iterate over it once; pieces are as large as the connection brought them."""

    def __init__(self, receive: Receive, headers: Mapping[bytes, bytes], config: Config) -> None:
        self._receive = receive
        self._config = config
        self._encoding = headers.get(b"content-encoding", b"").strip().lower()
        self._declared = headers.get(b"content-length", b"")
        self._waited_s = 0.0
        self._received = 0
        self.ended = not self._declared.strip(b"0") and b"transfer-encoding" not in headers
        """Whether nothing more will come."""

    async def pieces(self, bytes_max: int, what: str) -> AsyncGenerator[bytes, None]:
        """The decoded body, up to ``bytes_max`` of ``what``.

        Raises:
            BodyRefused: one of its kinds.
        """
        if not self._encoding and self._declared.isdigit() and int(self._declared) > bytes_max:
            raise BodyTooLarge(f"{what} is larger than {bytes_max} bytes")
        inflate = self._inflater()
        total = 0
        while not self.ended:
            piece = await self._next()
            for part in inflate.feed(piece) if inflate else (piece,):
                total += len(part)
                if total > bytes_max:
                    raise BodyTooLarge(f"{what} is larger than {bytes_max} bytes")
                if part:
                    yield part
        if inflate:
            inflate.finish()

    async def whole(self, bytes_max: int, what: str, take: Callable[[int], None]) -> bytes:
        """The decoded body in one piece; ``take`` pays for it."""
        body = bytearray()
        async for piece in self.pieces(bytes_max, what):
            take(len(piece))
            body += piece
        return bytes(body)

    async def skip(self, bytes_max: int, time_s: float) -> None:
        """Read on without looking, until the end or a bound; the client may be gone."""
        if self.ended:
            return
        skipped = 0
        try:
            async with asyncio.timeout(time_s):
                while not self.ended and skipped < bytes_max:
                    skipped += len(await self._next())
        except (TimeoutError, BodyRefused):
            return  # the connection is closed after this answer anyway

    async def gone(self) -> None:
        """Return when the client hangs up; only once the body has ended."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _next(self) -> bytes:
        loop = asyncio.get_running_loop()
        patience_s = self._config.body_timeout_s
        began = loop.time()
        try:
            async with asyncio.timeout(patience_s):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimeout(f"nothing of the request body came for {patience_s:g} s") from None
        if message["type"] != "http.request":
            self.ended = True
            raise ClientGone("the client hung up")
        self._waited_s += loop.time() - began
        body: bytes = message.get("body", b"")
        self._received += len(body)
        self.ended = not message.get("more_body", False)
        if self._waited_s > patience_s + self._received / PACE_BYTES_S and not self.ended:
            raise BodyTimeout(f"the request body comes at less than {PACE_BYTES_S} bytes a second")
        return body

    def _inflater(self) -> "_Inflater | None":
        if self._encoding in (b"", b"identity"):
            return None
        if self._encoding in (b"gzip", b"x-gzip"):
            return _Inflater(16 + zlib.MAX_WBITS, self._config.gzip_ratio_max)
        if self._encoding == b"deflate":
            return _Inflater(zlib.MAX_WBITS, self._config.gzip_ratio_max)
        raise BodyMalformed("request bodies may be encoded as gzip or deflate")


class _Inflater:
    """One gzip or zlib stream, in bounded steps."""

    def __init__(self, window_bits: int, ratio_max: int) -> None:
        self._stream = zlib.decompressobj(window_bits)
        self._ratio_max = ratio_max
        self._taken = 0
        self._given = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._taken += len(data)
        while data:
            try:
                part = self._stream.decompress(data, PIECE_BYTES_MAX)
            except zlib.error as error:
                raise BodyMalformed(f"the compressed request body is damaged ({error})") from None
            self._given += len(part)
            if self._given > RATIO_FREE_BYTES and self._given > self._ratio_max * self._taken:
                raise BodyTooLarge(f"the request body grows to more than {self._ratio_max} times its size")
            if self._stream.unused_data:
                raise BodyMalformed("something follows the compressed request body")
            yield part
            data = self._stream.unconsumed_tail

    def finish(self) -> None:
        if not self._stream.eof:
            raise BodyMalformed("the compressed request body is cut short")
