"""``ports.JournalCare`` on SQLite: looks past every cache at the rows on the disk, and puts right what a repair has proved.

Questions run in threads of their own (``asyncio.to_thread``), each with a fresh connection; writes go through the one writer.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from node.ports.errors import JournalDamaged
from node.protocol.change import PackRef
from node.protocol.ids import Digest, Position, RepoId
from node.protocol.messages import HistoryEntry, InlinePack
from node.protocol.register import Register
from node.storage import journal_mend as mend
from node.storage import journal_verify as checks
from node.storage.journal_rebuild import rebuild

Submit = Callable[[Callable[[sqlite3.Connection], Any]], "asyncio.Future[Any]"]


class SqliteCare:
    """See ``ports.JournalCare``."""

    def __init__(self, path: Path, submit: Submit, alone: Submit) -> None:
        self._path = path
        self._submit = submit
        self._alone = alone

    async def keys(self, after: str, limit: int) -> Sequence[RepoId]:
        return await asyncio.to_thread(checks.fresh, self._path, lambda db: checks.keys(db, after, limit))

    async def set_aside(self, prefix: str) -> Sequence[RepoId]:
        return await asyncio.to_thread(checks.fresh, self._path, lambda db: checks.set_aside(db, prefix))

    async def committed(self, repository: RepoId) -> Position:
        return await asyncio.to_thread(checks.fresh, self._path, lambda db: checks.committed(db, repository))

    async def verify(self, repository: RepoId, since: int) -> tuple[Sequence[JournalDamaged], int | None]:
        return await asyncio.to_thread(checks.fresh, self._path, lambda db: checks.verify(db, repository, since))

    async def verify_database(self, rest_s: float) -> str:
        return await asyncio.to_thread(checks.verify_database, self._path, rest_s)

    async def reindex(self) -> None:
        await self._submit(mend.reindex)

    async def rebuild(self) -> None:
        await self._alone(lambda db: rebuild(db, self._path))

    async def mend_history(self, entry: HistoryEntry) -> None:
        await self._submit(lambda db: mend.mend_history(db, entry))

    async def mend_value(self, value: Register) -> bool:
        done: bool = await self._submit(lambda db: mend.mend_value(db, value))
        return done

    async def mend_index(self, repository: RepoId) -> None:
        await self._submit(lambda db: mend.mend_index(db, repository))

    async def waited_for(self, repository: RepoId) -> Sequence[PackRef]:
        found: list[PackRef] = await self._submit(lambda db: mend.waited_for(db, repository))
        return found

    async def mend_pack(self, pack: InlinePack) -> None:
        await self._submit(lambda db: mend.mend_pack(db, pack))

    async def drop_pack(self, sha256: Digest) -> None:
        await self._submit(lambda db: mend.drop_pack(db, sha256))

    async def resume_voting(self, repository: RepoId, reason: str) -> str:
        left: str = await self._submit(lambda db: mend.resume_voting(db, repository, reason))
        return left
