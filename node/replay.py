"""Replay at start (V6): sweep what nobody names, then make the disk agree with the journal, and durable.

The journal is the truth, the refs on disk are its materialised view. What was applied but not synced when the process ended is
placed and materialised again; it is the same code whether that end was a SIGKILL or a power cut.

A change whose objects are nowhere on this disk is no reason not to start: a node that crashed while it learned of a deleted
past has such ones, and needs them as little as anybody. Its repository stays unapplied, so no strong read is served from it,
until its packs are fetched, or a deletion that it learns of makes them moot (``applying.py``).

Nor is a damaged row of the journal, nor a folder where a file should be: what is damaged is repaired by the scrub, which runs
in a node that has started. Until then that repository is set aside, durably, and nothing that may be its own is swept.
"""

from contextlib import suppress

import structlog

from node.config import Config
from node.placing import ObjectsMissing, place
from node.ports.errors import JournalDamaged, WrongKind
from node.ports.journal import Journal
from node.ports.objects import ObjectStore
from node.protocol.ids import RepoId
from node.protocol.standing import State

log = structlog.get_logger()

DAMAGED = "damaged: "
"""How the reason of a replica begins that is set aside for the scrub to repair, and not for its history."""

PAGE = 256


async def replay(config: Config, journal: Journal, store: ObjectStore) -> None:
    """Under the data directory's lock, before anything is served. Raises ``StorageError``."""
    existing, doubtful = await _existing(config, journal)
    # What a journal that was lost does not name may be all that is left of it, if an operator accepted a loss (R4).
    lost = journal.lives.standing.state is State.REJOINING
    swept = await store.sweep(await _packs_in_use(journal), existing, doubtful, keep=lost)
    unsynced = await journal.unsynced()
    for repository, _, synced in unsynced:
        try:
            await replay_one(config, journal, store, repository, synced)
        except JournalDamaged as error:
            log.error("not replayed, the journal is damaged", repository=repository, error=str(error))
            await set_aside(journal, repository, error)
        except WrongKind as error:
            log.error("not replayed, the repository is damaged", repository=repository, error=str(error))
            await set_aside(journal, repository, error)
    log.info("replayed", repositories=len(existing), unsynced=len(unsynced), swept=dict(swept))


async def set_aside(journal: Journal, repository: RepoId, error: Exception) -> None:
    """For the scrub to repair."""
    with suppress(JournalDamaged):  # then its row says so itself, to whoever loads it
        await journal.stop_voting(repository, DAMAGED + str(error))


async def _existing(config: Config, journal: Journal) -> tuple[set[str], set[RepoId]]:
    """Names of all repositories that there are, and the keys of those of which the journal cannot tell."""
    existing: set[str] = set()
    known: set[RepoId] = set()
    doubtful: set[RepoId] = set()
    after = ""
    while page := await journal.repositories(after, PAGE):
        existing.update(register.name for register in page)
        known.update(register.repository for register in page)
        after = page[-1].repository
    after = ""
    while keys := await journal.care.keys(after, PAGE):
        for repository in (key for key in keys if key not in known):
            try:
                # A page of damaged rows reads as the end of them all: there may be whole ones behind it.
                if (register := (await journal.load(repository, config.voters)).register).exists:
                    existing.add(register.name)
            except JournalDamaged as error:
                log.error("not known whether it exists, the journal is damaged", repository=repository, error=str(error))
                doubtful.add(repository)
        after = keys[-1]
    return existing, doubtful


async def _packs_in_use(journal: Journal) -> set[str] | None:
    """``None`` where the journal cannot tell: then the whole stage is kept until the next start."""
    try:
        return await journal.packs_in_use()
    except JournalDamaged as error:
        log.error("the stage is not swept, the journal is damaged", error=str(error))
        return None


async def replay_one(config: Config, journal: Journal, store: ObjectStore, repository: RepoId, synced: int) -> bool:
    """What is committed after version ``synced``, on the disk and durable there. False: not so, objects of it are missing."""
    register = (await journal.load(repository, config.voters)).register
    try:
        await place(journal, store, register, synced)
    except ObjectsMissing as error:
        log.error("objects are missing, not applied", repository=repository, version=error.version, packs=error.packs)
        return False
    if register.exists:
        await store.sync(register.name)
    await journal.mark_applied(repository, register.position.version)
    await journal.mark_synced(repository, register.position.version)
    return True
