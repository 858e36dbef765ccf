"""``ports.ObjectStore`` on this node's disk: a thin front over repositories, quarantine and stage.

    DATA_DIR/{owner}/{repo}.git     bare repositories that stock git reads        repository.py, refs.py, packindex.py
    DATA_DIR/.quarantine/{txn}/     packs being received and judged by git        quarantine.py, indexer.py, examine.py
    DATA_DIR/.stage/{sha256}.pack   large packs of changes not yet applied        payloads.py
    DATA_DIR/.trash/                deleted repositories on their way out
    DATA_DIR/.git-home/             the empty home and git directory of index-pack

Nothing here decides anything: what is committed is known to the journal only. All work on files happens in threads.
"""

import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from node.ports.errors import DiskFailed, DiskRefused, StorageError
from node.ports.objects import Finding, Spend
from node.protocol.change import Change, ChangeKind, PackRef
from node.protocol.ids import Oid, TxnId
from node.protocol.messages import InlinePack
from node.protocol.names import RepositoryName
from node.protocol.register import Register
from node.storage import view
from node.storage.git import Git, GitLimits
from node.storage.indexer import Indexer
from node.storage.packindex import NEW_PACKS, rewrite_index, write_index
from node.storage.payloads import Stage
from node.storage.quarantine import Desk, Intake
from node.storage.repository import HOME, QUARANTINE, STAGE, TRASH, Repositories, Sources
from node.storage.sweep import staged, sweep
from node.storage.threads import Threads
from node.storage.upload import safe_protocol, upload_pack

READ_BYTES = 256 * 1024
THREADS_SPARE = 8
FREE_S = 1.0


class DiskObjects:
    """Implements ``ports.ObjectStore``; ended by ``close``."""

    def __init__(self, data_dir: Path, limits: GitLimits) -> None:
        self._data_dir = data_dir.resolve()
        self._limits = limits
        for folder in (QUARANTINE, STAGE, TRASH):
            (self._data_dir / folder).mkdir(parents=True, exist_ok=True)
        Indexer.make_home(self._data_dir / HOME)
        self._closed = False
        self._free, self._free_at = shutil.disk_usage(self._data_dir).free, time.monotonic()
        self._threads = Threads(limits.pushes_max + limits.fetches_max + THREADS_SPARE)
        self._git = Git(self._data_dir / HOME, limits, self._threads)
        self._repositories = Repositories(self._data_dir)
        self._stage = Stage(self._data_dir / STAGE, self._threads, self._spare_bytes)
        self._indexer = Indexer(self._data_dir, self._git, limits, self._threads)
        self._desk = Desk(self._indexer, self._stage, limits, self._threads, self._spare_bytes)

    def path(self, name: str) -> Path:
        return self._repositories.path(name)

    # ------------------------------------------------------------ receiving and staging

    def quarantine(self, repository: RepositoryName, txn: TxnId, shallow: Sequence[Oid] = ()) -> Intake:
        return Intake(self._desk, self.path(str(repository)), txn, shallow)

    async def missing(self, change: Change) -> tuple[PackRef, ...]:
        """Packs that are here from now on count as needed by ``change``, until it is applied or discarded."""
        large = [pack for pack in change.packs if self._stage.small.get(pack.sha256) is None]
        # Held before it is looked for: what is seen to be here must not be condemned before this returns.
        self._stage.hold(change, change.packs)
        absent: tuple[PackRef, ...] = change.packs
        try:
            absent = await self._threads.run(self._absent, change, large) if large else ()
        finally:
            self._stage.let_go(change, absent)
        return absent

    async def holds(self, name: str, packs: Sequence[PackRef]) -> bool:
        return await self._threads.run(lambda: any(self._repositories.has_pack(name, pack) for pack in packs))

    def _absent(self, change: Change, packs: Sequence[PackRef]) -> tuple[PackRef, ...]:
        # The register's key is the repository's name in lower case; its folder may be spelled with capitals.
        name = self._repositories.spelled(change.repository)
        return tuple(
            pack for pack in packs if not self._stage.has(pack) and not (name and self._repositories.has_pack(name, pack))
        )

    async def stage_inline(self, packs: Iterable[tuple[PackRef, InlinePack]]) -> None:
        await self._stage.add_small(list(packs))

    def inline(self, packs: Iterable[PackRef]) -> tuple[InlinePack, ...]:
        held = (self._stage.small.get(pack.sha256) for pack in packs)
        return tuple(inline for inline in held if inline is not None)

    async def read_small(self, name: str, packs: Sequence[PackRef]) -> tuple[InlinePack, ...]:
        held = self.inline(packs)
        here = {inline.sha256 for inline in held}
        others = [pack for pack in packs if pack.sha256 not in here]
        return (*held, *(await self._threads.run(self._repositories.read_packs, name, others) if others else ()))

    async def stage_fetched(self, pack: PackRef, read: Callable[[bool, int], AsyncIterator[bytes]]) -> None:
        await self._stage.fetch(pack, read)

    async def discard(self, change: Change) -> None:
        await self._stage.release(change)

    # ------------------------------------------------------------ repositories

    async def apply(self, before: Register, change: Change, after: Register, packs: Sequence[InlinePack]) -> None:
        await self.apply_all((change,), after, packs)

    async def apply_all(self, changes: Sequence[Change], after: Register, packs: Sequence[InlinePack]) -> None:
        named = [pack for change in changes for pack in change.packs]
        small = {inline.sha256: inline for inline in (*self.inline(named), *packs)}
        sources = Sources(small, self._stage.folder)
        await self._threads.finish(self._repositories.apply, changes, after, sources)
        await self._stage.release(*changes)
        if changes[-1].kind is ChangeKind.DELETE:
            self._threads.submit(self._repositories.empty_trash)

    async def materialise(self, register: Register) -> None:
        await self._threads.finish(self._repositories.materialise, register)

    async def sync(self, name: str) -> None:
        await self._threads.finish(self._repositories.sync, name)
        if self._repositories.packs_came(name, NEW_PACKS) and (folder := self._repositories.find(name)) is not None:
            # Where git cannot be started the repository is only slower, and what was to be synced is.
            with suppress(StorageError):
                await self._threads.finish(write_index, self._git, folder)

    async def sweep(
        self, packs_in_use: set[str] | None, existing: set[str], doubtful: AbstractSet[str] = frozenset(), *, keep: bool = False
    ) -> Mapping[str, int]:
        """``existing``: names as their creators wrote them (``Register.name``)."""
        if packs_in_use is None:
            packs_in_use = await self._threads.run(staged, self._data_dir)
        self._stage.keep_always(packs_in_use)
        work = partial(sweep, self._data_dir, self._repositories, packs_in_use, existing, doubtful, keep=keep)
        return await self._threads.finish(work)

    async def size_bytes(self, name: str) -> int:
        return await self._threads.run(self._repositories.size_bytes, name)

    # ------------------------------------------------------------ scrub and repair

    async def verify_refs(self, register: Register) -> Sequence[Finding]:
        return await self._threads.run(view.verify_refs, self._repositories, register)

    async def verify_pack(self, name: str, pack: PackRef, spend: Spend) -> Finding | None:
        files = await self._threads.run(view.pack_files, self._repositories, name, pack)
        if not files:
            return Finding("pack", f"{pack.name} is not here in full length", pack)
        for path, part, wanted in files:
            if await self._hashed(path, spend) != wanted:
                return Finding(part, f"{pack.name} is not what was written", pack)
        return None

    async def _hashed(self, path: Path, spend: Spend) -> str:
        try:
            hashing = await self._threads.run(view.Hashing, path)
        except DiskRefused:
            return ""
        try:
            while count := await self._threads.finish(hashing.step):
                await spend(count)
        except DiskRefused:
            return ""  # the disk cannot read it: as bad as if it had read something else
        finally:
            hashing.close()
        return hashing.hexdigest()

    async def verify_objects(self, name: str) -> Finding | None:
        return await self._threads.finish(view.verify_objects, self._git, self._repositories, name)

    async def rescue(self, register: Register, label: str) -> str:
        return await self._threads.finish(self._repositories.rescue, register, label)

    async def mend_refs(self, register: Register) -> None:
        try:
            await self._threads.finish(self._repositories.rewrite, register)
        except DiskFailed as error:
            raise StorageError(f"it cannot be written: {error}") from error  # no fsync was asked for yet, so none was lost
        if register.exists:
            await self._threads.finish(self._repositories.sync, register.name)
            folder = self._repositories.need(register.name)
            with suppress(StorageError):  # looked at again, and made again then
                await self._threads.finish(rewrite_index, self._git, folder)

    async def mend_pack(self, name: str, pack: PackRef, read: Callable[[bool, int], AsyncIterator[bytes]]) -> None:
        await self._threads.finish(self._stage.forget, pack)  # it may be the very file that is damaged, by another name
        await self._stage.fetch(pack, read)
        await self._threads.finish(self._repositories.restore_pack, name, pack, self._stage.folder)

    def free_bytes(self) -> int:
        """As it was when somebody last asked, at most a second or so ago where anybody asks: every prepare does, and a disk may
        take its time to answer. So this answers at once, and a worker thread looks again."""
        now = time.monotonic()
        if now - self._free_at > FREE_S and not self._closed:
            self._free_at = now
            self._threads.submit(self._look_at_room)
        return self._free

    def _look_at_room(self) -> None:
        self._free = shutil.disk_usage(self._data_dir).free

    def _spare_bytes(self) -> int:
        return self.free_bytes() - self._limits.free_bytes_min

    # ------------------------------------------------------------ reading

    async def open_pack(self, name: str, pack: PackRef, index: bool, offset: int) -> AsyncIterator[bytes] | None:
        held = self._stage.small.get(pack.sha256)
        if held is not None:
            return _memory((held.index if index else held.pack)[offset:])
        file = await self._threads.run(self._open, name, pack, index, offset)
        if file is not None:
            self._stage.asked(pack.sha256)
        return None if file is None else _Reading(file, self._threads)

    def _open(self, name: str, pack: PackRef, index: bool, offset: int) -> IO[bytes] | None:
        folder = self._repositories.find(name)
        bases = [self._stage.base(pack), *([folder / "objects" / "pack" / pack.name] if folder else [])]
        suffix, size = (".idx", pack.index_size_bytes) if index else (".pack", pack.size_bytes)
        for base in bases:
            try:
                file = base.with_name(base.name + suffix).open("rb", buffering=0)
            except FileNotFoundError:
                continue
            if os.fstat(file.fileno()).st_size == size:
                file.seek(offset)
                return file
            file.close()
        return None

    async def upload_pack(self, name: str, *, protocol: str, request: bytes) -> AsyncGenerator[bytes, None]:
        """Raises ``RepositoryAbsent``."""
        folder = await self._threads.run(self._repositories.need, name)
        return upload_pack(self._git, folder, safe_protocol(protocol), request)

    async def close(self) -> None:
        """End downloads, warm processes and threads; what is under way in a thread is finished."""
        self._closed = True
        await self._stage.close()
        await self._indexer.close()
        self._threads.close()


async def _memory(content: bytes) -> AsyncIterator[bytes]:
    yield content


class _Reading:
    """Bytes of an open file, read in threads; closed at its end, or by ``aclose``."""

    def __init__(self, file: IO[bytes], threads: Threads) -> None:
        self._file = file
        self._threads = threads

    def __aiter__(self) -> "_Reading":
        return self

    async def __anext__(self) -> bytes:
        chunk = b"" if self._file.closed else await self._threads.finish(self._file.read, READ_BYTES)
        if not chunk:
            self._file.close()
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        self._file.close()
