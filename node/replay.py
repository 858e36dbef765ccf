"""Replay at start (V6): sweep what nobody names, then make the disk agree with the journal, and durable.

The journal is the truth, the refs on disk are its materialised view. What was applied but not synced when the process ended is
placed and materialised again; it is the same code whether that end was a SIGKILL or a power cut.

A change whose objects are nowhere on this disk is no reason not to start: a node that crashed while it learned of a deleted
past has such ones, and needs them as little as anybody. Its repository stays unapplied, so no strong read is served from it,
until history that it catches up with takes it further.
"""

import structlog

from node.config import Config
from node.placing import ObjectsMissing, place
from node.ports import Journal, ObjectStore
from node.protocol.ids import RepoId

log = structlog.get_logger()

PAGE = 256


async def replay(config: Config, journal: Journal, store: ObjectStore) -> None:
    """Under the data directory's lock, before anything is served. Raises ``StorageError``."""
    existing: set[str] = set()
    after = ""
    while page := await journal.repositories(after, PAGE):
        existing.update(register.name for register in page)
        after = page[-1].repository
    swept = await store.sweep(await journal.packs_in_use(), existing)
    unsynced = await journal.unsynced()
    for repository, _, synced in unsynced:
        await replay_one(config, journal, store, repository, synced)
    log.info("replayed", repositories=len(existing), unsynced=len(unsynced), swept=dict(swept))


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
