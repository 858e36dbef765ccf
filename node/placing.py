"""What the journal says of one repository, written to its disk anew: objects, refs, HEAD (V6). For replay, and after a sync
that failed.

The store writes into new files whatever is there already: bytes that can be read back need not be on the disk.
"""

from node.ports.journal import Journal
from node.ports.objects import ObjectStore
from node.protocol.register import Register

PAGE = 256


class ObjectsMissing(Exception):
    """A committed change whose packs are nowhere on this disk."""

    def __init__(self, version: int, packs: list[str]) -> None:
        super().__init__(f"objects of version {version} are missing: {', '.join(packs)}")
        self.version = version
        self.packs = packs


async def place(journal: Journal, store: ObjectStore, register: Register, since: int) -> None:
    """Changes after version ``since``, in order, and the refs of ``register``; ``store.sync`` is the caller's.

    Raises:
        ObjectsMissing: nothing after that change was placed.
        StorageError: if the journal or the disk refuses.
    """
    version = max(since, await _last_deletion(journal, store, register, since))
    while version < register.position.version and (entries := await journal.history(register.repository, version, PAGE)):
        for entry in entries:
            if entry.change.position.version > register.position.version:
                break
            found = [await journal.inline_pack(pack) for pack in entry.change.packs]
            inline = {pack.sha256: pack for pack in found if pack is not None}
            absent = [pack.name for pack in await store.missing(entry.change) if pack.sha256 not in inline]
            if absent:
                raise ObjectsMissing(entry.change.position.version, absent)
            await store.apply(register, entry.change, register, list(inline.values()))
        version = entries[-1].change.position.version
    await store.materialise(register)


async def _last_deletion(journal: Journal, store: ObjectStore, register: Register, since: int) -> int:
    """The version from which it begins. A deletion that is not synced is applied again too: what was created after it starts
    from nothing. Not so where the repository holds a pack of what came after it: then it was applied, and that pack may be
    nowhere else on this disk (the marks are not known any more, or the stage has let go of it)."""
    version = register.floor
    while since < register.floor and (entries := await journal.history(register.repository, version, PAGE)):
        packs = [pack for entry in entries for pack in entry.change.packs]
        if packs and await store.holds(register.name, packs):
            return register.floor
        version = entries[-1].change.position.version
    return register.floor - 1
