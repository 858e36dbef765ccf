"""A change: one atomic transition of one repository's register, and the digest that chains it to its base.

A change names its base, so it can stand at one place in history only. Several clients' requests that waited for the same
repository travel in one change (group commit); each keeps its own ``TxnId``. Objects are named here by checksum only:
since the digest covers those names, two voters at one position hold the same set of packs.
"""

import json
from dataclasses import dataclass
from enum import Enum

from node.protocol.ids import ZERO_OID, Digest, NodeId, Oid, Position, RefName, RepoId, TxnId, digest_of
from node.protocol.names import (
    RepositoryName,
    check_digest,
    check_node_id,
    check_oid,
    check_repo_id,
    check_txn_id,
    check_writable_ref,
)
from node.protocol.quorum import VoterSet

PACKS_PER_REQUEST_MAX = 8
UPDATES_PER_REQUEST_MAX = 20_000
REQUESTS_PER_CHANGE_MAX = 64


class ChangeKind(Enum):
    """What a change does to the register."""

    CREATE = "create"
    """From "never existed" or "deleted" to an empty repository."""
    UPDATE = "update"
    """Ref updates, all of them or none."""
    DELETE = "delete"
    """A tombstone: a version, never an absence."""


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """One ref from ``old`` to ``new``; ``peeled`` is what an annotated tag finally points at, for advertisements."""

    ref: RefName
    old: Oid
    new: Oid
    peeled: Oid | None = None

    def __post_init__(self) -> None:
        check_writable_ref(self.ref)
        check_oid(self.old)
        check_oid(self.new)
        if self.peeled is not None:
            check_oid(self.peeled)

    @property
    def deletes(self) -> bool:
        return self.new == ZERO_OID


@dataclass(frozen=True, slots=True)
class PackRef:
    """The claim check for one pack and its index: how to recognise them, wherever they are fetched from."""

    name: str
    """``pack-<sha1>``, as git named it."""
    sha256: Digest
    size_bytes: int
    index_sha256: Digest
    index_size_bytes: int

    def __post_init__(self) -> None:
        if not self.name.startswith("pack-"):
            raise ValueError(f"{self.name!r} is not the name of a pack")
        check_oid(self.name.removeprefix("pack-"))
        check_digest(self.sha256)
        check_digest(self.index_sha256)
        if self.size_bytes < 32 or self.index_size_bytes < 32:
            raise ValueError("a pack and its index are never that small")


@dataclass(frozen=True, slots=True)
class Request:
    """What one client asked for: a push, a creation or a deletion."""

    txn: TxnId
    actor: str
    """Who asked; ``anonymous`` until accounts exist."""
    node: NodeId
    """The node that took the request."""
    at_ms: int
    """When, by that node's clock, in milliseconds since 1970: told to people, never used for safety."""
    updates: tuple[RefUpdate, ...] = ()
    head: RefName | None = None
    """What HEAD shall point at from here on; ``None`` leaves it."""
    packs: tuple[PackRef, ...] = ()
    key: str | None = None
    """The client's ``Idempotency-Key``: in history, so every node can recognise a repeated request."""

    def __post_init__(self) -> None:
        check_txn_id(self.txn)
        check_node_id(self.node)
        if self.head is not None:
            check_writable_ref(self.head)
        if len(self.updates) > UPDATES_PER_REQUEST_MAX or len(self.packs) > PACKS_PER_REQUEST_MAX:
            raise ValueError("too many ref updates or packs in one request")
        if len(self.actor) > 256 or (self.key is not None and len(self.key) > 256):
            raise ValueError("actor and idempotency key are at most 256 characters long")


class _Remembered:
    """A slot beside the fields of ``Change``: no part of its value, of ``==``, ``hash``, ``repr`` or an encoding."""

    __slots__ = ("_packs", "_position")
    _position: Position
    _packs: tuple[PackRef, ...]


@dataclass(frozen=True, slots=True)
class Change(_Remembered):
    """One atomic transition of ``repository`` from ``base``."""

    repository: RepoId
    base: Position
    kind: ChangeKind
    requests: tuple[Request, ...]
    name: str = ""
    """``owner/name`` as its creator wrote it; set by a creation only."""
    voters: VoterSet | None = None
    """The voter set; set by a creation only, kept through deletion and re-creation."""

    def __post_init__(self) -> None:
        check_repo_id(self.repository)
        if not 1 <= len(self.requests) <= REQUESTS_PER_CHANGE_MAX:
            raise ValueError("a change carries at least one request, and a bounded number")
        creates = self.kind is ChangeKind.CREATE
        if creates != (self.voters is not None) or creates != bool(self.name):
            raise ValueError("a creation, and nothing else, carries a name and a voter set")
        if creates and RepositoryName.parse(self.name).key != self.repository:
            raise ValueError("the name belongs to another register")

    @property
    def position(self) -> Position:
        """Where history stands once this change is committed: ``digest[v] = H(digest[v-1], change)``.

        Reckoned once: every step of the protocol asks for it, and a change may carry thousands of refs.
        """
        try:
            return self._position
        except AttributeError:
            position = Position(self.base.version + 1, self._digest())
            object.__setattr__(self, "_position", position)
            return position

    @property
    def txns(self) -> tuple[TxnId, ...]:
        return tuple(request.txn for request in self.requests)

    @property
    def packs(self) -> tuple[PackRef, ...]:
        """Every pack this change needs, each once, in order."""
        try:
            return self._packs
        except AttributeError:
            packs = tuple(dict.fromkeys(pack for request in self.requests for pack in request.packs))
            object.__setattr__(self, "_packs", packs)
            return packs

    def _digest(self) -> Digest:
        lines = ["gitquorum-change-v1", self.base.digest, str(self.base.version), self.repository, self.kind.value, self.name]
        lines.append(" ".join(self.voters.nodes) if self.voters else "-")
        for request in self.requests:
            quoted = json.dumps([request.actor, request.key])
            lines.append(f"request {request.txn} {request.node} {request.at_ms} {request.head or '-'} {quoted}")
            lines += (f"ref {u.ref} {u.old} {u.new} {u.peeled or '-'}" for u in request.updates)
            lines += (f"pack {p.name} {p.sha256} {p.size_bytes} {p.index_sha256} {p.index_size_bytes}" for p in request.packs)
        return digest_of(*lines)
