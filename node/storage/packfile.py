"""Reading packs and their indexes without git: checksums, names, types, and whether a small pack is a bomb.

Reference: gitformat-pack(5). git stays the judge of a pack that a client sent (``quarantine.py``); here is only what
must be cheap (no process), or must be known *before* git is fed:

- ``scan`` walks the entries of a small pack and adds up what it would inflate to. 317 bytes can hold a delta that makes
  500 MiB out of 64 KiB: git itself never makes a delta whose source is less than about half its target
  (``try_delta``), so ``EXPANSION_MAX`` is generous. It inflates at most 1,032 times the small pack, and keeps nothing.
- ``verify_*`` is O2 for voters: SHA-256 of both files, the pack's own trailer, the index's two.
- ``Pack`` answers "is this object here, of what type", from headers alone, so that a huge blob is never loaded.
"""

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha1, sha256
from pathlib import Path

from dulwich.object_format import SHA1
from dulwich.objects import ObjectID
from dulwich.pack import Pack as DulwichPack

from node.ports.errors import PackRefused
from node.protocol.change import PackRef
from node.protocol.ids import Digest, Oid
from node.protocol.messages import InlinePack

EMPTY_PACK_BYTES = 32
EXPANSION_MAX = 16
"""How many times its source a delta's target may be, …"""
EXPANSION_FREE_BYTES = 32 * 1024**2
"""… once it is larger than this."""
TAG_BYTES_MAX = 1024**2

_HEADER = struct.Struct(">4sLL")
_WORD = struct.Struct(">L")
_LONG = struct.Struct(">Q")
_INDEX_MAGIC = b"\xfftOc\x00\x00\x00\x02"
_HASH_BYTES = 20
_CHUNK_BYTES = 1024**2
_DELTA_HEADER_BYTES_MAX = 20

Buffer = bytes | mmap.mmap


class Kind(IntEnum):
    """Types of pack entries, by git's numbers."""

    COMMIT = 1
    TREE = 2
    BLOB = 3
    TAG = 4
    OFS_DELTA = 6
    REF_DELTA = 7


class Malformed(Exception):
    """These bytes are no pack or index; never leaves this package."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The header of one entry."""

    kind: Kind
    size: int
    """Inflated; of the delta itself if it is one."""
    data_at: int
    base: int | Oid | None
    """Offset or name of a delta's source."""


def entry_at(data: Buffer, offset: int) -> Entry:
    """Raises ``Malformed``."""
    try:
        byte = data[offset]
        kind, size, shift, at = (byte >> 4) & 7, byte & 15, 4, offset + 1
        while byte & 128:
            byte = data[at]
            size |= (byte & 127) << shift
            shift, at = shift + 7, at + 1
            if shift > 63:
                raise Malformed("entry size overflows")
        if kind == Kind.OFS_DELTA:
            distance, at = _distance(data, at)
            return Entry(Kind.OFS_DELTA, size, at, offset - distance)
        if kind == Kind.REF_DELTA:
            return Entry(Kind.REF_DELTA, size, at + _HASH_BYTES, Oid(data[at : at + _HASH_BYTES].hex()))
        return Entry(Kind(kind), size, at, None)
    except (IndexError, ValueError) as error:
        raise Malformed("bad entry") from error


def _distance(data: Buffer, at: int) -> tuple[int, int]:
    byte = data[at]
    at += 1
    distance = byte & 127
    while byte & 128:
        byte = data[at]
        at += 1
        distance = ((distance + 1) << 7) | (byte & 127)
        if distance > 1 << 62:
            raise Malformed("delta offset overflows")
    return distance, at


def delta_sizes(head: bytes) -> tuple[int, int]:
    """(source size, target size) from the first bytes of an inflated delta. Raises ``Malformed``."""
    sizes, at = [], 0
    try:
        for _ in range(2):
            size, shift, more = 0, 0, True
            while more:
                byte = head[at]
                size |= (byte & 127) << shift
                shift, at, more = shift + 7, at + 1, bool(byte & 128)
            sizes.append(size)
    except IndexError as error:
        raise Malformed("bad delta") from error
    return sizes[0], sizes[1]


# ---------------------------------------------------------------- before git is fed


def is_empty_pack(pack: bytes) -> bool:
    """Whether it holds no object: what git sends with a push of objects that are here already."""
    return (
        len(pack) == EMPTY_PACK_BYTES
        and pack.startswith(b"PACK")
        and pack[8:12] == bytes(4)
        and sha1(pack[:12]).digest() == pack[12:]
    )


def scan(pack: bytes, inflated_bytes_max: int) -> bool:
    """Walk a small, complete pack. False if it cannot be read to its end: git will say why, in its own words.

    Raises:
        PackRefused: it is readable so far, and too much to be let in.
    """
    try:
        end = _scan(pack, inflated_bytes_max)
    except (Malformed, zlib.error, struct.error):
        return False
    if end + _HASH_BYTES < len(pack):
        raise PackRefused("pack has junk at the end")
    return end + _HASH_BYTES == len(pack)


def _scan(pack: bytes, inflated_bytes_max: int) -> int:
    magic, _version, count = _HEADER.unpack_from(pack)
    if magic != b"PACK":
        raise Malformed("no pack")
    total, at = 0, _HEADER.size
    for _ in range(count):
        entry = entry_at(pack, at)
        total += entry.size
        _bound(total, inflated_bytes_max)
        head, at = _inflate(pack, entry)
        if entry.base is not None:
            source, target = delta_sizes(head)
            if target > max(EXPANSION_FREE_BYTES, EXPANSION_MAX * source):
                raise PackRefused(f"delta expands {source} bytes to {target}, which no honest pack does")
            total += target
            _bound(total, inflated_bytes_max)
    return at


def _bound(total: int, most: int) -> None:
    if total > most:
        raise PackRefused(f"objects inflate to more than {most} bytes")


def _inflate(pack: bytes, entry: Entry) -> tuple[bytes, int]:
    """(the first bytes inflated, offset of the next entry); keeps no more than a window."""
    stream = zlib.decompressobj()
    rest, head, size = pack[entry.data_at :], b"", 0
    while not stream.eof:
        out = stream.decompress(rest, _CHUNK_BYTES)
        rest = stream.unconsumed_tail
        head = head or out[:_DELTA_HEADER_BYTES_MAX]
        size += len(out)
        if size > entry.size or (not out and not rest and not stream.eof):
            raise Malformed("bad zlib stream")
    if size != entry.size:
        raise Malformed("declared size is wrong")
    return head, len(pack) - len(stream.unused_data)


# ---------------------------------------------------------------- checksums


def describe(name: str, pack: Path, index: Path) -> PackRef:
    """The claim check for files that git has just made and checked."""
    return PackRef(name, *_sha256(pack), *_sha256(index))


def describe_small(name: str, pack: bytes, index: bytes) -> PackRef:
    return PackRef(name, Digest(sha256(pack).hexdigest()), len(pack), Digest(sha256(index).hexdigest()), len(index))


def _sha256(path: Path) -> tuple[Digest, int]:
    digest, size = sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return Digest(digest.hexdigest()), size


def verify_small(ref: PackRef, inline: InlinePack) -> None:
    """Raises ``PackRefused``."""
    if inline.sha256 != ref.sha256:
        raise PackRefused(f"{ref.name}: another pack came in its place")
    _verify(ref, "pack", len(inline.pack), sha256(inline.pack).hexdigest())
    _verify(ref, "index", len(inline.index), sha256(inline.index).hexdigest())
    _verify_trailers(ref, inline.pack[-_HASH_BYTES:], sha1(inline.pack[:-_HASH_BYTES]).digest(), inline.index)


def verify_files(ref: PackRef, pack: Path, index: Path) -> None:
    """Raises ``PackRefused``. Reads both once."""
    whole, body, size, tail = sha256(), sha1(), 0, b""
    with pack.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            whole.update(chunk)
            size += len(chunk)
            held = tail + chunk
            body.update(held[:-_HASH_BYTES])
            tail = held[-_HASH_BYTES:]
    _verify(ref, "pack", size, whole.hexdigest())
    with _map(index) as mapped:
        _verify(ref, "index", len(mapped), sha256(mapped).hexdigest())
        _verify_trailers(ref, tail, body.digest(), mapped)


def _verify(ref: PackRef, what: str, size: int, digest: str) -> None:
    expected = (ref.size_bytes, ref.sha256) if what == "pack" else (ref.index_size_bytes, ref.index_sha256)
    if (size, digest) != expected:
        raise PackRefused(f"{ref.name}: checksum of the {what} does not match")


def _verify_trailers(ref: PackRef, trailer: bytes, body: bytes, index: Buffer) -> None:
    if trailer != body or trailer.hex() != ref.name.removeprefix("pack-"):
        raise PackRefused(f"{ref.name}: the pack's own checksum does not match")
    if index[:8] != _INDEX_MAGIC:
        raise PackRefused(f"{ref.name}: not a version 2 index")
    if sha1(memoryview(index)[:-_HASH_BYTES]).digest() != index[-_HASH_BYTES:]:
        raise PackRefused(f"{ref.name}: the index's own checksum does not match")
    if index[-2 * _HASH_BYTES : -_HASH_BYTES] != trailer:
        raise PackRefused(f"{ref.name}: the index belongs to another pack")


# ---------------------------------------------------------------- looking things up


class Pack:
    """One pack with its index, mapped; a context manager."""

    def __init__(self, base: Path) -> None:
        """``base`` is the path without ``.pack`` or ``.idx``."""
        self._base = base
        self._index = _map(base.with_name(base.name + ".idx"))
        self._data: mmap.mmap | None = None
        if self._index[:8] != _INDEX_MAGIC:
            self.close()
            raise Malformed("not a version 2 index")

    def __len__(self) -> int:
        return int(_WORD.unpack_from(self._index, 8 + 255 * 4)[0])

    def oids(self) -> Iterator[Oid]:
        at = 8 + 256 * 4
        return (Oid(self._index[at + n * 20 : at + n * 20 + 20].hex()) for n in range(len(self)))

    def offset(self, oid: Oid) -> int | None:
        """Where the object is in the pack, if it is."""
        wanted = bytes.fromhex(oid)
        low = _WORD.unpack_from(self._index, 8 + (wanted[0] - 1) * 4)[0] if wanted[0] else 0
        high = _WORD.unpack_from(self._index, 8 + wanted[0] * 4)[0]
        names = 8 + 256 * 4
        while low < high:
            middle = (low + high) // 2
            name = self._index[names + middle * 20 : names + middle * 20 + 20]
            if name == wanted:
                return self._offset(middle)
            low, high = (middle + 1, high) if name < wanted else (low, middle)
        return None

    def _offset(self, number: int) -> int:
        offsets = 8 + 256 * 4 + len(self) * (20 + 4)
        offset = int(_WORD.unpack_from(self._index, offsets + number * 4)[0])
        if offset & 1 << 31:
            return int(_LONG.unpack_from(self._index, offsets + len(self) * 4 + (offset ^ 1 << 31) * 8)[0])
        return offset

    def kind(self, oid: Oid) -> Kind | None:
        """Type of an object, found by headers alone; ``None`` if it is not here."""
        at = self.offset(oid)
        while at is not None:
            entry = entry_at(self._mapped, at)
            if entry.base is None:
                return entry.kind
            at = entry.base if isinstance(entry.base, int) else self.offset(entry.base)
        return None

    def tag_target(self, oid: Oid) -> Oid:
        """What a tag object of this pack points at. Raises ``Malformed``, also for one that is absurdly large."""
        at = self.offset(oid)
        if at is None or self._tag_size(at) > TAG_BYTES_MAX:
            raise Malformed("tag too large")
        with DulwichPack(str(self._base), object_format=SHA1) as pack:
            _, text = pack.get_raw(ObjectID(oid.encode()))
        line = text.partition(b"\n")[0]
        if not line.startswith(b"object ") or len(line) != 47:
            raise Malformed("no tag")
        return Oid(line[7:].decode("ascii"))

    def _tag_size(self, at: int) -> int:
        entry = entry_at(self._mapped, at)
        if entry.base is None or entry.size > TAG_BYTES_MAX:
            return entry.size
        head = zlib.decompressobj().decompress(self._mapped[entry.data_at : entry.data_at + 1024], _DELTA_HEADER_BYTES_MAX)
        return max(delta_sizes(head))

    @property
    def _mapped(self) -> mmap.mmap:
        if self._data is None:
            self._data = _map(self._base.with_name(self._base.name + ".pack"))
        return self._data

    def close(self) -> None:
        self._index.close()
        if self._data is not None:
            self._data.close()

    def __enter__(self) -> "Pack":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
