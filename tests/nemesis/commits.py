"""Git commits and packs made in memory, so that a push costs the client no process: blob, tree, commit, one after the other.

Every commit is new (a counter and a random text are in it), so its oid is written by one push only.
"""

import hashlib
import zlib
from dataclasses import dataclass
from itertools import count
from random import Random

from tests.nemesis.history import ZERO

_TYPES = {"commit": 1, "tree": 2, "blob": 3}
_WHO = b"Ada <ada@example.org> 1700000000 +0000"


@dataclass(frozen=True, slots=True)
class Commit:
    """``pack`` holds it with its tree and blob; its parent is elsewhere."""

    oid: str
    pack: bytes


class Commits:
    """A client's own supply."""

    def __init__(self, author: str, rng: Random) -> None:
        self._author = author
        self._rng = rng
        self._numbers = count(1)

    def on(self, parents: list[str], size_bytes: int = 60) -> list[Commit]:
        """One on each of ``parents`` (``ZERO``: a root), all in the last one's pack."""
        objects: list[tuple[str, bytes]] = []
        oids = []
        for parent in parents:
            text = f"{self._author} {next(self._numbers)}\n"
            blob = text.encode() + self._rng.randbytes(size_bytes)
            tree = b"100644 file\0" + bytes.fromhex(oid_of("blob", blob))
            lines = [b"tree " + oid_of("tree", tree).encode()]
            lines += [b"parent " + parent.encode()] if parent != ZERO else []
            commit = b"\n".join([*lines, b"author " + _WHO, b"committer " + _WHO, b"", text.encode()])
            objects += [("blob", blob), ("tree", tree), ("commit", commit)]
            oids.append(oid_of("commit", commit))
        pack = pack_of(objects)
        return [Commit(oid, pack) for oid in oids]


def oid_of(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def pack_of(objects: list[tuple[str, bytes]]) -> bytes:
    """gitformat-pack(5), version 2, no deltas."""
    parts = [b"PACK", (2).to_bytes(4, "big"), len(objects).to_bytes(4, "big")]
    for kind, content in objects:
        parts += [_entry_header(_TYPES[kind], len(content)), zlib.compress(content, 1)]
    body = b"".join(parts)
    return body + hashlib.sha1(body).digest()


def _entry_header(kind: int, size: int) -> bytes:
    byte, size = kind << 4 | size & 15, size >> 4
    header = bytearray()
    while size:
        header.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    header.append(byte)
    return bytes(header)
