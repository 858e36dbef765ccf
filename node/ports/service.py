"""What the API asks a node: writes, reads, and where everything stands."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, Protocol

from node.ports.journal import TransactionRecord
from node.ports.objects import Quarantine, QuarantineIntake
from node.protocol.change import RefUpdate
from node.protocol.ids import NodeId, Oid, Position, RefName, TxnId
from node.protocol.messages import (
    HistoryEntry,
)
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome
from node.protocol.register import Register


class Consistency(Enum):
    """How fresh a read is."""

    LINEARIZABLE = "linearizable"
    """Sees every acknowledged change; needs a majority."""
    LOCAL = "local"
    """What this node has applied; never waits, may be old, says so."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One node's copy of a repository."""

    node: NodeId
    state: str
    """current, lagging, divergent, in doubt, offline."""
    position: Position | None
    applied: int | None = None


@dataclass(frozen=True, slots=True)
class PeerState:
    """What this node thinks of a peer."""

    node: NodeId
    url: str
    state: str
    """alive or suspected."""
    reason: str = ""
    last_seen_s: float | None = None
    """Seconds since it last answered."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """For /health and ``status``."""

    node: NodeId
    cluster: str
    incarnation: int
    quorum: int
    voters: tuple[NodeId, ...]
    peers: tuple[PeerState, ...]
    transport: str
    transport_up: bool
    transport_detail: str
    ready: bool
    """Replayed, swept, serving."""
    write_ready: bool
    """A quorum is in reach."""
    problem: str = ""
    """Why not, in one line."""
    failed: bool = False
    """The disk has failed: this node neither votes nor learns until it is started again."""
    standing: Literal["member", "new", "starting", "rejoining", "stopped"] = "member"
    """member, new, starting, rejoining or stopped (R4)."""
    standing_reason: str = ""
    standing_since_ms: int = 0
    """By this node's clock; 0 where it is not kept."""
    waits_for: str = ""
    """What a node that is no member waits for."""


class Service(Protocol):
    """A running node as the API sees it (``node.runtime.Runtime``)."""

    def state(self) -> NodeState: ...

    async def create(self, name: RepositoryName, *, actor: str, head: RefName | None, key: str | None) -> Outcome:
        """REJECTED if it exists, unless ``key`` made it: then the original outcome again."""
        ...

    async def delete(self, name: RepositoryName, *, actor: str, key: str | None) -> Outcome: ...

    async def push(
        self,
        name: RepositoryName,
        txn: TxnId,
        quarantine: Quarantine,
        updates: Sequence[RefUpdate],
        *,
        actor: str,
        atomic: bool,
        progress: Callable[[str], None] = lambda line: None,
    ) -> Outcome:
        """Stage on the peers (O3), then prepare → vote → decision. ``updates`` come from ``Quarantine.examine``.
        ``progress`` gets a line for the client now and then. Never raises for what the quorum does; raises ``Busy`` when too
        many writes are under way: nothing was sent then."""
        ...

    async def read(self, name: RepositoryName, consistency: Consistency, at_least: int = 0) -> Register:
        """The committed value; its refs may be served at once, its objects are on this disk. ``at_least`` is a version that
        the reader has seen already: it is waited for, whatever the consistency, or the read is refused.

        Raises:
            RepositoryAbsent, ReadUnavailable, VersionNotReached, Busy.
        """
        ...

    async def look(self, name: RepositoryName, consistency: Consistency) -> Register:
        """What this node has applied, for an answer that shows nothing of it but that it exists. Nobody is asked, unless it
        does not exist here and ``consistency`` wants to know for certain.

        Raises:
            RepositoryAbsent, Busy.
            ReadUnavailable: at once, where a read of this consistency would certainly be refused.
        """
        ...

    def check_push(self, name: RepositoryName) -> None:
        """Raises ``Busy`` if a push that came now would find no room to wait in: told before anything of it is read."""
        ...

    def intake(self, name: RepositoryName, txn: TxnId, shallow: Sequence[Oid]) -> "QuarantineIntake":
        """Where the pack of a push is received. Raises ``DiskRefused`` when the disk is nearly full."""
        ...

    async def upload_pack(self, register: Register, *, protocol: str, request: bytes) -> AsyncIterator[bytes]:
        """See ``ObjectStore.upload_pack``; bounded in number (``Config.fetches_max``), raises ``Busy`` beyond."""
        ...

    async def replicas(self, name: RepositoryName) -> Sequence[Replica]: ...

    async def history(self, name: RepositoryName, since: int, limit: int) -> Sequence[HistoryEntry]: ...

    async def repositories(self, after: str, limit: int) -> Sequence[Register]: ...

    async def transaction(self, txn: TxnId) -> TransactionRecord | None:
        """From this node, or from any peer that knows it; a settled record wins over an unknown one."""
        ...

    async def size_bytes(self, name: RepositoryName) -> int: ...

    def new_txn(self) -> TxnId: ...

    def path(self, register: Register) -> Path:
        """The bare repository on this node's disk."""
        ...
