"""One repository of a rejoining node (R4.3): history, objects, and the acceptor record as the other voters remember it.

No machine runs meanwhile and nobody is answered. Everything here may be done again after a crash at any point: history is only
added, the record is only raised. What is on the disk already, of an old copy or of a journal that lost a row, is used.
"""

import asyncio
from collections.abc import Sequence

import structlog

from node.catching_up import CatchUpFailed, fetch_history
from node.edges import Edges
from node.packs import Packs
from node.ports.errors import DiskFailed, JournalDamaged, NodeError, StorageError, WrongKind
from node.ports.journal import Loaded
from node.protocol.acceptor import CommitOp, RejoinOp, WriteVerdict
from node.protocol.catchup import HistoryRefused, Step
from node.protocol.change import Change
from node.protocol.ids import NodeId, RepoId
from node.protocol.messages import InlinePack
from node.protocol.register import Register
from node.protocol.rejoin import Restore
from node.replay import replay_one, set_aside

log = structlog.get_logger()


class Restoring:
    """``wanted`` of one repository. ``lossy``: an operator accepted that objects nobody has are lost."""

    def __init__(self, edges: Edges, wanted: Restore, *, lossy: bool = False) -> None:
        self._edges = edges
        self._wanted = wanted
        self._lossy = lossy
        self._repository: RepoId = wanted.repository
        self._packs = Packs(edges, wanted.repository, lambda: list(self._peers))
        self._register: Register
        self._moot_to = 0
        """Version of the last deletion that is known: what comes before it has no objects any more."""

    async def restore(self) -> str:
        """Empty when the record is durable here, else why not; it may be tried again."""
        try:
            loaded = await self._load()
            self._register = loaded.register
            await self._learn_history(loaded.synced)
            return await self._take_over()
        except HistoryRefused as error:
            if not error.divergent:
                return str(error)
            return await self._start_over(str(error))
        except NodeError as error:
            return str(error) or type(error).__name__

    @property
    def _peers(self) -> tuple[NodeId, ...]:
        me = self._edges.config.me
        return tuple(node for node in (*self._wanted.holders, *self._wanted.voters.nodes) if node != me)

    async def _load(self) -> Loaded:
        """What cannot be read is learned anew, all of it."""
        journal, members = self._edges.journal, self._edges.config.voters
        try:
            return await journal.load(self._repository, members)
        except JournalDamaged as error:
            log.warning("damaged rows are learned anew", repository=self._repository, error=str(error))
            await journal.lives.forget(self._repository)
            for damage in journal.damages:
                if damage.repository == self._repository:
                    journal.mended(damage)
            return await journal.load(self._repository, members)

    async def _learn_history(self, synced: int) -> None:
        """R2, a page at a time; each is applied before the next one is fetched, so that no more than a page waits in memory."""
        edges, committed = self._edges, self._wanted.committed
        here = self._register.position
        if here.version == committed.version and here != committed:
            raise HistoryRefused(f"version {here.version} is {here} here and {committed} elsewhere", divergent=True)
        while (version := self._register.position.version) < committed.version:
            told, packs = {committed}, self._packs
            holders = tuple(dict.fromkeys(self._peers))
            await fetch_history(edges, self._repository, self._register, holders, told, packs.hold, self._stage, self._learn)
            if self._register.position.version == version:
                raise CatchUpFailed(f"no history after version {version}")
            if self._register.position.version >= self._moot_to:
                synced = await self._apply(synced)
        if synced < self._register.position.version:
            await self._apply(synced)

    async def _apply(self, synced: int) -> int:
        """The version up to which all is on stable storage now. What cannot be written for what is in its place, and objects
        that nobody has, keep no node out: the scrub repairs, and the replica fetches, in a member."""
        edges = self._edges
        try:
            done = await replay_one(edges.config, edges.journal, edges.store, self._repository, synced)
        except WrongKind as error:
            log.error("not replayed, the repository is damaged", repository=self._repository, error=str(error))
            await set_aside(edges.journal, self._repository, error)
            return synced
        return self._register.position.version if done else synced

    async def _stage(self, change: Change, holders: tuple[NodeId, ...], floor: int) -> str:
        self._moot_to = max(self._moot_to, floor)
        problem = "" if change.position.version <= floor else await self._packs.stage_change(change, holders)
        if problem and self._lossy:
            log.error("taken without its objects", repository=self._repository, version=change.position.version, error=problem)
            return ""
        return problem

    async def _learn(self, proved: Sequence[Step]) -> None:
        edges = self._edges
        steps = [step for step in proved if step.change.position.version > self._register.position.version]
        writes = [
            edges.journal.write(
                CommitOp(self._repository, step.change),
                members=edges.config.voters,
                at_ms=edges.clock.wall_ms(),
                certificate=step.certificate,
                packs=edges.store.inline(step.change.packs) if step.needs_objects else (),
            )
            for step in steps
        ]
        for step, (verdict, _) in zip(steps, await asyncio.gather(*writes), strict=True):
            if verdict not in (WriteVerdict.DONE, WriteVerdict.REPEATED):
                raise StorageError(f"version {step.change.position.version} was not taken: {verdict.value}")
            self._register = self._register.applied(step.change)

    async def _take_over(self) -> str:
        """``promised`` and ``accepted``, with the ballots they had; no vote is sent for it."""
        edges, wanted = self._edges, self._wanted
        accepted = wanted.accepted
        change = accepted.change if accepted is not None else None
        packs: tuple[InlinePack, ...] = ()
        if change is not None and change.base == self._register.position:
            problem = await self._packs.stage_change(change, self._peers)
            if problem and not self._lossy:
                return problem
            packs = edges.store.inline(change.packs)
        op = RejoinOp(self._repository, wanted.promised, accepted)
        verdict, _ = await edges.journal.write(op, members=edges.config.voters, at_ms=edges.clock.wall_ms(), packs=packs)
        if verdict is WriteVerdict.DIVERGENT:
            return await self._set_aside("one ballot or one version has two values")
        return f"history is shorter than what was accepted on it ({verdict.value})" if verdict is WriteVerdict.MOVED else ""

    async def _start_over(self, reason: str) -> str:
        """Different is never newer: what is here is kept where no client sees it, the repository is learned from nothing."""
        edges = self._edges
        label = f"{edges.config.me}-{edges.clock.wall_ms()}"
        try:
            kept = await edges.store.rescue(self._register, label)
        except DiskFailed as error:  # tried again, the fsync would succeed and prove nothing
            edges.journal.fail(f"{self._repository} could not be kept aside durably: {error}")
            raise
        await edges.journal.lives.forget(self._repository)
        log.error("divergent history kept aside", repository=self._repository, reason=reason, kept=kept)
        return f"{reason}; what was here is kept in {kept}, and it is learned from nothing"

    async def _set_aside(self, reason: str) -> str:
        """Different is never newer: this replica stays set aside, the node rejoins with the others."""
        log.error("alarm", repository=self._repository, reason=reason, stops_voting=True)
        self._edges.alarms(self._repository, reason)
        await self._edges.journal.stop_voting(self._repository, reason)
        return ""
