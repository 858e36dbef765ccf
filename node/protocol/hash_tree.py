"""Anti-entropy (R3): a tree of hashes over (repository, version, digest): nodes that agree find that out in one comparison.

    root ── 16 branches ── … ── 16⁴ buckets, each with the positions of the repositories whose SHA-256 begins so

A branch's hash is the XOR of the hashes of all leaves below it, with their number: it is kept up to date in as many steps as
the tree is deep, whatever is in it, and comes out the same in whatever order the leaves came. Two trees are compared from the
root down, only where they differ: nothing for equal ones but their roots, at most five questions for one difference, and as
many for many, since all branches of one level that differ are asked for together.

It finds where nodes *differ*, and never says who is right: only a higher committed version is newer. XOR is for accidents: a
voter that lies is outside what this protocol withstands.

Reference: Merkle trees for anti-entropy in Dynamo (DeCandia et al., SOSP 2007, 4.7).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from node.protocol.ids import Position, RepoId

DEPTH = 4
DIGITS = "0123456789abcdef"
LEAVES_MAX = 16
"""A branch with no more leaves than this is answered by its leaves: the last levels of a small tree are not asked for."""

PREFIXES_MAX = 256
"""Asked for in one question."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One repository's committed position."""

    repository: RepoId
    position: Position


@dataclass(frozen=True, slots=True)
class Branch:
    """What is below ``prefix``: its leaves if they are few or it is a bucket, else the hashes of its 16 branches in order."""

    prefix: str
    leaves: tuple[Leaf, ...] = ()
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """A repository at which two trees differ; ``None`` where it is not known."""

    repository: RepoId
    mine: Position | None
    theirs: Position | None


class HashTree:
    """One node's positions; only those of repositories that were committed once."""

    def __init__(self, leaves: Iterable[Leaf] = ()) -> None:
        self._hashes: dict[str, tuple[int, int]] = {}
        """By prefix: (how many leaves, the XOR of their hashes); prefixes without leaves are not in it."""
        self._buckets: dict[str, dict[RepoId, Position]] = {}
        for leaf in leaves:
            self.put(leaf.repository, leaf.position)

    def __len__(self) -> int:
        return self._hashes.get("", (0, 0))[0]

    def put(self, repository: RepoId, position: Position) -> None:
        """The repository stands there now."""
        path = _path(repository)
        bucket = self._buckets.setdefault(path, {})
        before = bucket.get(repository)
        if before == position:
            return
        bucket[repository] = position
        change = _hash(repository, position) ^ (_hash(repository, before) if before is not None else 0)
        for depth in range(DEPTH + 1):
            count, total = self._hashes.get(path[:depth], (0, 0))
            self._hashes[path[:depth]] = (count + (before is None), total ^ change)

    def get(self, repository: RepoId) -> Position | None:
        return self._buckets.get(_path(repository), {}).get(repository)

    def hash(self, prefix: str = "") -> str:
        """Of a branch; of the root by default. Empty where there are no leaves."""
        found = self._hashes.get(prefix)
        return f"{found[0]:x}:{found[1]:064x}" if found else ""

    def branch(self, prefix: str) -> Branch:
        """The answer to a question."""
        if len(prefix) >= DEPTH or self._hashes.get(prefix, (0, 0))[0] <= LEAVES_MAX:
            return Branch(prefix, tuple(Leaf(name, at) for name, at in sorted(self._below(prefix).items())))
        return Branch(prefix, hashes=tuple(self.hash(prefix + digit) for digit in DIGITS))

    def compare(self, theirs: Branch) -> tuple[list[str], list[Difference]]:
        """(prefixes to ask for next, differences that are certain) after an answer."""
        if theirs.hashes:
            pairs = zip(DIGITS, theirs.hashes, strict=True)
            return [theirs.prefix + digit for digit, hash_ in pairs if hash_ != self.hash(theirs.prefix + digit)], []
        other = {leaf.repository: leaf.position for leaf in theirs.leaves}
        own = self._below(theirs.prefix)
        names = sorted(own.keys() | other.keys())
        return [], [Difference(n, own.get(n), other.get(n)) for n in names if own.get(n) != other.get(n)]

    def _below(self, prefix: str) -> Mapping[RepoId, Position]:
        if len(prefix) == DEPTH:
            return self._buckets.get(prefix, {})
        if prefix not in self._hashes:
            return {}
        found: dict[RepoId, Position] = {}
        for digit in DIGITS:
            found.update(self._below(prefix + digit))
        return found

    def __repr__(self) -> str:
        return f"<HashTree {len(self)} repositories {self.hash()[-8:]}>"


def check_prefix(prefix: str) -> str:
    """Raises ``ValueError``."""
    if len(prefix) > DEPTH or set(prefix) - set(DIGITS):
        raise ValueError(f"{prefix!r} is no branch of the tree")
    return prefix


def _path(repository: RepoId) -> str:
    return sha256(repository.encode()).hexdigest()[:DEPTH]


def _hash(repository: RepoId, position: Position) -> int:
    return int.from_bytes(sha256(f"{repository} {position.version} {position.digest}".encode()).digest(), "big")
