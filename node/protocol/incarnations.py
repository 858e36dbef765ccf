"""Which of a node's journal lives is the newest that anybody knows, and which answers come from an older one (R4).

A node that rejoins after losing its journal takes a new incarnation, which a majority stores before it answers. Every promise,
vote and read answer carries the incarnation of its sender and the table of those that its sender knows. **An answer counts
only while nobody whose answer is counted with it, this node included, knows a newer incarnation of its sender**: else a vote
given before the loss could be counted after a majority was told, by the same node with empty hands, that there is none
(crash-consistent quorums: Michael et al., "Recovering Shared Objects Without Stable Storage", DISC 2017).

A table is true for ever: an incarnation once stored was promised to nobody else. So tables may be merged with anything
heard, and counting by the merged table leaves out the same answers or more, never fewer.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from node.protocol.ids import NodeId

Incarnations = tuple[tuple[NodeId, int], ...]
"""(node, its newest known incarnation), in order of the nodes; a node that is not named is in its first."""

FIRST = 1
"""The incarnation of a journal that never was lost."""


class Answer(Protocol):
    """A promise, a vote or a status."""

    @property
    def incarnation(self) -> int: ...

    @property
    def incarnations(self) -> Incarnations: ...


def merged(*tables: Incarnations) -> Incarnations:
    """The newest incarnation of each node that any of ``tables`` names."""
    found: dict[NodeId, int] = {}
    for table in tables:
        for node, incarnation in table:
            if incarnation > found.get(node, FIRST):
                found[node] = incarnation
    return tuple(sorted(found.items()))


def newest(table: Incarnations, node: NodeId) -> int:
    """The newest incarnation of ``node`` that ``table`` knows."""
    return next((incarnation for name, incarnation in table if name == node), FIRST)


def stale(answers: Mapping[NodeId, Answer], own: Incarnations = ()) -> frozenset[NodeId]:
    """Members of a set of answers that do not count: another one, or ``own``, knows a newer incarnation of them."""
    table = merged(own, *(answer.incarnations for answer in answers.values()))
    return older(((node, answer.incarnation) for node, answer in answers.items()), table)


def older(answered: Iterable[tuple[NodeId, int]], table: Incarnations) -> frozenset[NodeId]:
    """Nodes that answered with an incarnation older than ``table`` knows."""
    return frozenset(node for node, incarnation in answered if incarnation < newest(table, node))
