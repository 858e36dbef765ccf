"""The stage: packs of changes that are not applied yet, by checksum; small ones in memory, large ones as files.

A small pack (O1) waits here in memory from its prepare until the journal has it; then the journal's copy counts, and
what is held here is only a convenience. A large one is a claim check: ``.stage/{sha256}.pack`` and ``.idx``, complete,
verified and fsynced before they carry these names; ``.part`` files are downloads, resumed by their length.

Who still needs a pack? Two changes may name the same one (a retry under a new id, the same push into two repositories),
so a change that looks for its packs (``missing``) is noted as their holder, and is struck out when it is applied or
discarded. A pack without holders is condemned, and removed once ``CONDEMNED_S`` have gone by: a change that is just being
formed again finds it. A large pack that no change has ever named waits longer (``UNCLAIMED_S``): its push is still being
received, or staged elsewhere; but if it was refused, or its client went away, nobody will ever say so, and this is its end on
every node that has it. What is left over at a crash is swept at start, except what the journal names.

Dictionaries belong to the loop; files are touched in worker threads.
"""

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from node.ports.errors import Busy, DiskFull, PackRefused
from node.protocol.change import Change, PackRef
from node.protocol.ids import Digest
from node.protocol.messages import InlinePack
from node.storage.files import fsync, write_all
from node.storage.packfile import verify_files, verify_small
from node.storage.repository import holds
from node.storage.threads import Threads, outlast

MEMORY_BYTES_MAX = 64 * 1024**2
PENDING_S = 120.0
"""A small pack unclaimed for this long is in the journal, or was never wanted: it may make room for others."""

CONDEMNED_S = 60.0
UNCLAIMED_S = 2 * 3600.0
"""Twice as long as a peer may take to fetch one (``node.staging``); counted from when it was last asked for."""
WRITE_BYTES = 1024**2
"""Downloads are written in pieces of this size: one hop to a thread each."""

Read = Callable[[bool, int], AsyncIterator[bytes]]


@dataclass(slots=True)
class Held:
    """A small pack in memory."""

    inline: InlinePack
    since: float
    released: bool = False

    @property
    def size(self) -> int:
        return len(self.inline.pack) + len(self.inline.index)


class SmallPacks:
    """Small packs in memory, bounded; one that is pending is never dropped to make room."""

    def __init__(self, bytes_max: int = MEMORY_BYTES_MAX, now: Callable[[], float] = time.monotonic) -> None:
        self._bytes_max = bytes_max
        self._now = now
        self._held: OrderedDict[Digest, Held] = OrderedDict()
        self._bytes = 0

    def add(self, packs: Iterable[InlinePack]) -> None:
        """Raises ``Busy`` when memory is full of pending ones."""
        for inline in packs:
            self._drop(inline.sha256)
            held = Held(inline, self._now())
            self._make_room(held.size)
            self._held[inline.sha256] = held
            self._bytes += held.size

    def get(self, sha256: Digest) -> InlinePack | None:
        held = self._held.get(sha256)
        return held.inline if held else None

    def release(self, sha256: Digest) -> None:
        """Nobody needs it any more; it stays until its place is wanted."""
        if sha256 in self._held:
            self._held[sha256].released = True
            self._held.move_to_end(sha256, last=False)

    def _make_room(self, size: int) -> None:
        expired = self._now() - PENDING_S
        while self._bytes + size > self._bytes_max:
            droppable = next((key for key, held in self._held.items() if held.released or held.since < expired), None)
            if droppable is None:
                raise Busy("too many small packs are waiting for their votes")
            self._drop(droppable)

    def _drop(self, sha256: Digest) -> None:
        held = self._held.pop(sha256, None)
        self._bytes -= held.size if held else 0

    def __repr__(self) -> str:
        return f"<SmallPacks {len(self._held)} packs {self._bytes}/{self._bytes_max} bytes>"


class Stage:
    """Both kinds, and who needs them."""

    def __init__(self, folder: Path, threads: Threads, spare_bytes: Callable[[], int], small: SmallPacks | None = None) -> None:
        self.folder = folder
        self.small = small or SmallPacks()
        self._threads = threads
        self._spare_bytes = spare_bytes
        self._downloads: dict[Digest, tuple[asyncio.Task[None], list[None]]] = {}
        self._holders: dict[Digest, set[str]] = {}
        self._condemned: dict[Digest, float] = {}
        """When it goes, unless somebody asks for it before."""
        self._dying: set[Digest] = set()
        """Being removed at this moment: not here any more, whatever the disk says."""
        self._reaper: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ who needs what

    def hold(self, change: Change, packs: Iterable[PackRef]) -> None:
        """``change`` counts on these packs being here."""
        for pack in packs:
            self._holders.setdefault(pack.sha256, set()).add(change.position.digest)
            self._condemned.pop(pack.sha256, None)

    def let_go(self, change: Change, packs: Iterable[PackRef]) -> None:
        """They are not here: ``change`` cannot count on them."""
        for pack in packs:
            self._strike(change, pack.sha256)

    def keep(self, sha256: Digest) -> None:
        """Somebody brought it or asked for it; if no change ever names it, it goes."""
        if not self._holders.get(sha256):
            self._condemned[sha256] = time.monotonic() + UNCLAIMED_S
            self._schedule()

    def asked(self, sha256: Digest) -> None:
        """A peer fetches it: its push goes on."""
        if sha256 in self._condemned:
            self.keep(sha256)

    def keep_always(self, sha256s: Iterable[str]) -> None:
        """Until the next start: the journal names these, and which change it was is not known here."""
        for sha256 in sha256s:
            self._holders.setdefault(Digest(sha256), set()).add("journal")

    async def release(self, *changes: Change) -> None:
        """These are applied, or can never be."""
        at = time.monotonic() + CONDEMNED_S
        for change, pack in ((each, pack) for each in changes for pack in each.packs):
            if self._strike(change, pack.sha256):
                self._condemned[pack.sha256] = min(at, self._condemned.get(pack.sha256, at))
                self.small.release(pack.sha256)
        if due := self._due():
            try:
                await self._threads.run(self._unlink, due)
            finally:
                self._dying.difference_update(due)
        self._schedule()

    def _strike(self, change: Change, sha256: Digest) -> bool:
        """Whether nobody needs it any more."""
        holders = self._holders.get(sha256, set())
        holders.discard(change.position.digest)
        if not holders:
            self._holders.pop(sha256, None)
        return not holders

    def _due(self) -> list[Digest]:
        """Those whose time has come; from now on they are not here."""
        now = time.monotonic()
        due = [sha256 for sha256, at in self._condemned.items() if at < now]
        for sha256 in due:
            del self._condemned[sha256]
        self._dying.update(due)
        return due

    def _schedule(self) -> None:
        """An idle node removes what is condemned too."""
        if self._condemned and self._reaper is None:
            delay_s = max(min(self._condemned.values()) - time.monotonic(), 1.0)
            self._reaper = asyncio.get_running_loop().call_later(delay_s, self._reap)

    def _reap(self) -> None:
        self._reaper = None
        if due := self._due():
            loop = asyncio.get_running_loop()
            removing = self._threads.submit(self._unlink, due)
            removing.add_done_callback(lambda _: loop.call_soon_threadsafe(self._dying.difference_update, due))
        self._schedule()

    def _unlink(self, sha256s: Iterable[str]) -> None:
        for sha256 in sha256s:
            for suffix in (".idx", ".pack", ".pack.part", ".idx.part"):
                (self.folder / f"{sha256}{suffix}").unlink(missing_ok=True)

    # ------------------------------------------------------------ small ones

    async def add_small(self, packs: list[tuple[PackRef, InlinePack]]) -> None:
        """Raises ``PackRefused`` if a checksum is wrong, ``Busy`` if there is no room."""
        if packs:
            await self._threads.run(_verify_all, packs)
        self.small.add(inline for _, inline in packs)
        for pack, _ in packs:
            self._condemned.pop(pack.sha256, None)

    # ------------------------------------------------------------ large ones

    def base(self, pack: PackRef) -> Path:
        """Path of the staged files without their suffix."""
        return self.folder / pack.sha256

    def has(self, pack: PackRef) -> bool:
        return pack.sha256 not in self._dying and holds(self.base(pack), pack)

    def forget(self, pack: PackRef) -> None:
        """What is here of it cannot be trusted; in a thread."""
        self._unlink([pack.sha256])

    def adopt(self, folder: Path, pack: PackRef) -> None:
        """Take pack and index out of a quarantine, durably; in a thread."""
        with self._or_nothing(pack):
            for suffix in (".pack", ".idx"):
                source = folder / f"{pack.name}{suffix}"
                if source.exists():
                    fsync(source)
                    source.replace(self.folder / f"{pack.sha256}{suffix}")
            fsync(self.folder)

    async def fetch(self, pack: PackRef, read: Read) -> None:
        """Download what is not here. Callers that want the same pack share one download; it ends with its last caller."""
        while pack.sha256 in self._dying:  # noqa: ASYNC110  (as long as one unlink)
            await asyncio.sleep(0.01)
        if await self._threads.run(self.has, pack):
            self.keep(pack.sha256)
            return
        task, waiters = self._downloads.get(pack.sha256) or self._begin(pack, read)
        waiters.append(None)
        try:
            await asyncio.shield(task)
        finally:
            waiters.pop()
            if not waiters and not task.done():
                task.cancel()
                await outlast(task)
        self.keep(pack.sha256)

    def _begin(self, pack: PackRef, read: Read) -> tuple[asyncio.Task[None], list[None]]:
        task = asyncio.create_task(self._download(pack, read), name=f"stage {pack.name}")
        self._downloads[pack.sha256] = task, []
        task.add_done_callback(lambda _: self._downloads.pop(pack.sha256, None))
        return self._downloads[pack.sha256]

    async def _download(self, pack: PackRef, read: Read) -> None:
        if pack.size_bytes + pack.index_size_bytes > self._spare_bytes():
            raise DiskFull("disk full")
        parts = [self.folder / f"{pack.sha256}{suffix}.part" for suffix in (".pack", ".idx")]
        sizes = (pack.size_bytes, pack.index_size_bytes)
        for part, size, index in zip(parts, sizes, (False, True), strict=True):
            await self._resume(part, size, partial(read, index))
        await self._threads.finish(self._accept, pack, *parts)

    async def _resume(self, part: Path, size: int, read: Callable[[int], AsyncIterator[bytes]]) -> None:
        offset = await self._threads.run(_usable, part, size)
        if offset == size:
            return
        chunks = read(offset)
        held = bytearray()
        try:
            async for chunk in chunks:
                held += chunk
                if offset + len(held) > size:
                    raise PackRefused(f"more than {size} bytes came")
                if len(held) >= WRITE_BYTES:
                    offset += await self._append(part, held)
        finally:
            if held and offset + len(held) <= size:
                offset += await self._append(part, held)
            if (close := getattr(chunks, "aclose", None)) is not None:
                await close()
        if offset != size:
            raise PackRefused(f"only {offset} of {size} bytes came")

    async def _append(self, part: Path, held: bytearray) -> int:
        """Write what is held, so that the next try can go on from there."""
        piece = bytes(held)
        held.clear()
        await self._threads.finish(_append, part, piece)
        return len(piece)

    def _accept(self, pack: PackRef, part: Path, index_part: Path) -> None:
        try:
            verify_files(pack, part, index_part)
        except PackRefused:
            part.unlink()
            index_part.unlink()
            raise
        with self._or_nothing(pack):
            for source, suffix in ((part, ".pack"), (index_part, ".idx")):
                source.chmod(0o444)
                fsync(source)
                source.replace(self.folder / f"{pack.sha256}{suffix}")
            fsync(self.folder)

    @contextlib.contextmanager
    def _or_nothing(self, pack: PackRef) -> Iterator[None]:
        """What could not be made durable is dropped, to be received or fetched anew: after a failed fsync the next one
        succeeds, whatever became of the bytes, so a download that is resumed would be believed."""
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError):
                self._unlink([pack.sha256])
            raise

    async def close(self) -> None:
        """End the downloads; their parts stay for the next start, if the journal still names them."""
        if self._reaper is not None:
            self._reaper.cancel()
        tasks = [task for task, _ in self._downloads.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _verify_all(packs: Iterable[tuple[PackRef, InlinePack]]) -> None:
    for pack, inline in packs:
        verify_small(pack, inline)


def _usable(part: Path, size: int) -> int:
    """Length of what is there of a download; too much is thrown away."""
    try:
        there = part.stat().st_size
    except FileNotFoundError:
        return 0
    if there > size:
        part.unlink()
        return 0
    return there


def _append(part: Path, piece: bytes) -> None:
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        write_all(descriptor, piece)
    finally:
        os.close(descriptor)
