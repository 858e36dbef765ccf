"""Linearizable reads (R5): from a majority's answers to the version that must be applied here before a read is served.

The question is sent after the read's request arrived and is never shared with a later request. Nobody may infer a decision
from votes or equal accepted records (C4): a change that may be decided is waited for, or settled.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from node.protocol.ids import NodeId
from node.protocol.incarnations import Incarnations, stale
from node.protocol.messages import Status


@dataclass(frozen=True, slots=True)
class Barrier:
    """Serve once ``applied`` is applied here. ``doubtful``: that version is not known to be committed; after the prepare
    deadline it must be settled (C3), which may end without it."""

    applied: int
    doubtful: bool


def fresh(answers: Mapping[NodeId, Status], own: Incarnations = ()) -> dict[NodeId, Status]:
    """R4: the answers that count; ``own`` are the incarnations durable here, in case this node's answer is not among them."""
    dropped = stale(answers, own)
    return {node: status for node, status in answers.items() if node not in dropped}


def barrier(answers: Collection[Status]) -> Barrier:
    """``answers`` come from a majority of the voters, this node counted unless it is rejoining or set aside."""
    committed = max(answer.committed.version for answer in answers)
    top = max(answers, key=lambda answer: answer.accepted_ballot)
    if top.accepted_change and top.accepted_base.version == committed:
        return Barrier(committed + 1, doubtful=True)
    return Barrier(committed, doubtful=False)
