"""The journal as its own examiner: what is on the disk and not what was written, and what a repair puts right."""

from collections.abc import Sequence
from typing import Protocol

from node.ports.errors import JournalDamaged
from node.protocol.change import PackRef
from node.protocol.ids import Digest, Position, RepoId
from node.protocol.messages import (
    HistoryEntry,
    InlinePack,
)
from node.protocol.register import Register


class JournalCare(Protocol):
    """What the scrub and a repair ask of the journal's rows. Questions look at the disk, not at what is held in memory; what is
    written is durable when the call returns, and is never an acceptor record."""

    async def keys(self, after: str, limit: int) -> Sequence[RepoId]:
        """Every repository that was ever heard of, in order; also deleted ones and those that were only promised."""
        ...

    async def set_aside(self, prefix: str) -> Sequence[RepoId]:
        """Repositories whose replicas are set aside for a reason that begins so."""
        ...

    async def committed(self, repository: RepoId) -> Position:
        """Where the acceptor record stands, whatever else is damaged. Raises ``JournalDamaged`` if that is."""
        ...

    async def verify(self, repository: RepoId, since: int) -> tuple[Sequence[JournalDamaged], int | None]:
        """(what is damaged of it, the version to go on after); begins with ``since`` 0, ends with ``None``."""
        ...

    async def verify_database(self, rest_s: float) -> str:
        """SQLite's check of the whole file, resting now and then: empty, or what it found first."""
        ...

    async def reindex(self) -> None:
        """Make all indexes again from their tables, and drop rows under keys that nobody has."""
        ...

    async def rebuild(self) -> None:
        """Write the whole file anew, alone; only while the mark of a rejoining node stands, as rows may be missing afterwards.
        Raises ``StorageError`` if that fails or leaves damage: then the journal has failed, and the next start keeps the file
        aside."""
        ...

    async def mend_history(self, entry: HistoryEntry) -> None:
        """A committed change at its version, proved by the caller."""
        ...

    async def mend_value(self, value: Register) -> bool:
        """Refs, name, HEAD, voters as history says; False: history grew meanwhile."""
        ...

    async def mend_index(self, repository: RepoId) -> None:
        """Which change holds which transaction, and who needs which pack, from history and the acceptor record."""
        ...

    async def waited_for(self, repository: RepoId) -> Sequence[PackRef]:
        """Packs that the accepted change, or a committed one that is not yet synced, names."""
        ...

    async def mend_pack(self, pack: InlinePack) -> None: ...

    async def drop_pack(self, sha256: Digest) -> None: ...

    async def resume_voting(self, repository: RepoId, reason: str) -> str:
        """The replica is repaired: ``Journal.stop_voting`` for ``reason`` undone. Not for another one, which came meanwhile;
        returns what it is still set aside for, empty: nothing."""
        ...
