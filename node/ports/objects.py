"""Objects: quarantines of pushes, the stage of packs, and the bare repositories that git reads."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from node.protocol.change import Change, PackRef, RefUpdate
from node.protocol.ids import Oid, RefName, TxnId
from node.protocol.messages import (
    InlinePack,
)
from node.protocol.names import RepositoryName
from node.protocol.register import Register


class Quarantine(Protocol):
    """Objects of one push, received, indexed and checked by git, not visible to anybody."""

    packs: tuple[PackRef, ...]
    inline: tuple[InlinePack, ...]
    """The packs that are small enough to ride in messages and in the journal."""
    oids: frozenset[Oid] | None
    """Names of the received objects if they are few, else ``None``."""

    async def examine(self, updates: Sequence[RefUpdate]) -> tuple[tuple[RefUpdate, ...], Mapping[RefName, str]]:
        """(the updates with ``peeled`` filled in, per ref why git would refuse it: missing object, no commit …)."""
        ...

    async def promote(self) -> None:
        """Move the packs that are not inline to the stage, durably; the quarantine is empty then."""
        ...

    async def discard(self) -> None:
        """Remove whatever is left of it; may be called again, and after ``promote``."""
        ...

    async def __aenter__(self) -> "Quarantine": ...

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """Something of a repository on disk that is not what the journal says."""

    part: str
    """refs, HEAD, config, pack, index, objects, or repository (it cannot be looked at)."""
    detail: str
    pack: PackRef | None = None
    """Which pack has to be fetched again, if one has."""

    def __str__(self) -> str:
        return f"{self.part}: {self.detail}"


Spend = Callable[[int], Awaitable[None]]
"""Told how many bytes were just read; returns when as many may be read again."""


class ObjectStore(Protocol):
    """Bare Git repositories, quarantines, and the stage: packs of changes not yet applied, by checksum."""

    def quarantine(self, repository: RepositoryName, txn: TxnId, shallow: Sequence[Oid] = ()) -> "QuarantineIntake":
        """A place to receive one push; nothing is created before the first byte."""
        ...

    def path(self, name: str) -> Path:
        """Where ``owner/name`` stands on disk."""
        ...

    async def missing(self, change: Change) -> tuple[PackRef, ...]:
        """Packs of ``change`` that are neither staged here nor in the repository. Those that are here count as needed by
        ``change`` from now on, until it is applied or discarded (O4)."""
        ...

    async def holds(self, name: str, packs: Sequence[PackRef]) -> bool:
        """Whether repository ``name`` itself, whatever is staged, holds one of ``packs``."""
        ...

    async def stage_inline(self, packs: Iterable[tuple[PackRef, InlinePack]]) -> None:
        """Check small packs and hold them in memory until the journal has them (bounded). Raises ``PackRefused``."""
        ...

    def inline(self, packs: Iterable[PackRef]) -> tuple[InlinePack, ...]:
        """Those of ``packs`` that are held in memory: what goes into the journal and into messages."""
        ...

    async def read_small(self, name: str, packs: Sequence[PackRef]) -> tuple[InlinePack, ...]:
        """Those of these small packs that are in memory or in repository ``name``, all at once: for a peer that is behind."""
        ...

    async def stage_fetched(self, pack: PackRef, read: Callable[[bool, int], AsyncIterator[bytes]]) -> None:
        """Download pack and index, resuming what is there: ``read(index, offset)``; verify both checksums, the pack's
        and the index's own trailers, fsync file and directory. Raises ``PackRefused`` or what ``read`` raises."""
        ...

    async def discard(self, change: Change) -> None:
        """Drop what is staged for a change that cannot be committed."""
        ...

    async def apply(self, before: Register, change: Change, after: Register, packs: Sequence[InlinePack]) -> None:
        """V6: objects first, then refs and HEAD; idempotent. ``packs`` are the small ones from the journal."""
        ...

    async def apply_all(self, changes: Sequence[Change], after: Register, packs: Sequence[InlinePack]) -> None:
        """The same for consecutive changes at once: the objects of all, then refs and HEAD as they are ``after`` the last.
        A deletion comes alone."""
        ...

    async def materialise(self, register: Register) -> None:
        """Make refs and HEAD on disk equal to ``register`` whatever they are now: replay at start."""
        ...

    async def sync(self, name: str) -> None:
        """fsync all that was applied to the repository, files and directories. After an error what was applied has to be
        applied and materialised again before the next call: those write anew whatever is there."""
        ...

    async def sweep(
        self, packs_in_use: set[str] | None, existing: set[str], doubtful: AbstractSet[str] = frozenset(), *, keep: bool = False
    ) -> Mapping[str, int]:
        """At start, under the data directory's lock: remove stale ``*.lock`` and ``tmp_*``, orphaned quarantines, staged
        packs that nothing names (``None``: not known, all are kept), trash of deleted repositories, and repositories that do
        not exist, but for those whose key is ``doubtful``. With ``keep`` these are put out of service instead. Returns how
        many of each."""
        ...

    async def close(self) -> None:
        """End downloads, processes and threads; what is under way in a thread is finished."""
        ...

    async def open_pack(self, name: str, pack: PackRef, index: bool, offset: int) -> AsyncIterator[bytes] | None:
        """Bytes of a pack (or index) from stage or repository ``name``; ``None`` if it is not here."""
        ...

    async def upload_pack(self, name: str, *, protocol: str, request: bytes) -> AsyncIterator[bytes]:
        """The answer of ``git upload-pack --stateless-rpc`` to one request, streamed with back-pressure; the process is
        ended when the iterator is closed. ``protocol`` is the client's ``Git-Protocol`` header (checked), or empty."""
        ...

    async def size_bytes(self, name: str) -> int:
        """Disk usage of a repository."""
        ...

    async def verify_refs(self, register: Register) -> Sequence[Finding]:
        """Read refs, HEAD and configuration from the disk, past every cache, and compare them with ``register``."""
        ...

    async def verify_pack(self, name: str, pack: PackRef, spend: Spend) -> Finding | None:
        """Read pack and index from the disk and compare them with their checksums."""
        ...

    async def verify_objects(self, name: str) -> Finding | None:
        """git's own check, at low priority: every ref leads to objects that are there, the index over all packs is whole.

        Raises:
            StorageError: git could not look; nothing is known.
        """
        ...

    async def rescue(self, register: Register, label: str) -> str:
        """Take a repository out of service, all objects in it, its refs under ``refs/rescued/{label}/``; returns where it is
        now. Empty if there is none."""
        ...

    async def mend_refs(self, register: Register) -> None:
        """``materialise``, and the configuration."""
        ...

    async def mend_pack(self, name: str, pack: PackRef, read: Callable[[bool, int], AsyncIterator[bytes]]) -> None:
        """Fetch a pack that is damaged or missing, whatever is staged of it here, and put it in its place, durably. Raises as
        ``stage_fetched`` does."""
        ...

    def free_bytes(self) -> int:
        """Free space on the disk that holds the data directory, as it was a moment ago; never waits for the disk."""
        ...


class QuarantineIntake(Protocol):
    """Receives one pack."""

    async def receive(self, chunks: AsyncIterator[bytes]) -> Quarantine:
        """Index and check a pack while it streams in, with bounded memory.

        Raises:
            PackRefused: in git's own words; nothing is left behind.
            DiskRefused: nothing is left behind.
        """
        ...

    async def empty(self) -> Quarantine:
        """For a push without a pack: only deletes, or only objects that are here already."""
        ...
