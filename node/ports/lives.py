"""Whose life a journal is, and which lives of other nodes it knows (R4)."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from node.protocol.ids import NodeId, RepoId
from node.protocol.incarnations import Incarnations
from node.protocol.messages import (
    Enrolment,
    HeldRecord,
)
from node.protocol.quorum import VoterSet
from node.protocol.standing import Life, Standing


class Lives(Protocol):
    """R4: whose life a journal is, what it is worth, and which lives of the other nodes it knows. Everything is durable when
    the call returns; the attributes show durable things only."""

    @property
    def life(self) -> Life:
        """Where this journal stands now."""
        ...

    @property
    def standing(self) -> Standing: ...

    @property
    def incarnations(self) -> Incarnations:
        """Newer incarnations of other nodes, granted by this one."""
        ...

    @property
    def seen(self) -> Mapping[NodeId, Life]:
        """The newest life of each other node, as of the last ``keep_seen``."""
        ...

    async def found(self, founders: Sequence[str], at_ms: int) -> None:
        """A new journal becomes a member's."""
        ...

    async def mark_rejoining(self, reason: str, at_ms: int) -> None:
        """The first reason is kept; a mark that stands stays as it is, and is written again: nobody may have waited for the
        end of a ``clear_rejoining``, whose write is made all the same."""
        ...

    async def keep_attempt(self, incarnation: int) -> None:
        """This incarnation is going to be asked for: the next attempt asks for a higher one."""
        ...

    async def clear_rejoining(self, incarnation: int, incarnations: Incarnations, founders: Sequence[str], at_ms: int) -> None:
        """Everything is learned again: a member's journal from now on, in that incarnation, knowing the others' as well as
        the members that it was learned from."""
        ...

    async def forget(self, repository: RepoId) -> None:
        """Drop all rows of a repository whose record cannot be read; only while the mark stands, to learn it again."""
        ...

    async def enrol(self, node: NodeId, incarnation: int, life: str) -> Enrolment:
        """Store a newer incarnation of ``node``; the same of the same life again is granted again."""
        ...

    async def keep_seen(self, seen: Mapping[NodeId, Life]) -> None: ...

    async def records(self, after: str, limit: int, members: VoterSet) -> tuple[Sequence[HeldRecord], bool]:
        """A page of acceptor records in order of their repositories, also of those only promised; whether there are more.
        ``members`` are the voters of a register that was never created."""
        ...
