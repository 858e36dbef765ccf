"""Identifiers of the protocol: who, which register, which change, which ballot, which place in history.

All are distinct types, never a bare ``str``: ``NewType`` costs nothing at run time and lets mypy refuse an oid where a
digest is meant. What may be typed by a human or arrive from a wire is validated in ``names.py``.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import NewType

NodeId = NewType("NodeId", str)
"""A configured member of the cluster, for example ``node-1``; bound to one journal and one key."""

RepoId = NewType("RepoId", str)
"""Key of a repository's register: ``owner/name`` in lower case, so that two names that differ only by case are one."""

TxnId = NewType("TxnId", str)
"""One client's request for a change; never used for another one."""

Oid = NewType("Oid", str)
"""A Git object name, 40 hexadecimal digits."""

RefName = NewType("RefName", str)
"""A full ref name, for example ``refs/heads/main``."""

Digest = NewType("Digest", str)
"""SHA-256, 64 hexadecimal digits."""

ZERO_OID = Oid("0" * 40)
"""Git's word for "no object": the old value of a ref that is created, the new value of one that is deleted."""


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """A Paxos round number. ``(round, node)`` is owned by ``node``; attempt 0 is the claim, 1, 2, … are proposals.

    Invariant: one ballot carries one value for ever; a resend is identical.
    """

    round: int
    node: NodeId
    attempt: int

    def __post_init__(self) -> None:
        if self.round < 0 or self.attempt < 0:
            raise ValueError(f"ballot {self.round}.{self.node}.{self.attempt} is negative")

    def owned_by_same(self, other: "Ballot") -> bool:
        """Whether both belong to one round of one node: then the difference is only an attempt."""
        return (self.round, self.node) == (other.round, other.node)

    def next_attempt(self) -> "Ballot":
        return Ballot(self.round, self.node, self.attempt + 1)

    def __str__(self) -> str:
        return f"{self.round}.{self.node}.{self.attempt}" if self.round else "none"


NO_BALLOT = Ballot(0, NodeId(""), 0)
"""Below every ballot that a node can own."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a repository's history: how many changes were committed, and the hash chained over them.

    A base is always this pair. Two positions of one version and different digests are an alarm, never "newer".
    """

    version: int
    digest: Digest

    def __post_init__(self) -> None:
        if self.version < 0:
            raise ValueError(f"version {self.version} is negative")

    def __str__(self) -> str:
        return f"v{self.version}:{self.digest[:8]}"


ORIGIN = Position(0, Digest("0" * 64))
"""Version 0: the repository never existed."""


def digest_of(*lines: str) -> Digest:
    """SHA-256 over lines joined by newlines; callers keep newlines out of every line (``json.dumps`` where in doubt)."""
    return Digest(sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest())
