"""``ports.JournalCare`` of the journal in memory: nothing is damaged but what a test says is (``MemoryJournal.damaged``)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from node.ports.errors import DamagedPart, JournalDamaged
from node.protocol.change import PackRef
from node.protocol.ids import ORIGIN, Digest, Position, RepoId
from node.protocol.messages import HistoryEntry, InlinePack
from node.protocol.register import Register
from node.protocol.standing import State

if TYPE_CHECKING:
    from node.storage.memory_journal import MemoryJournal


class MemoryCare:
    """Mending takes the damage away, and counts that in ``mended``."""

    def __init__(self, journal: "MemoryJournal") -> None:
        self._journal = journal
        self.mended: list[DamagedPart] = []
        self.torn = ""
        """What SQLite says of the file, until it is written anew."""

    async def keys(self, after: str, limit: int) -> Sequence[RepoId]:
        return [repository for repository in sorted(self._journal._rows) if repository > after][:limit]

    async def set_aside(self, prefix: str) -> Sequence[RepoId]:
        return [name for name, row in sorted(self._journal._rows.items()) if row.stopped and row.stopped.startswith(prefix)]

    async def committed(self, repository: RepoId) -> Position:
        row = self._journal._rows.get(repository)
        return row.record.committed if row else ORIGIN

    async def verify(self, repository: RepoId, since: int) -> tuple[Sequence[JournalDamaged], int | None]:
        return [damage for damage in self._journal.damages if damage.repository == repository], None

    async def verify_database(self, rest_s: float) -> str:
        found = (d.detail for d in self._journal.damages if d.part is DamagedPart.DATABASE)
        return self.torn or next(found, "")

    async def reindex(self) -> None:
        return None

    async def rebuild(self) -> None:
        assert self._journal.lives.standing.state is State.REJOINING
        self.mended.append(DamagedPart.DATABASE)
        self.torn = ""

    async def mend_history(self, entry: HistoryEntry) -> None:
        self._mend(entry.change.repository, DamagedPart.HISTORY, DamagedPart.CERTIFICATE)

    async def mend_value(self, value: Register) -> bool:
        self._mend(value.repository, DamagedPart.VALUE, DamagedPart.REFS)
        return True

    async def mend_index(self, repository: RepoId) -> None:
        self._mend(repository, DamagedPart.INDEX)

    async def waited_for(self, repository: RepoId) -> Sequence[PackRef]:
        return []

    async def mend_pack(self, pack: InlinePack) -> None:
        return None

    async def drop_pack(self, sha256: Digest) -> None:
        return None

    async def resume_voting(self, repository: RepoId, reason: str) -> str:
        row = self._journal._rows.get(repository)
        if row is None or row.stopped != reason:
            return row.stopped if row else ""
        row.stopped = ""
        return ""

    def _mend(self, repository: RepoId, *parts: DamagedPart) -> None:
        for damage in self._journal.damages:
            if damage.repository == repository and damage.part in parts:
                self.mended.append(damage.part)
                self._journal.mended(damage)
