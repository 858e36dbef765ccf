"""Replay at start (V6): sweep what nobody names, then make the disk agree with the journal, and durable.

The journal is the truth, the refs on disk are its materialised view. What was applied but not synced when the process ended is
placed and materialised again; it is the same code whether that end was a SIGKILL or a power cut.

A change whose objects are nowhere on this disk is no reason not to start: a node that crashed while it learned of a deleted
past has such ones, and needs them as little as anybody. Its repository stays unapplied, so no strong read is served from it,
until its packs are fetched, or a deletion that it learns of makes them moot (``applying.py``).

Nor is a damaged row. What it says is not known, so nothing on the disk is removed because of it, and its repository is mended
and placed by the scrub, which hears of every damage that is met here.
"""

import structlog

from node.config import Config
from node.placing import ObjectsMissing, place
from node.ports import Journal, JournalDamaged, ObjectStore
from node.protocol.ids import RepoId
from node.protocol.standing import State

log = structlog.get_logger()

PAGE = 256


async def replay(config: Config, journal: Journal, store: ObjectStore) -> None:
    """Under the data directory's lock, before anything is served. Raises ``StorageError``."""
    existing: set[str] = set()
    after = ""
    while page := await journal.repositories(after, PAGE):
        existing.update(register.name for register in page)
        after = page[-1].repository
    doubtful = await _doubtful(config, journal, {name.lower() for name in existing})
    try:
        in_use: set[str] | None = await journal.packs_in_use()
    except JournalDamaged as error:
        log.error("damaged rows are passed over", repository="", error=str(error))
        in_use = None
    # What a journal that was lost does not name may be all that is left of it, if an operator accepted a loss (R4).
    lost = journal.lives.standing.state is State.REJOINING
    swept = await store.sweep(in_use, existing, doubtful, keep=lost)
    unsynced = await journal.unsynced()
    for repository, _, synced in unsynced:
        try:
            await replay_one(config, journal, store, repository, synced)
        except JournalDamaged as error:
            log.error("damaged rows are passed over", repository=repository, error=str(error))
    log.info("replayed", repositories=len(existing), unsynced=len(unsynced), swept=dict(swept))


async def _doubtful(config: Config, journal: Journal, existing: set[str]) -> set[str]:
    """Keys of repositories of which the journal cannot say whether they exist."""
    found: set[str] = set()
    after = ""
    while page := await journal.care.keys(after, PAGE):
        for repository in page:
            if repository not in existing:
                try:
                    await journal.load(repository, config.voters)
                except JournalDamaged:
                    found.add(repository)
        after = page[-1]
    return found


async def replay_one(config: Config, journal: Journal, store: ObjectStore, repository: RepoId, synced: int) -> None:
    """What is committed after version ``synced``, on the disk and durable there."""
    register = (await journal.load(repository, config.voters)).register
    try:
        await place(journal, store, register, synced)
    except ObjectsMissing as error:
        log.error("objects are missing, not applied", repository=repository, version=error.version, packs=error.packs)
        return
    if register.exists:
        await store.sync(register.name)
    await journal.mark_applied(repository, register.position.version)
    await journal.mark_synced(repository, register.position.version)
