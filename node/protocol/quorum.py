"""How many are enough: the voter set, its majority, its blocking set, and the tally of votes against a quorum.

The tally is three-valued: WON as soon as a quorum said yes, LOST as soon as it has become unreachable, else PENDING.
The sketch this system grew from counted ``ceil(N/2) - 1`` peers; for 4 or 6 nodes that is no majority, and two halves
could both commit. Docs: ``docs/protocol.md`` has the table for N = 1…7, generated from this file.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from node.protocol.ids import Digest, NodeId, digest_of
from node.protocol.names import check_node_id


class QuorumRefused(ValueError):
    """A quorum below a majority, or above the number of voters; the sentence says why."""


class Verdict(Enum):
    """What a tally says."""

    PENDING = "pending"
    """Neither a quorum of yes votes, nor is one out of reach."""
    WON = "won"
    """A quorum said yes."""
    LOST = "lost"
    """Too many noes (or voters that cannot answer) for a quorum of yes votes."""


@dataclass(frozen=True, slots=True)
class VoterSet:
    """The voters of one repository, written in its creation change; down nodes never shrink it.

    Invariant: sorted, without duplicates, not empty.
    """

    nodes: tuple[NodeId, ...]

    def __post_init__(self) -> None:
        if not self.nodes or list(self.nodes) != sorted(set(self.nodes)):
            raise ValueError("a voter set is sorted, without duplicates and not empty")
        for node in self.nodes:
            check_node_id(node)

    @classmethod
    def of(cls, nodes: Iterable[NodeId]) -> "VoterSet":
        return cls(tuple(sorted(set(nodes))))

    @property
    def digest(self) -> Digest:
        return _digest(self.nodes)

    @property
    def majority(self) -> int:
        return majority(len(self.nodes))

    @property
    def blocking(self) -> int:
        return blocking(len(self.nodes))

    def quorum(self, rule: str = "majority") -> int:
        """Yes votes that a change needs under ``rule``: ``majority``, ``all`` or a number of voters.

        Raises:
            QuorumRefused: if the rule names fewer than a majority or more than all.
        """
        return quorum(len(self.nodes), rule)


@lru_cache(maxsize=256)
def _digest(nodes: tuple[NodeId, ...]) -> Digest:
    """Every message carries it."""
    return digest_of("gitquorum-voters-v1", *nodes)


def majority(voters: int) -> int:
    """Any two of these meet."""
    return voters // 2 + 1


def blocking(voters: int) -> int:
    """Every majority meets one of these: enough to make sure that nothing else can be decided."""
    return voters - majority(voters) + 1


def quorum(voters: int, rule: str) -> int:
    """See ``VoterSet.quorum``."""
    least = majority(voters)
    if rule == "majority":
        return least
    if rule == "all":
        return voters
    if not rule.isdecimal():
        raise QuorumRefused(f"quorum {rule!r} is not 'majority', 'all' or a number")
    wanted = int(rule)
    if wanted < least:
        raise QuorumRefused(
            f"a quorum of {wanted} of {voters} is no majority: two halves could both commit; use at least {least}"
        )
    if wanted > voters:
        raise QuorumRefused(f"a quorum of {wanted} can never be reached by {voters} voters")
    return wanted


def tally(
    voters: VoterSet,
    needed: int,
    yes: Collection[NodeId],
    no: Collection[NodeId] = (),
    unreachable: Collection[NodeId] = (),
) -> Verdict:
    """Count votes. ``unreachable`` voters that have not voted are not waited for; they never lower what is needed.

    A voter outside the set does not count; one that said yes has said yes, whatever else it is in.
    """
    members = set(voters.nodes)
    ayes = members.intersection(yes)
    if len(ayes) >= needed:
        return Verdict.WON
    open_votes = members - ayes - set(no) - set(unreachable)
    return Verdict.PENDING if len(ayes) + len(open_votes) >= needed else Verdict.LOST
