"""``ports.Lives`` in memory, beside ``MemoryJournal``: it outlives its node, ``next_start`` begins its next life."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from node.protocol.acceptor import AcceptorRecord
from node.protocol.ids import NodeId, RepoId
from node.protocol.incarnations import FIRST, Incarnations, merged
from node.protocol.messages import Enrolment, HeldRecord
from node.protocol.quorum import VoterSet
from node.protocol.standing import Life, Standing, State

Rows = Callable[[], Iterable[tuple[RepoId, AcceptorRecord, VoterSet | None, bool]]]
"""Every repository's record, in order of the keys; no voters for a register that was never created; whether it is set aside."""


class MemoryLives:
    """``turn`` lets others in first, as a real write would, and raises what the disk says."""

    def __init__(self, journal: str, rows: Rows, turn: Callable[[], Awaitable[None]], drop: Callable[[RepoId], None]) -> None:
        self.life = Life(FIRST, journal, 1, f"{journal}, start 1", 0)
        self.standing = Standing(State.NEW)
        self.seen: Mapping[NodeId, Life] = {}
        self._enrolled: dict[NodeId, tuple[int, str]] = {}
        self._rows = rows
        self._turn = turn
        self._drop = drop

    def copy_to(self, other: "MemoryLives") -> None:
        other.life, other.standing = self.life, self.standing
        other.seen, other._enrolled = dict(self.seen), dict(self._enrolled)

    def next_start(self) -> None:
        """Another process opens the journal."""
        boot = self.life.boot + 1
        self.life = replace(self.life, boot=boot, nonce=f"{self.life.journal}, start {boot}", began=self.life.writes)

    def count(self) -> None:
        """An acceptor record was written."""
        self.life = replace(self.life, writes=self.life.writes + 1)

    @property
    def incarnations(self) -> Incarnations:
        return merged(tuple((node, incarnation) for node, (incarnation, _) in self._enrolled.items()))

    async def found(self, founders: Sequence[str], at_ms: int) -> None:
        await self._turn()
        self.standing = Standing(State.MEMBER, tuple(founders), since_ms=at_ms, tried=self.standing.tried)

    async def mark_rejoining(self, reason: str, at_ms: int) -> None:
        await self._turn()
        if self.standing.state is not State.REJOINING:
            self.standing = replace(self.standing, state=State.REJOINING, reason=reason, since_ms=at_ms)

    async def keep_attempt(self, incarnation: int) -> None:
        await self._turn()
        self.standing = replace(self.standing, tried=max(self.standing.tried, incarnation))

    async def clear_rejoining(self, incarnation: int, incarnations: Incarnations, founders: Sequence[str], at_ms: int) -> None:
        await self._turn()
        for node, number in incarnations:
            if number > self._enrolled.get(node, (FIRST, ""))[0]:
                self._enrolled[node] = (number, "")
        named = tuple(sorted({self.life.journal, *founders}))
        self.standing = Standing(State.MEMBER, named, since_ms=at_ms, tried=self.standing.tried)
        self.life = replace(self.life, incarnation=incarnation)

    async def enrol(self, node: NodeId, incarnation: int, life: str) -> Enrolment:
        await self._turn()
        known = self._enrolled.get(node, (FIRST, ""))
        if incarnation > known[0]:
            known = self._enrolled[node] = (incarnation, life)
            self.count()  # a journal that was set back before a grant is noticed, as for a vote
        return Enrolment(incarnation > FIRST and known == (incarnation, life), known[0])

    async def forget(self, repository: RepoId) -> None:
        await self._turn()
        self._drop(repository)

    async def keep_seen(self, seen: Mapping[NodeId, Life]) -> None:
        await self._turn()
        self.seen = {**self.seen, **seen}

    async def records(self, after: str, limit: int, members: VoterSet) -> tuple[Sequence[HeldRecord], bool]:
        await self._turn()
        page = [
            HeldRecord(repository, voters or members, record.promised, record.accepted, record.committed, set_aside)
            for repository, record, voters, set_aside in self._rows()
            if repository > after
        ]
        return page[:limit], len(page) > limit
