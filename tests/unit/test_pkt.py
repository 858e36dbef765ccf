"""pkt-lines: what git would frame is read back, whatever the cuts; everything else is refused, cheaply."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.pkt import PACKET_BYTES_MAX, BadPktLine, PktParser, Special, TooManyBytes, packets, pkt

LINES = st.lists(st.one_of(st.binary(max_size=300), st.sampled_from(list(Special))), max_size=20)


def framed(lines: list[bytes | Special]) -> bytes:
    return b"".join(b"%04x" % line.value if isinstance(line, Special) else pkt(line) for line in lines)


def stripped(lines: list[bytes | Special]) -> list[bytes | Special]:
    return [line[:-1] if isinstance(line, bytes) and line.endswith(b"\n") else line for line in lines]


def parsed(pieces: list[bytes], bytes_max: int = 1 << 30) -> tuple[list[bytes | Special], bytes]:
    parser, found = PktParser(bytes_max), []
    for piece in pieces:
        parser.feed(piece)
        while (packet := parser.take()) is not None:
            found.append(packet)
    return found, parser.rest()


@given(LINES, st.lists(st.integers(0, 4000), max_size=6), st.binary(max_size=3))
def test_lines_come_back_wherever_the_bytes_are_cut(lines: list[bytes | Special], cuts: list[int], rest: bytes) -> None:
    whole = framed(lines) + rest
    marks = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[a:b] for a, b in itertools.pairwise(marks)]
    assert parsed(pieces) == (stripped(lines), rest)
    if not rest:
        assert list(packets(whole)) == stripped(lines)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_but_never_anything_else(garbage: bytes) -> None:
    for read in (lambda: parsed([garbage]), lambda: list(packets(garbage))):
        with contextlib.suppress(BadPktLine):
            read()


@given(st.binary(max_size=2000))
def test_both_readers_agree(data: bytes) -> None:
    try:
        found, rest = parsed([data])
    except BadPktLine:
        with pytest.raises(BadPktLine):
            list(packets(data))
        return
    if rest:
        with pytest.raises(BadPktLine):
            list(packets(data))
    else:
        assert list(packets(data)) == found


@pytest.mark.parametrize(
    "digits", [b"0003", b"fff1", b"ffff", b"00 5", b"+005", b"0x05", b"-001", b"  0a", b"zzzz", b"\xff\xff\xff\xff"]
)
def test_a_bad_length_is_refused_before_its_bytes_come(digits: bytes) -> None:
    parser = PktParser(1 << 30)
    parser.feed(digits)
    with pytest.raises(BadPktLine):
        parser.take()
    with pytest.raises(BadPktLine):
        list(packets(digits))


def test_the_longest_line_that_git_allows_is_read() -> None:
    line = b"x" * (PACKET_BYTES_MAX - 4)
    assert parsed([pkt(line)]) == ([line], b"")


def test_an_announced_packet_beyond_the_bound_is_refused_before_it_comes() -> None:
    parser = PktParser(100)
    parser.feed(pkt(b"x" * 50) + b"0060")
    assert parser.take() == b"x" * 50
    with pytest.raises(TooManyBytes):
        parser.take()


def test_flush_packets_count_too() -> None:
    with pytest.raises(TooManyBytes):
        parsed([b"0000" * 100], bytes_max=100)


def test_an_empty_line_is_a_line() -> None:
    assert parsed([b"0004"]) == ([b""], b"")


def test_bytes_behind_the_lines_are_kept_for_the_next_reader() -> None:
    parser = PktParser(1000)
    parser.feed(pkt(b"a") + b"0000PACKxxxx")
    assert [parser.take(), parser.take()] == [b"a", Special.FLUSH]
    assert parser.rest() == b"PACKxxxx"
