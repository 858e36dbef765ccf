"""Is what this node stores of a repository what it should be? Rows of the journal first, then the repository on disk (R3).

Looks past every cache, at a bounded rate, and changes nothing. Pushes go on meanwhile: a repository is compared at a moment in
which nothing is being applied to it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from node.edges import Edges
from node.ports.errors import JournalDamaged, StorageError
from node.ports.objects import Finding
from node.ports.surroundings import Clock
from node.protocol.change import PackRef
from node.protocol.ids import RepoId
from node.protocol.register import Register
from node.registry import Registry

HISTORY_PAGE = 64

QUIET_TRIES = 20
QUIET_PAUSE_S = 0.25
"""How long a moment is waited for in which nothing is being applied; a repository that is pushed to all the time is skipped."""


class NotLooked(StorageError):
    """Nothing is known: something was being applied all the time, or git could not look."""


class Pace:
    """So many bytes a second, on the average of each read; of all that look at once together."""

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at = 0.0
        self.bytes = 0

    async def spend(self, count: int) -> None:
        self.bytes += count
        now = self._clock.now()
        self._free_at = max(now, self._free_at) + count / self._bytes_per_s
        await asyncio.sleep(self._free_at - now)


class Examiner:
    """Looks at one repository at a time."""

    def __init__(self, edges: Edges, registry: Registry) -> None:
        self._edges = edges
        self._registry = registry
        self.pace = Pace(edges.config.scrub_bytes_per_s, edges.clock)

    async def damages(self, repository: RepoId) -> list[JournalDamaged]:
        """Rows of the journal that are not what was written."""
        found: list[JournalDamaged] = []
        since: int | None = 0
        while since is not None:
            page, since = await self._edges.journal.care.verify(repository, since)
            found += page
            await asyncio.sleep(0)
        return found

    async def findings(self, repository: RepoId) -> list[Finding]:
        """What of the repository on disk is not as the journal says.

        Raises:
            NotLooked: nothing is known.
            JournalDamaged: first the journal has to be mended.
        """
        register, found = await self._quiet(repository)
        if not register.exists or any(finding.part == "repository" for finding in found):
            return list(found)
        store = self._edges.store
        broken: list[Finding] = []
        async for pack in self._packs(register):
            if (wrong := await store.verify_pack(register.name, pack, self.pace.spend)) is not None:
                broken.append(wrong)
        if (await self._at(repository))[0].floor != register.floor:
            raise NotLooked(f"{repository} was deleted meanwhile")
        if not broken and not found:
            try:
                wrong = await store.verify_objects(register.name)
            except StorageError as error:
                raise NotLooked(str(error)) from error
            broken += [wrong] if wrong is not None else []
        return [*found, *broken]

    async def _quiet(self, repository: RepoId) -> tuple[Register, Sequence[Finding]]:
        """(the applied value, what is not as it says), of one moment."""
        for _ in range(QUIET_TRIES):
            register, busy = await self._at(repository)
            found = await self._edges.store.verify_refs(register) if not busy else []
            if not busy and await self._at(repository) == (register, False):
                return register, found
            await asyncio.sleep(QUIET_PAUSE_S)
        raise NotLooked(f"something was being applied to {repository} all the time")

    async def _at(self, repository: RepoId) -> tuple[Register, bool]:
        """(the applied value, whether something is being applied). What is not in memory is not applied to; and what is set
        aside besides, because replay could not apply it, waits for nothing but this look."""
        replica = self._registry.peek(repository)
        if replica is not None:
            return replica.applied_register, replica.applying
        loaded = await self._edges.journal.load(repository, self._edges.config.voters)
        if loaded.applied < loaded.register.position.version and not loaded.stopped:
            replica = await self._registry.get(repository)  # which applies the rest
            return replica.applied_register, replica.applying
        return loaded.register, False

    async def _packs(self, register: Register) -> AsyncIterator[PackRef]:
        """Every pack that the repository should hold: those of all changes since it was created last."""
        seen: set[str] = set()
        version = register.floor
        while entries := await self._edges.journal.history(register.repository, version, HISTORY_PAGE):
            for entry in entries:
                if entry.change.position.version > register.position.version:
                    return
                for pack in entry.change.packs:
                    if pack.sha256 not in seen:
                        seen.add(pack.sha256)
                        yield pack
            version = entries[-1].change.position.version
