"""What an operator asks a node: the scrub, repairs, and the word that ends a rejoining."""

from dataclasses import dataclass
from typing import Protocol

from node.protocol.ids import NodeId, RepoId


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What is damaged of one repository, and what a repair would come to."""

    found: tuple[str, ...]
    would: str
    """In words; empty: nothing would be done."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was found damaged of one repository (or of the journal's file), and what became of it. Times in milliseconds."""

    repository: str
    """Empty: the journal's file."""
    found: tuple[str, ...]
    actions: tuple[str, ...]
    problem: str
    """Why it is not repaired; empty when it is."""
    found_at_ms: int
    ended_at_ms: int


@dataclass(frozen=True, slots=True)
class ScrubState:
    """What the scrub does and has done. Times in milliseconds since 1970."""

    run: int
    """Number of the pass under way, or of the last one; counted since the node started."""
    running: bool
    repository: str
    """Looked at now."""
    repositories: int
    """Looked at in this pass."""
    bytes_read: int
    """In this pass, from packs."""
    skipped: int
    """Not looked at in this pass: something was being applied the whole time, or git could not look."""
    begun_at_ms: int
    ended_at_ms: int
    """Of the last complete pass over everything; 0: none since the node started."""
    found: int
    """Repositories found damaged since the node started."""
    repaired: int
    reports: tuple[RepairReport, ...]
    """The latest ones, newest last."""


class Care(Protocol):
    """What operators ask of a node about the health of what it stores (``node.scrub.Scrub``)."""

    def state(self) -> ScrubState: ...

    def begin(self, repository: RepoId | None) -> int:
        """Look at one repository, or at everything, now; returns the number of that pass. Calls join one that waits."""
        ...

    async def examine(self, repository: RepoId) -> RepairPlan:
        """What is damaged of it, and what a repair would do; nothing is set aside or repaired."""
        ...

    async def repair(self, repository: RepoId) -> RepairReport:
        """Look at it, and repair what is found. Raises ``NotAMember`` while the node speaks for no repository."""
        ...


class Rejoins(Protocol):
    """What an operator may decide about a node that cannot rejoin by itself (``node.membership.Membership``)."""

    def plan(self, sources: frozenset[NodeId], *, accept_loss: bool) -> str:
        """What ``take`` would do, in words. Raises ``RejoinRefused``."""
        ...

    async def take(self, sources: frozenset[NodeId]) -> None:
        """Learn what is left from these members, however few, and accept the loss of the rest; returns when it has begun.
        Raises ``RejoinRefused`` or ``StorageError``."""
        ...
