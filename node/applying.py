"""V6: what is committed becomes visible on this node's disk, in order, and a moment later durable there.

The journal is the truth; this follows it. Readers wait for ``applied``. Small packs stay in the journal until ``sync``. What
waits together is applied together: a node that catches up writes the objects of many changes, then the refs once.

What was committed before this object was made and is not known to be on stable storage (its objects were nowhere on this disk
when the node replayed, its replica was loaded anew half-way, or its last sync failed) is a gap: it is placed first, into new
files, its packs fetched if need be, and nothing after it counts as applied before.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any

import structlog

from node.edges import Edges
from node.packs import Packs
from node.placing import ObjectsMissing, place
from node.ports.errors import DiskFailed, DiskFull, NodeError, StorageError
from node.ports.journal import Loaded
from node.protocol.change import Change, ChangeKind
from node.protocol.ids import RepoId
from node.protocol.register import Register

log = structlog.get_logger()

RUN_MAX = 128
"""Changes that are applied together at most."""

SYNC_DELAY_S, SYNC_PAUSE_S_MAX = 1.0, 60.0
"""Applied changes are brought to stable storage at most this much later; until then the journal keeps their packs."""

APPLY_TRIES = 5
APPLY_PAUSE_S, APPLY_PAUSE_S_MAX = 0.2, 5.0
"""A disk that refuses to apply is asked again, after this long and each time twice as long. If it fails, the replica is set
aside after so many tries; if it is full, it is asked for ever: what is missing is room, and the journal holds the rest."""


class NotHere(NodeError):
    """Objects of a committed change that nobody in reach has now; the sentence says why."""


class Applier:
    """One repository's applied state. ``failed`` is told, once, when the disk will not have it."""

    def __init__(
        self,
        edges: Edges,
        repository: RepoId,
        loaded: Loaded,
        packs: Packs,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        failed: Callable[[str], None],
    ) -> None:
        self.register = loaded.register
        """The value that may be served."""
        self._gap = loaded.synced < loaded.register.position.version and not loaded.stopped
        """Whether what was loaded is not all known to be on stable storage. What is set aside is repaired as a whole."""
        self.applied = loaded.synced if self._gap else loaded.applied
        """Version that the disk holds, objects and refs."""
        self.moot_to = 0
        """Version of the last deletion that is known: packs of changes below it are gone everywhere, nobody needs them."""
        self._edges = edges
        self._repository = repository
        self._packs = packs
        self._spawn = spawn
        self._failed = failed
        self._stopped = bool(loaded.stopped)
        self._to_apply: deque[tuple[Change, Register]] = deque()
        """Each with the value after it."""
        self._changed = asyncio.Event()
        self._applying = False
        self._gave_up = False
        self._loaded = loaded.register
        self._syncing = False
        self._place_first = False
        """Whether the last sync did not succeed: what it was about is written again into new files before the next one."""
        self._synced = self.applied
        """Version that is known to be on stable storage."""
        if self._gap:
            self._applying = True
            spawn(self._apply())

    @property
    def busy(self) -> bool:
        return not self._gave_up and (self._gap or bool(self._to_apply))

    def add(self, change: Change, after: Register) -> None:
        """``change`` is committed and leads to ``after``; told in order."""
        self._to_apply.append((change, after))
        if not self._applying:
            self._applying = True
            self._spawn(self._apply())

    def stop(self) -> None:
        """The replica is set aside: nobody waits for it any more."""
        self._stopped = True
        self._wake()

    async def wait(self, version: int, timeout_s: float) -> bool:
        """Whether ``version`` is applied within ``timeout_s``; a replica that is set aside is not waited for."""
        if self.applied >= version:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                while self.applied < version:
                    if self._stopped:
                        return False
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _apply(self) -> None:
        """V6, in order. A disk that refuses is asked again, one change at a time, then the replica is set aside until the node
        starts again and replays: the journal stays the truth, and nothing but the disk is wrong."""
        tries = 0
        try:
            while self._gap or self._to_apply:
                try:
                    await (self._close_gap() if self._gap else self._some(self._next_run(1 if tries else RUN_MAX)))
                    tries = 0
                    self._sync_soon()
                except Exception as error:
                    tries += 1
                    if await self._refused(error, tries):
                        self._gave_up = True
                        break
        finally:
            self._applying = False

    def _sync_soon(self) -> None:
        """Also while there is more to apply: what a long catch-up has placed must not wait for its end to be durable."""
        if not self._syncing:
            self._syncing = True
            self._spawn(self._sync())

    def _next_run(self, count_max: int) -> list[tuple[Change, Register]]:
        """What comes next and may be applied at once: a deletion, and what it has made moot, comes apart from the others."""
        run: list[tuple[Change, Register]] = []
        for change, after in islice(self._to_apply, count_max):
            if run and (ChangeKind.DELETE in (change.kind, run[-1][0].kind) or self._moot(after) != self._moot(run[-1][1])):
                break
            run.append((change, after))
        return run

    def _moot(self, after: Register) -> bool:
        return after.position.version <= self.moot_to

    async def _refused(self, error: Exception, tries: int) -> bool:
        """Whether to give up."""
        version, ours = self.applied + 1, not isinstance(error, NodeError | OSError)
        said = repr(error) if ours else str(error)
        log.error("cannot be applied", repository=self._repository, version=version, tries=tries, error=said, exc_info=ours)
        if tries >= APPLY_TRIES and not isinstance(error, DiskFull | NotHere):
            self._stopped = True
            self._failed(f"version {version} cannot be applied: {said}")
            return True
        await asyncio.sleep(min(APPLY_PAUSE_S * 2 ** min(tries - 1, 10), APPLY_PAUSE_S_MAX))
        return False

    async def _close_gap(self) -> None:
        """What was loaded, placed as at the start. A deletion that came since makes it moot, and whatever came before that.

        Raises:
            NotHere: nobody has what is missing; it is looked for again.
        """
        edges, loaded = self._edges, self._loaded
        deletions = [after.position.version for change, after in self._to_apply if change.kind is ChangeKind.DELETE]
        self.moot_to = max(self.moot_to, *deletions[-1:], 0)
        if deletions or self._moot(loaded):
            self._gap = False
            return
        fetched = 0
        while True:
            try:
                await place(edges.journal, edges.store, loaded, self.applied)
                break
            except ObjectsMissing as error:
                if error.version <= fetched:
                    raise NotHere(str(error)) from error
                await self._fetch(error.version)
                fetched = error.version
        self._gap = False
        await self._reached(loaded)

    async def _fetch(self, version: int) -> None:
        """Packs of a committed change, from whoever has them."""
        for entry in await self._edges.journal.history(self._repository, version - 1, 1):
            if problem := await self._packs.stage_change(entry.change, ()):
                raise NotHere(problem)

    async def _some(self, run: list[tuple[Change, Register]]) -> None:
        edges = self._edges
        changes, after = [change for change, _ in run], run[-1][1]
        wanted = [change for change in changes if change.kind is not ChangeKind.UPDATE or not self._moot(after)]
        if wanted:
            packs = [pack for change in wanted for pack in (await self._packs.small(change)).values()]
            await edges.store.apply_all(wanted, after, packs)
        for change in changes:
            self._to_apply.popleft()
            edges.trace.mark("apply", change.txns)
        await self._reached(after)

    async def _reached(self, after: Register) -> None:
        self.register, self.applied = after, after.position.version
        self._wake()
        try:
            await self._edges.journal.mark_applied(self._repository, after.position.version)
        except StorageError as error:
            log.warning("not noted as applied", repository=self._repository, error=str(error))  # replayed at the next start

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _sync(self) -> None:
        """Bring what is applied to stable storage, then let the journal drop its copies of small packs.

        A failed fsync is never simply tried again: the next one would succeed and prove nothing. A disk that fails is the end
        of this node's votes until it is started again, and replays. One that was full gets all of it anew.
        """
        try:
            await self._sync_all()
        finally:
            self._syncing = False

    async def _sync_all(self) -> None:
        pause_s = SYNC_DELAY_S
        while True:
            await asyncio.sleep(pause_s)
            if self._edges.journal.failed:
                return  # nothing can be noted any more; the next start replays
            try:
                if self._place_first and not await self._place_anew():
                    continue
                version, name = self.applied, self.register.name
                if self.register.exists:
                    await self._edges.store.sync(name)
                await self._edges.journal.mark_synced(self._repository, version)
            except DiskFailed as error:
                log.error("sync failed", repository=self._repository, error=str(error))
                self._edges.journal.fail(f"{self.register.name} could not be made durable: {error}")
                return
            except ObjectsMissing as error:
                log.error("sync failed", repository=self._repository, error=str(error))
                self._reopen()
                return
            except Exception as error:
                ours = not isinstance(error, NodeError | OSError)
                log.error("sync failed", repository=self._repository, error=repr(error) if ours else str(error), exc_info=ours)
                pause_s, self._place_first = min(pause_s * 2, SYNC_PAUSE_S_MAX), True
                continue
            pause_s, self._place_first, self._synced = SYNC_DELAY_S, False, version
            if self.applied == version:
                return

    async def _place_anew(self) -> bool:
        """What was applied since the last sync, written again into new files. False: not now, it is being applied."""
        if self._applying:
            return False
        self._applying = True
        try:
            await place(self._edges.journal, self._edges.store, self.register, max(self._synced, self.register.floor))
        finally:
            self._applying = False
            if self._to_apply:
                self._applying = True
                self._spawn(self._apply())
        return True

    def _reopen(self) -> None:
        """What was applied is lost, and nowhere on this disk any more: a gap again, to be fetched."""
        self._gap, self._loaded, self.applied, self._place_first = True, self.register, self._synced, False
        if not self._applying:
            self._applying = True
            self._spawn(self._apply())
