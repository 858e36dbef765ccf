"""What a rejoining node is doing, and the whole table of what may follow what (R4).

``docs/protocol.md`` shows this table as a diagram; ``rejoin.py`` says when which trigger is pulled.
"""

from collections.abc import Mapping
from enum import Enum


class Step(Enum):
    """Where an attempt to rejoin stands; the durable mark stands through all of them but the last."""

    WAITING = "waiting"
    """Between two attempts."""
    ASKING = "asking"
    """R4.1: which incarnation of this node does a majority of the members, itself not counted, know?"""
    KEEPING = "keeping"
    """The number to ask for is being written, so that no later attempt asks for it again."""
    ENROLLING = "enrolling"
    """R4.1: a majority is storing the new incarnation."""
    LISTING = "listing"
    """R4.2: the same majority tells what it holds of every repository."""
    LEARNING = "learning"
    """R4.3: catching up, staging and taking over, repository by repository."""
    CLEARING = "clearing"
    """R4.4: everything is learned; the mark is being removed."""
    DONE = "done"
    """A member again."""


class Trigger(Enum):
    """Why a rejoining node moves on."""

    RESUME = "pause is over"
    KNOWN = "a majority told"
    KEPT = "number is durable"
    GRANTED = "a majority stored it"
    LISTED = "every list is complete"
    LEARNED = "every repository is learned"
    CLEARED = "mark is removed"
    AGAIN = "interrupted"


_AGAIN: Mapping[Trigger, Step] = {Trigger.AGAIN: Step.WAITING}

TRANSITIONS: Mapping[Step, Mapping[Trigger, Step]] = {
    Step.WAITING: {Trigger.RESUME: Step.ASKING},
    Step.ASKING: {Trigger.KNOWN: Step.KEEPING, **_AGAIN},
    Step.KEEPING: {Trigger.KEPT: Step.ENROLLING, **_AGAIN},
    Step.ENROLLING: {Trigger.GRANTED: Step.LISTING, **_AGAIN},
    Step.LISTING: {Trigger.LISTED: Step.LEARNING, **_AGAIN},
    Step.LEARNING: {Trigger.LEARNED: Step.CLEARING, **_AGAIN},
    Step.CLEARING: {Trigger.CLEARED: Step.DONE, **_AGAIN},
    Step.DONE: {},
}
