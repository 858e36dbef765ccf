"""One request under way at a voter, and the whole table of what may become of it.

A session begins when a claim, prepare, abort or commit comes in, and ends with its one answer. ``docs/protocol.md`` shows this
table as a diagram; ``voter.py`` says when which trigger is pulled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from node.protocol.ids import NodeId
from node.protocol.messages import TransportRequest


class Phase(Enum):
    """Where one request stands."""

    ARRIVED = "arrived"
    """Not looked at yet."""
    HELD = "held"
    """C7: a foreign claim that waits, once, for a young change to be decided."""
    PROMISING = "promising"
    """V1: the promise is being written."""
    CATCHING_UP = "catching up"
    """V2, V3: history is shorter than the request's base; waiting for it to grow."""
    INFERRING = "inferring"
    """V2: the base proves that the own accepted change is committed; that is being written."""
    STAGING = "staging"
    """V2: objects are being fetched and checked."""
    ACCEPTING = "accepting"
    """V2, V4: the acceptance is being written."""
    COMMITTING = "committing"
    """V3: the commit is being written."""
    ANSWERED = "answered"
    """A reply was given."""


class Trigger(Enum):
    """Why a session moves on."""

    HOLD = "young change in doubt"
    PROMISE = "may be promised"
    LAG = "own history is short"
    INFER = "base proves own change"
    FETCH = "objects not staged"
    ACCEPT = "everything checked"
    COMMIT = "own accepted change is decided"
    LOOK_AGAIN = "something moved"
    ANSWER = "answered"


TRANSITIONS: Mapping[Phase, Mapping[Trigger, Phase]] = {
    Phase.ARRIVED: {
        Trigger.HOLD: Phase.HELD,
        Trigger.PROMISE: Phase.PROMISING,
        Trigger.LAG: Phase.CATCHING_UP,
        Trigger.INFER: Phase.INFERRING,
        Trigger.FETCH: Phase.STAGING,
        Trigger.ACCEPT: Phase.ACCEPTING,
        Trigger.COMMIT: Phase.COMMITTING,
        Trigger.ANSWER: Phase.ANSWERED,
    },
    Phase.HELD: {Trigger.PROMISE: Phase.PROMISING, Trigger.ANSWER: Phase.ANSWERED},
    Phase.PROMISING: {Trigger.ANSWER: Phase.ANSWERED},
    Phase.CATCHING_UP: {Trigger.LOOK_AGAIN: Phase.ARRIVED, Trigger.ANSWER: Phase.ANSWERED},
    Phase.INFERRING: {Trigger.LOOK_AGAIN: Phase.ARRIVED, Trigger.ANSWER: Phase.ANSWERED},
    Phase.STAGING: {Trigger.LOOK_AGAIN: Phase.ARRIVED, Trigger.ANSWER: Phase.ANSWERED},
    Phase.ACCEPTING: {
        Trigger.LOOK_AGAIN: Phase.ARRIVED,
        Trigger.LAG: Phase.CATCHING_UP,
        Trigger.ANSWER: Phase.ANSWERED,
    },
    Phase.COMMITTING: {Trigger.LOOK_AGAIN: Phase.ARRIVED, Trigger.ANSWER: Phase.ANSWERED},
    Phase.ANSWERED: {},
}


@dataclass(slots=True)
class Session:
    """One request under way."""

    request: int
    sender: NodeId
    message: TransportRequest
    deadline_at: float
    phase: Phase = Phase.ARRIVED
    held_until: float = 0.0

    def move(self, trigger: Trigger) -> None:
        """The only writer of ``phase``."""
        self.phase = TRANSITIONS[self.phase][trigger]

    def __repr__(self) -> str:
        return f"<Session {self.request} {type(self.message).__name__} of {self.sender} {self.phase.name}>"
