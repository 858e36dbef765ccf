"""Request bodies: decoded, bounded in time and size, whatever the client does."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import git_body
from api.git_body import BodyMalformed, BodyTimeout, BodyTooLarge, Budget, ClientGone, RequestBody
from node.ports.errors import Busy
from tests.unit.fake_git_service import config_for

CONFIG = config_for(Path("/nowhere"), body_timeout_s=0.05, gzip_ratio_max=100)


def body_of(
    pieces: list[bytes], headers: Mapping[bytes, bytes] | None = None, *, cut: str = "", pause_s: float = 0
) -> RequestBody:
    waiting = list(pieces)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        if waiting:
            piece = waiting.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(waiting or cut)}
        if cut == "stall":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return RequestBody(receive, {b"transfer-encoding": b"chunked", **(headers or {})}, CONFIG)


async def read(body: RequestBody, bytes_max: int = 1 << 30) -> bytes:
    return b"".join([piece async for piece in body.pieces(bytes_max, "it")])


def cut_up(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)] or [b""]


@given(st.binary(max_size=3000), st.integers(1, 700), st.sampled_from(["", "identity", "gzip", "x-gzip", "deflate"]))
def test_every_encoding_comes_out_as_it_went_in(data: bytes, size: int, encoding: str) -> None:
    encoders: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}
    encode = encoders.get(encoding)
    packed = encode(data) if encode else data
    headers = {b"content-encoding": encoding.encode()} if encoding else {}
    assert asyncio.run(read(body_of(cut_up(packed, size), headers))) == data


async def test_a_body_that_goes_beyond_its_bound_is_refused() -> None:
    with pytest.raises(BodyTooLarge):
        await read(body_of([b"x" * 60, b"x" * 60]), 100)


async def test_a_declared_length_beyond_the_bound_is_refused_before_a_byte_is_read() -> None:
    body = body_of([b"x"], {b"content-length": b"101"}, cut="stall")
    with pytest.raises(BodyTooLarge):
        await read(body, 100)


async def test_a_bomb_is_refused_by_its_ratio_in_bounded_memory() -> None:
    bomb = gzip.compress(bytes(200 * 1024**2))
    pieces = body_of([bomb], {b"content-encoding": b"gzip"}).pieces(1 << 40, "it")
    tracemalloc.start()
    taken = 0
    try:
        async for piece in pieces:
            taken += len(piece)
    except BodyTooLarge:
        pass
    else:
        pytest.fail("the bomb was taken")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken <= 100 * len(bomb) + git_body.PIECE_BYTES_MAX
    assert peak < 4 * 1024**2


async def test_an_honest_body_that_packs_well_is_taken() -> None:
    data = bytes(900_000)
    assert len(gzip.compress(data)) < len(data) / 100
    assert await read(body_of([gzip.compress(data)], {b"content-encoding": b"gzip"})) == data


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"no gzip at all", b"gzip"),
        (gzip.compress(b"x" * 100)[:-4], b"gzip"),
        (gzip.compress(b"x" * 100) + b"more", b"gzip"),
        (zlib.compress(b"x" * 100)[:5], b"deflate"),
        (b"", b"gzip"),
        (b"x", b"br"),
        (b"x", b"gzip, gzip"),
    ],
)
async def test_a_damaged_or_unknown_encoding_is_refused(data: bytes, encoding: bytes) -> None:
    with pytest.raises(BodyMalformed):
        await read(body_of([data], {b"content-encoding": encoding}))


async def test_a_silent_client_is_cut_off() -> None:
    with pytest.raises(BodyTimeout, match="nothing"):
        await read(body_of([b"x"], cut="stall"))


async def test_a_client_that_hangs_up_is_noticed() -> None:
    with pytest.raises(ClientGone):
        await read(body_of([b"x"], cut="hang up"))


async def test_a_client_that_trickles_is_cut_off_though_it_is_never_silent() -> None:
    with pytest.raises(BodyTimeout, match="less than"):
        await read(body_of([b"x"] * 50, pause_s=0.01))


async def test_time_that_the_server_takes_does_not_count_against_the_client() -> None:
    body = body_of([b"x"] * 4)
    async for _ in body.pieces(100, "it"):
        await asyncio.sleep(0.04)


async def test_skipping_ends_at_its_bounds() -> None:
    body = body_of([b"x" * 10] * 10)
    await body.skip(35, 1)
    early = body.ended
    await body.skip(1000, 1)
    assert (early, body.ended) == (False, True)
    await body_of([b"x"], cut="stall").skip(1000, 0.01)
    await body_of([b"x"], cut="hang up").skip(1000, 0.01)


def test_a_request_without_a_body_has_ended() -> None:
    for headers, ended in (({}, True), ({b"content-length": b"0"}, True), ({b"content-length": b"10"}, False)):
        assert RequestBody(None, headers, CONFIG).ended is ended  # type: ignore[arg-type]


def test_gathered_bodies_share_one_budget_and_give_it_back() -> None:
    budget = Budget(100)
    with budget.share() as take:
        take(60)
        with budget.share() as other, pytest.raises(Busy):
            other(41)
        take(40)
    assert budget.held == 0
