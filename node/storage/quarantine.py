"""Receiving one push: git judges the pack in a folder that nobody looks into; then it is promoted, or gone.

The first bytes are buffered. A pack that ends within them is small (most are): it is scanned for bombs before git sees
it, takes a warm process if there is one, and ends up in memory, to ride in messages and in the journal. A larger one is
fed to git while it streams, with the loop's back-pressure, bounded in size and by free disk; ``promote`` makes it durable
in the stage. Turns (``pushes_max``) are taken by small packs when they are whole, and by large ones apart from them: those
keep a pace while others wait.

What a client hears is git's own words, ``error:`` and ``fatal:`` lines without the folders of this machine.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType

from node.ports.errors import Busy, DiskFull, DiskRefused, PackRefused
from node.protocol.change import PackRef, RefUpdate
from node.protocol.ids import Oid, RefName, TxnId
from node.protocol.messages import INLINE_PACK_BYTES_MAX, InlinePack
from node.storage.examine import Examiner
from node.storage.git import GitLimits
from node.storage.indexer import Indexer, Indexing, remove
from node.storage.packfile import Pack, describe, describe_small, is_empty_pack, scan
from node.storage.payloads import Stage
from node.storage.threads import Threads

OIDS_MAX = 4096
TURN_WAIT_S = 15.0
"""How long a push waits for its turn before it is told to come back."""

PACE_BYTES_PER_S = 32 * 1024
PACE_GRACE_S = 5.0
"""While others wait, a large pack must come this fast, from this long after its turn began."""

OUTPUT_BYTES_MAX = 64 * 1024
DISK_LOOK_BYTES = 16 * 1024**2
"""Free disk is looked at again after so many bytes."""

REASON_LENGTH_MAX = 600
_RESULT = re.compile(rb"^pack\t([0-9a-f]{40})$", re.MULTILINE)
_PATH = re.compile(r"(?:'|\")?/[^\s'\"]*/([^\s/'\"]+)(?:'|\")?")


class Desk:
    """What every intake shares."""

    def __init__(
        self, indexer: Indexer, stage: Stage, limits: GitLimits, threads: Threads, spare_bytes: Callable[[], int]
    ) -> None:
        self.indexer = indexer
        self.stage = stage
        self.limits = limits
        self.threads = threads
        self.spare_bytes = spare_bytes
        self._small = asyncio.Semaphore(limits.pushes_max)
        self._large = asyncio.Semaphore(limits.pushes_max)
        self._waiting = 0

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for a large one's turn."""
        return self._waiting > 0

    @asynccontextmanager
    async def turn(self, *, small: bool) -> AsyncIterator[None]:
        """Raises ``Busy``. Small packs are whole before they need git, and never wait for a client that types."""
        turns = self._small if small else self._large
        self._waiting += not small
        try:
            async with asyncio.timeout(TURN_WAIT_S):
                await turns.acquire()
        except TimeoutError as error:
            raise Busy(f"{self.limits.pushes_max} packs are being indexed; try again later") from error
        finally:
            self._waiting -= not small
        try:
            yield
        finally:
            turns.release()


class Intake:
    """Receives one pack for the repository at ``repository``, which need not exist."""

    def __init__(self, desk: Desk, repository: Path, txn: TxnId, shallow: Sequence[Oid]) -> None:
        self._desk = desk
        self._repository = repository
        self._txn = txn
        self._shallow = tuple(shallow)

    async def receive(self, chunks: AsyncIterator[bytes]) -> "Received":
        """See ``ports.QuarantineIntake``."""
        if self._desk.spare_bytes() <= 0:
            raise DiskFull("disk full")
        head, complete = await _beginning(chunks)
        if complete and is_empty_pack(head):
            return self._received(None, (), (), frozenset())
        readable = not complete or await self._desk.threads.run(scan, head, self._desk.limits.inflated_bytes_max)
        async with self._desk.turn(small=complete):
            return await self._index(head, None if complete else chunks, readable)

    async def empty(self) -> "Received":
        return self._received(None, (), (), frozenset())

    async def _index(self, head: bytes, rest: AsyncIterator[bytes] | None, readable: bool) -> "Received":
        indexer = self._desk.indexer
        indexing = await indexer.start(self._repository, self._txn, small=rest is None)
        try:
            await self._feed(indexing, head, rest)
            output = await _output(indexing, self._desk.limits.cpu_s_max * 2.0)
            indexing.process.release()
            received = await self._desk.threads.finish(self._conclude, indexing, output, rest is None)
            if not readable:
                raise PackRefused("pack cannot be read")
        except BaseException:
            await indexer.discard(indexing)
            raise
        if rest is None and self._repository.is_dir():
            indexer.prepare(self._repository)
        return received

    async def _feed(self, indexing: Indexing, head: bytes, rest: AsyncIterator[bytes] | None) -> None:
        """Give git the pack. When it stops reading it has something to say: what is left is not looked at."""
        process, fed, looked = indexing.process, len(head), 0
        began_at = time.monotonic()
        going = await process.feed(head)
        if rest is not None:
            async for chunk in rest:
                fed += len(chunk)
                if fed > self._desk.limits.pack_bytes_max:
                    raise PackRefused(f"pack exceeds maximum allowed size ({self._desk.limits.pack_bytes_max} bytes)")
                spent_s = time.monotonic() - began_at
                if self._desk.crowded and spent_s > PACE_GRACE_S and fed < spent_s * PACE_BYTES_PER_S:
                    raise PackRefused("too slow while other pushes wait for their turn; try again later")
                if fed - looked > DISK_LOOK_BYTES:
                    looked = fed
                    if self._desk.spare_bytes() <= 0:
                        raise DiskFull("disk full")
                if not going or not (going := await process.feed(chunk)):
                    break
        process.end_input()

    def _conclude(self, indexing: Indexing, output: bytes, small: bool) -> "Received":
        """In a thread: reap git, hear its verdict, take stock of what it made."""
        code, errors = indexing.process.spawned.wait()
        found = _RESULT.search(output)
        if code != 0 or found is None:
            raise self._refusal(code, errors, indexing.folder)
        name = f"pack-{found[1].decode('ascii')}"
        base = indexing.folder / "pack" / name
        pack, index = base.with_name(f"{name}.pack"), base.with_name(f"{name}.idx")
        inline: tuple[InlinePack, ...] = ()
        if os.path.getsize(pack) + os.path.getsize(index) <= INLINE_PACK_BYTES_MAX:
            content = pack.read_bytes(), index.read_bytes()
            ref = describe_small(name, *content)
            inline = (InlinePack(ref.sha256, *content),)
        else:
            ref = describe(name, pack, index)
        with Pack(base) as opened:
            oids = frozenset(opened.oids()) if len(opened) <= OIDS_MAX else None
        return self._received(indexing.folder, (ref,), inline, oids)

    def _refusal(self, code: int, errors: str, folder: Path) -> PackRefused | DiskRefused:
        if "No space left on device" in errors or "Disk quota exceeded" in errors:
            return DiskFull("disk full")
        words = git_words(errors)
        if "did not receive expected object" in words and not self._has_all(self._shallow):
            return PackRefused("shallow update not allowed")
        if code < 0:
            limit = f"index-pack was stopped by signal {-code}: more than {self._desk.limits.cpu_s_max} s of CPU time?"
            return PackRefused(f"{words}; {limit}" if words else limit)
        return PackRefused(words or f"index-pack failed ({code})")

    def _has_all(self, oids: Sequence[Oid]) -> bool:
        with Examiner([self._repository / "objects" / "pack"]) as here:
            return all(here.kind(oid) is not None for oid in oids)

    def _received(
        self, folder: Path | None, packs: tuple[PackRef, ...], inline: tuple[InlinePack, ...], oids: frozenset[Oid] | None
    ) -> "Received":
        return Received(self._desk, self._repository, folder, packs, inline, oids)


class Received:
    """Objects of one push that git has found good; see ``ports.Quarantine``."""

    def __init__(
        self,
        desk: Desk,
        repository: Path,
        folder: Path | None,
        packs: tuple[PackRef, ...],
        inline: tuple[InlinePack, ...],
        oids: frozenset[Oid] | None,
    ) -> None:
        self._desk = desk
        self._repository = repository
        self._folder = folder
        self._staged = False
        self.packs = packs
        self.inline = inline
        self.oids = oids

    async def examine(self, updates: Sequence[RefUpdate]) -> tuple[tuple[RefUpdate, ...], Mapping[RefName, str]]:
        return await self._desk.threads.run(self._examine, updates)

    def _examine(self, updates: Sequence[RefUpdate]) -> tuple[tuple[RefUpdate, ...], Mapping[RefName, str]]:
        own = [self._folder / "pack"] if self._folder else []
        staged = [self._desk.stage.base(pack) for pack in self.packs] if self._staged else []
        with Examiner([*own, self._repository / "objects" / "pack"], staged) as examiner:
            return examiner.examine(updates)

    async def promote(self) -> None:
        large = [pack for pack in self.packs if pack.sha256 not in {inline.sha256 for inline in self.inline}]
        if large and not self._staged and self._folder is not None:
            await self._desk.threads.finish(self._adopt, large)
            for pack in large:
                self._desk.stage.keep(pack.sha256)
            self._staged = True
            await self.discard()

    def _adopt(self, packs: Sequence[PackRef]) -> None:
        assert self._folder is not None
        for pack in packs:
            self._desk.stage.adopt(self._folder / "pack", pack)

    async def discard(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            await self._desk.threads.finish(remove, folder)

    async def __aenter__(self) -> "Received":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.discard()

    def __repr__(self) -> str:
        where = "staged" if self._staged else "in quarantine" if self._folder else "empty"
        return f"<Received {len(self.packs)} packs, {len(self.inline)} inline, {where}>"


async def _beginning(chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """(the first bytes, whether that is all)."""
    head = bytearray()
    async for chunk in chunks:
        head += chunk
        if len(head) > INLINE_PACK_BYTES_MAX:
            return bytes(head), False
    return bytes(head), True


async def _output(indexing: Indexing, timeout_s: float) -> bytes:
    """All that git says on stdout, which it closes when it is done; a few lines."""
    output = b""
    try:
        async with asyncio.timeout(timeout_s):
            while chunk := await indexing.process.read():
                output = (output + chunk)[:OUTPUT_BYTES_MAX]
    except TimeoutError as error:
        raise PackRefused(f"index-pack took more than {timeout_s:.0f} s") from error
    return output


def git_words(errors: str) -> str:
    """The lines with which git gave its reason, in one line, without paths of this machine."""
    lines = [line.removeprefix("remote: ") for line in errors.splitlines()]
    wanted = [line.partition(": ")[2] for line in lines if line.startswith(("error: ", "fatal: "))] or lines[-1:]
    return _PATH.sub(r"\1", "; ".join(dict.fromkeys(line.strip() for line in wanted)))[:REASON_LENGTH_MAX]
