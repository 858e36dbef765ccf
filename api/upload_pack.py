"""A fetch: look at the request, answer ``ls-refs`` in process, stream everything else from ``git upload-pack``.

The request is read to its end first, within bounds, and only a well-formed one is worth a process. The answer flows as fast
as the client reads; the process ends with the answer, or when the client hangs up.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http import HTTPStatus

import structlog

from api.advertise import ls_refs
from api.fetch_request import FetchRequest, LsRefs, Nothing, read_request
from api.git_body import Budget
from api.git_exchange import Exchange
from node.config import Config
from node.ports.errors import NodeError
from node.ports.service import Service
from node.protocol.register import Register

RESULT = b"application/x-git-upload-pack-result"
THREAD_ABOVE_BYTES = 256 * 1024
"""A longer request is checked on a thread: 16 MiB of haves take a quarter of a second."""

log = structlog.get_logger(__name__)


async def upload_pack(
    exchange: Exchange, service: Service, config: Config, budget: Budget, version: int, read: Callable[[], Awaitable[Register]]
) -> None:
    """Answer ``POST …/git-upload-pack``; ``read`` brings the repository, at the consistency asked for."""
    with budget.share() as take:
        body = await exchange.body.whole(config.fetch_request_bytes_max, "the fetch request", take)
        asked = await _look_at(body, version)
        register = await read()
        if isinstance(asked, Nothing):
            await exchange.answer(HTTPStatus.OK, RESULT, b"")
        elif isinstance(asked, LsRefs):
            await send_pieces(exchange, RESULT, ls_refs(register, asked))
        else:
            protocol = "version=2" if version == 2 else ""
            await _stream(exchange, lambda: service.upload_pack(register, protocol=protocol, request=body))


async def send_pieces(exchange: Exchange, content_type: bytes, pieces: Iterator[bytes]) -> None:
    """An answer made here: a short one in one piece, a long one as the client takes it."""
    piece = next(pieces)
    following = next(pieces, None)
    if following is None:
        await exchange.answer(HTTPStatus.OK, content_type, piece)
        return
    await exchange.start(HTTPStatus.OK, content_type)
    await exchange.write(piece)
    while following is not None:
        await exchange.write(following)
        following = next(pieces, None)
    await exchange.end()


async def _look_at(body: bytes, version: int) -> FetchRequest:
    if len(body) > THREAD_ABOVE_BYTES:
        return await asyncio.to_thread(read_request, body, version)
    return read_request(body, version)


async def _stream(exchange: Exchange, begin: Callable[[], Awaitable[AsyncIterator[bytes]]]) -> None:
    """Send until the answer ends or the client hangs up, whichever is first, be it while it waits for its turn; the process
    behind the answer ends with it."""
    sending = asyncio.create_task(_send_all(exchange, begin))
    watching = asyncio.create_task(exchange.body.gone())
    try:
        await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    finally:
        for task in (sending, watching):
            task.cancel()
        await asyncio.gather(sending, watching, return_exceptions=True)


async def _send_all(exchange: Exchange, begin: Callable[[], Awaitable[AsyncIterator[bytes]]]) -> None:
    answer = await begin()
    try:
        async for piece in answer:
            if not exchange.started:
                await exchange.start(HTTPStatus.OK, RESULT)
            await exchange.write(piece)
    except NodeError as error:
        if not exchange.started:
            raise
        # Cut short, so that the client knows: an answer that ended properly would look whole.
        log.warning("fetch cut short", reason=str(error))
        return
    finally:
        if (close := getattr(answer, "aclose", None)) is not None:
            await close()
    if not exchange.started:
        await exchange.start(HTTPStatus.OK, RESULT)
    await exchange.end()
