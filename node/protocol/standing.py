"""What a node's journal is worth to its cluster: new, a member's, or one that must rejoin first (R4).

A ``Life`` says where a journal stands, so that a peer can compare it with what it has seen before: disks are lost, restored
from old copies and cloned, and the journal itself cannot know. Nodes tell each other theirs, and what they have seen of each
other, with every ping; ``behind`` is the whole comparison.

A new journal counts for nothing until its cluster is founded: when every configured member answers that it is new, or when a
member names this very journal among its founders. A journal that is new in a cluster founded without it has lost its
predecessor, and rejoins (``rejoin.py``). All members new is a new cluster, whatever was there before.

Not guaranteed: a disk set back in time is noticed only if somebody in reach remembers something newer of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import reduce

from node.protocol.ids import NodeId


@dataclass(frozen=True, slots=True)
class Life:
    """Where a journal stands. Within one incarnation ``boot``, ``writes`` and ``began`` only grow."""

    incarnation: int
    journal: str
    """uuid, made with the journal."""
    boot: int
    """How often a process has opened it; counted durably before anything is said."""
    nonce: str
    """Random, made by the process that counted ``boot``: two processes on copies of one disk count alike."""
    writes: int
    """Acceptor records written so far (promises, acceptances, commits), durable ones only."""
    began: int = 0
    """How many of them it held when ``boot`` was counted: an earlier start that had told of more was set back in between."""
    lost: bool = False
    """Never said by the node itself: two of its starts contradict each other (``weighed``), so nothing that this incarnation
    says counts any more."""

    def behind(self, seen: "Life") -> str:
        """Why this life of a node is older than another one of it, ``seen`` earlier; empty when it is not."""
        if seen.incarnation != self.incarnation:
            newer = seen.incarnation > self.incarnation
            return f"incarnation {seen.incarnation} of it is known, this one is {self.incarnation}" if newer else ""
        if seen.journal != self.journal:
            return f"incarnation {seen.incarnation} was journal {seen.journal}, not {self.journal}"
        if seen.lost or self.lacks(seen):
            return f"{seen.writes} writes of its journal were seen before its start {self.boot}, which found {self.began}"
        if seen.writes > self.writes:
            return f"{seen.writes} writes of its journal were seen, it holds {self.writes}"
        if seen.boot > self.boot:
            return f"start {seen.boot} of its journal was seen, this is start {self.boot}"
        if seen.boot == self.boot and seen.nonce != self.nonce:
            return f"another process counted start {seen.boot} of the same journal"
        return ""

    def lacks(self, earlier: "Life") -> bool:
        """Whether this start of the same journal found less than an earlier start had told of: the disk was set back."""
        same = (earlier.incarnation, earlier.journal) == (self.incarnation, self.journal)
        return same and earlier.boot < self.boot and earlier.writes > self.began

    def answers_behind(self, seen: "Life") -> str:
        """The same of an answer: within one start, an answer that was long under way shows fewer writes, and is as good."""
        same = (seen.incarnation, seen.journal, seen.boot, seen.nonce) == (
            self.incarnation,
            self.journal,
            self.boot,
            self.nonce,
        )
        return "" if same and not seen.lost else self.behind(seen)

    def later(self, other: "Life | None") -> "Life":
        """Whichever of two lives of one node is the newer one."""
        if other is None or (other.incarnation, other.boot, other.writes) <= (self.incarnation, self.boot, self.writes):
            return self
        return other


def weighed(known: Life | None, heard: Life) -> tuple[bool, Life]:
    """Whether what a node says in the life ``heard`` counts, and what to remember of that node from now on.

    A late message of an earlier start does not count, and may still prove that the disk was set back before the later one. It
    stays proved, whatever the node writes from then on, until it has a newer incarnation.
    """
    if known is None:
        return True, heard
    if known.lacks(heard) or heard.lacks(known):
        later = heard.later(known)
        return False, replace(later, writes=max(known.writes, heard.writes), lost=True)
    if heard.answers_behind(known):
        return False, known
    return True, heard.later(known)


def together(*lives: Life) -> Life:
    """What several nodes have seen of one: the newest. Oldest first, so that no two of them contradict each other unnoticed.

    Two processes that counted the same start do, too: each was heard by somebody, and nobody can tell which one is the later.
    """
    return reduce(_both, sorted(lives, key=lambda life: (life.incarnation, life.boot, life.writes)))


def _both(known: Life, heard: Life) -> Life:
    _, newest = weighed(known, heard)
    twice = (known.incarnation, known.journal, known.boot) == (heard.incarnation, heard.journal, heard.boot)
    if twice and known.nonce != heard.nonce:
        return replace(newest, writes=max(known.writes, heard.writes), lost=True)
    return newest


class State(Enum):
    """What a journal's word is worth."""

    NEW = "new"
    """Made by this node, and nothing is in it: it is no member's before the cluster is founded."""
    MEMBER = "member"
    """Promises, votes and answers."""
    REJOINING = "rejoining"
    """It lost what it had said, or may have: it answers nothing for any repository until it has learned it again."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Durable, one per journal."""

    state: State
    founders: tuple[str, ...] = ()
    """Journals (uuids) of the members when the cluster was founded, and of those that have rejoined since."""
    reason: str = ""
    """Why it rejoins."""
    since_ms: int = 0
    """Since when, by this node's clock."""
    tried: int = 0
    """The highest incarnation it ever tried to take."""


@dataclass(frozen=True, slots=True)
class Found:
    """The cluster is founded, and this journal is a member's from now on."""

    founders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """A cluster was founded without this journal: whatever its node had said before is lost here."""

    reason: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """Somebody has to be heard first."""

    waits_for: tuple[NodeId, ...]


def founding(
    journal: str, others: tuple[NodeId, ...], heard: Mapping[NodeId, tuple[str, Standing]]
) -> Found | Lost | Undecided:
    """What a new ``journal`` is; ``heard`` are the other members' journals and standings, as far as they have answered."""
    members = {node: standing for node, (_, standing) in heard.items() if standing.state is State.MEMBER}
    for node, standing in sorted(members.items()):
        if journal not in standing.founders:
            return Lost(f"{node} belongs to a cluster that was founded without this journal")
    if members:
        return Found(members[min(members)].founders)
    missing = tuple(node for node in others if node not in heard or heard[node][1].state is not State.NEW)
    if missing:
        return Undecided(missing)
    return Found(tuple(sorted((journal, *(uuid for uuid, _ in heard.values())))))
