"""pkt-lines, git's framing: four hexadecimal digits of length (their own four included), then that many bytes.

Sans-IO: bytes are fed in, packets are taken out, whatever is left belongs to the next reader (of a push: its pack). Bounded:
no packet is longer than git allows, and a parser takes no more bytes in packets than it was told.
Reference: gitprotocol-common(5).
"""

from binascii import Error as NotHex
from binascii import unhexlify
from collections.abc import Iterator
from enum import Enum

PACKET_BYTES_MAX = 65_520
"""git's LARGE_PACKET_MAX: with a longer length a stock client gives up."""

FLUSH_PKT = b"0000"


class Special(Enum):
    """Packets without a payload."""

    FLUSH = 0
    """End of a section."""
    DELIM = 1
    """Between the parts of a protocol v2 message."""
    RESPONSE_END = 2
    """End of a stateless v2 answer; no client sends it."""


class BadPktLine(ValueError):
    """Not pkt-lines."""


class TooManyBytes(BadPktLine):
    """More bytes in packets than the parser was told to take."""


def pkt(payload: bytes) -> bytes:
    """Frame one payload, which must fit."""
    return b"%04x%b" % (len(payload) + 4, payload)


class PktParser:
    """Feed bytes, take packets until there is none, feed again."""

    __slots__ = ("_buffer", "_bytes_max", "_taken")

    def __init__(self, bytes_max: int) -> None:
        self._buffer = bytearray()
        self._bytes_max = bytes_max
        self._taken = 0

    def feed(self, data: bytes) -> None:
        """Add bytes. The caller takes packets until ``None`` before it feeds again, so less than a packet is kept."""
        self._buffer += data

    def take(self) -> bytes | Special | None:
        """The next packet, without a trailing newline; ``None`` if it is not complete yet.

        Raises:
            BadPktLine: if no continuation can make it a packet.
            TooManyBytes: if it goes beyond what was agreed.
        """
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        size = _size(bytes(buffer[:4]))
        if self._taken + size > self._bytes_max:
            raise TooManyBytes(f"more than {self._bytes_max} bytes of pkt-lines")
        if size < 4:
            del buffer[:4]
            self._taken += 4
            return Special(size)
        if len(buffer) < size:
            return None
        payload = bytes(buffer[4:size])
        del buffer[:size]
        self._taken += size
        return payload[:-1] if payload.endswith(b"\n") else payload

    def rest(self) -> bytes:
        """Bytes fed and not taken."""
        return bytes(self._buffer)


def packets(body: bytes) -> Iterator[bytes | Special]:
    """All packets of a complete body.

    Raises:
        BadPktLine: as soon as something is no packet, or the last one is cut short.
    """
    at, end = 0, len(body)
    while at < end:
        size = _size(body[at : at + 4])
        if size < 4:
            yield Special(size)
            at += 4
            continue
        if at + size > end:
            raise BadPktLine(f"the last packet is cut short: {end - at} of {size} bytes")
        payload = body[at + 4 : at + size]
        yield payload[:-1] if payload.endswith(b"\n") else payload
        at += size


def _size(digits: bytes) -> int:
    try:
        high, low = unhexlify(digits)
    except (NotHex, ValueError):
        raise BadPktLine(f"bad line length: {digits!r}") from None
    size = high << 8 | low
    if size == 3 or size > PACKET_BYTES_MAX:
        raise BadPktLine(f"bad line length {size}")
    return size
